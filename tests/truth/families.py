"""One record for each family of components: its standard distribution in mpmath, and how far its cases go.

No test branches on the name of a family. What differs between families is a field of `Family`. To test another family,
add its record to `FAMILIES`. The new record comes last, because the random cases are seeded by the position.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import mpmath as mp
import numpy as np
import scipy.special
import scipy.stats
from mpmath import mpf

from .numbers import LARGEST, Number


class At(NamedTuple):
    """What a family is at one point ``a``, each to full relative accuracy."""

    lower: Number  # C(a), the CDF
    upper: Number  # C(-a) = 1 - C(a)
    density: Number  # c(a)
    score: Number  # d log c(a) / da
    score_scale: Number  # the magnitude of the score or, if it is a difference, of the two terms


def _unlimited(dtype: str) -> float:
    return math.inf


@dataclass(frozen=True)
class Family:
    """A symmetric distribution with CDF ``C``, density ``c`` and, as everywhere in the core, scale one.

    Attributes:
        at: ``a -> At(a)`` for any mpmath number, infinities included. The smaller tail must not cancel.
        largest_score: ``(a, b) -> max |d log c / da|`` over the interval from ``a`` to ``b``, both finite.
        log_cdf: ``a -> log C(a)`` in float64. It aims cases, so a few digits are enough, but no tail may underflow.
        half_width: ``h -> t >= 0`` where ``log c(t)`` is ``-h`` up to a constant below 3/2, for ``h >= 0``.
        quantile: ``l -> t`` with ``log C(t) - log C(-t) >= l``, for ``l >= 0``. An upper bound is enough.
        far: cases in the tail of a component lie up to this many scales away from it.
        far_interval: the same of intervals.
        gap: components with a gap between them are at most this many scales apart.
        largest_logit: the dtype's largest ``|log F - log S|`` that cases ask for. Families whose tails are powers
            reach the largest number of the dtype early.
        slope_vanishes: whether the slope dz/dx, of the order of ``F / x``, can be subnormal where F and x are ordinary
            numbers. The gradients by parameters that are made of it are not compared near there.
        scipy: scipy's distribution, where it has one.

    """

    at: Callable[[Number], At]
    largest_score: Callable[[Number, Number], Number]
    log_cdf: Callable[[Any], Any]
    half_width: Callable[[float], float]
    quantile: Callable[[float], float]
    far: float
    gap: float
    far_interval: float = 1e4
    largest_logit: Callable[[str], float] = _unlimited
    slope_vanishes: bool = False
    scipy: Callable[[], Any] | None = None


def both_tails(a: Number, tail: Number) -> tuple[Number, Number]:
    """``C(a)`` and ``C(-a)``, from the smaller of the two."""
    return (tail, 1 - tail) if a < 0 else (1 - tail, tail)


# -- gaussian: c(a) = exp(-a^2 / 2) / sqrt(2 pi) ----------------------------------------------------------------


def _gaussian(a: Number) -> At:
    density = mp.exp(-a * a / 2) / mp.sqrt(2 * mp.pi)
    return At(*both_tails(a, mp.erfc(abs(a) / mp.sqrt(2)) / 2), density, -a, abs(a))


# -- logistic: C(a) = 1 / (1 + exp(-a)) -------------------------------------------------------------------------


def _logistic(a: Number) -> At:
    e = mp.exp(-abs(a))
    lower, upper = (e / (1 + e), 1 / (1 + e)) if a < 0 else (1 / (1 + e), e / (1 + e))
    # The score is a difference of two probabilities, so its scale is theirs.
    return At(lower, upper, lower * upper, upper - lower, mpf(1))


# -- student, with two degrees of freedom: C(a) = (1 + a / r) / 2 with r = sqrt(2 + a^2) ------------------------


def _student(a: Number) -> At:
    """``C(-t) = 1 / (r (r + t))`` for ``t = |a|``, which does not cancel, and ``c(a) = r^-3``."""
    t = abs(a)
    r = mp.sqrt(2 + t * t)
    score = mpf(0) if mp.isinf(a) else -3 * a / (r * r)
    return At(*both_tails(a, 1 / (r * (r + t))), r**-3, score, abs(score))


def _largest_student_score(a: Number, b: Number) -> Number:
    """``|score|`` rises to ``3 / (2 sqrt 2)`` at ``|a| = sqrt 2`` and falls from there."""
    peak = mp.sqrt(2)
    if a <= -peak <= b or a <= peak <= b:
        return 3 / (2 * peak)
    return max(abs(_student(a).score), abs(_student(b).score))


def _student_log_cdf(a: Any) -> Any:
    t = np.abs(a)
    r = np.hypot(math.sqrt(2), t)
    log_tail = -np.log(r) - np.log(r + t)
    return np.where(np.asarray(a) < 0, log_tail, np.log1p(-np.exp(log_tail)))


def _student_quantile(logit: float) -> float:
    return math.sqrt(2) * math.sinh(logit / 2)


def _largest_student_logit(dtype: str) -> float:
    """The logit at ``t = LARGEST / 1e14`` or 1e100, where the tail is ``t^-2 / 2``.

    With a scale of up to 1e6, x is finite. So is the distance of x from a component with a scale down to 1e-6. And the
    score, 3 / t, is a normal number after it is multiplied by the ratio of two scales.
    """
    return float(2 * mp.log(min(LARGEST[dtype] / mpf(10) ** 14, mpf(10) ** 100)) + mp.log(2))


FAMILIES: dict[str, Family] = {
    "gaussian": Family(
        at=_gaussian,
        largest_score=lambda a, b: max(abs(a), abs(b)),
        log_cdf=scipy.special.log_ndtr,
        half_width=lambda h: math.sqrt(2 * h),
        quantile=lambda logit: math.sqrt(2 * logit) + 1,
        far=1e3,
        gap=60,
        scipy=scipy.stats.Normal,
    ),
    "logistic": Family(
        at=_logistic,
        largest_score=lambda a, b: mpf(1),
        log_cdf=scipy.special.log_expit,
        half_width=lambda h: h,
        quantile=lambda logit: logit + 1,
        far=5e5,
        gap=2000,
        scipy=scipy.stats.make_distribution(scipy.stats.logistic),
    ),
    "student": Family(
        at=_student,
        largest_score=_largest_student_score,
        log_cdf=_student_log_cdf,
        half_width=lambda h: math.sqrt(2 * math.expm1(2 * h / 3)),
        quantile=lambda logit: _student_quantile(logit) + 1,
        far=1e12,
        far_interval=1e12,
        gap=1e6,
        largest_logit=_largest_student_logit,
        slope_vanishes=True,
        scipy=functools.partial(scipy.stats.make_distribution(scipy.stats.t), df=2),
    ),
}
