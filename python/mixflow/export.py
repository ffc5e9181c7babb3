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

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from .standard import BASES, FAMILIES

__all__ = ["decompositions"]

T = TypeVar("T")


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
            "inverse: expected False, the direction that has a formula in standard operators, got True. "
            "Export log_prob or the forward direction of a transform, and draw samples with mixflow itself"
        )
    rate = torch.exp(-log_scale)
    a = (x.unsqueeze(-1) - loc) * rate
    exponent, tail, density = _formula("family", _DECAYS, family)(a.abs())
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


def _formula(kind: str, formulas: Mapping[str, T | None], name: str) -> T:
    formula = formulas.get(name)
    if formula is not None:
        return formula
    known = ", ".join(key for key, value in formulas.items() if value is not None)
    raise NotImplementedError(
        f"{kind}: expected one with a formula in standard operators, {known}, got {name!r}. "
        "Add the formula to its record in mixflow/standard"
    )


_DECAYS = {name: family.decay for name, family in FAMILIES.items()}
_INTERVALS = {name: family.interval for name, family in FAMILIES.items()}
_BASES = {name: base.from_smaller_tail for name, base in BASES.items()}


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


def _finite_max(values: Tensor) -> Tensor:
    """The maximum over the last axis, which is kept; 0 if it is -inf."""
    largest = values.amax(-1, keepdim=True)
    return torch.where(largest > -math.inf, largest, 0.0)


def _log_sum(exponents: Tensor, factors: Tensor) -> Tensor:
    """``log sum(factors exp(exponents))`` over the last axis."""
    shift = _finite_max(exponents)
    return shift.squeeze(-1) + (factors * torch.exp(exponents - shift)).sum(-1).log()
