"""The special functions of the core against mpmath, in units in the last place (ULP).

An error is measured in the spacing of the dtype at the true value, that of the subnormals included. The maxima are
what tools/measure_ulp.py measures, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mpmath as mp
import numpy as np
import pytest
from mpmath import mpf

import truth
from mixflow import _core

NUMBER: dict[str, Any] = {"float32": np.float32, "float64": np.float64}
INF, NAN = math.inf, math.nan


# ------------------------------------------------------------------------------------------------------------- truth


def _normal_cdf(x: Any) -> Any:
    if x > 1e10:
        return mpf(1)
    return mp.exp(truth.log_normal_tail(-x)) if x > -1e10 else mpf(0)


def _log_normal_cdf(x: Any) -> Any:
    if x > 0:
        return mp.log1p(-_normal_cdf(-x))
    return truth.log_normal_tail(-x)


def _log_sigmoid(x: Any) -> Any:
    return x if x < -1e10 else -mp.log1p(mp.exp(-x))


def _probit(p: Any) -> Any:
    return -truth.normal_quantile(mp.log(p)) if p < 0.5 else truth.normal_quantile(mp.log1p(-p))


def _probit_from_logit(x: Any) -> Any:
    # Near 0 the quantile keeps an absolute accuracy only; the next term is x^2 smaller.
    if abs(x) < mpf(10) ** -20:
        return x * mp.sqrt(2 * mp.pi) / 4
    return mp.sign(x) * truth.normal_quantile(_log_sigmoid(-abs(x)))


def _logit_from_probit(z: Any) -> Any:
    if abs(z) < mpf(10) ** -20:
        return 4 * z / mp.sqrt(2 * mp.pi)
    return _log_normal_cdf(z) - _log_normal_cdf(-z)


# ------------------------------------------------------------------------------------------------------------- table


# The ends of the dtype, by name: they differ between float32 and float64.
TINY, LARGEST = "tiny", "largest"


# A range of inputs, drawn evenly in value ("linear") or in bit patterns ("bits").
def bits(low: Any, high: Any) -> tuple[str, Any, Any]:
    return "bits", low, high


def linear(low: Any, high: Any) -> tuple[str, Any, Any]:
    return "linear", low, high


def both(low: Any, high: Any) -> tuple[tuple[str, Any, Any], ...]:
    negative = [f"-{v}" if isinstance(v, str) else -v for v in (high, low)]
    return bits(low, high), bits(*negative)


@dataclass(frozen=True)
class Function:
    exact: Callable[[Any], Any]
    ranges: tuple[tuple[str, Any, Any], ...]
    values: dict[float, float]  # input -> exact result; -0.0 and 0.0 are one key, so signs are in `signed_zero`
    max_ulp: dict[str, float]
    signed_zero: bool = False  # f(+-0) = +-0, sign kept
    keeps_nan: bool = True


def ulp(float32: float, float64: float) -> dict[str, float]:
    return {"float32": float32, "float64": float64}


# Ranges reach past where results underflow or overflow. At most 2 ULP for the elementary functions, 4 for the rest.
FUNCTIONS = {
    "exp": Function(
        mp.exp,
        (linear(-104, 89), linear(-746, 710), *both(TINY, 1000), linear(-1, 1)),
        {-INF: 0.0, INF: INF, 0.0: 1.0, -1e4: 0.0, 1e4: INF},
        ulp(1, 1),
    ),
    # These two may flush results below the smallest normal number: no inputs are drawn where they are subnormal.
    "exp_flushed": Function(mp.exp, (bits(-87, "-tiny"), linear(-708, -105), linear(-1, 0)), {0.0: 1.0}, ulp(1, 1)),
    "quick_exp": Function(
        mp.exp, (bits(-87, "-tiny"), linear(-708, -105), linear(-1, 0)), {0.0: 1.0, -INF: 0.0}, ulp(2, 2)
    ),
    "exp_neg_half_square": Function(
        lambda t: mp.exp(-t * t / 2), (bits(TINY, 40), linear(0, 15), linear(0, 40)), {0.0: 1.0, INF: 0.0}, ulp(2, 2)
    ),
    "log_normal": Function(
        mp.log,
        (bits(1e-37, LARGEST), linear(0.25, 4), linear(0.99, 1.01)),
        {1.0: 0.0},
        ulp(1, 1),
        keeps_nan=False,
    ),
    "log1p_exp_neg": Function(
        lambda t: mp.log1p(mp.exp(-t)), (bits(TINY, 80), linear(0, 100), linear(0, 700)), {INF: 0.0}, ulp(2, 2)
    ),
    "log_normal_tail": Function(
        truth.log_normal_tail, (bits(TINY, 1e18), linear(0, 50), linear(0, 2)), {INF: -INF}, ulp(4, 4)
    ),
    "log": Function(
        mp.log,
        (bits(TINY, LARGEST), linear(0.25, 4), linear(0.99, 1.01)),
        {0.0: -INF, INF: INF, 1.0: 0.0, -1.0: NAN, -INF: NAN},
        ulp(1, 1),
    ),
    "log1p": Function(
        mp.log1p,
        (*both(TINY, 0.999), bits(0.999, LARGEST), linear(-0.9999999, 3)),
        {INF: INF},
        ulp(2, 2),
    ),
    "log_sigmoid": Function(
        _log_sigmoid,
        (*both(TINY, LARGEST), linear(-110, 110), linear(-750, 750), linear(-2, 2)),
        {-INF: -INF, INF: 0.0},
        ulp(2, 2),
    ),
    "normal_cdf": Function(
        _normal_cdf,
        (*both(TINY, 40), linear(-15, 9), linear(-39, 9), linear(-2, 2)),
        {-INF: 0.0, INF: 1.0, 0.0: 0.5, -1e4: 0.0, 1e4: 1.0},
        ulp(3, 3),
    ),
    "log_normal_cdf": Function(
        _log_normal_cdf,
        (*both(TINY, LARGEST), linear(-40, 15), linear(-2, 40), linear(-2, 2)),
        {-INF: -INF, INF: 0.0},
        ulp(4, 4),
    ),
    "mills": Function(
        truth.normal_mills,
        # Beyond 1e38 sqrt(2 pi) t overflows in float32, and the ratio is 0.
        (bits(TINY, 1e38), linear(0, 50), linear(0, 2)),
        {INF: 0.0},
        ulp(3, 3),
    ),
    "probit": Function(
        _probit,
        (bits(TINY, 0.5), linear(0.001, 0.999), bits(0.5, 0.99999994)),
        {0.5: 0.0},
        ulp(3, 3),
    ),
    "probit_from_logit": Function(
        _probit_from_logit,
        (*both(TINY, LARGEST), linear(-110, 110), linear(-800, 800), linear(-2, 2)),
        {-INF: -INF, INF: INF},
        ulp(4, 4),
        signed_zero=True,
    ),
    "logit_from_probit": Function(
        # A difference of two logs: relative accuracy from |z| = 1/2 on, an absolute one of 3 eps below (tested apart).
        _logit_from_probit,
        (*both(0.5, LARGEST), linear(-40, -0.5), linear(0.5, 40), linear(0.5, 2)),
        {-INF: -INF, INF: INF},
        ulp(4, 4),
    ),
}


# ----------------------------------------------------------------------------------------------------------- measure


def call(name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = np.ascontiguousarray(x)
    result = np.full_like(x, 123.0)
    _core.special(name, x.dtype == np.float64, x.size, x.ctypes.data, result.ctypes.data)
    return result


def _end(value: Any, number: Any) -> Any:
    if not isinstance(value, str):
        return number(value)
    info = np.finfo(number)
    end = info.smallest_subnormal if TINY in value else info.max
    return -end if value.startswith("-") else end


def points(function: Function, dtype: str, count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """About `count` numbers from all ranges, their ends included."""
    number = NUMBER[dtype]
    integer = np.int32 if dtype == "float32" else np.int64
    rng = np.random.default_rng(seed)
    each = max(count // len(function.ranges), 4)
    parts = []
    for how, low, high in function.ranges:
        ends = np.array([_end(low, number), _end(high, number)], dtype=number)
        if how == "linear":
            inner = rng.uniform(float(ends[0]), float(ends[1]), each).astype(number)
        else:  # sign and magnitude: patterns rise with |x|
            patterns = np.sort(np.abs(ends)).view(integer)
            drawn = rng.integers(patterns[0], patterns[1], each, dtype=integer, endpoint=True)
            inner = np.copysign(drawn.view(number), ends[1] if ends[1] != 0 else ends[0])
        parts += [ends, inner]
    return np.concatenate(parts)


def ulp_error(got: float, exact: Any, dtype: str) -> float:
    """|got - exact| in units of the spacing of the dtype at exact."""
    digits, lowest = (24, -149) if dtype == "float32" else (53, -1074)
    if math.isnan(got):
        return INF
    spacing = mpf(2) ** lowest
    if exact != 0:
        spacing = mpf(2) ** max(int(mp.floor(mp.log(abs(exact), 2))) + 1 - digits, lowest)
    limit = truth.LARGEST[dtype]
    if math.isinf(got):
        # As if the number after the largest were there.
        got_value = mp.sign(got) * (limit + mpf(2) ** (mp.floor(mp.log(limit, 2)) + 1 - digits))
        if abs(exact) >= limit and (got > 0) == (exact > 0):
            return 0.0
        return float(abs(got_value - exact) / spacing)
    if abs(exact) > limit:
        spacing = mpf(2) ** (int(mp.floor(mp.log(limit, 2))) + 1 - digits)
    return float(abs(mpf(got) - exact) / spacing)


def errors(name: str, dtype: str, count: int, seed: int = 0) -> Iterator[tuple[float, float, float, Any]]:
    """(error in ULP, input, result, exact result) at points of every range."""
    function = FUNCTIONS[name]
    x = points(function, dtype, count, seed)
    results = call(name, x)
    with mp.workdps(truth.DIGITS):
        for value, got in zip(x.tolist(), results.tolist(), strict=True):
            exact = function.exact(mpf(value))
            yield ulp_error(got, exact, dtype), value, got, exact


# ------------------------------------------------------------------------------------------------------------- tests


def test_every_function_is_in_the_table():
    assert set(_core.SPECIAL_FUNCTIONS) == set(FUNCTIONS)


def test_ulp_error_counts_spacings():
    assert ulp_error(1.0 + 2.0**-22, mpf(1), "float32") == 2
    assert ulp_error(1.0 - 2.0**-53, mpf(1), "float64") == 0.5
    assert ulp_error(0.0, mpf(2) ** -148, "float32") == 2
    assert ulp_error(INF, truth.LARGEST["float32"], "float32") == 0
    assert ulp_error(INF, mpf(1), "float32") > 1e30
    assert ulp_error(NAN, mpf(1), "float32") == INF


@pytest.mark.parametrize("dtype", NUMBER)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors(name, dtype):
    error, x, got, exact = max(errors(name, dtype, 1200 if dtype == "float32" else 600), key=lambda e: e[0])
    assert error <= FUNCTIONS[name].max_ulp[dtype], (
        f"{name}({x.hex()} = {x:.9g}): got {got.hex()} ({got:.17g}), expected {mp.nstr(exact, 25)}: {error:.3f} ULP"
    )


@pytest.mark.parametrize("dtype", NUMBER)
def test_logit_from_probit_is_accurate_in_absolute_terms_near_zero(dtype):
    x = np.linspace(-0.5, 0.5, 401).astype(NUMBER[dtype])
    eps = float(np.finfo(x.dtype).eps)
    for z, got in zip(x.tolist(), call("logit_from_probit", x).tolist(), strict=True):
        assert abs(mpf(got) - _logit_from_probit(mpf(z))) <= 3 * eps


@pytest.mark.parametrize("dtype", NUMBER)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(name, dtype):
    function = FUNCTIONS[name]
    nan = [NAN] if function.keeps_nan else []
    inputs = np.array([*function.values, *nan], dtype=NUMBER[dtype])
    expected = np.array([*function.values.values(), *nan], dtype=NUMBER[dtype])
    np.testing.assert_array_equal(call(name, inputs), expected)
    if function.signed_zero:
        zeros = np.array([0.0, -0.0], dtype=NUMBER[dtype])
        result = call(name, zeros)
        np.testing.assert_array_equal(result, zeros)
        np.testing.assert_array_equal(np.signbit(result), [False, True])


@pytest.mark.parametrize("dtype", NUMBER)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_do_not_depend_on_neighbours(name, dtype):
    """Every lane by its own value alone: one at a time, and among others."""
    x = points(FUNCTIONS[name], dtype, 97)
    with_nan = np.concatenate([x[:5], [NAN], x[5:]]).astype(x.dtype)
    whole = call(name, x)
    np.testing.assert_array_equal(np.array([call(name, x[i : i + 1])[0] for i in range(x.size)]), whole)
    np.testing.assert_array_equal(np.delete(call(name, with_nan), 5), whole)
