"""Fit the polynomials and rational functions of csrc/coefficients.h and write that header.

    python tools/fit_coefficients.py            write the header, print the table of errors
    python tools/fit_coefficients.py --check    exit 1 if the header is not what this script makes

Every approximation is a rational function P/Q, or a polynomial (Q = 1). It is a minimax fit: of all functions of its
degrees, it has the smallest largest relative error in the function that uses it.

1. A polynomial is the solution of a linear Chebyshev problem. Stiefel's exchange algorithm solves it, which is the
   simplex method on the dual problem. A rational function is a sequence of such problems: Gauss-Newton steps on P/Q,
   started from Loeb's linearisation |P - Q f| / |Q of the step before|. All of this runs in 60 digits, so the
   coefficients do not depend on the platform.
2. The coefficients in the header are numbers of the element type. If a finished fit were rounded, it would lose several
   bits. So one coefficient after the other is rounded, lowest power first. After each, the remaining ones are fitted
   again.
3. For the last coefficients no others are left to compensate. A search over neighbouring floating-point numbers, two
   coefficients at a time, removes most of what they lose.

Long: it is one chain, from the fit to the text of the header, and nothing else uses its parts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mpmath as mp
import numpy as np
from mpmath import mpf

HEADER = Path(__file__).resolve().parent.parent / "csrc" / "coefficients.h"
HEADER_COLUMNS = 120  # as in .clang-format

mp.mp.dps = 60
ONE = mpf(1)

Array = np.ndarray


# ------------------------------------------------------------------------------------------------------------
# Minimax fitting
# ------------------------------------------------------------------------------------------------------------


def inverse(matrix: list[list[mpf]]) -> list[list[mpf]]:
    """Invert by Gauss-Jordan elimination."""
    n = len(matrix)
    rows = [[*row, *(mpf(int(i == j)) for j in range(n))] for i, row in enumerate(matrix)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        scale = 1 / rows[i][i]
        rows[i] = [x * scale for x in rows[i]]
        for k in range(n):
            if k != i:
                factor = rows[k][i]
                rows[k] = [x - factor * y for x, y in zip(rows[k], rows[i], strict=True)]
    return [row[n:] for row in rows]


def linear_minimax(
    columns: list[list[mpf]], target: list[mpf], reference: list[int]
) -> tuple[list[mpf], mpf, list[int]]:
    """Find the c that minimises max |target - columns c|, that maximum, and the points where it is attained.

    `reference` holds n + 1 points to start from. In the dual problem they are the basis of the simplex method, with
    weights y >= 0 under which the signed rows sum to 0. The row of the largest error enters the basis, and the ratio
    test decides which row leaves. The Remez exchange would need the Haar condition, which powers x^k, ..., x^n do not
    meet on an interval around 0; this method does not need it. Ties can make the simplex method cycle. The result is
    then the best c found so far.
    """
    n = len(columns)
    rows = [list(row) for row in zip(*columns, strict=True)]
    reference = list(reference)
    generic = [mpf(1 + 7 * i % 5) * (-1) ** i for i in range(n + 1)]
    weights = [row[n] for row in inverse([[rows[i][j] for i in reference] for j in range(n)] + [generic])]
    if mp.fdot(weights, [target[i] for i in reference]) < 0:
        weights = [-w for w in weights]
    signs = [1 if w >= 0 else -1 for w in weights]
    basis = [[s * rows[i][j] for s, i in zip(signs, reference, strict=True)] for j in range(n)]
    basis_inverse = inverse([*basis, [ONE] * (n + 1)])
    best: tuple[mpf, list[mpf]] | None = None
    for _ in range(40 * n):
        signed = [s * target[i] for s, i in zip(signs, reference, strict=True)]
        *c, error = (mp.fdot(signed, [row[j] for row in basis_inverse]) for j in range(n + 1))
        residual = [t - mp.fdot(row, c) for t, row in zip(target, rows, strict=True)]
        worst = max(range(len(rows)), key=lambda i: abs(residual[i]))
        if best is None or abs(residual[worst]) < best[0]:
            best = abs(residual[worst]), c
        if abs(residual[worst]) <= error * (1 + mpf(10) ** -8):
            break
        sign = 1 if residual[worst] > 0 else -1
        entering = [*(sign * x for x in rows[worst]), ONE]
        direction = [mp.fdot(row, entering) for row in basis_inverse]
        ratios = [(row[n] / d, k) for k, (row, d) in enumerate(zip(basis_inverse, direction, strict=True)) if d > 0]
        leaving = min(ratios)[1]
        reference[leaving], signs[leaving] = worst, sign
        pivot = [x / direction[leaving] for x in basis_inverse[leaving]]
        basis_inverse = [
            pivot if k == leaving else [x - direction[k] * p for x, p in zip(row, pivot, strict=True)]
            for k, row in enumerate(basis_inverse)
        ]
    assert best is not None
    return best[1], best[0], reference


def evaluate(coefficients: Sequence[mpf], x: mpf) -> mpf:
    """Evaluate c0 + x (c1 + x (c2 + ...))."""
    result = mpf(0)
    for c in reversed(coefficients):
        result = result * x + c
    return result


@dataclass
class Fit:
    """A fit of P(x)/Q(x) to target(x) on the points xs; its error is (target - P/Q) * weight."""

    xs: list[mpf]
    target: list[mpf]
    weight: list[mpf]
    degree: int
    denominator_degree: int = 0
    first_denominator: list[mpf] | None = None
    coefficients: list[mpf] = field(init=False)  # of P, then of Q

    def __post_init__(self) -> None:
        top = max(self.degree, self.denominator_degree)
        self.powers = [[x**k for x in self.xs] for k in range(top + 1)]
        self.numerator = range(self.degree + 1)
        self.denominator = range(self.degree + 1, self.degree + 1 + self.denominator_degree + 1)
        self.reference: dict[int, list[int]] = {}

    def split(self, coefficients: Sequence[mpf]) -> tuple[list[mpf], list[mpf]]:
        """P and Q on the points."""
        p = [evaluate(coefficients[: self.degree + 1], x) for x in self.xs]
        q = [evaluate(coefficients[self.degree + 1 :], x) for x in self.xs]
        return p, q

    def residual(self, coefficients: Sequence[mpf]) -> list[mpf]:
        """Evaluate the error on the points."""
        p, q = self.split(coefficients)
        return [w * (f - a / b) for w, f, a, b in zip(self.weight, self.target, p, q, strict=True)]

    def columns(self, p: list[mpf], q: list[mpf], which: Sequence[int]) -> list[list[mpf]]:
        """Differentiate weight * P/Q by the coefficients `which`."""
        by_numerator = [w / b for w, b in zip(self.weight, q, strict=True)]
        by_denominator = [-d * a / b for d, a, b in zip(by_numerator, p, q, strict=True)]
        return [
            [d * x for d, x in zip(by_numerator, self.powers[j], strict=True)]
            if j <= self.degree
            else [d * x for d, x in zip(by_denominator, self.powers[j - self.degree - 1], strict=True)]
            for j in which
        ]

    def step(self, columns: list[list[mpf]], residual: list[mpf]) -> tuple[list[mpf], mpf]:
        """Solve the linear problem, starting where the last one of the same size ended."""
        n, last = len(columns), len(self.xs) - 1
        start = self.reference.get(n) or [round(last * i / n) for i in range(n + 1)]
        c, error, self.reference[n] = linear_minimax(columns, residual, start)
        return c, error

    def solve(self) -> None:
        """Fit with Q(0) = 1."""
        free = [*self.numerator, *self.denominator[1:]]
        count = self.degree + 1
        q = self.first_denominator or [ONE] * len(self.xs)
        for _ in range(4 if self.denominator_degree else 1):
            p = [f * b for f, b in zip(self.target, q, strict=True)]
            relative = [w * f / b for w, f, b in zip(self.weight, self.target, q, strict=True)]
            step, _ = self.step(self.columns(p, q, free), relative)
            self.coefficients = [*step[:count], ONE, *step[count:]]
            _, q = self.split(self.coefficients)
        if self.denominator_degree:
            self.coefficients = self.refine(self.coefficients, free)

    def refine(self, c: list[mpf], free: Sequence[int], steps: int = 12) -> list[mpf]:
        """Run Gauss-Newton from c on the coefficients `free`."""
        for _ in range(steps):
            p, q = self.split(c)
            if min(q) <= 0:
                raise ArithmeticError("the denominator changes sign")
            residual = self.residual(c)
            step, error = self.step(self.columns(p, q, free), residual)
            if max(map(abs, residual)) <= error * mpf(1.001):
                return c
            c = list(c)
            for j, s in zip(free, step, strict=True):
                c[j] += s
        raise ArithmeticError("no convergence")

    def round_to(self, dtype: type, scale: mpf) -> mpf:
        """Round the solved coefficients, times `scale` for both P and Q, to dtype; returns the error."""
        c = [x * scale for x in self.coefficients] if self.denominator_degree else self.coefficients
        order = [*self.numerator, *(self.denominator if self.denominator_degree else [])]
        order.sort(key=lambda j: j if j <= self.degree else j - self.degree - 1)
        for i, j in enumerate(order):
            c[j] = mpf(float(dtype(float(c[j]))))
            if i + 1 < len(order):
                c = self.refine(c, order[i + 1 :])
        self.coefficients = self.search_neighbours(c, dtype, order)
        return max(map(abs, self.residual(self.coefficients)))

    def search_neighbours(self, c: list[mpf], dtype: type, order: Sequence[int]) -> list[mpf]:
        """Reduce the largest error by changing two coefficients at a time by one unit in the last place.

        To first order, a step adds a multiple of its column to the residual. So doubles suffice for the search.
        """
        c = list(c)
        unit = mpf(float(np.finfo(dtype).eps))
        ulps = [mpf(float(np.spacing(dtype(float(abs(c[j])))))) for j in order]
        columns = self.columns(*self.split(c), order)
        moves = [np.array([float(x * u / unit) for x in xs]) for xs, u in zip(columns, ulps, strict=True)]
        residual = np.array([float(x / unit) for x in self.residual(c)])
        best = np.abs(residual).max()
        steps = [0] * len(order)
        while True:
            change = None
            for i, first in enumerate(moves):
                for a in (-1, 1):
                    once = residual - a * first
                    for j in range(i, len(moves)):
                        for b in (-1, 0, 1):
                            error = np.abs(once - b * moves[j]).max()
                            if error < best * (1 - 1e-6):
                                best, change = error, (i, a, j, b)
            if change is None:
                break
            i, a, j, b = change
            residual = residual - a * moves[i] - b * moves[j]
            steps[i] += a
            steps[j] += b
        for j, n, u in zip(order, steps, ulps, strict=True):
            c[j] += n * u
        return c


def chebyshev_points(low: mpf, high: mpf, count: int) -> list[mpf]:
    """Points over [low, high] with both ends, spaced like the extrema of a minimax error."""
    inner = [-mp.cos(mp.pi * (i + mpf(1) / 2) / count) for i in range(1, count - 1)]
    return [(low + high) / 2 + (high - low) / 2 * x for x in (-ONE, *inner, ONE)]


def points_for(coefficients: int) -> int:
    """So many points that the largest error between them exceeds the largest error on them by 0.3 % at most."""
    return 24 * coefficients


# ------------------------------------------------------------------------------------------------------------
# The functions
# ------------------------------------------------------------------------------------------------------------


@dataclass
class Piece:
    """A fit of slope x + P/Q on [low, high], with P and Q in powers of x - shift.

    The line takes over a part of the value, so P/Q is smaller, and so are its rounding errors. A shift to near the
    lower end makes the coefficients of Q positive, so that nothing cancels when Q is evaluated.
    """

    low: mpf
    high: mpf
    shift: mpf
    degrees: tuple[int, int]
    slope: mpf


@dataclass
class Settings:
    """The smallest degrees whose error is well below the rounding of the element type, and where pieces meet."""

    dtype: type
    exp_degree: int
    exp2_degree: int
    log_degree: int
    tail_degree: int
    octave_tail_degrees: tuple[int, int]
    octaves: int  # 2^-octaves is well above the smallest normal number
    saturation: int  # log2 of the t where P and S of scaled_normal_tail stop growing; 1/t^2 is negligible there
    center: Piece
    tails: list[Piece]
    probit_limit: int  # w of the smallest subnormal p


SQRT_2_FLOAT, SQRT_2_DOUBLE = mpf(float(np.float32(2**0.5))), mpf(2**0.5)
SETTINGS = [
    Settings(
        np.float32,
        exp_degree=4,
        exp2_degree=5,
        log_degree=2,
        tail_degree=5,
        octave_tail_degrees=(4, 4),
        octaves=125,
        saturation=13,
        center=Piece(mpf(0), mpf("6.5"), mpf(2), (10, 0), mpf(0)),
        tails=[Piece(mp.sqrt("6.5"), mp.sqrt(103), mpf("2.5"), (5, 4), SQRT_2_FLOAT)],
        probit_limit=103,
    ),
    Settings(
        np.float64,
        exp_degree=9,
        exp2_degree=10,
        log_degree=6,
        tail_degree=10,
        octave_tail_degrees=(9, 10),
        octaves=1021,
        saturation=28,
        center=Piece(mpf(0), mpf(7), mpf(0), (9, 8), mpf("0.3125")),
        tails=[
            Piece(mp.sqrt(7), mpf("4.75"), mpf("2.5"), (9, 8), SQRT_2_DOUBLE),
            Piece(mpf("4.75"), mp.sqrt(745), mpf("4.75"), (11, 10), SQRT_2_DOUBLE),
        ],
        probit_limit=745,
    ),
]

EXP_LIMIT = mpf("0.3466") * mpf("1.01")  # ln(2)/2 and what a rounded reduction may exceed it by
EXP2_LIMIT = mpf("0.505")
SIXTEENTH_LIMIT = mpf("0.0316")  # of r where powers of 2^(1/16) are looked up
OCTAVE_UNIT = mp.sqrt(mp.log(mp.e, 2) / 2)  # exp(-t^2/2) = 2^-u^2 with u = OCTAVE_UNIT t


def fit_exp(degree: int) -> Fit:
    """Fit P in exp(r) = 1 + r + r^2 P(r)."""
    r = chebyshev_points(-EXP_LIMIT, EXP_LIMIT, points_for(degree + 1))
    target = [(mp.expm1(x) - x) / x**2 for x in r]
    return Fit(r, target, [x**2 / mp.exp(x) for x in r], degree)


def fit_exp2(degree: int, limit: mpf = EXP2_LIMIT) -> Fit:
    """Fit P in 2^r = 1 + r P(r)."""
    r = chebyshev_points(-limit, limit, points_for(degree + 1))
    target = [mp.expm1(x * mp.log(2)) / x if x else mp.log(2) for x in r]
    return Fit(r, target, [x / mpf(2) ** x for x in r], degree)


def fit_log(degree: int) -> Fit:
    """Fit P in log(1 + f) = 2 atanh(s) = 2s + s z P(z), s = f / (2 + f), z = s^2.

    The form in the header follows from 2s = f - s f = f - (f^2/2 - s f^2/2).
    """
    high = mp.sqrt(2) * mpf("1.001")
    s = chebyshev_points(mpf("1e-3"), (high - 1) / (high + 1), points_for(degree + 1))
    target = [(2 * mp.atanh(x) / x - 2) / x**2 for x in s]
    weight = [x**3 / (2 * mp.atanh(x)) for x in s]
    return Fit([x * x for x in s], target, weight, degree)


def scaled_normal_tail(t: mpf) -> mpf:
    """Evaluate T(t) = Phi(-t) exp(t^2/2)."""
    if t > mpf(2) ** 60:
        return 1 / (mp.sqrt(2 * mp.pi) * t)
    return mp.erfc(t / mp.sqrt(2)) * mp.exp(t * t / 2) / 2


def fit_scaled_normal_tail(degree: int) -> Fit:
    """Fit S/P near D(t) = 1/T(t) - sqrt(2 pi) t, which falls from 2 to 0 as sqrt(2 pi)/t.

    An error d of S/P is a relative error d T of T = 1/(sqrt(2 pi) t + S/P). The points are dense where
    t/(t + 3) is that of Chebyshev points, and the last one stands for infinity.
    """
    k, n = 3, points_for(2 * degree)
    t = [k * (1 + x) / (1 - x) for x in chebyshev_points(-ONE, ONE, n)[:-1]] + [mpf(2) ** 60]
    values = [scaled_normal_tail(x) for x in t]
    target = [1 / y - mp.sqrt(2 * mp.pi) * x for x, y in zip(t, values, strict=True)]
    return Fit(t, target, values, degree - 1, degree, [(x + k) ** degree for x in t])


def fit_octave_normal_tail(degrees: tuple[int, int], octaves: int) -> Fit:
    """Fit S/P as above in u = OCTAVE_UNIT t, 0 <= u <= sqrt(octaves)."""
    k, high = 3, mp.sqrt(octaves) * mpf("1.001")
    u = [k * x / (1 - x) for x in chebyshev_points(mpf(0), high / (high + k), points_for(sum(degrees) + 1))]
    values = [scaled_normal_tail(x / OCTAVE_UNIT) for x in u]
    target = [1 / y - mp.sqrt(2 * mp.pi) * x / OCTAVE_UNIT for x, y in zip(u, values, strict=True)]
    return Fit(u, target, values, *degrees, [(x + k) ** degrees[1] for x in u])


def probit_factor(w: mpf) -> mpf:
    """Evaluate A(w) = probit(p)/(2p - 1), w = -log(4 p (1 - p)), by Newton's method on log Phi(-z)."""
    if w < mpf(10) ** -40:
        return mp.sqrt(mp.pi / 2)
    x = mp.sqrt(-mp.expm1(-w))
    log_tail = mp.log(mp.exp(-w) / (1 + x) / 2)
    z = mp.sqrt(-2 * log_tail - mp.log(2 * mp.pi * -2 * log_tail)) if w > 4 else x * mpf(1.25)
    while True:
        step = (mp.log(mp.erfc(z / mp.sqrt(2)) / 2) - log_tail) * mp.sqrt(2 * mp.pi) * scaled_normal_tail(z)
        z += step
        if abs(step) < mpf(10) ** -25 * z:
            return z / x


