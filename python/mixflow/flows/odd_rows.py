"""Rows that are not finite, or whose results are not: they must not reach the gradients of the other rows.

A mask is a tensor of bools. None stands for a mask that holds nowhere, so that nothing is computed for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..op import can_be_looked_at, is_known_finite
from ..transforms.base import spread

__all__ = ["either", "guarded"]


def either(mask: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Where one of the masks holds; a mask that is None holds nowhere."""
    if mask is None or other is None:
        return other if mask is None else mask
    return mask | other


def guarded(
    run: Callable[[Tensor], tuple[Tensor, ...]], rows: Tensor, inside: Callable[[Tensor], Tensor], event: torch.Size
) -> tuple[Tensor, ...]:
    """``run(rows)``, in which events without a finite result add nothing to the gradients of other events.

    The square of a finite number may overflow somewhere between two transforms. In the backward pass, zero times
    infinity would then reach the gradients of all rows. Such events run again at the point ``inside(rows)``, and keep
    the results of the first run. To look at results waits for a GPU, and a program that is recorded has none: both
    leave the second run out.
    """
    results = run(rows)
    *image, last = results
    if not last.requires_grad or not can_be_looked_at(last) or all(map(is_known_finite, results)):
        return results
    bad = ~last.isfinite()
    for part in image:
        bad = bad | ~part.isfinite().flatten(last.ndim).all(-1)
    if not bad.any():
        return results
    again = run(torch.where(spread(bad, event), inside(rows), rows))
    return tuple(
        torch.where(bad.reshape(*bad.shape, *(1,) * (first.ndim - bad.ndim)), first.detach(), second)
        for first, second in zip(results, again, strict=True)
    )
