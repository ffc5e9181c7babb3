"""Numbers that are subtracted from data, kept in the precision of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["KeepsPrecision", "offsets_of", "restore_offsets"]

Self = TypeVar("Self", bound="KeepsPrecision")


class KeepsPrecision(nn.Module):
    """A module whose buffer ``loc``, which it subtracts from data, never loses precision.

    A float32 number has 24 bits. Around 1.7e9 seconds, float32 numbers are 128 seconds apart, so ``loc`` must be
    subtracted before the data are converted. ``module.to(torch.float32)`` therefore leaves a ``loc`` in float64 as it
    is; a change of device moves it. ``load_state_dict`` widens ``loc`` to the dtype that it loads.

    Example:
        >>> import torch
        >>> from mixflow.transforms import Affine
        >>> standardise = Affine(1, trainable=False)
        >>> x = 1.7e9 + torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
        >>> standardise.initialize(x)
        >>> standardise.to(torch.float32)(x)[0]
        tensor([[-1.],
                [ 0.],
                [ 1.]])

    """

    loc: Tensor

    def _set_loc(self, value: Tensor) -> None:
        """Set ``loc`` to ``value``, in the wider dtype of the two; a ``loc`` that is a parameter keeps its dtype."""
        if isinstance(self.loc, nn.Parameter):
            self.loc.copy_(value)
        else:
            self.loc = value.to(torch.promote_types(value.dtype, self.loc.dtype)).clone()

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self._buffers.get("loc")
        super()._apply(fn, recurse)
        after = self._buffers.get("loc")
        if before is not None and after is not None and after.dtype.itemsize < before.dtype.itemsize:
            self._buffers["loc"] = before.to(after.device)
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        own, given = self._buffers.get("loc"), state_dict.get(f"{prefix}loc")
        if own is not None and isinstance(given, Tensor) and given.is_floating_point() and given.shape == own.shape:
            self._buffers["loc"] = own.to(torch.promote_types(own.dtype, given.dtype))
        super()._load_from_state_dict(state_dict, prefix, *others)


def offsets_of(module: nn.Module) -> list[tuple[KeepsPrecision, Tensor]]:
    """The modules in ``module`` whose ``loc`` is a buffer, each with a copy of it in its own precision."""
    keepers = [part for part in module.modules() if isinstance(part, KeepsPrecision)]
    return [(part, part.loc.clone()) for part in keepers if "loc" in part._buffers]


def restore_offsets(offsets: list[tuple[KeepsPrecision, Tensor]]) -> None:
    """Restore what :func:`offsets_of` returned: each module gets its ``loc`` back, in the precision that it had."""
    for part, loc in offsets:
        part._buffers["loc"] = loc.to(part.loc.device)
