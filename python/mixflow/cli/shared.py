"""What the commands share: tables that are read and written by the names of a model, and what is said about them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..flows import Flow, like
from ..tables import NoColumn, Reading, Table, TableError, columns_of, iter_table, listed, read_table
from .passes import PART

__all__ = [
    "TABLE",
    "Names",
    "Notes",
    "Part",
    "Source",
    "add_reading",
    "add_table",
    "has_column",
    "numbered",
    "own_columns",
    "positions_of",
    "reading_of",
    "request",
    "usual_columns",
]

TABLE = "a .csv, .csv.gz, .tsv, .npy or .parquet file"
_WORDS = {"tab": "\t", r"\t": "\t", "space": " "}


# -- options -------------------------------------------------------------------------------------------------


def add_table(command: argparse.ArgumentParser, models: Sequence[tuple[str, str, str]] = ()) -> argparse._ArgumentGroup:
    """Give ``command`` the group "data": model files, each (name, metavar, help), then DATA and how it is read."""
    group = command.add_argument_group("data")
    for name, metavar, help_ in models:
        group.add_argument(name, metavar=metavar, help=help_)
    group.add_argument("data", metavar="DATA", help=TABLE)
    add_reading(group)
    return group


def add_reading(group: argparse._ArgumentGroup) -> None:
    """Add the options that say how a table is read, which :func:`reading_of` collects."""
    group.add_argument(
        "--sep", type=_separator, metavar="C", help="what separates cells: a character, tab or space (default: found)"
    )
    group.add_argument(
        "--decimal", choices=(".", ","), metavar="MARK", help="the decimal mark, a point or a comma (default: found)"
    )
    group.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first line holds names (default: found)",
    )
    group.add_argument(
        "--na",
        choices=("error", "drop"),
        default="error",
        help="what to do with a row in which a value is missing (default: %(default)s)",
    )


def reading_of(arguments: argparse.Namespace, na: Any = None) -> Reading:
    """How the options say that a table is read; ``na`` in the place of theirs."""
    return Reading(arguments.sep, arguments.decimal, arguments.header, na or arguments.na)


def _separator(text: str) -> str:
    sep = _WORDS.get(text, text)
    try:
        Reading(sep=sep)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("sep: ")) from error
    return sep


# -- columns -------------------------------------------------------------------------------------------------


def numbered(letter: str, count: int) -> list[str]:
    """The names of columns that have none."""
    return [f"{letter}{number}" for number in range(1, count + 1)]


@dataclass(frozen=True)
class Names:
    """The names of a model's columns.

    Attributes:
        columns: of its features.
        context: of its context.
        given: whether the model has these names; otherwise they are x1, x2, ... and c1, c2, ...

    """

    columns: list[str]
    context: list[str]
    given: bool

    @classmethod
    def of(cls, flow: Flow) -> Names:
        """Those in the notes of ``flow``."""
        columns, context = _noted(flow, "columns"), _noted(flow, "context")
        return cls(
            columns or numbered("x", flow.features), context or numbered("c", flow.context), bool(columns or context)
        )

    @property
    def written(self) -> list[str]:
        """The order of columns in files that commands write: those of the features, then those of the context.

        The columns of a file without names are x1, x2, ... A model that uses all of them writes them in that file's
        order, so that files without names stay alike.
        """
        both = self.columns + self.context
        default = numbered("x", len(both))
        return default if set(both) == set(default) else both

    def arranged(self, columns: NDArray[Any], context: NDArray[Any] | None) -> NDArray[Any]:
        """``columns`` (n, D) and ``context`` (n, C) side by side in the order of :attr:`written`."""
        if context is None:
            return columns
        if columns.dtype == np.float32:  # to have as many digits in a .csv file as without a context
            columns = columns.astype("S").astype(np.float64)
        both = np.concatenate([columns, context], axis=1)
        return both[:, [(self.columns + self.context).index(name) for name in self.written]]


def _noted(flow: Flow, what: str) -> list[str]:
    names = flow.notes.get(what) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"notes of the model: expected names of its {what}, got {names!r}")
    return names


def own_columns(flow: Flow, path: str, reading: Reading, weight: str | None) -> list[str]:
    """The names that the columns of ``flow``, then its contexts, have in a table. ValueError for a wrong number.

    ``weight`` names a further column. A model without names takes all columns of the table except this one.
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
    """What to ask the reader of a table for, to get the columns ``wanted``: all that it has (None), or these.

    Asked for all, the reader also tells which ones it leaves out. The columns of a file without names are x1, x2, ...
    If it has not all that are wanted, but their number, it is taken to hold the wanted columns in their order.
    """
    here = usual_columns(path, reading)
    return None if here is not None and sorted(here) == sorted(wanted) else list(wanted)


