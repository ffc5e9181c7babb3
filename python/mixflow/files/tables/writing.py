"""Writing tables of any kind: in chunks, or at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..atomic import PathLike, replace_file
from .kinds import kind_of

__all__ = ["check_extension", "table_writer", "write_table"]


@contextmanager
def table_writer(path: PathLike, columns: Sequence[str]) -> Iterator[Callable[[NDArray[Any]], None]]:
    r"""Write numbers in chunks to a file. A .npy file does not keep names.

    In text, numbers get as many digits as their dtype needs to be read back unchanged.

    Args:
        path: the file. It appears at the end, whole or not at all.
        columns: D names, all different for a .parquet file.

    Yields:
        A function that writes a chunk: floating-point numbers (n, D), of the same dtype in all chunks.

    Raises:
        TableError: unknown kind of file.
        ValueError: the names do not fit the values.
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from mixflow.files.tables import table_writer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "data.csv")
        ...     with table_writer(path, ["length"]) as write:
        ...         write(np.array([[2.5]]))
        ...         write(np.array([[0.01], [7.0]]))
        ...     path.read_text()
        'length\n2.5\n0.01\n7\n'

    """
    writer = kind_of(path).writer
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
    """Raise the error that :func:`table_writer` would raise for this kind of file."""
    kind_of(path)
