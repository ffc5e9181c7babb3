"""One record for each base distribution: its quantile, density and score in mpmath, and where bounds are promised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mpmath as mp
import numpy as np
import scipy.special
from mpmath import mpf

from .numbers import NUMBER, Number, log_uniform, random_sign

# -- the standard normal -------------------------------------------------------------------------------------


def log_normal_tail(t: Number) -> Number:
    """``log Phi(-t)`` for every t. Beyond 1e20 the next term of the expansion is below 80 digits."""
    if t > mpf(10) ** 20:
        return -t * t / 2 - mp.log(t * mp.sqrt(2 * mp.pi)) - 1 / (t * t)
    return mp.log(mp.erfc(t / mp.sqrt(2)) / 2)


def normal_mills(t: Number) -> Number:
    """The Mills ratio ``Phi(-t) / phi(t)`` for ``t >= 0``."""
    if t > mpf(10) ** 20:
        return (1 - 1 / (t * t)) / t
    return mp.erfc(t / mp.sqrt(2)) / 2 * mp.sqrt(2 * mp.pi) * mp.exp(t * t / 2)


def normal_quantile(log_tail: Number) -> Number:
    """``t >= 0`` with ``log Phi(-t) = log_tail <= log(1/2)``: Halley's method on that equation, started in float64."""
    if log_tail > -1e15:
        t = mpf(abs(float(scipy.special.ndtri_exp(float(log_tail)))))
    else:
        y = -2 * log_tail - mp.log(2 * mp.pi)
        t = mp.sqrt(y - mp.log(y))
    for _ in range(60):
        hazard = 1 / normal_mills(t)
        residual = log_normal_tail(t) - log_tail
        # h = log Phi(-t) - log_tail, h' = -hazard, h'' = -hazard (hazard - t)
        step = residual / hazard
        step = step / (1 + step * (hazard - t) / 2)
        t += step
        if abs(step) <= mpf(10) ** (-(mp.mp.dps // 3 + 2)) * max(1, t):  # cubic: the next error is below the digits
            return max(t, mpf(0))
    raise ArithmeticError(f"no convergence for log tail {mp.nstr(log_tail, 20)}")


# -- records -------------------------------------------------------------------------------------------------


class Tails(NamedTuple):
    """``F`` and ``S = 1 - F`` and their logs."""

    F: Number
    S: Number
    log_F: Number
    log_S: Number


class Image(NamedTuple):
    """What a base makes of the tails."""

    z: Number
    log_g: Number
    score: Number  # d log g / dz
    score_scale: Number


@dataclass(frozen=True)
class Base:
    """A distribution ``G`` that the transform maps to.

    Attributes:
        image: ``Tails -> Image``.
        size: ``(z, log F - log S) -> s``, the number that ``reach`` limits.
        z_scale: ``z -> `` the scale on which errors of z count.
        reach: the bounds of the tests are promised for ``|s| <= reach``.
        largest: ``logit -> z`` in float64, the z of that logit, but at most the reach.
        target: ``(dtype, end, rng) -> z``, drawn from all that lies between the ends of the base. ``end`` is the
            largest magnitude of z, where the base has no end of its own.
        is_target: whether bounds are promised for the inverse of ``z``.

    """

    image: Callable[[Tails], Image]
    size: Callable[[Number, Number], Number]
    z_scale: Callable[[Number], Number]
    reach: float
    largest: Callable[[float], float]
    target: Callable[[str, float, np.random.Generator], float]
    is_target: Callable[[float], bool]


def _real_target(dtype: str, end: float, rng: np.random.Generator) -> float:
    return float(NUMBER[dtype](rng.choice([-end, end, 0.0, random_sign(rng) * log_uniform(rng, 1e-6, end)])))


def _real_base(image: Callable[[Tails], Image], reach: float, quantile: Callable[[float], float]) -> Base:
    """A base on the whole line. ``quantile`` takes the logit."""
    return Base(
        image=image,
        size=lambda z, logit: z,
        z_scale=lambda z: max(mpf(1), abs(mpf(z))),
        reach=reach,
        largest=lambda logit: min(reach, quantile(logit)),
        target=_real_target,
        is_target=lambda z: abs(z) <= reach,
    )


def _normal_from_logit(logit: float) -> float:
    return -float(scipy.special.ndtri_exp(scipy.special.log_expit(-logit)))


def _to_normal(tails: Tails) -> Image:
    lower = tails.F < tails.S
    t = normal_quantile(min(tails.log_F, tails.log_S))
    z = -t if lower else t
    return Image(z, -t * t / 2 - mp.log(2 * mp.pi) / 2, -z, max(mpf(1), t))


def _to_logistic(tails: Tails) -> Image:
    z = tails.log_F - tails.log_S
    return Image(z, tails.log_F + tails.log_S, tails.S - tails.F, mpf(1))


def _to_uniform(tails: Tails) -> Image:
    return Image(tails.F, mpf(0), mpf(0), mpf(0))


def _uniform_scale(u: Number) -> Number:
    """A u above 1/2 has an absolute accuracy of eps / 4 at best; on that side the scale is u itself.

    Subnormal u are covered by the allowance for results below the smallest normal number.
    """
    return mpf(u) * max(mpf(1), abs(mp.log(u)))


def _uniform_target(dtype: str, end: float, rng: np.random.Generator) -> float:
    number = NUMBER[dtype]
    tiny = np.finfo(number)
    choices = [tiny.smallest_subnormal, tiny.tiny, 1 - tiny.epsneg, 1 - 3 * tiny.epsneg, 0.5]
    choices.append(log_uniform(rng, float(tiny.tiny), 0.5))
    return float(number(rng.choice(np.array(choices, dtype=number))))


BASES: dict[str, Base] = {
    "normal": _real_base(_to_normal, 1e3, _normal_from_logit),
    "logistic": _real_base(_to_logistic, 1e4, lambda logit: logit),
    "uniform": Base(
        image=_to_uniform,
        size=lambda u, logit: logit,
        z_scale=_uniform_scale,
        reach=1e4,
        largest=lambda logit: float(scipy.special.expit(logit)),
        target=_uniform_target,
        is_target=lambda u: u not in (0.0, 1.0),  # the ends go to infinity
    ),
}
