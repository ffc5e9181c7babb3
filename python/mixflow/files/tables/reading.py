"""Reading tables of any kind: in chunks, whole, or mapped row by row."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..atomic import PathLike
from .kinds import kind_of
from .npy import map_columns
from .table import Opened, Reading, Table, TableError

__all__ = ["columns_of", "count_rows", "iter_table", "map_table", "read_table"]

ROWS = 1 << 16  # in a chunk
_AS_IT_IS = Reading()


def columns_of(path: PathLike, reading: Reading = _AS_IT_IS) -> list[str]:
    """The names of the columns that :func:`iter_table` reads by default; errors are those documented there."""
    return _open(path, None, reading).columns


def iter_table(
    path: PathLike, columns: Sequence[str] | None = None, rows: int = ROWS, reading: Reading = _AS_IT_IS
) -> Iterator[Table]:
    r"""Read the numbers in a file in chunks, one chunk at a time.

    The first lines of a .csv or .tsv file show how it is written: encoding (UTF-8, UTF-16, Windows-1252), separator
    (comma, semicolon, tab, bar, spaces), decimal mark, and whether the first line holds names. The notes list what was
    assumed. A .npy file holds one array of shape (N,) or (N, D).

    Cells may have quotes and thousands separators. Booleans are read as 0 and 1, and dates (ISO 8601) as seconds since
    1970-01-01. By default, columns without data of their own are left out: the index that pandas keeps in a .parquet
    file, and a first column without a name that counts or names the rows.

    Args:
        path: the file.
        columns: the names of the columns to read, in this order. The other columns may hold anything. By default all
            are read. The columns of a file without names are called x1, x2, .... If ``columns`` holds other names, but
            as many as the file has columns, they are taken as the names of the file's columns.
        rows: the most rows in a chunk.
        reading: what the caller specifies about the file, and what happens to missing values.

    Yields:
        A :class:`Table` of some rows each, at least one.

    Raises:
        TableError: the file is missing, empty, ragged, of an unknown kind, or changes while it is read; it lacks a
            column, or has columns with equal names or without one; or a cell is not a finite number. The error is about
            the first such cell.

    Example:
        >>> import pathlib, tempfile
        >>> from mixflow.files.tables import iter_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "data.csv")
        ...     _ = path.write_text("length;mass\n2,5;1\n0,01;2\n7;3\n")
        ...     tables = list(iter_table(path, ["length"], rows=2))
        >>> [table.values.ravel().tolist() for table in tables]
        [[2.5, 0.01], [7.0]]
        >>> tables[0].notes
        ['separator semicolon', 'decimal comma']

    """
    if columns is not None and not columns:
        raise ValueError("columns: expected at least one name, got none")
    before = _state(path)
    opened = _open(path, columns, reading, rows)
    read = dropped = 0
    for chunk in _joined(opened.chunks, rows):
        missing = np.isnan(chunk)
        wrong = np.isinf(chunk) | (missing if reading.na == "error" else False)
        if wrong.any():
            row, column = np.argwhere(wrong)[0].tolist()
            raise opened.fault(read + row, column, float(chunk[row, column]))
        read += len(chunk)
        values = chunk
        if reading.na == "drop" and missing.any():
            values = chunk[~missing.any(axis=1)]
            dropped += len(chunk) - len(values)
        if values.size:
            yield Table(opened.columns, values, opened.named, opened.notes)
    if _state(path) != before:
        raise TableError(f"{path}: changed while it was read; read a copy of it")
    if dropped:
        opened.notes.append(f"without {dropped:,} of {read:,} rows, which lack a value")
    if read == dropped or not opened.columns:
        raise TableError(f"{path}: no rows of data{' without missing values' if dropped else ''}")


def read_table(path: PathLike, columns: Sequence[str] | None = None, reading: Reading = _AS_IT_IS) -> Table:
    r"""Read all numbers in a file; arguments and errors are those of :func:`iter_table`.

    Example:
        >>> import pathlib, tempfile
        >>> from mixflow.files.tables import read_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "data.csv")
        ...     _ = path.write_text("name,length\nox,2.5\nant,0.01\n")
        ...     read_table(path, ["length"]).values.tolist()
        [[2.5], [0.01]]

    """
    chunks = list(iter_table(path, columns, reading=reading))
    first = chunks[0]
    return Table(first.columns, np.concatenate([chunk.values for chunk in chunks]), first.named, first.notes)


def map_table(path: PathLike, columns: Sequence[str] | None = None, reading: Reading = _AS_IT_IS) -> Table:
    """Open the numbers in a file for reading row by row, in any order, without holding them in memory.

    A .npy file is mapped, and its values keep their dtype. Other files are copied in chunks to a temporary file of
    float64 in the folder of ``TMPDIR``. It has no name, and the system deletes it after the last use of the values. A
    .npy file is copied as well if the wanted rows and columns are no view of it: if it holds booleans, if the columns
    are not evenly spaced, or if rows are left out.

    Arguments and errors are those of :func:`iter_table`. If there is no room for the copy, OSError is raised.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from mixflow.files.tables import map_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "data.npy")
        ...     np.save(path, np.arange(6.0).reshape(3, 2))
        ...     map_table(path, ["x2"]).values.tolist()
        [[1.0], [3.0], [5.0]]

    """
    if Path(path).suffix.lower() == ".npy":
        rows = 0
        for table in iter_table(path, columns, reading=reading):
            rows += len(table.values)
        values = map_columns(Path(path), columns)
        if values is not None and len(values) == rows:
            return Table(table.columns, values, table.named)
    with tempfile.TemporaryFile() as file:
        rows = 0
        for table in iter_table(path, columns, reading=reading):
            try:
                file.write(np.ascontiguousarray(table.values).data)
                file.flush()
            except OSError as error:
                raise OSError(
                    f"{path}: no room for a temporary copy in {tempfile.gettempdir()} ({error.strerror}); "
                    "choose another folder by TMPDIR, or save the data as .npy"
                ) from error
            rows += len(table.values)
        values = np.memmap(file, dtype=np.float64, mode="r", shape=(rows, len(table.columns)))
    return Table(table.columns, values, table.named, table.notes)


def count_rows(path: PathLike) -> int | None:
    """The number of rows in a .npy or .parquet file; None for a text file, which does not hold it."""
    name = Path(path).name.lower()
    return _open(path, [], _AS_IT_IS).count if name.endswith((".npy", ".parquet")) else None


def _open(path: PathLike, columns: Sequence[str] | None, reading: Reading, rows: int = ROWS) -> Opened:
    reader = kind_of(path).reader
    if not Path(path).exists():
        raise TableError(f"{path}: no such file")
    if not Path(path).is_file():
        found = "a directory" if Path(path).is_dir() else "a device, a pipe or a socket"
        raise TableError(f"{path}: expected a file, got {found}")
    return reader(Path(path), columns, reading, rows)


def _joined(chunks: Iterator[NDArray[np.float64]], rows: int) -> Iterator[NDArray[np.float64]]:
    """The rows of ``chunks``, ``rows`` at a time; fewer at the end."""
    held: list[NDArray[np.float64]] = []
    count = 0
    for chunk in chunks:
        held.append(chunk)
        count += len(chunk)
        if count >= rows:
            whole = np.concatenate(held)
            for start in range(0, count - rows + 1, rows):
                yield whole[start : start + rows]
            count %= rows
            held = [whole[len(whole) - count :]]
    if count:
        yield np.concatenate(held)


def _state(path: PathLike) -> tuple[int, int]:
    """The size and the time of the last change of a file, which differ after it was written to."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return -1, -1
    return status.st_size, status.st_mtime_ns
