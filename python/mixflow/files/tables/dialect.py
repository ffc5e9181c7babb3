"""The dialect of a text file: encoding, separator, decimal mark and header, found from its first lines."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from .table import Reading, TableError, default_names, listed
from .text import DATE, MISSING, TRUTHS, grouped

__all__ = ["Dialect", "find", "is_value", "squeezed"]

_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar", " ": "space"}
_ENCODINGS = {
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16",
    "utf-16-be": "UTF-16",
    "cp1252": "Windows-1252",
    "latin-1": "Latin-1",
}
_BINARY = {
    b"\x1f\x8b": "a file packed by gzip, whose name ends in .csv.gz or .tsv.gz",
    b"PK": "a zip archive, as Excel's workbooks are; save the table as .csv",
    b"PAR1": "a parquet file, whose name ends in .parquet",
}
_ROWS, _CELLS = 1000, 50_000  # the most rows and cells from which the dialect is found

_PLAIN = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?)", re.IGNORECASE)
_WITH_COMMA = re.compile(r"[+-]?(?:\d+,\d*|,\d+)(?:e[+-]?\d+)?", re.IGNORECASE)
_GROUPED = {mark: re.compile(grouped(mark)) for mark in ".,"}
# A blank line, a comment (but not one of Excel's errors, such as #N/A), or the line in which Excel gives the separator.
_ABOVE = re.compile(r"(?:[ \t]*|#(?!N/A|[A-Z/0]+[!?])([^\r\n]*)|\"?(?i:sep)=(.)\"?)(?:\r\n|\r|\n)")
_INTEGER = re.compile(r"[+-]?\d+")
_VALUE = re.compile(
    "|".join([*(kind.pattern for kind in (_PLAIN, _WITH_COMMA, *_GROUPED.values())), DATE]), re.IGNORECASE
)

Rows = list[list[str]]


@dataclass(frozen=True)
class Dialect:
    """How one file writes its table.

    Attributes:
        encoding: the name of a Python codec.
        sep: the separator of cells. A space stands for any number of spaces and tabs.
        decimal: the decimal mark.
        is_open: whether no number shows what the decimal mark is.
        skip: the number of lines above the first row of data.
        names: the names of all columns; those of :func:`default_names` if the file has none.
        named: whether the names come from the file.
        left_out: notes on columns without data of their own, such as row numbers, by position.
        doubts: by position, a cell such as 1,234 of a column in which the comma may be a decimal mark or separate
            thousands.
        notes: phrases on what was assumed.

    """

    encoding: str
    sep: str
    decimal: str
    is_open: bool
    skip: int
    names: list[str]
    named: bool
    left_out: dict[int, str]
    doubts: dict[int, str]
    notes: list[str]


def find(
    path: Path,
    head: bytes,
    is_whole: bool,
    separators: str,
    reading: Reading,
    columns: Sequence[str] | None,
) -> Dialect:
    """The dialect of a file that begins with the lines ``head``; ``reading`` overrides what is found.

    Args:
        path: the file, for messages.
        head: the first bytes, at least one whole line.
        is_whole: whether these are all bytes of the file.
        separators: the characters that may separate cells, the usual one for such files first.
        reading: what the caller specifies.
        columns: the names of the columns to read; None for all.

    Raises:
        TableError: the file holds no text, or no rows.

    """
    encoding = _encoding(path, head, is_whole)
    text, above, comment, told = _preamble(_lines(head, is_whole, encoding))
    sep = reading.sep or told or _separator(text, is_whole, separators, reading.decimal)
    rows, skip = _rows(text, sep, is_whole)
    if not rows:
        raise TableError(f"{path}: {'the first row does not end; is a quote not closed?' if text.strip() else 'empty'}")
    first, body = rows[0], rows[1:]
    above_names = comment is not None and reading.header is not False and _names_in(comment, sep, rows)
    if above_names:
        first, body, skip = above_names, rows, 0
    if _lacks_a_name(rows, sep):
        first = ["", *first]
    body = [row for row in body if len(row) == len(first)]
    header = reading.header
    if header is None:
        asked_for = bool(columns) and set(columns or ()) <= {cell.strip() for cell in first}
        header = bool(above_names) or asked_for or _is_quoted(text, sep) or _is_header(first, body)
    if not header:
        body = [first, *body]
    names = [name.strip() for name in first] if header else default_names(len(first))
    decimal, is_open, doubts = _decimal(body) if reading.decimal is None else (reading.decimal, False, {})
    notes = [f"encoding {_ENCODINGS[encoding]}"] if encoding in _ENCODINGS else []
    if sep != separators[0] and reading.sep is None and len(first) > 1:
        notes.append(f"separator {_NAMES.get(sep, repr(sep))}")
    if decimal == "," and reading.decimal is None:
        notes.append("decimal comma")
    if above_names:
        notes.append(f"the comment above as names ({listed(names)})")
    elif reading.header is None:
        notes += _on_header(names, header)
    left_out = _left_out(names, body) if header else {}
    return Dialect(encoding, sep, decimal, is_open, above + skip * header, names, header, left_out, doubts, notes)


def squeezed(text: bytes) -> bytes:
    """``text`` with each run of spaces and tabs replaced by one space, and without spaces at the ends of lines."""
    return re.sub(rb" ?([\r\n]) ?", rb"\1", re.sub(rb"[ \t]+", b" ", text))


# -- encoding and lines above the table ----------------------------------------------------------------------


def _encoding(path: Path, head: bytes, is_whole: bool) -> str:
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in head:
        # In UTF-16, digits and separators have one zero byte, always the first or always the second.
        for side, name in ((1, "utf-16-le"), (0, "utf-16-be")):
            if head[side::2].count(0) > 0.45 * len(head) and 0 not in head[1 - side :: 2]:
                return name
        found = next((found for start, found in _BINARY.items() if head.startswith(start)), "binary data")
        raise TableError(f"{path}: expected text, got {found}")
    for name in ("utf-8", "cp1252"):
        with suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder(name)().decode(head, is_whole)
            return name
    return "latin-1"


def _lines(head: bytes, is_whole: bool, encoding: str) -> str:
    """The whole lines in ``head``."""
    text = codecs.getincrementaldecoder(encoding)("replace").decode(head, is_whole)
    return text if is_whole else text[: max(text.rfind("\n"), text.rfind("\r")) + 1]


def _preamble(text: str) -> tuple[str, int, str | None, str | None]:
    """The text below blank lines, comments and Excel's ``sep=;``; the number of these lines; the last comment; sep."""
    above, comment, sep = 0, None, None
    while line := _ABOVE.match(text):
        text, above = text[line.end() :], above + 1
        comment, sep = line[1] or comment, line[2] or sep
    return text, above, comment, sep


