"""The base distributions: one record for each, in the order of ``mixflow.BASES``.

The compiled kernels have these distributions in csrc/bases.h.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import normal

__all__ = ["BASES", "Base"]


@dataclass(frozen=True)
class Base:
    """A base distribution with CDF G.

    Attributes:
        from_log_tails: from ``log F`` and ``log(1 - F)`` to ``G^-1(F)``.
        to_logit: ``log G(z) - log(1 - G(z))``.
        log_prob: ``log g(z)`` in nats.
        sample: ``sample(shape, generator=, dtype=, device=)``. It never draws an end point of the support, whose image
            under the inverse transform would be infinite.
        from_smaller_tail: in the operators that ONNX has, from whether F is the smaller tail m, log m and log(1 - m) to
            ``z = G^-1(F)`` and ``log(m / g(z))``.
        plain_z: from F and 1 - F to ``G^-1(F)``, as people write it. It may be infinite in the tails.
        plain_z_from_logs: from ``log F`` and ``log(1 - F)`` to ``G^-1(F)``, as people write it.

    """

    from_log_tails: Callable[[Tensor, Tensor], Tensor]
    to_logit: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[..., Tensor]
    from_smaller_tail: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    plain_z: Callable[[Tensor, Tensor], Tensor]
    plain_z_from_logs: Callable[[Tensor, Tensor], Tensor]


def _log_logistic(z: Tensor) -> Tensor:
    """The logistic log density, without ``logsigmoid``, which ONNX evaluates as log(sigmoid(z)): -inf far out."""
    toward_end = torch.where(z < 0.0, z, -z)
    return toward_end - 2.0 * toward_end.exp().log1p()


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


def _normal_from_smaller_tail(lower: Tensor, log_smaller: Tensor, log_larger: Tensor) -> tuple[Tensor, Tensor]:
    t = normal.upper_quantile(log_smaller)
    return torch.where(lower, -t, t), torch.log(normal.scaled_tail(t) * normal.SQRT_2PI)


def _logistic_from_smaller_tail(lower: Tensor, log_smaller: Tensor, log_larger: Tensor) -> tuple[Tensor, Tensor]:
    t = log_larger - log_smaller
    return torch.where(lower, -t, t), -log_larger


def _uniform_from_smaller_tail(lower: Tensor, log_smaller: Tensor, log_larger: Tensor) -> tuple[Tensor, Tensor]:
    smaller = torch.exp(log_smaller)
    return torch.where(lower, smaller, 1.0 - smaller), log_smaller


def _plain_probit_from_logs(log_F: Tensor, log_S: Tensor) -> Tensor:
    # One probit, of the smaller tail: a `where` between two would give NaN gradients in the tails.
    z: Tensor = torch.sign(log_F - log_S) * -torch.special.ndtri(torch.minimum(log_F, log_S).exp())
    return z


BASES: dict[str, Base] = {
    "normal": Base(
        from_log_tails=normal.quantile,
        to_logit=lambda z: normal.log_cdf(z) - normal.log_cdf(-z),
        log_prob=normal.log_pdf,
        sample=_sample_normal,
        from_smaller_tail=_normal_from_smaller_tail,
        plain_z=lambda F, S: torch.special.ndtri(F),
        plain_z_from_logs=_plain_probit_from_logs,
    ),
    "logistic": Base(
        from_log_tails=lambda log_F, log_S: log_F - log_S,
        to_logit=lambda z: z,
        log_prob=_log_logistic,
        sample=_sample_logistic,
        from_smaller_tail=_logistic_from_smaller_tail,
        plain_z=lambda F, S: torch.logit(F),
        plain_z_from_logs=lambda log_F, log_S: log_F - log_S,
    ),
    "uniform": Base(
        from_log_tails=lambda log_F, log_S: torch.where(log_F < log_S, log_F.exp(), -torch.expm1(log_S)),
        to_logit=lambda z: z.log() - torch.log1p(-z),
        log_prob=lambda z: torch.where((z < 0.0) | (z > 1.0), -math.inf, torch.zeros_like(z) * z),
        sample=_sample_uniform,
        from_smaller_tail=_uniform_from_smaller_tail,
        plain_z=lambda F, S: F,
        plain_z_from_logs=lambda log_F, log_S: log_F.exp(),
    ),
}
