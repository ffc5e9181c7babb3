"""The mixture-CDF transform as a ``torch.distributions`` Transform."""

from __future__ import annotations

import functools
import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from torch.distributions.transforms import _InverseTransform

from .. import standard
from ..checks import broadcast_shapes
from ..op import cdf_transform, cdf_transform_inverse, check_mixture, components_last

__all__ = ["MixtureCDFTransform"]


@functools.cache
def _support(base: str) -> Any:
    """The support of a base as torch's constraint: from its quantile of 0 to its quantile of 1."""
    zero, one = torch.tensor(-math.inf), torch.tensor(0.0)  # logarithms
    quantile = standard.BASES[base].from_log_tails
    ends = quantile(zero, one).item(), quantile(one, zero).item()
    named = {(-math.inf, math.inf): constraints.real, (0.0, 1.0): constraints.unit_interval}
    return named.get(ends) or constraints.interval(*ends)


class _Inverse(_InverseTransform):
    """Torch's inverse of a :class:`MixtureCDFTransform`, with value and log-derivative from one solve."""

    _inv: MixtureCDFTransform

    def call_and_ladj(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` and ``log |dx/dz|`` in nats from one solve: the method that zuko calls."""
        if not self._inv._cache_size:
            return self._inv._solve(z)
        x = self(z)
        return x, self.log_abs_det_jacobian(z, x)


class MixtureCDFTransform(Transform):
    r"""The transform ``z = G^-1(F(x))`` of :func:`mixflow.cdf_transform` as one of ``torch.distributions``.

    It is elementwise (``event_dim`` is 0), bijective and increasing, from the real line to the base's support. Its
    inverse, ``.inv``, maps base samples to data: ``TransformedDistribution(base, [transform.inv])`` is the mixture.

    Args:
        logits: Unnormalised log-weights, shape ``(..., K)``; batch axes broadcast against the elements.
        loc: Locations of the components, ``(..., K)``, in the units of ``x``.
        log_scale: Natural logarithms of their scales, ``(..., K)``.
        family: One of ``mixflow.FAMILIES``.
        base: One of ``mixflow.BASES``.
        cache_size: 1 to keep the last pair and its log-derivative, so that the inverse of a result and its Jacobian
            take no time; 0 to keep nothing.
        dim: The axis of the components in the three parameters, as in :func:`mixflow.cdf_transform`.

    Raises:
        TypeError: As in :func:`mixflow.cdf_transform`.
        ValueError: As in :func:`mixflow.cdf_transform`; ``cache_size`` is neither 0 nor 1.

    Source: the "mixture CDF" flow layer of Ho et al., "Flow++" (2019).

    Example:
        >>> import torch, mixflow
        >>> t = mixflow.MixtureCDFTransform(torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.zeros(2), base="logistic")
        >>> x = torch.tensor([-3.0, 0.0, 3.0])
        >>> torch.allclose(t.inv(t(x)), x, atol=1e-5), t.sign
        (True, 1)

    """

    domain = constraints.real
    bijective = True
    sign = 1

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        log_scale: Tensor,
        family: str = "gaussian",
        base: str = "normal",
        cache_size: int = 0,
        dim: int = -1,
    ) -> None:
        logits, loc, log_scale = components_last((logits, loc, log_scale), dim)
        check_mixture(logits, loc, log_scale, family, base)
        super().__init__(cache_size=cache_size)
        self.logits, self.loc, self.log_scale = logits, loc, log_scale
        self.family, self.base = family, base
        self._cached_ladj: tuple[Any, Any, Any] = None, None, None

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def codomain(self) -> Any:
        """The support of the base."""
        return _support(self.base)

    @property
    def inv(self) -> Transform:
        """The inverse, from the base to the data; ``t.inv.inv is t``. One solve serves its ``call_and_ladj``."""
        if self._inv is None:
            self._inv = _Inverse(self)
        return self._inv

    @property
    def _parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.logits, self.loc, self.log_scale

    def with_cache(self, cache_size: int = 1) -> MixtureCDFTransform:
        """This transform with another ``cache_size``, on the same parameters."""
        if self._cache_size == cache_size:
            return self
        return MixtureCDFTransform(*self._parameters, self.family, self.base, cache_size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MixtureCDFTransform) or (self.family, self.base) != (other.family, other.base):
            return False
        pairs = zip(self._parameters, other._parameters, strict=True)
        return all(mine is theirs or torch.equal(mine, theirs) for mine, theirs in pairs)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"MixtureCDFTransform(family: {self.family!r}, base: {self.base!r}, components: {self.logits.shape[-1]})"

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` and ``log |dz/dx|`` in nats from one call: the method that zuko calls."""
        z, ladj = cdf_transform(x, *self._parameters, family=self.family, base=self.base)
        if self._cache_size:
            self._cached_ladj = x, z, ladj
        return z, ladj

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _solve(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` and ``log |dx/dz|``."""
        x, ladj = cdf_transform_inverse(z, *self._parameters, family=self.family, base=self.base)
        if self._cache_size:
            self._cached_ladj = x, z, -ladj
        return x, ladj

    def _inverse(self, z: Tensor) -> Tensor:
        return self._solve(z)[0]

    def log_abs_det_jacobian(self, x: Tensor, z: Tensor) -> Tensor:
        """``log |dz/dx|`` in nats, of the broadcast shape of ``x`` and the parameters."""
        cached_x, cached_z, ladj = self._cached_ladj
        if ladj is not None and x is cached_x and z is cached_z:
            return cast(Tensor, ladj)
        return cdf_transform(x, *self._parameters, family=self.family, base=self.base)[1]

    def forward_shape(self, shape: Any) -> torch.Size:
        """The shape of ``z`` for ``x`` of this shape."""
        return torch.Size(broadcast_shapes(shape, *(p.shape[:-1] for p in self._parameters)))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """The shape of ``x`` for ``z`` of this shape."""
        return self.forward_shape(shape)
