"""The dtypes under test, the constants of the core that the tests need, and two ways to draw a number."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import torch
from mpmath import mpf

from mixflow import _core

Number = Any  # an mpmath number; mpmath has no type hints

DIGITS = 60
DTYPES = {"float32": torch.float32, "float64": torch.float64}
NUMBER: dict[str, Any] = {"float32": np.float32, "float64": np.float64}
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}
MIN_NORMAL = {"float32": mpf(2) ** -126, "float64": mpf(2) ** -1022}
LARGEST = {"float32": mpf((2 - 2.0**-23) * 2.0**127), "float64": mpf((2 - 2.0**-52) * 2.0**1023)}

# By dtype and name. The core exposes what csrc/ decides, so that no test repeats a number that may change there.
CONSTANTS: dict[str, dict[str, float]] = _core.constants()


def precise(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, run in at least DIGITS digits."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        with mp.workdps(max(DIGITS, mp.mp.dps)):
            return function(*args, **options)

    return wrapped


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number between ``low`` and ``high`` whose logarithm is uniform."""
    return float(10 ** rng.uniform(math.log10(low), math.log10(high)))


def random_sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0
