"""Cells of text as numbers: decimal marks, thousands separators, missing values, booleans and dates."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DATE", "MISSING", "TRUTHS", "Column", "grouped"]

# Texts for a missing value in files of Excel, R, SAS, SQL, pandas and the UCI repository.
MISSING = (
    *("", "?", "-", ".", "NA", "N/A", "n/a", "#N/A", "<NA>"),
    *("#DIV/0!", "#NAME?", "#NULL!", "#NUM!", "#REF!", "#VALUE!"),
    *("NaN", "nan", "NAN", "-nan", "NULL", "Null", "null", "None", "none"),
)
TRUTHS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# A date of ISO 8601, optionally with a time of day and a time zone.
_ZONE = r"(?:Z|[+-]\d\d(?::?\d\d)?)"
DATE = rf"\d{{4}}-\d\d-\d\d(?:[ T]\d\d(?::\d\d(?::\d\d(?:\.\d{{1,9}})?)?)?{_ZONE}?)?"

_SPACES = "'\u2019 \u00a0\u2009\u202f"  # thousands separators, besides the mark that is not the decimal mark
_MINUS = "\u2212"


def grouped(decimal: str) -> str:
    """A regular expression for numbers with thousands separators, which are characters other than ``decimal``."""
    other = "," if decimal == "." else "."
    groups = "|".join(rf"(?:{re.escape(mark)}\d{{3}})+" for mark in other + _SPACES)  # one mark in the whole number
    return rf"[+-]?[1-9]\d{{0,2}}(?:{groups})(?:{re.escape(decimal)}\d*)?"


class Column:
    """Turns the cells of one column into numbers, chunk after chunk.

    A column holds numbers, booleans or dates. The first cell that is not missing decides which.

    Args:
        name: the name of the column, for notes.
        decimal: the decimal mark, "." or ",".
        notes: the list to which the column adds how it converts its cells.
        is_open: whether the first lines left the decimal mark open. A number such as 1,234 is then an error.

    """

    def __init__(self, name: str, decimal: str, notes: list[str], is_open: bool = False) -> None:
        self.name, self.decimal, self.notes, self.is_open = name, decimal, notes, is_open
        self._kind: str | None = None

    def values(self, cells: Any) -> NDArray[np.float64]:
        """The numbers in an Arrow array of strings (n,), with NaN for null and for texts of a missing value.

        Raises:
            pyarrow.ArrowInvalid: a cell is not a number, or not of the column's kind.

        """
        import pyarrow

        try:  # most files hold plain numbers
            if self._kind not in (None, "number"):
                raise pyarrow.ArrowInvalid
            values = _floats(cells, self.decimal)
        except pyarrow.ArrowInvalid:
            return self._tidied(cells)
        if cells.null_count < len(cells):
            self._kind = "number"
        return values

    def first_fault(self, cells: Any) -> int:
        """The position of the first of ``cells`` for which :meth:`values` raises."""
        import pyarrow

        good, bad = 0, len(cells)  # the first `good` cells convert, the first `bad` cells do not
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                self.values(cells.slice(good, middle - good))
                good = middle
            except pyarrow.ArrowInvalid:
                bad = middle
        return good

    def _tidied(self, cells: Any) -> NDArray[np.float64]:
        import pyarrow
        from pyarrow import compute

        cells = compute.utf8_trim_whitespace(cells)
        missing = compute.is_in(cells, pyarrow.array(MISSING))
        cells = compute.if_else(missing, pyarrow.scalar(None, cells.type), cells)
        if cells.null_count == len(cells):
            return np.full(len(cells), np.nan)
        kinds = {"number": self._numbers, "boolean": self._booleans, "date": self._dates}
        for kind, convert in kinds.items():
            if self._kind in (None, kind):
                try:
                    values = convert(cells)
                except pyarrow.ArrowInvalid:
                    continue
                self._kind = kind
                return values
        raise pyarrow.ArrowInvalid

    def _numbers(self, cells: Any) -> NDArray[np.float64]:
        import pyarrow
        from pyarrow import compute

        cells = compute.replace_substring(cells, _MINUS, "-")
        has_groups = compute.match_substring_regex(cells, f"^{grouped(self.decimal)}$")
        if self.is_open and compute.any(compute.match_substring_regex(cells, r"^[+-]?[1-9]\d{0,2},\d{3}$")).as_py():
            raise pyarrow.ArrowInvalid
        other = "," if self.decimal == "." else "."
        joined = compute.replace_substring_regex(cells, f"[{other}{_SPACES}]", "")
        values = _floats(compute.if_else(has_groups, joined, cells), self.decimal)
        if compute.any(has_groups).as_py():
            self._note("thousands separators")
        return values

    def _booleans(self, cells: Any) -> NDArray[np.float64]:
        import pyarrow
        from pyarrow import compute

        position = compute.index_in(cells, pyarrow.array(list(TRUTHS)))
        if position.null_count > cells.null_count:
            raise pyarrow.ArrowInvalid
        self._note("true and false as 1 and 0")
        return _array(compute.take(pyarrow.array(list(TRUTHS.values())), position).cast(pyarrow.float64()))

    def _dates(self, cells: Any) -> NDArray[np.float64]:
        import pyarrow
        from pyarrow import compute

        cells = compute.replace_substring_regex(cells, r"(\.\d{6})\d+", r"\1")  # float64 has no digits left for more
        null = pyarrow.scalar(None, cells.type)
        has_zone = compute.match_substring_regex(cells, f"[ T].*{_ZONE}$")
        here = compute.cast(compute.if_else(has_zone, null, cells), pyarrow.timestamp("us"))
        elsewhere = compute.cast(compute.if_else(has_zone, cells, null), pyarrow.timestamp("us", "UTC"))
        moments = compute.coalesce(here.cast(pyarrow.int64()), elsewhere.cast(pyarrow.int64()))
        self._note("dates as seconds since 1970-01-01")
        return _array(moments.cast(pyarrow.float64(), safe=False)) / 1e6

    def _note(self, what: str) -> None:
        note = f"{what} in {self.name}"
        if note not in self.notes:
            self.notes.append(note)


def _floats(cells: Any, decimal: str) -> NDArray[np.float64]:
    import pyarrow
    from pyarrow import compute

    if decimal == ",":
        if compute.any(compute.match_substring(cells, ".")).as_py():
            raise pyarrow.ArrowInvalid
        cells = compute.replace_substring(cells, ",", ".")
    return _array(compute.cast(cells, pyarrow.float64()))


def _array(values: Any) -> NDArray[np.float64]:
    """An Arrow array of float64 as a numpy array, with NaN for null."""
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)
