"""Some of the rows of a run, batch by batch, in an order that is shuffled anew for each epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..parallel import Group
from ..threads import one_thread
from .batch import Batch, Part
from .order import shuffled
from .rows import CHUNK, Rows, send

__all__ = ["Subset"]

TAKEN = 1 << 17  # numbers that are taken at a time, at least one batch; they stay in the L2 cache until they are used


@dataclass(frozen=True)
class Subset:
    """Some of the rows of a run: positions ``start`` to ``stop`` in the order of a permutation, or in their own order.

    Attributes:
        x: the data.
        context: the context, row by row; None for a flow without one.
        weight: the weights, row by row, on the CPU, as :func:`check_weights` returns them; None if all rows count the
            same.
        start: the first position.
        stop: one past the last position.
        seed: the seed of the permutation, which all subsets of a run share; None for the rows' own order.

    """

    x: Rows
    context: Rows | None
    weight: Rows | None
    start: int
    stop: int
    seed: int | None

    def __len__(self) -> int:
        return self.stop - self.start

    def first(self, count: int, group: Group) -> Part:
        """``(x, context, weight)`` of at most ``count`` rows from the start of the subset, the same on all processes.

        Their shapes are (n, D), (n, C) and (n,). The weights are torch.float64.
        """
        return self._take(np.arange(min(count, len(self))))

    def batches(self, size: int, group: Group, epoch: int | None = None) -> Iterator[Batch]:
        """This process's shard of each batch of ``size`` rows. If an ``epoch`` is given, the order is its own."""
        numbers = self.x.shape.numel() + (0 if self.context is None else self.context.shape.numel())
        step = size * max(1, min(CHUNK, TAKEN // max(1, numbers)) // size)
        for start in range(0, len(self), step):
            positions = self._positions(start, min(start + step, len(self)), epoch)
            batches = [positions[first : first + size] for first in range(0, len(positions), size)]
            shards = [batch[group.shard(len(batch))] for batch in batches]
            own = positions if group.size == 1 else np.concatenate(shards)
            lengths = [len(shard) for shard in shards]
            with one_thread():
                x, context, _ = self._take(own, weighted=False)
                weights, totals = self._weigh(batches, group)
            contexts = [None] * len(shards) if context is None else context.split(lengths)
            parts = zip(batches, x.split(lengths), contexts, weights, totals, strict=True)
            for batch, own_x, own_context, own_weight, total in parts:
                yield Batch(own_x, own_context, own_weight, len(batch), total)

    def steps(self, size: int) -> int:
        """The number of batches of ``size`` rows."""
        return math.ceil(len(self) / size)

    def total(self) -> float:
        """The sum of the weights of the subset; without weights, its number of rows.

        It is the same for any number of processes, because each process adds all weights in the same order.
        """
        return self._total

    @cached_property
    def _total(self) -> float:
        if self.weight is None:
            return float(len(self))
        starts = range(0, len(self), CHUNK)
        chunks = (self._weights(np.arange(start, min(start + CHUNK, len(self)))) for start in starts)
        return sum((chunk.sum().item() for chunk in chunks), 0.0)

    def _positions(self, start: int, stop: int, epoch: int | None) -> NDArray[np.int64]:
        """The positions ``start`` to ``stop`` of the subset, in its own order or in that of ``epoch``."""
        if epoch is None:
            return np.arange(start, stop)
        assert self.seed is not None
        return shuffled(range(start, stop), len(self), self.seed, epoch + 1)

    def _weigh(self, batches: list[NDArray[np.int64]], group: Group) -> tuple[Sequence[Tensor | None], list[float]]:
        """This process's weights for each of ``batches``, and the sum of the weights of all processes."""
        if self.weight is None:
            return [None] * len(batches), [float(len(batch)) for batch in batches]
        # Every process reads the weights of all. The sum is then the same as with one process, bit for bit.
        weights = self._weights(np.concatenate(batches)).split([len(batch) for batch in batches])
        totals: list[float] = torch.stack([weight.sum() for weight in weights]).tolist()
        return [send(weight[group.shard(len(weight))], self.x.device) for weight in weights], totals

    def _take(self, positions: NDArray[np.int64], weighted: bool = True) -> Part:
        rows = self._numbers(positions)
        context = None if self.context is None else self.context.take_shaped(rows)
        weight = send(self._weights(positions), self.x.device) if weighted and self.weight else None
        return self.x.take(rows), context, weight

    def _weights(self, positions: NDArray[np.int64]) -> Tensor:
        assert self.weight is not None
        return self.weight.take(self._numbers(positions)).double().squeeze(-1)

    def _numbers(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of the rows at ``positions`` of the subset."""
        rows = self.start + positions
        return rows if self.seed is None else shuffled(rows, len(self.x), self.seed, 0)
