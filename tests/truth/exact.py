"""The transform, its gradients and the log-probability of an interval, exact to 60 digits or more.

Inputs are numbers of the dtype under test, converted exactly. The sums over components add positive numbers only, and
mpmath's exponents are unbounded, so nothing cancels and nothing underflows. `errors` explains the scales that stand
beside the derivatives here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mpmath as mp
from mpmath import mpf

from .bases import BASES, Tails
from .families import FAMILIES, At
from .numbers import EPSILON, MIN_NORMAL, Number, precise

PARAMETERS = ("logits", "loc", "log_scale")
EDGES = ("lower", "upper")


# -- the mixture and its image ---------------------------------------------------------------------------------


@dataclass
class Mixture:
    """F, S = 1 - F and f at x, and what each component of positive weight adds to them."""

    F: Number
    S: Number
    f: Number
    inv_scale: list[Number]
    distance: list[Number]
    a: list[Number]
    at: list[At]
    r: list[Number]  # share in f
    q: list[Number]  # share in the smaller tail
    omega: list[Number]  # weight
    alive: list[bool]

    @property
    def smaller(self) -> Number:
        return min(self.F, self.S)


@precise
def mixture(x: Any, logits: Sequence[Any], loc: Sequence[Any], log_scale: Sequence[Any], family: str) -> Mixture:
    x = mpf(x)
    alive = [v != -math.inf for v in logits]
    largest = max(mpf(v) for v, on in zip(logits, alive, strict=True) if on)
    weight = [mp.exp(mpf(v) - largest) if on else mpf(0) for v, on in zip(logits, alive, strict=True)]
    total = mp.fsum(weight)
    omega = [w / total for w in weight]
    # A component of weight zero is dropped, whatever its other parameters are.
    inv_scale = [mp.exp(-mpf(v)) if on else mpf(0) for v, on in zip(log_scale, alive, strict=True)]
    distance = [x - mpf(v) if on else mpf(0) for v, on in zip(loc, alive, strict=True)]
    a = [d * i for d, i in zip(distance, inv_scale, strict=True)]
    at = [FAMILIES[family].at(v) for v in a]
    lower = [w * p.lower for w, p in zip(omega, at, strict=True)]
    upper = [w * p.upper for w, p in zip(omega, at, strict=True)]
    density = [w * p.density * i for w, p, i in zip(omega, at, inv_scale, strict=True)]
    F, S, f = mp.fsum(lower), mp.fsum(upper), mp.fsum(density)
    smaller, m = (lower, F) if F < S else (upper, S)
    r, q = [d / f for d in density], [s / m for s in smaller]
    return Mixture(F, S, f, inv_scale, distance, a, at, r, q, omega, alive)


@dataclass
class Value:
    """z = G^-1(F(x)) and ladj = log dz/dx, with the logs they are made of."""

    z: Number
    ladj: Number
    log_F: Number
    log_S: Number
    log_f: Number
    log_g: Number
    slope: Number  # dz/dx
    mills: Number  # min(F, S) / g
    score: Number  # d log g / dz
    score_scale: Number

    @property
    def L(self) -> Number:
        return 1 + abs(self.log_f) + abs(self.log_g)


@precise
def to_base(mix: Mixture, base: str) -> Value:
    m = mix.smaller
    log_m, log_rest = mp.log(m), mp.log1p(-m)
    log_F, log_S = (log_m, log_rest) if mix.F < mix.S else (log_rest, log_m)
    image = BASES[base].image(Tails(mix.F, mix.S, log_F, log_S))
    log_f = mp.log(mix.f)
    ladj = log_f - image.log_g
    return Value(
        z=image.z,
        ladj=ladj,
        log_F=log_F,
        log_S=log_S,
        log_f=log_f,
        log_g=image.log_g,
        slope=mp.exp(ladj),
        mills=mp.exp(log_m - image.log_g),
        score=image.score,
        score_scale=image.score_scale,
    )


def forward(
    x: Any, logits: Sequence[Any], loc: Sequence[Any], log_scale: Sequence[Any], family: str, base: str
) -> dict[str, Number]:
    value = to_base(mixture(x, logits, loc, log_scale, family), base)
    return {name: getattr(value, name) for name in ("z", "ladj", "log_F", "log_S", "log_f", "log_g")}


# -- gradients -------------------------------------------------------------------------------------------------


@dataclass
class Gradient:
    """A derivative by each input, and the scale on which each is compared. Parameters: one entry per component."""

    input: Number = None
    input_scale: Number = None
    logits: list[Number] = field(default_factory=list)
    logits_scale: list[Number] = field(default_factory=list)
    loc: list[Number] = field(default_factory=list)
    loc_scale: list[Number] = field(default_factory=list)
    log_scale: list[Number] = field(default_factory=list)
    log_scale_scale: list[Number] = field(default_factory=list)

    def append(self, name: str, derivative: Number, scale: Number) -> None:
        getattr(self, name).append(derivative)
        getattr(self, name + "_scale").append(scale)

    def entries(self) -> Iterator[tuple[str, int, Number, Number]]:
        yield "input", 0, self.input, self.input_scale
        for name in PARAMETERS:
            for k, (value, scale) in enumerate(zip(getattr(self, name), getattr(self, name + "_scale"), strict=True)):
                yield name, k, value, scale


Row = tuple[str, Number, Number, Number, Number]


def _by_parameters(mix: Mixture, value: Value, k: int, eps: float) -> Iterator[Row]:
    """name, dz/dtheta, its scale, d log f/dtheta, its scale, for each parameter theta of component k."""
    sign = 1 if mix.F < mix.S else -1
    r, q, omega = mix.r[k], mix.q[k], mix.omega[k]
    r_scale, q_scale = max(r, mpf(eps)), max(q, mpf(eps))
    a, d, i, psi, psi_scale = mix.a[k], mix.distance[k], mix.inv_scale[k], mix.at[k].score, mix.at[k].score_scale
    slope, mills = value.slope, value.mills
    yield "logits", sign * mills * (q - omega), mills * (q_scale + omega), r - omega, r_scale + omega
    yield "loc", -r * slope, r_scale * slope, -r * psi * i, r_scale * psi_scale * i
    by_scale, its_scale = -r * d * slope, r_scale * abs(d) * slope
    yield "log_scale", by_scale, its_scale, -r * (1 + a * psi), r_scale * (1 + abs(a) * psi_scale)


@precise
def gradients(mix: Mixture, value: Value, eps: float = 0.0) -> dict[str, Gradient]:
    """Derivatives of "z", "ladj" (forward) and "x", "inverse ladj" (inverse, at the x of `mix`).

    Derived from dF/dtheta = g dz/dtheta: z differentiates to F's derivative over g, and ladj = log f - log g(z) to
    f's relative derivative less the base score times dz/dtheta.
    """
    slope, score, score_scale, L = value.slope, value.score, value.score_scale, value.L
    D = mp.fsum(r * p.score * i for r, p, i in zip(mix.r, mix.at, mix.inv_scale, strict=True))
    D_scale = mp.fsum(r * p.score_scale * i for r, p, i in zip(mix.r, mix.at, mix.inv_scale, strict=True))
    z, ladj, x, back = Gradient(), Gradient(), Gradient(), Gradient()
    z.input, z.input_scale = slope, slope * L
    ladj.input, ladj.input_scale = D - score * slope, (D_scale + score_scale * slope) * L
    x.input, x.input_scale = 1 / slope, L / slope
    back.input, back.input_scale = score - D / slope, (score_scale + D_scale / slope) * L
    for k, alive in enumerate(mix.alive):
        if not alive:
            for g in (z, ladj, x, back):
                for name in PARAMETERS:
                    g.append(name, mpf(0), mpf(0))
            continue
        for name, dz, dz_scale, df, df_scale in _by_parameters(mix, value, k, eps):
            z.append(name, dz, dz_scale * L)
            ladj.append(name, df - score * dz, (df_scale + score_scale * dz_scale) * L)
            x.append(name, -dz / slope, dz_scale / slope * L)
            back.append(name, D * dz / slope - df, (df_scale + D_scale * dz_scale / slope) * L)
    return {"z": z, "ladj": ladj, "x": x, "inverse ladj": back}


@precise
def flat_gradient(
    point: Sequence[Any], components: int, family: str, base: str, outputs: tuple[str, str], weights: tuple[Any, Any]
) -> list[Number]:
    """Gradient of weights . outputs at point = (x, logits..., loc..., log_scale...), in that order."""
    K = components
    mix = mixture(point[0], point[1 : K + 1], point[K + 1 : 2 * K + 1], point[2 * K + 1 :], family)
    by_output = gradients(mix, to_base(mix, base))
    columns = [[entry[2] for entry in by_output[name].entries()] for name in outputs]
    return [mp.fdot(weights, column) for column in zip(*columns, strict=True)]


def hessian_vector_product(
    point: Sequence[Any],
    direction: Sequence[Any],
    family: str,
    base: str,
    weights: tuple[float, float] = (1.0, 1.0),
    digits: int = 100,
) -> list[Number]:
    """d/dh of the gradient of weights . (z, ladj) at point + h direction, by central differences.

    The step is 10^-(digits / 4) and everything runs in `digits` digits: truncation and rounding both stay below
    10^-(digits / 2) of the derivatives of third order, far below float64.
    """
    K = (len(point) - 1) // 3
    with mp.workdps(digits):
        h = mpf(10) ** (-digits // 4)
        w = (mpf(weights[0]), mpf(weights[1]))
        ends = []
        for step in (h, -h):
            moved = [mpf(p) + step * mpf(d) for p, d in zip(point, direction, strict=True)]
            ends.append(flat_gradient(moved, K, family, base, ("z", "ladj"), w))
        return [(up - down) / (2 * h) for up, down in zip(*ends, strict=True)]


# -- the probability of an interval ----------------------------------------------------------------------------


@dataclass
class _Share:
    """What one component has in the probability of an interval from a to b, in its own scales."""

    weight: Number
    inv_scale: Number
    p: Number  # C(b) - C(a)
    c_a: Number
    c_b: Number
    moment_a: Number  # a c(a), which is 0 at infinity
    moment_b: Number
    score: Number  # the largest |score| in the interval
    reach: Number  # the larger of |a| and |b|


def _share(lower: Number, upper: Number, weight: Number, loc: Any, log_scale: Any, family: str) -> _Share:
    """The difference of CDFs is taken between the tails of the side on which the interval lies."""
    inv_scale = mp.exp(-mpf(log_scale))
    a, b = (lower - mpf(loc)) * inv_scale, (upper - mpf(loc)) * inv_scale
    at_a, at_b = FAMILIES[family].at(a), FAMILIES[family].at(b)
    right = not mp.isinf(a) and (mp.isinf(b) or a + b > 0)
    p = at_a.upper - at_b.upper if right else at_b.lower - at_a.lower
    moment_a, moment_b = (mpf(0) if mp.isinf(v) else v * at.density for v, at in ((a, at_a), (b, at_b)))
    infinite = mp.isinf(a) or mp.isinf(b)
    score = mp.inf if infinite else FAMILIES[family].largest_score(a, b)  # the edges alone limit what is infinite
    return _Share(weight, inv_scale, p, at_a.density, at_b.density, moment_a, moment_b, score, max(abs(a), abs(b)))


def log_interval(
    lower: Any,
    upper: Any,
    logits: Sequence[Any],
    loc: Sequence[Any],
    log_scale: Sequence[Any],
    family: str,
    dtype: str = "float64",
) -> tuple[Number, dict[str, list[tuple[Number, Number]]]]:
    """log P(lower < X <= upper) and, by argument, the derivatives with their scales.

    It takes so many digits that a width of 1e-60 scales costs nothing.
    """
    with mp.workdps(max(140, mp.mp.dps)):
        weight = [mp.exp(mpf(v)) for v in logits]
        total = mp.fsum(weight)
        parameters = zip(weight, loc, log_scale, strict=True)
        shares = [_share(mpf(lower), mpf(upper), w / total, m, r, family) for w, m, r in parameters]
        P = mp.fsum(s.weight * s.p for s in shares)
        return mp.log(P), _interval_gradients(shares, P, dtype)


def _interval_gradients(shares: list[_Share], P: Number, dtype: str) -> dict[str, list[tuple[Number, Number]]]:
    L = 1 + abs(mp.log(P))
    eps = mpf(EPSILON[dtype])

    def in_logs(e: Number) -> Number:
        return e * (L + abs(mp.log(e))) if e else e

    # A component's density at an edge may be flushed in units of its scale, which may be small.
    flushed = mp.fsum(s.weight * s.inv_scale for s in shares) * MIN_NORMAL[dtype] / eps
    at_lower = mp.fsum(s.weight * s.inv_scale * s.c_a for s in shares) / P
    at_upper = mp.fsum(s.weight * s.inv_scale * s.c_b for s in shares) / P
    grads: dict[str, list[tuple[Number, Number]]] = {
        "lower": [(-at_lower, in_logs(at_lower) + flushed)],
        "upper": [(at_upper, in_logs(at_upper) + flushed)],
        **{name: [] for name in PARAMETERS},
    }
    for s in shares:
        pi, w = s.weight * s.p / P, s.weight / P
        seen = max(pi, eps) * L
        grads["logits"].append((pi - s.weight, seen + s.weight * L))
        by_edges = max(in_logs(w * (s.c_a + s.c_b)), eps)
        grads["loc"].append((w * (s.c_a - s.c_b) * s.inv_scale, min(seen * s.score, by_edges) * s.inv_scale))
        by_edges = max(in_logs(w * (abs(s.moment_a) + abs(s.moment_b))), eps)
        grads["log_scale"].append((w * (s.moment_a - s.moment_b), min(seen * (1 + s.reach * s.score), by_edges)))
    return grads
