"""The mixture-CDF transform in plain torch: slow, obvious, and the oracle for the compiled core.

Everything is written with ordinary torch functions in log space, so that autograd differentiates it any
number of times, in reverse and forward mode, in float32 and float64, and neither tail saturates. Tensors of
shape ``(..., N, K)`` are materialised freely: use :func:`mixflow.cdf_transform` for work.

The formulas are those of Gaussianization (Chen and Gopinath, 2000; Meng et al., 2020, arXiv:2003.01941) and
of the mixture-CDF couplings of Flow++ (Ho et al., 2019, arXiv:1902.00275).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .standard import BASES, FAMILIES, Family

__all__ = ["cdf_transform", "cdf_transform_inverse", "discretized_log_prob"]


# -- the transform -------------------------------------------------------------------------------------------


def _log_tails_and_density(
    x: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, family: Family
) -> tuple[Tensor, Tensor, Tensor]:
    """``log F(x)``, ``log(1 - F(x))`` and ``log F'(x)`` of the mixture."""
    a = (x.unsqueeze(-1) - loc) / log_scale.exp()
    log_weight = torch.log_softmax(logits, dim=-1)
    log_F = torch.logsumexp(log_weight + family.log_cdf(a), dim=-1)
    log_S = torch.logsumexp(log_weight + family.log_sf(a), dim=-1)
    log_f = torch.logsumexp(log_weight + family.log_pdf(a) - log_scale, dim=-1)
    return log_F, log_S, log_f


def cdf_transform(
    x: Tensor,
    logits: Tensor,
    loc: Tensor,
    log_scale: Tensor,
    *,
    family: str = "gaussian",
    base: str = "normal",
) -> tuple[Tensor, Tensor]:
    """``z = G^-1(F(x))`` and ``ladj = log |dz/dx|``, F being the mixture's CDF and G the base's.

    Args:
        x: ``(...)``, float32 or float64.
        logits: ``(..., K)``; the batch shape broadcasts against that of ``x``.
        loc: as logits, in the units of ``x``.
        log_scale: as logits.
        family: a key of :data:`mixflow.FAMILIES`.
        base: a key of :data:`mixflow.BASES`.

    Returns:
        ``(z, ladj)``, each of the broadcast batch shape, ladj in nats. At infinite ``x`` the map has no slope
        and ladj is not finite.

    Raises:
        KeyError: unknown family or base.

    Example:
        >>> import torch
        >>> from mixflow import reference
        >>> zero = torch.zeros(1, dtype=torch.float64)
        >>> x = torch.tensor([-40.0, 1.5], dtype=torch.float64)
        >>> z, ladj = reference.cdf_transform(x, zero, zero, zero)
        >>> [round(value, 6) for value in z.tolist()]
        [-40.0, 1.5]

    """
    to = BASES[base]
    log_F, log_S, log_f = _log_tails_and_density(x, logits, loc, log_scale, FAMILIES[family])
    z = to.from_log_tails(log_F, log_S)
    return z, log_f - to.log_prob(z)


def _bisect(logit: Tensor, logits: Tensor, loc: Tensor, log_scale: Tensor, family: Family) -> Tensor:
    """Solve ``log F(x) - log(1 - F(x)) = logit`` by bisection of the bracket of component quantiles.

    F(x) is a weighted mean of the components' CDFs, so at the smallest component quantile F is at most, and
    at the largest at least, the probability sought. Should rounding put the root just outside, bisection ends
    at that end of the bracket, which is off by no more than that rounding.
    """
    quantiles = loc + log_scale.exp() * family.quantile_from_logit(logit).unsqueeze(-1)
    low, high = quantiles.amin(-1), quantiles.amax(-1)
    for _ in range(400):
        middle = 0.5 * low + 0.5 * high
        if not bool(((low < middle) & (middle < high)).any()):
            break
        log_F, log_S, _ = _log_tails_and_density(middle, logits, loc, log_scale, family)
        below = log_F - log_S < logit
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * low + 0.5 * high


def cdf_transform_inverse(
    z: Tensor,
    logits: Tensor,
    loc: Tensor,
    log_scale: Tensor,
    *,
    family: str = "gaussian",
    base: str = "normal",
) -> tuple[Tensor, Tensor]:
    """``x = F^-1(G(z))`` and ``ladj = log |dx/dz|``: the inverse of :func:`cdf_transform`.

    The value comes from bisection in float64. The derivatives come from two Newton steps on the implicit
    equation ``log F(x) - log(1 - F(x)) = logit G(z)``, in which the residual left at the solution counts as a
    constant: the steps leave the value alone, whatever the slope, and are right up to the third derivative.

    Args:
        z: ``(...)``, float32 or float64; inside [0, 1] for the uniform base, or the result is NaN.
        logits: ``(..., K)``; the batch shape broadcasts against that of ``z``.
        loc: as logits, in the units of ``x``.
        log_scale: as logits.
        family: a key of :data:`mixflow.FAMILIES`.
        base: a key of :data:`mixflow.BASES`.

    Returns:
        ``(x, ladj)``, each of the broadcast batch shape, ladj in nats.

    Raises:
        KeyError: unknown family or base.

    Example:
        >>> import torch
        >>> from mixflow import reference
        >>> loc = torch.tensor([-3.0, 3.0], dtype=torch.float64)
        >>> zero = torch.zeros(2, dtype=torch.float64)
        >>> x, ladj = reference.cdf_transform_inverse(torch.zeros((), dtype=torch.float64), zero, loc, zero)
        >>> round(abs(x.item()), 9)
        0.0

    """
    component, start = FAMILIES[family], BASES[base]
    z = z.expand_as(z + logits[..., 0] + loc[..., 0] + log_scale[..., 0])
    with torch.no_grad():
        logit = start.to_logit(z.double())
        root = _bisect(logit, logits.double(), loc.double(), log_scale.double(), component).to(z.dtype)
    solved = root.isfinite()
    # Elements without a finite solution take part as harmless numbers, so that their gradients are zero, not
    # NaN.
    logit = start.to_logit(torch.where(solved, z, 0.5))
    x = torch.where(solved, root, 0.0)
    residual: Tensor | None = None
    for _ in range(2):
        log_F, log_S, log_f = _log_tails_and_density(x, logits, loc, log_scale, component)
        error = log_F - log_S - logit
        residual = error.detach() if residual is None else residual
        x = x - (error - residual) * (log_F + log_S - log_f).exp()
    x = torch.where(solved, x, root)
    *_, log_f = _log_tails_and_density(x, logits, loc, log_scale, component)
    return x, start.log_prob(z) - log_f


