"""The families of components: one record for each, in the order of ``mixflow.FAMILIES``.

The compiled kernels have these distributions in csrc/families.h. What stands here serves everything else: the oracle in
:mod:`mixflow.reference`, starting points, moments, exported programs and the plain formulas of the benchmark.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from . import normal

__all__ = ["FAMILIES", "Family"]

Pointwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Family:
    """A standard distribution that is symmetric about 0, as functions of ``a = (x - loc) / scale`` (...).

    Attributes:
        log_cdf: ``log C(a)`` in nats, accurate in both tails, as are its derivatives.
        log_pdf: ``log c(a)`` in nats.
        quantile_from_logit: from ``log C(a) - log(1 - C(a))`` back to ``a``, which reaches both tails alike.
        variance: of ``a``; it may be infinite.
        base: the name of the base that has this very CDF, if there is one. Such a base maps a single component by an
            affine map.
        smooth: False if the density has a kink at 0.
        plain_cdf: ``C(a)`` as people write it with torch. It may round to 0 or 1.
        plain_log_cdf: ``log C(a)``, as people write it.
        plain_pdf: from ``a`` and ``C(a)`` to ``c(a)``, as people write it.
        plain_log_pdf: from ``a`` and ``log C(-a)`` to ``log c(a)``, as people write it.
        decay: from ``t = |a|`` to an exponent and two factors, in the operators that ONNX has. The tail ``C(-t)`` is
            exp(-exponent) times the first factor, the density ``c(t)`` exp(-exponent) times the second. The factors
            neither overflow nor underflow. Without it, the family cannot be exported.
        interval: the same for the probability between two edges: from ``near``, ``far``, ``centre`` and ``width``, in
            scales, with near + far >= 0, to an exponent and one factor.

    """

    log_cdf: Pointwise
    log_pdf: Pointwise
    quantile_from_logit: Pointwise
    variance: float
    plain_cdf: Pointwise
    plain_log_cdf: Pointwise
    plain_pdf: Callable[[Tensor, Tensor], Tensor]
    plain_log_pdf: Callable[[Tensor, Tensor], Tensor]
    base: str | None = None
    smooth: bool = True
    decay: Callable[[Tensor], tuple[Tensor, Tensor, Tensor | float]] | None = None
    interval: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def log_sf(self, a: Tensor) -> Tensor:
        """``log(1 - C(a))`` in nats."""
        return self.log_cdf(-a)


# -- Gaussian ------------------------------------------------------------------------------------------------


def _gaussian_decay(t: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    return 0.5 * t * t, normal.scaled_tail(t), 1.0 / normal.SQRT_2PI


def _gaussian_interval(near: Tensor, far: Tensor, centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The density of a narrow interval is integrated; the tails at the edges of others differ enough to subtract."""
    narrow = (width <= 1.0) & (width * centre <= 2.0)
    half = torch.where(narrow, 0.5 * width, 0.0)
    slope, bend = torch.where(narrow, centre * half, 0.0), -0.5 * half * half
    mean = _sum(weight * torch.exp(point * (bend * point - slope)) for point, weight in _quadrature(width.dtype))

    t, aside = near.abs(), near > 0.0
    far_exponent = torch.where(aside, width * centre, 0.5 * far * far)
    near_tail = torch.where(aside, 1.0, torch.exp(-0.5 * t * t)) * normal.scaled_tail(t)
    share = torch.where(aside, near_tail, 1.0 - near_tail) - torch.exp(-far_exponent) * normal.scaled_tail(far)
    middle = torch.where(narrow, centre, torch.where(aside, near, 0.0))
    return 0.5 * middle * middle, torch.where(narrow, width * mean / normal.SQRT_2PI, share)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return functools.reduce(torch.add, terms)


@functools.cache
def _quadrature(dtype: torch.dtype) -> tuple[tuple[float, float], ...]:
    """Gauss and Legendre's points in [-1, 1] and weights of a mean, enough for the last digit of narrow intervals."""
    points, weights = np.polynomial.legendre.leggauss(8 if dtype == torch.float64 else 5)
    return tuple(zip(points.tolist(), (0.5 * weights).tolist(), strict=True))


# -- logistic ------------------------------------------------------------------------------------------------


