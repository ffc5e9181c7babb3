"""Tables of numbers in files: .csv, .csv.gz, .npy and .parquet, whole or in chunks that memory can hold."""

from __future__ import annotations

import csv
import gzip
import io
import math
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TextIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .files import PathLike, replace_file

__all__ = [
    "Table",
    "TableError",
    "check_extension",
    "count_rows",
    "iter_table",
    "map_table",
    "read_table",
    "table_writer",
    "write_table",
]

ROWS = 1 << 16  # in a chunk
_NUMBERS = 1 << 14  # turned into text at a time, about, so that memory does not grow with the number of columns


class TableError(ValueError):
    """A file that does not hold a table of finite numbers; the message says where and what was found."""


@dataclass(frozen=True)
class Table:
    """Columns of numbers.

    Attributes:
        columns: their names; ``x1``, ``x2``, ... where the file has none.
        values: shape (N, D); float64 and all finite, except as :func:`map_table` says.
        named: whether the names are the file's own.

    """

    columns: list[str]
    values: NDArray[Any]
    named: bool


def iter_table(path: PathLike, columns: Sequence[str] | None = None, rows: int = ROWS) -> Iterator[Table]:
    r"""Read the numbers in a .csv, .csv.gz, .npy or .parquet file in chunks: one after the other, never two at once.

    A csv file may have a header (a first line with a cell that is not a number), quotes, a byte-order mark
    and any line endings; its cells are separated by commas. A npy file holds one array of shape
    (N,) or (N, D).

    Args:
        path: the file.
        columns: the names of the columns to read, in this order; the others may hold anything. By default,
            all. A file without names is taken to hold just these columns if their number is right.
        rows: the number of rows in a chunk, at most.

    Yields:
        A :class:`Table` of some rows each, at least one.

    Raises:
        TableError: the file is missing, empty, ragged or of an unknown kind, lacks a column, or holds
            something other than finite numbers: the first that is met.
        ModuleNotFoundError: a .parquet file, and pyarrow is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> from mixflow.tables import iter_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "data.csv")
        ...     _ = path.write_text("length\n2.5\n0.01\n7\n")
        ...     [table.values.ravel().tolist() for table in iter_table(path, rows=2)]
        [[2.5, 0.01], [7.0]]

    """
    opened = _open(path, columns, rows)
    done = 0
    for values in opened.chunks:
        finite = np.isfinite(values)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise TableError(
                f"{path}: data row {done + row + 1}, column {opened.columns[column]!r}: "
                f"expected a finite number, got {values[row, column]}"
            )
        if values.size:
            done += len(values)
            yield Table(opened.columns, values, opened.named)
    if not done:
        raise TableError(f"{path}: no rows of data")


def read_table(path: PathLike, columns: Sequence[str] | None = None) -> Table:
    r"""Read all numbers in a file; arguments and errors are those of :func:`iter_table`.

    Example:
        >>> import pathlib, tempfile
        >>> from mixflow.tables import read_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "data.csv")
        ...     _ = path.write_text("name,length\nox,2.5\nant,0.01\n")
        ...     read_table(path, ["length"]).values.tolist()
        [[2.5], [0.01]]

    """
    chunks = list(iter_table(path, columns))
    return Table(chunks[0].columns, np.concatenate([chunk.values for chunk in chunks]), chunks[0].named)


def map_table(path: PathLike, columns: Sequence[str] | None = None) -> Table:
    """Open the numbers in a file for reading row by row, in any order, without holding them in memory.

    A .npy file is mapped as it is: its values keep their dtype and are not looked at, so they may not be finite.
    Other files, and a choice of columns of a .npy file that are not evenly spaced, are copied in chunks to a temporary
    file of float64, in the folder that ``TMPDIR`` names; it has no name and goes with the last use of the values.

    Arguments and errors are those of :func:`iter_table`; an OSError where there is no room for the copy.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from mixflow.tables import map_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "data.npy")
        ...     np.save(path, np.arange(6.0).reshape(3, 2))
        ...     map_table(path, ["x2"]).values.tolist()
        [[1.0], [3.0], [5.0]]

    """
    if Path(path).suffix.lower() == ".npy":
        opened = _open(path, columns, ROWS)
        evenly = _as_slice(opened.chosen)
        values = _map_npy(Path(path))[:, evenly] if evenly else None
        if values is not None and values.size:
            return Table(opened.columns, values, opened.named)
    with tempfile.TemporaryFile() as file:
        rows = 0
        for table in iter_table(path, columns):
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
    return Table(table.columns, values, table.named)


