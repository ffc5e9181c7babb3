"""Tables in .parquet files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .table import Append, Opened, Reading, TableError, choose, no_number

__all__ = ["open_parquet", "write_parquet"]


def open_parquet(path: Path, columns: Sequence[str] | None, reading: Reading, rows: int) -> Opened:
    """Open a file for reading. The index of a pandas data frame is read only if ``columns`` names it."""
    import pyarrow
    import pyarrow.parquet

    with _errors_of(path):
        # Each column gets a buffer of its own. Otherwise whole row groups would be in memory.
        file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    schema, notes = file.schema_arrow, []
    index = _index(schema) if columns is None else []
    chosen = choose(path, schema.names, True, columns, index)
    if index:
        notes.append(f"without the index of the data frame ({', '.join(schema.names[position] for position in index)})")
    names = [schema.names[position] for position in chosen]
    for position, name in zip(chosen, names, strict=True):
        note = _note_on(path, name, schema.field(position).type)
        notes += [f"{note} in {name}"] if note else []

    def chunks() -> Iterator[NDArray[np.float64]]:
        with _errors_of(path), file:
            for batch in file.iter_batches(rows, columns=names, use_threads=False):
                yield np.stack([_floats(batch.column(name)) for name in names], axis=1)

    def fault(row: int, column: int, value: float) -> TableError:
        found = "null" if np.isnan(value) else str(value)
        return no_number(f"{path}, data row {row + 1}", names[column], found, bool(np.isnan(value)))

    return Opened(names, True, file.metadata.num_rows, chunks(), notes, fault)


def _index(schema: Any) -> list[int]:
    """The positions of the columns in which pandas keeps the index of a data frame."""
    try:
        index = json.loads(schema.metadata[b"pandas"])["index_columns"]
        return [schema.names.index(name) for name in index if isinstance(name, str)]
    except (TypeError, KeyError, ValueError):  # there are no metadata, or not those that pandas writes
        return []


def _note_on(path: Path, name: str, kind: Any) -> str:
    """How values of another type become numbers, as a phrase, "" for numbers; TableError if they cannot."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return ""
    if types.is_boolean(kind):
        return "true and false as 1 and 0"
    if types.is_timestamp(kind) or types.is_date(kind):
        return "dates as seconds since 1970-01-01"
    if types.is_time(kind) or types.is_duration(kind):
        return "times as seconds"
    advice = "choose the columns of numbers with --column"
    raise TableError(f"{path}, column {name!r}: expected numbers, got {kind}; {advice}")


def _floats(column: Any) -> NDArray[np.float64]:
    """An Arrow array as numbers, with NaN for null."""
    import pyarrow
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    seconds = 1.0
    if types.is_date(kind):
        column = column.cast(pyarrow.timestamp("ms"))
        kind = column.type
    if types.is_temporal(kind):
        seconds = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}[kind.unit]
        column = column.cast(pyarrow.int32() if types.is_time32(kind) else pyarrow.int64())
    values = column.cast(pyarrow.float64(), safe=False)
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64) / seconds


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise TableError(f"{path}: truncated, damaged or not a parquet file ({error})") from error


@contextmanager
def write_parquet(path: Path, columns: list[str]) -> Iterator[Append]:
    """Write a file; ValueError for two columns with the same name, which no reader could distinguish."""
    import pyarrow
    import pyarrow.parquet

    for name in columns:
        if columns.count(name) > 1:
            raise ValueError(f"columns: expected different names in a parquet file, got {name!r} more than once")
    with ExitStack() as opened:
        writer: Any = None

        def append(values: NDArray[Any]) -> None:
            nonlocal writer
            table = pyarrow.table([pyarrow.array(column) for column in values.T], names=columns)
            if writer is None:
                # A dictionary helps if a column has few different numbers. Samples and densities are all different.
                # With a dictionary, the file would be half as large again and take seven times as long to write.
                file = pyarrow.parquet.ParquetWriter(path, table.schema, use_dictionary=False)
                writer = opened.enter_context(file)
            writer.write_table(table)

        yield append
