"""Tables in numpy's .npy files, which have no names of columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .table import Append, Opened, Reading, TableError, choose, default_names, no_number

__all__ = ["map_columns", "open_npy", "write_npy"]


def map_columns(path: Path, columns: Sequence[str] | None) -> NDArray[Any] | None:
    """The columns of an array (N, D) as a memory map; None if they are no view of the array."""
    values = _map(path)
    evenly = _evenly_spaced(choose(path, default_names(values.shape[1]), False, columns))
    if evenly is None or values.dtype.kind == "b" or values.size == 0:
        return None
    return values[:, evenly]


def _map(path: Path) -> NDArray[Any]:
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # many kinds are possible, because numpy passes the header to Python's parser
        raise TableError(f"{path}: truncated, damaged or not a npy file of numbers ({error})") from error
    if array.dtype.kind not in "iufb":
        raise TableError(f"{path}: expected an array of real numbers, got {array.dtype}")
    if array.ndim not in (1, 2):
        raise TableError(f"{path}: expected an array of shape (N,) or (N, D), got {array.shape}")
    return array[:, None] if array.ndim == 1 else array


def _evenly_spaced(chosen: Sequence[int]) -> slice | None:
    """The slice that takes the evenly spaced, increasing positions ``chosen``; None if they are not."""
    steps = set(np.diff(chosen).tolist()) or {1}
    step = steps.pop()
    return slice(chosen[0], chosen[-1] + 1, step) if len(chosen) and not steps and step > 0 else None


def open_npy(path: Path, columns: Sequence[str] | None, reading: Reading, rows: int) -> Opened:
    """Open an array for reading."""
    count, width = _map(path).shape
    names = default_names(width)
    chosen = choose(path, names, False, columns)
    taken = _evenly_spaced(chosen) or chosen

    def chunks() -> Iterator[NDArray[np.float64]]:
        for start in range(0, count, rows):
            # The file is mapped anew for each chunk. Otherwise all pages read so far would count as this process's
            # memory.
            yield _map(path)[start : start + rows, taken].astype(np.float64)

    def fault(row: int, index: int, value: float) -> TableError:
        return no_number(f"{path}, data row {row + 1}", own[index], str(value), bool(np.isnan(value)))

    own = [names[position] for position in chosen]
    return Opened(own, False, count, chunks(), [], fault)


@contextmanager
def write_npy(path: Path, columns: list[str]) -> Iterator[Append]:
    """Write an array; the first rows decide on its dtype."""
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
