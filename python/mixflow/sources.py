"""Where the rows of a training run come from: tensors, arrays, memory maps, files and loaders.

Rows are taken in an order that is a function of the seed, the epoch and the position alone, computed where it is
needed: no index of all rows is held, every process of several knows every batch, and a resumed run meets the batches
that it would have met.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .files import PathLike
from .parallel import Group
from .tables import map_table

__all__ = ["Batch", "Data", "Loader", "Rows", "Subset", "is_loader", "shuffled"]

CHUNK = 1 << 16  # rows that are in memory at a time, beside what the caller holds there

Array: TypeAlias = NDArray[Any]
Data: TypeAlias = Tensor | ArrayLike | PathLike | Iterable[Any]


@dataclass(frozen=True)
class Batch:
    """Rows to score together: this process's ``x`` (n, D) and ``context`` (n, C), of ``rows`` in all processes."""

    x: Tensor
    context: Tensor | None
    rows: int


def is_loader(data: object) -> bool:
    """Whether ``data`` is a stream of batches: a DataLoader, an IterableDataset or another iterable that is no array.

    Example:
        >>> from mixflow.sources import is_loader
        >>> is_loader([1.0, 2.0]), is_loader(iter([1.0, 2.0]))
        (False, True)

    """
    if isinstance(data, (DataLoader, IterableDataset)):
        return True
    return isinstance(data, Iterable) and not hasattr(data, "__array__") and not hasattr(data, "__getitem__")


# -- order ---------------------------------------------------------------------------------------------------


def shuffled(positions: NDArray[np.int64], count: int, *key: int) -> NDArray[np.int64]:
    """Where the pseudo-random permutation of ``range(count)`` that ``key`` names sends ``positions``.

    A Feistel network over the next power of two, walked until the result is below ``count`` (Black and Rogaway,
    "Ciphers with Arbitrary Finite Domains", 2002; as a shuffle, Mitchell et al., 2022, arXiv:2106.06161). It needs
    no memory beyond ``positions``, and any part of the permutation can be had alone.

    Args:
        positions: integers in ``range(count)``.
        count: how many integers are permuted, at most 2^62.
        key: integers from 0 on; different ones give unrelated permutations.

    Example:
        >>> import numpy as np
        >>> from mixflow.sources import shuffled
        >>> sorted(shuffled(np.arange(10), 10, 7).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

    """
    # Twelve rounds: with eight, the permutations of a handful of rows are visibly not all as likely.
    keys = np.random.SeedSequence(key).generate_state(12)
    bits = max(2, (count - 1).bit_length())
    rows = _feistel(positions, bits, keys)
    while len(outside := np.flatnonzero(rows >= count)):
        rows[outside] = _feistel(rows[outside], bits, keys)
    return rows


def _feistel(values: NDArray[np.int64], bits: int, keys: NDArray[Any]) -> NDArray[np.int64]:
    low = bits // 2
    left, right = (values >> low).astype(np.uint32), (values & ((1 << low) - 1)).astype(np.uint32)
    mask, other = np.uint32((1 << (bits - low)) - 1), np.uint32((1 << low) - 1)
    for key in keys:
        mixed = right + key
        mixed *= np.uint32(0x85EBCA6B)
        mixed ^= mixed >> np.uint32(13)
        mixed *= np.uint32(0xC2B2AE35)
        mixed ^= mixed >> np.uint32(16)
        mixed &= mask
        mixed ^= left
        left, right, mask, other = right, mixed, other, mask
    return (left.astype(np.int64) << low) | right


# -- rows by number ------------------------------------------------------------------------------------------


