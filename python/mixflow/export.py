"""The ops written in standard operators, for programs that run without mixflow's kernels, such as ONNX models.

``torch.onnx.export`` uses these formulas by itself. A program of ``torch.export`` keeps the ops until
:func:`decompositions` replaces them:

.. code-block:: python

    torch.onnx.export(flow, (x,), "flow.onnx", dynamo=True)  # its log density; pip install mixflow[onnx]

    program = torch.export.export(flow, (x,))
    program = program.run_decompositions(mixflow.export.decompositions())

The formulas are for inference in the forward direction. Both tails keep their accuracy, as in
:func:`mixflow.cdf_transform`: z is right to 8 eps in float32 and 64 eps in float64. ``ladj`` is a sum of logarithms: of
its own size, of the largest scale and weight, and of z. Its error is as small relative to the largest of them. The
formulas take more time than the kernels, and memory for every component of every element. An ONNX file in float64 has
the accuracy of float32 alone, since torch rounds the constants in it.

ONNX has no ``erfcx``, ``log1p`` or ``expm1``. Torch exports ``log1p(x)`` as ``log(1 + x)`` and ``logsigmoid(x)`` as
``log(sigmoid(x))``, which loses the tails. So each tail is written here as exp(-exponent) times a factor that neither
overflows nor underflows. Exponents are compared and subtracted before anything is exponentiated.
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
        For each op of mixflow, a function of the same arguments in standard ATen operators. In the inverse direction,
        which has no closed form, it raises NotImplementedError.

    Example:
        >>> from mixflow.export import decompositions
        >>> sorted(str(op) for op in decompositions())
        ['mixflow.affine_map.default', 'mixflow.interval.default', 'mixflow.map.default']

    """
    ops = torch.ops.mixflow
    return {ops.map.default: cdf_map, ops.affine_map.default: affine_map, ops.interval.default: interval}


def in_onnx_export() -> bool:
    """Whether ``torch.onnx.export(..., dynamo=True)`` is tracing the caller."""
    return torch.compiler.is_compiling() and _is_onnx_wanted()


def _is_onnx_wanted() -> bool:
    return torch.onnx.is_in_onnx_export()


# Dynamo replaces torch's function by False, but calls a function with this mark. If tracing fails, torch.onnx tries
# again with Dynamo; that must fail in the same way, or the user sees a later error about an op that ONNX does not know.
_is_onnx_wanted._dynamo_marked_constant = True  # type: ignore[attr-defined]


# -- the ops -------------------------------------------------------------------------------------------------


