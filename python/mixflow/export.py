r"""The ops in operators that other runtimes have, for programs that run without mixflow's kernels: ONNX models.

``torch.onnx.export`` of a flow uses these formulas by itself. A program of ``torch.export`` keeps the ops, and gives
them up for the formulas by :func:`decompositions`:

.. code-block:: python

    torch.onnx.export(flow, (x,), "flow.onnx", dynamo=True)  # the log density

    program = torch.export.export(flow, (x,))
    program = program.run_decompositions(mixflow.export.decompositions())

Both tails keep their accuracy, as in :func:`mixflow.cdf_transform`, but the formulas need more time, and memory for
every component of every element. They are made for inference: nothing is promised of their derivatives.

ONNX has no ``erfcx``, ``expm1`` or ``log1p``, and the ``LogSigmoid`` and ``LogAddExp`` that exporters write are not
accurate in the tails. So every tail is written as ``exp(-exponent)`` times a factor that neither overflows nor
vanishes, of which only exponents are compared and added, and differences of nearly equal numbers do not occur.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["decompositions"]

T = TypeVar("T")

_SQRT_2PI = math.sqrt(2.0 * math.pi)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The table of formulas that ``torch.export.ExportedProgram.run_decompositions`` takes.

    Returns:
        For each op of mixflow, a function of the same arguments in standard ATen operators. It raises
        NotImplementedError for the inverse direction, which has no closed form.

    Example:
        >>> import torch, mixflow
        >>> layer = mixflow.transforms.MixtureCDF(features=1, components=4)
        >>> program = torch.export.export(layer, (torch.zeros(5, 1),))
        >>> program = program.run_decompositions(mixflow.export.decompositions())
        >>> any("mixflow" in str(node.target) for node in program.graph.nodes)
        False

    """
    ops = torch.ops.mixflow
    return {ops.map.default: cdf_map, ops.affine_map.default: affine_map, ops.interval.default: interval}


def in_onnx_export() -> bool:
    """Whether ``torch.onnx`` is exporting the caller by ``torch.export``."""
    return torch.compiler.is_compiling() and _is_onnx_wanted()


def _is_onnx_wanted() -> bool:
    return torch.onnx.is_in_onnx_export()


# Dynamo itself takes torch's function for False. A strict export, which torch.onnx tries when the first one failed,
# would then go on with the ops and hide the error of the first.
_is_onnx_wanted._dynamo_marked_constant = True  # type: ignore[attr-defined]


# -- the ops -------------------------------------------------------------------------------------------------


