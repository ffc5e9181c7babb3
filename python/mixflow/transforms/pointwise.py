"""Fixed maps of each feature by itself, without parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..ops import BASES
from ..reference import BASES as DISTRIBUTIONS
from .base import Transform, check_name

__all__ = ["Logit", "Rebase", "Sigmoid"]


class Sigmoid(Transform):
    """``z = 1 / (1 + exp(-x))``: the real line to (0, 1).

    ``ladj = log sigmoid(x) + log sigmoid(-x)``, accurate in both tails. ``z`` itself rounds to 1 where ``1 - z`` is
    below the precision of the dtype, and the inverse of 1 is inf: keep values near 0 rather than near 1.

    Args:
        features: D.

    Raises:
        ValueError: features is out of range.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Sigmoid
        >>> z, ladj = Sigmoid(1)(torch.tensor([[-200.0]], dtype=torch.float64))
        >>> ladj
        tensor([-200.], dtype=torch.float64)

    """

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(x), (logsigmoid(x) + logsigmoid(-x)).sum(-1)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return torch.logit(z), -(z.log() + torch.log1p(-z)).sum(-1)

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"features={self.features}"


class Logit(Sigmoid):
    """``z = log(x / (1 - x))``: (0, 1) to the real line, the inverse of :class:`Sigmoid`.

    0 and 1 go to -inf and inf; outside [0, 1] there is no image, and that element is NaN.

    Args:
        features: D.

    Raises:
        ValueError: features is out of range.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Logit
        >>> Logit(3)(torch.tensor([[0.5, 1.0, 1.5]]))[0]
        tensor([[0., inf, nan]])

    """

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return super()._inverse(x, context)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return super()._forward(z, context)


class Rebase(Transform):
    """From one base distribution to another: ``z = G^-1(F(x))``, both F and G known.

    Computed from the logs of both tails of F, so that neither is lost between unbounded bases.

    Args:
        features: D.
        source: the distribution that ``x`` follows, one of ``mixflow.BASES``.
        target: the distribution that ``z`` then follows, another of them.

    Raises:
        ValueError: features is out of range, or a base is unknown.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Rebase
        >>> Rebase(1, "normal", "uniform")(torch.tensor([[0.0], [1.96]]))[0]
        tensor([[0.5000],
                [0.9750]])

    """

    def __init__(self, features: int, source: str, target: str) -> None:
        super().__init__(features)
        self.source = check_name("source", source, BASES)
        self.target = check_name("target", target, BASES)

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"features={self.features}, source={self.source!r}, target={self.target!r}"

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return _rebased(x, self.source, self.target)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return _rebased(z, self.target, self.source)


def _rebased(value: Tensor, source: str, target: str) -> tuple[Tensor, Tensor]:
    of, to = DISTRIBUTIONS[source], DISTRIBUTIONS[target]
    logit = of.to_logit(value)
    image = to.from_log_tails(logsigmoid(logit), logsigmoid(-logit))
    return image, (of.log_prob(value) - to.log_prob(image)).sum(-1)
