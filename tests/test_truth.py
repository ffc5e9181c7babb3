"""The truth of the tests, checked against itself, against scipy and against closed forms."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
from mpmath import mpf

import mixflow
import truth

FAMILY_AND_BASE = [(family, base) for family in truth.FAMILIES for base in truth.BASES]
POINT = (0.7, 0.3, -0.7, 0.1, -1.0, 0.25, 1.5, -0.5, 0.0, -1.0)  # x, logits, loc, log_scale
# Either side of every corner that a family may have, and far out.
PLACES = (-1e9, -300.0, -30.0, -4.0, -1.5, -1.0, -0.2, 0.1, 0.9, 1.4, 1.5, 7.0, 60.0, 1e4)


def test_every_family_has_a_record():
    assert tuple(truth.FAMILIES) == mixflow.FAMILIES, "the family needs a record in FAMILIES of tests/truth/families.py"


def test_every_base_has_a_record():
    assert tuple(truth.BASES) == mixflow.BASES, "the base needs a record in BASES of tests/truth/bases.py"


@pytest.mark.parametrize("family", [name for name, record in truth.FAMILIES.items() if record.scipy])
def test_families_are_those_of_scipy(family):
    theirs = truth.FAMILIES[family].scipy()
    for a in np.linspace(-5, 5, 41):
        at = truth.FAMILIES[family].at(mpf(float(a)))
        got = [float(v) for v in (at.lower, at.upper, at.density)]
        np.testing.assert_allclose(got, [theirs.cdf(a), theirs.ccdf(a), theirs.pdf(a)], rtol=1e-13)


@truth.precise
def test_student_is_the_incomplete_beta_function():
    for t in (mpf(1) / 7, mpf(1), mpf(3), mpf(1000), mpf(10) ** 12):
        exact = mp.betainc(1, mpf(1) / 2, 0, 2 / (2 + t * t), regularized=True) / 2
        at = truth.FAMILIES["student"].at(t)
        assert abs(at.upper / exact - 1) < mpf(10) ** -50
        assert at.lower == 1 - at.upper


@pytest.mark.parametrize("a", PLACES)
@pytest.mark.parametrize("family", truth.FAMILIES)
@truth.precise
def test_density_and_score_are_derivatives(family, a):
    at = truth.FAMILIES[family].at
    h, a = mpf(10) ** -20 * abs(a), mpf(a)
    with mp.workdps(120):
        near = "lower" if a < 0 else "upper"  # the tail that has digits
        slope = (getattr(at(a + h), near) - getattr(at(a - h), near)) / (2 * h)
        score = (mp.log(at(a + h).density) - mp.log(at(a - h).density)) / (2 * h)
    # The error is h^2 times the third derivative, where the exponent itself may be as large as a^2.
    allowed = mpf(10) ** -30 * max(1, a**4)
    assert abs(abs(slope) / at(a).density - 1) < allowed
    assert abs(score / at(a).score - 1) < allowed
    assert abs(at(a).score) <= at(a).score_scale


@pytest.mark.parametrize("a", PLACES)
@pytest.mark.parametrize("family", truth.FAMILIES)
@truth.precise
def test_families_are_symmetric(family, a):
    there, mirrored = truth.FAMILIES[family].at(mpf(a)), truth.FAMILIES[family].at(-mpf(a))
    assert (there.lower, there.upper, there.density) == (mirrored.upper, mirrored.lower, mirrored.density)
    assert there.score == -mirrored.score
    assert abs(there.lower + there.upper - 1) < mpf(10) ** -50


@pytest.mark.parametrize("infinity", [math.inf, -math.inf])
@pytest.mark.parametrize("family", truth.FAMILIES)
def test_nothing_of_a_family_lies_beyond_infinity(family, infinity):
    at = truth.FAMILIES[family].at(mpf(infinity))
    assert (at.lower, at.upper, at.density) == (infinity > 0, infinity < 0, 0)


@pytest.mark.parametrize("family", truth.FAMILIES)
def test_aids_for_aiming_cases_agree_with_the_exact_formulas(family):
    record = truth.FAMILIES[family]
    for a in (*PLACES, -1e30, 1e30):
        exact = mp.log(truth.precise(record.at)(mpf(a)).lower)
        assert float(record.log_cdf(a)) == pytest.approx(float(exact), rel=1e-9)
    for h in (0.0, 0.3, 20.0, 485.0):
        assert float(mp.log(record.at(mpf(record.half_width(h))).density)) == pytest.approx(-h, abs=1.5)
    for logit in (0.0, 1e-3, 1.0, 40.0, 800.0):
        at = truth.precise(record.at)(mpf(record.quantile(logit)))
        assert mp.log(at.lower) - mp.log(at.upper) >= logit


@pytest.mark.parametrize("family", truth.FAMILIES)
def test_the_largest_score_of_an_interval_is_reached_in_it(family):
    record = truth.FAMILIES[family]
    for low, high in ((-3.0, -2.0), (-2.0, -1.0), (-1.0, 0.5), (-1.0, 2.0), (0.3, 0.4), (1.0, 9.0), (5.0, 6.0)):
        largest = max(record.at(mpf(float(a))).score_scale for a in np.linspace(low, high, 801))
        bound = record.largest_score(mpf(low), mpf(high))
        assert largest <= bound <= largest * (1 + 1e-4)


@pytest.mark.parametrize("base", truth.BASES)
@truth.precise
def test_bases_have_the_quantile_density_and_score_that_they_name(base):
    h = mpf(10) ** -20

    def at(logit):
        mix = truth.Mixture(1 / (1 + mp.exp(-logit)), 1 / (1 + mp.exp(logit)), mpf(1), *([] for _ in range(8)))
        return truth.to_base(mix, base)

    for logit in map(mpf, (-40, -3, mpf("-0.1"), mpf("0.2"), 5, 30)):
        middle, ends = at(logit), (at(logit - h), at(logit + h))
        slope = (ends[1].z - ends[0].z) / (2 * h)
        F_slope = 1 / (2 + mp.exp(logit) + mp.exp(-logit))
        assert abs(mp.exp(middle.log_g) * slope / F_slope - 1) < mpf(10) ** -25
        by_z = (ends[1].log_g - ends[0].log_g) / (2 * h) / slope
        assert abs(by_z - middle.score) < mpf(10) ** -18 * (1 + abs(middle.score))
        assert abs(middle.score) <= middle.score_scale
        largest = truth.BASES[base].largest(float(abs(logit)))
        mirrored = middle if logit > 0 else at(-logit)
        assert float(mirrored.z) == pytest.approx(largest, rel=1e-12)


@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_truth_differentiates_itself(family, base):
    point = [mpf(v) for v in POINT]
    h = mpf(10) ** -20
    for name in ("z", "ladj"):
        weights = (1, 0) if name == "z" else (0, 1)
        gradient = truth.flat_gradient(point, 3, family, base, ("z", "ladj"), weights)
        for i, exact in enumerate(gradient):
            ends = []
            for sign in (1, -1):
                moved = list(point)
                with mp.workdps(truth.DIGITS):
                    moved[i] += sign * h
                ends.append(truth.forward(moved[0], moved[1:4], moved[4:7], moved[7:], family, base)[name])
            with mp.workdps(truth.DIGITS):
                assert abs((ends[0] - ends[1]) / (2 * h) - exact) < mpf(10) ** -30


def test_truth_does_not_underflow():
    for a in (40.0, 1e3, 1e6):
        with mp.workdps(truth.DIGITS):
            exact = truth.forward(-a, [0.0], [0.0], [0.0], "gaussian", "normal")
            assert abs(exact["z"] + a) < mpf(10) ** -40 * a
            assert abs(exact["ladj"]) < mpf(10) ** -30


def test_the_tails_of_student_are_exact_where_squares_overflow():
    a = 1e200
    with mp.workdps(truth.DIGITS):
        exact = truth.forward(-a, [0.0], [0.0], [0.0], "student", "logistic")
        # C(-t) = t^-2 / 2 (1 - O(t^-2)) and dz/dx = C' / C = 2 / t
        assert abs(exact["z"] + 2 * mp.log(mpf(a)) + mp.log(2)) < mpf(10) ** -50
        assert abs(exact["ladj"] - mp.log(2 / mpf(a))) < mpf(10) ** -50


@pytest.mark.parametrize("dtype", truth.DTYPES)
@pytest.mark.parametrize("family", truth.FAMILIES)
def test_cases_lie_within_the_numbers_of_the_dtype(family, dtype):
    cases = truth.sample(dtype, family, 256, seed=1)
    for case in cases:
        values = (case.x, *case.logits, *case.loc, *case.log_scale)
        assert all(map(math.isfinite, values)), case
        assert all(float(truth.NUMBER[dtype](v)) == v for v in values), case
    rng = np.random.default_rng(2)
    for base in ("normal", "logistic"):
        largest = truth.largest_target(base, family, dtype)
        targets = [truth.BASES[base].target(dtype, largest, rng) for _ in range(64)]
        assert max(map(abs, targets)) == pytest.approx(largest, rel=1e-6)
        # The widest component of a case has a scale of 1e6 and lies within 1e6 of zero.
        logit = min(truth.FAMILIES[family].largest_logit(dtype), 1e7)
        assert truth.FAMILIES[family].quantile(min(logit, 1400.0)) * 1e6 + 1e6 < truth.LARGEST[dtype]


def test_bisection_finds_the_last_digit_across_all_magnitudes():
    for root in (1e-300, 2.5e-7, 1.0, 3e200):
        found = truth.bisect(lambda x, root=root: x < root, -1e308, 1e308)
        assert found <= root <= np.nextafter(found, math.inf)
        found = truth.bisect(lambda x, root=root: x > -root, 1e308, -1e308)
        assert np.nextafter(found, -math.inf) <= -root <= found


def test_errors_count_on_their_scales():
    eps = truth.EPSILON["float32"]
    assert truth.relative_error(1.0, mpf(1), mpf(1), "float32") == 0
    assert truth.relative_error(1 + 3 * eps, mpf(1), mpf(1), "float32") == pytest.approx(3)
    assert truth.relative_error(math.nan, mpf(1), mpf(1), "float32") == math.inf
    assert truth.relative_error(math.inf, mpf(1), mpf(10) ** 40, "float32") == 0
    assert truth.relative_error(1e-40, mpf(0), mpf(10) ** -60, "float32") <= 1
    assert truth.relative_error(1e-30, mpf(0), mpf(0), "float32") == math.inf
