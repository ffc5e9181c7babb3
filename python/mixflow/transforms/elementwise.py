"""The map that coupling and autoregressive transforms apply to each element, with parameters from a network."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import standard
from ..op import FAMILIES, affine_transform, cdf_transform
from ..start.mixtures import normal_quantiles
from .base import check_name

__all__ = ["ElementwiseMap"]


class ElementwiseMap:
    r"""A mixture CDF and the quantile function of the components' own distribution, then an affine map.

    .. math:: z = e^{a} \, G^{-1}(F(x)) + b

    G is the base that has the family's CDF, the logistic one for logistic components: F, then a logit, as in Ho et al.,
    "Flow++" (2019, arXiv:1902.00275). The map of a single component is then affine, and that of any mixture is affine
    in its tails, so that outliers grow no faster from one transform to the next. A family without such a base takes the
    logistic one. For ``student``, whose tails are powers, the map is then logarithmic in its tails, and heavy tails
    become exponential ones.

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
        self.base = standard.FAMILIES[family].base or "logistic"
        self.size = 3 * components + 2

    def start(self) -> Tensor:
        """The ``raw`` (size,) of a map that is the identity over a standard normal, to within 1e-3 nats from K = 8 on.

        Equal components would always stay equal, since their gradients are the same. So they lie at quantiles of the
        base, halved. Without a base of the family's own, components must lie further apart for the map to be straight.
        """
        part = (torch.arange(self.components) + 0.5) / self.components
        spread = 0.85 if standard.FAMILIES[self.family].base is None else 0.5
        loc = spread * standard.BASES[self.base].from_log_tails(part.log(), torch.log1p(-part))
        equal = torch.zeros_like(loc)
        z, _ = cdf_transform(normal_quantiles(), equal, loc, equal, family=self.family, base=self.base)
        return torch.cat([equal, loc, equal, z.new_zeros(1), -z.std().log().reshape(1)])

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` and ``log |dz/dx|``, both of the shape of ``x``."""
        return affine_transform(x, raw, family=self.family, base=self.base)

    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` and ``log |dx/dz|``, both of the shape of ``z``."""
        return affine_transform(z, raw, family=self.family, base=self.base, inverse=True)
