"""The roles of a table's columns when a flow is fitted: a feature, a context, or the weight of the rows."""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.tables import Reading, Table, TableError, columns_of, default_names, listed
from ..flows import Flow
from .names import Names, has_column, own_columns, positions_of, usual_columns

__all__ = ["Roles"]

_CHUNK = 1 << 16  # rows that are copied at a time


@dataclass(frozen=True)
class Roles:
    """The columns of a table by name.

    Attributes:
        columns: the columns to fit.
        context: the columns that the density depends on.
        weight: the column of weights; None if all rows count the same.
        typed: whether the user named any column.

    """

    columns: list[str]
    context: list[str]
    weight: str | None
    typed: bool

    @classmethod
    def of_options(cls, arguments: argparse.Namespace, reading: Reading) -> Roles:
        """The roles by ``--column``, ``--context`` and ``--weight``; without ``--column`` the rest is fitted."""
        weight = [] if arguments.weight is None else [arguments.weight]
        given = {"--column": arguments.column or [], "--context": arguments.context or [], "--weight": weight}
        _check_distinct(given)
        columns = arguments.column
        if columns is None:
            others = {*given["--context"], *weight}
            columns = [name for name in columns_of(arguments.data, reading) if name not in others]
        if not columns:
            raise ValueError(f"{arguments.data}: expected a column to fit beside --context and --weight, got none")
        roles = cls(columns, given["--context"], arguments.weight, any(given.values()))
        here = default_names(len(roles.all))
        missing = [name for name in roles.all if name not in here]
        # The user may give names to a file without names, but only to all of its columns.
        if 0 < len(missing) < len(here) and usual_columns(arguments.data, reading) == here:
            raise TableError(f"{arguments.data}: no column {missing[0]!r}; the columns are {listed(here)}")
        return roles

    @classmethod
    def of_model(cls, model: Flow, path: str, weight: str | None, reading: Reading) -> Roles:
        """The roles with which ``model`` was fitted. Without ``weight``, its column of weights counts if present."""
        remembered = model.notes.get("weight")
        if weight is None and isinstance(remembered, str) and has_column(path, remembered, reading):
            weight = remembered
        both = own_columns(model, path, reading, weight)
        return cls(both[: model.features], both[model.features :], weight, Names.of(model).given)

    @property
    def all(self) -> list[str]:
        """Columns, contexts and weight, in this order."""
        return self.columns + self.context + ([] if self.weight is None else [self.weight])

    def note_in(self, flow: Flow, named: bool) -> None:
        """Note the names in ``flow`` if the file is ``named`` or the user typed any."""
        if not (named or self.typed):
            return
        flow.notes["columns"] = self.columns
        if self.context:
            flow.notes["context"] = self.context
        if self.weight is not None:
            flow.notes["weight"] = self.weight

    def parts(self, table: Table) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
        """Columns (N, D), context (N, C) and weights (N,) of ``table``: memory maps, like its values."""
        positions = positions_of(table, self.all)
        features, end = len(self.columns), len(self.columns) + len(self.context)
        context = _picked(table.values, positions[features:end]) if self.context else None
        weights = None if self.weight is None else table.values[:, positions[end]]
        return _picked(table.values, positions[:features]), context, weights


def _check_distinct(given: dict[str, list[str]]) -> None:
    option_of: dict[str, str] = {}
    for option, names in given.items():
        for name in names:
            if name in option_of:
                again = "twice" if option_of[name] == option else f"as {option_of[name]}, too"
                raise ValueError(f"{option}: expected each column once, got {name!r} {again}")
            option_of[name] = option


def _picked(values: NDArray[Any], positions: list[int]) -> NDArray[Any]:
    """Columns of a memory map: a view if they are evenly spaced, otherwise a copy in a temporary file."""
    first, last = positions[0], positions[-1]
    step = positions[1] - first if len(positions) > 1 else 1
    if step > 0 and positions == list(range(first, last + 1, step)):
        return values[:, first : last + 1 : step]
    with tempfile.TemporaryFile() as file:
        copy = np.memmap(file, values.dtype, "w+", shape=(len(values), len(positions)))
        for start in range(0, len(values), _CHUNK):
            copy[start : start + _CHUNK] = values[start : start + _CHUNK, positions]
    return copy