class Rows:
    """Finite rows of numbers, (N, columns), by number.

    A tensor or an array is converted once and held. A memory map or a file is read where it is needed and
    converted batch by batch: at no time is more of it in memory than a chunk.

    Args:
        name: what errors call the values.
        values: (N, columns), or (N,) for one column; or the path of a table. One that is no .npy file is first
            copied, in chunks, to a nameless temporary file that can be mapped.
        columns: how many columns there must be.
        like: a tensor of the dtype and on the device that rows are wanted in.
        names: the columns to read from a file that names them.

    Raises:
        TypeError: not real numbers.
        ValueError: the wrong shape, no rows, or a value that is not finite in that dtype.

    Example:
        >>> import numpy as np, torch
        >>> from mixflow.sources import Rows
        >>> Rows("data", [[1, 2], [3, 4], [5, 6]], 2, torch.empty(0)).take(np.array([2, 0]))
        tensor([[5., 6.],
                [1., 2.]])

    """

    def __init__(self, name: str, values: Data, columns: int, like: Tensor, names: Sequence[str] | None = None) -> None:
        self.name = name
        self.like = like
        if isinstance(values, (str, os.PathLike)):
            values = map_table(values, names).values
        held = _require_shape(name, _require_numbers(name, values), columns)
        if len(held) == 0:
            raise ValueError(f"{name}: expected at least one row, got none")
        self.values = held if isinstance(held, np.ndarray) and _is_mapped(held) else _to_tensor(held, like)
        self.digest = self._read_once()

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: NDArray[np.int64]) -> Tensor:
        """The rows with the numbers ``rows``, in that order: (len(rows), columns)."""
        if isinstance(self.values, Tensor):
            return self.values.index_select(0, torch.from_numpy(rows).to(self.values.device))
        return _to_tensor(self.values[rows], self.like)

    def chunks(self) -> Iterator[Tensor]:
        """All rows, in order."""
        for start in range(0, len(self), CHUNK):
            part = self.values[start : start + CHUNK]
            yield part if isinstance(part, Tensor) else _to_tensor(part, self.like)

    def _read_once(self) -> str:
        digest = hashlib.sha256()
        for number, chunk in enumerate(self.chunks()):
            _require_finite(self.name, chunk, number * CHUNK)
            digest.update(chunk.cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _require_shape(name: str, values: Tensor | Array, columns: int) -> Tensor | Array:
    """``values`` of shape (N, columns), as which (N,) counts where ``columns`` is 1."""
    rows = values[:, None] if values.ndim == 1 and columns == 1 else values
    if rows.ndim != 2 or rows.shape[1] != columns:
        expected = "(N,) or (N, 1)" if columns == 1 else f"(N, {columns})"
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(values.shape)}")
    return rows


def _require_finite(name: str, values: Tensor, first: int = 0) -> None:
    """ValueError for a number in ``values`` (n, D), rows from number ``first`` on, that is not finite."""
    finite = values.isfinite()
    if finite.all():
        return
    row, column = (~finite).nonzero()[0].tolist()
    raise ValueError(
        f"{name}: expected finite numbers, got {values[row, column].item()} in row {first + row}, column {column} "
        f"(counted from 0, as {values.dtype})"
    )


