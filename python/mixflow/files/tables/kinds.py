"""The kinds of files that hold tables, by the ending of their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..atomic import PathLike
from .delimited import open_delimited, packed, plain, write_delimited
from .npy import open_npy, write_npy
from .parquet import open_parquet, write_parquet
from .table import Append, Opened, Reading, TableError

__all__ = ["Kind", "kind_of"]


@dataclass(frozen=True)
class Kind:
    """How files of one kind are read and written."""

    reader: Callable[[Path, Sequence[str] | None, Reading, int], Opened]
    writer: Callable[[Path, list[str]], AbstractContextManager[Append]]


def _text(file_of: Any, separators: str) -> Kind:
    return Kind(partial(open_delimited, file_of, separators), partial(write_delimited, file_of, separators))


_KINDS = {
    ".csv": _text(plain, ",;\t| "),
    ".csv.gz": _text(packed, ",;\t| "),
    ".tsv": _text(plain, "\t,;| "),
    ".tsv.gz": _text(packed, "\t,;| "),
    ".npy": Kind(open_npy, write_npy),
    ".parquet": Kind(open_parquet, write_parquet),
}


def kind_of(path: PathLike) -> Kind:
    """The kind of file that ``path`` names; TableError for a name with another ending."""
    name = Path(path).name.lower()
    for ending, kind in _KINDS.items():
        if name.endswith(ending):
            return kind
    found = "".join(Path(name).suffixes[-1:]) or "no ending"
    raise TableError(f"{path}: expected a file ending in {', '.join(_KINDS)}, got {found!r}")
