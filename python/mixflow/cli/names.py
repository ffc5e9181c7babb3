"""Columns by name: the columns of a model, and their positions in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.tables import NoColumn, Reading, Table, TableError, columns_of, default_names, iter_table, listed
from ..flows import Flow

__all__ = ["Names", "has_column", "own_columns", "positions_of", "request", "usual_columns"]


@dataclass(frozen=True)
class Names:
    """The names of a model's columns.

    Attributes:
        columns: the names of its features.
        context: the names of its context.
        given: whether these names are in the model; otherwise they are x1, x2, ... and c1, c2, ...

    """

    columns: list[str]
    context: list[str]
    given: bool

    @classmethod
    def of(cls, flow: Flow) -> Names:
        """The names in the notes of ``flow``."""
        columns, context = _noted(flow, "columns"), _noted(flow, "context")
        return cls(
            columns or default_names(flow.features),
            context or default_names(flow.context, "c"),
            bool(columns or context),
        )

    @property
    def written(self) -> list[str]:
        """The order of columns in files that commands write: features first, then the context.

        The columns of a file without names are called x1, x2, .... A model of all these columns writes them in that
        order, so that a file without names has the columns at the same places as the data.
        """
        both = self.columns + self.context
        default = default_names(len(both))
        return default if set(both) == set(default) else both

    def arranged(self, columns: NDArray[Any], context: NDArray[Any] | None) -> NDArray[Any]:
        """``columns`` (n, D) and ``context`` (n, C) side by side in the order of :attr:`written`."""
        if context is None:
            return columns
        if columns.dtype == np.float32:  # a .csv file then has as many digits as without a context
            columns = columns.astype("S").astype(np.float64)
        both = np.concatenate([columns, context], axis=1)
        return both[:, [(self.columns + self.context).index(name) for name in self.written]]


def _noted(flow: Flow, what: str) -> list[str]:
    names = flow.notes.get(what) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"notes of the model: expected names of its {what}, got {names!r}")
    return names


def own_columns(flow: Flow, path: str, reading: Reading, weight: str | None) -> list[str]:
    """The names in a table of the columns of ``flow`` and of its contexts. ValueError for a wrong number of columns.

    ``weight`` is the name of a further column. A model without names takes all columns of the table except this one.
    """
    names = Names.of(flow)
    wanted = flow.features + len(names.context)
    found = names.columns + names.context
    if not names.given:
        here = [name for name in columns_of(path, reading) if name != weight]
        found = found if sorted(here) == sorted(found) else here
    if len(found) != wanted:
        raise ValueError(f"{path}: expected {wanted} column(s), got {listed(found)}")
    if weight in found:
        raise ValueError(f"--weight: expected a column that the model does not use, got {weight!r}")
    return found


def request(path: str, wanted: Sequence[str], reading: Reading) -> list[str] | None:
    """The argument ``columns`` with which the reader of a table returns the columns ``wanted``.

    It is None if these are the columns that the reader takes by default. The reader then notes the columns that it
    leaves out. The columns of a file without names are called x1, x2, .... If ``wanted`` holds other names, but as many
    as the file has columns, they are taken as the names of the file's columns.
    """
    here = usual_columns(path, reading)
    return None if here is not None and sorted(here) == sorted(wanted) else list(wanted)


def usual_columns(path: str, reading: Reading) -> list[str] | None:
    """The columns of a table that are read by default; None if the table cannot be read without a choice of columns."""
    try:
        return columns_of(path, reading)
    except TableError:  # words or equal names, perhaps in columns that the user does not want
        return None


def has_column(path: str, name: str, reading: Reading) -> bool:
    """Whether a table has a column of that name; also True if reading it is an error of another kind."""
    try:
        return next(iter_table(path, [name], 1, replace(reading, na="keep"))).columns == [name]
    except NoColumn:
        return False
    except TableError:
        return True


def positions_of(table: Table, wanted: Sequence[str]) -> list[int]:
    """The positions of the columns ``wanted`` in ``table``, which was read with the result of :func:`request`."""
    if set(wanted) <= set(table.columns):
        return [table.columns.index(name) for name in wanted]
    return list(range(len(wanted)))
