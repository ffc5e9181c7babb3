"""Inputs that are hard: far tails, gaps between components, spikes, and both sides of every switch between formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special

from .bases import BASES
from .families import FAMILIES, Family
from .numbers import CONSTANTS, DTYPES, EPSILON, NUMBER, log_uniform, random_sign

Draw = np.random.Generator


def _generator(dtype: str, family: str, *seed: int) -> Draw:
    return np.random.default_rng([seed[0], list(DTYPES).index(dtype), list(FAMILIES).index(family), *seed[1:]])


def _rounded(values: Any, dtype: str) -> tuple[float, ...]:
    return tuple(float(v) for v in np.asarray(values, dtype=NUMBER[dtype]))


# -- where formulas switch -------------------------------------------------------------------------------------


def _switches(dtype: str) -> list[float]:
    """The logits, in magnitude, at which the core takes another formula or the dtype has no more numbers."""
    core = CONSTANTS[dtype]
    limits = np.finfo(NUMBER[dtype])
    # The probit changes at w = -log(4 p (1 - p)), which is a logit less log 4 in the tails.
    probit = (core["probit_split"], core["probit_far"], core["probit_limit"])
    found = [
        -math.log(core["linear_smallest"]),
        *(w + math.log(4) for w in probit),
        -math.log(EPSILON[dtype] / 2),  # the smaller tail is lost beside one
        -math.log(limits.tiny),
        -core["exp_flush"],
        -math.log(limits.smallest_subnormal),
        -core["exp_lowest"],
    ]
    return list(dict.fromkeys(found))


SWITCHES = {dtype: _switches(dtype) for dtype in DTYPES}


# -- aiming ----------------------------------------------------------------------------------------------------


def bisect(is_below: Callable[[float], bool], low: float, high: float) -> float:
    """Where ``is_below`` turns from true at ``low`` to false at ``high``.

    Bisects the representable numbers between the two, not the length between them. So 64 steps find the last digit of
    a root near zero in a bracket of length 1e300.
    """

    def order(x: float) -> int:
        bits = int(np.float64(abs(x)).view(np.int64))
        return bits if x >= 0 else -bits

    def number(place: int) -> float:
        return math.copysign(float(np.int64(abs(place)).view(np.float64)), place)

    below, above = order(low), order(high)
    while abs(above - below) > 1:
        middle = (below + above) // 2
        if is_below(number(middle)):
            below = middle
        else:
            above = middle
    return number(below)


def approximate_logit(x: Any, logits: Any, loc: Any, inv_scale: Any, family: Family) -> Any:
    """log F - log S in float64: good enough to aim cases with."""
    with np.errstate(over="ignore"):  # a tail of -inf is good enough, too
        a = (x - loc) * inv_scale
        log_F, log_S = (scipy.special.logsumexp(logits + family.log_cdf(side)) for side in (a, -a))
    return log_F - log_S


def aim(target: float, logits: Any, loc: Any, log_scale: Any, family: Family) -> float:
    """An x whose logit is about ``target``, or about the largest logit that the family takes."""
    inv_scale = np.exp(-log_scale)
    reach = family.quantile(abs(target))
    low, high = float(np.min(loc - reach / inv_scale)), float(np.max(loc + reach / inv_scale))
    return bisect(lambda x: bool(approximate_logit(x, logits, loc, inv_scale, family) < target), low, high)


def largest_target(base: str, family: str, dtype: str) -> float:
    """The largest ``|z|`` that tests of the inverse ask for. Its x is a finite number of the dtype."""
    return BASES[base].largest(FAMILIES[family].largest_logit(dtype))


# -- elements --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One element, in numbers of its dtype."""

    group: str  # "ordinary" or "extreme"
    kind: str
    dtype: str
    family: str
    x: float
    logits: tuple[float, ...]
    loc: tuple[float, ...]
    log_scale: tuple[float, ...]

    def __str__(self) -> str:
        def hexes(values: Iterable[float]) -> str:
            return "[" + ", ".join(float(v).hex() for v in values) + "]"

        return (
            f"{self.family} {self.dtype} ({self.group}: {self.kind}) x={self.x.hex()} logits={hexes(self.logits)} "
            f"loc={hexes(self.loc)} log_scale={hexes(self.log_scale)}"
        )


@dataclass
class Draft:
    """A case while it is drawn: parameters that a kind may replace, and the component ``k`` that it is about."""

    family: Family
    dtype: str
    K: int
    logits: Any
    loc: Any
    log_scale: Any
    k: int = 0

    def beside(self, t: float) -> float:
        """The x that lies ``t`` scales from component k."""
        return float(self.loc[self.k] + math.exp(self.log_scale[self.k]) * t)

    def aimed(self, logit: float) -> float:
        limit = self.family.largest_logit(self.dtype)
        return aim(max(-limit, min(logit, limit)), self.logits, self.loc, self.log_scale, self.family)


