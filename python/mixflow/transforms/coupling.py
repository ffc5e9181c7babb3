"""Coupling: one half of the features decides on the map of the other half."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_integer
from ..networks.conditioners import Network, conditioner
from ..networks.inputs import join
from .base import Transform
from .elementwise import ElementwiseMap

__all__ = ["Coupling"]


class Coupling(Transform):
    """One half of the features passes unchanged; from it a network computes the parameters of a map of the other half.

    The map is :class:`~mixflow.transforms.elementwise.ElementwiseMap`: a mixture CDF, the quantile function of the
    components' own distribution (a logit for logistic components), and an affine map, as in Ho et al., "Flow++" (2019,
    arXiv:1902.00275). Each direction takes one pass of the network. The map starts close to the identity.

    Args:
        features: D, at least 2.
        components: K, the number of components of each mixture.
        hidden: widths of the network's hidden layers, by default (64, 64).
        mask: for each feature, whether it passes unchanged. By default the features of even index pass.
        family: the components' distribution, one of ``mixflow.FAMILIES``.
        context: C, the size of a context that is given to the network as well; 0 for none.
        network: builds the network in place of the multilayer perceptron that ``hidden`` describes:
            ``network(inputs, outputs)`` returns a module that maps (N, inputs) to (N, outputs).

    Raises:
        TypeError: ``network`` does not build a module.
        ValueError: a size is out of range, the family is unknown, the mask lets all or none of the features pass, or
            both ``hidden`` and ``network`` are given. A call raises it if the network returns another shape.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Coupling
        >>> transform = Coupling(3, components=4, mask=[True, False, True])
        >>> x = torch.randn(10, 3)
        >>> z, ladj = transform(x)
        >>> torch.equal(z[:, [0, 2]], x[:, [0, 2]]), torch.allclose(transform.inverse(z)[0], x, atol=1e-4)
        (True, True)

    """

    passing: Tensor
    mapped: Tensor

    def __init__(
        self,
        features: int,
        components: int = 8,
        hidden: Sequence[int] | None = None,
        *,
        mask: Sequence[bool] | None = None,
        family: str = "logistic",
        context: int = 0,
        network: Network | None = None,
    ) -> None:
        super().__init__(check_integer("features", features, 2), context)
        self.mask = [index % 2 == 0 for index in range(self.features)] if mask is None else [bool(m) for m in mask]
        if len(self.mask) != self.features or len(set(self.mask)) != 2:
            raise ValueError(f"mask: expected {self.features} values, both True and False among them, got {self.mask}")
        passing = [index for index, passes in enumerate(self.mask) if passes]
        mapped = [index for index, passes in enumerate(self.mask) if not passes]
        for name, order in (("passing", passing), ("mapped", mapped)):
            self.register_buffer(name, torch.tensor(order), persistent=False)
        self.elementwise = ElementwiseMap(check_integer("components", components, 1), family)
        start = self.elementwise.start().repeat(len(mapped))
        self.conditioner = conditioner(len(passing) + self.context, len(start), hidden, start, network)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Standardise the network's inputs; the map stays close to the identity."""
        self.conditioner.initialize(join(x[..., self.passing], context))

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        passing = [index for index, passes in enumerate(self.mask) if passes]
        return (
            f"features={self.features}, components={self.elementwise.components}, passing={passing}, "
            f"family={self.elementwise.family!r}, context={self.context}"
        )

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        mapped = x.index_select(-1, self.mapped)
        image, ladj = self.elementwise.forward(mapped, self._raw(x, context))
        return x.index_copy(-1, self.mapped, image), ladj.sum(-1)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        mapped = z.index_select(-1, self.mapped)
        image, ladj = self.elementwise.inverse(mapped, self._raw(z, context))
        return z.index_copy(-1, self.mapped, image), ladj.sum(-1)

    def _raw(self, values: Tensor, context: Tensor | None) -> Tensor:
        """The parameters of the map, from the features of ``values`` that pass; these are the same in x and z."""
        raw = self.conditioner(join(values.index_select(-1, self.passing), context))
        return torch.unflatten(raw, -1, (-1, self.elementwise.size))
