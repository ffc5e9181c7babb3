"""What a step of training gets: rows, their context and their weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

__all__ = ["Batch", "Part"]

# Rows of x (n, D); of the context (n, C), None for a flow without; and their weights (n,), None where all count alike.
Part: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Batch:
    """Rows to score together, shared out over the processes.

    Attributes:
        x: this process's rows, (n, D).
        context: their context, (n, C); None for a flow without.
        weight: their weights, (n,), torch.float64; None where all rows count alike.
        rows: the number of rows in all processes.
        total: the sum of the weights in all processes, which is 0.0 where all are; without weights, ``rows``.

    """

    x: Tensor
    context: Tensor | None
    weight: Tensor | None
    rows: int
    total: float
