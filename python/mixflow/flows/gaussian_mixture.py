"""The full-covariance Gaussian mixture as a flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, MixtureSameFamily, MultivariateNormal

from ..checks import check_integer
from ..networks.conditioners import Network, context_network
from ..op import cdf_transform_inverse
from ..start.expectation import cholesky
from ..start.gaussian_mixture import gaussian_mixture
from ..transforms import Affine, Compose, Support
from ..transforms.base import full_precision, infinite_where_overflowed
from ..transforms.compose import frozen_kept
from .base import Flow
from .distribution import units_of

__all__ = ["GaussianMixture"]


class GaussianMixture(Flow):
    r"""A mixture of Gaussians with full covariances, for standardised data: a flow whose base is learned.

    .. math:: p(z) = \sum_k \mathrm{softmax}(logits)_k \, N\left(z; loc_k, (L_k L_k^T)^{-1}\right)

    ``transform`` only standardises. The mixture is the base, and there is no map to a distribution of
    ``mixflow.BASES``. Otherwise this usual baseline is fitted, scored, sampled and saved like any other flow. The lower
    triangles L (K, D, D) are Cholesky factors of the precisions. The parameters are their strictly lower part ``lower``
    and the logs of their diagonal, ``log_diagonal``. With a context, a network adds an offset to all parameters for
    each element, which is a mixture density network (Bishop, 1994).

    Args:
        features: D.
        components: K.
        context: C, the size of the context; 0 for none.
        support: where values can lie, as :class:`~mixflow.transforms.Support` takes it. The mixture is then fitted to
            the data after they are mapped to the real line.
        network: builds the network of the context, as :class:`~mixflow.transforms.MixtureCDF` takes it.
        embedding: a module that the context passes first.

    Raises:
        ValueError: a size is out of range, or the support is invalid.

    Example:
        >>> import torch
        >>> from mixflow import flows
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[1.0, 2.0], [0.0, 1.0]])
        >>> flow = flows.gaussian_mixture(features=2, components=1)
        >>> flow.initialize(x)
        >>> torch.allclose(x.T.cov(), flow.sample(100_000, seed=0).T.cov(), rtol=0.05)
        True

    """

    def __init__(
        self,
        features: int,
        components: int,
        context: int = 0,
        support: str | Sequence[Any] | None = None,
        network: Network | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        standardise = Affine(features, trainable=False)
        standardise.context = check_integer("context", context, 0)  # it is checked with x, but the map ignores it
        transform = standardise if support is None else Compose(Support(features, support), standardise)
        super().__init__(transform, embedding=embedding)
        self.base = "mixture"
        self.components = check_integer("components", components, 1)
        self.logits = nn.Parameter(torch.zeros(self.components))
        self.loc = nn.Parameter(torch.zeros(self.components, self.features))
        self.lower = nn.Parameter(torch.zeros(self.components, self.features * (self.features - 1) // 2))
        self.log_diagonal = nn.Parameter(torch.zeros(self.components, self.features))
        sizes = [parameter.numel() for parameter in self._shared]
        self.conditioner = context_network(self.context, sum(sizes), network)

    @property
    def _shared(self) -> list[Tensor]:
        return [self.logits, self.loc, self.lower, self.log_diagonal]

    def starts(self, x: Tensor, context: Tensor | None = None) -> dict[str, dict[str, Tensor]]:
        """Start from the mixture that EM finds in float64: see :mod:`mixflow.start.gaussian_mixture`.

        Few rows get fewer components than K. Spare components repeat the used ones, which does not change the density.
        With a context, the network starts with offsets close to 0.
        """
        with torch.no_grad(), frozen_kept(self):
            plain = super().starts(x, context)
            standardise = self.data_to_base
            if isinstance(standardise, Compose):
                support, standardise = standardise.each()
                x, _ = support(x)
            assert isinstance(standardise, Affine)
            # This runs on the CPU, which always has float64. Its random draws are then the same for every device.
            z = (x.cpu().double() - standardise.loc.cpu().double()) / standardise.log_scale.cpu().double().exp()
            fitted = gaussian_mixture(z, self.components)
            factor = _precision_factor(fitted.covariance)
            row, column = torch.tril_indices(self.features, self.features, -1)
            self.logits.copy_(fitted.log_weight)
            self.loc.copy_(fitted.loc)
            self.lower.copy_(factor[:, row, column])
            self.log_diagonal.copy_(factor.diagonal(dim1=-2, dim2=-1).log())
            context, _ = self._known_context(context)
            if self.conditioner is not None and context is not None:
                self.conditioner.initialize(context)
        return plain

    def _mixture(self, context: Tensor | None) -> Distribution | None:
        """In the data's units, x = loc + scale z. The precisions L L^T of z become those of x: L's rows over scales."""
        standardise = self.data_to_base
        if not isinstance(standardise, Affine):
            return None
        loc, scale = units_of([standardise], self.loc)
        logits, own_loc, _, factor = self._parameters_for(context)
        # The covariance of z is U U^T with U = L^-T, an upper triangle. With U^T = Q R it is R^T R.
        one = torch.eye(self.features, dtype=loc.dtype, device=loc.device)
        upper = torch.linalg.solve_triangular(factor.to(loc.dtype).mT, one, upper=True)
        lower = torch.linalg.qr((scale.unsqueeze(-1) * upper).mT).R.mT
        lower = lower * lower.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
        components = MultivariateNormal(loc + scale * own_loc, scale_tril=lower, validate_args=False)
        return MixtureSameFamily(Categorical(logits=logits.to(loc.dtype)), components)

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"features={self.features}, components={self.components}, context={self.context}"

    def _below(self) -> tuple[Tensor, Tensor]:
        row, column = torch.tril_indices(self.features, self.features, -1, device=self.lower.device)
        return row, column

    def _parameters_for(self, context: Tensor | None) -> list[Tensor]:
        """``logits``, ``loc``, ``log_diagonal`` and L (..., K, D, D), of the batch shape of a ``context``."""
        parameters = self._shared
        if self.conditioner is not None and context is not None:
            offsets = self.conditioner(context).split([shared.numel() for shared in parameters], dim=-1)
            parameters = [p + o.unflatten(-1, p.shape) for p, o in zip(parameters, offsets, strict=True)]
        logits, loc, lower, log_diagonal = parameters
        row, column = self._below()
        flat = lower.new_zeros(*lower.shape[:-1], self.features**2).index_copy(-1, row * self.features + column, lower)
        factor = flat.unflatten(-1, (self.features, self.features)) + torch.diag_embed(log_diagonal.exp())
        return [logits, loc, log_diagonal, factor]

    def _base_log_prob(self, z: Tensor, context: Tensor | None) -> Tensor:
        logits, loc, log_diagonal, factor = self._parameters_for(context)
        with full_precision(z):
            batch = "..." if factor.dim() > 3 else ""  # onnxruntime accepts no ellipsis that stands for no axis
            centred = z.unsqueeze(-2) - loc
            standard = torch.einsum(f"...kd,{batch}kde->...ke", centred, factor)
        standard = infinite_where_overflowed(standard, centred)
        log_density = log_diagonal.sum(-1) - 0.5 * standard.square().sum(-1)
        log_weight = torch.log_softmax(logits, dim=-1)
        return torch.logsumexp(log_weight + log_density, dim=-1) - 0.5 * self.features * math.log(2.0 * math.pi)

    def _base_sample(
        self, batch: tuple[int, ...], generator: torch.Generator | None, own: Tensor, context: Tensor | None
    ) -> Tensor:
        """Draws (*batch, D) that are a differentiable function of the parameters.

        This is the inverse of Rosenblatt's transform (1952). Features are drawn from the last to the first. Given the
        features after it, a feature follows a mixture in one dimension, and the draw is the quantile of that mixture at
        the probability of a normal number.

        Write y = z - loc_k and s_e = sum_d y_d L_de. The density of component k is the product over e of
        N(s_e; 0, 1) L_ee, and s_e depends on y_e and later features alone. Given the later features, y_e has the mean
        -sum_{d > e} y_d L_de / L_ee and the scale 1 / L_ee. The weight of the component is its initial weight times the
        factors of the features drawn so far.
        """
        logits, loc, log_diagonal, factor = self._parameters_for(context)
        noise = torch.randn(*batch, self.features, generator=generator, dtype=own.dtype, device=own.device)
        drawn: list[Tensor] = []
        rest = torch.zeros_like(loc)  # sum_{d > e} y_d L_de, for every e at once
        for e in range(self.features - 1, -1, -1):
            log_scale = -log_diagonal[..., e]
            centre = loc[..., e] - rest[..., e] * log_scale.exp()
            z_e, _ = cdf_transform_inverse(noise[..., e], logits, centre, log_scale, family="gaussian")
            drawn.insert(0, z_e)
            offset = z_e.unsqueeze(-1) - loc[..., e]
            rest = rest + offset.unsqueeze(-1) * factor[..., e, :]
            logits = logits + log_diagonal[..., e] - 0.5 * rest[..., e].square()
        return torch.stack(drawn, dim=-1)


def _precision_factor(covariance: Tensor) -> Tensor:
    """Lower triangles L (K, D, D) with ``L L^T`` the inverses of ``covariance`` (K, D, D)."""
    # This is the inverse of an upper factor of the covariance, from its reversed rows and columns. Nothing is squared.
    upper = cholesky(covariance.flip(-1, -2)).flip(-1, -2)
    one = torch.eye(covariance.shape[-1]).to(covariance)
    factor: Tensor = torch.linalg.solve_triangular(upper, one, upper=True).mT
    return factor