def fit_probit(piece: Piece, w: Callable[[mpf], mpf]) -> Fit:
    """Fit A in the variable x for which w(x) is w."""
    x = chebyshev_points(piece.low, piece.high, points_for(sum(piece.degrees) + 1))
    values = [probit_factor(w(y)) for y in x]
    target = [f - piece.slope * y for f, y in zip(values, x, strict=True)]
    return Fit([y - piece.shift for y in x], target, [1 / f for f in values], *piece.degrees)


@dataclass
class Rational:
    """Coefficients as numbers of the element type, and the largest relative error in exact arithmetic."""

    p: list[Any]
    q: list[Any]
    error: mpf


def rounded(fit: Fit, dtype: type, scale: mpf = ONE) -> Rational:
    """Solve and round."""
    fit.solve()
    error = fit.round_to(dtype, scale)
    p = [dtype(float(x)) for x in fit.coefficients[: fit.degree + 1]]
    q = [dtype(float(x)) for x in fit.coefficients[fit.degree + 1 :]]
    return Rational(p, q if fit.denominator_degree else [], error)


class Functions:
    """The fitted functions of one element type, evaluated in its arithmetic as the header does."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.dtype = dtype = settings.dtype
        self.exp_poly = rounded(fit_exp(settings.exp_degree), dtype)
        self.exp2_poly = rounded(fit_exp2(settings.exp2_degree), dtype)
        self.sixteenth_poly = rounded(fit_exp2(2, SIXTEENTH_LIMIT), dtype)
        self.log_poly = rounded(fit_log(settings.log_degree), dtype)
        self.sqrt_2pi = dtype(float(mp.sqrt(2 * mp.pi)))
        self.normal_tail, self.normal_tail_error_but_slope = self.fit_normal_tail()
        self.octave_tail = self.fit_octave_tail()
        self.center = rounded(fit_probit(settings.center, lambda w: w), dtype)
        self.tails = [rounded(fit_probit(piece, lambda s: s * s), dtype) for piece in settings.tails]

    def fit_normal_tail(self) -> tuple[Rational, mpf]:
        """Fit and scale T. Also returns the error that T would have if sqrt(2 pi) were not rounded."""
        # Relative to the value, rounding is coarsest just above a power of two. The factor keeps P, S and the
        # denominator away from there, at those t where T itself is just below a power of two. It was the best of 32
        # factors tried in float.
        fit = fit_scaled_normal_tail(self.settings.tail_degree)
        tail = rounded(fit, self.dtype, mpf("1.6458"))
        error_but_slope = tail.error

        slope = mpf(float(self.sqrt_2pi))
        p = fit.split(fit.coefficients)
        tail.error = max(
            abs(1 / ((slope * t + s / q) * scaled_normal_tail(t)) - 1) for t, s, q in zip(fit.xs, *p, strict=True)
        )
        # A power of two that makes P less than 1, so that sqrt(2 pi) t P is finite if sqrt(2 pi) t is.
        largest = evaluate([mpf(float(x)) for x in tail.q], mpf(2) ** self.settings.saturation)
        scale = self.dtype(2.0 ** -int(mp.ceil(mp.log(largest, 2))))
        return Rational([x * scale for x in tail.p], [x * scale for x in tail.q], tail.error), error_but_slope

    def fit_octave_tail(self) -> Rational:
        """Fit T as P/Q, with the asymptote multiplied out: Q = S + sqrt(2 pi) u/OCTAVE_UNIT P."""
        fit = fit_octave_normal_tail(self.settings.octave_tail_degrees, self.settings.octaves)
        tail = rounded(fit, self.dtype)
        slope = mp.sqrt(2 * mp.pi) / OCTAVE_UNIT
        p, q = [mpf(float(x)) for x in tail.q], [mpf(float(x)) for x in tail.p]
        q += [mpf(0)] * (len(p) + 1 - len(q))
        for i, x in enumerate(p):
            q[i + 1] += slope * x
        rounded_q = [self.dtype(float(x)) for x in q]
        exact_q = [mpf(float(x)) for x in rounded_q]
        error = max(
            abs(evaluate(p, u) / evaluate(exact_q, u) / scaled_normal_tail(u / OCTAVE_UNIT) - 1) for u in fit.xs
        )
        return Rational(tail.q, rounded_q, error)

    def exp(self, r: Array) -> Array:
        """Evaluate the exponential of a reduced r."""
        return fma(r * r, horner(r, self.exp_poly.p), r) + self.dtype(1)

    def exp2(self, r: Array) -> Array:
        """Evaluate the power of two of a reduced r."""
        return fma(r, horner(r, self.exp2_poly.p), self.dtype(1))

    def octave_normal_tail(self, u: Array) -> Array:
        """Evaluate T(u / OCTAVE_UNIT)."""
        return horner(u, self.octave_tail.p) / horner(u, self.octave_tail.q)

    def log(self, x: Array) -> Array:
        """Evaluate the logarithm of a reduced x."""
        f = x - self.dtype(1)
        s = f / (f + self.dtype(2))
        z = s * s
        half_square = f * f * self.dtype(0.5)
        return f - (half_square - s * fma(z, horner(z, self.log_poly.p), half_square))

    def scaled_normal_tail(self, t: Array) -> Array:
        """Evaluate T."""
        u = np.minimum(t, self.dtype(2.0**self.settings.saturation))
        p = horner(u, self.normal_tail.q)
        return p / fma(t * self.sqrt_2pi, p, horner(u, self.normal_tail.p))

    def piece(self, x: Array, piece: Piece, c: Rational) -> Array:
        """Evaluate slope x + P/Q."""
        y = x - self.dtype(float(piece.shift))
        ratio = horner(y, c.p) / horner(y, c.q) if c.q else horner(y, c.p)
        return fma(x, self.dtype(float(piece.slope)), ratio) if piece.slope else ratio

    def probit_center(self, w: Array) -> Array:
        """Evaluate A up to the split."""
        return self.piece(w, self.settings.center, self.center)

    def probit_tail(self, s: Array) -> Array:
        """Evaluate A from the split on, at w = s^2."""
        result = self.piece(s, self.settings.tails[0], self.tails[0])
        for piece, c in zip(self.settings.tails[1:], self.tails[1:], strict=True):
            result = np.where(s < self.dtype(float(piece.low)), result, self.piece(s, piece, c))
        return result


# ------------------------------------------------------------------------------------------------------------
# Arithmetic of the element type, and the errors measured in it
# ------------------------------------------------------------------------------------------------------------


def fma(a: Array, b: Any, c: Any) -> Array:
    """Evaluate a b + c with one rounding.

    In double this is Dekker's exact product and Knuth's exact sum, whose rests are added last. The sum of the rests is
    rounded, too, but that is too small to change the result.
    """
    if a.dtype == np.float32:
        return (a.astype(np.float64) * np.float64(b) + np.float64(c)).astype(np.float32)

    def halves(x: Any) -> tuple[Any, Any]:
        high = x * 134217729.0
        high = high - (high - x)
        return high, x - high

    (a1, a2), (b1, b2) = halves(a), halves(b)
    product = a * b
    product_rest = ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2
    total = product + c
    added = total - product
    return total + ((product - (total - added)) + (c - added) + product_rest)


def horner(x: Array, coefficients: Sequence[Any]) -> Array:
    """Evaluate a polynomial as the header does."""
    result = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        result = fma(x, result, c)
    return result


def worst_ulp(x: Array, computed: Array, exact: Array | list[mpf]) -> tuple[float, float]:
    """Find the largest error in units in the last place of the exact value, and where it is."""
    dtype = x.dtype.type
    if isinstance(exact, list):
        unit = np.spacing(np.abs(np.array([float(e) for e in exact])))
        difference = np.array([float(mpf(float(v)) - e) for v, e in zip(computed, exact, strict=True)])
    else:
        unit = np.spacing(np.abs(exact).astype(dtype)).astype(np.float64)
        difference = computed.astype(np.float64) - exact
    ulps = np.abs(difference) / unit
    worst = int(np.argmax(ulps))
    return float(ulps[worst]), float(x[worst])


def measure(f: Functions, double: Functions) -> dict[str, tuple[float, float]]:
    """Compare float with the double functions at a million points, double with mpmath at 4000."""
    dtype, settings = f.dtype, f.settings
    is_float = dtype is np.float32
    dense = 1_000_001 if is_float else 4001
    reduced = float(EXP_LIMIT)
    r = np.linspace(-reduced, reduced, dense).astype(dtype)
    r2 = np.linspace(-float(EXP2_LIMIT), float(EXP2_LIMIT), dense).astype(dtype)
    u = np.linspace(0, settings.octaves**0.5, dense).astype(dtype)
    x = np.linspace(0.5**0.5, 2**0.5, dense).astype(dtype)
    x = x[x != 1]
    largest = 37.9 if is_float else 290
    t = np.concatenate([[0], np.linspace(0, 40, dense), np.logspace(-6, largest, dense // 4)]).astype(dtype)
    w = np.linspace(0, float(settings.center.high), dense).astype(dtype)
    s = np.linspace(float(settings.tails[0].low), float(settings.tails[-1].high), dense).astype(dtype)

    exact: dict[str, Any]
    if is_float:
        wide_r, wide_x, wide_t, wide_w, wide_s = (y.astype(np.float64) for y in (r, x, t, w, s))
        is_center = wide_s**2 < float(double.settings.center.high)
        exact = {
            "exp_poly": np.exp(wide_r),
            "exp2_poly": np.exp2(r2.astype(np.float64)),
            "octave_normal_tail": double.octave_normal_tail(u.astype(np.float64)),
            "log_poly": np.log(wide_x),
            "scaled_normal_tail": double.scaled_normal_tail(wide_t),
            "probit_center": double.probit_center(wide_w),
            "probit_tail": np.where(is_center, double.probit_center(wide_s**2), double.probit_tail(wide_s)),
        }
    else:
        exact = {
            "exp_poly": [mp.exp(mpf(float(y))) for y in r],
            "exp2_poly": [mpf(2) ** mpf(float(y)) for y in r2],
            "octave_normal_tail": [scaled_normal_tail(mpf(float(y)) / OCTAVE_UNIT) for y in u],
            "log_poly": [mp.log(mpf(float(y))) for y in x],
            "scaled_normal_tail": [scaled_normal_tail(mpf(float(y))) for y in t],
            "probit_center": [probit_factor(mpf(float(y))) for y in w],
            "probit_tail": [probit_factor(mpf(float(y)) ** 2) for y in s],
        }
    computed = {
        "exp_poly": (r, f.exp(r)),
        "exp2_poly": (r2, f.exp2(r2)),
        "octave_normal_tail": (u, f.octave_normal_tail(u)),
        "log_poly": (x, f.log(x)),
        "scaled_normal_tail": (t, f.scaled_normal_tail(t)),
        "probit_center": (w, f.probit_center(w)),
        "probit_tail": (s, f.probit_tail(s)),
    }
    return {name: worst_ulp(*pair, exact[name]) for name, pair in computed.items()}


def log2(x: mpf) -> str:
    """Write the binary logarithm with one decimal."""
    return f"{float(mp.log(x, 2)):.1f}"


def print_table(functions: list[Functions]) -> None:
    """Print what was fitted, its error in exact arithmetic, and its largest error in the element type's arithmetic."""
    print(f"{'function':20} {'type':8} {'coefficients':13} {'error, log2':12} {'ULP':6} at")
    for f in functions:
        ulps = measure(f, functions[-1])
        pieces = {
            "exp_poly": [f.exp_poly],
            "exp2_poly": [f.exp2_poly],
            "octave_normal_tail": [f.octave_tail],
            "log_poly": [f.log_poly],
            "scaled_normal_tail": [f.normal_tail],
            "probit_center": [f.center],
            "probit_tail": f.tails,
        }
        for name, rationals in pieces.items():
            counts = ", ".join(f"{len(c.p)}/{len(c.q)}" if c.q else f"{len(c.p)}" for c in rationals)
            errors = ", ".join(log2(c.error) for c in rationals)
            worst, where = ulps[name]
            print(f"{name:20} {f.dtype.__name__:8} {counts:13} {errors:12} {worst:<6.2f} {where:.6g}")


