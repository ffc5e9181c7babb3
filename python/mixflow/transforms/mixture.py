"""Mixture CDFs, feature by feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import check_integer
from ..networks.conditioners import Network, context_network
from ..op import BASES, FAMILIES, cdf_transform, cdf_transform_inverse
from ..start.mixtures import best_counts, normal_start, predictive_mixture
from ..start.robust import spread_of
from .base import Transform, check_name, density_where_finite

__all__ = ["MixtureCDF"]


class MixtureCDF(Transform):
    r"""Maps each feature by its own mixture CDF, and then by the inverse CDF of a base.

    .. math:: z = G^{-1}(F(x)), \quad F(x) = \sum_k \mathrm{softmax}(logits)_k \,
              C\left((x - loc_k) / e^{log\_scale_k}\right)

    With a normal base this is the marginal Gaussianization of Chen and Gopinath, "Gaussianization" (2000); see Meng et
    al., "Gaussianization Flows" (2020, arXiv:2003.01941). With a logistic family and a logistic base it is a mixture of
    sigmoids and then a logit, the deep sigmoidal layer of Huang et al., "Neural Autoregressive Flows" (2018,
    arXiv:1804.00779). The parameters ``logits``, ``loc`` and ``log_scale`` have the shape (D, K). With a context, a
    network adds an offset to them for each element, as in Ho et al., "Flow++" (2019, arXiv:1902.00275).

    Args:
        features: D.
        components: K, the number of components of each feature's mixture.
        family: the components' distribution, one of ``mixflow.FAMILIES``.
        base: the distribution that the transform maps to, one of ``mixflow.BASES``.
        context: C, the size of the context; 0 for none.
        network: builds the network of the context in place of a multilayer perceptron: ``network(inputs, outputs)``
            returns a module that maps (N, inputs) to (N, outputs).

    Raises:
        TypeError: ``network`` does not build a module.
        ValueError: a size is out of range, the family or base is unknown, or there is a network without a context.

    Example:
        >>> import torch
        >>> from mixflow.transforms import MixtureCDF
        >>> transform = MixtureCDF(features=3, components=4, family="logistic")
        >>> x = torch.randn(10, 3)
        >>> z, ladj = transform(x)
        >>> torch.allclose(transform.inverse(z)[0], x, atol=1e-4)
        True

    """

    def __init__(
        self,
        features: int,
        components: int,
        family: str = "gaussian",
        base: str = "normal",
        context: int = 0,
        network: Network | None = None,
    ) -> None:
        super().__init__(check_integer("features", features, 1), context)
        self.is_marginal = False  # whether networks follow; columns of repeated values are then not trained here
        self.follows_rows = False  # whether the number of components may follow the number of rows
        self.counts: Tensor | None = None  # (D,), how many components each feature is to use, if the caller found out
        self.used: Tensor | None = None  # (D,), how many each feature uses after initialisation; 1 means a normal
        self.components = check_integer("components", components, 1)
        self.family = check_name("family", family, FAMILIES)
        self.base = check_name("base", base, BASES)
        loc, log_scale = normal_start(self.components, family)
        shape = self.features, self.components
        self.logits = nn.Parameter(torch.zeros(shape))
        self.loc = nn.Parameter(loc.repeat(self.features, 1))
        self.log_scale = nn.Parameter(log_scale.repeat(self.features, 1))
        outputs = 3 * self.features * self.components
        self.conditioner = context_network(self.context, outputs, network)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set a mixture for each column of ``x`` (N, D) that predicts further rows: :mod:`mixflow.start.mixtures`."""
        spread_of(x)
        self.used = best_counts(x, self.components, self.family) if self.counts is None else self.counts
        self.counts = None  # they hold for these data alone
        self.set_mixtures(*predictive_mixture(x, self.components, self.family, self.used))
        if self.conditioner is not None and context is not None:
            self.conditioner.initialize(context)

    def set_mixtures(self, logits: Tensor, loc: Tensor, log_scale: Tensor) -> None:
        """Set the parameters, each (D, K)."""
        with torch.no_grad():
            self.logits.copy_(logits)
            self.loc.copy_(loc)
            self.log_scale.copy_(log_scale)

    def resize(self, components: int) -> None:
        """Start anew with another number of components, before any training. The parameters become new tensors."""
        fresh = MixtureCDF(self.features, check_integer("components", components, 1), self.family, self.base)
        self.components = self.arguments["components"] = fresh.components
        for name, value in fresh.named_parameters():
            setattr(self, name, nn.Parameter(value.detach().to(self.logits)))

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return (
            f"features={self.features}, components={self.components}, family={self.family!r}, "
            f"base={self.base!r}, context={self.context}"
        )

    def _parameters_for(self, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        if self.conditioner is None or context is None:
            return self.logits, self.loc, self.log_scale
        offsets = self.conditioner(context).unflatten(-1, (3, self.features, self.components))
        logits, loc, log_scale = offsets.unbind(-3)
        return self.logits + logits, self.loc + loc, self.log_scale + log_scale

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z, ladj = cdf_transform(x, *self._parameters_for(context), family=self.family, base=self.base)
        return z, _summed(ladj)

    def _log_density(self, x: Tensor, context: Tensor | None, base: str) -> Tensor:
        if base != self.base:
            return super()._log_density(x, context, base)
        # The density of x is the slope of F, whatever the base. So no quantile has to be computed.
        parameters = self._parameters_for(context)

        def log_density(x: Tensor) -> Tensor:
            return _summed(cdf_transform(x, *parameters, family=self.family, base="uniform")[1])

        return density_where_finite(x, self.event_shape, log_density)

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, ladj = cdf_transform_inverse(z, *self._parameters_for(context), family=self.family, base=self.base)
        return x, _summed(ladj)


def _summed(ladj: Tensor) -> Tensor:
    """The sum of ``ladj`` (..., D) over the features. For a single feature it is a view."""
    return ladj.squeeze(-1) if ladj.shape[-1] == 1 else ladj.sum(-1)