def _ordinary(rng: Draw, d: Draft) -> float:
    d.logits, d.loc, d.log_scale = rng.normal(0, 1, d.K), rng.normal(0, 2, d.K), rng.normal(-0.5, 0.5, d.K)
    return float(rng.normal(0, 3))


def _tail(rng: Draw, d: Draft) -> float:
    """Far from one component, or from all."""
    return d.beside(log_uniform(rng, 2, d.family.far) * random_sign(rng))


def _gap(rng: Draw, d: Draft) -> float:
    """Narrow components far apart, x between."""
    d.log_scale = rng.uniform(-1, 1) + rng.normal(0, 0.2, d.K)
    d.loc = np.arange(d.K) * log_uniform(rng, 4, d.family.gap)
    return float(rng.uniform(d.loc[0] - 3, d.loc[-1] + 3))


def _spike(rng: Draw, d: Draft) -> float:
    """One narrow component in a wide one."""
    d.log_scale = np.full(d.K, rng.uniform(0, math.log(1e6)))
    d.log_scale[d.k] = math.log(log_uniform(rng, 1e-6, 1e-2))
    d.loc = rng.normal(0, 1, d.K)
    return d.beside(log_uniform(rng, 1e-2, 1e2) * random_sign(rng))


def _flank(rng: Draw, d: Draft) -> float:
    """Where the log-density of a spike passes through 0, and nothing hides its error."""
    d.K = max(d.K, 2)
    d.log_scale, d.logits = rng.uniform(0, 3, d.K), rng.normal(0, 1, d.K)
    d.loc, d.k = rng.normal(0, 1, d.K), 0
    d.log_scale[0] = math.log(log_uniform(rng, 1e-6, 1e-2))
    h = max(scipy.special.log_softmax(d.logits)[0] - d.log_scale[0] + rng.normal(0, 1), 0.0)
    return d.beside(d.family.half_width(h) * random_sign(rng))


def _logit(rng: Draw, d: Draft) -> float:
    return d.aimed(random_sign(rng) * log_uniform(rng, 1e-3, 1e4))


def _switch(rng: Draw, d: Draft) -> float:
    target = SWITCHES[d.dtype][int(rng.integers(len(SWITCHES[d.dtype])))] * (1 + rng.normal(0, 1e-3))
    if rng.random() < 0.5:  # moderate parameters: the switch itself, not the wild surroundings
        d.loc, d.log_scale = rng.normal(0, 2, d.K), rng.normal(-0.5, 0.5, d.K)
    return d.aimed(random_sign(rng) * target)


def _slope(rng: Draw, d: Draft) -> float:
    """The density alone leaves the range of the linear sums: the middle of a gap of the right width."""
    d.K = max(d.K, 2)
    half = d.family.half_width(SWITCHES[d.dtype][0] * (1 + rng.normal(0, 0.01)))
    d.logits, d.log_scale = rng.normal(0, 1, d.K), np.full(d.K, rng.uniform(-8, 8))
    d.loc = np.concatenate([[-half, half], rng.choice([-half, half], d.K - 2)]) * np.exp(d.log_scale)
    return float(rng.normal(0, 0.02) * half * math.exp(d.log_scale[0]))


def _centre(rng: Draw, d: Draft) -> float:
    return d.beside(rng.normal(0, 1) * log_uniform(rng, 1e-6, 1))


EXTREME: dict[str, Callable[[Draw, Draft], float]] = {
    "tail": _tail,
    "gap": _gap,
    "spike": _spike,
    "flank": _flank,
    "logit": _logit,
    "switch": _switch,
    "slope": _slope,
    "centre": _centre,
}


def _extreme_parameters(rng: Draw, K: int) -> tuple[Any, Any, Any]:
    if rng.random() < 0.5:
        log_scale = rng.uniform(math.log(1e-6), math.log(1e6)) + rng.normal(0, 0.5, K)
    else:
        log_scale = rng.uniform(math.log(1e-6), math.log(1e6), K)
    log_scale = np.clip(log_scale, math.log(1e-6), math.log(1e6))
    loc = log_uniform(rng, 1e-2, 1e6) * rng.uniform(-0.5, 0.5, K)
    if rng.random() < 0.5:
        loc = loc + log_uniform(rng, 1e-2, 1e5) * random_sign(rng)
    choice = rng.integers(3)
    logits = (rng.normal(0, 1, K), np.zeros(K), rng.uniform(-69, 0, K))[choice]
    return logits, loc, log_scale


