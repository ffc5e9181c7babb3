"""What is installed and in use, for users and for bug reports."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import numpy as np
import torch

from . import _core

PREFIX = "MIXFLOW_"
# Every environment variable that mixflow reads. The docs/installing.md describes them.
VARIABLES = ("MIXFLOW_CPU_CAPABILITY",)


class Config(dict[str, object]):
    """A dict that prints one entry per line."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{key:<{width}}  {_text(value)}" for key, value in self.items())


def show_config() -> Config:
    """Versions, CPU and CUDA capabilities compiled and in use, threads, and environment: what a bug report needs.

    Returns:
        A dict that prints one entry per line. Of its entries,

        - ``build`` is the compiler, the build type and the flags;
        - ``cpu_compiled`` lists the instruction sets in this build, and ``cpu_capabilities`` those of them that this
          processor has;
        - ``cpu_capability`` is the one in use: the best, unless the environment variable ``MIXFLOW_CPU_CAPABILITY``
          names another. ``cpu_chosen_by`` is the reason;
        - ``openmp`` is whether the kernels can use several threads, and ``openmp_runtimes`` lists the loaded libraries
          that provide them (Linux only);
        - ``cuda_compiled`` lists the GPU architectures in this build, and ``cuda_usable`` is whether this machine has a
          GPU that can run one of them. If this build has CUDA kernels, torch initialises CUDA to find out;
        - ``environment`` holds all variables that start with ``MIXFLOW_``, including any that mixflow does not read.

    Raises:
        RuntimeError: ``MIXFLOW_CPU_CAPABILITY`` names an instruction set that this build or processor lacks.

    Example:
        >>> import mixflow
        >>> mixflow.show_config()["cpu_capability"] in mixflow.show_config()["cpu_capabilities"]
        True

    """
    architectures = _core.cuda_architectures()
    return Config(
        mixflow=_core.__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=np.__version__,
        platform=platform.platform(),
        build=_core.BUILD,
        cpu_capability=_core.cpu_capability(),
        cpu_chosen_by=VARIABLES[0] if os.environ.get(VARIABLES[0]) else "best of build and processor",
        cpu_capabilities=_core.cpu_capabilities(),
        cpu_compiled=_core.cpu_builds(),
        openmp=_core.has_openmp(),
        openmp_runtimes=openmp_runtimes(),
        threads=torch.get_num_threads(),
        cuda_compiled=architectures or "no",
        cuda_usable=bool(architectures) and any(_serves(architectures, has) for has in _cuda_capabilities()),
        cuda_of_torch=torch.version.cuda or "no",
        environment={name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIX)},
    )


def openmp_runtimes() -> tuple[str, ...]:
    """File names of the OpenMP runtimes that this process has loaded; empty on systems without ``/proc``.

    Example:
        >>> from mixflow.config import openmp_runtimes
        >>> isinstance(openmp_runtimes(), tuple)
        True

    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return ()
    return tuple(sorted(set(re.findall(r"/(lib(?:gomp|omp|iomp5)\b[^/\n]*\.so[^/\n]*)$", maps, re.MULTILINE))))


def _cuda_capabilities() -> list[tuple[int, int]]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())]


def _serves(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``architectures``, in CMake's notation, runs on a GPU of compute capability ``capability``.

    Machine code (``80-real``) runs on GPUs of the same major version and the same or a later minor version. PTX code
    (``90`` and ``90-virtual`` have it) runs on all later versions.
    """
    named = re.findall(r"(\d+)(\d)\w?(-real)?", architectures)
    if not named:
        return True  # "native", "all"
    return any(
        (int(major), int(minor)) <= capability and (not binary_only or int(major) == capability[0])
        for major, minor, binary_only in named
    )


def _text(value: object) -> str:
    if isinstance(value, dict):
        value = [f"{name}={content}" for name, content in value.items()]
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value)) or "none"
    return str(value)
