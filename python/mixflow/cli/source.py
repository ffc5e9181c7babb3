"""A table as the input of a model, and the notes about the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files.tables import Reading, Table, iter_table, read_table
from ..flows import Flow, like
from .names import own_columns, positions_of, request
from .passes import PART

__all__ = ["Notes", "Part", "Source"]


@dataclass(frozen=True)
class Part:
    """Some rows of a table as the input of a model.

    Attributes:
        x: (n, D), or events of the flow's shape.
        context: (n, C); None for a flow without a context.
        weight: (n,); None if the caller named no column of weights.
        values: the columns and contexts of the same rows, (n, D + C), as they were read.
        missing: (n,), whether a row lacks a value.

    """

    x: Tensor
    context: Tensor | None
    weight: NDArray[np.float64] | None
    values: NDArray[Any]
    missing: NDArray[np.bool_]


class Source:
    """A table as the input of a model: its columns and contexts by the model's names, in chunks or at once.

    Before the first rows, it prints what the reader assumed about the file. :meth:`finish` prints what the reader
    noticed later.

    Args:
        path: the table.
        flow: the model.
        reading: how the table is read.
        weight: the name of one more column.

    Attributes:
        rows: the number of rows that were read so far.
        lacking: the number of them that lack a value.

    """

    def __init__(self, path: str, flow: Flow, reading: Reading, weight: str | None = None) -> None:
        self.path, self.flow, self.reading, self.notes = path, flow, reading, Notes(path)
        self.names = own_columns(flow, path, reading, weight)
        self.wanted = self.names + ([] if weight is None else [weight])
        self.request = request(path, self.wanted, reading)
        self.rows = self.lacking = 0

    def __iter__(self) -> Iterator[Part]:
        for table in iter_table(self.path, self.request, PART, self.reading):
            yield self._part(table)

    def read(self) -> Part:
        """All rows."""
        return self._part(read_table(self.path, self.request, reading=self.reading))

    def finish(self, out: str | None = None) -> None:
        """Print what the reader noticed since the first rows; ``out`` is a file with a line for each row."""
        self.notes.tell()
        if self.lacking:
            place = f"; they are nan in {out}" if out else ""
            print(f"{self.path}: without {self.lacking:,} of {self.rows:,} rows, which lack a value{place}")

    def _part(self, table: Table) -> Part:
        self.notes.begin(table)
        values = table.values[:, positions_of(table, self.wanted)]
        missing = np.isnan(values).any(axis=1)
        self.rows, self.lacking = self.rows + len(missing), self.lacking + int(missing.sum())
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
    """Prints what the reader of a file assumed about it and what it left out, each note once."""

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
