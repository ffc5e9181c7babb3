"""The full-covariance Gaussian mixture as a flow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_integer
from ..conditioners import MLP
from ..transforms import Affine, Compose, Support
from ..transforms.compose import frozen_kept
from .base import Flow
from .expectation import cholesky, mixture

__all__ = ["GaussianMixture"]


class GaussianMixture(Flow):
    r"""A mixture of Gaussians with full covariances, of standardised data: a flow whose base is what is learned.

    .. math:: p(z) = \sum_k \mathrm{softmax}(logits)_k \, N\left(z; loc_k, (L_k L_k^T)^{-1}\right)

    ``transform`` standardises, and ``base`` is no distribution of ``mixflow.BASES``: there is no map to one, but for
    that, the usual baseline is fitted, scored, sampled and saved as any flow is. The lower triangles L (K, D, D) are
    Cholesky factors of the precisions, kept as their strictly lower part ``lower`` and the logs of their diagonal. With
    a context, a network adds to all of them an offset for each element: a mixture density network (Bishop, 1994).

    Args:
        features: D.
        components: K.
        context: C, the size of the context; 0 for none.
        support: where values can lie, as :class:`~mixflow.transforms.Support` takes it; the mixture is then one of the
            data as they are on the real line.

    Raises:
        ValueError: a size is out of range, or the support is none.

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
        self, features: int, components: int, context: int = 0, support: str | Sequence[Any] | None = None
    ) -> None:
        standardise = Affine(features, trainable=False)
        standardise.context = check_integer("context", context, 0)  # checked with x, and of no effect on the map
        super().__init__(standardise if support is None else Compose(Support(features, support), standardise))
        self.base = "mixture"
        self.components = check_integer("components", components, 1)
        self.logits = nn.Parameter(torch.zeros(self.components))
        self.loc = nn.Parameter(torch.zeros(self.components, self.features))
        self.lower = nn.Parameter(torch.zeros(self.components, self.features * (self.features - 1) // 2))
        self.log_diagonal = nn.Parameter(torch.zeros(self.components, self.features))
        sizes = [parameter.numel() for parameter in self._shared]
        self.conditioner = MLP(self.context, sum(sizes)) if self.context else None

    @property
    def _shared(self) -> list[Tensor]:
        return [self.logits, self.loc, self.lower, self.log_diagonal]

    def starts(self, x: Tensor, context: Tensor | None = None) -> dict[str, dict[str, Tensor]]:
        """Start from the mixture that EM finds, in float64: see :func:`mixflow.flows.expectation.mixture`.

        Few rows are given fewer components than K: spare ones repeat the used ones, and the density is that of these.
        With a context, the network starts from offsets of almost nothing.
        """
        with torch.no_grad(), frozen_kept(self):
            plain = super().starts(x, context)
            standardise = self.data_to_base
            if isinstance(standardise, Compose):
                support, standardise = standardise.each()
                x, _ = support(x)
            assert isinstance(standardise, Affine)
            # Fitted on the CPU, which has float64 everywhere. The draws are then the same for every device, too.
            z = (x.cpu().double() - standardise.loc.cpu().double()) / standardise.log_scale.cpu().double().exp()
            fitted = mixture(z, self.components)
            factor = _precision_factor(fitted.covariance)
            row, column = torch.tril_indices(self.features, self.features, -1)
            self.logits.copy_(fitted.log_weight)
            self.loc.copy_(fitted.loc)
            self.lower.copy_(factor[:, row, column])
            self.log_diagonal.copy_(factor.diagonal(dim1=-2, dim2=-1).log())
            if self.conditioner is not None and context is not None:
                self.conditioner.initialize(context)
        return plain

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
        standard = torch.einsum("...kd,...kde->...ke", z.unsqueeze(-2) - loc, factor)
        log_density = log_diagonal.sum(-1) - 0.5 * standard.square().sum(-1)
        log_weight = torch.log_softmax(logits, dim=-1)
        return torch.logsumexp(log_weight + log_density, dim=-1) - 0.5 * self.features * math.log(2.0 * math.pi)

    def _base_sample(self, n: int, generator: torch.Generator | None, own: Tensor, context: Tensor | None) -> Tensor:
        logits, loc, _, factor = self._parameters_for(context)
        weight = torch.softmax(logits, dim=-1)
        if logits.ndim == 1:
            which = torch.multinomial(weight, n, replacement=True, generator=generator)
            loc, factor = loc[which], factor[which]
        else:
            which = torch.multinomial(weight, 1, generator=generator).squeeze(-1)
            rows = torch.arange(n, device=own.device)
            loc, factor = loc[rows, which], factor[rows, which]
        standard = torch.randn(n, 1, self.features, generator=generator, dtype=own.dtype, device=own.device)
        # LAPACK knows no half precision.
        full = torch.promote_types(own.dtype, torch.float32)
        offset = torch.linalg.solve_triangular(factor.to(full), standard.to(full), upper=False, left=False)
        z: Tensor = loc + offset.squeeze(1).to(own.dtype)
        return z


def _precision_factor(covariance: Tensor) -> Tensor:
    """Lower triangles L (K, D, D) with ``L L^T`` the inverses of ``covariance`` (K, D, D)."""
    # The inverse of an upper factor of the covariance, whose rows and columns are in reverse: nothing is squared.
    upper = cholesky(covariance.flip(-1, -2)).flip(-1, -2)
    one = torch.eye(covariance.shape[-1]).to(covariance)
    factor: Tensor = torch.linalg.solve_triangular(upper, one, upper=True).mT
    return factor
