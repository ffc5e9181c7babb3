"""Linear maps: scales and shifts, rotations, permutations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_integer
from ..export import cayley, in_onnx_export
from ..precise import KeepsPrecision
from ..start.directions import interesting_directions
from ..start.gaussian import gaussian
from .base import Transform, full_precision, infinite_where_overflowed, spread_of

__all__ = ["ActNorm", "Affine", "Permutation", "Rotation", "Whitening"]

# From so many scales on, an offset takes 4 of the 24 bits of float32, and 20,000 samples repeat 1 % of their values.
_OFFSET = 16.0


class Affine(KeepsPrecision, Transform):
    """``z = (x - loc) / scale``, feature by feature.

    ``initialize`` sets ``loc`` and ``scale`` to the mean and standard deviation of the data's bulk, which a few values
    far out do not move (:mod:`mixflow.start.robust`). With ``trainable=True`` they are learned from there: the
    activation normalisation of Kingma and Dhariwal, "Glow" (2018, arXiv:1807.03039), also named ``ActNorm`` here. With
    ``trainable=False`` they stay there: a standardisation whose ladj keeps densities in the data's own units.

    ``x`` may have any floating-point dtype, and is subtracted from in its own precision; ``z`` has the dtype of
    ``scale``. A fixed ``loc`` keeps the precision of the data that it was set from. The inverse then returns that
    precision where the offset is so large against the scale that a narrower ``x`` would move in visible steps.

    Args:
        features: D.
        trainable: whether loc and log_scale are parameters (True) or buffers (False).
        loc: where they start, a number or one for each feature.
        scale: likewise, positive.

    Raises:
        ValueError: features is out of range, loc is not finite, or scale is not finite and positive, which leaves no
            inverse.

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
        # The scale first: the dtype of the module is that of its first tensor, and loc may have another.
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
        """Data may have any floating-point dtype; so may what the inverse is given, where it is no narrower."""
        return forward

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"features={self.features}, trainable={isinstance(self.loc, nn.Parameter)}"

    def _measure(self) -> None:
        """Find out whether ``x`` needs the precision of a ``loc`` that is wider than the scale.

        The question is asked when numbers are set, not when samples are drawn: its answer would wait for the device.
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


ActNorm = Affine


class Whitening(KeepsPrecision, Transform):
    r"""``z = W (x - loc)`` with a fixed lower-triangular W: linear dependence between features is taken out.

    .. math:: W = L^{-1}, \quad L L^T = \mathrm{cov}(x)

    Before any data are seen W is the identity. Triangular, it keeps the order in which an autoregressive transform that
    follows takes the features.

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
        """Let z be standard where x has the mean ``loc`` (D,) and the positive definite ``covariance`` (D, D)."""
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
        """Find out, when numbers are set, whether there is anything to do: the answer waits for the device."""
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
        # LAPACK knows no half precision.
        full = torch.promote_types(z.dtype, torch.float32)
        rows = z.to(full).reshape(-1, self.features)
        x = torch.linalg.solve_triangular(self.factor.mT.to(full), rows, upper=True, left=False)
        return (x.reshape(z.shape) + self.loc).to(z.dtype), -self._ladj().expand(z.shape[:-1])

    def _ladj(self) -> Tensor:
        return self.factor.diagonal().log().sum()


