"""Tables as text: .csv and .tsv files, plain or packed by gzip."""

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

from .dialect import Dialect, find, is_value, squeezed
from .table import Append, Opened, Reading, TableError, choose, no_number
from .text import MISSING, Column

__all__ = ["open_delimited", "packed", "plain", "write_delimited"]

_BLOCK = 1 << 18  # bytes that are parsed at a time, at least
_HEAD = 1 << 18  # bytes from which the dialect is found
_LONGEST = 1 << 26  # the most bytes in a line
_SHOWN = 40  # the most characters of a cell in a message

_FLOAT = re.compile(r"[+-]?(inf(inity)?|\d*\.?\d*(e[+-]?\d+)?)", re.IGNORECASE)
_LINE_END = re.compile(rb"\r\n|\r|\n")
_DAY = re.compile(r"\d{1,4}([/.-])\d{1,2}\1\d{1,4}")

FileOf: TypeAlias = Callable[[Path, Literal["rb", "wb"]], AbstractContextManager[BinaryIO]]


@contextmanager
def plain(path: Path, mode: Literal["rb", "wb"]) -> Iterator[BinaryIO]:
    """Open a file as it is."""
    with path.open(mode) as file:
        yield file


@contextmanager
def packed(path: Path, mode: Literal["rb", "wb"]) -> Iterator[BinaryIO]:
    """Open a file packed by gzip. Its header has neither name nor time, so the same numbers make the same file."""
    with path.open(mode) as file, gzip.GzipFile("", mode, compresslevel=6, fileobj=file, mtime=0) as unpacked:
        yield cast("BinaryIO", unpacked)


# -- reading -------------------------------------------------------------------------------------------------


def open_delimited(
    file_of: FileOf, separators: str, path: Path, columns: Sequence[str] | None, reading: Reading, rows: int
) -> Opened:
    """Open a table for reading.

    Args:
        file_of: :func:`plain` or :func:`packed`.
        separators: the characters that may separate cells, the usual one first.
        path: the file.
        columns: the names of the columns to read; None for all.
        reading: what the caller specifies about the file.
        rows: not used, because a number of bytes is parsed at a time.

    """
    with _errors_of(path), file_of(path, "rb") as file:
        head, is_whole = _head(path, file)
    dialect = find(path, head, is_whole, separators, reading, columns)
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
    text = _Text(path, dialect, chosen, reading.na, notes)

    def chunks() -> Iterator[NDArray[np.float64]]:
        with _errors_of(path), file_of(path, "rb") as file:
            for line, block in _blocks(path, file, dialect, max(_BLOCK, 16 * longest)):
                yield text.values(line, block)

    return Opened(names, dialect.named, None, chunks(), notes, text.fault)


