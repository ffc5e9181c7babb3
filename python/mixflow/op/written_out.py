"""The ops and their gradients in ordinary torch operations, which torch can differentiate again.

Kernels compute values and first derivatives. Torch differentiates a kernel's gradient through the functions here: for
second derivatives, and for forward mode over a gradient. The formulas are those of the mixture in log space: with
``a = (x - loc) / scale``, the logarithms of both tails and of the density are log-sum-exps over the components, so that
neither tail underflows. They allocate tensors of shape (..., K).

Every branch of a ``torch.where`` gets harmless numbers where it does not apply: its derivative there is multiplied by
zero, and zero times NaN or infinity would be NaN.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from ..standard import BASES, FAMILIES, Family
from .shapes import batch_shape, parameter_shape

__all__ = ["affine_transform", "affine_transform_gradient", "cdf_transform_gradient", "discretized_log_prob_gradient"]

Tensors: TypeAlias = tuple[Tensor, ...]


# -- the ops -------------------------------------------------------------------------------------------------


def cdf_transform(
    x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, *, family: str, base: str
) -> tuple[Tensor, Tensor]:
    """``z = G^-1(F(x))`` and ``log |dz/dx|``."""
    component, to = FAMILIES[family], BASES[base]
    a = (x.unsqueeze(-1) - loc) / log_scale.exp()
    log_weight = torch.log_softmax(logits, dim=-1)
    log_lower_tail = torch.logsumexp(log_weight + component.log_cdf(a), dim=-1)
    log_upper_tail = torch.logsumexp(log_weight + component.log_sf(a), dim=-1)
    log_density = torch.logsumexp(log_weight + component.log_pdf(a) - log_scale, dim=-1)
    z = to.from_log_tails(log_lower_tail, log_upper_tail)
    return z, log_density - to.log_prob(z)


def affine_transform(x: Tensor, rows: Tensor, *, family: str, base: str) -> tuple[Tensor, Tensor]:
    """:func:`cdf_transform`, then an affine map: see :func:`mixflow.op.affine_transform`."""
    logits, loc, log_scale = rows[..., :-2].unflatten(-1, (3, -1)).unbind(-2)
    shift, log_slope = rows[..., -2], rows[..., -1]
    value, ladj = cdf_transform(x, logits, loc, log_scale, family=family, base=base)
    return value * log_slope.exp() + shift, ladj + log_slope


def discretized_log_prob(
    lower: Tensor, upper: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, *, family: str
) -> Tensor:
    """``log(F(upper) - F(lower))``; -inf where the edges are equal, NaN where they are in the wrong order."""
    are_ordered, are_equal = lower < upper, lower == upper
    low = torch.where(are_ordered, lower, 0.0).unsqueeze(-1)
    high = torch.where(are_ordered, upper, 1.0).unsqueeze(-1)
    terms = _log_interval(low, high, loc, log_scale.exp(), FAMILIES[family])
    result = torch.logsumexp(torch.log_softmax(logits, dim=-1) + terms, dim=-1)
    return torch.where(are_ordered, result, torch.where(are_equal, -math.inf, math.nan))


def _log_interval(lower: Tensor, upper: Tensor, loc: Tensor, scale: Tensor, family: Family) -> Tensor:
    """``log(C((upper - loc) / scale) - C((lower - loc) / scale))`` of each component, for ``lower < upper``.

    The interval is mirrored to the side of the upper tail. If the density is nearly constant in it, Gauss and
    Legendre's rule integrates it, exactly to the last digit. Otherwise the two tails differ so much that their
    difference loses no accuracy. Heavy tails are nearly constant over many scales, but an interval around the centre
    must be short.
    """
    open_below, open_above = torch.isneginf(lower), torch.isposinf(upper)
    lower, upper = torch.where(open_below, 0.0, lower), torch.where(open_above, 0.0, upper)
    a, b = (lower - loc) / scale, (upper - loc) / scale
    is_mirrored = torch.where(open_below | open_above, open_below & ~open_above, a + b < 0.0)
    near, far = torch.where(is_mirrored, -b, a), torch.where(is_mirrored, -a, b)
    is_finite, width = ~(open_below | open_above), (upper - lower) / scale
    is_whole_line = open_below & open_above
    is_level = (family.log_pdf(near) - family.log_pdf(far)).abs() <= 2.0
    is_narrow = is_finite & is_level & ((width <= 1.0) | (near >= 0.0))
    is_aside = ~is_narrow & (near > 0.0) & ~is_whole_line
    is_around = ~is_narrow & ~is_aside

    half, centre = 0.5 * torch.where(is_narrow, width, 1.0), 0.5 * torch.where(is_narrow, near + far, 0.0)
    log_narrow = _log_integral(family, centre, half)

    log_near = family.log_sf(torch.where(is_aside, near, 1.0))
    log_far = family.log_sf(torch.where(is_aside & is_finite, far, 2.0))
    log_aside = log_near + torch.where(is_aside & ~is_finite, 0.0, torch.log1p(-torch.exp(log_far - log_near)))

    below = family.log_cdf(torch.where(is_around & ~is_whole_line, near, -1.0)).exp()
    above = family.log_sf(torch.where(is_around & is_finite, far, 1.0)).exp()
    outside = torch.where(is_whole_line, 0.0, below) + torch.where(is_finite, above, 0.0)
    log_around = torch.log1p(-torch.where(is_around, outside, 0.0))
    return torch.where(is_narrow, log_narrow, torch.where(is_aside, log_aside, log_around))


def _log_integral(family: Family, centre: Tensor, half: Tensor) -> Tensor:
    """The logarithm of the integral of the density from ``centre - half`` to ``centre + half``, a narrow interval."""
    if family.smooth:
        return _log_smooth_integral(family, centre, half)
    low, high = centre - half, centre + half
    has_kink = (low < 0.0) & (high > 0.0)  # which is at 0, where the interval is cut
    below = _log_smooth_integral(
        family, torch.where(has_kink, 0.5 * low, centre), torch.where(has_kink, -0.5 * low, half)
    )
    above = _log_smooth_integral(
        family, torch.where(has_kink, 0.5 * high, centre), torch.where(has_kink, 0.5 * high, half)
    )
    return torch.where(has_kink, torch.logaddexp(below, above), below)


def _log_smooth_integral(family: Family, centre: Tensor, half: Tensor) -> Tensor:
    rule = np.polynomial.legendre.leggauss(16)
    nodes, weights = (torch.as_tensor(v, dtype=centre.dtype, device=centre.device) for v in rule)
    points = centre.unsqueeze(-1) + half.unsqueeze(-1) * nodes
    return torch.logsumexp(family.log_pdf(points) + weights.log(), dim=-1) + half.log()


# -- their gradients -----------------------------------------------------------------------------------------
#
# Each of these functions takes the options of an op and returns a function from seeds (the gradients of the outputs),
# points and parameters to the gradients that the op's backward kernel computes.


def cdf_transform_gradient(family: str, base: str, inverse: bool) -> Callable[..., Tensors]:
    """The gradient of :func:`mixflow.cdf_transform`, or of its inverse."""
    formula = functools.partial(cdf_transform, family=family, base=base)
    return functools.partial(_invertible_gradient, formula, inverse, False)


def affine_transform_gradient(family: str, base: str, inverse: bool) -> Callable[..., Tensors]:
    """The gradient of :func:`mixflow.op.affine_transform`, a row of gradients for each element."""
    formula = functools.partial(affine_transform, family=family, base=base)
    return functools.partial(_invertible_gradient, formula, inverse, True)


def discretized_log_prob_gradient(family: str) -> Callable[..., Tensors]:
    """The gradient of :func:`mixflow.discretized_log_prob`."""

    def formula(*tensors: Tensor) -> Tensors:
        return (discretized_log_prob(*tensors, family=family),)

    def gradient(seed: Tensor, lower: Tensor, upper: Tensor, *parameters: Tensor) -> Tensors:
        (value,), pull_back = _vjp(formula, (seed,), (lower, upper), parameters)
        return pull_back((seed.expand_as(value),))

    return gradient


def _invertible_gradient(
    formula: Callable[..., Any],
    is_inverse: bool,
    is_for_each_element: bool,
    grad_value: Tensor,
    grad_ladj: Tensor,
    x: Tensor,
    *parameters: Tensor,
) -> Tensors:
    """The gradient of ``formula``, a map from x to z and ladj, or of its inverse, at the same x.

    For the inverse, the implicit function theorem gives it: with ``z = z(x, p)`` and ``ladj = log |dz/dx|``,
    ``dx/dz = exp(-ladj)`` and ``dx/dp = -exp(-ladj) dz/dp``. The inverse's own ladj is ``-ladj(x, p)``.
    """
    (_, ladj), pull_back = _vjp(formula, (grad_value, grad_ladj), (x,), parameters, is_for_each_element)
    grad_value, grad_ladj = grad_value.expand_as(ladj), grad_ladj.expand_as(ladj)
    if not is_inverse:
        return pull_back((grad_value, grad_ladj))
    slope_of_ladj = pull_back((torch.zeros_like(ladj), torch.ones_like(ladj)))[0]
    grad_z = (grad_value - grad_ladj * slope_of_ladj) * torch.exp(-ladj)
    return (grad_z, *pull_back((-grad_z, -grad_ladj))[1:])


def _vjp(
    formula: Callable[..., Tensors],
    seeds: Tensors,
    points: Tensors,
    parameters: Tensors,
    is_for_each_element: bool = False,
) -> tuple[Tensors, Callable[..., Tensors]]:
    """``torch.func.vjp`` with gradients of the broadcast shapes, as kernels give them.

    An element whose seeds are all zero adds exactly nothing to any gradient. If a result of it is not finite, torch
    would add 0 * NaN. Such an element takes part with harmless numbers instead. All others take part as they are, and
    their derivatives by the seeds are right as well.
    """
    batch, shape = batch_shape(points, parameters), parameter_shape(parameters)
    if is_for_each_element:
        shape = (*batch, shape[-1])
    given = (*(x.expand(batch) for x in points), *(p.expand(shape) for p in parameters))
    with torch.no_grad():
        is_finite = functools.reduce(torch.logical_and, (result.isfinite() for result in formula(*given)))
        has_no_seed = functools.reduce(torch.logical_and, (seed == 0 for seed in seeds))
        is_replaced = (has_no_seed & ~is_finite).expand(batch)

    def run(*tensors: Tensor) -> Tensors:
        # 0 for the first point, 1 for the second: the edges of an interval are then in the right order.
        own_points = [torch.where(is_replaced, float(i), x) for i, x in enumerate(tensors[: len(points)])]
        own_parameters = [torch.where(is_replaced.unsqueeze(-1), 0.0, p) for p in tensors[len(points) :]]
        return formula(*own_points, *own_parameters)

    return cast(tuple[Tensors, Callable[..., Tensors]], torch.func.vjp(run, *given))
