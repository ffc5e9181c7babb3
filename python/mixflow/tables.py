"""Tables of numbers in files: .csv, .npy and .parquet."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import PathLike, replace_file

__all__ = ["Table", "TableError", "check_extension", "read_table", "write_table"]


class TableError(ValueError):
    """A file that does not hold a table of finite numbers; the message says where and what was found."""


@dataclass(frozen=True)
class Table:
    """Columns of numbers.

    Attributes:
        columns: their names; ``x1``, ``x2``, ... where the file has none.
        values: float64, shape (N, D), all finite.
        named: whether the names are the file's own.

    """

    columns: list[str]
    values: NDArray[np.float64]
    named: bool


def read_table(path: PathLike, columns: Sequence[str] | None = None) -> Table:
    r"""Read the numbers in a .csv, .npy or .parquet file.

    A csv file may have a header (a first line with a cell that is not a number), quotes, a byte-order mark
    and any line endings; its cells are separated by commas. A npy file holds one array of shape
    (N,) or (N, D).

    Args:
        path: the file.
        columns: the names of the columns to read, in this order; the others may hold anything. By default,
            all. A file without names is taken to hold just these columns if their number is right.

    Raises:
        TableError: the file is missing, empty, ragged or of an unknown kind, lacks a column, or holds
            something other than finite numbers.
        ModuleNotFoundError: a .parquet file, and pyarrow is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> from mixflow.tables import read_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "data.csv")
        ...     _ = path.write_text("name,length\nox,2.5\nant,0.01\n")
        ...     read_table(path, ["length"]).values.tolist()
        [[2.5], [0.01]]

    """
    reader, _ = _format_of(path)
    if not Path(path).is_file():
        raise TableError(f"{path}: no such file")
    return reader(Path(path), columns)


def write_table(path: PathLike, columns: Sequence[str], values: NDArray[Any]) -> None:
    """Write numbers to a .csv, .npy (which keeps no names) or .parquet file.

    Numbers in csv are written with as many digits as their dtype needs to be read back unchanged.

    Args:
        path: the file; it appears whole or not at all.
        columns: D names, all different for a .parquet file.
        values: floating-point numbers, shape (N, D).

    Raises:
        TableError: unknown kind of file.
        ValueError: the names do not fit the values.
        OSError: the file cannot be written.
        ModuleNotFoundError: a .parquet file, and pyarrow is not installed.

    """
    _, writer = _format_of(path)
    columns, shape = list(columns), np.shape(values)
    if len(shape) != 2 or len(columns) != shape[1]:
        raise ValueError(f"columns: expected a name for each column of values, got {len(columns)} for shape {shape}")
    with replace_file(path) as temporary:
        writer(temporary, columns, values)


def check_extension(path: PathLike) -> None:
    """Raise now what :func:`write_table` would raise for this kind of file."""
    _format_of(path)
    if Path(path).suffix.lower() == ".parquet":
        _pyarrow()


# -- selection and checks, the same for all kinds ------------------------------------------------------------


def _choose(path: Path, names: Sequence[str] | None, count: int, columns: Sequence[str] | None) -> list[int]:
    # The positions of `columns` among the file's; `names` is None if the file does not name its columns.
    own = _default_names(count) if names is None else list(names)
    if columns is None or (names is None and len(columns) == count):
        return list(range(count))
    for name in columns:
        if own.count(name) != 1:
            found = "no column" if name not in own else "more than one column"
            raise TableError(f"{path}: {found} {name!r}; the columns are {', '.join(own)}")
    return [own.index(name) for name in columns]


def _default_names(count: int) -> list[str]:
    return [f"x{number}" for number in range(1, count + 1)]


def _table(path: Path, names: Sequence[str] | None, chosen: list[int], values: NDArray[np.float64]) -> Table:
    """A table of the chosen columns' values, once they are known to be finite and not empty."""
    own = _default_names(max(chosen, default=-1) + 1) if names is None else names
    columns = [own[index] for index in chosen]
    if values.size == 0:
        raise TableError(f"{path}: no rows of data")
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        row, column = wrong[0]
        raise TableError(
            f"{path}: data row {row + 1}, column {columns[column]!r}: "
            f"expected a finite number, got {values[row, column]} ({len(wrong)} such cells in all)"
        )
    return Table(columns, values, names is not None)


# -- csv -----------------------------------------------------------------------------------------------------


def _number(cell: str) -> float:
    if "_" in cell:  # float() takes 1_000, which no csv file means as a number
        raise ValueError(cell)
    return float(cell)


