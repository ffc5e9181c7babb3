"""A mixture as a ``torch.distributions.Distribution``."""

from __future__ import annotations

import math
import numbers
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import logsigmoid

from .. import standard
from ..checks import broadcast_shapes
from ..op import cdf_transform, cdf_transform_inverse, check_mixture, components_last, discretized_log_prob

__all__ = ["Mixture"]

Value: TypeAlias = Tensor | float  # a number is a tensor of the parameters' dtype and device

# Of the entropy's quadrature: panels end where a component's CDF has these logits; and the nodes in each panel.
_PANEL_LOGITS, _PANEL_NODES = range(-40, 41, 2), 16


def _log_sigmoid(z: Tensor) -> Tensor:
    """Torch's ``logsigmoid``, NaN-safe: an incoming gradient of zero stays zero where z is NaN."""
    is_nan = z.isnan()
    return torch.where(is_nan, z, logsigmoid(torch.where(is_nan, 0.0, z)))


class Mixture(Distribution):
    r"""A mixture of one family's distributions, ``F(x) = sum_k softmax(logits)_k C((x - loc_k) / exp(log_scale_k))``.

    Everything is exact in both tails and differentiable in every argument, twice. The gradients of ``icdf`` and
    ``rsample`` are those of the implicit function. The parameters may broadcast against each other. They are kept as
    given: neither ``expand`` nor a larger batch of values copies them.

    Args:
        logits: Unnormalised log-weights, shape ``(..., K)``; ``-inf`` is a weight of zero.
        loc: Locations of the components, ``(..., K)``, in the units of the values.
        log_scale: Natural logarithms of their scales, ``(..., K)``.
        family: One of ``mixflow.FAMILIES``.
        validate_args: Whether to check parameters and values at every call, as in every torch Distribution.
        dim: The axis of the components in the three parameters, as in :func:`mixflow.cdf_transform`. The properties
            ``logits``, ``loc`` and ``log_scale`` have this axis at the end.

    Raises:
        TypeError: As in :func:`mixflow.cdf_transform`.
        ValueError: As in :func:`mixflow.cdf_transform`; a parameter or a value is outside its constraint.

    Source: gradients of samples as in Figurnov et al., "Implicit Reparameterization Gradients" (2018).

    Example:
        >>> import torch, mixflow
        >>> m = mixflow.Mixture(torch.zeros(2), torch.tensor([-2.0, 2.0]), torch.zeros(2), family="logistic")
        >>> m.batch_shape, m.sample((3,)).shape
        (torch.Size([]), torch.Size([3]))
        >>> f"{m.mean:.3f} {m.stddev:.3f} {m.cdf(torch.tensor(0.0)):.3f} {m.log_sf(torch.tensor(200.0)):.3f}"
        '0.000 2.700 0.500 -198.675'

    """

    arg_constraints = {  # noqa: RUF012 - as torch has it
        "logits": constraints.real_vector,
        "loc": constraints.real_vector,
        "log_scale": constraints.real_vector,
    }
    support = constraints.real
    has_rsample = True

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        log_scale: Tensor,
        family: str = "gaussian",
        validate_args: bool | None = None,
        dim: int = -1,
    ) -> None:
        logits, loc, log_scale = components_last((logits, loc, log_scale), dim)
        check_mixture(logits, loc, log_scale, family)
        self.family, self._parameters = family, (logits, loc, log_scale)
        batch_shape = broadcast_shapes(*(p.shape[:-1] for p in self._parameters))
        super().__init__(batch_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Mixture:
        """The same mixture over a larger batch, as a view; ``ValueError`` where the batch does not broadcast."""
        new = cast(Mixture, self._get_checked_instance(Mixture, _instance))
        try:
            torch.empty(()).expand(self.batch_shape).expand(batch_shape)
        except RuntimeError:
            raise ValueError(
                f"batch_shape: expected one to which {tuple(self.batch_shape)} expands, got {tuple(batch_shape)}"
            ) from None
        new.family, new._parameters = self.family, self._parameters
        super(Mixture, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        return f"Mixture(family: {self.family!r}, components: {self.components}, batch: {tuple(self.batch_shape)})"

    @property
    def components(self) -> int:
        """The number K of components."""
        return self._parameters[0].shape[-1]

    @property
    def weights(self) -> Tensor:
        """The weights of the components, ``softmax(logits)``: ``(*batch_shape, K)``."""
        return self.logits.softmax(-1)

    @property
    def logits(self) -> Tensor:
        """The log-weights as given, expanded to ``(*batch_shape, K)``."""
        return self._expanded(0)

    @property
    def loc(self) -> Tensor:
        """The locations, expanded to ``(*batch_shape, K)``."""
        return self._expanded(1)

    @property
    def log_scale(self) -> Tensor:
        """The log-scales, expanded to ``(*batch_shape, K)``."""
        return self._expanded(2)

    def _expanded(self, index: int) -> Tensor:
        return self._parameters[index].expand(*self.batch_shape, self.components)

    def _tensor(self, name: str, value: Any, like: Tensor | None = None) -> Tensor:
        """A number as a tensor with the dtype and device of ``like``, or of the parameters; a tensor as it is."""
        if isinstance(value, Tensor):
            return value
        if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name}: expected a torch tensor or a number, got {type(value).__name__}")
        like = self._parameters[0] if like is None else like
        return torch.tensor(float(value), dtype=like.dtype, device=like.device)

    def _to_base(self, value: Value, base: str) -> tuple[Tensor, Tensor]:
        """``z = G^-1(F(value))`` for the base with CDF G, and ``log |dz/dvalue|``."""
        value = self._tensor("value", value)
        if self._validate_args:
            self._validate_sample(value)
        return cdf_transform(self._batched(value), *self._parameters, family=self.family, base=base)

    def _batched(self, value: Tensor) -> Tensor:
        """``value`` with the axes of the batch, some of which may be those that ``expand`` added."""
        return value.expand(broadcast_shapes(value.shape, self.batch_shape))

    def log_prob(self, value: Value) -> Tensor:
        """The log-density, in nats, at a tensor or a number; -inf at infinity."""
        value = self._tensor("value", value)
        return self._to_base(value, "uniform")[1].masked_fill(self._batched(value).isinf(), -math.inf)

    def cdf(self, value: Value) -> Tensor:
        """``F(value)``, with full relative accuracy in the lower tail; for the upper tail see :meth:`log_sf`."""
        return self._to_base(value, "uniform")[0]

    def log_cdf(self, value: Value) -> Tensor:
        """``log F(value)`` in nats, exact however far out in either tail."""
        return _log_sigmoid(self._to_base(value, "logistic")[0])

    def log_sf(self, value: Value) -> Tensor:
        """``log(1 - F(value))`` in nats, exact however far out in either tail."""
        return _log_sigmoid(-self._to_base(value, "logistic")[0])

    def icdf(self, value: Value) -> Tensor:
        """The quantile ``F^-1(value)``; infinite at 0 and 1, NaN outside them (``ValueError`` when validating)."""
        value = self._tensor("value", value)
        if self._validate_args and not bool(constraints.unit_interval.check(value).all()):
            raise ValueError("value: expected probabilities in [0, 1], got some outside")
        return cdf_transform_inverse(self._batched(value), *self._parameters, family=self.family, base="uniform")[0]

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Samples of shape ``(*sample_shape, *batch_shape)``, differentiable in the parameters.

        The random number is the logit of a probability: unlike the probability itself, it reaches both tails.
        """
        like = self._parameters[0]
        dtype = like.dtype if like.dtype == torch.float64 else torch.float32
        shape = self._extended_shape(sample_shape)
        z = standard.BASES["logistic"].sample(shape, dtype=dtype, device=like.device)
        return cdf_transform_inverse(z, *self._parameters, family=self.family, base="logistic")[0].to(like.dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples as :meth:`rsample` draws them, without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    @property
    def mean(self) -> Tensor:
        """``sum_k w_k loc_k`` over the components of positive weight."""
        return (self.weights * self._where_used(self.loc)).sum(-1)

    @property
    def variance(self) -> Tensor:
        """``sum_k w_k (v scale_k^2 + (loc_k - mean)^2)`` over the components of positive weight.

        ``v`` is the variance of the family's standard distribution. If it is infinite, so is the result.
        """
        spread = standard.FAMILIES[self.family].variance * (2 * self._where_used(self.log_scale)).exp()
        square = spread + (self._where_used(self.loc) - self.mean.unsqueeze(-1)) ** 2
        return (self.weights * self._where_used(square)).sum(-1)

    def _where_used(self, values: Tensor) -> Tensor:
        """``values`` (..., K) with 0 for each component of weight zero, whose infinity would be 0 * inf = NaN."""
        return values.masked_fill(self.weights == 0.0, 0.0)

    def entropy(self) -> Tensor:
        """The differential entropy ``-E[log f(X)]`` in nats, by quadrature.

        The line is cut at 41 quantiles of every component, so that there are nodes near each component, whatever its
        scale. Gauss and Legendre's rule has 16 nodes in each panel: ``656 K`` evaluations of the density, all in
        memory at once. The integral leaves out what lies beyond the quantiles of probability e^-40. In float64 the
        error is below 1e-10.
        """
        with torch.no_grad():  # the value of the integral does not depend on where the line is cut
            logit = torch.tensor(_PANEL_LOGITS, dtype=torch.float64, device=self.loc.device)
            quantile = standard.FAMILIES[self.family].quantile_from_logit(logit).to(self.loc.dtype)
            edges = self.loc.unsqueeze(-1) + self.log_scale.exp().unsqueeze(-1) * quantile
            edges = edges.flatten(-2).sort(-1).values.movedim(-1, 0)
            nodes, weights = (torch.from_numpy(v).to(edges) for v in np.polynomial.legendre.leggauss(_PANEL_NODES))
            nodes, weights = (v.reshape(-1, *(1,) * edges.dim()) for v in (nodes, weights))
            half = 0.5 * (edges[1:] - edges[:-1])
            points, widths = edges[:-1] + half * (1.0 + nodes), half * weights
        log_f = self._to_base(points, "uniform")[1].clamp(min=-1e4)  # exp(-1e4) is zero in any dtype
        # A mixture with a parameter that is not finite has the entropy NaN. A sum puts it in, not a product: if the
        # caller masks this entropy, its gradient of zero stays zero, whereas 0 * NaN would be NaN.
        # `widths - widths` is 0, or NaN where a width is NaN.
        bad = ~(widths * log_f).isfinite()
        log_f, missing = torch.where(bad, 0.0, log_f), log_f + (widths - widths)
        return -torch.where(bad, missing, torch.where(bad, 0.0, widths) * log_f.exp() * log_f).sum((0, 1))

    def discretized_log_prob(self, value: Value, lower: Value, upper: Value) -> Tensor:
        """``log P(lower < X <= upper)`` in nats of the bin that holds each value: the likelihood of data in bins.

        Args:
            value: A tensor of shape ``(...)`` or a number, like the edges. Only its shape and dtype matter; with
                ``validate_args``, a value outside its bin is an error.
            lower: Lower edges, broadcasting against ``value``; ``-inf`` for the first bin.
            upper: Upper edges, broadcasting against ``value``; ``inf`` for the last bin.

        Returns:
            As :func:`mixflow.discretized_log_prob`, of the broadcast shape of values, edges and batch.

        Raises:
            TypeError: An argument is neither a tensor nor a number.
            ValueError: A value lies outside its bin, or shapes do not broadcast.

        Example:
            >>> import torch, mixflow
            >>> m = mixflow.Mixture(torch.zeros(1), torch.zeros(1), torch.zeros(1))
            >>> f"{m.discretized_log_prob(torch.tensor(0.5), -torch.inf, 1.0):.4f}"
            '-0.1728'

        """
        value = self._tensor("value", value)
        low, high = (self._tensor(n, e, value).to(value) for n, e in (("lower", lower), ("upper", upper)))
        if self._validate_args:
            self._validate_sample(value)
            if not bool(((low <= value) & (value <= high)).all()):
                raise ValueError("value: expected values between lower and upper, got some outside")
        low = self._batched(low.expand(broadcast_shapes(low.shape, value.shape)))
        return discretized_log_prob(low, high, *self._parameters, family=self.family)
