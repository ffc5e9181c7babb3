"""High-precision truth by mpmath, cases that are hard, and the scales on which errors are counted.

Inputs are numbers of the dtype under test, converted exactly; everything after that runs in 60 digits or more. The
sums over components add positive numbers only, and mpmath's exponents are unbounded, so nothing cancels and nothing
underflows. tests/test_accuracy.py and bench/accuracy.py share this file.

Scales. An error is divided by eps (2^-23 or 2^-52) and by its scale, which is the magnitude of what is computed, or
of the terms that are added where the sum may cancel:

    z                 max(1, |z*|); uniform base: u* max(1, |log u*|)
    ladj              1 + |log f*| + |log g*|, called L below, with f* the mixture density and g* the base density at z*
    inverse           that of z, for |z(x) - z| beyond |dz/dx| ulp(x), with z(x) the truth at the x returned
    gradients         the sum of the magnitudes of the terms that are added, times L

The terms of the gradients are made of r_k, the share of component k in f, and q_k, its share in the smaller tail.
Both are exponentials of differences of logs as large as L, which is what the factor L stands for. A share below eps
cannot be seen in any sum, so it is compared as if it were eps; a difference of two probabilities (the scores of the
logistic) has the scale of the probabilities, 1; -z as a score has the scale of z.

With A the magnitude of what is named, score_k = d log c(a_k) / da and score = d log g / dz:

    dz/dx             A(dz/dx)
    dz/dloc_k         r_k dz/dx
    dz/dlog_scale_k   r_k |x - loc_k| dz/dx
    dz/dlogit_k       (q_k + omega_k) m / g, m the smaller tail, omega_k the weight
    dladj/dx          A(D) + A(score) dz/dx, A(D) = sum_k r_k A(score_k) / s_k
    dladj/dloc_k      r_k A(score_k) / s_k + A(score) A(dz/dloc_k)
    dladj/dlog_s_k    r_k (1 + |a_k| A(score_k)) + A(score) A(dz/dlog_s_k)
    dladj/dlogit_k    r_k + omega_k + A(score) A(dz/dlogit_k)

and for the inverse, which differentiates implicitly (the base score cancels),

    dx/dz             1 / (dz/dx)
    dx/dtheta         A(dz/dtheta) / (dz/dx)
    dladj'/dz         A(score) + A(D) / (dz/dx)
    dladj'/dtheta     A(dladj/dtheta without its score term) + A(D) A(dz/dtheta) / (dz/dx)

and for the log-probability of an interval, with L = 1 + |log P*|, pi_k the share of component k in P, and A(score_k)
taken at the edge where it is larger,

    log P             L
    dlogP/dedge       f(edge) / P times L + |log f(edge)|
    dlogP/dlogit_k    (pi_k + omega_k) L
    dlogP/dloc_k      the smaller of pi_k A(score_k) L / s_k and e_k (L + |log e_k|) / s_k,
                      e_k = w_k (c(a_k) + c(b_k)) / P
    dlogP/dlog_s_k    the smaller of pi_k (1 + max|a_k, b_k| A(score_k)) L and e_k' (L + |log e_k'|),
                      e_k' = w_k (|a_k| c(a_k) + |b_k| c(b_k)) / P

Results below the smallest normal number of the dtype may be flushed: that much is allowed on top of the scale.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mpmath as mp
import numpy as np
import scipy.special
import torch
from mpmath import mpf

DIGITS = 60
DTYPES = {"float32": torch.float32, "float64": torch.float64}
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}
MIN_NORMAL = {"float32": mpf(2) ** -126, "float64": mpf(2) ** -1022}
LARGEST = {"float32": mpf((2 - 2.0**-23) * 2.0**127), "float64": mpf((2 - 2.0**-52) * 2.0**1023)}
PARAMETERS = ("logits", "loc", "log_scale")
BASES = ("normal", "logistic", "uniform")
FAMILIES = ("gaussian", "logistic")

# What the bounds of the table promise, and for which |z| (uniform base: |log u - log(1 - u)|).
BOUNDS = {
    "z": 4.0,
    "ladj": 4.0,
    "inverse": 16.0,
    "inverse ladj": 4.0,
    "grad z": 64.0,
    "grad ladj": 64.0,
    "grad x": 64.0,
    "grad inverse ladj": 64.0,
}
# A GPU has units for 2^x, log2 x and 1 / x in float32, of two eps.
UNITS_BOUNDS = BOUNDS | {"z": 8.0, "ladj": 8.0, "inverse ladj": 8.0}
REACH = {"normal": 1e3, "logistic": 1e4, "uniform": 1e4}

Number = Any  # mpf; mpmath has no type hints


def bounds(dtype: str, device: Device = "cpu") -> dict[str, float]:
    """What is promised for this dtype on this device."""
    return BOUNDS if dtype == "float64" or torch.device(device).type == "cpu" else UNITS_BOUNDS


# ------------------------------------------------------------------------------------------------------------- truth


def precise(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run in at least DIGITS digits."""

    def wrapped(*args: Any, **options: Any) -> Any:
        with mp.workdps(max(DIGITS, mp.mp.dps)):
            return function(*args, **options)

    return wrapped


