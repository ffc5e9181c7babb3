"""Maps that subtract an offset from data and scale what is left: feature by feature, or all features together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_integer
from ..precise import KeepsPrecision
from ..start.gaussian import gaussian
from ..start.robust import spread_of
from .base import Transform, full_precision, infinite_where_overflowed

__all__ = ["ActNorm", "Affine", "Whitening"]

# An offset of so many scales takes 4 of the 24 bits of float32. Then 1 % of 20,000 samples repeat another one.
_OFFSET = 16.0


class Affine(KeepsPrecision, Transform):
    """``z = (x - loc) / scale``, feature by feature.

    ``initialize`` sets ``loc`` and ``scale`` to the mean and standard deviation of the data's bulk, which a few values
    far out do not move (:mod:`mixflow.start.robust`). With ``trainable=True`` both are then learned: this is the
    activation normalisation of Kingma and Dhariwal, "Glow" (2018, arXiv:1807.03039). With ``trainable=False`` both stay
    as they are: this is a standardisation, and its ladj keeps densities in the data's own units.

    ``x`` may have any floating-point dtype. The subtraction is done in the precision of ``x``, and ``z`` has the dtype
    of ``scale``. A fixed ``loc`` keeps the precision of the data that it was set from. The inverse returns ``x`` in
    that precision if the offset is so large against the scale that a narrower ``x`` would move in visible steps.

    Args:
        features: D.
        trainable: whether loc and log_scale are parameters (True) or buffers (False).
        loc: where they start, a number or one for each feature.
        scale: the same for the scale; positive.

    Raises:
        ValueError: features is out of range, loc is not finite, or scale is not finite and positive, so that there is
            no inverse.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Affine
        >>> standardise = Affine(features=1, trainable=False)
        >>> standardise.initialize(torch.tensor([[10.0], [20.0], [30.0]]))
        >>> standardise(torch.tensor([[40.0]]))[0]
        tensor([[2.0000]])

    """

    loc: Tensor
    log_scale: Tensor

    def __init__(
        self,
        features: int,
        trainable: bool = True,
        *,
        loc: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 1.0,
    ) -> None:
        super().__init__(check_integer("features", features, 1))
        # The scale comes first: the first tensor decides on the dtype of the module, and loc may have another dtype.
        start = {
            "log_scale": _per_feature(
                "scale", scale, self.features, "finite positive numbers", lambda s: 0.0 < s < math.inf
            ).log(),
            "loc": _per_feature("loc", loc, self.features, "finite numbers", math.isfinite),
        }
        for name, value in start.items():
            if trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self._is_wide = False

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set loc and log_scale from the bulk of the columns; ValueError if a column is constant."""
        with torch.no_grad():
            loc, spread = spread_of(x)
            self.log_scale.copy_(spread.log())
            self._set_loc(loc)
        self._measure()

    def takes_any_dtype(self, forward: bool = True) -> bool:
        """Whether ``forward``: data may have any floating-point dtype, but ``z`` has that of the scale."""
        return forward

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"features={self.features}, trainable={isinstance(self.loc, nn.Parameter)}"

    def _measure(self) -> None:
        """Find out whether ``x`` needs the precision of a ``loc`` that is wider than the scale.

        This runs when numbers are set, and not when samples are drawn, because it waits for the device.
        """
        self._is_wide = False
        if self.loc.dtype.itemsize > self.log_scale.dtype.itemsize and not self.loc.is_meta:
            scale = self.log_scale.detach().to(self.loc.dtype).exp()
            limits = torch.finfo(self.log_scale.dtype)
            reach = limits.max**0.25  # of tails, in scales: 4e9 in float32
            far = self.loc.abs() > _OFFSET * scale
            self._is_wide = bool((far | (scale > limits.max / reach) | (scale < limits.tiny * reach)).any())

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._measure()

    def _apply(self, *arguments: Any) -> Affine:
        super()._apply(*arguments)
        self._measure()
        return self

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        centred = x - self.loc
        z = (centred * torch.exp(-self.log_scale.to(centred.dtype))).to(self.log_scale.dtype)
        return z, -self.log_scale.sum().expand(x.shape[:-1])

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x = z * self.log_scale.to(self.loc.dtype).exp() + self.loc
        return x if self._is_wide else x.to(z.dtype), self.log_scale.sum().expand(z.shape[:-1])


