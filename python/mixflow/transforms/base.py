"""The contract of all transforms, and the checks that they share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from ..checks import check_integer
from ..robust import moments

__all__ = ["Transform", "check_name", "check_transform", "own_tensor", "spread_of"]


def own_tensor(module: nn.Module) -> Tensor | None:
    """A parameter or buffer of floating-point numbers, to know the dtype and device of ``module`` by."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            return tensor
    return None


class Transform(nn.Module):
    """The contract of all transforms.

    ``forward(x, context=None) -> (z, ladj)`` and ``inverse(z, context=None) -> (x, ladj)``, with ``x`` and ``z`` of
    shape ``(..., D)``, ``ladj`` of shape ``(...)`` in nats, and ``context`` of shape ``(..., C)`` whose batch shape
    broadcasts against theirs. ``x`` has the dtype and device of the transform's parameters. ``context`` may have any
    floating-point dtype, and so may ``x`` where the transform first subtracts an offset from it
    (:class:`~mixflow.transforms.Affine`): the subtraction is done in the precision of the data.

    Args:
        features: D, the size of the last dimension of ``x``.
        context: C, the size of the last dimension of ``context``; 0 for a transform that takes none.

    Raises:
        TypeError: an argument is not a tensor of the transform's dtype.
        ValueError: a shape or device does not fit, or a context is missing or not expected.

    Example:
        A subclass supplies two functions, and perhaps ``initialize``:

        >>> import torch
        >>> from mixflow.transforms import Transform
        >>> class Flip(Transform):
        ...     def _forward(self, x, context):
        ...         return -x, torch.zeros_like(x[..., 0])
        ...     _inverse = _forward
        >>> z, ladj = Flip(features=2)(torch.ones(3, 2))
        >>> z.shape, ladj.shape
        (torch.Size([3, 2]), torch.Size([3]))

    """

    def __init__(self, features: int, context: int = 0) -> None:
        super().__init__()
        self.features = check_integer("features", features, 1)
        self.context = check_integer("context", context, 0)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to base: ``(z, ladj)`` with ``ladj = log |det dz/dx|``."""
        self._check("x", x, context, forward=True)
        return self._forward(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Base to data: ``(x, ladj)`` with ``ladj = log |det dx/dz|``."""
        self._check("z", z, context, forward=False)
        return self._inverse(z, context)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set the parameters from data ``x`` of shape ``(N, D)`` before training; by default, leave them."""

    def takes_any_dtype(self, forward: bool = True) -> bool:
        """Whether that direction takes any floating-point dtype, not that of the parameters alone."""
        return own_tensor(self) is None

    def outside(self, x: Tensor) -> Tensor | None:
        """Which elements of ``x`` (..., D) lie outside the open domain of the map; None if that is all numbers."""
        return None

    def inside(self, x: Tensor) -> Tensor:
        """A point of the domain that broadcasts to ``x`` (..., D), to put in the place of elements outside it."""
        return x.new_zeros(self.features)

    def outside_image(self, z: Tensor) -> Tensor | None:
        """As ``outside``, for the inverse: which elements of ``z`` (..., D) no x has for its image."""
        return None

    def inside_image(self, z: Tensor) -> Tensor:
        """As ``inside``, for the inverse."""
        return z.new_zeros(self.features)

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _check(self, name: str, value: Tensor, context: Tensor | None, forward: bool) -> None:
        self._check_tensor(name, value, self.features, self.takes_any_dtype(forward))
        if context is None:
            if self.context:
                raise ValueError(f"context: expected a tensor of shape (..., {self.context}), got None")
            return
        if not self.context:
            raise ValueError(f"context: expected None, this {type(self).__name__} takes no context")
        self._check_tensor("context", context, self.context, any_dtype=True)
        batch = value.shape[:-1]
        missing = value.ndim - context.ndim
        if missing < 0 or any(size not in (1, batch[missing + i]) for i, size in enumerate(context.shape[:-1])):
            raise ValueError(
                f"context: expected a batch shape that broadcasts to {tuple(batch)}, that of {name}; "
                f"got {tuple(context.shape)}"
            )

    def _check_tensor(self, name: str, value: Tensor, size: int, any_dtype: bool) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
        if value.ndim == 0 or value.shape[-1] != size:
            raise ValueError(f"{name}: expected shape (..., {size}), got {tuple(value.shape)}")
        own = own_tensor(self)
        if not value.is_floating_point():
            wanted = "floating-point numbers" if own is None else f"{own.dtype}, the dtype of the parameters"
            raise TypeError(f"{name}: expected {wanted}, got {value.dtype}")
        if own is None:
            return
        if value.dtype != own.dtype and not any_dtype:
            raise TypeError(f"{name}: expected {own.dtype}, the dtype of the parameters; got {value.dtype}")
        if value.device != own.device:
            raise ValueError(f"{name}: expected a tensor on {own.device}, where the parameters are; got {value.device}")


def check_name(name: str, value: str, known: Sequence[str]) -> str:
    """``value`` if it is one of ``known``, else ValueError."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}; got {value!r}")
    return value


def check_transform(name: str, value: Transform) -> None:
    """TypeError if ``value`` is not a Transform: nothing else is known to be invertible."""
    if not isinstance(value, Transform):
        raise TypeError(
            f"{name}: expected a Transform, a map whose inverse and log-determinant are known; "
            f"got {type(value).__name__}, which is not one"
        )


def spread_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the bulk of each column of ``x`` (N, D): see :mod:`mixflow.robust`.

    Raises:
        ValueError: a single row, or a column without a positive, finite deviation.

    """
    if len(x) < 2:
        raise ValueError(f"x: expected at least 2 rows, to take a standard deviation of; got {len(x)}")
    loc, spread = moments(x)
    low, high = x.amin(dim=0), x.amax(dim=0)
    wrong = ((low == high) | ~(spread > 0.0) | spread.isinf()).nonzero()
    if len(wrong):
        column = int(wrong[0])
        raise ValueError(
            f"x: expected columns that vary, with a standard deviation that fits in {x.dtype}; got numbers from "
            f"{low[column].item():g} to {high[column].item():g} in column {column} (counted from 0)"
        )
    return loc, spread
