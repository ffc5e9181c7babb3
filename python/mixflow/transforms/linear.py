"""Linear maps that keep volumes: rotations and permutations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_integer
from ..export import cayley, in_onnx_export
from ..start.directions import interesting_directions
from .base import Transform, full_precision, infinite_where_overflowed

__all__ = ["Permutation", "Rotation"]


class Rotation(Transform):
    r"""``z = Q x`` with a learned orthogonal Q: ``ladj`` is exactly 0 and the inverse is the transpose.

    .. math:: Q = (I - A / 2)^{-1} (I + A / 2) \, Q_0, \quad A = -A^T

    The D (D - 1) / 2 numbers ``skew`` below the diagonal of A are learned, starting at 0. ``start``, which is
    :math:`Q_0`, stays as it is. This is Cayley's map. Near 0 it is close to the matrix exponential, in a tenth of the
    time. Without a constraint on the optimizer, it reaches every orthogonal matrix that turns no direction of
    :math:`Q_0` by 180 degrees (Helfrich, Willmott and Ye, 2018, arXiv:1707.09520).

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
        # LAPACK has no half precision.
        skew = self.skew.to(torch.promote_types(self.skew.dtype, torch.float32))
        lower = skew.new_zeros(self.features, self.features).index_put((row, column), skew)
        half = 0.5 * (lower - lower.mT)
        one = torch.eye(self.features, dtype=half.dtype, device=half.device)
        if in_onnx_export():
            return cayley(half).to(self.start.dtype) @ self.start
        # The matrix is never singular. `solve` would check that, and so wait for the device.
        turn: Tensor = torch.linalg.solve_ex(one - half, one + half).result
        return turn.to(self.start.dtype) @ self.start

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Rotate the least normal directions of ``x`` (N, D) into the axes: see :mod:`mixflow.start.directions`."""
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
            raise ValueError(f"order: expected each of 0 to D - 1 once, for the map to be invertible, got {order}")
        super().__init__(len(order))
        # This is the constructor's argument and not a weight. A file or a state_dict must not change it.
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("back", torch.tensor(order).argsort(), persistent=False)

    def extra_repr(self) -> str:
        """Arguments shown by ``repr``."""
        return f"order={self.order.tolist()}"

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return x.index_select(-1, self.order), x.new_zeros(x.shape[:-1])

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return z.index_select(-1, self.back), z.new_zeros(z.shape[:-1])


def _check_orthogonal(matrix: Tensor) -> None:
    error = (matrix @ matrix.mT - torch.eye(len(matrix)).to(matrix)).abs().max().item()
    # Negated, so that NaN is refused as well.
    if not error <= 100.0 * len(matrix) * torch.finfo(matrix.dtype).eps:
        raise ValueError(
            "start: expected an orthogonal matrix, for its transpose to be its inverse, got one whose "
            f"product with its transpose is off by {error:g}"
        )
