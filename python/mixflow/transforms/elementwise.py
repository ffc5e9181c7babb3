"""The map that coupling and autoregressive transforms apply to each element, with parameters from a network."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..op import BASES, FAMILIES, affine_transform, cdf_transform
from ..standard import BASES as DISTRIBUTIONS
from ..start.mixtures import normal_quantiles
from .base import check_name

__all__ = ["ElementwiseMap"]


class ElementwiseMap:
    r"""A mixture CDF and the quantile function of the components' own distribution, then an affine map.

    .. math:: z = e^{a} \, G^{-1}(F(x)) + b

    G is the base that has the family's CDF, the logistic one for logistic components: F, then a logit, as in Ho et al.,
    "Flow++" (2019, arXiv:1902.00275). The map of a single component is then affine, and that of any mixture is affine
    in its tails, so that outliers grow no faster from one transform to the next.

    Parameters come as ``raw`` (..., ``size``), of which the first K are logits, then K locations, K log scales, b, a.

    Args:
        components: K.
        family: one of ``mixflow.FAMILIES``.

    Example:
        >>> import torch
        >>> from mixflow.transforms.elementwise import ElementwiseMap
        >>> elementwise = ElementwiseMap(8, "logistic")
        >>> x = torch.tensor([-1.0, 0.0, 1.0])
        >>> z, ladj = elementwise.forward(x, elementwise.start())
        >>> torch.allclose(z, x, atol=0.05)
        True

    """

    def __init__(self, components: int, family: str) -> None:
        self.components = components
        self.family = check_name("family", family, FAMILIES)
        self.base = _own_base(family)
        self.size = 3 * components + 2

    def start(self) -> Tensor:
        """The ``raw`` (size,) of a map that is the identity to within 1e-4 nats over a standard normal.

        Equal components would be the identity exactly, and would stay equal for ever: their gradients are the same.
        These lie at half the quantiles of their own distribution.
        """
        part = (torch.arange(self.components) + 0.5) / self.components
        loc = 0.5 * DISTRIBUTIONS[self.base].from_log_tails(part.log(), torch.log1p(-part))
        equal = torch.zeros_like(loc)
        z, _ = cdf_transform(normal_quantiles(), equal, loc, equal, family=self.family, base=self.base)
        return torch.cat([equal, loc, equal, z.new_zeros(1), -z.std().log().reshape(1)])

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` and ``log |dz/dx|``, both of the shape of ``x``."""
        return affine_transform(x, raw, family=self.family, base=self.base)

    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` and ``log |dx/dz|``, both of the shape of ``z``."""
        return affine_transform(z, raw, family=self.family, base=self.base, inverse=True)


@functools.cache
def _own_base(family: str) -> str:
    """The base whose CDF is the family's own, so that a single standard component maps every x to itself."""
    x, zero = torch.tensor(2.0, device="cpu"), torch.zeros(1, device="cpu")

    def distance(base: str) -> float:
        return abs(cdf_transform(x, zero, zero, zero, family=family, base=base)[0].item() - 2.0)

    return min(BASES, key=distance)
