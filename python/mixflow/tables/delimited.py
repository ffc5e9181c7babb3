"""Tables as text: .csv and .tsv, plain or packed by gzip."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from .dialect import Dialect, find, squeezed
from .table import Append, Opened, Reading, TableError, choose, no_number
from .text import MISSING, Column

__all__ = ["open_delimited", "packed", "plain", "write_delimited"]

_BLOCK = 1 << 18  # bytes that are parsed at a time, at least
_HEAD = 1 << 18  # bytes that the dialect is found from
_LONGEST = 1 << 26  # bytes in a line
_SHOWN = 40  # characters of a cell in a message

_FLOAT = re.compile(r"[+-]?(inf(inity)?|[\d.]+(e[+-]?\d+)?)", re.IGNORECASE)
_DAY = re.compile(r"\d{1,4}([/.-])\d{1,2}\1\d{1,4}")

FileOf: TypeAlias = Callable[[Path, Literal["rb", "wb"]], AbstractContextManager[BinaryIO]]


@contextmanager
def plain(path: Path, mode: Literal["rb", "wb"]) -> Iterator[BinaryIO]:
    """Open a file as it is."""
    with path.open(mode) as file:
        yield file


@contextmanager
def packed(path: Path, mode: Literal["rb", "wb"]) -> Iterator[BinaryIO]:
    """Open a file that gzip packs. Its header has neither name nor time: the same numbers make the same file."""
    with path.open(mode) as file, gzip.GzipFile("", mode, compresslevel=6, fileobj=file, mtime=0) as unpacked:
        yield cast("BinaryIO", unpacked)


# -- reading -------------------------------------------------------------------------------------------------


def open_delimited(
    file_of: FileOf, separators: str, path: Path, columns: Sequence[str] | None, reading: Reading, rows: int
) -> Opened:
    """Open a table for reading.

    Args:
        file_of: :func:`plain` or :func:`packed`.
        separators: what may separate the cells, the usual one first.
        path: the file.
        columns: the names of the columns to read, None for all.
        reading: what the caller knows about the file.
        rows: not used; Arrow parses a number of bytes at a time.

    """
    with _errors_of(path), file_of(path, "rb") as file:
        head, is_whole = _head(path, file)
    dialect = find(path, head, is_whole, separators, reading)
    chosen = choose(path, dialect.names, dialect.named, columns, list(dialect.left_out))
    for position in chosen:
        if position in dialect.doubts:
            raise TableError(
                f"{path}, column {dialect.names[position]!r}: {dialect.doubts[position]} can be read in two ways; say "
                "--decimal , if the comma is the decimal mark, and --decimal . if it separates thousands"
            )
    names = [dialect.names[position] for position in chosen]
    notes = [*dialect.notes, *(dialect.left_out.values() if columns is None else [])]
    longest = max(map(len, head.splitlines()), default=0)
    text = _Text(path, file_of, dialect, chosen, min(max(_BLOCK, 64 * longest), _LONGEST), notes)
    return Opened(names, dialect.named, None, text.chunks(), notes, text.fault)


class _Text:
    """The rows of one file, of which the columns ``chosen`` are read, about ``block`` bytes at a time."""

    def __init__(
        self, path: Path, file_of: FileOf, dialect: Dialect, chosen: list[int], block: int, notes: list[str]
    ) -> None:
        self.path, self.file_of, self.dialect, self.chosen, self.block = path, file_of, dialect, chosen, block
        self.columns = [Column(dialect.names[position], dialect.decimal, notes) for position in chosen]

    def chunks(self) -> Iterator[NDArray[np.float64]]:
        """The numbers, block by block."""
        done = 0
        with _errors_of(self.path), self._open() as stream:
            for cells in self._cells(stream):
                yield self._values(cells, done)
                done += len(cells)
            if stream.quotes % 2:
                self._check_quotes()

    def fault(self, row: int, index: int, _: float) -> TableError:
        """The error for the cell in a row of the data and one of the chosen columns, both counted from 0."""
        position = self.chosen[index]
        name = self.dialect.names[position]
        cells: list[str]
        try:
            with self._lines() as lines:
                cells = next(islice(lines, row, None), [])
                line = self.dialect.skip + lines.line_num
        except csv.Error:  # it takes no cell of more than 131,072 characters
            return no_number(f"{self.path}, data row {row + 1}", name, "a cell too long to be shown", False)
        cell = cells[position].strip() if cells else ""
        return no_number(f"{self.path}, line {line}", name, self._described(cell), cell in MISSING)

    def _described(self, cell: str) -> str:
        """A cell that is no number, and what to do about it."""
        if not cell:
            return "a blank cell"
        found = repr(cell) if len(cell) <= _SHOWN else f"{cell[:_SHOWN]!r} and {len(cell) - _SHOWN:,} characters more"
        if cell in MISSING or _FLOAT.fullmatch(cell):
            return found
        if _DAY.match(cell):
            return f"{found}; dates are read as 2020-01-31 or 2020-01-31 23:59:59"
        if "," in cell and self.dialect.decimal == ".":
            return f"{found}; --decimal , reads decimal commas"
        return f"{found}; --column chooses the columns of numbers"

    @contextmanager
    def _open(self) -> Iterator[_Stream]:
        with self.file_of(self.path, "rb") as file, _Stream(file, self.dialect) as stream:
            yield stream

    def _cells(self, stream: _Stream) -> Iterator[Any]:
        """The chosen cells as Arrow's record batches of strings."""
        import pyarrow
        from pyarrow import csv as arrow

        if stream.is_empty():  # which Arrow takes for an error
            return
        wanted = [str(position) for position in self.chosen]  # the names in the file need not be unique
        ragged: list[Any] = []

        def refuse(row: Any) -> str:
            ragged.append(row)
            return "error"

        try:
            reader = arrow.open_csv(
                pyarrow.PythonFile(stream, "r"),
                arrow.ReadOptions(
                    use_threads=False,
                    block_size=self.block,
                    column_names=[str(position) for position in range(len(self.dialect.names))],
                ),
                arrow.ParseOptions(
                    delimiter=self.dialect.sep,
                    newlines_in_values=True,
                    ignore_empty_lines=False,
                    invalid_row_handler=refuse,
                ),
                arrow.ConvertOptions(
                    check_utf8=False,
                    include_columns=wanted,
                    column_types=dict.fromkeys(wanted, pyarrow.string()),
                    null_values=list(MISSING),
                    strings_can_be_null=True,
                ),
            )
            with reader:  # a thread of Arrow's reads ahead
                yield from reader
        except pyarrow.ArrowInvalid as error:
            if ragged:
                raise self._on_ragged() from error
            raise TableError(
                f"{self.path}: a line of more than {self.block:,} bytes, or a quote that is not closed ({error})"
            ) from error

    def _values(self, cells: Any, done: int) -> NDArray[np.float64]:
        import pyarrow

        values = np.empty((len(cells), len(self.chosen)), order="F")
        faults = []
        for index, (column, array) in enumerate(zip(self.columns, cells.columns, strict=True)):
            try:
                values[:, index] = column.values(array)
            except pyarrow.ArrowInvalid:
                faults.append((column.first_fault(array), index))
        if faults:
            row, index = min(faults)
            raise self.fault(done + row, index, np.nan)
        return values

    # Python's own reader is slow, but it counts lines, which Arrow does not. It places what Arrow refused.

    @contextmanager
    def _lines(self, strict: bool = False) -> Iterator[Any]:
        """The rows of the data by Python's own reader."""
        with self._open() as stream:
            text = io.TextIOWrapper(io.BufferedReader(stream), "utf-8", "replace", newline="")
            yield csv.reader(text, delimiter=self.dialect.sep, strict=strict)

    def _on_ragged(self) -> TableError:
        width = len(self.dialect.names)
        with self._lines() as lines:
            found = next((len(cells) for cells in lines if cells and len(cells) != width), None)
            line = self.dialect.skip + lines.line_num
        return TableError(f"{self.path}, line {line}: expected {width} cells as in the first line, got {found}")

    def _check_quotes(self) -> None:
        """csv.Error if a last cell begins with a quote that is never closed: it may have swallowed rows."""
        with self._lines(strict=True) as lines:
            for _ in lines:
                pass


