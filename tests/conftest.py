from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where tests of the ops put their tensors: cpu or cuda")
    parser.addoption("--release", action="store_true", help="also the long forms of tests")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "release: the long form of a test, left out without --release")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--release"):
        long = [item for item in items if item.get_closest_marker("release")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    name = request.config.getoption("--device")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(name)