def sample(dtype: str, family: str, count: int, seed: int = 0) -> list[Case]:
    """Half ordinary cases, half extreme ones: of every kind in turn, with wild parameters."""
    rng = _generator(dtype, family, seed)
    cases = []
    for i in range(count):
        K = (1, 2, 3, 8)[i // 2 % 4]
        draft = Draft(FAMILIES[family], dtype, K, None, None, None)
        if i % 2 == 0:
            group, kind = "ordinary", "ordinary"
            x = _ordinary(rng, draft)
        else:
            group, kind = "extreme", list(EXTREME)[i // 8 % len(EXTREME)]
            draft.logits, draft.loc, draft.log_scale = _extreme_parameters(rng, K)
            draft.k = int(rng.integers(K))
            x = EXTREME[kind](rng, draft)
        parameters = [_rounded(p, dtype) for p in (draft.logits, draft.loc, draft.log_scale)]
        cases.append(Case(group, kind, dtype, family, float(NUMBER[dtype](x)), *parameters))
    return cases


# -- bins ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """An interval and a mixture, in numbers of its dtype."""

    kind: str
    dtype: str
    family: str
    lower: float
    upper: float
    logits: tuple[float, ...]
    loc: tuple[float, ...]
    log_scale: tuple[float, ...]


BIN_KINDS = ("ordinary", "narrow", "tail", "far tail", "edge", "whole", "wide", "switch", "extreme")


def _pixel(rng: Draw, d: Draft) -> tuple[Any, Any]:
    """A bin of an image."""
    number = NUMBER[d.dtype]
    d.log_scale = d.log_scale - rng.uniform(0, 6)
    lower = number(rng.integers(-128, 128) / 127.5)
    return lower, number(lower + 1 / 127.5)


def _few_ulp(rng: Draw, d: Draft) -> tuple[Any, Any]:
    number = NUMBER[d.dtype]
    lower = upper = number(d.beside(rng.normal(0, 3)))
    for _ in range(int(rng.integers(1, 5))):
        upper = np.nextafter(upper, number(math.inf))
    return lower, upper


def _width(rng: Draw, kind: str, dtype: str, at: float) -> float:
    width = log_uniform(rng, {"float32": 1e-8, "float64": 1e-15}[dtype], 1e2)
    if kind == "switch":
        # The formulas switch at this width and at this product of width and distance: either side of each.
        core = CONSTANTS[dtype]
        width = core["narrow_width"] if rng.random() < 0.5 else 2 * core["normal_window_reach"] / abs(at)
        return width * float(1 + rng.normal(0, 8) * EPSILON[dtype])
    return log_uniform(rng, 1, 1e4) if kind == "wide" else width


def _placed(rng: Draw, d: Draft, kind: str) -> tuple[Any, Any]:
    """Of some width at some distance from component k, and in some kinds with an infinite edge or two."""
    number = NUMBER[d.dtype]
    reach = {"tail": 30.0, "far tail": d.family.far_interval}.get(kind, 3.0)
    at = random_sign(rng) * log_uniform(rng, 1e-2, reach)
    width = _width(rng, kind, d.dtype, at)
    lower, upper = number(d.beside(at - width / 2)), number(d.beside(at + width / 2))
    if kind in ("edge", "whole"):
        infinite = rng.random() < 0.5
        lower = number(-math.inf) if infinite or kind == "whole" else lower
        upper = number(math.inf) if not infinite or kind == "whole" else upper
    return lower, upper if lower < upper else np.nextafter(lower, number(math.inf))


def sample_bins(dtype: str, family: str, count: int, seed: int = 0) -> list[Bin]:
    """Bins of images, bins of a few ulp, far tails, infinite edges, and bins around every switch."""
    rng = _generator(dtype, family, seed, 1)
    lengths: Sequence[int] = (1, 2, 3, 8, 1, 2, 3, 8, 130)
    bins = []
    for i in range(count):
        kind, K = BIN_KINDS[i % len(BIN_KINDS)], lengths[i // len(BIN_KINDS) % len(lengths)]
        parameters = rng.normal(0, 1, K), rng.normal(0, 1, K), rng.normal(-0.5, 0.7, K)
        d = Draft(FAMILIES[family], dtype, K, *parameters, k=int(rng.integers(K)))
        if kind == "extreme":
            d.logits, d.loc, d.log_scale = _extreme_parameters(rng, K)
        place = {"ordinary": _pixel, "narrow": _few_ulp}.get(kind)
        lower, upper = place(rng, d) if place else _placed(rng, d, kind)
        rounded = [_rounded(p, dtype) for p in (d.logits, d.loc, d.log_scale)]
        bins.append(Bin(kind, dtype, family, float(lower), float(upper), *rounded))
    return bins