ActNorm = Affine  # its name in "Glow", for readers of that paper; model files write "Affine"


class Whitening(KeepsPrecision, Transform):
    r"""``z = W (x - loc)`` with a fixed lower-triangular W, which removes linear dependence between features.

    .. math:: W = L^{-1}, \quad L L^T = \mathrm{cov}(x)

    W is the identity until :meth:`initialize` sets it. Because W is triangular, a feature of ``z`` depends on the same
    and earlier features of ``x`` alone, as in an autoregressive transform that follows.

    Args:
        features: D.

    Raises:
        ValueError: features is out of range.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Whitening
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> x = x @ torch.tensor([[1.0, 2.0], [0.0, 1.0]])
        >>> whiten = Whitening(2)
        >>> whiten.initialize(x)
        >>> torch.allclose(whiten(x)[0].T.cov(), torch.eye(2), atol=0.02)
        True

    """

    factor: Tensor

    def __init__(self, features: int) -> None:
        super().__init__(check_integer("features", features, 1))
        self.register_buffer("factor", torch.eye(self.features))
        self.register_buffer("loc", torch.zeros(self.features))
        self._is_identity = False
        self._measure()

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set W from one Gaussian fitted to the bulk of ``x`` (N, D)."""
        self.set_gaussian(*gaussian(x))

    def set_gaussian(self, loc: Tensor, covariance: Tensor) -> None:
        """Set W for data with the mean ``loc`` (D,) and the positive definite ``covariance`` (D, D)."""
        with torch.no_grad():
            lower = torch.linalg.cholesky(covariance.double())
            one = torch.eye(self.features, dtype=lower.dtype, device=lower.device)
            self.factor.copy_(torch.linalg.solve_triangular(lower, one, upper=False))
            self._set_loc(loc)
        self._measure()

    def takes_any_dtype(self, forward: bool = True) -> bool:
        """Data may have any floating-point dtype."""
        return forward

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"features={self.features}"

    def _measure(self) -> None:
        """Find out whether the map is the identity. This runs when numbers are set, because it waits for the device."""
        if self.factor.is_meta:
            return
        one = torch.eye(self.features, dtype=self.factor.dtype, device=self.factor.device)
        self._is_identity = torch.equal(self.factor, one) and not self.loc.any().item()

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._measure()

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._is_identity:
            return x.to(self.factor.dtype), x.new_zeros(x.shape[:-1], dtype=self.factor.dtype)
        centred = x - self.loc
        with full_precision(x):
            z = infinite_where_overflowed(centred @ self.factor.mT.to(centred.dtype), centred)
        return z.to(self.factor.dtype), self._ladj().expand(x.shape[:-1])

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._is_identity:
            return z, z.new_zeros(z.shape[:-1])
        # LAPACK has no half precision.
        full = torch.promote_types(z.dtype, torch.float32)
        rows = z.to(full).reshape(-1, self.features)
        x = torch.linalg.solve_triangular(self.factor.mT.to(full), rows, upper=True, left=False)
        return (x.reshape(z.shape) + self.loc).to(z.dtype), -self._ladj().expand(z.shape[:-1])

    def _ladj(self) -> Tensor:
        return self.factor.diagonal().log().sum()


def _per_feature(
    name: str, value: float | Sequence[float], features: int, expected: str, good: Callable[[float], bool]
) -> Tensor:
    """``value`` as a tensor (D,); ValueError if it has another shape or holds a number that is not ``good``."""
    given = torch.as_tensor(value, dtype=torch.get_default_dtype())
    if given.shape not in ((), (features,)):
        raise ValueError(f"{name}: expected a number or {features} numbers, got shape {tuple(given.shape)}")
    if not given.is_meta:
        wrong = [number for number in given.reshape(-1).tolist() if not good(number)]
        if wrong:
            raise ValueError(f"{name}: expected {expected}, for the map to be invertible, got {wrong[0]}")
    return given + given.new_zeros(features)