# -- intervals -----------------------------------------------------------------------------------------------


def _log_interval(lower: Tensor, upper: Tensor, loc: Tensor, scale: Tensor, family: Family) -> Tensor:
    """``log(C((upper - loc) / scale) - C((lower - loc) / scale))`` for ``lower < upper``.

    The interval is mirrored to the side of the upper tail. If it is narrow, the density is integrated by Gauss
    and Legendre's rule, exact to the last digit here; otherwise the two tails differ so much that subtracting
    them loses nothing. Every branch is given harmless numbers where it does not hold, so that its derivatives
    there are zero, not NaN.
    """
    open_below, open_above = torch.isneginf(lower), torch.isposinf(upper)
    lower, upper = torch.where(open_below, 0.0, lower), torch.where(open_above, 0.0, upper)
    a, b = (lower - loc) / scale, (upper - loc) / scale
    mirrored = torch.where(open_below | open_above, open_below & ~open_above, a + b < 0.0)
    near, far = torch.where(mirrored, -b, a), torch.where(mirrored, -a, b)
    ended, width = ~(open_below | open_above), (upper - lower) / scale
    # Gauss and Legendre's rule needs a smooth density; a kink is at 0. Far out, a tail that is a power hardly changes
    # over many scales.
    narrow = (
        ended
        & (family.smooth | (near >= 0.0))
        & (width <= (0.5 * near).clamp(min=1.0))
        & ((family.log_pdf(near) - family.log_pdf(far)).abs() <= 2.0)
    )
    aside = ~narrow & (near > 0.0) & ~(open_below & open_above)
    around = ~narrow & ~aside

    nodes, weights = (torch.as_tensor(v, dtype=a.dtype, device=a.device) for v in np.polynomial.legendre.leggauss(16))
    half, centre = 0.5 * torch.where(narrow, width, 1.0), 0.5 * torch.where(narrow, near + far, 0.0)
    points = centre.unsqueeze(-1) + half.unsqueeze(-1) * nodes
    log_narrow = torch.logsumexp(family.log_pdf(points) + weights.log(), dim=-1) + half.log()

    log_near = family.log_sf(torch.where(aside, near, 1.0))
    log_far = family.log_sf(torch.where(aside & ended, far, 2.0))
    log_aside = log_near + torch.where(aside & ~ended, 0.0, torch.log1p(-torch.exp(log_far - log_near)))

    below = family.log_cdf(torch.where(around & ~(open_below & open_above), near, -1.0)).exp()
    above = family.log_sf(torch.where(around & ended, far, 1.0)).exp()
    outside = torch.where(open_below & open_above, 0.0, below) + torch.where(ended, above, 0.0)
    log_around = torch.log1p(-torch.where(around, outside, 0.0))
    return torch.where(narrow, log_narrow, torch.where(aside, log_aside, log_around))


def discretized_log_prob(
    lower: Tensor,
    upper: Tensor,
    logits: Tensor,
    loc: Tensor,
    log_scale: Tensor,
    *,
    family: str = "gaussian",
) -> Tensor:
    """``log P(lower < X <= upper)`` under the mixture: ``log(F(upper) - F(lower))``.

    Args:
        lower: ``(...)``, float32 or float64; may be -inf.
        upper: as lower, broadcasting against it; may be inf.
        logits: ``(..., K)``; the batch shape broadcasts against that of the edges.
        loc: as logits, in the units of the edges.
        log_scale: as logits.
        family: a key of :data:`mixflow.FAMILIES`.

    Returns:
        The log-probability in nats, of the broadcast batch shape; -inf where ``lower == upper``, NaN where
        ``lower > upper``.

    Raises:
        KeyError: unknown family.

    Example:
        >>> import torch
        >>> from mixflow import reference
        >>> zero = torch.zeros(1, dtype=torch.float64)
        >>> edges = torch.tensor([-float("inf"), 0.0, 1e-9], dtype=torch.float64)
        >>> [round(v, 6) for v in reference.discretized_log_prob(edges[:2], edges[1:], zero, zero, zero).tolist()]
        [-0.693147, -21.642204]

    """
    ordered, empty = lower < upper, lower == upper
    low = torch.where(ordered, lower, 0.0).unsqueeze(-1)
    high = torch.where(ordered, upper, 1.0).unsqueeze(-1)
    terms = _log_interval(low, high, loc, log_scale.exp(), FAMILIES[family])
    result = torch.logsumexp(torch.log_softmax(logits, dim=-1) + terms, dim=-1)
    return torch.where(ordered, result, torch.where(empty, -math.inf, math.nan))
