"""Rows by number: from a tensor or an array in memory, or from a memory map or a file, which is read in batches."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import _core
from ...files.tables import map_table
from .numbers import Array, Data, require_finite, require_not_negative, require_numbers, require_shape, to_tensor

__all__ = ["CHUNK", "Rows", "check_weights", "send"]

CHUNK = 1 << 16  # rows that are in memory at a time, in addition to data of the caller's


class Rows:
    """Rows of finite numbers, (N, columns), by number.

    A tensor or an array is converted once and held. A memory map or a file is read when rows are taken, and converted
    batch by batch: at most one chunk of it is in memory at a time.

    Args:
        name: the name of the values in errors.
        values: (N, columns), or (N,) for one column; or the path of a table. A file that is no .npy file is first
            copied, in chunks, to a temporary file without a name, which can be mapped.
        columns: the number of columns; or the shape of each row, such as that of an image, whose numbers are then the
            columns; None for any shape.
        like: a tensor on the device where rows are to be; its dtype does not matter.
        names: the columns to read, if a file names its columns.

    Attributes:
        shape: the shape of each row.
        digest: the SHA-256 of all values, in the precision in which rows are taken.

    Raises:
        TypeError: the values are not real numbers, or they are masked, sparse, nested, quantized or without storage.
        ValueError: the shape is wrong, there are no rows, or a value is not finite.

    Example:
        >>> import numpy as np, torch
        >>> from mixflow.fitting.sources import Rows
        >>> Rows("data", np.float32([[1, 2], [3, 4], [5, 6]]), 2, torch.empty(0)).take(np.array([2, 0]))
        tensor([[5., 6.],
                [1., 2.]])
        >>> Rows("data", [1_700_000_001, 1_700_000_002], 1, torch.empty(0)).take(np.array([0])).dtype
        torch.float64

    """

    def __init__(
        self,
        name: str,
        values: Data,
        columns: int | torch.Size | None,
        like: Tensor,
        names: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.device = like.device
        self.notes: list[str] = []
        if isinstance(values, (str, os.PathLike)):
            table = map_table(values, names)
            values, self.notes = table.values, table.notes
        held = require_shape(name, require_numbers(name, values), columns)
        if len(held) == 0:
            raise ValueError(f"{name}: expected at least one row, got none")
        self.shape = torch.Size(held.shape[1:])
        self.keeps_integers = columns is None  # then the values are a context, and an embedding takes them
        held = held.reshape(len(held), -1)
        self._map = _memory_map(held) if isinstance(held, np.ndarray) else None
        self.values = self._tensor(held) if self._map is None else held
        self.digest = self._read_once()
        self._table = _as_table(self.values)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """The rows with the numbers ``rows``, in that order: (len(rows), columns), torch.float32 or torch.float64.

        Raises:
            IndexError: there is no row with one of the numbers.

        """
        rows = np.ascontiguousarray(rows, np.int64)
        if isinstance(self.values, Tensor):
            if self._table is not None:
                taken = self.values.new_empty(len(rows), self.values.shape[1])
                _core.take_rows(self._table, rows, taken.numpy())
                return taken
            return self.values.index_select(0, send(torch.from_numpy(rows), self.values.device))
        self._check_length()
        return send(to_tensor(self.values[rows], torch.device("cpu"), self.keeps_integers), self.device)

    def _tensor(self, values: Tensor | Array) -> Tensor:
        return to_tensor(values, self.device, self.keeps_integers)

    def take_shaped(self, rows: NDArray[np.int64]) -> Tensor:
        """The same rows, each in its own shape."""
        return self.take(rows).reshape(-1, *self.shape)

    def chunks(self) -> Iterator[Tensor]:
        """All rows, in order and in the dtype of :meth:`take`, ``CHUNK`` at a time."""
        for start in range(0, len(self), CHUNK):
            self._check_length()
            part = self.values[start : start + CHUNK]
            yield part if isinstance(part, Tensor) else self._tensor(part)

    def _check_length(self) -> None:
        """ValueError if the mapped file was cut short. Reading beyond its end would end the process."""
        if self._map is not None and self._map.size() < len(self._map):
            raise ValueError(f"{self.name}: the file was cut short while it was read; read a copy of it")

    def _read_once(self) -> str:
        digest = hashlib.sha256()
        for number, chunk in enumerate(self.chunks()):
            require_finite(self.name, chunk, number * CHUNK)
            digest.update(chunk.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def check_weights(weights: Rows) -> Rows:
    """``weights``, one column, if they can be weights of rows.

    Raises:
        ValueError: a weight is negative, none is positive, or float64 cannot hold their sum.

    Example:
        >>> import torch
        >>> from mixflow.fitting.sources import Rows, check_weights
        >>> check_weights(Rows("weights", [1.0, 0.0, -2.0], 1, torch.empty(0)))
        Traceback (most recent call last):
        ...
        ValueError: weights: expected weights of at least 0, got -2.0 in row 2 (counted from 0)

    """
    total = 0.0
    for number, chunk in enumerate(weights.chunks()):
        require_not_negative(weights.name, chunk, number * CHUNK)
        total += chunk.sum(dtype=torch.float64).item()
    if total == 0.0:
        raise ValueError(f"{weights.name}: expected at least one positive weight, got zeros alone")
    if total == math.inf:
        raise ValueError(f"{weights.name}: expected weights with a sum that float64 can hold, got a larger one")
    return weights


def _memory_map(array: Array) -> mmap.mmap | None:
    """The memory map that ``array`` is a view of; None for an array in memory."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def _as_table(values: Tensor | Array) -> Array | None:
    """``values`` (N, columns) as an array, if the core can take rows from it: on the CPU, each row in one piece."""
    if type(values) is not Tensor or not values.is_cpu:
        return None
    return values.numpy() if values.stride(1) == 1 or values.shape[1] == 1 else None


def send(values: Tensor, device: torch.device) -> Tensor:
    """``values``, which are on the CPU, on ``device``. A GPU copies them from pinned memory while the caller goes on.

    Example:
        >>> import torch
        >>> from mixflow.fitting.sources import send
        >>> send(torch.zeros(2), torch.device("cpu"))
        tensor([0., 0.])

    """
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