# ------------------------------------------------------------------------------------------------------------
# The header
# ------------------------------------------------------------------------------------------------------------


def literal(x: Any) -> str:
    """Write the shortest decimal that rounds to x."""
    return f"{x!s}f" if isinstance(x, np.float32) else repr(float(x))


def call(prefix: str, variable: str, coefficients: Sequence[Any], indent: int = 4, factor: str = "") -> str:
    """Write `prefix`horner(variable, coefficients...); filled and aligned as clang-format does."""
    lines = [" " * indent + prefix + "horner("]
    align = len(lines[0])
    items = [variable, *(factor + literal(c) for c in coefficients)]
    for i, item in enumerate(items):
        end = ");" if i + 1 == len(items) else ","
        space = "" if i == 0 else " "
        if len(lines[-1]) + len(space + item + end) > HEADER_COLUMNS:
            lines.append(" " * align)
            space = ""
        lines[-1] += space + item + end
    return "\n".join(lines)


def piece_code(piece: Piece, c: Rational, variable: str, result: str, indent: int = 4) -> str:
    """Write the statements that end in `result`, where % is P/Q; a nested piece reuses the variables."""
    pad, declare = " " * indent, "V " if indent == 4 else ""
    lines = []
    x = variable
    if piece.shift:
        lines.append(f"{pad}{declare}x = {variable} - Scalar<V>({float(piece.shift):g});")
        x = "x"
    if not c.q:
        return "\n".join([*lines, call(result.replace("%", ""), x, c.p, indent)])
    lines += [call(f"{declare}p = ", x, c.p, indent), call(f"{declare}q = ", x, c.q, indent)]
    return "\n".join([*lines, f"{pad}{result.replace('%', 'quotient(p, q)')};"])


