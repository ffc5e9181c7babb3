"""The standard normal distribution, twice: for autograd, and in the operators that ONNX has.

``log_cdf``, ``log_pdf`` and ``quantile`` work in log space and may be differentiated any number of times.
``scaled_tail`` and ``upper_quantile`` take the few operators of ONNX, which lacks ``erfcx``, ``log1p`` and ``expm1``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["SQRT_2PI", "log_cdf", "log_pdf", "quantile", "scaled_tail", "upper_quantile"]

SQRT_2PI = math.sqrt(2.0 * math.pi)
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


# -- for autograd --------------------------------------------------------------------------------------------


def log_cdf(a: Tensor) -> Tensor:
    """Log of the standard normal CDF, with accurate derivatives in both tails.

    ``torch.special.log_ndtr`` has the same values, but its backward subtracts ``log Phi(a)`` from
    ``-a^2 / 2`` and so loses a relative ``eps a^2``: 4 per cent of the gradient at a = -1000 in float32, and
    all of the second derivative before -100. Here each branch is differentiated as it stands, and only
    evaluated where it holds.
    """
    lower = a < -1.0
    x = torch.where(lower, a, -1.0)
    tail = torch.log(0.5 * torch.special.erfcx(-x * math.sqrt(0.5))) - 0.5 * x * x
    y = torch.where(lower, -1.0, a)
    bulk = torch.log1p(-0.5 * torch.special.erfc(y * math.sqrt(0.5)))
    return torch.where(lower, tail, bulk)


def log_pdf(a: Tensor) -> Tensor:
    """Log of the standard normal density, in nats."""
    return -0.5 * a * a - _LOG_SQRT_2PI


def quantile(log_F: Tensor, log_S: Tensor) -> Tensor:
    """The standard normal quantile of a probability known by the logs of its two tails.

    Solves ``log Phi(y) = min(log_F, log_S)`` for ``y <= 0``. Since ``Phi(-t) <= exp(-t^2 / 2) / 2``, the
    start lies left of the root, and because ``log Phi`` is concave and increasing Newton climbs to it
    monotonically. The last two steps are differentiable: Newton doubles the order to which a power series
    agrees, so two steps from the solution carry the derivatives up to the third.
    """
    lower = log_F < log_S
    smaller = torch.where(lower, log_F, log_S)
    infinite = torch.isneginf(smaller)
    target = torch.where(infinite, -1.0, smaller)

    def newton(y: Tensor) -> Tensor:
        log_tail = log_cdf(y)
        return y - (log_tail - target) * torch.exp(log_tail - log_pdf(y))

    with torch.no_grad():
        y = -torch.sqrt(-2.0 * target)
        for _ in range(10):
            y = newton(y)
    y = torch.where(infinite, -math.inf, newton(newton(y.detach())))
    return torch.where(lower, y, -y)


# -- in the operators of ONNX --------------------------------------------------------------------------------


def scaled_tail(t: Tensor) -> Tensor:
    """``Phi(-t) exp(t^2 / 2)`` for t >= 0: a polynomial in (t - 4) / (t + 4), divided by 1 + t.

    The form is that of Shepherd and Laframboise, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x" (1981).
    """
    y = 1.0 - 8.0 / (t + 4.0)
    return _horner(_tail_coefficients(24 if t.dtype == torch.float64 else 10), y) / (1.0 + t)


@functools.cache
def _tail_coefficients(degree: int) -> tuple[float, ...]:
    """The polynomial that interpolates at Chebyshev's points: degree 10 for float32, 24 for float64."""

    def scaled_tail(t: float) -> float:
        if t < 2.0:
            return 0.5 * math.erfc(t / math.sqrt(2.0)) * math.exp(0.5 * t * t)
        fraction = t  # Laplace's continued fraction
        for n in range(100, 0, -1):
            fraction = t + n / fraction
        return 1.0 / (SQRT_2PI * fraction)

    def function(y: Any) -> Any:
        t = 8.0 / (1.0 - y) - 4.0
        return (1.0 + t) * np.array([scaled_tail(value) for value in t.tolist()])

    chebyshev = np.polynomial.chebyshev
    return tuple(chebyshev.cheb2poly(chebyshev.chebinterpolate(function, degree)).tolist())


def upper_quantile(log_p: Tensor) -> Tensor:
    """The ``t >= 0`` with ``log Phi(-t) = log_p``, for ``log_p <= log(1/2)``.

    The start is within 4 per cent. Halley's method on log Phi, which is nearly a parabola, leaves an error of 4e-9
    after one step and of 1e-15 after two.
    """
    q = -2.0 * (log_p + math.log(2.0))
    q = torch.where(q <= 0.0, 0.0, q)  # rounding can make it negative; and 1 / q must not meet -0
    root = torch.sqrt(q)
    start = root / torch.sqrt(1.0 + 2.75 / q) * _horner(_START, 1.0 - 6.5 / (root + 3.25))
    t = start
    for _ in range(2 if t.dtype == torch.float64 else 1):
        tail = scaled_tail(t)
        mills = tail * SQRT_2PI
        newton = (torch.log(tail) - 0.5 * t * t - log_p) * mills
        t = t + newton / (1.0 + 0.5 * newton * (1.0 / mills - t))
    return torch.where(start == math.inf, start, t)


_START = (0.9694, 0.012, 0.0739, -0.0553)  # a least-squares fit


def _horner(coefficients: Iterable[float], x: Tensor) -> Tensor:
    *lower, second, first = coefficients
    result = first * x + second
    for coefficient in reversed(lower):
        result = result * x + coefficient
    return result
