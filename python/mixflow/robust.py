"""Location and spread of columns that a few values far out cannot move.

A column's bulk is what lies within ten robust standard deviations of its median. Moments are taken of the column
clipped to its bulk: for data without outliers they are the ordinary ones to within one percent, and outliers of any
size add at most their share times ten standard deviations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["bulk", "clipped", "moments"]

REACH = 10.0  # robust standard deviations from the median to the edge of the bulk
# The central parts of a column whose width is measured, and how many standard deviations of a normal each is wide. The
# next is taken where one is a single value, as it is where most of a column is zero.
_PARTS = [(0.5, 1.3490), (0.8, 2.5631), (0.9, 3.2897), (0.98, 4.6527), (0.998, 6.1805)]


def bulk(x: Tensor) -> tuple[Tensor, Tensor]:
    """The edges ``(low, high)``, each (D,), of the bulk of every column of ``x`` (N, D), in the dtype of ``x``.

    A column of which 99.8 % are one value has no bulk apart from the rest: its edges are its smallest and largest
    value.

    Example:
        >>> import torch
        >>> from mixflow.robust import bulk
        >>> bulk(torch.cat([torch.linspace(-1.0, 1.0, 101), torch.tensor([1e9])]).unsqueeze(-1))
        (tensor([-1.]), tensor([7.5812]))

    """
    ordered = x.sort(dim=0).values
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


def clipped(x: Tensor) -> Tensor:
    """The columns of ``x`` (N, D), each value outside its column's bulk moved to the nearer edge of it."""
    low, high = bulk(x)
    return torch.minimum(torch.maximum(x, low), high)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (D,), of the clipped columns of ``x`` (N, D); 0 of a single row."""
    kept = clipped(x)
    # A mean of differences: the sum of the values themselves would round at the size of their offset.
    middle = kept[len(kept) // 2]
    mean = middle + (kept - middle).mean(dim=0)
    return mean, (kept - mean).square().sum(dim=0).div(max(1, len(x) - 1)).sqrt()


def _quantile(ordered: Tensor, part: float) -> Tensor:
    """The value (D,) below which ``part`` of the sorted columns ``ordered`` (N, D) lies, one of the column's own."""
    return ordered[min(len(ordered) - 1, math.floor(part * len(ordered)))]