def _require_numbers(name: str, values: Any) -> Tensor | Array:
    if isinstance(values, Dataset):
        raise TypeError(f"{name}: expected numbers or batches of them; wrap a Dataset in a torch.utils.data.DataLoader")
    if isinstance(values, Tensor):
        if values.is_complex() or values.dtype == torch.bool:
            raise TypeError(f"{name}: expected real numbers, got {values.dtype}")
        return values.detach()
    try:
        array = values if isinstance(values, np.ndarray) else np.asarray(values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array of real numbers ({error})") from error
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected an array of real numbers, got {array.dtype}")
    return array


def _is_mapped(array: Array) -> bool:
    base: object = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return False


def _to_tensor(values: Tensor | Array, like: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        # A copy: torch would otherwise share, and warn about, memory that may be read-only.
        native = values.dtype.isnative and values.dtype in (np.float32, np.float64, np.int64)
        values = torch.from_numpy(np.array(values, dtype=None if native else np.float64, subok=False))
    return values.to(like)


@dataclass(frozen=True)
class Subset:
    """Some of the rows of a run: positions ``start`` to ``stop`` in the order of a permutation, or in their own order.

    Attributes:
        x: the data.
        context: the context, row by row; None for a flow without.
        start: the first position.
        stop: one past the last.
        seed: names the permutation that all subsets of a run share; None for the rows' own order.

    """

    x: Rows
    context: Rows | None
    start: int
    stop: int
    seed: int | None

    def __len__(self) -> int:
        return self.stop - self.start

    def first(self, count: int, group: Group) -> tuple[Tensor, Tensor | None]:
        """At most ``count`` rows from the start of the subset, the same on all processes."""
        return self._take(np.arange(min(count, len(self))))

    def batches(self, size: int, group: Group, epoch: int | None = None) -> Iterator[Batch]:
        """This process's shard of every batch of ``size`` rows, shuffled anew for each ``epoch`` if one is given."""
        step = size * max(1, CHUNK // size)
        for start in range(0, len(self), step):
            positions = np.arange(start, min(start + step, len(self)))
            if epoch is not None:
                assert self.seed is not None
                positions = shuffled(positions, len(self), self.seed, epoch + 1)
            batches = [positions[first : first + size] for first in range(0, len(positions), size)]
            shards = [batch[group.shard(len(batch))] for batch in batches]
            x, context = self._take(np.concatenate(shards))
            lengths = [len(shard) for shard in shards]
            contexts = [None] * len(shards) if context is None else context.split(lengths)
            for batch, own_x, own_context in zip(batches, x.split(lengths), contexts, strict=True):
                yield Batch(own_x, own_context, len(batch))

    def steps(self, size: int) -> int:
        """The number of batches of ``size`` rows."""
        return math.ceil(len(self) / size)

    def _take(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        rows = self.start + positions
        if self.seed is not None:
            rows = shuffled(rows, len(self.x), self.seed, 0)
        return self.x.take(rows), None if self.context is None else self.context.take(rows)


# -- batches by a loader -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loader:
    """Batches that an iterable makes: ``x`` or ``(x, context)``, anew for each epoch.

    With several processes, each brings its own: the loader's sampler, such as a ``DistributedSampler``, gives each its
    shard. Before each epoch ``set_epoch`` is called on the sampler if it has such a method.

    Attributes:
        name: what errors call the batches.
        batches_of: the iterable.
        features: D.
        context: C; 0 for a flow without.
        like: a tensor of the dtype and on the device that rows are wanted in.

    """

    name: str
    batches_of: Iterable[Any]
    features: int
    context: int
    like: Tensor

    def first(self, count: int, group: Group) -> tuple[Tensor, Tensor | None]:
        """Rows of the first batches of all processes together, about ``count`` of them if there are so many."""
        rows, own = 0, []
        for x, context in self._each():
            own.append((x.cpu(), None if context is None else context.cpu()))
            rows += len(x)
            if rows >= count // group.size:
                break
        taken = list(chain.from_iterable(group.gather(own)))
        if not taken:
            raise ValueError(f"{self.name}: expected at least one row, got none")
        contexts = [context for _, context in taken if context is not None]
        return torch.cat([x for x, _ in taken]).to(self.like), torch.cat(contexts).to(self.like) if contexts else None

    def batches(self, size: int, group: Group, epoch: int | None = None) -> Iterator[Batch]:
        """The loader's batches; ``size`` is its own affair. A process that runs out of them waits with empty ones."""
        for sampler in (getattr(self.batches_of, name, None) for name in ("sampler", "batch_sampler")):
            if epoch is not None and hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)  # type: ignore[union-attr]
        each = self._each()
        nothing = self.like.new_empty(0, self.features), self.like.new_empty(0, self.context) if self.context else None
        while True:
            x, context = next(each, nothing)
            rows = int(group.sum_(torch.tensor(len(x), device=self.like.device)))
            if rows == 0:
                return
            yield Batch(x, context, rows)

    def steps(self, size: int) -> int | None:
        """The number of batches in an epoch, None if the loader does not know."""
        try:
            return len(self.batches_of)  # type: ignore[arg-type]
        except TypeError:
            return None

    def _each(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for number, item in enumerate(self.batches_of):
            parts = item if isinstance(item, (tuple, list)) else (item,)
            expected = 2 if self.context else 1
            if len(parts) != expected:
                wanted = "(x, context)" if self.context else "x or (x,)"
                raise ValueError(f"{self.name}: expected batches {wanted}, got {len(parts)} parts in batch {number}")
            where = f"batch {number}"
            x = self._part(f"{self.name}, {where}", parts[0], self.features)
            context = self._part(f"context, {where}", parts[1], self.context) if self.context else None
            if context is not None and len(context) != len(x):
                raise ValueError(f"context, {where}: expected {len(x)} rows, as many as x; got {len(context)}")
            if len(x):  # an empty batch would look like the end to the other processes
                yield x, context

    def _part(self, name: str, values: Any, columns: int) -> Tensor:
        rows = _to_tensor(_require_shape(name, _require_numbers(name, values), columns), self.like)
        _require_finite(name, rows)
        return rows