class _Stream(io.RawIOBase):
    """The data of a text file as UTF-8, without the lines above them and blank lines at the end.

    Attributes:
        quotes: how many there were; after an odd number, one may never be closed.

    """

    def __init__(self, file: BinaryIO, dialect: Dialect) -> None:
        self.quotes = 0
        self._file = file
        self._decoder = (
            codecs.getincrementaldecoder(dialect.encoding)("replace") if dialect.encoding != "utf-8" else None
        )
        self._squeeze = dialect.sep == " "
        self._skip = dialect.skip
        self._is_new = True
        self._ready = self._held = b""  # what may be read, and blank space that may be the file's last

    def readable(self) -> bool:
        """As io.RawIOBase has it."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, unless the file ends: Arrow takes no block in which no line ends."""
        self._make_ready(len(buffer))
        part, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(part)] = part
        self.quotes += part.count(b'"')
        return len(part)

    def is_empty(self) -> bool:
        """Whether there is nothing more to read."""
        self._make_ready(1)
        return not self._ready

    def _make_ready(self, size: int) -> None:
        raw = b"more"
        while raw and len(self._ready) < size:
            raw = self._file.read(max(size, _HEAD))
            text = self._held + (raw if self._decoder is None else self._decoder.decode(raw, not raw).encode())
            if self._squeeze:
                text = squeezed(text.lstrip() if self._is_new else text)
                self._is_new = False
            ready = text.rstrip(b" \t\r\n" if self._squeeze else b"\r\n")
            self._held = text[len(ready) :]
            while self._skip and ready:  # "\r\n" is in one piece, as line ends at the end of ready are held back
                _, end, ready = re.split(rb"(\r\n|\r|\n|$)", ready, maxsplit=1)
                self._skip -= bool(end)
            self._ready += ready