def return_code(piece: Piece, c: Rational, variable: str) -> str:
    """Write the return of slope x + P/Q, where % is P/Q."""
    slope = literal(type(c.p[0])(float(piece.slope)))
    return f"return fma({variable}, {slope}, %)" if piece.slope else "return %"


def branches(float_code: str, double_code: str) -> str:
    """Write the choice between the element types."""
    return f"  if constexpr (is_float<V>) {{\n{float_code}\n  }} else {{\n{double_code}\n  }}"


def normal_tail_code(f: Functions) -> str:
    """Write the body of scaled_normal_tail."""
    limit = f"0x1p{f.settings.saturation}" + ("f" if f.dtype is np.float32 else "")
    return "\n".join(
        [
            f"    V u = min(t, splat<V>({limit}));",
            call("V p = ", "u", f.normal_tail.q),
            call("V s = ", "u", f.normal_tail.p),
            f"    return quotient(p, fma(t * {literal(f.sqrt_2pi)}, p, s));",
        ]
    )


def octave_normal_tail_code(f: Functions) -> str:
    """Write the body of octave_normal_tail."""
    return "\n".join(
        [
            call("V p = ", "u", f.octave_tail.p),
            call("V q = ", "u", f.octave_tail.q),
            "    return p * bounded_reciprocal(q);",
        ]
    )


