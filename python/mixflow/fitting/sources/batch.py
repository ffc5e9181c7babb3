"""The input of a step of training: rows, their context and their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

__all__ = ["Batch", "Part"]

# Rows of x (n, D), their context (n, C), None for a flow without one, and their weights (n,), None if all are the same.
Part: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Batch:
    """Rows that are scored together, split over the processes.

    Attributes:
        x: this process's rows, (n, D).
        context: their context, (n, C); None for a flow without one.
        weight: their weights, (n,), torch.float64; None if all rows count the same.
        rows: the number of rows in all processes.
        total: the sum of the weights in all processes, which may be 0.0; without weights, ``rows``.

    """

    x: Tensor
    context: Tensor | None
    weight: Tensor | None
    rows: int
    total: float
