"""The contract of all transforms, and the checks that they share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from ..checks import check_integer

__all__ = ["Transform", "check_name", "check_transform", "own_tensor", "spread_of"]


def own_tensor(module: nn.Module) -> Tensor | None:
    """A parameter or buffer of floating-point numbers, to know the dtype and device of ``module`` by."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            return tensor
    return None


class Transform(nn.Module):
    """The contract of all transforms.

    ``forward(x, context=None) -> (z, ladj)`` and ``inverse(z, context=None) -> (x, ladj)``, with ``x`` and
    ``z`` of shape ``(..., D)``, ``ladj`` of shape ``(...)`` in nats, and ``context`` of shape ``(..., C)``
    whose batch shape broadcasts against theirs. Tensors have the dtype and device of the transform's
    parameters.

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
        self._check("x", x, context)
        return self._forward(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Base to data: ``(x, ladj)`` with ``ladj = log |det dx/dz|``."""
        self._check("z", z, context)
        return self._inverse(z, context)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> None:
        """Set the parameters from data ``x`` of shape ``(N, D)`` before training; by default, leave them."""

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _check(self, name: str, value: Tensor, context: Tensor | None) -> None:
        self._check_tensor(name, value, self.features)
        if context is None:
            if self.context:
                raise ValueError(f"context: expected a tensor of shape (..., {self.context}), got None")
            return
        if not self.context:
            raise ValueError(f"context: expected None, this {type(self).__name__} takes no context")
        self._check_tensor("context", context, self.context)
        batch = value.shape[:-1]
        missing = value.ndim - context.ndim
        if missing < 0 or any(size not in (1, batch[missing + i]) for i, size in enumerate(context.shape[:-1])):
            raise ValueError(
                f"context: expected a batch shape that broadcasts to {tuple(batch)}, that of {name}; "
                f"got {tuple(context.shape)}"
            )

    def _check_tensor(self, name: str, value: Tensor, size: int) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
        if value.ndim == 0 or value.shape[-1] != size:
            raise ValueError(f"{name}: expected shape (..., {size}), got {tuple(value.shape)}")
        own = own_tensor(self)
        if own is None:
            if not value.is_floating_point():
                raise TypeError(f"{name}: expected floating-point numbers, got {value.dtype}")
            return
        if value.dtype != own.dtype:
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


def spread_of(x: Tensor) -> Tensor:
    """The standard deviation of each column of ``x`` (N, D); ValueError for one without a positive, finite one."""
    if len(x) < 2:
        raise ValueError(f"x: expected at least 2 rows, to take a standard deviation of; got {len(x)}")
    spread, low, high = x.std(dim=0), x.amin(dim=0), x.amax(dim=0)
    wrong = ((low == high) | ~(spread > 0.0) | spread.isinf()).nonzero()
    if len(wrong):
        column = int(wrong[0])
        raise ValueError(
            f"x: expected columns that vary, with a standard deviation that fits in {x.dtype}; got numbers from "
            f"{low[column].item():g} to {high[column].item():g} in column {column} (counted from 0)"
        )
    return spread