def _rows(text: str, sep: str, is_whole: bool, most: int = _ROWS) -> tuple[Rows, int]:
    """The first rows, without blank lines, and the number of lines of the first row."""
    if sep == " ":
        text = squeezed(text.encode()).decode().strip(" ")
    rows: Rows = []
    lines, cells = 0, 0
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sep)
    try:
        for row in reader:
            if row:
                rows.append(row)
                cells += len(row)
                lines = lines or reader.line_num
            if len(rows) == most or cells > _CELLS:
                return rows, lines
    except csv.Error:  # a cell of more than 131,072 characters, for example behind a quote that is never closed
        return rows, lines
    return rows if is_whole or len(rows) < 3 else rows[:-1], lines  # the text may end in a quoted cell of the last row


# -- separator and decimal mark ------------------------------------------------------------------------------


def _separator(text: str, is_whole: bool, candidates: str, decimal: str | None) -> str:
    """The separator that cuts all rows into the same number of cells, with the fewest columns of words."""
    ranks, fitting = {}, {candidates[0]: 0}
    for order, sep in enumerate(candidates):
        rows, _ = _rows(text, sep, is_whole, 100)
        if sep == decimal or not rows:
            continue
        if sep == " " and any(cell.endswith((",", ";")) for cell in rows[0][:-1]):
            continue  # in "a, b" the comma is the separator, although "1," could be a number
        body = rows[1:] or rows
        width = len(rows[0]) + _lacks_a_name(rows, sep)
        if width > 1:
            fitting[sep] = sum(len(row) == width for row in body)
        if any(len(row) != width for row in body):
            continue
        columns = list(zip(*body, strict=True))
        words = sum(not all(map(is_value, column)) for column in columns)
        others = [other for other in candidates if other not in (sep, " ")]
        uncut = sum(any(map(cell.__contains__, others)) for row in body for cell in row if not is_value(cell))
        # A table of one column has no separator, so any character is possible. But if its numbers have decimal commas,
        # the comma is not the separator, because it would cut them.
        is_cut = candidates[0] in rows[0][0] and not is_value(rows[0][0])
        if width == 1 and order > 0 and (words or is_cut):
            continue
        ranks[sep] = (words == width, words, width == 1, uncut, order)
    return min(ranks, key=ranks.__getitem__) if ranks else max(fitting, key=fitting.__getitem__)


def _lacks_a_name(rows: Rows, sep: str) -> bool:
    """Whether all rows have one cell more than the first, as in R's write.table, which names no column of row names."""
    return sep in " \t" and len(rows[0]) > 1 and len(rows) > 1 and all(len(row) == len(rows[0]) + 1 for row in rows[1:])


def _decimal(body: Rows) -> tuple[str, bool, dict[int, str]]:
    """The decimal mark, whether it is open, and by position the cells that can be read in two ways."""
    has_comma = has_point = False
    doubts: dict[int, str] = {}
    for position, column in enumerate(zip(*body, strict=True)):
        if 2 * sum(map(is_value, column)) <= len(column):
            continue
        for cell in map(str.strip, column):
            if "," not in cell and "." not in cell:
                continue
            with_point, with_comma = (bool(_GROUPED[mark].fullmatch(cell)) for mark in ".,")
            if with_point and cell.count(",") == 1 and "." not in cell:
                doubts.setdefault(position, cell)
            elif with_comma and cell.count(".") == 1 and "," not in cell:
                continue  # without other signs, the point in 1.234 is a decimal mark, as for most people
            else:
                has_comma |= with_comma or bool(_WITH_COMMA.fullmatch(cell))
                has_point |= with_point or bool(_PLAIN.fullmatch(cell))
    if has_comma and not has_point:
        return ",", False, {}
    return ".", not has_point and not has_comma, {} if has_point else doubts