def _gaussian(a: Number) -> tuple[Number, Number, Number, Number, Number]:
    tail = mp.erfc(abs(a) / mp.sqrt(2)) / 2
    lower, upper = (tail, 1 - tail) if a < 0 else (1 - tail, tail)
    return lower, upper, mp.exp(-a * a / 2) / mp.sqrt(2 * mp.pi), -a, abs(a)


def _logistic(a: Number) -> tuple[Number, Number, Number, Number, Number]:
    e = mp.exp(-abs(a))
    lower, upper = (e / (1 + e), 1 / (1 + e)) if a < 0 else (1 / (1 + e), e / (1 + e))
    return lower, upper, lower * upper, upper - lower, mpf(1)


# a -> C(a), C(-a), c(a), d log c / da, and the scale of the last.
COMPONENTS = {"gaussian": _gaussian, "logistic": _logistic}


def log_normal_tail(t: Number) -> Number:
    """log Phi(-t) for every t. Beyond 1e20 the next term of the expansion is below 80 digits."""
    if t > mpf(10) ** 20:
        return -t * t / 2 - mp.log(t * mp.sqrt(2 * mp.pi)) - 1 / (t * t)
    return mp.log(mp.erfc(t / mp.sqrt(2)) / 2)


def normal_mills(t: Number) -> Number:
    """Phi(-t) / phi(t) for t >= 0."""
    if t > mpf(10) ** 20:
        return (1 - 1 / (t * t)) / t
    return mp.erfc(t / mp.sqrt(2)) / 2 * mp.sqrt(2 * mp.pi) * mp.exp(t * t / 2)


def normal_quantile(log_tail: Number) -> Number:
    """t >= 0 with log Phi(-t) = log_tail <= log(1/2): Halley's method on that equation, from a float64 start."""
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


@dataclass
class Mixture:
    """F, S = 1 - F and f at x, and what each component of positive weight has in them."""

    x: Number
    F: Number
    S: Number
    f: Number
    inv_scale: list[Number]
    distance: list[Number]
    a: list[Number]
    score: list[Number]
    score_scale: list[Number]
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
    finite = [mpf(v) for v in logits if v != -math.inf]
    largest = max(finite)
    alive = [v != -math.inf for v in logits]
    weight = [mp.exp(mpf(v) - largest) if on else mpf(0) for v, on in zip(logits, alive, strict=True)]
    total = mp.fsum(weight)
    omega = [w / total for w in weight]
    # A component of weight zero is dropped, whatever its other parameters are.
    inv_scale = [mp.exp(-mpf(v)) if on else mpf(0) for v, on in zip(log_scale, alive, strict=True)]
    distance = [x - mpf(v) if on else mpf(0) for v, on in zip(loc, alive, strict=True)]
    a = [d * i for d, i in zip(distance, inv_scale, strict=True)]
    parts = [COMPONENTS[family](v) for v in a]
    lower = [w * p[0] for w, p in zip(omega, parts, strict=True)]
    upper = [w * p[1] for w, p in zip(omega, parts, strict=True)]
    density = [w * p[2] * i for w, p, i in zip(omega, parts, inv_scale, strict=True)]
    F, S, f = mp.fsum(lower), mp.fsum(upper), mp.fsum(density)
    smaller, m = (lower, F) if F < S else (upper, S)
    return Mixture(
        x=x,
        F=F,
        S=S,
        f=f,
        inv_scale=inv_scale,
        distance=distance,
        a=a,
        score=[p[3] for p in parts],
        score_scale=[p[4] for p in parts],
        r=[d / f for d in density],
        q=[s / m for s in smaller],
        omega=omega,
        alive=alive,
    )


@dataclass
class Value:
    """z = G^-1(F(x)) and log dz/dx, with the logs they are made of."""

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
    lower = mix.F < mix.S
    m = mix.smaller
    log_m, log_rest = mp.log(m), mp.log1p(-m)
    log_F, log_S = (log_m, log_rest) if lower else (log_rest, log_m)
    log_f = mp.log(mix.f)
    if base == "normal":
        t = normal_quantile(log_m)
        z = -t if lower else t
        log_g = -t * t / 2 - mp.log(2 * mp.pi) / 2
        score, score_scale = -z, max(mpf(1), t)
    elif base == "logistic":
        z, log_g = log_F - log_S, log_F + log_S
        score, score_scale = mix.S - mix.F, mpf(1)
    else:
        z, log_g = mix.F, mpf(0)
        score, score_scale = mpf(0), mpf(0)
    ladj = log_f - log_g
    return Value(z, ladj, log_F, log_S, log_f, log_g, mp.exp(ladj), mp.exp(log_m - log_g), score, score_scale)


