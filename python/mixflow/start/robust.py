"""Location and spread of columns, which a few values far out cannot move.

The bulk of a column is the part within ten robust standard deviations of its median. Values outside are moved to the
nearer edge of the bulk before moments are taken. For data without outliers these are the ordinary moments to within one
percent. Outliers of any size add at most their share of the values times ten standard deviations.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..op import can_be_looked_at

__all__ = ["bulk", "bulk_in_order", "clipped", "in_order", "moments", "spread_of"]

REACH = 10.0  # robust standard deviations from the median to the edge of the bulk
# Central parts of a column, and the width of each in standard deviations of a normal. The spread is measured by the
# first part that is more than a single value: where most of a column is zero, that is one of the later parts.
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

    If 99.8 % of a column are one value, the whole column is its bulk.

    Example:
        >>> import torch
        >>> from mixflow.start.robust import bulk
        >>> bulk(torch.cat([torch.linspace(-1.0, 1.0, 101), torch.tensor([1e9])]).unsqueeze(-1))
        (tensor([-1.]), tensor([7.5812]))

    """
    return bulk_in_order(in_order(x))


def bulk_in_order(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`bulk`, for columns ``ordered`` (N, D) that :func:`in_order` has sorted.

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
        # The subtraction comes before the division: the difference of close numbers is exact, whatever their offset.
        spread = (_quantile(ordered, 0.5 + part / 2) - _quantile(ordered, 0.5 - part / 2)) / width
        found = open_columns & (spread > 0.0)
        low = torch.where(found, torch.maximum(low, median - REACH * spread), low)
        high = torch.where(found, torch.minimum(high, median + REACH * spread), high)
        open_columns = open_columns & ~found
    return low, high


def clipped(x: Tensor, edges: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """The columns of ``x`` (N, D), with each value outside its column's bulk moved to the nearer edge of the bulk.

    A caller that has the edges of the bulk passes them as ``edges``.
    """
    low, high = bulk(x) if edges is None else edges
    return torch.minimum(torch.maximum(x, low), high)


def moments(x: Tensor, edges: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (D,), of the columns of ``x`` (N, D) after clipping to ``edges``.

    By default ``edges`` are those of the bulk. The standard deviation of a single row is 0.
    """
    kept = clipped(x, edges)
    # This is a mean of differences: a sum of the values themselves would be rounded at the size of their offset.
    middle = kept[len(kept) // 2]
    mean = middle + (kept - middle).mean(dim=0)
    return mean, (kept - mean).square().sum(dim=0).div(max(1, len(x) - 1)).sqrt()


def spread_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the bulk of each column of ``x`` (N, D), as :func:`moments`, if all columns vary.

    Raises:
        ValueError: a single row, or a column without a positive, finite deviation.

    """
    if len(x) < 2:
        raise ValueError(f"x: expected at least 2 rows, to take a standard deviation of, got {len(x)}")
    loc, spread = moments(x)
    low, high = x.amin(dim=0), x.amax(dim=0)
    wrong = ((low == high) | ~(spread > 0.0) | spread.isinf()).nonzero()
    if len(wrong):
        column = int(wrong[0])
        raise ValueError(
            f"x: expected columns that vary, with a standard deviation that fits in {x.dtype}, got numbers from "
            f"{low[column].item():g} to {high[column].item():g} in column {column} (counted from 0)"
        )
    return loc, spread


def _quantile(ordered: Tensor, part: float) -> Tensor:
    """The quantiles (D,) of the sorted columns ``ordered`` (N, D) at ``part``; each is a value of its column."""
    return ordered[min(len(ordered) - 1, math.floor(part * len(ordered)))]