def _is_number(cell: str) -> bool:
    try:
        _number(cell)
    except ValueError:
        return False
    return True


def _read_csv(path: Path, columns: Sequence[str] | None) -> Table:
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                lines.append(reader.line_num)
                rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: not a csv file in UTF-8 ({error})") from error
    while rows and not rows[-1]:
        rows.pop()
    if not rows:
        raise TableError(f"{path}: empty")
    width = len(rows[0])
    for line, row in zip(lines, rows, strict=False):
        if len(row) != width:
            found = f"{len(row)}" if row else "a blank line"
            raise TableError(f"{path}, line {line}: expected {width} cells as in the first line, got {found}")
    names = None
    if not all(_is_number(cell) for cell in rows[0]):
        names, rows, lines = [cell.strip() for cell in rows[0]], rows[1:], lines[1:]
    chosen = _choose(path, names, width, columns)
    values = np.empty((len(rows), len(chosen)))
    for index, row in enumerate(rows):
        for position, column in enumerate(chosen):
            cell = row[column]
            try:
                value = _number(cell)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                name = names[column] if names else f"x{column + 1}"
                found = repr(cell) if cell.strip() else "a blank cell"
                raise TableError(f"{path}, line {lines[index]}, column {name!r}: expected a finite number, got {found}")
            values[index, position] = value
    return _table(path, names, chosen, values)


def _write_csv(path: Path, columns: list[str], values: NDArray[Any]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for start in range(0, len(values), 1 << 16):
            writer.writerows(values[start : start + (1 << 16)].astype(str).tolist())


# -- npy -----------------------------------------------------------------------------------------------------


def _read_npy(path: Path, columns: Sequence[str] | None) -> Table:
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # of many kinds: numpy hands the header to Python's own tokenizer and parser
        raise TableError(f"{path}: truncated, damaged or not a npy file of numbers ({error})") from error
    if array.dtype.kind not in "iuf":
        raise TableError(f"{path}: expected an array of real numbers, got {array.dtype}")
    if array.ndim not in (1, 2):
        raise TableError(f"{path}: expected an array of shape (N,) or (N, D), got {array.shape}")
    array = array.reshape(len(array), -1) if array.size else array.reshape(0, 1)
    chosen = _choose(path, None, array.shape[1], columns)
    return _table(path, None, chosen, array[:, chosen].astype(np.float64))


def _write_npy(path: Path, columns: list[str], values: NDArray[Any]) -> None:
    with path.open("wb") as file:  # np.save adds an extension to a bare name
        np.save(file, values, allow_pickle=False)


# -- parquet -------------------------------------------------------------------------------------------------


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("parquet files need pyarrow: pip install mixflow[parquet]") from error
    return pyarrow


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Table:
    arrow = _pyarrow()
    try:
        table = arrow.parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise TableError(f"{path}: truncated, damaged or not a parquet file ({error})") from error
    names = table.column_names
    chosen = _choose(path, names, len(names), columns)
    values = np.empty((table.num_rows, len(chosen)))
    for position, index in enumerate(chosen):
        kind = table.schema.field(index).type
        if not (arrow.types.is_integer(kind) or arrow.types.is_floating(kind)):
            raise TableError(f"{path}, column {names[index]!r}: expected numbers, got {kind}")
        # Missing values come out as NaN, which the common check reports.
        values[:, position] = table.column(index).to_numpy()
    return _table(path, names, chosen, values)


def _write_parquet(path: Path, columns: list[str], values: NDArray[Any]) -> None:
    arrow = _pyarrow()
    for name in columns:
        if columns.count(name) > 1:  # no reader could tell them apart
            raise ValueError(f"columns: expected different names in a parquet file, got {name!r} more than once")
    table = arrow.table([arrow.array(column) for column in values.T], names=columns)
    arrow.parquet.write_table(table, path)


Reader = Callable[[Path, Sequence[str] | None], Table]
Writer = Callable[[Path, list[str], NDArray[Any]], None]

_FORMATS: dict[str, tuple[Reader, Writer]] = {
    ".csv": (_read_csv, _write_csv),
    ".npy": (_read_npy, _write_npy),
    ".parquet": (_read_parquet, _write_parquet),
}


def _format_of(path: PathLike) -> tuple[Reader, Writer]:
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise TableError(f"{path}: expected a file ending in {', '.join(_FORMATS)}; got {suffix or 'no ending'!r}")
    return _FORMATS[suffix]
