"""Autoregressive transforms: the features before a feature decide on its map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_integer
from ..networks.autoregressive import FeatureByFeature, MaskedMLP
from ..networks.conditioners import HIDDEN, Network, require_no_hidden
from .base import Transform
from .elementwise import ElementwiseMap

__all__ = ["Autoregressive"]


class Autoregressive(Transform):
    """Maps each feature; a masked network computes the parameters of its map from the features before it.

    The map is :class:`~mixflow.transforms.elementwise.ElementwiseMap`, the network
    :class:`~mixflow.networks.autoregressive.MaskedMLP`: a neural autoregressive flow (Huang et al., 2018,
    arXiv:1804.00779), here with a mixture of any family. Each direction takes the work of one pass of the network. The
    inverse does this work in D parts, one feature after the other. The map starts close to the identity.

    Args:
        features: D.
        components: K, the number of components of each mixture.
        hidden: widths of the network's hidden layers, by default (64, 64).
        family: the components' distribution, one of ``mixflow.FAMILIES``.
        context: C, the size of a context that every feature's parameters depend on; 0 for none.
        network: builds a network in place of the masked one that ``hidden`` describes: ``network(inputs, outputs)``
            returns a module that maps (N, inputs) to (N, outputs). The module needs no masks, because
            :class:`~mixflow.networks.autoregressive.FeatureByFeature` calls it once for each feature.

    Raises:
        TypeError: ``network`` does not build a module.
        ValueError: a size is out of range, the family is unknown, or both ``hidden`` and ``network`` are given. A call
            raises it if the network returns another shape.

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
        hidden: Sequence[int] | None = None,
        *,
        family: str = "logistic",
        context: int = 0,
        network: Network | None = None,
    ) -> None:
        super().__init__(check_integer("features", features, 1), context)
        self.elementwise = ElementwiseMap(check_integer("components", components, 1), family)
        self.conditioner = self._conditioner(hidden, network)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Standardise the network's inputs; the map stays close to the identity."""
        self.conditioner.initialize(x, context)

    def _conditioner(self, hidden: Sequence[int] | None, network: Network | None) -> MaskedMLP | FeatureByFeature:
        size, start = self.elementwise.size, self.elementwise.start()
        if network is None:
            return MaskedMLP(self.features, size, HIDDEN if hidden is None else hidden, self.context, start)
        require_no_hidden(hidden)
        return FeatureByFeature(network, self.features, size, self.context, start)

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
        known: list[Tensor] = []
        total = z.new_zeros(z.shape[:-1])
        values = self.conditioner.one_by_one(z, context)
        for feature in range(self.features):
            x, ladj = self.elementwise.inverse(z[..., feature], values(known))
            known.append(x)
            total = total + ladj
        return torch.stack(known, dim=-1), total
