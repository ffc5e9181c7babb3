"""tools/gpu.py, which is to work on the first run on a machine with a GPU: all of it that needs none."""

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mixflow
from mixflow.bench import command
from mixflow.fitting import captured
from mixflow.flows import RECIPES

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))  # where tools import each other from


@pytest.fixture
def gpu(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "tools" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "has", lambda name: True)  # whatever is installed where the tests run
    return module


@pytest.fixture
def device_of_tests(monkeypatch):
    """A GPU, as far as the tool looks at it before the steps."""
    properties = SimpleNamespace(name="A GPU", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setenv("CUDACXX", "nvcc")


def python(code):
    return [sys.executable, "-c", code]


def test_without_a_gpu_it_says_so(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert capsys.readouterr().err == f"gpu: torch {torch.__version__} finds no CUDA device here\n"


def test_without_a_gpu_a_step_runs_that_needs_none(gpu, monkeypatch, tmp_path, capsys):
    steps = [
        gpu.Step("tests", 1, [python("print('1 passed')")]),
        gpu.Step("instructions", 1, [python("print('a table')")], on_device=False),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "all_steps", lambda out, capability: steps)
    monkeypatch.setenv("CUDACXX", "nvcc")
    only = ["--out", str(tmp_path), "--only", "instructions"]
    assert gpu.main(only) == 0
    report = (tmp_path / "report.txt").read_text()
    assert report.startswith(f"no CUDA device, torch {torch.__version__}\n\ninstructions   ok, ")
    assert report.endswith("\na table\n")
    assert gpu.main([*only, "--only", "tests"]) == 1
    assert "finds no CUDA device here" in capsys.readouterr().err


def test_without_a_compiler_it_says_so(gpu, device_of_tests, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "compiler", lambda: "")
    assert gpu.main([]) == 1
    assert capsys.readouterr().err.startswith("gpu: nvcc is not there")


def test_without_torch_it_says_so(gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "has", lambda module: module != "torch")
    assert gpu.main([]) == 1
    assert capsys.readouterr().err == f"gpu: {sys.executable} has no torch\n"


def test_an_unknown_step_is_refused(gpu, device_of_tests, tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--only", "bild", "--out", str(tmp_path)])
    assert (
        "--only: expected some of build, info, tests, cuda, sanitizer, benchmark, training, instructions, got bild"
        in capsys.readouterr().err
    )


def test_steps_lose_nothing_to_each_other(gpu, tmp_path):
    steps = [
        gpu.Step("fine", 1, [python("import os; print(os.environ['SAID'])")], {"SAID": "hello"}),
        gpu.Step("second way", 1, [python("raise SystemExit(3)"), python("print('this way')")]),
        gpu.Step("no program", 1, [["no-such-program"]]),
        gpu.Step("wrong", 1, [python("raise SystemExit(5)")]),
        gpu.Step("absent", 1, [["no-such-program"]], missing="it is not here"),
        gpu.Step("last", 1, [python("print('done')")]),
    ]
    outcomes = gpu.run_steps(steps, tmp_path, 100)
    assert [o.status for o in outcomes] == ["ok", "ok", "failed", "failed", "skipped", "ok"]
    assert outcomes[3].detail.startswith("status 5 after")
    assert outcomes[4].detail == "it is not here"
    assert outcomes[0].log.read_text().splitlines()[-1] == "hello"
    assert "this way" in outcomes[1].log.read_text()
    assert "No such file" in outcomes[2].log.read_text()


def test_a_step_that_takes_too_long_ends_with_all_that_it_started(gpu, tmp_path):
    beat = tmp_path / "beat"
    child = f"import time\nwhile True: open({str(beat)!r}, 'a').write('x'); time.sleep(0.02)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    steps = [gpu.Step("slow", 1, [python(parent)]), gpu.Step("next", 3, [python("print('on')")])]
    outcomes = gpu.run_steps(steps, tmp_path, 12)
    assert [o.status for o in outcomes] == ["out of time", "ok"]
    size = beat.stat().st_size
    time.sleep(0.3)
    assert beat.stat().st_size == size


@pytest.mark.parametrize("works", [True, False])
def test_the_report_ends_with_the_tables(gpu, device_of_tests, works, tmp_path, monkeypatch, capsys):
    def steps(out, capability):
        assert capability == (9, 0)
        return [
            gpu.Step("tests", 1, [python(f"print('1 passed'); raise SystemExit({int(not works)})")]),
            gpu.Step("sanitizer", 1, [[]], missing="it is not here"),
            gpu.Step("benchmark", 1, [python("print('a table')")]),
            gpu.Step("training", 1, [python("print('another table')")]),
        ]

    monkeypatch.setattr(gpu, "all_steps", steps)
    assert gpu.main(["--out", str(tmp_path)]) == int(not works)
    report = (tmp_path / "report.txt").read_text()
    assert report.startswith("A GPU, 80 GiB, torch ")
    assert report.endswith("another table\n")
    assert "\na table\n" in report
    assert capsys.readouterr().out.endswith(report + "\n")
    assert ("the end of" in report) != works
    assert "sanitizer      skipped, it is not here" in report
    assert gpu.main(["--out", str(tmp_path), "--only", "benchmark"]) == 0


def test_the_steps_name_what_is_there(gpu, device_of_tests, tmp_path, monkeypatch):
    build, info, tests, _, sanitizer, benchmark, training, instructions = gpu.all_steps(tmp_path, (9, 0))
    assert build.environment["CUDAARCHS"] == "90"
    monkeypatch.setattr(mixflow, "show_config", lambda: {"cuda_usable": False})
    with pytest.raises(AssertionError, match="it has no CUDA kernels"):
        exec(info.commands[0][-1])
    assert all((ROOT / part).is_file() for part in tests.commands[0] if part.endswith(".py"))
    assert sanitizer.missing or sanitizer.commands
    [[_, script, *_]] = benchmark.commands
    monkeypatch.syspath_prepend(Path(script).parent)
    groups = command.select(importlib.import_module("ops").GROUPS, gpu.BENCHMARKS, "cuda")
    assert [group.name for group in groups] == ["Forward", "Inverse", "Forward and backward", "Limits of the machine"]
    assert all(len(group.cases) >= 2 * len(mixflow.FAMILIES) for group in groups)
    assert benchmark.commands[0].count("--only") == len(gpu.BENCHMARKS)
    devices = []
    monkeypatch.setattr(gpu, "print_training", devices.append)
    assert gpu.main(training.commands[0][2:]) == 0
    assert devices == ["cuda"]
    assert not instructions.on_device
    assert all(step.on_device for step in (build, info, tests, sanitizer, benchmark, training))


@pytest.mark.parametrize(
    ("nvdisasm", "missing"), [("a/nvdisasm", ""), ("", "nvdisasm is not there; pip install nvidia-cuda-nvdisasm")]
)
def test_instructions_are_counted_where_there_is_a_disassembler(gpu, tmp_path, monkeypatch, nvdisasm, missing):
    monkeypatch.setattr(gpu, "disassembler", lambda: nvdisasm)
    monkeypatch.setenv("PYTHONPATH", "mine")
    step = gpu.all_steps(tmp_path, (9, 0))[-1]
    assert (step.name, step.missing) == ("instructions", missing)
    assert step.environment["PYTHONPATH"].split(os.pathsep) == [str(tmp_path / "site"), "mine"]
    [[_, script, *options]] = step.commands
    assert Path(script).is_file()
    assert options == ["--nvdisasm", nvdisasm]


def test_steps_of_training_are_timed_for_every_flow_in_both_ways(gpu, monkeypatch, capsys):
    ways = []
    fit = mixflow.fit

    def noted(flow, data, **options):
        ways.append((flow.recipe.name, options["batch_size"], captured._is_disabled.get()))
        return fit(flow, data, **options)

    monkeypatch.setattr(mixflow, "fit", noted)
    gpu.print_training("cpu", batches=[16, 24], steps=2, epochs=2)
    assert ways == [(flow, rows, way) for flow in RECIPES for rows in (16, 24) for way in (False, True)]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in said if ", N = " in line] == [flow for flow in RECIPES for _ in range(2)]
    assert said[2].split("  ")[0] == "case"


def test_rates_are_of_the_epochs_after_the_first_and_unequal_weights_are_told(gpu, monkeypatch):
    def fit(flow, data, **options):
        with torch.no_grad():  # as if plain steps led elsewhere
            flow.data_to_base.transforms[1].loc.add_(0.25 if captured._is_disabled.get() else 0.0)
        seconds = 4.0 if captured._is_disabled.get() else 1.0
        return SimpleNamespace(seconds=[100.0, seconds, 2 * seconds, 3 * seconds], notes=["Data: few.", "Steps: so."])

    monkeypatch.setattr(mixflow, "fit", fit)
    rates = gpu.training_rates("univariate", 8, "cpu", steps=4)
    assert (rates.captured, rates.plain, rates.off, rates.note) == (2.0, 0.5, pytest.approx(0.25), "Steps: so.")
    assert list(rates.cells().values()) == ["univariate, N = 8", "2", "0", "4.00", "off by 2.5e-01"]


def test_the_sanitizer_gets_some_tests_of_every_direction(gpu):
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", *gpu.SANITIZED]
    said = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in ("test_forward_agrees", "test_inverse_solves", "test_gradients_agree"):
        assert name in said
    assert 10 < said.count("::") < 40
