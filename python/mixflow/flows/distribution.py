"""The density of a flow as a distribution of ``torch.distributions``, in the data's own units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import logsigmoid

from ..checks import broadcast_shapes
from ..distributions import Mixture
from ..standard import BASES, Base
from ..transforms import Affine, Compose, MixtureCDF, Transform
from .arguments import like

__all__ = ["FlowDistribution", "mixture_of", "units_of"]


class Density(Protocol):
    """What a :class:`FlowDistribution` needs of a flow. :class:`mixflow.flows.Flow` has it, and builds on this file."""

    features: int
    context: int
    base: str
    event_shape: torch.Size
    data_to_base: Transform

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """As of a flow."""

    def transform(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As of a flow."""

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As of a flow."""

    def supports(self, x: Tensor) -> Tensor:
        """As of a flow."""

    def rsample(self, n: Sequence[int], context: Tensor | None = None) -> Tensor:
        """As of a flow."""

    def _known_context(self, context: Tensor | None) -> tuple[Tensor | None, Tensor | None]: ...


class FlowDistribution(Distribution):
    """A flow, given one context or a batch of contexts, as a Distribution of ``torch.distributions``.

    ``log_prob``, ``sample`` and ``rsample`` are those of the flow. A flow of one feature is a monotone map to its base,
    so it also has ``cdf`` and ``icdf``, for values (..., 1).

    Args:
        flow: the flow. Its parameters are shared, not copied.
        context: ``(*B, C)``, for the batch shape B; None for a flow without a context.

    Raises:
        ValueError: the flow takes a context and there is none, or it takes none and there is one.

    Example:
        >>> import torch
        >>> from mixflow import flows
        >>> flow = flows.coupling(features=2, layers=1, context=3)
        >>> posterior = flow.distribution(torch.zeros(4, 3))
        >>> posterior.batch_shape, posterior.event_shape, posterior.rsample((5,)).shape
        (torch.Size([4]), torch.Size([2]), torch.Size([5, 4, 2]))

    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - as torch has it
    has_rsample = True

    def __init__(self, flow: Density, context: Tensor | None = None, validate_args: bool | None = None) -> None:
        known, _ = flow._known_context(context)
        if flow.context and known is None:
            raise ValueError(f"context: expected a tensor of shape (..., {flow.context}), got None")
        self.flow, self.context = flow, context
        batch_shape = torch.Size() if known is None else known.shape[:-1]
        super().__init__(batch_shape, flow.event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """All real events, or those inside the flow's support."""
        if not self.flow.data_to_base.is_limited:
            return constraints.independent(constraints.real, len(self.event_shape))
        return _Inside(self.flow)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """The same distribution over a larger batch; ValueError if the batch does not broadcast."""
        new: FlowDistribution = self._get_checked_instance(FlowDistribution, _instance)
        new.flow, new.context = self.flow, self.context
        try:
            if self.context is not None:
                each = self.context.shape[len(self.batch_shape) :]
                new.context = self.context.expand(*batch_shape, *each)
            torch.empty(()).expand(self.batch_shape).expand(batch_shape)
        except RuntimeError:
            raise ValueError(
                f"batch_shape: expected one to which {tuple(self.batch_shape)} expands, got {tuple(batch_shape)}"
            ) from None
        super(FlowDistribution, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density in nats of ``value`` (..., *batch_shape, *event_shape)."""
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self.flow.log_prob(value, self.context)
        return log_prob.expand(broadcast_shapes(log_prob.shape, self.batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Samples (*sample_shape, *batch_shape, *event_shape), differentiable in the flow's parameters and context."""
        # A flow without a context is expanded by drawing as many samples.
        batch = self.batch_shape if self.context is None else ()
        return self.flow.rsample((*torch.Size(sample_shape), *batch), self.context)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The samples of :meth:`rsample`, without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def cdf(self, value: Tensor) -> Tensor:
        """The probability of values up to ``value`` (..., 1): (..., 1). NotImplementedError for several features."""
        base, sign = self._monotone()
        z, _ = self.flow.transform(value, self.context)
        point = self.flow.data_to_base.inside(value)
        beyond = ~self.flow.supports(value).unsqueeze(-1) & ~value.isnan()
        return torch.where(beyond, (value > point).to(z.dtype), torch.sigmoid(sign * base.to_logit(z)))

    def icdf(self, value: Tensor) -> Tensor:
        """The quantiles (..., 1) of probabilities (..., 1). NotImplementedError for several features."""
        base, sign = self._monotone()
        logit = sign * torch.logit(torch.as_tensor(value).reshape(-1) if not isinstance(value, Tensor) else value)
        z = base.from_log_tails(logsigmoid(logit), logsigmoid(-logit))
        return self.flow.inverse(z, self.context)[0]

    def _monotone(self) -> tuple[Base, Tensor]:
        """The base, and the sign (*B, 1) of the slope of the map from the feature to it: 1 or -1."""
        if self.flow.features != 1 or self.flow.base not in BASES:
            raise NotImplementedError("expected a flow of one feature with a map to a base: only that has a CDF")
        base = BASES[self.flow.base]
        own = like(self.flow.data_to_base)
        quartiles = torch.tensor([0.25, 0.75], dtype=own.dtype, device=own.device)
        z = base.from_log_tails(quartiles.log(), torch.log1p(-quartiles)).reshape(2, *(1,) * len(self.batch_shape), 1)
        with torch.no_grad():
            low, high = self.flow.inverse(z, self.context)[0]
        return base, torch.where(high > low, 1.0, -1.0).to(quartiles)


class _Inside(constraints.Constraint):
    """The events inside a flow's support."""

    def __init__(self, flow: Density) -> None:
        super().__init__()
        self.flow = flow
        self.event_dim = len(flow.event_shape)

    def check(self, value: Tensor) -> Tensor:
        """Whether each event lies inside."""
        return self.flow.supports(value)


def mixture_of(transform: Transform, base: str, context: Tensor | None) -> Distribution | None:
    """The mixture of one feature whose image under ``transform`` follows ``base``; None if there is no such mixture.

    Args:
        transform: data to base.
        base: one of ``mixflow.BASES``.
        context: ``(*B, C)``, as the transforms take it.

    """
    *before, last = transform.each() if isinstance(transform, Compose) else [transform]
    if transform.features != 1 or not isinstance(last, MixtureCDF) or last.base != base or not _are_affine(before):
        return None
    loc, scale = units_of(before, last.logits)
    logits, own_loc, own_log_scale = (parameter.squeeze(-2) for parameter in last._parameters_for(context))
    return Mixture(
        logits.to(loc.dtype), loc + scale * own_loc, own_log_scale.to(loc.dtype) + scale.log(), family=last.family
    )


def _are_affine(transforms: Sequence[Transform]) -> bool:
    return all(isinstance(transform, Affine) for transform in transforms)


def units_of(affine: Sequence[Transform], like: Tensor) -> tuple[Tensor, Tensor]:
    """``loc`` and ``scale`` (D,) of the data: x = loc + scale z, in a dtype that can hold them."""
    loc, scale = like.new_zeros(()), like.new_ones(())
    for transform in affine:
        assert isinstance(transform, Affine)
        dtype = transform.loc.dtype if transform._is_wide else like.dtype
        dtype = torch.promote_types(dtype, loc.dtype)
        own = transform.log_scale.to(dtype).exp()
        loc, scale = loc + scale * transform.loc.to(dtype), scale * own
    # LAPACK and the quantiles of torch's distributions have no half precision.
    full = torch.promote_types(loc.dtype, torch.float32)
    return loc.to(full), scale.to(full)
