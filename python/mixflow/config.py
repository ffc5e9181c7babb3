"""What is installed and in use, for users and for bug reports."""

from __future__ import annotations

import platform

import numpy as np
import torch

from . import _core


class Config(dict[str, object]):
    """A dict that prints one entry per line."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{key:<{width}}  {value}" for key, value in self.items())


def show_config() -> Config:
    """Versions, CPU and CUDA capabilities compiled and in use, and threads.

    Returns:
        A dict that prints readably. ``cpu_capability`` is the instruction set in use, the best that this build and
        this processor share unless the environment variable ``MIXFLOW_CPU_CAPABILITY`` names another of
        ``cpu_capabilities``. ``cuda_compiled`` lists the architectures in this build.

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
        cpu_capability=_core.cpu_capability(),
        cpu_capabilities=_core.cpu_capabilities(),
        openmp=_core.has_openmp(),
        threads=torch.get_num_threads(),
        cuda_compiled=architectures or "no",
        cuda_usable=bool(architectures) and torch.cuda.is_available(),
    )
