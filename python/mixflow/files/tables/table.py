"""Tables, how they are to be read, and the interface of every kind of file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Append",
    "NoColumn",
    "Opened",
    "Reading",
    "Table",
    "TableError",
    "choose",
    "default_names",
    "listed",
    "no_number",
]

Append: TypeAlias = Callable[[NDArray[Any]], None]  # writes one chunk of rows (n, D)

SHOWN = 10  # the most names in a message


class TableError(ValueError):
    """A file does not hold a table of finite numbers. The message names the place and what was found there."""


class NoColumn(TableError):
    """The file lacks a column that the caller has named."""


@dataclass(frozen=True)
class Reading:
    """How a table is read. Where a value is None, the file decides, if that is safe.

    Attributes:
        sep: the character between the cells of a .csv or .tsv file.
        decimal: the decimal mark of a .csv or .tsv file, "." or ",".
        header: whether the first line of a .csv or .tsv file holds names.
        na: what happens to a row with a missing value: "error" refuses the file, "drop" leaves the row out, and "keep"
            gives NaN in the value's place.

    Raises:
        ValueError: a value is none of these.

    """

    sep: str | None = None
    decimal: str | None = None
    header: bool | None = None
    na: Literal["error", "drop", "keep"] = "error"

    def __post_init__(self) -> None:
        """Raise ValueError for values with which no table can be read."""
        if self.sep is not None and (len(self.sep) != 1 or not self.sep.isascii() or self.sep in '\0\r\n"'):
            raise ValueError(f"sep: expected one ASCII character, neither a quote nor a line end, got {self.sep!r}")
        if self.decimal not in (None, ".", ","):
            raise ValueError(f"decimal: expected '.' or ',', got {self.decimal!r}")
        if self.decimal is not None and self.decimal == self.sep:
            raise ValueError(f"decimal: expected another character than sep, got {self.decimal!r} for both")
        if self.na not in ("error", "drop", "keep"):
            raise ValueError(f"na: expected 'error', 'drop' or 'keep', got {self.na!r}")


@dataclass(frozen=True)
class Table:
    """Columns of numbers.

    Attributes:
        columns: the names of the columns; ``x1``, ``x2``, ... if the file has none.
        values: the numbers (N, D), float64 and finite; see :func:`map_table` and ``Reading.na`` for exceptions.
        named: whether the names come from the file.
        notes: phrases on what was assumed about the file and what was left out of it. The chunks of one file share the
            list, which is complete after the last chunk.

    """

    columns: list[str]
    values: NDArray[Any]
    named: bool
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Opened:
    """A file that is open for reading.

    Attributes:
        columns: the names of the columns that are read.
        named: whether the names come from the file.
        count: the number of rows in the file; None if only reading can tell.
        chunks: the rows (n, D), float64, with NaN in place of missing values.
        notes: what was assumed, as in :class:`Table`; reading may add to it.
        fault: a function from a row and a column, counted from 0, and a value there that is not finite, to an error.

    """

    columns: list[str]
    named: bool
    count: int | None
    chunks: Iterator[NDArray[np.float64]]
    notes: list[str]
    fault: Callable[[int, int, float], TableError]


def choose(
    path: Path, names: Sequence[str], named: bool, columns: Sequence[str] | None, left_out: Sequence[int] = ()
) -> list[int]:
    """The positions of the columns to read, which must have names, all different.

    Args:
        path: the file, for messages.
        names: the names of all columns in the file; those of :func:`default_names` if the file has none.
        named: whether the names come from the file.
        columns: the names of the columns to read, in this order; None for all except ``left_out``. For a file without
            names, as many other names are taken as the names of its columns.
        left_out: the positions of columns that are read only if ``columns`` names them.

    """
    if columns is None:
        chosen = [position for position in range(len(names)) if position not in set(left_out)]
        firsts = {name: position for position, name in reversed(list(enumerate(names)))}
        for position in chosen:
            _check_name(path, names[position], firsts[names[position]], position)
        return chosen
    if not named and len(columns) == len(names) and not set(columns) <= set(names):
        return list(range(len(names)))
    positions: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        positions.setdefault(name, []).append(position)
    for name in columns:
        if len(found := positions.get(name, [])) != 1:
            kind, what = (TableError, "more than one column") if found else (NoColumn, "no column")
            raise kind(f"{path}: {what} {name!r}; the columns are {listed(names)}")
    return [positions[name][0] for name in columns]


def _check_name(path: Path, name: str, first: int, position: int) -> None:
    advice = "give every column a name of its own, or choose columns with --column"
    if not name:
        raise TableError(f"{path}: column {position + 1} has no name; {advice}")
    if first != position:
        raise TableError(f"{path}: columns {first + 1} and {position + 1} are both named {name!r}; {advice}")


def no_number(place: str, name: str, found: str, is_missing: bool) -> TableError:
    """The error for a cell that holds no finite number."""
    advice = ", a missing value; --na drop leaves such rows out" if is_missing else ""
    return TableError(f"{place}, column {name!r}: expected a finite number, got {found}{advice}")


def default_names(count: int, letter: str = "x") -> list[str]:
    """Names for columns that have none: x1, x2, ..."""
    return [f"{letter}{number}" for number in range(1, count + 1)]


def listed(names: Sequence[str]) -> str:
    """Names in a message; of many, the first few and the number of the others."""
    more = len(names) - SHOWN
    return ", ".join(map(str, names[:SHOWN])) + (f" and {more} more" if more > 0 else "")