class Rotation(Transform):
    r"""``z = Q x`` with a learned orthogonal Q: ``ladj`` is exactly 0 and the inverse is the transpose.

    .. math:: Q = (I - A / 2)^{-1} (I + A / 2) \, Q_0, \quad A = -A^T

    The D (D - 1) / 2 numbers ``skew`` below the diagonal of A are learned, starting at 0; ``start``, :math:`Q_0`, stays
    as it is. This is Cayley's map, near 0 the matrix exponential in a tenth of its time; it reaches every orthogonal
    matrix that turns no direction of :math:`Q_0` right round, without a constraint on the optimizer (Helfrich, Willmott
    and Ye, 2018, arXiv:1707.09520).

    Args:
        features: D.
        start: an orthogonal matrix (D, D); by default the identity.

    Raises:
        ValueError: features is out of range, or start is not orthogonal.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Rotation
        >>> quarter = Rotation(2, start=torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
        >>> quarter(torch.tensor([[1.0, 0.0]]))
        (tensor([[0., 1.]], grad_fn=<MmBackward0>), tensor([0.]))

    """

    start: Tensor

    def __init__(self, features: int, start: Tensor | None = None) -> None:
        super().__init__(check_integer("features", features, 1))
        if start is None:
            start = torch.eye(self.features)
        elif start.shape != (self.features, self.features):
            raise ValueError(f"start: expected shape ({self.features}, {self.features}), got {tuple(start.shape)}")
        else:
            _check_orthogonal(start)
        self.register_buffer("start", start.clone())
        self.skew = nn.Parameter(start.new_zeros(self.features * (self.features - 1) // 2))

    @property
    def matrix(self) -> Tensor:
        """Q (D, D)."""
        row, column = torch.tril_indices(self.features, self.features, -1, device=self.skew.device)
        # LAPACK knows no half precision.
        skew = self.skew.to(torch.promote_types(self.skew.dtype, torch.float32))
        lower = skew.new_zeros(self.features, self.features).index_put((row, column), skew)
        half = 0.5 * (lower - lower.mT)
        one = torch.eye(self.features, dtype=half.dtype, device=half.device)
        if in_onnx_export():
            return cayley(half).to(self.start.dtype) @ self.start
        # Never singular; to ask whether it is would wait for the device.
        turn: Tensor = torch.linalg.solve_ex(one - half, one + half).result
        return turn.to(self.start.dtype) @ self.start

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Turn the least normal directions of ``x`` (N, D) into axes: see :func:`interesting_directions`."""
        with torch.no_grad():
            self.start.copy_(interesting_directions(x))
            self.skew.zero_()

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"features={self.features}"

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        with full_precision(x):
            return infinite_where_overflowed(x @ self.matrix.mT, x), x.new_zeros(x.shape[:-1])

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        with full_precision(z):
            return z @ self.matrix, z.new_zeros(z.shape[:-1])


class Permutation(Transform):
    """The features in another order: ``z[..., i] = x[..., order[i]]``, with ladj 0.

    Args:
        order: each of 0 to D - 1 once.

    Raises:
        ValueError: order is empty, or not a permutation and so not invertible.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Permutation
        >>> Permutation([2, 0, 1])(torch.tensor([10.0, 11.0, 12.0]))[0]
        tensor([12., 10., 11.])

    """

    order: Tensor
    back: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        order = list(order)
        if not order or sorted(order) != list(range(len(order))):
            raise ValueError(f"order: expected each of 0 to D - 1 once, for the map to be invertible; got {order}")
        super().__init__(len(order))
        # The constructor's argument, not a weight: a file or a state_dict that disagreed could only do harm.
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("back", torch.tensor(order).argsort(), persistent=False)

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"order={self.order.tolist()}"

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return x.index_select(-1, self.order), x.new_zeros(x.shape[:-1])

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return z.index_select(-1, self.back), z.new_zeros(z.shape[:-1])


def _per_feature(
    name: str, value: float | Sequence[float], features: int, expected: str, good: Callable[[float], bool]
) -> Tensor:
    """``value`` as a tensor (D,); ValueError if it has another shape or one of it is not ``good``."""
    given = torch.as_tensor(value, dtype=torch.get_default_dtype())
    if given.shape not in ((), (features,)):
        raise ValueError(f"{name}: expected a number or {features} numbers, got shape {tuple(given.shape)}")
    if not given.is_meta:
        wrong = [number for number in given.reshape(-1).tolist() if not good(number)]
        if wrong:
            raise ValueError(f"{name}: expected {expected}, for the map to be invertible; got {wrong[0]}")
    return given + given.new_zeros(features)


def _check_orthogonal(matrix: Tensor) -> None:
    error = (matrix @ matrix.mT - torch.eye(len(matrix)).to(matrix)).abs().max().item()
    # Negated, so that NaN is refused as well.
    if not error <= 100.0 * len(matrix) * torch.finfo(matrix.dtype).eps:
        raise ValueError(
            "start: expected an orthogonal matrix, for its transpose to be its inverse; "
            f"start @ start.T is off by {error:g}"
        )