class _Text:
    """Turns the ``chosen`` columns of blocks of whole rows into numbers."""

    def __init__(self, path: Path, dialect: Dialect, chosen: list[int], na: str, notes: list[str]) -> None:
        self.path, self.dialect, self.chosen, self.na = path, dialect, chosen, na
        self.columns = [Column(dialect.names[position], dialect.decimal, notes, dialect.is_open) for position in chosen]

    def values(self, line: int, block: bytes) -> NDArray[np.float64]:
        """The numbers (n, D) in ``block``, which begins on ``line`` of the file; NaN for missing values."""
        import pyarrow

        cells = self._cells(line, block)
        values = np.empty((len(cells), len(self.chosen)), order="F")
        faults = []
        for index, column in enumerate(self.columns):
            array = cells.column(index).combine_chunks()
            try:
                values[:, index] = column.values(array)
            except pyarrow.ArrowInvalid:
                faults.append((column.first_fault(array), index))
                values[:, index] = 0.0
            refused = np.isinf(values[:, index])
            if self.na == "error":
                refused |= np.isnan(values[:, index])
            if refused.any():
                faults.append((int(refused.argmax()), index))
        if faults:
            row, index = min(faults)
            raise self._on_cell(line, block, row, index)
        return values

    def fault(self, row: int, index: int, value: float) -> TableError:
        """As in :class:`Opened`, for a value that :meth:`values` accepts."""
        return no_number(f"{self.path}, data row {row + 1}", self.columns[index].name, str(value), False)

    def _cells(self, line: int, block: bytes) -> Any:
        """The chosen cells of ``block`` as an Arrow table of strings."""
        import pyarrow
        from pyarrow import csv as arrow

        wanted = [str(position) for position in self.chosen]  # the names in the file need not be unique
        ragged: list[Any] = []

        def refuse(row: Any) -> str:
            ragged.append(row)
            return "error"

        try:
            return arrow.read_csv(
                pyarrow.BufferReader(block),
                arrow.ReadOptions(
                    use_threads=False,
                    block_size=len(block) + 1,
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
        except pyarrow.ArrowInvalid as error:
            raise self._on_ragged(line, block) if ragged else TableError(f"{self.path}: {error}") from error

    # Python's reader is slow, but it counts lines, which Arrow does not. It finds the line of a cell at fault.

    def _on_cell(self, line: int, block: bytes, row: int, index: int) -> TableError:
        lines, name = self._lines(block), self.columns[index].name
        try:
            cells = next(islice(lines, row, None))
        except csv.Error:  # its cells have at most 131,072 characters
            return no_number(f"{self.path}, line {line + lines.line_num - 1}", name, "a very long cell", False)
        cell = cells[self.chosen[index]].strip() if cells else ""
        place = f"{self.path}, line {line + lines.line_num - 1}"
        return no_number(place, name, self._described(cell), cell in MISSING)

    def _on_ragged(self, line: int, block: bytes) -> TableError:
        width = len(self.dialect.names)
        lines = self._lines(block)
        found = next((len(cells) for cells in lines if cells and len(cells) != width), None)
        place = f"{self.path}, line {line + lines.line_num - 1}"
        return TableError(f"{place}: expected {width} cell{'s' * (width > 1)} as in the first line, got {found}")

    def _lines(self, block: bytes) -> Any:
        return csv.reader(io.StringIO(block.decode("utf-8", "replace"), newline=""), delimiter=self.dialect.sep)

    def _described(self, cell: str) -> str:
        """A cell that is not a number, and advice."""
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


def _blocks(path: Path, file: BinaryIO, dialect: Dialect, size: int) -> Iterator[tuple[int, bytes]]:
    """The data of a file as UTF-8 in blocks of whole rows, of about ``size`` bytes, and the line that each begins on.

    The lines above the data are left out, and so are blank lines at the end. A line ends a row unless a quote is open
    there. Blocks are cut here, because Arrow would read ahead in a thread of its own. That thread calls Python; it can
    not be interrupted, and it fails if the process ends.
    """
    line, rest = dialect.skip + 1, b""
    for text in _pieces(file, dialect, size):
        rest += text
        end = _end_of_rows(path, rest, line, dialect.sep)
        if end:
            block, rest = rest[:end], rest[end:]
            yield line, block
            line += len(_LINE_END.findall(block))
        elif len(rest) > _LONGEST:
            raise TableError(
                f"{path}, line {line}: a row of more than {_LONGEST:,} bytes, or a quote that is not closed"
            )
    if rest:
        _end_of_rows(path, rest + b"\n", line, dialect.sep, is_last=True)
        yield line, rest


def _end_of_rows(path: Path, text: bytes, line: int, sep: str, is_last: bool = False) -> int:
    """The length of the whole rows at the beginning of ``text``, which begins on ``line`` of the file.

    Unless ``text`` ends the file (``is_last``), an open quote may be closed later in the file.
    """
    end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
    if b'"' not in text or not any(part.count(b'"') % 2 for part in _LINE_END.split(text[:end])):
        return end
    # Either a quoted cell extends over several lines, or a quote is out of place. Python's reader distinguishes these.
    lines = list(io.StringIO(text[:end].decode("utf-8", "surrogateescape"), newline=""))
    reader = csv.reader(lines, delimiter=sep, strict=True)
    whole = 0
    try:
        for _ in reader:
            whole = reader.line_num
    except csv.Error as error:
        if is_last or reader.line_num < len(lines):
            raise TableError(
                f"{path}, line {line + whole}: is a quote out of place, or not closed? ({error})"
            ) from error
    return sum(len(part.encode("utf-8", "surrogateescape")) for part in lines[:whole])


def _pieces(file: BinaryIO, dialect: Dialect, size: int) -> Iterator[bytes]:
    """The bytes of a file as UTF-8, from the first row of data to the last, none of them empty."""
    decoder = codecs.getincrementaldecoder(dialect.encoding)("replace") if dialect.encoding != "utf-8" else None
    blank = b" \t\r\n" if dialect.sep == " " else b"\r\n"
    held, skip, raw = b"", dialect.skip, b"more"  # held: blank space, which is dropped at the end of the file
    is_first = True
    while raw:
        raw = file.read(size)
        text = held + (raw if decoder is None else decoder.decode(raw, not raw).encode())
        if dialect.sep == " ":
            text, is_first = squeezed(text.lstrip() if is_first else text), False
        ready = text.rstrip(blank)
        held = text[len(ready) :]
        while skip and ready:  # "\r\n" is never cut, because line ends at the end of ready are held back
            _, end, ready = re.split(rb"(\r\n|\r|\n|$)", ready, maxsplit=1)
            skip -= bool(end)
        if ready:
            yield ready


def _head(path: Path, file: BinaryIO) -> tuple[bytes, bool]:
    """The first bytes of a file, at least one line, and whether they are the whole file."""
    head, part = bytearray(), file.read(_HEAD)
    while more := file.read(_HEAD):
        head += part
        if b"\n" in part or b"\r" in part:
            return bytes(head), False
        if len(head) > _LONGEST:
            raise TableError(f"{path}: expected lines of at most {_LONGEST:,} bytes, got a first one that is longer")
        part = more
    return bytes(head + part), True


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TableError(f"{path}: truncated, damaged or not a gzip file ({error})") from error


# -- writing -------------------------------------------------------------------------------------------------


@contextmanager
def write_delimited(file_of: FileOf, separators: str, path: Path, columns: list[str]) -> Iterator[Append]:
    """Write a table of floating-point numbers. Their digits are enough to read the same numbers back."""
    import pyarrow
    from pyarrow import csv as arrow

    with file_of(path, "wb") as file:
        header = io.StringIO()
        # If names look like numbers or a comment, all names are quoted. A reader takes a first line as a header if it
        # has quotes and the second line has none.
        are_doubtful = any(is_value(name) or name.startswith("#") for name in columns)
        quoting: Literal[0, 1] = csv.QUOTE_ALL if are_doubtful else csv.QUOTE_MINIMAL
        csv.writer(header, delimiter=separators[0], lineterminator="\n", quoting=quoting).writerow(columns)
        file.write(header.getvalue().encode())
        options = arrow.WriteOptions(include_header=False, delimiter=separators[0])

        def append(values: NDArray[Any]) -> None:
            names = [str(position) for position in range(len(columns))]
            if len(values):
                arrow.write_csv(pyarrow.table(list(values.T), names=names), file, options)

        yield append