def usual_columns(path: str, reading: Reading) -> list[str] | None:
    """The columns of a table that are read without a choice; None if it cannot be read without one."""
    try:
        return columns_of(path, reading)
    except TableError:  # words or equal names, perhaps in columns that nobody wants
        return None


def has_column(path: str, name: str, reading: Reading) -> bool:
    """Whether a table has a column of that name; also True where reading it is an error of another kind."""
    try:
        return next(iter_table(path, [name], 1, replace(reading, na="keep"))).columns == [name]
    except NoColumn:
        return False
    except TableError:
        return True


def positions_of(table: Table, wanted: Sequence[str]) -> list[int]:
    """Where the columns ``wanted`` are in ``table``, which was read by what :func:`request` gave."""
    if set(wanted) <= set(table.columns):
        return [table.columns.index(name) for name in wanted]
    return list(range(len(wanted)))


# -- rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """Some rows of a table as a model takes them.

    Attributes:
        x: (n, D), or of the shape of the flow's events.
        context: (n, C); None for a flow without.
        weight: (n,); None where none is asked for.
        values: the columns and contexts of the same rows, (n, D + C), as they were read.
        missing: (n,), which rows lack a value.

    """

    x: Tensor
    context: Tensor | None
    weight: NDArray[np.float64] | None
    values: NDArray[Any]
    missing: NDArray[np.bool_]


class Source:
    """A table on its way into a model: columns and contexts by the model's names, in chunks or at once.

    What the reader assumed about the file is printed before the first rows, and what it noticed on the way by
    :meth:`finish`.

    Args:
        path: the table.
        flow: the model.
        reading: how the table is read.
        weight: the name of one more column.

    """

    def __init__(self, path: str, flow: Flow, reading: Reading, weight: str | None = None) -> None:
        self.path, self.flow, self.reading, self.notes = path, flow, reading, Notes(path)
        self.names = own_columns(flow, path, reading, weight)
        self.wanted = self.names + ([] if weight is None else [weight])
        self.request = request(path, self.wanted, reading)

    def __iter__(self) -> Iterator[Part]:
        for table in iter_table(self.path, self.request, PART, self.reading):
            yield self._part(table)

    def read(self) -> Part:
        """All rows."""
        return self._part(read_table(self.path, self.request, reading=self.reading))

    def finish(self) -> None:
        """Print what was noticed since the first rows."""
        self.notes.tell()

    def _part(self, table: Table) -> Part:
        self.notes.begin(table)
        values = table.values[:, positions_of(table, self.wanted)]
        missing = np.isnan(values).any(axis=1)
        own, weight = values[:, : len(self.names)], values[:, len(self.names) :]
        rows = torch.from_numpy(np.ascontiguousarray(own)).to(like(self.flow).device)
        x, context = rows[:, : self.flow.features], rows[:, self.flow.features :]
        return Part(
            self.flow.shaped(x),
            context if self.flow.context else None,
            weight[:, 0] if weight.shape[1] else None,
            own,
            missing,
        )


class Notes:
    """Prints what the reader of a file assumed about it, and what it left out, each once."""

    def __init__(self, path: str) -> None:
        self.path, self.told = path, 0
        self.table: Table | None = None

    def begin(self, table: Table) -> None:
        """Print the notes so far if ``table`` is the first chunk of the file."""
        if self.table is None:
            self.table = table
            self.tell()

    def tell(self) -> None:
        """Print the notes that were not printed yet."""
        notes = [] if self.table is None else self.table.notes[self.told :]
        self.told += len(notes)
        if notes:
            print(f"{self.path}: {'; '.join(notes)}")
