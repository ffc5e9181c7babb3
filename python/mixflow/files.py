"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_writable", "replace_file"]

PathLike = str | os.PathLike[str]


@contextmanager
def replace_file(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed to ``path``.

    A reader, or a crash at any moment, sees the old file or the new one. On an exception the temporary is
    removed and ``path`` is untouched.

    Args:
        path: the file to create or replace.

    Raises:
        OSError: the directory is missing or not writable, or ``path`` is a directory.

    Example:
        >>> import pathlib, tempfile
        >>> from mixflow.files import replace_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = pathlib.Path(folder, "note.txt")
        ...     with replace_file(target) as temporary:
        ...         _ = temporary.write_text("whole")
        ...     target.read_text()
        'whole'

    """
    temporary = _create_beside(Path(path))
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: PathLike) -> None:
    """Raise now the OSError that :func:`replace_file` would raise after the long work."""
    _create_beside(Path(path)).unlink()


def _create_beside(path: Path) -> Path:
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file, this is a directory")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(f"{path}: cannot write here ({error.strerror})") from error
    return temporary