def count_rows(path: PathLike) -> int | None:
    """The number of rows in a file, as far as it says so itself; None for a .csv or .csv.gz file."""
    return _open(path, None, ROWS).count


@contextmanager
def table_writer(path: PathLike, columns: Sequence[str]) -> Iterator[Callable[[NDArray[Any]], None]]:
    r"""Write numbers in chunks to a .csv, .csv.gz, .npy (which keeps no names) or .parquet file.

    Numbers in csv are written with as many digits as their dtype needs to be read back unchanged.

    Args:
        path: the file; it appears whole or not at all, at the end.
        columns: D names, all different for a .parquet file.

    Yields:
        A function to call with each chunk: floating-point numbers of one dtype, shape (n, D).

    Raises:
        TableError: unknown kind of file.
        ValueError: the names do not fit the values.
        OSError: the file cannot be written.
        ModuleNotFoundError: a .parquet file, and pyarrow is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from mixflow.tables import table_writer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "data.csv")
        ...     with table_writer(path, ["length"]) as write:
        ...         write(np.array([[2.5]]))
        ...         write(np.array([[0.01], [7.0]]))
        ...     path.read_text()
        'length\n2.5\n0.01\n7.0\n'

    """
    writer = _format_of(path).writer
    columns, written = list(columns), 0
    with replace_file(path) as temporary, writer(temporary, columns) as append:

        def write(values: NDArray[Any]) -> None:
            nonlocal written
            shape = np.shape(values)
            if len(shape) != 2 or len(columns) != shape[1]:
                raise ValueError(
                    f"columns: expected a name for each column of values, got {len(columns)} for shape {shape}"
                )
            append(values)
            written += 1

        yield write
        if not written:
            append(np.empty((0, len(columns))))


def write_table(path: PathLike, columns: Sequence[str], values: NDArray[Any]) -> None:
    """Write ``values`` (N, D) at once; arguments and errors are those of :func:`table_writer`."""
    with table_writer(path, columns) as write:
        write(values)


def check_extension(path: PathLike) -> None:
    """Raise now what :func:`table_writer` would raise for this kind of file."""
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


@dataclass(frozen=True)
class _Opened:
    """A file about to be read: which columns, how many rows if that is known, and its chunks, (n, D) in float64."""

    columns: list[str]
    chosen: list[int]
    named: bool
    count: int | None
    chunks: Iterator[NDArray[np.float64]]


def _open(path: PathLike, columns: Sequence[str] | None, rows: int) -> _Opened:
    reader = _format_of(path).reader
    if not Path(path).is_file():
        raise TableError(f"{path}: no such file")
    return reader(Path(path), columns, rows)


def _as_slice(chosen: list[int]) -> slice | None:
    """The slice that takes the evenly spaced, increasing positions ``chosen``; None if they are not."""
    steps = set(np.diff(chosen).tolist()) or {1}
    step = steps.pop()
    return slice(chosen[0], chosen[-1] + 1, step) if chosen and not steps and step > 0 else None


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


@contextmanager
def _open_plain(path: Path, mode: Literal["r", "w"], encoding: str) -> Iterator[TextIO]:
    with path.open(mode, newline="", encoding=encoding) as text:
        yield text


@contextmanager
def _open_gzip(path: Path, mode: Literal["r", "w"], encoding: str) -> Iterator[TextIO]:
    # Neither name nor time in the header: the same numbers make the same file.
    with (
        path.open(f"{mode}b") as file,
        gzip.GzipFile("", f"{mode}b", compresslevel=6, fileobj=file, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding, newline="") as text,
    ):
        yield text


