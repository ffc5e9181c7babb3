"""The README and the pages of docs/: their Python and their commands run as they stand, and what they name is there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import math
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import mixflow
from mixflow.cli import main

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if BLOCK.search(page.read_text())]


QUICKLY = {"fit": ["--epochs", "2"], "bench": ["--quick"]}


def commands_of(page: str, heading: str) -> list[str]:
    """The lines of the first block of commands below a heading, without their comments."""
    section = (ROOT / page).read_text().partition(f"\n{heading}\n")[2]
    block = re.search(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [line.partition("#")[0].rstrip() for line in block[1].splitlines()]


def test_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = commands_of("docs/command-line.md", "## Every command")
    assert set(commands_of("README.md", "## On the command line")) <= set(shown)
    for line in shown:
        typed, _, out = line.partition(" > ")
        program, *arguments = shlex.split(typed)
        if program == "mixflow":
            assert main([*arguments, *QUICKLY.get(arguments[0], [])]) == 0, line
        else:
            said = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout
            (tmp_path / out.strip()).write_text(said)
    assert len((tmp_path / "carried.csv").read_text().splitlines()) == 1000
    assert (tmp_path / "some.csv").read_text().startswith("mass,length\n")


def weather_of_excel(rows: int = 800) -> str:
    """The table on the page of the command line: semicolons, decimal commas, an index without a name."""
    draw = random.Random(0)
    lines = [";temperature;wind;month;height"]
    for number in range(rows):
        month, height = draw.randint(1, 12), draw.randint(0, 2000)
        temperature = 12 - 9 * math.cos(math.pi * month / 6) - 0.0065 * height + draw.gauss(0, 2)
        wind = math.exp(draw.gauss(2.5, 0.5) + height / 3000)
        lines.append(f"{number};{temperature:.3f};{wind:.3f};{month};{height}".replace(".", ","))
    return "\n".join(lines) + "\n"


def steady(text: str) -> str:
    """``text`` without numbers that another processor, another torch or fewer epochs change."""
    return re.sub(r"\d+ epochs in .*|-?\d+\.\d+", "#", text)


def test_the_page_of_the_command_line_shows_what_is_printed(tmp_path, monkeypatch, capsys):
    (tmp_path / "weather.csv").write_text(weather_of_excel())
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "command-line.md").read_text()
    shown = re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    typed = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "".join(shown), re.MULTILINE)
    assert [line.split()[0] for line, _ in typed].count("mixflow") == 4
    for line, expected in typed:
        program, *arguments = shlex.split(line)
        if program == "mixflow":
            assert main([*arguments, *QUICKLY.get(arguments[0], [])]) == 0
        else:
            print(subprocess.run([program, *arguments], capture_output=True, text=True, check=True).stdout, end="")
        assert steady(capsys.readouterr().out) == steady(expected)


def test_there_are_pages():
    assert {page.name for page in PAGES} >= {"README.md", "tutorial.md", "op.md", "flows.md", "recipes.md"}


def test_every_page_is_in_the_menu():
    listed = re.findall(r"^[a-z-]+$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    parts = {"index", "robust-table"}  # a page includes the table
    assert sorted(listed) == sorted(page.stem for page in (ROOT / "docs").glob("*.md") if page.stem not in parts)


PICTURES = [
    (page.name, name)
    for page in sorted((ROOT / "docs").glob("*.md"))
    for name in re.findall(r"\]\((pictures/[^)]*)\)", page.read_text())
]


def test_pictures_are_small_and_all_of_them_are_shown():
    files = {f"pictures/{file.name}": file.stat().st_size for file in (ROOT / "docs" / "pictures").iterdir()}
    assert {name for _, name in PICTURES} == set(files)
    assert max(files.values()) < 60_000


def functions_that_draw() -> set[str]:
    tree = ast.parse((ROOT / "docs" / "pictures.py").read_text())
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return {
        node.name.replace("_", "-")
        for node in functions
        if any(isinstance(decorator, ast.Name) and decorator.id == "picture" for decorator in node.decorator_list)
    }


def test_a_script_draws_each_picture():
    assert functions_that_draw() == {file.stem for file in (ROOT / "docs" / "pictures").iterdir()}


def test_how_it_is_built_names_what_is_there():
    named = re.findall(r"`([^`\s]+)`", (ROOT / "docs" / "how-it-is-built.md").read_text())
    paths = [name for name in named if "/" in name or name.endswith((".py", ".h", ".cpp", ".md", ".txt"))]
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_arrows_between_rooms_only_run_down(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    rooms = importlib.import_module("rooms")
    used = rooms.arrows()
    assert "bindings" in used["op"]
    assert "cpu" in used["bindings"]
    assert [room for room in used if room in rooms.below(room, used)] == []


@pytest.mark.parametrize(
    "module", [mixflow, mixflow.flows, mixflow.transforms, mixflow.networks], ids=lambda m: m.__name__
)
def test_every_public_name_is_in_the_api(module):
    page = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(r"^\.\. (?:auto|py:)\w+:: (\S+)$", page, re.MULTILINE))
    sections = set(re.findall(r"`(mixflow\.\w+)`", page)) | {name.rpartition(".")[0] for name in listed}
    names = {f"{module.__name__}.{name}" for name in module.__all__}
    assert names - listed - sections == set()


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
