"""Where the programs of the CUDA toolkit are."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path


class ToolError(Exception):
    """An error that the user can do something about."""


def program(name: str) -> str:
    """The path of a program of the CUDA toolkit; empty if it is not found."""
    homes = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), "/usr/local/cuda"]
    places = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which(name, path=os.pathsep.join(places)) or ""


def compiler() -> str:
    """The path of nvcc; empty if it is not found."""
    return os.environ.get("CUDACXX") or program("nvcc")


def disassembler() -> str:
    """The path of nvdisasm, of the toolkit or of a Python package; empty if it is not found."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    packaged = [str(path) for folder in folders for path in sorted(Path(folder).glob("*/bin/nvdisasm"))]
    return program("nvdisasm") or next(iter(packaged), "")
