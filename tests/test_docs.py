"""The Python of the README and of every page of docs/ runs as it stands, block after block."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if BLOCK.search(page.read_text())]


QUICKLY = {"fit": ["--epochs", "2"], "bench": ["--quick"]}


def test_commands_run(tmp_path):
    section = (ROOT / "README.md").read_text().partition("## On the command line")[2]
    for line in re.search(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[1].splitlines():
        command, _, out = line.partition("#")[0].partition(" > ")
        program, *arguments = shlex.split(command)
        program = {"python": [sys.executable], "mixflow": [sys.executable, "-m", "mixflow"]}[program]
        command = [*program, *arguments, *QUICKLY.get(arguments[0], [])]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        if out:
            (tmp_path / out.strip()).write_text(said.stdout)
    assert len((tmp_path / "carried.csv").read_text().splitlines()) == 1000


def test_there_are_pages():
    assert {page.name for page in PAGES} >= {"README.md", "recipes.md", "distributions.md", "coming-from.md"}


class StandIn(torch.nn.Module):
    """What sbi's base class of estimators, as of sbi 0.27, does for its subclasses."""

    def __init__(self, net, input_shape, condition_shape):
        super().__init__()
        self.net, self.input_shape, self.condition_shape = net, input_shape, condition_shape


def provide_sbi(monkeypatch):
    """Let pages import sbi's base class where sbi is not installed: it brings too much for a test to depend on."""
    if importlib.util.find_spec("sbi") is not None:
        return
    for name in ("sbi", "sbi.neural_nets", "sbi.neural_nets.estimators"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["sbi.neural_nets.estimators"].ConditionalDensityEstimator = StandIn


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
# torch's own tracing does what torch itself deprecates.
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    provide_sbi(monkeypatch)
    torch.manual_seed(0)
    # What readers have: a table on disk and loaders of batches.
    np.save("data.npy", np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32))
    loader = torch.utils.data.DataLoader(torch.randn(200, 5), batch_size=50)
    namespace = {"loader": loader, "held_out_loader": loader}
    text = page.read_text()
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(page), "exec"), namespace)
