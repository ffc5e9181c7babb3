"""The map that coupling and autoregressive transforms apply to each element, with parameters from a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..op import FAMILIES, affine_transform, cdf_transform, cdf_transform_inverse
from ..standard import BASES, Family
from ..standard import FAMILIES as RECORDS
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
        # A family without a base of its own is mapped to logits, and from there by its own quantile function.
        self.base = self.record.base or "logistic"
        self.size = 3 * components + 2

    @property
    def record(self) -> Family:
        """The family's record. It is looked up by name, since its functions cannot be pickled with a model."""
        return RECORDS[self.family]

    def start(self) -> Tensor:
        """The ``raw`` (size,) of a map that is the identity to within 1e-3 nats over a standard normal.

        Equal components would be the identity exactly, but their gradients are the same, so training would never part
        them. These lie at half the quantiles of their own distribution. A family without a base of its own has heavier
        tails, and its components lie at a fifth of the quantiles.
        """
        part = (torch.arange(self.components) + 0.5) / self.components
        logit = part.log() - torch.log1p(-part)
        loc = (0.5 if self.record.base else 0.2) * self.record.quantile_from_logit(logit)
        equal = torch.zeros_like(loc)
        z, _ = self._own(normal_quantiles(), [equal, loc, equal])
        return torch.cat([equal, loc, equal, z.new_zeros(1), -z.std().log().reshape(1)])

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` and ``log |dz/dx|``, both of the shape of ``x``."""
        if self.record.base is not None:
            return affine_transform(x, raw, family=self.family, base=self.base)
        *mixture, shift, log_scale = self._parts(raw)
        a, ladj = self._own(x, mixture)
        return a * log_scale.exp() + shift, ladj + log_scale

    def inverse(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` and ``log |dx/dz|``, both of the shape of ``z``."""
        if self.record.base is not None:
            return affine_transform(z, raw, family=self.family, base=self.base, inverse=True)
        *mixture, shift, log_scale = self._parts(raw)
        a = (z - shift) * (-log_scale).exp()
        logit = self.record.log_cdf(a) - self.record.log_sf(a)
        x, ladj = cdf_transform_inverse(logit, *mixture, family=self.family, base=self.base)
        return x, ladj - self._log_slope(logit, a) - log_scale

    def _own(self, x: Tensor, mixture: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The image ``C^-1(F(x))`` under the family's own quantile function, and its log slope."""
        image, ladj = cdf_transform(x, *mixture, family=self.family, base=self.base)
        if self.record.base is not None:
            return image, ladj
        a = self.record.quantile_from_logit(image)
        return a, ladj + self._log_slope(image, a)

    def _parts(self, raw: Tensor) -> tuple[Tensor, ...]:
        """``logits``, ``loc`` and ``log_scale`` (..., K), the shift (...) and the log scale (...) of the affine map."""
        *mixture, shift, log_scale = raw.split([self.components] * 3 + [1, 1], dim=-1)
        return *mixture, shift.squeeze(-1), log_scale.squeeze(-1)

    def _log_slope(self, logit: Tensor, a: Tensor) -> Tensor:
        """``log da/dlogit = log C(a) + log C(-a) - log c(a)`` of the family's quantile function at ``logit``."""
        return BASES["logistic"].log_prob(logit) - self.record.log_pdf(a)
