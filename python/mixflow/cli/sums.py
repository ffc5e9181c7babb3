"""Sums that do not depend on how their numbers are cut into chunks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sum"]

_BLOCK = 4096  # so many numbers are added in float64, and the sums of such blocks are added exactly


class Sum:
    """A sum of numbers (n,) that come in chunks. It is the same to the last bit wherever the chunks are cut.

    NaN and infinity have the same effect as in ``math.fsum``, and so have errors.
    """

    def __init__(self) -> None:
        self._blocks: list[float] = []
        self._rest: NDArray[Any] = np.empty(0)

    def add(self, chunk: NDArray[Any]) -> None:
        """Add numbers. They are summed in float64, in blocks of equal length from the first number on."""
        rest = np.concatenate([self._rest, chunk])
        whole = len(rest) // _BLOCK * _BLOCK
        self._blocks += map(_sum_of_block, rest[:whole].reshape(-1, _BLOCK))
        self._rest = rest[whole:]

    def value(self) -> float:
        """The sum so far."""
        return math.fsum([*self._blocks, _sum_of_block(self._rest)])


def _sum_of_block(values: NDArray[Any]) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(values.sum())
    return total if math.isfinite(total) else math.fsum(values.tolist())
