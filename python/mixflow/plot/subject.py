"""The subject of a picture: a flow, the data to compare it with, its samples, and suitable axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..fitting.survey import survey
from ..flows import Flow, like

__all__ = ["Choice", "Column", "Subject", "at_rest", "spread", "subject_of", "subject_of_one"]

Numbers = NDArray[np.float64]

COLUMNS = 8  # the most columns of a corner plot by default
_MOST_COLUMNS = 16  # the most columns of a corner plot that the caller may choose
_CONTEXTS = 4  # the most contexts beside a corner plot
_PANELS = 40  # the most histograms of single columns
_SAMPLES = 20_000
_EXTREME = 1e250  # for matplotlib, numbers below about 1e-287 are zero, and a density is the inverse of a scale


@dataclass(frozen=True)
class Column:
    """A feature or a context to draw: data and samples in units of ``unit``, and the edges of bins."""

    name: str
    number: str  # its place, such as x3, for a name that cannot be drawn
    data: Numbers
    samples: Numbers  # for a context, its values for the samples
    unit: float
    edges: Numbers

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the axis."""
        return float(self.edges[0]), float(self.edges[-1])

    @property
    def outside(self) -> int:
        """The number of data outside the picture."""
        low, high = self.limits
        return int(np.count_nonzero((self.data < low) | (self.data > high)))

    def heights(self, values: Numbers) -> Numbers:
        """The density of ``values`` in each bin. Values outside the bins count in the total."""
        counts, _ = np.histogram(values, self.edges)
        heights: Numbers = counts / (len(values) * np.diff(self.edges))
        return heights


@dataclass(frozen=True)
class Choice:
    """The numbers of the columns and contexts in a corner plot, and a title if there are more of them."""

    columns: list[int]
    contexts: list[int]
    title: str


