"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["check_space", "check_writable", "replace_file"]

PathLike = str | os.PathLike[str]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of writing alone, often without a file name


@contextmanager
def replace_file(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and renamed to ``path``.

    At any moment, also after a crash, ``path`` is either the old file or the new one. After an exception the temporary
    file is removed and ``path`` is unchanged. If ``path`` is a symbolic link, the file that it leads to is replaced.
    The new file has the permissions of the old one.

    Args:
        path: the file to create or replace.

    Raises:
        OSError: the directory is missing or not writable, ``path`` is a directory, a device or anything else that is
            not a file, or the disk is full.

    Example:
        >>> import pathlib, tempfile
        >>> from mixflow.files.atomic import replace_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = pathlib.Path(folder, "note.txt")
        ...     with replace_file(target) as temporary:
        ...         _ = temporary.write_text("whole")
        ...     target.read_text()
        'whole'

    """
    temporary, target, mode = _create_beside(Path(path))
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(target)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: PathLike) -> None:
    """Raise the OSError that :func:`replace_file` would raise, before the long work rather than after it."""
    temporary, _, _ = _create_beside(Path(path))
    temporary.unlink()


def check_space(path: PathLike, size: int) -> None:
    """OSError if the disk that ``path`` is on has fewer than ``size`` bytes free.

    Example:
        >>> from mixflow.files.atomic import check_space
        >>> check_space("data.csv", 10**20)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        OSError: data.csv: expected room for at least 1e+11 GB, got ... GB of free space

    """
    free = shutil.disk_usage(Path(os.path.realpath(path)).parent).free
    if size > free:
        raise OSError(f"{path}: expected room for at least {size / 1e9:.3g} GB, got {free / 1e9:.3g} GB of free space")


def _create_beside(path: Path) -> tuple[Path, Path, int | None]:
    """A new temporary file, the file that ``path`` leads to in the same folder, and its permissions if it exists."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path}: expected a file, got a directory")
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(f"{path}: expected a file, got a device, a pipe or a socket")
    target = Path(os.path.realpath(path))
    # Its name has a fixed length, so that any target name that fits works. It is readable by the owner alone until it
    # gets the permissions of the old file.
    temporary = target.with_name(f".mixflow.{secrets.token_hex(4)}")
    try:
        temporary.touch(0o666 if mode is None else 0o600, exist_ok=False)
    except OSError as error:
        raise type(error)(f"{path}: cannot write here ({error.strerror})") from error
    return temporary, target, None if mode is None else stat.S_IMODE(mode)