def _logistic_decay(t: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    tail = 1.0 / (1.0 + torch.exp(-t))
    return t, tail, tail * tail


def _logistic_interval(near: Tensor, far: Tensor, centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """``C(v) - C(u) = C(v) C(-u) (1 - exp(u - v))``; a tanh gives the last factor, accurately for small widths too."""
    half = torch.tanh(0.5 * width)
    ends = (1.0 + torch.exp(-near.abs())) * (1.0 + torch.exp(-far))
    return torch.where(near > 0.0, near, 0.0), 2.0 * half / ((1.0 + half) * ends)


# -- Student's t with two degrees of freedom -----------------------------------------------------------------
#
# With r = sqrt(2 + a^2): C(-t) = 1 / (r (r + t)) for t >= 0, and c(a) = 1 / r^3.

_SQRT_2 = math.sqrt(2.0)


def _student_log_cdf(a: Tensor) -> Tensor:
    def log_tail(t: Tensor) -> Tensor:
        r = torch.hypot(t, torch.full_like(t, _SQRT_2))
        return -(2.0 * r.log() + torch.log1p(t / r))

    lower = a < 0.0
    tail, rest = torch.where(lower, -a, 0.0), torch.where(lower, 0.0, a)
    return torch.where(lower, log_tail(tail), torch.log1p(-log_tail(rest).exp()))


def _student_log_pdf(a: Tensor) -> Tensor:
    return -3.0 * torch.hypot(a, torch.full_like(a, _SQRT_2)).log()


def _radius(t: Tensor) -> Tensor:
    """``sqrt(2 + t^2)`` for t >= 0, also where the square overflows; ONNX has no ``hypot``."""
    far = t > 1e15  # where 2 adds nothing to the square
    near = torch.where(far, 0.0, t)
    return torch.where(far, t, torch.sqrt(near * near + 2.0))


def _student_decay(t: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
    r = _radius(t)
    return 2.0 * r.log(), 1.0 / (1.0 + _over(t, r)), 1.0 / r


def _student_interval(near: Tensor, far: Tensor, centre: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """``C(v) - C(u) = (v - u) (v + u) / (p q (v p + u q))`` with p = r(u), q = r(v), in parts of the order of 1."""
    u, aside, open_ended = near.abs(), near > 0.0, far == math.inf
    p, q = _radius(u), _radius(far)
    sines = _over(far, q) + _over(u, p)
    apart = torch.where(open_ended, 1.0, width / q) * torch.where(open_ended, 1.0, 2.0 * (centre / q)) / sines
    return torch.where(aside, 2.0 * p.log(), 0.0), torch.where(aside, apart, 0.5 * sines)


def _over(t: Tensor, r: Tensor) -> Tensor:
    """``t / r(t)``, which is 1 where t is infinite."""
    return torch.where(t == math.inf, 1.0, t / r)


# -- the records ---------------------------------------------------------------------------------------------

FAMILIES: dict[str, Family] = {
    "gaussian": Family(
        log_cdf=normal.log_cdf,
        log_pdf=normal.log_pdf,
        quantile_from_logit=lambda logit: normal.quantile(logsigmoid(logit), logsigmoid(-logit)),
        variance=1.0,
        base="normal",
        plain_cdf=torch.special.ndtr,
        plain_log_cdf=torch.special.log_ndtr,
        plain_pdf=lambda a, C: torch.exp(-0.5 * a * a) / normal.SQRT_2PI,
        plain_log_pdf=lambda a, log_S: normal.log_pdf(a),
        decay=_gaussian_decay,
        interval=_gaussian_interval,
    ),
    "logistic": Family(
        log_cdf=logsigmoid,
        log_pdf=lambda a: logsigmoid(a) + logsigmoid(-a),
        quantile_from_logit=lambda logit: logit,
        variance=math.pi**2 / 3.0,
        base="logistic",
        plain_cdf=torch.sigmoid,
        plain_log_cdf=logsigmoid,
        plain_pdf=lambda a, C: C * (1.0 - C),
        plain_log_pdf=lambda a, log_S: a + 2.0 * log_S,
        decay=_logistic_decay,
        interval=_logistic_interval,
    ),
    "student": Family(
        log_cdf=_student_log_cdf,
        log_pdf=_student_log_pdf,
        quantile_from_logit=lambda logit: _SQRT_2 * torch.sinh(0.5 * logit),
        variance=math.inf,
        plain_cdf=lambda a: 0.5 * (1.0 + a * torch.rsqrt(2.0 + a * a)),
        plain_log_cdf=lambda a: torch.log(0.5 * (1.0 + a * torch.rsqrt(2.0 + a * a))),
        plain_pdf=lambda a, C: torch.rsqrt(2.0 + a * a) / (2.0 + a * a),
        plain_log_pdf=lambda a, log_S: -1.5 * torch.log(2.0 + a * a),
        decay=_student_decay,
        interval=_student_interval,
    ),
}
