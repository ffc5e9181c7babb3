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
    """Whether ``data`` is a stream of batches: a DataLoader, an IterableDataset or an iterable that is not an array.

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
    """Batches from an iterable, which starts anew for each epoch or has no end.

    A batch is ``x``, ``(x,)``, ``(x, context)``, ``(x, context, weight)``, or a mapping with the key "x" and optionally
    "context" and "weight". The context is None for a flow without one. A list counts as a tuple. The shapes are (n, D),
    (n, C) and (n,) or (n, 1). All batches have weights, or none has.

    With several processes, each process brings its own batches: the loader's sampler, such as a ``DistributedSampler``,
    gives each process its shard. Before each epoch ``set_epoch`` is called on the sampler, if it has this method.

    With ``steps_per_epoch``, an epoch goes on where the last one ended. If the loader runs out of batches, it starts
    anew, even in the middle of an epoch, and ``set_epoch`` is called then. A run that is resumed in a later epoch also
    starts the loader anew, because the position in an iterable cannot be restored.

    Attributes:
        name: the name of the batches in errors.
        batches_of: the iterable.
        features: D; or the shape of an event of ``x``, whose numbers are then the columns of the batches.
        context: C; or the shape of a context, None for any shape; 0 for a flow without a context.
        like: a tensor on the device where rows are to be; its dtype does not matter.
        steps_per_epoch: the number of batches in an epoch, on each process; None for all batches of the iterable.

    Raises:
        TypeError: while batches are read, for a batch that does not hold real numbers; see :class:`Rows`.
        ValueError: while batches are read, for a batch of another form or shape, a number that is not finite, a
            negative weight, or weights in some batches only.

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
    _stream: Iterator[Part] | None = field(default=None, init=False, repr=False)  # the next epoch goes on with it
    _starts: int = field(default=-1, init=False, repr=False)  # the last argument of set_epoch
    _weighted: bool | None = field(default=None, init=False, repr=False)  # None before the first batch

    def first(self, count: int, group: Group) -> Part:
        """``(x, context, weight)`` of the first batches of all processes together, about ``count`` rows or all.

        They are on the device of ``like``. An iterator would not return these batches again, so they are kept for the
        first epoch.
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

        The loader decides on their size, and ``size`` is ignored. A process that runs out of batches goes on with empty
        ones until all processes have.
        """
        each = self._epoch(epoch)
        columns = self.features if isinstance(self.features, int) else self.features.numel()
        nothing = self.like.new_empty(0, columns), None if self.context == 0 else self.like.new_empty(0, 1)
        while True:
            x, context, weight = next(each, (*nothing, None))
            # The counts of a single process stay on the CPU, so that reading them does not wait for the device.
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
        """The number of batches in an epoch; None if the iterable has no length."""
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
        """The next ``steps`` batches; fewer only if the iterable has none after it starts anew."""
        for _ in range(steps):
            part = None if self._stream is None else next(self._stream, None)
            if part is None:
                self._starts = max(epoch, self._starts + 1)  # a short loader may start twice in an epoch
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
        """The x, context and weight of a batch; None for a missing context or weight."""
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
        """ValueError if some of a ``number`` of batches or rows are ``weighted``, but not all."""
        if 0 < weighted < number:
            raise ValueError(f"{self.name}: expected weights with every batch or with none, got them with some")

    def _join(self, values: Sequence[Tensor | None]) -> Tensor | None:
        parts = [part for part in values if part is not None]
        return torch.cat(parts).to(self.like.device) if parts else None