@precise
def forward(
    x: Any, logits: Sequence[Any], loc: Sequence[Any], log_scale: Sequence[Any], family: str, base: str
) -> dict[str, Number]:
    value = to_base(mixture(x, logits, loc, log_scale, family), base)
    return {name: getattr(value, name) for name in ("z", "ladj", "log_F", "log_S", "log_f", "log_g")}


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

    def entries(self) -> Iterator[tuple[str, int, Number, Number]]:
        yield "input", 0, self.input, self.input_scale
        for name in PARAMETERS:
            for k, (value, scale) in enumerate(zip(getattr(self, name), getattr(self, name + "_scale"), strict=True)):
                yield name, k, value, scale


@precise
def gradients(mix: Mixture, value: Value, eps: float = 0.0) -> dict[str, Gradient]:
    """Derivatives of "z", "ladj" (forward) and "x", "inverse ladj" (inverse, at the x of `mix`).

    Derived from dF/dtheta = g dz/dtheta: z differentiates to F's derivative over g, and ladj = log f - log g(z) to
    f's relative derivative less the base score times dz/dtheta.
    """
    slope, mills, score, score_scale, L = value.slope, value.mills, value.score, value.score_scale, value.L
    sign = 1 if mix.F < mix.S else -1
    D = mp.fsum(r * p * i for r, p, i in zip(mix.r, mix.score, mix.inv_scale, strict=True))
    D_scale = mp.fsum(r * p * i for r, p, i in zip(mix.r, mix.score_scale, mix.inv_scale, strict=True))
    z, ladj, x, back = Gradient(), Gradient(), Gradient(), Gradient()
    z.input, z.input_scale = slope, slope * L
    ladj.input, ladj.input_scale = D - score * slope, (D_scale + score_scale * slope) * L
    x.input, x.input_scale = 1 / slope, L / slope
    back.input, back.input_scale = score - D / slope, (score_scale + D_scale / slope) * L
    for k, alive in enumerate(mix.alive):
        if not alive:
            for name in PARAMETERS:
                for g in (z, ladj, x, back):
                    getattr(g, name).append(mpf(0))
                    getattr(g, name + "_scale").append(mpf(0))
            continue
        r, q, omega = mix.r[k], mix.q[k], mix.omega[k]
        r_scale, q_scale = max(r, mpf(eps)), max(q, mpf(eps))
        a, d, i, psi, psi_scale = mix.a[k], mix.distance[k], mix.inv_scale[k], mix.score[k], mix.score_scale[k]
        # name, dz/dtheta, its scale, d log f/dtheta, its scale
        rows = (
            ("logits", sign * mills * (q - omega), mills * (q_scale + omega), r - omega, r_scale + omega),
            ("loc", -r * slope, r_scale * slope, -r * psi * i, r_scale * psi_scale * i),
            (
                "log_scale",
                -r * d * slope,
                r_scale * abs(d) * slope,
                -r * (1 + a * psi),
                r_scale * (1 + abs(a) * psi_scale),
            ),
        )
        for name, dz, dz_scale, df, df_scale in rows:
            entries = (
                (z, dz, dz_scale),
                (ladj, df - score * dz, df_scale + score_scale * dz_scale),
                (x, -dz / slope, dz_scale / slope),
                (back, D * dz / slope - df, df_scale + D_scale * dz_scale / slope),
            )
            for g, exact, scale in entries:
                getattr(g, name).append(exact)
                getattr(g, name + "_scale").append(scale * L)
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
        ends = [
            flat_gradient(
                [mpf(p) + s * h * mpf(d) for p, d in zip(point, direction, strict=True)],
                K,
                family,
                base,
                ("z", "ladj"),
                w,
            )
            for s in (1, -1)
        ]
        return [(up - down) / (2 * h) for up, down in zip(*ends, strict=True)]


EDGES = ("lower", "upper")