def probit_center_code(f: Functions) -> str:
    """Write the body of probit_center."""
    return piece_code(f.settings.center, f.center, "w", return_code(f.settings.center, f.center, "w"))


def probit_tail_code(f: Functions) -> str:
    """Write the body of probit_tail: one piece, or two, the far one evaluated only where a lane needs it."""
    near, *others = f.settings.tails
    result = return_code(near, f.tails[0], "s")
    if not others:
        return piece_code(near, f.tails[0], "s", result)
    (far,) = others
    return "\n".join(
        [
            piece_code(near, f.tails[0], "s", "V rest = %"),
            "    Mask<V> is_far = s >= Scalar<V>(probit_far_piece);",
            "    if (any(is_far)) {",
            piece_code(far, f.tails[1], "s", "rest = select<V>(is_far, %, rest)", indent=6),
            "    }",
            f"    {result.replace('%', 'rest')};",
        ]
    )


def powers_code() -> str:
    """Write the table of powers, in columns as clang-format puts them."""
    items = [literal(np.float32(float(mpf(2) ** (mpf(j) / 16)))) for j in range(16)]
    width = max(map(len, items)) + 2
    start = "constexpr float sixteenth_powers[16] = {"
    per_line = (HEADER_COLUMNS - len(start)) // width
    lines = []
    for first in range(0, 16, per_line):
        cells = [f"{item}," for item in items[first : first + per_line]]
        lines.append("".join(cell.ljust(width) for cell in cells).rstrip())
    return start + ("\n" + " " * len(start)).join(lines)[:-1] + "};"


