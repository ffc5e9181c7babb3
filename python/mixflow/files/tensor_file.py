"""safetensors files with a checksum, which model files and checkpoints are."""

from __future__ import annotations

import hashlib

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from .atomic import PathLike, replace_file

__all__ = ["Contents", "is_intact", "read", "sign", "write"]

Contents = tuple[dict[str, str], dict[str, Tensor]]  # metadata and tensors

CHECKSUM = "sha256"


def write(path: PathLike, metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Write metadata and tensors to ``path``, with a checksum of both. The file appears whole or not at all.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile, torch
        >>> from mixflow.files import tensor_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "file.safetensors")
        ...     tensor_file.write(path, {"name": "ones"}, {"ones": torch.ones(2)})
        ...     contents = tensor_file.read(path)
        >>> tensor_file.is_intact(contents), contents[1]
        (True, {'ones': tensor([1., 1.])})

    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replace_file(path) as temporary:
        temporary.write_bytes(to_bytes(tensors, sign(metadata, tensors)))


def read(path: PathLike) -> Contents:
    """The contents of any safetensors file. Nothing in it is ever executed.

    Raises:
        ValueError: the file is truncated, damaged or not a safetensors file.
        OSError: the file cannot be read.

    """
    with open(path, "rb"):  # noqa: PTH123 - for the operating system's own error, which is clearer than that of safe_open
        pass
    try:
        with safe_open(path, framework="pt") as file:
            # These are copies, whose memory torch aligns. On unaligned memory, matrix products differ in the last bits.
            return file.metadata() or {}, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, UnicodeDecodeError, TypeError) as error:  # TypeError: a dtype that torch does not have
        raise ValueError(f"truncated, damaged or not a safetensors file ({error})") from error


def is_intact(contents: Contents) -> bool:
    """Whether the checksum in ``contents`` is that of the rest of them."""
    metadata, tensors = contents
    return metadata == sign(metadata, tensors)


def sign(metadata: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, str]:
    """``metadata`` with a checksum of itself and the tensors."""
    metadata = {name: value for name, value in metadata.items() if name != CHECKSUM}
    digest = hashlib.sha256(repr(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return metadata | {CHECKSUM: digest.hexdigest()}