@dataclass(frozen=True)
class Subject:
    """A flow with the data (N, D) that it is compared with, and their contexts."""

    flow: Flow
    values: NDArray[Any]
    context: NDArray[Any] | None

    @property
    def features(self) -> int:
        """The number of features."""
        return self.flow.features

    @cached_property
    def names(self) -> list[str]:
        """The names of the features."""
        return _names(self.flow.notes.get("columns"), self.features, "x")

    @cached_property
    def table(self) -> NDArray[Any] | None:
        """The contexts as columns (N, C); None if there are none, or if a context is not a row of numbers."""
        if self.context is None or self.context.ndim > 2:
            return None
        return self.context.reshape(len(self.context), -1)

    @cached_property
    def context_names(self) -> list[str]:
        """The names of the columns of :attr:`table`."""
        count = 0 if self.table is None else self.table.shape[1]
        return _names(self.flow.notes.get("context"), count, "c")

    def contexts(self, rows: NDArray[np.intp]) -> torch.Tensor | None:
        """The contexts of some rows, as the flow takes them."""
        if self.context is None:
            return None
        labels = self.flow.embedding is not None and self.context.dtype.kind in "iu"
        some = self.context[rows].astype(np.int64 if labels else np.float64)
        return torch.from_numpy(some).to(like(self.flow).device)

    @cached_property
    def drawn(self) -> tuple[Numbers, NDArray[np.intp]]:
        """Samples (M, D), and for each the row of its context; if rows are few, each is used equally often."""
        count = max(1000, min(_SAMPLES, 100 * _SAMPLES // self.features))
        rows = spread(len(self.values), count)
        rows = np.tile(rows, max(1, count // len(rows)))
        with at_rest(self.flow):
            context = self.contexts(rows)
            drawn = self.flow.sample(count, seed=0) if context is None else self.flow.sample(context=context, seed=0)
        return drawn.reshape(len(drawn), -1).double().cpu().numpy(), rows

    def column(self, feature: int, sampled: bool, middle: float = 1.0, bins: int = 100) -> Column:
        """A feature on an axis over the ``middle`` part of its data, with samples or without."""
        drawn = self.drawn[0][:, feature] if sampled else np.empty(0)
        return _column(self.names[feature], f"x{feature + 1}", self.values[:, feature], drawn, middle, bins)

    def context_column(self, number: int) -> Column:
        """A context of the data, with its values for the samples."""
        assert self.table is not None
        data = self.table[:, number]
        return _column(self.context_names[number], f"c{number + 1}", data, data[self.drawn[1]], 0.998, 60)

    def choice(self, columns: Sequence[str | int] | None) -> Choice:
        """The columns that the caller names, or those that are drawn by default, and the main contexts."""
        chosen, contexts = self._chosen(columns), self._main_contexts()
        parts = []
        if len(chosen) < self.features:
            which = "" if columns is not None else ": those with the strongest rank correlations"
            parts.append(f"{len(chosen)} of {self.features:,} columns{which}")
        if len(contexts) < len(self.context_names):
            parts.append(f"{len(contexts)} of {len(self.context_names):,} contexts")
        return Choice(chosen, contexts, ", ".join(parts))

    def _chosen(self, columns: Sequence[str | int] | None) -> list[int]:
        if columns is not None:
            return _found(columns, self.names)
        if self.features <= COLUMNS:
            return list(range(self.features))
        few = _even(self.features, 2000)  # the correlations of so many columns still take only a moment
        strongest = _strongest(_ranks(self.values, few), None, COLUMNS)
        return [int(few[place]) for place in strongest]

    def all_columns(self) -> list[int]:
        """All columns, or if there are too many for the panels, columns at equal distances."""
        return [int(column) for column in _even(self.features, _PANELS)]

    def _main_contexts(self) -> list[int]:
        """All contexts, or if there are many, those on which the features depend most."""
        if self.table is None or self.table.shape[1] <= _CONTEXTS:
            return list(range(len(self.context_names)))
        features = _ranks(self.values, _even(self.features, 2000))
        return _strongest(_ranks(self.table, _even(self.table.shape[1], 2000)), features, _CONTEXTS)


def subject_of_one(flow: Flow, data: ArrayLike, context: ArrayLike | None) -> Subject:
    """As :func:`subject_of`, for a flow of one feature."""
    if flow.features != 1:
        raise ValueError(f"flow: expected one feature, got {flow.features}")
    return subject_of(flow, data, context)


def subject_of(flow: Flow, data: ArrayLike, context: ArrayLike | None) -> Subject:
    """The checked arguments as a subject, without a copy of the data."""
    values, features = _array("data", data), flow.features
    given = values.shape
    if values.shape[1:] == tuple(flow.event_shape) or (features == 1 and values.ndim == 1):
        values = values.reshape(len(values), features)  # images are rows of pixels here
    if values.ndim != 2 or values.shape[1] != features or len(values) == 0:
        raise ValueError(f"data: expected shape {'(N,) or ' if features == 1 else ''}(N, {features}), got {given}")
    _check_finite("data", values)
    return Subject(flow, values, _checked_context(flow, context, len(values)))


def _checked_context(flow: Flow, context: ArrayLike | None, rows: int) -> NDArray[Any] | None:
    if not flow.context:
        if context is not None:
            raise ValueError(f"context: expected None, as this flow takes no context, got shape {np.shape(context)}")
        return None
    shape = f"({rows}, {'...' if flow.embedding is not None else flow.context})"
    if context is None:
        raise ValueError(f"context: expected shape {shape}, a row for each row of data, got None")
    values = _array("context", context)
    if values.ndim == 0 or len(values) != rows or (flow.embedding is None and values.shape[1:] != (flow.context,)):
        raise ValueError(f"context: expected shape {shape}, a row for each row of data, got {values.shape}")
    _check_finite("context", values)
    return values


def _array(name: str, values: Any) -> NDArray[Any]:
    """``values`` as an array of real numbers. An array or a tensor is not copied."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected an array without a mask, got {type(values).__name__}")
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    array = np.asarray(values)
    if array.dtype.kind == "O":  # such as Python's fractions
        array = array.astype(np.float64)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got {array.dtype}")
    return array


def _check_finite(name: str, values: NDArray[Any]) -> None:
    if values.dtype.kind != "f":
        return
    rows = max(1, 2**20 // max(1, values[0].size))  # in parts, so that the masks take little memory
    for start in range(0, len(values), rows):
        part = values[start : start + rows]
        finite = np.isfinite(part)
        if not finite.all():
            raise ValueError(f"{name}: expected finite numbers, got {part[~finite][0]}")


def _names(noted: Any, count: int, letter: str) -> list[str]:
    if isinstance(noted, (list, tuple)) and len(noted) == count:
        return [str(name) for name in noted]
    return ["x"] if letter == "x" and count == 1 else [f"{letter}{number}" for number in range(1, count + 1)]


def _found(columns: Sequence[str | int], names: Sequence[str]) -> list[int]:
    chosen = [_number(column, names) for column in ([columns] if isinstance(columns, str) else columns)]
    chosen = list(dict.fromkeys(chosen))
    if not 1 <= len(chosen) <= _MOST_COLUMNS:
        raise ValueError(f"columns: expected 1 to {_MOST_COLUMNS} columns, got {len(chosen)}")
    return chosen


def _number(column: str | int, names: Sequence[str]) -> int:
    if isinstance(column, str):
        if names.count(column) == 1:
            return names.index(column)
    elif isinstance(column, int | np.integer) and not isinstance(column, bool) and 0 <= column < len(names):
        return int(column)
    known = ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:10])}, ... ({len(names)} in all)"
    raise ValueError(f"columns: expected numbers from 0 to {len(names) - 1}, or names among {known}, got {column!r}")


@contextmanager
def at_rest(flow: Flow) -> Iterator[None]:
    """In the block, the flow is in evaluation mode and without gradients, so that a picture does not change it."""
    training = [module for module in flow.modules() if module.training]
    flow.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def spread(count: int, most: int) -> NDArray[np.intp]:
    """All of ``count`` rows, or ``most`` of them: a random row from each of as many parts of equal length.

    Rows at equal distances could all have the same hour, in a table with a row for each hour.
    """
    if count <= most:
        return np.arange(count)
    starts = np.arange(most + 1) * count // most
    return np.random.default_rng(0).integers(starts[:-1], starts[1:])


def _even(count: int, most: int) -> NDArray[np.intp]:
    """All of ``count`` columns, or ``most`` at equal distances."""
    return np.arange(count) if count <= most else np.arange(most) * count // most


def _ranks(values: NDArray[Any], columns: NDArray[np.intp]) -> Numbers:
    """The ranks of some rows in each column, with mean 0 and norm 1, or all 0. Equal values have the same rank."""
    some = values[spread(len(values), 2000)][:, columns]
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in some.T], axis=1).astype(np.float64)
    ranks -= ranks.mean(0)
    norm = np.sqrt((ranks**2).sum(0))
    scaled: Numbers = ranks / np.where(norm > 0.0, norm, 1.0)
    return scaled


def _strongest(ranks: Numbers, others: Numbers | None, most: int) -> list[int]:
    """The columns with the strongest rank correlation with one of the ``others``; without others, with each other."""
    correlations = np.abs(ranks.T @ (ranks if others is None else others))
    if others is None:
        np.fill_diagonal(correlations, 0.0)
    order = np.argsort(-correlations.max(1).round(9), kind="stable")  # rounding errors do not decide between equal ones
    return sorted(int(column) for column in order[:most])


def _column(name: str, number: str, data: NDArray[Any], samples: NDArray[Any], middle: float, bins: int) -> Column:
    """The column of ``data`` on an axis over their ``middle`` part, with at most ``bins`` bins."""
    data, samples = np.asarray(data, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    low, high = _range(data, middle)
    size = max(abs(low), abs(high))
    unit = 10.0 ** max(-300, math.floor(math.log10(size))) if size and not 1.0 / _EXTREME < size < _EXTREME else 1.0
    if unit != 1.0:
        name = f"{name} / {unit:.0e}".replace("e+", "e")
        low, high = low / unit, high / unit
        with np.errstate(over="ignore"):
            data, samples = data / unit, samples / unit
    count = min(bins, max(20, round(len(data) ** 0.5)))
    return Column(name, number, data, samples, unit, _edges(data, low, high, count))


def _range(values: Numbers, middle: float) -> tuple[float, float]:
    """The least and the greatest value of the ``middle`` part, without values far out.

    Values more than five interquartile ranges beyond the quartiles are left out, up to one per cent on each side.
    """
    last, tail = len(values) - 1, (1.0 - middle) / 2.0
    at = [tail, 0.01, 0.25, 0.75, 0.99, 1.0 - tail]
    ups = [False, True, False, True, False, True]
    places = [(math.ceil if up else math.floor)(round(part * last, 6)) for part, up in zip(at, ups, strict=True)]
    # These are Python's floats, which overflow without a warning.
    low, first, lower, upper, end, high = map(float, np.partition(values, places)[places])
    width = (upper - lower) or (end - first)
    if width > 0.0:
        low = max(low, min(first, lower - 5.0 * width))
        high = min(high, max(end, upper + 5.0 * width))
    inside = values[(values >= low) & (values <= high)]
    return float(inside.min()), float(inside.max())


def _edges(values: Numbers, low: float, high: float, count: int) -> Numbers:
    """The edges of about ``count`` bins over the range and a margin; rounded values have as many steps in each bin."""
    size = max(abs(low), abs(high))
    if high - low < 1e-13 * size or high == low:
        half = 0.5 * size or 0.5
        return np.linspace(low - half, low + half, count + 2 - count % 2)  # an odd number of bins: one in the middle
    some = values[spread(len(values), 4096)]
    step = _step(some[(some >= low) & (some <= high)])
    if 0.0 < step <= high - low:
        several = math.ceil((high - low) / step / count)
        bins = round((high - low) / step / several) + 1
        return np.asarray(low + step * (several * np.arange(bins + 1) - 0.5), dtype=np.float64)
    margin = 0.06 * (high - low)
    return np.linspace(low - margin, high + margin, count + 1)


def _step(values: Numbers) -> float:
    """The step that the values were rounded to; 0 if they were not rounded."""
    return survey(torch.from_numpy(values).unsqueeze(-1)).resolution[0] if len(values) else 0.0