def header(single: Functions, double: Functions) -> str:
    """Write the whole header."""
    both = (single, double)
    exp_errors = [log2(f.exp_poly.error) for f in both]
    sixteenth_error = log2(single.sixteenth_poly.error)
    exp2_errors = [log2(f.exp2_poly.error) for f in both]
    octave_tail_errors = [log2(f.octave_tail.error) for f in both]
    octaves = [f.settings.octaves for f in both]
    log_errors = [log2(f.log_poly.error) for f in both]
    tail_errors = [log2(f.normal_tail.error) for f in both]
    but_slope = log2(double.normal_tail_error_but_slope)
    center_errors = [log2(f.center.error) for f in both]
    splits = [f"Scalar<V>({float(f.settings.center.high):g})" for f in both]
    limits = [f"Scalar<V>({f.settings.probit_limit})" for f in both]
    far_errors = " and ".join(f"2^{log2(c.error)}" for c in double.tails)
    return f"""\
// Generated by tools/fit_coefficients.py. Do not edit this file; edit that one.
//
// Minimax approximations, their coefficients rounded to the element type. The errors stated are relative and
// hold in exact arithmetic.
#pragma once

#include "number.h"

namespace mixflow {{
namespace MIXFLOW_ARCH {{

// exp(r) = 1 + r + r^2 P(r), |r| <= {mp.nstr(EXP_LIMIT, 3)}; P times a constant factor.
// Error of exp(r): 2^{exp_errors[0]} (float), 2^{exp_errors[1]} (double).
template <class V>
MIXFLOW_FN V exp_poly(V r, Scalar<V> factor = 1) {{
{branches(*(call("return ", "r", f.exp_poly.p, factor="factor * ") for f in both))}
}}

// 2^r = 1 + r P(r), |r| <= {mp.nstr(EXP2_LIMIT, 3)}.
// Error of 2^r: 2^{exp2_errors[0]} (float), 2^{exp2_errors[1]} (double).
template <class V>
MIXFLOW_FN V exp2_poly(V r) {{
{branches(*(call("return ", "r", f.exp2_poly.p) for f in both))}
}}

// 2^(j/16) for j from 0 to 15, in float.
{powers_code()}

// 2^r = 1 + r P(r), |r| <= {mp.nstr(SIXTEENTH_LIMIT, 3)}, in float. Error of 2^r: 2^{sixteenth_error}.
template <class V>
MIXFLOW_FN V sixteenth_poly(V r) {{
{call("return ", "r", single.sixteenth_poly.p, indent=2)}
}}

// log(1 + f) = f - (f^2/2 - s (f^2/2 + z P(z))), s = f / (2 + f), z = s^2, for 1 + f between sqrt(1/2) and
// sqrt(2) and 0.1 % further. Error of log(1 + f): 2^{log_errors[0]} (float), 2^{log_errors[1]} (double).
template <class V>
MIXFLOW_FN V log_poly(V z) {{
{branches(*(call("return ", "z", f.log_poly.p) for f in both))}
}}

// T(t) = Phi(-t) exp(t^2/2) for t >= 0, as P / (sqrt(2 pi) t P + S): S/P is 1/T less its asymptote. No
// coefficient is negative, and the larger t, the more the rounding errors of P cancel.
// P and S stop growing at a t where 1/t^2 is negligible, and all coefficients carry a power of two, so that
// nothing overflows before sqrt(2 pi) t does; T is 0 from there to t = inf.
// Error: 2^{tail_errors[0]} (float), 2^{tail_errors[1]} (double; 2^{but_slope} without the rounding of sqrt(2 pi)).
template <class V>
MIXFLOW_FN V scaled_normal_tail(V t) {{
{branches(*(normal_tail_code(f) for f in both))}
}}

// T(u / c), c = sqrt(log2(e) / 2), in the unit in which exp(-t^2/2) = 2^-u^2, for 0 <= u^2 <= octave_limit, where
// 2^-octave_limit is well above the smallest normal number: P / (S + sqrt(2 pi) u/c P), multiplied out.
// Error: 2^{octave_tail_errors[0]} (float), 2^{octave_tail_errors[1]} (double).
template <class V>
constexpr Scalar<V> octave_limit = is_float<V> ? Scalar<V>({octaves[0]}) : Scalar<V>({octaves[1]});
template <class V>
MIXFLOW_FN V octave_normal_tail(V u) {{
{branches(*(octave_normal_tail_code(f) for f in both))}
}}

// probit(p) = x A(w) with x = 2 p - 1 and w = -log(4 p (1 - p)) = -log(1 - x^2), the variables of Giles,
// "Approximating the erfinv function" (2010): A is probit_center(w) for w < probit_split and
// probit_tail(sqrt(w)) from there to probit_limit, the w of the smallest subnormal p.
template <class V>
constexpr Scalar<V> probit_split = is_float<V> ? {splits[0]} : {splits[1]};
template <class V>
constexpr Scalar<V> probit_limit = is_float<V> ? {limits[0]} : {limits[1]};
// The sqrt(w) from which on probit_tail has another piece, in double.
constexpr double probit_far_piece = {float(double.settings.tails[1].low):g};

// 0 <= w <= probit_split. Error: 2^{center_errors[0]} (float), 2^{center_errors[1]} (double).
template <class V>
MIXFLOW_FN V probit_center(V w) {{
{branches(*(probit_center_code(f) for f in both))}
}}

// sqrt(probit_split) <= s <= sqrt(probit_limit). A is sqrt(2) s, its asymptote, and a small rest.
// Error: 2^{log2(single.tails[0].error)} (float), {far_errors} (the pieces of double).
template <class V>
MIXFLOW_FN V probit_tail(V s) {{
{branches(*(probit_tail_code(f) for f in both))}
}}

}}  // namespace MIXFLOW_ARCH
}}  // namespace mixflow
"""


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Fit the approximations of csrc/coefficients.h and write it.")
    parser.add_argument("--check", action="store_true", help="compare with the header, write nothing")
    check = parser.parse_args().check
    single, double = (Functions(settings) for settings in SETTINGS)
    text = header(single, double)
    if check:
        same = HEADER.exists() and HEADER.read_text() == text
        print(f"{HEADER.name} is {'' if same else 'not '}what tools/{Path(__file__).name} makes")
        return 0 if same else 1
    HEADER.write_text(text)
    print_table([single, double])
    return 0


if __name__ == "__main__":
    sys.exit(main())
