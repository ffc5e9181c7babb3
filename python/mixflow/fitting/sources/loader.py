"""Batches that an iterable makes, such as a ``DataLoader`` or a simulation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..parallel import Group
from .batch import Batch, Part
from .numbers import is_sparse, require_finite, require_not_negative, require_numbers, require_shape, to_tensor

__all__ = ["Loader", "is_loader"]


def is_loader(data: object) -> bool:
    """Whether ``data`` is a stream of batches: a DataLoader, an IterableDataset or another iterable that is no array.

    Example:
        >>> from mixflow.fitting.sources import is_loader
        >>> is_loader([1.0, 2.0]), is_loader(iter([1.0, 2.0]))
        (False, True)

    """
    if isinstance(data, (DataLoader, IterableDataset)):
        return True
    if is_sparse(data):
        return False
    return isinstance(data, Iterable) and not hasattr(data, "__array__") and not hasattr(data, "__getitem__")


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
                    raise ValueError(f"{name}, {where}: expected {len(x)} rows, as many as x, got {len(part)}")
            if self._weighted is not None:
                self._require_alike(self._weighted + (weight is not None), 2)
            self._weighted = weight is not None
            if weight is not None:
                require_not_negative(f"weight, {where}", weight)
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
                    f"may be left out, got {got} in {where}"
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
        rows = to_tensor(require_shape(name, require_numbers(name, values), shape), self.like.device, shape is None)
        require_finite(name, rows.reshape(len(rows), -1))
        return rows

    def _require_alike(self, weighted: float, number: float) -> None:
        """ValueError unless none of a ``number`` of batches or rows is weighted, or all are."""
        if 0 < weighted < number:
            raise ValueError(f"{self.name}: expected weights with every batch or with none, got them with some")

    def _join(self, values: Sequence[Tensor | None]) -> Tensor | None:
        parts = [part for part in values if part is not None]
        return torch.cat(parts).to(self.like.device) if parts else None