def cdf_map(
    x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, family: str, base: str, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The op ``mixflow::map``, forward: ``z = G^-1(F(x))`` and ``log |dz/dx|``."""
    if inverse:
        raise NotImplementedError(
            "inverse: expected the forward direction, which has a formula in standard operators; got the inverse, "
            "which has none. Export log_prob, or a transform in its forward direction, and sample with mixflow"
        )
    rate = torch.exp(-log_scale)
    a = (x.unsqueeze(-1) - loc) * rate
    exponent, tail, density = _formula("family", _FAMILIES, family)(a.abs())
    rest = 1.0 - torch.exp(-exponent) * tail
    log_weight = torch.log_softmax(logits, dim=-1)

    def side(outer: Tensor) -> tuple[Tensor, Tensor]:
        """Log of the mass on one side of x, and of F' over it; ``outer``: x is in that tail of the component."""
        log_mass = log_weight - torch.where(outer, exponent, 0.0)
        shift = _finite_max(log_mass)
        # Relative to the shift: of exponents that are large and alike, a difference taken later would keep no digits.
        relative = log_mass - shift
        mass = (torch.exp(relative) * torch.where(outer, tail, rest)).sum(-1).log()
        log_density = _log_sum(relative - torch.where(outer, 0.0, exponent), density * rate)
        return shift.squeeze(-1) + mass, log_density - mass

    log_below, slope_below = side(a < 0.0)
    log_above, slope_above = side(a >= 0.0)
    z, log_ratio = _formula("base", _BASES, base)(log_below, log_above)
    return z, torch.where(log_below < log_above, slope_below, slope_above) + log_ratio


def affine_map(x: Tensor, rows: Tensor, family: str, base: str, inverse: bool) -> tuple[Tensor, Tensor]:
    """The op ``mixflow::affine_map``, forward: :func:`cdf_map`, then an affine map."""
    logits, loc, log_scale = rows[..., :-2].unflatten(-1, (3, -1)).unbind(-2)
    shift, log_slope = rows[..., -2], rows[..., -1]
    z, ladj = cdf_map(x, logits, loc, log_scale, family, base, inverse)
    return z * log_slope.exp() + shift, ladj + log_slope


def interval(lower: Tensor, upper: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, family: str) -> Tensor:
    """The op ``mixflow::interval``: ``log(F(upper) - F(lower))``."""
    width = (upper - lower).unsqueeze(-1)
    low, high, rate = lower.unsqueeze(-1) - loc, upper.unsqueeze(-1) - loc, torch.exp(-log_scale)
    centre = 0.5 * low + 0.5 * high
    # Each component's interval is mirrored to the side of the upper tail. Two infinite edges have no centre.
    mirrored = centre < 0.0
    near, far = torch.where(mirrored, -high, low) * rate, torch.where(mirrored, -low, high) * rate
    centre = torch.where(width == math.inf, math.inf, centre.abs() * rate)
    exponent, share = _formula("family", _INTERVALS, family)(near, far, centre, width * rate)
    result = _log_sum(torch.log_softmax(logits, dim=-1) - exponent, share)
    return torch.where(lower == upper, -math.inf, torch.where(lower > upper, math.nan, result))


def _formula(kind: str, formulas: dict[str, T], name: str) -> T:
    if name in formulas:
        return formulas[name]
    raise NotImplementedError(
        f"{kind}: expected one with a formula in standard operators, {', '.join(formulas)}; got {name!r}. "
        "Add its formula to mixflow/export.py"
    )


# -- families: of t = |x - loc| / scale, an exponent h and factors: the tail is exp(-h) tail, and the density
#    exp(-h) density -----------------------------------------------------------------------------------------


def _gaussian(t: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    return 0.5 * t * t, _normal_tail(t), 1.0 / _SQRT_2PI


def _logistic(t: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    tail = 1.0 / (1.0 + torch.exp(-t))
    return t, tail, tail * tail


_FAMILIES = {"gaussian": _gaussian, "logistic": _logistic}


# -- intervals, of near + far >= 0: an exponent h, and the probability times exp(h) ----------------------------


def _gaussian_interval(near: Tensor, far: Tensor, centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Narrow intervals are integrated about their centre; of others the tails differ enough to be subtracted."""
    narrow = (width <= 1.0) & (width * centre <= 2.0)
    half = torch.where(narrow, 0.5 * width, 0.0)
    slope, bend = torch.where(narrow, centre * half, 0.0), -0.5 * half * half
    mean = _sum(weight * torch.exp(point * (bend * point - slope)) for point, weight in _quadrature(width.dtype))

    t, aside = near.abs(), near > 0.0
    far_exponent = torch.where(aside, width * centre, 0.5 * far * far)
    near_tail = torch.where(aside, 1.0, torch.exp(-0.5 * t * t)) * _normal_tail(t)
    share = torch.where(aside, near_tail, 1.0 - near_tail) - torch.exp(-far_exponent) * _normal_tail(far)
    middle = torch.where(narrow, centre, torch.where(aside, near, 0.0))
    return 0.5 * middle * middle, torch.where(narrow, width * mean / _SQRT_2PI, share)


def _logistic_interval(near: Tensor, far: Tensor, centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """``C(v) - C(u) = C(v) C(-u) (1 - exp(u - v))``, the last factor by a tanh, which is accurate at small widths."""
    half = torch.tanh(0.5 * width)
    ends = (1.0 + torch.exp(-near.abs())) * (1.0 + torch.exp(-far))
    return torch.where(near > 0.0, near, 0.0), 2.0 * half / ((1.0 + half) * ends)


_INTERVALS = {"gaussian": _gaussian_interval, "logistic": _logistic_interval}


# -- bases: of log F and log(1 - F), the quantile z and log(m / g(z)) for the smaller of the two, m ------------


def _normal(log_below: Tensor, log_above: Tensor) -> tuple[Tensor, Tensor]:
    lower = log_below < log_above
    t = _normal_quantile(torch.where(lower, log_below, log_above))
    return torch.where(lower, -t, t), torch.log(_normal_tail(t) * _SQRT_2PI)


def _standard_logistic(log_below: Tensor, log_above: Tensor) -> tuple[Tensor, Tensor]:
    return log_below - log_above, -torch.where(log_below < log_above, log_above, log_below)


def _uniform(log_below: Tensor, log_above: Tensor) -> tuple[Tensor, Tensor]:
    lower = log_below < log_above
    log_smaller = torch.where(lower, log_below, log_above)
    smaller = torch.exp(log_smaller)
    return torch.where(lower, smaller, 1.0 - smaller), log_smaller


_BASES = {"normal": _normal, "logistic": _standard_logistic, "uniform": _uniform}


# -- the standard normal -------------------------------------------------------------------------------------


def _normal_tail(t: Tensor) -> Tensor:
    """``Phi(-t) exp(t^2 / 2)`` for t >= 0: a polynomial in (t - 4) / (t + 4), over 1 + t.

    The form is that of Schonfelder, "Chebyshev expansions for the error and related functions" (1978).
    """
    y = 1.0 - 8.0 / (t + 4.0)
    return _horner(_tail_coefficients(24 if t.dtype == torch.float64 else 10), y) / (1.0 + t)


@functools.cache
def _tail_coefficients(degree: int) -> tuple[float, ...]:
    """The polynomial by interpolation at Chebyshev's points: error 2e-15 for degree 24, 1e-8 for degree 10."""

    def scaled_tail(t: float) -> float:
        if t < 2.0:
            return 0.5 * math.erfc(t / math.sqrt(2.0)) * math.exp(0.5 * t * t)
        fraction = t  # Laplace's continued fraction
        for n in range(100, 0, -1):
            fraction = t + n / fraction
        return 1.0 / (_SQRT_2PI * fraction)

    def function(y: Any) -> Any:
        t = 8.0 / (1.0 - y) - 4.0
        return (1.0 + t) * np.array([scaled_tail(value) for value in t.tolist()])

    chebyshev = np.polynomial.chebyshev
    return tuple(chebyshev.cheb2poly(chebyshev.chebinterpolate(function, degree)).tolist())


def _normal_quantile(log_p: Tensor) -> Tensor:
    """The ``t >= 0`` with ``log Phi(-t) = log_p``, for ``log_p <= log(1/2)``.

    The start is off by 4 per cent at most. Halley's method on log Phi, nearly a parabola, leaves 4e-9 after one step,
    and 1e-15 after two.
    """
    q = -2.0 * (log_p + math.log(2.0))
    q = torch.where(q <= 0.0, 0.0, q)  # negative by rounding; and 1 / q shall not see -0
    root = torch.sqrt(q)
    start = root / torch.sqrt(1.0 + 2.75 / q) * _horner(_START, 1.0 - 6.5 / (root + 3.25))
    t = start
    for _ in range(2 if t.dtype == torch.float64 else 1):
        tail = _normal_tail(t)
        mills = tail * _SQRT_2PI
        newton = (torch.log(tail) - 0.5 * t * t - log_p) * mills
        t = t + newton / (1.0 + 0.5 * newton * (1.0 / mills - t))
    return torch.where(start == math.inf, start, t)


_START = (0.9694, 0.012, 0.0739, -0.0553)


# -- rotations -----------------------------------------------------------------------------------------------


def cayley(half: Tensor) -> Tensor:
    """``(I - half)^-1 (I + half)`` of a skew-symmetric matrix, by matrix products alone: ONNX solves no equations.

    Newton's iteration for the inverse (Schulz, 1933) squares the error at each step. From this start it converges for
    every skew matrix, and 24 steps are enough unless an angle is within 0.002 of 180 degrees.
    """
    one = torch.eye(half.shape[-1], dtype=half.dtype, device=half.device)
    inverse = (one + half) / (1.0 + 0.5 * half.square().sum())
    for _ in range(24):
        inverse = inverse @ (2.0 * one - (one - half) @ inverse)
    return 2.0 * inverse - one


# -- sums ----------------------------------------------------------------------------------------------------


def _horner(coefficients: Iterable[float], x: Tensor) -> Tensor:
    *lower, second, first = coefficients
    result = first * x + second
    for coefficient in reversed(lower):
        result = result * x + coefficient
    return result


def _finite_max(values: Tensor) -> Tensor:
    """The maximum over the last axis, which is kept; 0 if it is -inf."""
    largest = values.amax(-1, keepdim=True)
    return torch.where(largest > -math.inf, largest, 0.0)


def _log_sum(exponents: Tensor, factors: Tensor) -> Tensor:
    """``log sum(factors exp(exponents))`` over the last axis."""
    shift = _finite_max(exponents)
    return shift.squeeze(-1) + (factors * torch.exp(exponents - shift)).sum(-1).log()


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


@functools.cache
def _quadrature(dtype: torch.dtype) -> tuple[tuple[float, float], ...]:
    """Points in [-1, 1] and weights of a mean, by Gauss and Legendre, exact to the last digit for narrow intervals."""
    points, weights = np.polynomial.legendre.leggauss(8 if dtype == torch.float64 else 5)
    return tuple(zip(points.tolist(), (0.5 * weights).tolist(), strict=True))
