"""The jobs of other packages' users: a run prints a table, and nothing is timed that is not a density."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "bench" / "jobs.py"


@pytest.fixture(scope="module")
def jobs():
    spec = importlib.util.spec_from_file_location("bench_jobs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_a_run_prints_a_table_and_writes_json(tmp_path):
    options = ["--steps", "2", "--rounds", "1", "--only", "autoregressive", "--out", str(tmp_path)]
    said = subprocess.run([sys.executable, SCRIPT, *options], check=True, capture_output=True, text=True).stdout
    written = json.loads((tmp_path / "jobs.json").read_text())
    names = [outcome["contender"] for outcome in written["two moons"]]
    assert names == ["mixflow coupling, 4", "mixflow autoregressive, 3"]
    assert all(any(line.startswith(name) for line in said.splitlines()) for name in names)
    assert written["two moons"][0]["ratio"] == 1.0
    assert all(seconds > 0.0 for outcome in written["two moons"] for seconds in outcome["seconds"])


def test_a_normal_integrates_to_1_and_half_of_it_to_a_half(jobs):
    normal = torch.distributions.MultivariateNormal(torch.tensor([1.0, -0.5]), 0.25 * torch.eye(2))
    assert jobs.integral(normal.log_prob) == pytest.approx(1.0, abs=1e-5)
    assert jobs.integral(lambda x: normal.log_prob(x) - torch.tensor(2.0).log()) == pytest.approx(0.5, abs=1e-5)


def test_what_is_no_density_is_not_timed(jobs, monkeypatch):
    def twice_a_density():
        flow, log_prob = jobs.mixflow_coupling()
        return flow, lambda x: log_prob(x) + torch.tensor(2.0).log()

    monkeypatch.setitem(jobs.CONTENDERS, "wrong", twice_a_density)
    monkeypatch.setattr(jobs, "WARM_UP", 1)
    with pytest.raises(RuntimeError, match=r"wrong: the density integrates to 2\.00\d\d; nothing was timed"):
        jobs.run(["wrong"], steps=1, rounds=1)


def test_a_package_that_is_not_there_is_named(jobs, monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    assert jobs.missing("zuko NSF, 3") == "zuko is not installed"
    assert jobs.missing("mixflow coupling, 4") is None
