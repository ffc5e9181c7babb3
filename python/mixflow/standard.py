"""The standard distributions: the components' families and the bases, with the samplers and densities that flows use.

Everything is written with ordinary torch functions in log space, so that autograd differentiates it any number of
times, in reverse and forward mode, in float32 and float64, and neither tail saturates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["BASES", "FAMILIES", "Base", "Family"]

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


# -- the standard normal in log space ------------------------------------------------------------------------


def _log_ndtr(a: Tensor) -> Tensor:
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


def _log_phi(a: Tensor) -> Tensor:
    return -0.5 * a * a - _LOG_SQRT_2PI


def _log_logistic(z: Tensor) -> Tensor:
    """The logistic log density, without ``logsigmoid``, which ONNX evaluates as log(sigmoid(z)): -inf far out."""
    toward_end = torch.where(z < 0.0, z, -z)
    return toward_end - 2.0 * toward_end.exp().log1p()


def _probit(log_F: Tensor, log_S: Tensor) -> Tensor:
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
        log_cdf = _log_ndtr(y)
        return y - (log_cdf - target) * torch.exp(log_cdf - _log_phi(y))

    with torch.no_grad():
        y = -torch.sqrt(-2.0 * target)
        for _ in range(10):
            y = newton(y)
    y = torch.where(infinite, -math.inf, newton(newton(y.detach())))
    return torch.where(lower, y, -y)


# -- families: the components' standard distributions --------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """A component's standard distribution, as functions of ``a = (x - loc) / scale``.

    ``quantile_from_logit`` maps ``log C(a) - log(1 - C(a))`` back to ``a``, which reaches both tails alike;
    ``variance`` is that of ``a``.
    """

    log_cdf: Callable[[Tensor], Tensor]
    log_sf: Callable[[Tensor], Tensor]
    log_pdf: Callable[[Tensor], Tensor]
    quantile_from_logit: Callable[[Tensor], Tensor]
    variance: float


FAMILIES: dict[str, Family] = {
    "gaussian": Family(
        log_cdf=_log_ndtr,
        log_sf=lambda a: _log_ndtr(-a),
        log_pdf=_log_phi,
        quantile_from_logit=lambda logit: _probit(logsigmoid(logit), logsigmoid(-logit)),
        variance=1.0,
    ),
    "logistic": Family(
        log_cdf=logsigmoid,
        log_sf=lambda a: logsigmoid(-a),
        log_pdf=lambda a: logsigmoid(a) + logsigmoid(-a),
        quantile_from_logit=lambda logit: logit,
        variance=math.pi**2 / 3.0,
    ),
}


# -- bases: the distribution that the transform maps to ------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """A base distribution G.

    ``from_log_tails(log_F, log_S)`` is ``G^-1(F)`` from the logs of F and 1 - F; ``to_logit(z)`` is
    ``log G(z) - log(1 - G(z))``; ``log_prob(z)`` is in nats; ``sample(shape, generator=, dtype=, device=)``
    never draws an end point of the support, whose image under the inverse transform would be infinite.
    """

    from_log_tails: Callable[[Tensor, Tensor], Tensor]
    to_logit: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[..., Tensor]


def _sample_normal(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=device)


def _sample_logistic(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    # The log ratio of two exponentials is logistic and, unlike the logit of a uniform, reaches both tails
    # alike.
    pair = torch.empty((2, *shape), dtype=dtype, device=device).exponential_(generator=generator)
    return pair[0].log() - pair[1].log()


def _sample_uniform(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    # Midpoints of 1 / eps equal cells: all representable, none of them 0 or 1 (torch.rand does draw 0).
    dtype = dtype or torch.get_default_dtype()
    eps = torch.finfo(dtype).eps
    cells = torch.randint(round(1.0 / eps), tuple(shape), generator=generator, device=device)
    return (cells.to(dtype) + 0.5) * eps


BASES: dict[str, Base] = {
    "normal": Base(
        from_log_tails=_probit,
        to_logit=lambda z: _log_ndtr(z) - _log_ndtr(-z),
        log_prob=_log_phi,
        sample=_sample_normal,
    ),
    "logistic": Base(
        from_log_tails=lambda log_F, log_S: log_F - log_S,
        to_logit=lambda z: z,
        log_prob=_log_logistic,
        sample=_sample_logistic,
    ),
    "uniform": Base(
        from_log_tails=lambda log_F, log_S: torch.where(log_F < log_S, log_F.exp(), -torch.expm1(log_S)),
        to_logit=lambda z: z.log() - torch.log1p(-z),
        log_prob=lambda z: torch.where((z < 0.0) | (z > 1.0), -math.inf, torch.zeros_like(z) * z),
        sample=_sample_uniform,
    ),
}
