"""Where the rows of a training run come from: tensors, arrays, memory maps, files and loaders.

Rows are taken in an order that is a function of the seed, the epoch and the position alone, computed where it is
needed: no index of all rows is held, every process of several knows every batch, and a resumed run meets the batches
that it would have met.

Rows keep the precision of the data, whatever that of the flow: float32 stays float32 and float64 stays float64. Halves
become float32, which holds them all, and every other kind of number becomes float64.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .. import _core
from ..files.atomic import PathLike
from ..files.tables import map_table
from .parallel import Group
from .threads import one_thread

__all__ = ["Batch", "Data", "Loader", "Part", "Rows", "Subset", "check_weights", "is_loader", "send", "shuffled"]

CHUNK = 1 << 16  # rows that are in memory at a time, beside what the caller holds there
TAKEN = 1 << 17  # numbers that are taken at a time, or one batch: they are still in the L2 cache when they are used

Array: TypeAlias = NDArray[Any]
Data: TypeAlias = Tensor | ArrayLike | PathLike | Iterable[Any]
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


def is_loader(data: object) -> bool:
    """Whether ``data`` is a stream of batches: a DataLoader, an IterableDataset or another iterable that is no array.

    Example:
        >>> from mixflow.fitting.sources import is_loader
        >>> is_loader([1.0, 2.0]), is_loader(iter([1.0, 2.0]))
        (False, True)

    """
    if isinstance(data, (DataLoader, IterableDataset)):
        return True
    if _is_sparse(data):
        return False
    return isinstance(data, Iterable) and not hasattr(data, "__array__") and not hasattr(data, "__getitem__")


# -- order ---------------------------------------------------------------------------------------------------


def shuffled(positions: NDArray[np.int64] | range, count: int, *key: int) -> NDArray[np.int64]:
    """Where the pseudo-random permutation of ``range(count)`` that ``key`` names sends ``positions``.

    A Feistel network over the next power of two, walked until the result is below ``count`` (Black and Rogaway,
    "Ciphers with Arbitrary Finite Domains", 2002; as a shuffle, Mitchell et al., 2022, arXiv:2106.06161). It needs
    no memory beyond ``positions``, and any part of the permutation can be had alone.

    Args:
        positions: integers in ``range(count)``; a range of step 1 takes no memory.
        count: how many integers are permuted, at most 2^62.
        key: integers from 0 on; different ones give unrelated permutations.

    Raises:
        IndexError: a position outside ``range(count)``.

    Example:
        >>> import numpy as np
        >>> from mixflow.fitting.sources import shuffled
        >>> sorted(shuffled(np.arange(10), 10, 7).tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

    """
    # Twelve rounds: with eight, the permutations of a handful of rows are visibly not all as likely.
    keys = np.random.SeedSequence(key).generate_state(12)
    rows = np.empty(len(positions), np.int64)
    if isinstance(positions, range) and positions.step == 1:
        _core.permute(keys, count, positions.start, rows)
    else:
        _core.permute(keys, count, np.ascontiguousarray(positions, np.int64), rows)
    return rows


# -- rows by number ------------------------------------------------------------------------------------------


class Rows:
    """Finite rows of numbers, (N, columns), by number.

    A tensor or an array is converted once and held. A memory map or a file is read where it is needed and
    converted batch by batch: at no time is more of it in memory than a chunk.

    Args:
        name: what errors call the values.
        values: (N, columns), or (N,) for one column; or the path of a table. One that is no .npy file is first
            copied, in chunks, to a nameless temporary file that can be mapped.
        columns: how many columns there must be; or the shape of each row, such as that of an image, whose numbers are
            then the columns; None for any shape.
        like: a tensor on the device that rows are wanted on; its dtype does not matter.
        names: the columns to read from a file that names them.

    Attributes:
        shape: of each row.
        digest: the SHA-256 of all values, in the precision in which rows are taken.

    Raises:
        TypeError: not real numbers, or numbers that are masked, sparse, nested, quantized or without storage.
        ValueError: the wrong shape, no rows, or a value that is not finite.

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
        held = _require_shape(name, _require_numbers(name, values), columns)
        if len(held) == 0:
            raise ValueError(f"{name}: expected at least one row, got none")
        self.shape = torch.Size(held.shape[1:])
        self.keeps_integers = columns is None  # of a context that an embedding takes
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
            IndexError: a number that is no row's.

        """
        rows = np.ascontiguousarray(rows, np.int64)
        if isinstance(self.values, Tensor):
            if self._table is not None:
                taken = self.values.new_empty(len(rows), self.values.shape[1])
                _core.take_rows(self._table, rows, taken.numpy())
                return taken
            return self.values.index_select(0, send(torch.from_numpy(rows), self.values.device))
        self._check_length()
        return send(_to_tensor(self.values[rows], torch.device("cpu"), self.keeps_integers), self.device)

    def _tensor(self, values: Tensor | Array) -> Tensor:
        return _to_tensor(values, self.device, self.keeps_integers)

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
        """ValueError if the mapped file was cut short: the system would end a process that reads beyond the end."""
        if self._map is not None and self._map.size() < len(self._map):
            raise ValueError(f"{self.name}: the file was cut short while it was read; read a copy of it")

    def _read_once(self) -> str:
        digest = hashlib.sha256()
        for number, chunk in enumerate(self.chunks()):
            _require_finite(self.name, chunk, number * CHUNK)
            digest.update(chunk.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def _require_shape(name: str, values: Tensor | Array, columns: int | torch.Size | None) -> Tensor | Array:
    """``values`` of shape (N, columns), as which (N,) counts where ``columns`` is 1; or of another shape of rows."""
    shape = torch.Size([columns]) if isinstance(columns, int) else columns
    rows = values[:, None] if values.ndim == 1 and shape == (1,) else values
    if rows.ndim == 0 or (shape is not None and tuple(rows.shape[1:]) != tuple(shape)):
        expected = "(N,) or (N, 1)" if shape == (1,) else f"(N, {', '.join(map(str, shape or ['...']))})"
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(values.shape)}")
    return rows


def _require_finite(name: str, values: Tensor, first: int = 0) -> None:
    """ValueError for a number in ``values`` (n, D), rows from number ``first`` on, that is not finite."""
    # Numpy looks at them in one pass and on one thread, torch in five passes, each of which waits for all threads.
    if type(values) is Tensor and values.is_cpu and np.isfinite(values.numpy()).all():
        return
    finite = values.isfinite()
    if finite.all():
        return
    row, column = (~finite).nonzero()[0].tolist()
    raise ValueError(
        f"{name}: expected finite numbers, got {values[row, column].item()} in row {first + row}, column {column} "
        f"(counted from 0, as {values.dtype})"
    )


def check_weights(weights: Rows) -> Rows:
    """``weights``, one column, if they can weight rows.

    Raises:
        ValueError: a negative weight, none that is positive, or a sum that float64 cannot hold.

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
        _require_not_negative(weights.name, chunk, number * CHUNK)
        total += chunk.sum(dtype=torch.float64).item()
    if total == 0.0:
        raise ValueError(f"{weights.name}: expected at least one positive weight, got zeros alone")
    if total == math.inf:
        raise ValueError(f"{weights.name}: expected weights with a sum that float64 can hold; got a larger one")
    return weights


def _require_not_negative(name: str, weights: Tensor, first: int = 0) -> None:
    """ValueError for a number in ``weights`` (n, 1), rows from number ``first`` on, that is below zero."""
    negative = (weights < 0).nonzero()
    if len(negative):
        row = int(negative[0, 0])
        raise ValueError(
            f"{name}: expected weights of at least 0, got {weights[row, 0].item()} in row {first + row} "
            "(counted from 0)"
        )


# -- what counts as numbers ----------------------------------------------------------------------------------

# Of torch's integers, those that can be converted; there are others, of a few bits, that cannot.
INTEGERS = tuple(
    getattr(torch, name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)
FILL = "fill or drop the masked rows first"


def _require_numbers(name: str, values: Any) -> Tensor | Array:
    """``values`` as a dense tensor or an array of real numbers, of any shape; TypeError if they are none."""
    if isinstance(values, Dataset):
        raise TypeError(f"{name}: expected numbers or batches of them; wrap a Dataset in a torch.utils.data.DataLoader")
    if isinstance(values, Tensor):
        return _require_dense(name, values)
    if _is_sparse(values):
        raise TypeError(
            f"{name}: expected a dense array of real numbers, got a sparse {type(values).__name__}; call .toarray()"
        )
    array = _as_array(name, values)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name}: expected an array of real numbers, got {_describe(values, array)}")
    return array


def _require_dense(name: str, values: Tensor) -> Tensor:
    got = None
    if values.is_nested:
        got = "a nested tensor; pad it or join its parts to one tensor first"
    elif values.layout != torch.strided:
        got = f"one of layout {values.layout}; call .to_dense()"
    elif values.is_quantized:
        got = f"one of {values.dtype}; call .dequantize()"
    elif values.is_meta:
        got = "one on the meta device, which holds no numbers"
    elif isinstance(values, torch.masked.MaskedTensor):
        got = f"a MaskedTensor; {FILL}"
    if got:
        raise TypeError(f"{name}: expected a dense tensor of real numbers, got {got}")
    if not values.is_floating_point() and values.dtype not in INTEGERS:
        raise TypeError(f"{name}: expected real numbers, got {values.dtype}")
    return values.detach().resolve_neg()


def _as_array(name: str, values: Any) -> Array:
    if isinstance(values, np.ndarray) and not isinstance(values, np.ma.MaskedArray):
        return values
    try:
        # numpy drops the mask without a word, so that what lies below it would be taken for data.
        masked = _holds_masked(values)
        array = None if masked else np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # torch raises RuntimeErrors, numpy the rest
        reason = str(error).partition("\n")[0]
        raise TypeError(f"{name}: expected an array of real numbers ({reason})") from error
    if array is None:
        raise TypeError(f"{name}: expected an array of real numbers, got a MaskedArray; {FILL}")
    return array


def _holds_masked(values: Any) -> bool:
    """Whether ``values`` is a masked array, or a list or tuple, however deep, that contains one."""
    if not isinstance(values, (list, tuple)):
        return isinstance(values, np.ma.MaskedArray)
    kinds = set(map(type, values))  # one look at each type: most lists are long and hold one or two
    if any(issubclass(kind, np.ma.MaskedArray) for kind in kinds):
        return True
    nested = any(issubclass(kind, (list, tuple)) for kind in kinds)
    return nested and any(_holds_masked(part) for part in values if isinstance(part, (list, tuple)))


def _describe(values: Any, array: Array) -> str:
    """What the TypeError about ``array``, made from ``values`` and not of numbers, says that it got."""
    dtype, where = array.dtype, ""
    # A table of columns of several kinds becomes an array of objects, which says nothing of the column at fault.
    if dtype.kind == "O" and hasattr(values, "columns") and hasattr(values, "dtypes"):
        columns = [pair for pair in zip(values.columns, values.dtypes, strict=True) if _kind(pair[1]) not in "iuf"]
        if columns:
            label, dtype = columns[0]
            where = f" in column {label!r}"
    if _kind(dtype) in "mM":
        unit = "timedelta64[s]" if _kind(dtype) == "m" else "datetime64[s]"
        method = "to_numpy" if hasattr(values, "to_numpy") else "astype"  # pandas makes no floats of its own dates
        return f'{dtype}{where}; convert to numbers, such as seconds by .{method}("{unit}").astype(float)'
    if where or dtype.kind != "O":
        return f"{dtype}{where}"
    if array.ndim == 0:
        return type(values).__name__
    return "object; convert to numbers, such as by .astype(float), after missing values are filled or dropped"


def _kind(dtype: Any) -> str:
    """The letter that numpy has for the kind of a dtype, and pandas for its own."""
    return str(getattr(dtype, "kind", "O"))


def _is_sparse(values: object) -> bool:
    """Whether ``values`` is a sparse matrix as scipy and cupy have them; some can be iterated, but are no stream."""
    return hasattr(values, "tocoo") and hasattr(values, "toarray")


def _memory_map(array: Array) -> mmap.mmap | None:
    """The map of a file that ``array`` is a view of; None for memory."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None


def _as_table(values: Tensor | Array) -> Array | None:
    """The memory of ``values`` (N, columns) if the core can take rows from it: each in one piece, on the CPU."""
    if type(values) is not Tensor or not values.is_cpu:
        return None
    return values.numpy() if values.stride(1) == 1 or values.shape[1] == 1 else None


def send(values: Tensor, device: torch.device) -> Tensor:
    """``values``, of the CPU, on ``device``. From pinned memory a GPU fetches them while the caller goes on.

    Example:
        >>> import torch
        >>> from mixflow.fitting.sources import send
        >>> send(torch.zeros(2), torch.device("cpu"))
        tensor([0., 0.])

    """
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def _to_tensor(values: Tensor | Array, device: torch.device, keeps_integers: bool = False) -> Tensor:
    """``values`` on ``device``, as torch.float32 where that holds them all, else as torch.float64.

    With ``keeps_integers``, integers become torch.int64: an embedding may take labels.
    """
    if keeps_integers and not (values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"):
        whole = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=np.int64))
        return whole.to(device, torch.int64)
    if not isinstance(values, Tensor):
        single = values.dtype.kind == "f" and values.dtype.itemsize <= 4
        with np.errstate(over="ignore"):  # of a long double; what becomes infinite is refused later, with its place
            # A copy: torch would otherwise share, and warn about, memory that may be read-only.
            values = torch.from_numpy(np.array(values, dtype=np.float32 if single else np.float64, subok=False))
    single = values.is_floating_point() and values.dtype != torch.float64
    return values.to(device, torch.float32 if single else torch.float64)


# -- some of the rows ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subset:
    """Some of the rows of a run: positions ``start`` to ``stop`` in the order of a permutation, or in their own order.

    Attributes:
        x: the data.
        context: the context, row by row; None for a flow without.
        weight: the weights that :func:`check_weights` has seen, row by row, on the CPU; None where all rows count the
            same.
        start: the first position.
        stop: one past the last.
        seed: names the permutation that all subsets of a run share; None for the rows' own order.

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

        They are of shapes (n, D), (n, C) and (n,); the weights are torch.float64.
        """
        return self._take(np.arange(min(count, len(self))))

    def batches(self, size: int, group: Group, epoch: int | None = None) -> Iterator[Batch]:
        """This process's shard of every batch of ``size`` rows, shuffled anew for each ``epoch`` if one is given."""
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
        """The sum of the weights of the subset, its number of rows without weights.

        It is the same whatever the number of processes: each adds all weights, in the same order.
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
        """The positions ``start`` to ``stop`` of the subset, or of its order in ``epoch``."""
        if epoch is None:
            return np.arange(start, stop)
        assert self.seed is not None
        return shuffled(range(start, stop), len(self), self.seed, epoch + 1)

    def _weigh(self, batches: list[NDArray[np.int64]], group: Group) -> tuple[Sequence[Tensor | None], list[float]]:
        """This process's weights for each of ``batches``, and the sum of the weights of all processes."""
        if self.weight is None:
            return [None] * len(batches), [float(len(batch)) for batch in batches]
        # Every process reads the weights of all: two processes then have the sum of one, bit for bit.
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


# -- batches by a loader -------------------------------------------------------------------------------------


@dataclass
class Loader:
    """Batches that an iterable makes, anew for each epoch or without an end.

    A batch is ``x``, ``(x,)``, ``(x, context)``, ``(x, context, weight)``, or a mapping with the key "x" and, where
    wanted, "context" and "weight". The context is None for a flow without; a list counts as a tuple. The shapes are
    (n, D), (n, C) and (n,) or (n, 1). Weights come with every batch or with none.

    With several processes, each brings its own: the loader's sampler, such as a ``DistributedSampler``, gives each its
    shard. Before each epoch ``set_epoch`` is called on the sampler if it has such a method.

    With ``steps_per_epoch`` an epoch goes on where the last one ended. A loader that runs out, in the middle of an
    epoch or not, is started anew, and its sampler is told the epoch then. A run that is resumed in a later epoch starts
    the loader, too: how far an iterable had got cannot be restored.

    Attributes:
        name: what errors call the batches.
        batches_of: the iterable.
        features: D; or the shape of an event of ``x``, whose numbers are then the columns of the batches.
        context: C; or the shape of a context, None for any; 0 for a flow without.
        like: a tensor on the device that rows are wanted on; its dtype does not matter.
        steps_per_epoch: the number of batches in an epoch, on each process; None for all that the iterable has.

    Raises:
        TypeError: on the way, for a batch that is not of real numbers; see :class:`Rows`.
        ValueError: on the way, for a batch of another form or shape, a number that is not finite, a negative weight, or
            weights in some batches only.

    Example:
        >>> import torch
        >>> from mixflow.fitting.parallel import Group
        >>> from mixflow.fitting.sources import Loader
        >>> def simulate():
        ...     while True:
        ...         yield {"x": torch.zeros(5, 2), "weight": torch.full((5,), 0.5)}
        >>> loader = Loader("data", simulate(), 2, 0, torch.empty(0), steps_per_epoch=3)
        >>> [(batch.rows, batch.total) for batch in loader.batches(5, Group(), epoch=0)]
        [(5, 2.5), (5, 2.5), (5, 2.5)]

    """

    name: str
    batches_of: Iterable[Any]
    features: int | torch.Size
    context: int | torch.Size | None
    like: Tensor
    steps_per_epoch: int | None = None
    _ahead: Iterator[Part] | None = field(default=None, init=False, repr=False)  # a stream that cannot start anew
    _stream: Iterator[Part] | None = field(default=None, init=False, repr=False)  # that the next epoch goes on with
    _starts: int = field(default=-1, init=False, repr=False)  # what samplers were last told
    _weighted: bool | None = field(default=None, init=False, repr=False)  # None before the first batch

    def first(self, count: int, group: Group) -> Part:
        """``(x, context, weight)`` of the first batches of all processes together, about ``count`` rows if there are.

        They are on the device of ``like``. From an iterator, which would not give these batches again, they are kept
        for the first epoch.
        """
        stream = iter(self.batches_of)
        each = self._each(stream)
        rows, own = 0, []
        for part in each:
            own.append(part)
            rows += len(part[0])
            if rows >= count // group.size:
                break
        if stream is self.batches_of:
            self._ahead = chain(own, each)
        sent = [tuple(None if values is None else values.cpu() for values in part) for part in own]
        taken = list(chain.from_iterable(group.gather(sent)))
        if not taken:
            raise ValueError(f"{self.name}: expected at least one row, got none")
        self._require_alike(sum(weight is not None for _, _, weight in taken), len(taken))
        x, context, weight = (self._join(values) for values in zip(*taken, strict=True))
        assert x is not None
        return x, context, weight

    def batches(self, size: int, group: Group, epoch: int | None = None) -> Iterator[Batch]:
        """The loader's batches: those of ``epoch``, or all of them if that is None.

        ``size`` is the loader's own affair. A process that runs out of batches waits with empty ones.
        """
        each = self._epoch(epoch)
        columns = self.features if isinstance(self.features, int) else self.features.numel()
        nothing = self.like.new_empty(0, columns), None if self.context == 0 else self.like.new_empty(0, 1)
        while True:
            x, context, weight = next(each, (*nothing, None))
            # A process alone knows how many rows there are, and need not wait for the device to be told.
            device = self.like.device if group.size > 1 or weight is not None else torch.device("cpu")
            counts = torch.tensor([len(x), 0, 0], dtype=torch.float64, device=device)
            if weight is not None:
                counts[1], counts[2] = weight.sum(), len(x)
            rows, total, weighted = group.sum_(counts).tolist()
            if rows == 0:
                return
            self._require_alike(weighted, rows)
            if weighted and weight is None:
                weight = counts.new_empty(0)
            yield Batch(x, context, weight, int(rows), total if weighted else rows)

    def steps(self, size: int) -> int | None:
        """The number of batches in an epoch, None if the loader does not know."""
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        try:
            return len(self.batches_of)  # type: ignore[arg-type]
        except TypeError:
            return None

    def _epoch(self, epoch: int | None) -> Iterator[Part]:
        if epoch is None:
            return self._each(iter(self.batches_of))
        return self._start(epoch) if self.steps_per_epoch is None else self._go_on(epoch, self.steps_per_epoch)

    def _start(self, epoch: int) -> Iterator[Part]:
        """The batches from the first on, shuffled as the loader's sampler does for ``epoch``."""
        for sampler in (getattr(self.batches_of, name, None) for name in ("sampler", "batch_sampler")):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)  # type: ignore[union-attr]
        ahead, self._ahead = self._ahead, None
        return self._each(iter(self.batches_of)) if ahead is None else ahead

    def _go_on(self, epoch: int, steps: int) -> Iterator[Part]:
        """The next ``steps`` batches; fewer only where starting anew gives none."""
        for _ in range(steps):
            part = None if self._stream is None else next(self._stream, None)
            if part is None:
                self._starts = max(epoch, self._starts + 1)  # never the same order twice, however short the loader
                self._stream = self._start(self._starts)
                part = next(self._stream, None)
            if part is None:
                return
            yield part

    def _each(self, stream: Iterator[Any]) -> Iterator[Part]:
        for number, item in enumerate(stream):
            where = f"batch {number}"
            given, given_context, given_weight = self._unpack(item, where)
            x = self._part(f"{self.name}, {where}", given, self.features).flatten(1)
            if not len(x):
                continue  # an empty batch would look like the end to the other processes
            context = None if given_context is None else self._part(f"context, {where}", given_context, self.context)
            weight = None if given_weight is None else self._part(f"weight, {where}", given_weight, 1)
            for name, part in (("context", context), ("weight", weight)):
                if part is not None and len(part) != len(x):
                    raise ValueError(f"{name}, {where}: expected {len(x)} rows, as many as x; got {len(part)}")
            if self._weighted is not None:
                self._require_alike(self._weighted + (weight is not None), 2)
            self._weighted = weight is not None
            if weight is not None:
                _require_not_negative(f"weight, {where}", weight)
                weight = weight.double().squeeze(-1)
            yield x, context, weight

    def _unpack(self, item: Any, where: str) -> tuple[Any, Any, Any]:
        """The x, context and weight in a batch, None for what it lacks."""
        if isinstance(item, Mapping):
            keys = ("x", "context", "weight")
            unknown = [key for key in item if key not in keys]
            if unknown or "x" not in item:
                got = f"the unknown {', '.join(map(repr, unknown))}" if unknown else "no 'x'"
                raise ValueError(
                    f"{self.name}: expected batches with the keys 'x', 'context' and 'weight', of which the last two "
                    f"may be left out; got {got} in {where}"
                )
            parts = [item.get(key) for key in keys]
        else:
            parts = list(item) if isinstance(item, (tuple, list)) else [item]
        x, context, weight = (*parts, None, None, None)[:3]
        if not 1 <= len(parts) <= 3:
            got = f"{len(parts)} parts"
        elif self.context != 0 and context is None:
            got = "no context"
        elif context is not None and self.context == 0:
            got = "a context, which the flow does not take,"
        else:
            return x, context, weight
        wanted = "(x, context), (x, context, weight)" if self.context != 0 else "x or (x,), (x, None, weight)"
        raise ValueError(f"{self.name}: expected batches {wanted} or a dict of these names, got {got} in {where}")

    def _part(self, name: str, values: Any, shape: int | torch.Size | None) -> Tensor:
        rows = _to_tensor(_require_shape(name, _require_numbers(name, values), shape), self.like.device, shape is None)
        _require_finite(name, rows.reshape(len(rows), -1))
        return rows

    def _require_alike(self, weighted: float, number: float) -> None:
        """ValueError unless none of a ``number`` of batches or rows is weighted, or all are."""
        if 0 < weighted < number:
            raise ValueError(f"{self.name}: expected weights with every batch or with none, got them with some")

    def _join(self, values: Sequence[Tensor | None]) -> Tensor | None:
        parts = [part for part in values if part is not None]
        return torch.cat(parts).to(self.like.device) if parts else None
