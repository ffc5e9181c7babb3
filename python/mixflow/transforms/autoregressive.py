"""Autoregressive transforms: each feature is mapped as the ones before it decide."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_integer
from ..conditioners import MaskedMLP
from .base import Transform
from .elementwise import ElementwiseMap

__all__ = ["Autoregressive"]


class Autoregressive(Transform):
    """Every feature through a map whose parameters a masked network makes of the features before it.

    The map is :class:`~mixflow.transforms.elementwise.ElementwiseMap`, the network
    :class:`~mixflow.conditioners.MaskedMLP`: a neural autoregressive flow (Huang et al., 2018, arXiv:1804.00779), here
    with a mixture of any family. Forward takes one pass of the network; the inverse D, one feature after the other.
    It starts close to the identity.

    Args:
        features: D.
        components: K, the number of components of each mixture.
        hidden: widths of the network's hidden layers.
        family: the components' distribution, one of ``mixflow.FAMILIES``.
        context: C, the size of a context that every feature's parameters depend on; 0 for none.

    Raises:
        ValueError: a size is out of range, or the family is unknown.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Autoregressive
        >>> transform = Autoregressive(3, components=4)
        >>> x = torch.randn(10, 3)
        >>> z, ladj = transform(x)
        >>> torch.allclose(transform.inverse(z)[0], x, atol=1e-4)
        True

    """

    def __init__(
        self,
        features: int,
        components: int = 8,
        hidden: Sequence[int] = (64, 64),
        *,
        family: str = "logistic",
        context: int = 0,
    ) -> None:
        super().__init__(features, context)
        self.elementwise = ElementwiseMap(check_integer("components", components, 1), family)
        self.conditioner = MaskedMLP(
            self.features, self.elementwise.size, hidden, self.context, self.elementwise.start()
        )

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Standardise the network's inputs; the map stays close to the identity."""
        self.conditioner.initialize(x, context)

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return (
            f"features={self.features}, components={self.elementwise.components}, "
            f"family={self.elementwise.family!r}, context={self.context}"
        )

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z, ladj = self.elementwise.forward(x, self.conditioner(x, context))
        return z, ladj.sum(-1)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, total = torch.zeros_like(z), z.new_zeros(z.shape[:-1])
        for feature in range(self.features):
            raw = self.conditioner(x, context, feature)
            solved, ladj = self.elementwise.inverse(z[..., feature], raw)
            # A new tensor, not a change of the one that the passes before are to be differentiated by.
            x = torch.cat([x[..., :feature], solved.unsqueeze(-1), x[..., feature + 1 :]], dim=-1)
            total = total + ladj
        return x, total