def _csv_rows(opener: Opener, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a csv file, all as wide as the first, and the lines on which they end."""
    width = blank = None
    try:
        with opener(path, "r", "utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if not row:  # an error, unless nothing but blank lines follows
                    blank = blank or reader.line_num
                    continue
                width = width or len(row)
                if blank or len(row) != width:
                    found = "a blank line" if blank else f"{len(row)}"
                    raise TableError(
                        f"{path}, line {blank or reader.line_num}: "
                        f"expected {width} cells as in the first line, got {found}"
                    )
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: not a csv file in UTF-8 ({error})") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TableError(f"{path}: truncated, damaged or not a gzip file ({error})") from error


def _open_csv(opener: Opener, path: Path, columns: Sequence[str] | None, rows: int) -> _Opened:
    lines = _csv_rows(opener, path)
    first = next(lines, None)
    if first is None:
        raise TableError(f"{path}: empty")
    names = None
    if all(_is_number(cell) for cell in first[1]):
        lines = chain([first], lines)
    else:
        names = [cell.strip() for cell in first[1]]
    chosen = _choose(path, names, len(first[1]), columns)
    own = names or _default_names(len(first[1]))

    def chunks() -> Iterator[NDArray[np.float64]]:
        while chunk := list(islice(lines, rows)):
            values = np.empty((len(chunk), len(chosen)))
            for index, (line, row) in enumerate(chunk):
                for position, column in enumerate(chosen):
                    cell = row[column]
                    try:
                        value = _number(cell)
                    except ValueError:
                        value = math.nan
                    if not math.isfinite(value):
                        found = repr(cell) if cell.strip() else "a blank cell"
                        raise TableError(
                            f"{path}, line {line}, column {own[column]!r}: expected a finite number, got {found}"
                        )
                    values[index, position] = value
            yield values

    return _Opened([own[index] for index in chosen], chosen, names is not None, None, chunks())


@contextmanager
def _write_csv(opener: Opener, path: Path, columns: list[str]) -> Iterator[Append]:
    with opener(path, "w", "utf-8") as file:
        csv.writer(file, lineterminator="\n").writerow(columns)

        def append(values: NDArray[Any]) -> None:
            rows = 1 + _NUMBERS // (1 + len(columns))
            for start in range(0, len(values), rows):
                file.write(_csv_lines(values[start : start + rows]))

        yield append


def _csv_lines(values: NDArray[Any]) -> str:
    """The lines of a csv file for ``values`` (n, D), without an object of Python for each number."""
    texts = values.astype("S")  # as str() writes each number; shorter ones end in zero bytes, and none needs quotes
    cells = np.empty(texts.shape, dtype=[("text", texts.dtype), ("end", "S1")])
    cells["text"] = texts
    cells["end"][:, :-1] = b","
    cells["end"][:, -1:] = b"\n"
    return cells.tobytes().translate(None, b"\0").decode("ascii")


# -- npy -----------------------------------------------------------------------------------------------------


def _map_npy(path: Path) -> NDArray[Any]:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # of many kinds: numpy hands the header to Python's own tokenizer and parser
        raise TableError(f"{path}: truncated, damaged or not a npy file of numbers ({error})") from error
    if array.dtype.kind not in "iuf":
        raise TableError(f"{path}: expected an array of real numbers, got {array.dtype}")
    if array.ndim not in (1, 2):
        raise TableError(f"{path}: expected an array of shape (N,) or (N, D), got {array.shape}")
    return array[:, None] if array.ndim == 1 else array


def _open_npy(path: Path, columns: Sequence[str] | None, rows: int) -> _Opened:
    count, width = _map_npy(path).shape
    chosen = _choose(path, None, width, columns)

    def chunks() -> Iterator[NDArray[np.float64]]:
        for start in range(0, count, rows):
            # Mapped anew for each chunk, or all pages read so far would count as this process's memory.
            yield _map_npy(path)[start : start + rows, chosen].astype(np.float64)

    own = _default_names(width)
    return _Opened([own[index] for index in chosen], chosen, False, count, chunks())


@contextmanager
def _write_npy(path: Path, columns: list[str]) -> Iterator[Append]:
    rows, dtype = 0, np.dtype(np.float64)

    def header() -> dict[str, Any]:
        kind = np.lib.format.dtype_to_descr(dtype)
        return {"descr": kind, "fortran_order": False, "shape": (rows, len(columns))}

    with path.open("w+b") as file:

        def append(values: NDArray[Any]) -> None:
            nonlocal rows, dtype
            if file.tell() == 0:
                dtype = values.dtype
                np.lib.format.write_array_header_1_0(file, header())
            file.write(np.ascontiguousarray(values, dtype=dtype).data)
            rows += len(values)

        yield append
        # numpy pads the header, so that the number of rows can be filled in.
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header())


# -- parquet -------------------------------------------------------------------------------------------------


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("parquet files need pyarrow: pip install mixflow[parquet]") from error
    return pyarrow


def _open_parquet(path: Path, columns: Sequence[str] | None, rows: int) -> _Opened:
    arrow = _pyarrow()
    damaged = (arrow.ArrowException, OSError)

    def describe(error: Exception) -> TableError:
        return TableError(f"{path}: truncated, damaged or not a parquet file ({error})")

    try:
        file = arrow.parquet.ParquetFile(path)
    except damaged as error:
        raise describe(error) from error
    schema = file.schema_arrow
    chosen = _choose(path, schema.names, len(schema.names), columns)
    for index in chosen:
        kind = schema.field(index).type
        if not (arrow.types.is_integer(kind) or arrow.types.is_floating(kind)):
            raise TableError(f"{path}, column {schema.names[index]!r}: expected numbers, got {kind}")
    wanted = [schema.names[index] for index in chosen]

    def chunks() -> Iterator[NDArray[np.float64]]:
        # Chosen names are unique; without a choice, positions tell columns of one name apart.
        subset = None if columns is None else wanted
        try:
            for batch in file.iter_batches(rows, columns=subset, use_threads=False):
                parts = batch.columns if subset is None else [batch.column(name) for name in subset]
                # Missing values come out as NaN, which the common check reports.
                yield np.stack([part.to_numpy(zero_copy_only=False).astype(np.float64) for part in parts], axis=1)
        except damaged as error:
            raise describe(error) from error
        finally:
            file.close()

    return _Opened(wanted, chosen, True, file.metadata.num_rows, chunks())


@contextmanager
def _write_parquet(path: Path, columns: list[str]) -> Iterator[Append]:
    arrow = _pyarrow()
    for name in columns:
        if columns.count(name) > 1:  # no reader could tell them apart
            raise ValueError(f"columns: expected different names in a parquet file, got {name!r} more than once")
    with ExitStack() as opened:
        writer: Any = None

        def append(values: NDArray[Any]) -> None:
            nonlocal writer
            table = arrow.table([arrow.array(column) for column in values.T], names=columns)
            if writer is None:
                # A dictionary helps columns of few different numbers. Samples and densities are all different: with one
                # the file is half as large again, and takes seven times as long to write.
                file = arrow.parquet.ParquetWriter(path, table.schema, use_dictionary=False)
                writer = opened.enter_context(file)
            writer.write_table(table)

        yield append


Append: TypeAlias = Callable[[NDArray[Any]], None]
Opener: TypeAlias = Callable[[Path, Literal["r", "w"], str], AbstractContextManager[TextIO]]


@dataclass(frozen=True)
class _Format:
    reader: Callable[[Path, Sequence[str] | None, int], _Opened]
    writer: Callable[[Path, list[str]], AbstractContextManager[Append]]


_FORMATS = {
    ".csv": _Format(partial(_open_csv, _open_plain), partial(_write_csv, _open_plain)),
    ".csv.gz": _Format(partial(_open_csv, _open_gzip), partial(_write_csv, _open_gzip)),
    ".npy": _Format(_open_npy, _write_npy),
    ".parquet": _Format(_open_parquet, _write_parquet),
}


def _format_of(path: PathLike) -> _Format:
    name = Path(path).name.lower()
    for ending, kind in _FORMATS.items():
        if name.endswith(ending):
            return kind
    found = "".join(Path(name).suffixes[-1:]) or "no ending"
    raise TableError(f"{path}: expected a file ending in {', '.join(_FORMATS)}; got {found!r}")