def _head(path: Path, file: BinaryIO) -> tuple[bytes, bool]:
    """The first bytes of a file, with the end of a line among them, and whether they are all of it."""
    head, part = bytearray(), file.read(_HEAD)
    while more := file.read(_HEAD):
        head += part
        if b"\n" in part or b"\r" in part:
            return bytes(head), False
        if len(head) > _LONGEST:
            raise TableError(f"{path}: expected lines of at most {_LONGEST:,} bytes, found no end of the first")
        part = more
    return bytes(head + part), True


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise TableError(f"{path}: not a table as text ({error})") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TableError(f"{path}: truncated, damaged or not a gzip file ({error})") from error


# -- writing -------------------------------------------------------------------------------------------------


@contextmanager
def write_delimited(file_of: FileOf, separators: str, path: Path, columns: list[str]) -> Iterator[Append]:
    """Write a table of floating-point numbers, with as many digits as their dtype needs to be read back unchanged."""
    import pyarrow
    from pyarrow import csv as arrow

    with file_of(path, "wb") as file:
        header = io.StringIO()
        csv.writer(header, delimiter=separators[0], lineterminator="\n").writerow(columns)
        file.write(header.getvalue().encode())
        options = arrow.WriteOptions(include_header=False, delimiter=separators[0])

        def append(values: NDArray[Any]) -> None:
            names = [str(position) for position in range(len(columns))]
            if len(values):
                arrow.write_csv(pyarrow.table(list(values.T), names=names), file, options)

        yield append