def cdf_map(
    x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, family: str, base: str, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The op ``mixflow::map``, forward: ``z = G^-1(F(x))`` and ``log |dz/dx|``."""
    if inverse:
        raise NotImplementedError(
            "inverse: expected False, the direction that has a formula in standard operators; got True. "
            "Export log_prob or the forward direction of a transform, and draw samples with mixflow itself"
        )
    rate = torch.exp(-log_scale)
    a = (x.unsqueeze(-1) - loc) * rate
    exponent, tail, density = _formula("family", _FAMILIES, family)(a.abs())
    rest = 1.0 - torch.exp(-exponent) * tail
    log_weight = torch.log_softmax(logits, dim=-1)

    def side(outer: Tensor) -> tuple[Tensor, Tensor]:
        """The log of the mass on one side of x, and log(F' / mass).

        ``outer`` tells for which components that side is the smaller one.
        """
        log_mass = log_weight - torch.where(outer, exponent, 0.0)
        shift = _finite_max(log_mass)
        # log(F' / mass) may be small where both logs are huge, so the shift is subtracted from both beforehand.
        relative = log_mass - shift
        mass = (torch.exp(relative) * torch.where(outer, tail, rest)).sum(-1).log()
        log_density = _log_sum(relative - torch.where(outer, 0.0, exponent), density * rate)
        return shift.squeeze(-1) + mass, log_density - mass

    log_below, slope_below = side(a < 0.0)
    log_above, slope_above = side(a >= 0.0)
    lower = log_below < log_above
    log_smaller = torch.where(lower, log_below, log_above)
    z, log_ratio = _formula("base", _BASES, base)(lower, log_smaller, torch.where(lower, log_above, log_below))
    ladj = torch.where(lower, slope_below, slope_above) + log_ratio
    return z, torch.where(log_smaller == -math.inf, -math.inf, ladj)


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


# -- families ------------------------------------------------------------------------------------------------
#
# From t = |x - loc| / scale each gives an exponent and two factors. The smaller tail is exp(-exponent) times the first,
# and the density in units of 1 / scale is exp(-exponent) times the second.


def _gaussian(t: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    return 0.5 * t * t, _normal_tail(t), 1.0 / _SQRT_2PI


def _logistic(t: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    tail = 1.0 / (1.0 + torch.exp(-t))
    return t, tail, tail * tail


_FAMILIES = {"gaussian": _gaussian, "logistic": _logistic}


# -- intervals -----------------------------------------------------------------------------------------------
#
# From the two edges, the centre and the width, all in scales from loc and near + far >= 0, each gives an exponent and
# a factor. The probability is exp(-exponent) times the factor.


def _gaussian_interval(near: Tensor, far: Tensor, centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The density of a narrow interval is integrated; the tails at the edges of others differ enough to subtract."""
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
    """``C(v) - C(u) = C(v) C(-u) (1 - exp(u - v))``; a tanh gives the last factor, accurately for small widths too."""
    half = torch.tanh(0.5 * width)
    ends = (1.0 + torch.exp(-near.abs())) * (1.0 + torch.exp(-far))
    return torch.where(near > 0.0, near, 0.0), 2.0 * half / ((1.0 + half) * ends)


_INTERVALS = {"gaussian": _gaussian_interval, "logistic": _logistic_interval}


# -- bases ---------------------------------------------------------------------------------------------------
#
# With m = min(F, 1 - F), from whether m is F, log m and log(1 - m), each gives z = G^-1(F) and log(m / g(z)).


def _normal(lower: Tensor, log_smaller: Tensor, log_larger: Tensor) -> tuple[Tensor, Tensor]:
    t = _normal_quantile(log_smaller)
    return torch.where(lower, -t, t), torch.log(_normal_tail(t) * _SQRT_2PI)


def _standard_logistic(lower: Tensor, log_smaller: Tensor, log_larger: Tensor) -> tuple[Tensor, Tensor]:
    t = log_larger - log_smaller
    return torch.where(lower, -t, t), -log_larger


def _uniform(lower: Tensor, log_smaller: Tensor, log_larger: Tensor) -> tuple[Tensor, Tensor]:
    smaller = torch.exp(log_smaller)
    return torch.where(lower, smaller, 1.0 - smaller), log_smaller


_BASES = {"normal": _normal, "logistic": _standard_logistic, "uniform": _uniform}


# -- the standard normal -------------------------------------------------------------------------------------


def _normal_tail(t: Tensor) -> Tensor:
    """``Phi(-t) exp(t^2 / 2)`` for t >= 0: a polynomial in (t - 4) / (t + 4), divided by 1 + t.

    The form is that of Shepherd and Laframboise, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x" (1981).
    """
    y = 1.0 - 8.0 / (t + 4.0)
    return _horner(_tail_coefficients(24 if t.dtype == torch.float64 else 10), y) / (1.0 + t)


@functools.cache
def _tail_coefficients(degree: int) -> tuple[float, ...]:
    """The polynomial that interpolates at Chebyshev's points: degree 10 for float32, 24 for float64."""

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

    The start is within 4 per cent. Halley's method on log Phi, which is nearly a parabola, leaves an error of 4e-9
    after one step and of 1e-15 after two.
    """
    q = -2.0 * (log_p + math.log(2.0))
    q = torch.where(q <= 0.0, 0.0, q)  # rounding can make it negative; and 1 / q must not meet -0
    root = torch.sqrt(q)
    start = root / torch.sqrt(1.0 + 2.75 / q) * _horner(_START, 1.0 - 6.5 / (root + 3.25))
    t = start
    for _ in range(2 if t.dtype == torch.float64 else 1):
        tail = _normal_tail(t)
        mills = tail * _SQRT_2PI
        newton = (torch.log(tail) - 0.5 * t * t - log_p) * mills
        t = t + newton / (1.0 + 0.5 * newton * (1.0 / mills - t))
    return torch.where(start == math.inf, start, t)


_START = (0.9694, 0.012, 0.0739, -0.0553)  # a least-squares fit


# -- rotations -----------------------------------------------------------------------------------------------


def cayley(half: Tensor) -> Tensor:
    """``(I - half)^-1 (I + half)`` of a skew-symmetric matrix by products, since ONNX has no solver.

    Newton's iteration for the inverse (Schulz, 1933) squares the error at each step. From this start it converges for
    every skew-symmetric matrix, and 24 steps are enough unless Q turns a direction right round to within 0.002 radians.
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
    """Gauss and Legendre's points in [-1, 1] and weights of a mean, enough for the last digit of narrow intervals."""
    points, weights = np.polynomial.legendre.leggauss(8 if dtype == torch.float64 else 5)
    return tuple(zip(points.tolist(), (0.5 * weights).tolist(), strict=True))
