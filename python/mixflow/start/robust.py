"""Location and spread of columns that a few values far out cannot move.

A column's bulk is what lies within ten robust standard deviations of its median. Moments are taken of the column
clipped to its bulk: for data without outliers they are the ordinary ones to within one percent, and outliers of any
size add at most their share times ten standard deviations.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..op import can_be_looked_at

__all__ = ["bulk", "bulk_in_order", "clipped", "in_order", "moments"]

REACH = 10.0  # robust standard deviations from the median to the edge of the bulk
# The central parts of a column whose width is measured, and how many standard deviations of a normal each is wide. The
# next is taken where one is a single value, as it is where most of a column is zero.
_PARTS = [(0.5, 1.3490), (0.8, 2.5631), (0.9, 3.2897), (0.98, 4.6527), (0.998, 6.1805)]


def in_order(x: Tensor) -> Tensor:
    """The columns of ``x`` (N, D), each sorted from its smallest to its largest value.

    Example:
        >>> import torch
        >>> from mixflow.start.robust import in_order
        >>> in_order(torch.tensor([[3.0, 0.1], [1.0, 0.3], [2.0, 0.2]]))
        tensor([[1.0000, 0.1000],
                [2.0000, 0.2000],
                [3.0000, 0.3000]])

    """
    if x.dtype in (torch.float32, torch.float64) and can_be_looked_at(x):
        # numpy sorts with vector instructions. torch.sort also finds the order itself, and takes 20 times as long.
        return torch.from_numpy(np.sort(x.detach().numpy(), axis=0))
    return x.sort(dim=0).values


def bulk(x: Tensor) -> tuple[Tensor, Tensor]:
    """The edges ``(low, high)``, each (D,), of the bulk of every column of ``x`` (N, D), in the dtype of ``x``.

    A column of which 99.8 % are one value has no bulk apart from the rest: its edges are its smallest and largest
    value.

    Example:
        >>> import torch
        >>> from mixflow.start.robust import bulk
        >>> bulk(torch.cat([torch.linspace(-1.0, 1.0, 101), torch.tensor([1e9])]).unsqueeze(-1))
        (tensor([-1.]), tensor([7.5812]))

    """
    return bulk_in_order(in_order(x))


def bulk_in_order(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`bulk`, of columns ``ordered`` (N, D) that :func:`in_order` has sorted.

    Example:
        >>> import torch
        >>> from mixflow.start.robust import bulk_in_order
        >>> bulk_in_order(torch.linspace(-1.0, 1.0, 101).unsqueeze(-1))
        (tensor([-1.]), tensor([1.]))

    """
    low, high = ordered[0].clone(), ordered[-1].clone()
    median = _quantile(ordered, 0.5)
    open_columns = torch.ones_like(low, dtype=torch.bool)
    for part, width in _PARTS:
        # Subtracted before it is divided: the difference of neighbours is exact, however large their offset.
        spread = (_quantile(ordered, 0.5 + part / 2) - _quantile(ordered, 0.5 - part / 2)) / width
        found = open_columns & (spread > 0.0)
        low = torch.where(found, torch.maximum(low, median - REACH * spread), low)
        high = torch.where(found, torch.minimum(high, median + REACH * spread), high)
        open_columns = open_columns & ~found
    return low, high


def clipped(x: Tensor, edges: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The columns of ``x`` (N, D), each value outside its column's bulk moved to the nearer edge of it.

    ``edges`` are those of the bulk where the caller has them.
    """
    low, high = bulk(x) if edges is None else edges
    return torch.minimum(torch.maximum(x, low), high)


def moments(x: Tensor, edges: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (D,), of the columns of ``x`` (N, D), clipped to ``edges``; 0 of a single row.

    ``edges`` are those of the bulk, by default found here.
    """
    kept = clipped(x, edges)
    # A mean of differences: the sum of the values themselves would round at the size of their offset.
    middle = kept[len(kept) // 2]
    mean = middle + (kept - middle).mean(dim=0)
    return mean, (kept - mean).square().sum(dim=0).div(max(1, len(x) - 1)).sqrt()


def _quantile(ordered: Tensor, part: float) -> Tensor:
    """The value (D,) below which ``part`` of the sorted columns ``ordered`` (N, D) lies, one of the column's own."""
    return ordered[min(len(ordered) - 1, math.floor(part * len(ordered)))]
