from __future__ import annotations

import os

# Before torch is imported. pytest-xdist gives each worker this variable. With one thread a worker, and one in the
# programs that its tests start, the workers do not take the cores from each other. A test about threads sets its own
# number of them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before torch.compile is called for the first time: its pool of processes outlives tests, and warns when it ends.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import pytest
import torch

import mixflow


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tests that take a device put their tensors: cpu or cuda")
    parser.addoption("--release", action="store_true", help="also the long forms of tests")


def pytest_configure(config: pytest.Config) -> None:
    # Advice that torch gives when it first uses a GPU.
    for advice in ("Attempting to run cuBLAS, but there was no current CUDA context", "TensorFloat32 tensor cores"):
        config.addinivalue_line("filterwarnings", f"ignore:{advice}:UserWarning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--release"):
        long = [item for item in items if item.get_closest_marker("release")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


@pytest.fixture
def gpu() -> torch.device:
    """The current CUDA device."""
    if not mixflow.show_config()["cuda_usable"]:
        pytest.skip("needs a CUDA device and a build with CUDA kernels, see mixflow info")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    chosen = torch.device(request.config.getoption("--device"))
    if chosen.type != "cuda":
        return chosen
    current: torch.device = request.getfixturevalue("gpu")
    return current if chosen.index is None else chosen