@precise
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

    Each difference of CDFs is taken between the tails of the side on which the interval lies, in so many digits that
    a width of 1e-60 scales costs nothing.
    """
    with mp.workdps(max(140, mp.mp.dps)):
        lower, upper = mpf(lower), mpf(upper)
        weight = [mp.exp(mpf(v)) for v in logits]
        total = mp.fsum(weight)
        terms = []
        for w, m, r in zip(weight, loc, log_scale, strict=True):
            inv_scale = mp.exp(-mpf(r))
            a, b = (lower - mpf(m)) * inv_scale, (upper - mpf(m)) * inv_scale
            at_a, at_b = COMPONENTS[family](a), COMPONENTS[family](b)
            right = not mp.isinf(a) and (mp.isinf(b) or a + b > 0)
            p = at_a[1] - at_b[1] if right else at_b[0] - at_a[0]
            moment_a, moment_b = (mpf(0) if mp.isinf(v) else v * at[2] for v, at in ((a, at_a), (b, at_b)))
            finite = not (mp.isinf(a) or mp.isinf(b))
            score = max(at_a[4], at_b[4]) if finite else mp.inf  # an infinite interval holds any score
            reach = max(abs(a), abs(b))
            terms.append((w / total, inv_scale, p, at_a[2], at_b[2], moment_a, moment_b, score, reach))
        P = mp.fsum(t[0] * t[2] for t in terms)
        L = 1 + abs(mp.log(P))

        def in_logs(e: Number) -> Number:
            return e * (L + abs(mp.log(e))) if e else e

        eps = EPSILON[dtype]
        # A component's density at an edge may be flushed in units of its scale, which may be small.
        flushed = mp.fsum(t[0] * t[1] for t in terms) * MIN_NORMAL[dtype] / eps
        edges = [mp.fsum(t[0] * t[1] * t[i] for t in terms) / P for i in (3, 4)]
        lower_edge, upper_edge = ((sign * e, in_logs(e) + flushed) for sign, e in zip((-1, 1), edges, strict=True))
        grads = {"lower": [lower_edge], "upper": [upper_edge], **{name: [] for name in PARAMETERS}}
        for w, i, p, c_a, c_b, m_a, m_b, score, reach in terms:
            seen = max(w * p / P, mpf(eps)) * L
            grads["logits"].append((w * p / P - w, seen + w * L))
            by_edges = max(in_logs(w * (c_a + c_b) / P), mpf(eps))
            grads["loc"].append((w * (c_a - c_b) * i / P, min(seen * score, by_edges) * i))
            by_edges = max(in_logs(w * (abs(m_a) + abs(m_b)) / P), mpf(eps))
            grads["log_scale"].append((w * (m_a - m_b) / P, min(seen * (1 + reach * score), by_edges)))
        return mp.log(P), grads


# ------------------------------------------------------------------------------------------------------------- cases


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


def approximate_logit(x: Any, logits: Any, loc: Any, inv_scale: Any, family: str) -> Any:
    """log F - log S in float64: good enough to aim cases with."""
    a = (x - loc) * inv_scale
    log_cdf = scipy.special.log_ndtr if family == "gaussian" else scipy.special.log_expit
    return scipy.special.logsumexp(logits + log_cdf(a)) - scipy.special.logsumexp(logits + log_cdf(-a))


def aim(target: float, logits: Any, loc: Any, log_scale: Any, family: str) -> float:
    """An x whose logit is about `target`, by bisection."""
    inv_scale = np.exp(-log_scale)
    reach = abs(target) + 1 if family == "logistic" else math.sqrt(2 * abs(target)) + 1
    low, high = float(np.min(loc - reach / inv_scale)), float(np.max(loc + reach / inv_scale))
    for _ in range(80):
        middle = 0.5 * low + 0.5 * high
        if approximate_logit(middle, logits, loc, inv_scale, family) < target:
            low = middle
        else:
            high = middle
    return 0.5 * low + 0.5 * high


# logits at which something switches. The linear sums hold while F, S and f stay above 2^-64 and 2^-700, the probit
# changes at w = -log(4 p (1 - p)) of 6.5 or 7 and 22.6, and leaves for Newton's method at 103 and 745; exp is flushed
# at -87.3 and -708.4, and subnormals end at -103.3 and -744.4.
def _switches(linear: int, probit: Sequence[float], exponents: Sequence[float]) -> list[float]:
    return [linear * math.log(2), *(w + math.log(4) for w in probit), *exponents]


KINDS = ("tail", "gap", "spike", "flank", "logit", "switch", "slope", "centre")
SWITCHES = {
    "float32": _switches(64, (6.5, 103), (16.6, 87.3, 88, 103.3, 104)),
    "float64": _switches(700, (7, 22.5625, 745), (36.7, 708.4, 709, 744.4, 746)),
}


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(10 ** rng.uniform(math.log10(low), math.log10(high)))


def _sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _extreme_parameters(rng: np.random.Generator, K: int) -> tuple[Any, Any, Any]:
    if rng.random() < 0.5:
        log_scale = rng.uniform(math.log(1e-6), math.log(1e6)) + rng.normal(0, 0.5, K)
    else:
        log_scale = rng.uniform(math.log(1e-6), math.log(1e6), K)
    log_scale = np.clip(log_scale, math.log(1e-6), math.log(1e6))
    loc = _log_uniform(rng, 1e-2, 1e6) * rng.uniform(-0.5, 0.5, K)
    if rng.random() < 0.5:
        loc = loc + _log_uniform(rng, 1e-2, 1e5) * _sign(rng)
    choice = rng.integers(3)
    logits = (rng.normal(0, 1, K), np.zeros(K), rng.uniform(-69, 0, K))[choice]
    return logits, loc, log_scale


def sample(dtype: str, family: str, count: int, seed: int = 0) -> list[Case]:
    """Half ordinary cases, half extreme ones: far tails, gaps, wild parameters, and a place near every switch."""
    rng = np.random.default_rng([seed, list(DTYPES).index(dtype), FAMILIES.index(family)])
    number = np.float32 if dtype == "float32" else np.float64
    far = 1e3 if family == "gaussian" else 5e5
    cases = []
    for i in range(count):
        K = (1, 2, 3, 8)[i // 2 % 4]
        if i % 2 == 0:
            group, kind = "ordinary", "ordinary"
            logits, loc, log_scale = rng.normal(0, 1, K), rng.normal(0, 2, K), rng.normal(-0.5, 0.5, K)
            x = rng.normal(0, 3)
        else:
            group = "extreme"
            kind = KINDS[i // 8 % len(KINDS)]
            logits, loc, log_scale = _extreme_parameters(rng, K)
            k = int(rng.integers(K))
            if kind == "tail":  # far from one component, or from all
                t = _log_uniform(rng, 2, far) * _sign(rng)
                x = loc[k] + math.exp(log_scale[k]) * t
            elif kind == "gap":  # narrow components far apart, x between
                log_scale = rng.uniform(-1, 1) + rng.normal(0, 0.2, K)
                loc = np.arange(K) * _log_uniform(rng, 4, 60 if family == "gaussian" else 2000)
                x = rng.uniform(loc[0] - 3, loc[-1] + 3)
            elif kind == "spike":  # one narrow component in a wide one
                log_scale = np.full(K, rng.uniform(0, math.log(1e6)))
                log_scale[k] = math.log(_log_uniform(rng, 1e-6, 1e-2))
                loc = rng.normal(0, 1, K)
                x = loc[k] + math.exp(log_scale[k]) * _log_uniform(rng, 1e-2, 1e2) * _sign(rng)
            elif kind == "flank":  # where the log-density of a spike passes through 0, and nothing hides its error
                K = max(K, 2)
                log_scale, logits = rng.uniform(0, 3, K), rng.normal(0, 1, K)
                loc, k = rng.normal(0, 1, K), 0
                log_scale[0] = math.log(_log_uniform(rng, 1e-6, 1e-2))
                h = max(scipy.special.log_softmax(logits)[0] - log_scale[0] + rng.normal(0, 1), 0.0)
                x = loc[0] + math.exp(log_scale[0]) * (math.sqrt(2 * h) if family == "gaussian" else h) * _sign(rng)
            elif kind == "logit":
                x = aim(_sign(rng) * _log_uniform(rng, 1e-3, 1e4), logits, loc, log_scale, family)
            elif kind == "switch":
                target = SWITCHES[dtype][int(rng.integers(len(SWITCHES[dtype])))] * (1 + rng.normal(0, 1e-3))
                if rng.random() < 0.5:  # moderate parameters: the switch itself, not the wild surroundings
                    loc, log_scale = rng.normal(0, 2, K), rng.normal(-0.5, 0.5, K)
                x = aim(_sign(rng) * target, logits, loc, log_scale, family)
            elif kind == "slope":  # the density alone leaves the linear range: middle of a gap of the right width
                K = max(K, 2)
                floor = SWITCHES[dtype][0] * (1 + rng.normal(0, 0.01))
                half = math.sqrt(2 * floor) if family == "gaussian" else floor
                logits, log_scale = rng.normal(0, 1, K), np.full(K, rng.uniform(-8, 8))
                loc = np.concatenate([[-half, half], rng.choice([-half, half], K - 2)]) * np.exp(log_scale)
                x = rng.normal(0, 0.02) * half * math.exp(log_scale[0])
            else:  # centre
                x = loc[k] + math.exp(log_scale[k]) * rng.normal(0, 1) * _log_uniform(rng, 1e-6, 1)
        rounded = [tuple(float(v) for v in np.asarray(p, dtype=number)) for p in (logits, loc, log_scale)]
        cases.append(Case(group, kind, dtype, family, float(number(x)), *rounded))
    return cases


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


def sample_bins(dtype: str, family: str, count: int, seed: int = 0) -> list[Bin]:
    """Bins of images, bins of a few ulp, tails to 10^4 scales, infinite edges, and bins around every switch."""
    rng = np.random.default_rng([seed, list(DTYPES).index(dtype), FAMILIES.index(family), 1])
    number = np.float32 if dtype == "float32" else np.float64
    bins = []
    for i in range(count):
        kind, K = BIN_KINDS[i % len(BIN_KINDS)], (1, 2, 3, 8, 1, 2, 3, 8, 130)[i // len(BIN_KINDS) % 9]
        logits, loc, log_scale = rng.normal(0, 1, K), rng.normal(0, 1, K), rng.normal(-0.5, 0.7, K)
        k = int(rng.integers(K))
        if kind == "ordinary":
            log_scale = log_scale - rng.uniform(0, 6)
            lower = number(rng.integers(-128, 128) / 127.5)
            upper = number(lower + 1 / 127.5)
        elif kind == "narrow":
            lower = number(loc[k] + math.exp(log_scale[k]) * rng.normal(0, 3))
            upper = lower
            for _ in range(int(rng.integers(1, 5))):
                upper = np.nextafter(upper, number(math.inf))
        else:
            if kind == "extreme":
                logits, loc, log_scale = _extreme_parameters(rng, K)
            scale = math.exp(log_scale[k])
            reach = {"tail": 30.0, "far tail": 1e4}.get(kind, 3.0)
            at = _sign(rng) * _log_uniform(rng, 1e-2, reach)
            width = _log_uniform(rng, 1e-8 if number is np.float32 else 1e-15, 1e2)
            if kind == "switch":  # widths of one, and products of width and distance of two, either side of each
                width = 1.0 if rng.random() < 0.5 else 2.0 / abs(at)
                width *= 1 + rng.normal(0, 8) * EPSILON[dtype]
            elif kind == "wide":
                width = _log_uniform(rng, 1, 1e4)
            lower = number(loc[k] + scale * (at - width / 2))
            upper = number(loc[k] + scale * (at + width / 2))
            if kind in ("edge", "whole"):
                infinite = rng.random() < 0.5
                lower = number(-math.inf) if infinite or kind == "whole" else lower
                upper = number(math.inf) if not infinite or kind == "whole" else upper
            if not lower < upper:
                upper = np.nextafter(lower, number(math.inf))
        rounded = [tuple(float(v) for v in np.asarray(p, dtype=number)) for p in (logits, loc, log_scale)]
        bins.append(Bin(kind, dtype, family, float(lower), float(upper), *rounded))
    return bins


# ----------------------------------------------------------------------------------------------------------- measure


@dataclass
class Worst:
    """The largest error of one figure, how many cases it was taken over, and how many of them broke the bound."""

    error: float = 0.0
    count: int = 0
    over: int = 0
    note: str = ""
    bound: float = math.inf

    def add(self, error: float, bound: float, note: Callable[[], str]) -> None:
        self.count += 1
        self.bound = bound
        self.over += not error <= bound
        if not error <= self.error:  # also when error is NaN, which is then kept
            if math.isnan(self.error):
                return
            self.error, self.note = error, note()


# (method, family, base, dtype, group) -> figure -> worst
Table = dict[tuple[str, str, str, str, str], dict[str, Worst]]


def relative_error(got: float, exact: Number, scale: Number, dtype: str) -> float:
    """|got - exact| in eps of its scale. NaN and infinity count as inf where the terms of the sum are representable."""
    if not math.isfinite(got):
        return 0.0 if scale > LARGEST[dtype] else math.inf
    if abs(exact) > LARGEST[dtype]:
        return 0.0 if abs(got) >= LARGEST[dtype] / 2 else math.inf
    difference = abs(mpf(got) - exact)
    if difference == 0:
        return 0.0
    if scale == 0:
        return math.inf
    return float(difference / (EPSILON[dtype] * scale + MIN_NORMAL[dtype]))


def value_scale(value: Value, base: str) -> Number:
    if base == "uniform":
        # u above 1/2 has no more than an absolute accuracy of eps / 4 to give; on that side the same scale is u
        # itself. Subnormal u are covered by the allowance for results below the smallest normal number.
        return value.z * max(mpf(1), abs(value.log_F))
    return max(mpf(1), abs(value.z))


def in_reach(value: Value, base: str) -> bool:
    size = abs(value.log_F - value.log_S) if base == "uniform" else abs(value.z)
    return bool(size <= REACH[base])


Device = torch.device | str


def tensors(cases: Sequence[Case], device: Device = "cpu") -> tuple[torch.Tensor, ...]:
    columns = ([getattr(c, n) for c in cases] for n in ("x", *PARAMETERS))
    return tuple(torch.tensor(c, dtype=torch.float64).to(device, DTYPES[cases[0].dtype]) for c in columns)


@dataclass
class Output:
    """What a method answers for a batch: values, and per output the gradients by input, logits, loc, log_scale."""

    value: list[float]
    ladj: list[float]
    gradients: list[list[Any]]


Op = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def evaluate(op: Op, inputs: Sequence[torch.Tensor], differentiate: bool = True) -> Output:
    leaves = [t.detach().clone().requires_grad_(differentiate) for t in inputs]
    value, ladj = op(*leaves)
    grads = []
    if differentiate and value.requires_grad:
        for output in (value, ladj):
            found = torch.autograd.grad(output.sum(), leaves, retain_graph=True, allow_unused=True)
            grads.append(
                [(torch.zeros_like(t) if g is None else g).tolist() for g, t in zip(found, leaves, strict=True)]
            )
    return Output(value.tolist(), ladj.tolist(), grads)


def gradient_error(exact: Gradient, got: list[Any], row: int, dtype: str) -> tuple[float, str]:
    worst, where = 0.0, ""
    for name, k, value, scale in exact.entries():
        mine = got[0][row] if name == "input" else got[1 + PARAMETERS.index(name)][row][k]
        error = relative_error(mine, value, scale, dtype)
        if not error <= worst:
            worst = error
            where = f"by {name}[{k}]: got {float(mine).hex()} ({mine:.9g}), expected {mp.nstr(value, 20)}"
    return worst, where


def inverse_excess(case: Case, base: str, z: float, x: float, value: Value) -> float:
    """Excess of |z(x) - z| over what one ulp of x explains, in eps max(1, |z|) (uniform base: eps u max(1, |log u|)).

    One ulp explains |dz/dx| ulp(x) or, where the slope changes within that ulp (a spike narrower than the spacing of
    the numbers around it), the change of z to the neighbour of x on the side of the target.
    """
    number = np.float32 if case.dtype == "float32" else np.float64
    miss = abs(value.z - mpf(z))
    scale = EPSILON[case.dtype] * (value_scale(value, base) if base == "uniform" else max(mpf(1), abs(mpf(z))))
    excess = miss - abs(value.slope) * mpf(float(np.spacing(number(abs(x)))))
    if excess > scale:
        neighbour = float(np.nextafter(number(x), number(math.inf if value.z < z else -math.inf)))
        if math.isfinite(neighbour):
            other = to_base(mixture(neighbour, case.logits, case.loc, case.log_scale, case.family), base).z
            excess = min(excess, miss - abs(other - value.z))
    return max(0.0, float(excess / scale))


def extreme_targets(base: str, dtype: str, rng: np.random.Generator) -> float:
    """A z from the whole range of the base, its ends included."""
    number = np.float32 if dtype == "float32" else np.float64
    if base != "uniform":
        ends = REACH[base]
        return float(number(rng.choice([-ends, ends, 0.0, _sign(rng) * _log_uniform(rng, 1e-6, ends)])))
    tiny = np.finfo(number)
    choices = [tiny.smallest_subnormal, tiny.tiny, 1 - tiny.epsneg, 1 - 3 * tiny.epsneg, 0.5]
    choices.append(_log_uniform(rng, float(tiny.tiny), 0.5))
    return float(number(rng.choice(np.array(choices, dtype=number))))


def measure(
    cases: Sequence[Case],
    methods: dict[str, dict[str, Op]],
    bases: Sequence[str] = BASES,
    seed: int = 0,
    differentiate: bool = True,
    device: Device = "cpu",
    promised: dict[str, float] | None = None,
) -> Table:
    """Worst errors of every method over the cases, which share dtype and family, on one device.

    ``promised`` are other bounds than those of the dtype and device.

    methods: name -> {"forward": op, "inverse": op}; an op takes (x, logits, loc, log_scale, family=, base=), and a
    method that has no inverse leaves it out. The inverse is asked for z* rounded to the dtype and, in extreme cases,
    for values from all over the base's range; its ladj and gradients are compared with the truth at the x it returned,
    since its distance from the root is what the figure "inverse" is about.
    """
    table: Table = {}
    rng = np.random.default_rng(seed)
    dtype, family = cases[0].dtype, cases[0].family
    by_size: dict[int, list[Case]] = {}
    for case in cases:
        by_size.setdefault(len(case.logits), []).append(case)
    for batch in by_size.values():
        mixes = [mixture(c.x, c.logits, c.loc, c.log_scale, family) for c in batch]
        for base in bases:
            values = [to_base(mix, base) for mix in mixes]
            targets = [
                float(v.z)
                if case.group == "ordinary" or (v.z and abs(v.z) <= LARGEST[dtype] and rng.random() < 0.6)
                else extreme_targets(base, dtype, rng)
                for case, v in zip(batch, values, strict=True)
            ]
            for method, ops in methods.items():
                recorder = Recorder(table, method, base, differentiate, promised or bounds(dtype, device))
                for name, op in ops.items():
                    bound = functools.partial(op, family=family, base=base)
                    if name == "forward":
                        _measure_forward(recorder, bound, batch, mixes, values, device)
                    else:
                        _measure_inverse(recorder, bound, batch, targets, device)
    return table


@dataclass
class Recorder:
    table: Table
    method: str
    base: str
    differentiate: bool
    bounds: dict[str, float]

    def add(self, case: Case, figure: str, error: float, note: Callable[[], str]) -> None:
        key = (self.method, case.family, self.base, case.dtype, case.group)
        worst = self.table.setdefault(key, {}).setdefault(figure, Worst())
        worst.add(error, self.bounds[figure], lambda: f"{figure} {self.base} {case}: {error:.4g} eps; {note()}")

    def compare(self, case: Case, figure: str, got: float, exact: Number, scale: Number, prefix: str = "") -> None:
        def note() -> str:
            return f"{prefix}got {float(got).hex()} ({got:.17g}), expected {mp.nstr(exact, 25)}"

        self.add(case, figure, relative_error(got, exact, scale, case.dtype), note)

    def compare_gradients(
        self, case: Case, row: int, exact: dict[str, Gradient], figures: Sequence[str], out: Output, prefix: str = ""
    ) -> None:
        for figure, got in zip(figures, out.gradients, strict=True):
            error, where = gradient_error(exact[figure], got, row, case.dtype)
            self.add(case, "grad " + figure, error, functools.partial("{}{}".format, prefix, where))


def _measure_forward(
    recorder: Recorder,
    op: Op,
    batch: Sequence[Case],
    mixes: Sequence[Mixture],
    values: Sequence[Value],
    device: Device,
) -> None:
    out = evaluate(op, tensors(batch, device), recorder.differentiate)
    for i, (case, mix, value) in enumerate(zip(batch, mixes, values, strict=True)):
        if not in_reach(value, recorder.base):
            continue
        recorder.compare(case, "z", out.value[i], value.z, value_scale(value, recorder.base))
        recorder.compare(case, "ladj", out.ladj[i], value.ladj, value.L)
        if out.gradients:
            recorder.compare_gradients(case, i, gradients(mix, value, EPSILON[case.dtype]), ("z", "ladj"), out)


def _measure_inverse(
    recorder: Recorder, op: Op, batch: Sequence[Case], targets: Sequence[float], device: Device
) -> None:
    _, *parameters = tensors(batch, device)
    z_in = torch.tensor(targets, dtype=torch.float64).to(parameters[0])
    out = evaluate(op, (z_in, *parameters), recorder.differentiate)
    for i, (case, z) in enumerate(zip(batch, z_in.tolist(), strict=True)):
        x = out.value[i]
        if z in (0.0, 1.0) if recorder.base == "uniform" else abs(z) > REACH[recorder.base]:
            continue  # the ends of the uniform go to infinity
        prefix = f"z={float(z).hex()} ({z:.9g}) -> x={float(x).hex()} ({x:.9g}): "
        if not math.isfinite(x):
            recorder.add(case, "inverse", math.inf, functools.partial(str, prefix))
            continue
        mix = mixture(x, case.logits, case.loc, case.log_scale, case.family)
        value = to_base(mix, recorder.base)
        excess = inverse_excess(case, recorder.base, z, x, value)
        recorder.add(case, "inverse", excess, functools.partial("{}z(x)={}".format, prefix, mp.nstr(value.z, 20)))
        recorder.compare(case, "inverse ladj", out.ladj[i], -value.ladj, value.L, prefix)
        if out.gradients:
            recorder.compare_gradients(
                case, i, gradients(mix, value, EPSILON[case.dtype]), ("x", "inverse ladj"), out, prefix
            )


BIN_BOUNDS = {"log P": 4.0, "grad log P": 64.0}


def measure_bins(bins: Sequence[Bin], op: Any, device: Device = "cpu") -> dict[tuple[str, str], Worst]:
    """Worst errors by figure and kind; op takes (lower, upper, logits, loc, log_scale, family=)."""
    table: dict[tuple[str, str], Worst] = {}
    by_size: dict[int, list[Bin]] = {}
    for b in bins:
        by_size.setdefault(len(b.logits), []).append(b)
    for batch in by_size.values():
        columns = ([getattr(b, name) for b in batch] for name in (*EDGES, *PARAMETERS))
        dtype = DTYPES[batch[0].dtype]
        leaves = [torch.tensor(c, dtype=torch.float64).to(device, dtype).requires_grad_() for c in columns]
        value = op(*leaves, family=batch[0].family)
        grads = [g.cpu() for g in torch.autograd.grad(value.sum(), leaves)]
        values = value.tolist()
        for row, b in enumerate(batch):
            exact, expected = log_interval(b.lower, b.upper, b.logits, b.loc, b.log_scale, b.family, b.dtype)
            entries = [("log P", "", values[row], exact, 1 + abs(exact))]
            for name, g in zip((*EDGES, *PARAMETERS), grads, strict=True):
                got = zip(g[row].reshape(-1).tolist(), expected[name], strict=True)
                entries += [("grad log P", name, mine, *theirs) for mine, theirs in got]
            for figure, name, mine, theirs, scale in entries:
                note = functools.partial("{} {}: got {}, expected {}".format, b, name, mine, mp.nstr(theirs, 20))
                worst = table.setdefault((figure, b.kind), Worst())
                worst.add(relative_error(mine, theirs, scale, b.dtype), BIN_BOUNDS[figure], note)
    return table


def broken(table: Table, method: str = "mixflow") -> list[tuple[str, str]]:
    """(figure, worst case) of every bound that does not hold."""
    return [
        (f"{figure}: {w.error:.4g} > {w.bound:g} eps", w.note)
        for key, row in table.items()
        if key[0] == method
        for figure, w in row.items()
        if not w.error <= w.bound
    ]