# -- names and columns without data --------------------------------------------------------------------------


def is_value(cell: str) -> bool:
    """Whether a cell can be a number, a boolean or a date, or stands for a missing value."""
    cell = cell.strip()
    return bool(_VALUE.fullmatch(cell)) or cell in MISSING or cell in TRUTHS


def _names_in(comment: str, sep: str, rows: Rows) -> list[str] | None:
    """The names in a comment above ``rows``, if it has one for each column and the first row holds no names."""
    first = rows[0]
    if not all(map(is_value, first)) and _is_header(first, [row for row in rows[1:] if len(row) == len(first)]):
        return None
    found, _ = _rows(comment, sep, True)
    return found[0] if len(found) == 1 and len(found[0]) == len(first) else None


def _is_quoted(text: str, sep: str) -> bool:
    """Whether all cells of the first line are quoted, but not all of the second. The first line then holds names."""
    quoted = re.compile(rf'[ \t]*"[^"\r\n]*"(?:{re.escape(sep)}"[^"\r\n]*")*[ \t]*')
    lines = re.split(r"\r\n|\r|\n", text, maxsplit=2)
    return len(lines) > 1 and bool(quoted.fullmatch(lines[0])) and not quoted.fullmatch(lines[1])


def _is_header(first: Sequence[str], body: Rows) -> bool:
    columns = [[cell.strip() for cell in column] for column in zip(*body, strict=True)] or [[] for _ in first]
    are_values = [bool(column) and all(map(is_value, column)) for column in columns]
    words = [not is_value(cell) for cell in first]
    if any(word and values for word, values in zip(words, are_values, strict=True)):
        return True
    if any(words):  # all columns hold words; a word that occurs again is no name, and a fraction above numbers neither
        fractions = ["." in cell and bool(_PLAIN.fullmatch(cell.strip())) for cell in first]
        again = any(word and cell.strip() in column for word, cell, column in zip(words, first, columns, strict=True))
        return not again and not any(part and values for part, values in zip(fractions, are_values, strict=True))
    has_index = bool(body) and not first[0].strip() and (_is_count(columns[0]) or not any(map(is_value, columns[0])))
    return _are_names([cell.strip() for cell in first[has_index:]], columns[has_index:], has_index)


def _are_names(first: Sequence[str], columns: Sequence[Sequence[str]], has_index: bool) -> bool:
    """Whether the whole numbers ``first`` are names of columns: years, or 0, 1, 2, ... above long fractions."""
    cells = [cell for column in columns for cell in column if cell not in MISSING]
    if not cells or not all(map(_INTEGER.fullmatch, first)):
        return False
    numbers = [int(cell) for cell in first]
    are_fractions = not any(map(_INTEGER.fullmatch, cells))
    if all(1900 <= number <= 2100 for number in numbers):
        steps = {after - before for before, after in pairwise(numbers)}
        are_even = len(steps) == 1 and 0 not in steps
        return (are_even or (len(numbers) == 1 and are_fractions)) and all(map(_is_outside, numbers, columns))
    counts = numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    # A program that writes so many digits writes 0 as 0.0. But two numbers may be the initial values of a simulation.
    return counts and (len(numbers) > 2 or has_index) and are_fractions and median(map(len, cells)) >= 9


def _is_outside(number: int, column: Sequence[str]) -> bool:
    values = [float(cell.replace(",", ".")) for cell in column if _PLAIN.fullmatch(cell) or _WITH_COMMA.fullmatch(cell)]
    return bool(values) and not min(values) <= number <= max(values) and not all(1900 <= v <= 2100 for v in values)


def _is_count(column: Sequence[str]) -> bool:
    """Whether the cells are whole numbers, all different, as row numbers are, sorted or not."""
    return all(map(_INTEGER.fullmatch, column)) and len(set(column)) == len(column)


def _on_header(names: Sequence[str], header: bool) -> list[str]:
    if not header:
        return [f"no header, so the columns are {listed(names)}"]
    given = [name for name in names if name]
    if any(map(is_value, given)):
        return [f"the first line as names ({listed(given)})"]
    return []


def _left_out(names: Sequence[str], body: Rows) -> dict[int, str]:
    columns = [[cell.strip() for cell in column] for column in zip(*body, strict=True)]
    left_out: dict[int, str] = {}
    if len(names) < 2 or not columns:
        return left_out
    if names[0] in ("", "Unnamed: 0"):  # pandas reads a missing name as the second of these, and writes it
        words = not any(map(is_value, columns[0]))
        if words or _is_count(columns[0]):
            left_out[0] = f"without the first column, which {'names' if words else 'counts'} the rows"
    if not names[-1] and not any(columns[-1]):
        left_out[len(names) - 1] = "without the last column, which is empty"
    return left_out
