"""What people wait for: checked before it is timed, against parts that are those of the flow, and against others."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mixflow
from mixflow import flows
from mixflow.bench import cases, jobs
from mixflow.bench.cases import time_row
from mixflow.bench.inputs import Settings
from mixflow.bench.timing import alone
from mixflow.bench.verify import WrongResult
from mixflow.cli import main
from mixflow.transforms import elementwise, mixture

SCRIPT = Path(__file__).parent.parent / "bench" / "jobs.py"
QUICK = ["bench", "--quick", "--n", "256", "--threads", "1", "--only"]
PARTS, OTHERS = "Jobs against their parts, one thread", "Jobs against others, one thread"


# -- the section of `mixflow bench` --------------------------------------------------------------------------


def test_every_job_is_timed_against_each_of_its_contenders(tmp_path, capsys):
    assert main([*QUICK, "jobs", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "cpu.json").read_text())["groups"]
    for group, listed in ((PARTS, jobs.AGAINST_PARTS), (OTHERS, jobs.AGAINST_OTHERS)):
        expected = [(job.name, *pair) for job in listed for pair in job.targets.items()]
        assert [(row["case"], row["contender"], row["target"]) for row in written[group]] == expected
        for row in written[group]:
            low, high = row["ratio_range"]
            assert 0.0 < low <= row["ratio"] <= high
    for row in written[PARTS]:
        assert row["seconds"] > 0.0
        assert row["contender_seconds"] > 0.0
        assert row["reached"] == (None if row["target"] is None else row["ratio"] <= row["target"])
    assert "times as long       target  reached" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "reached", "shown"),
    [(1.9, False, "at most 1.9"), (2.0, True, "at most 2"), (None, None, "-")],
)
def test_a_job_reaches_its_target_if_it_takes_no_longer(target, reached, shown):
    contenders = [alone(name, list, 10) for name in ("mixflow", "networks")]
    seconds = np.array([[1.0, 1.0], [4.0, 2.0], [9.0, 3.0]]) * 1e-4
    row = time_row("step", contenders, seconds, 0, 1, target)
    assert (row.seconds, row.contender_seconds) == pytest.approx((4e-3, 2e-3))
    assert (row.ratio, *row.ratio_range) == pytest.approx((2.0, 1.0, 3.0))
    assert row.reached is reached
    assert list(row.cells().values())[1:-1] == ["4", "networks", "2", "2.00", shown]


def test_a_rival_that_is_not_installed_has_a_row_that_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "zuko", None)
    assert main([*QUICK, "jobs against others, one thread: a training step", "--out", str(tmp_path)]) == 0
    assert "zuko NSF: zuko is not installed: pip install mixflow[bench]" in capsys.readouterr().out
    for row in json.loads((tmp_path / "cpu.json").read_text())["groups"][OTHERS]:
        assert (row["ratio"], row["reached"], row["target"]) == (None, None, 2.2)
        assert row["rate"] > 0.0


def twice_a_density(monkeypatch):
    right = flows.Flow.log_prob
    monkeypatch.setattr(flows.Flow, "log_prob", lambda flow, *x: right(flow, *x) + 0.7)


def rising_loss(monkeypatch):
    monkeypatch.setattr(jobs, "_optimizer", lambda parameters: torch.optim.AdamW(parameters, 1e-4, maximize=True))


def wide_samples(monkeypatch):
    right = flows.Flow.sample
    monkeypatch.setattr(flows.Flow, "sample", lambda flow, n, **seed: 1.5 * right(flow, n, **seed))


def no_fit(monkeypatch):
    monkeypatch.setattr(mixflow, "fit", lambda *_, **__: None)


def other_formula(monkeypatch):
    right = jobs.log_space_forward
    monkeypatch.setattr(jobs, "log_space_forward", lambda x, p, family: right(x + 1.0, p, family))


@pytest.mark.parametrize(
    ("wrong", "only", "message"),
    [
        (twice_a_density, "a training step, coupling, D = 5, N = 256", "the density integrates to 2."),
        (twice_a_density, "log_prob, coupling", "the density integrates to 2."),
        (twice_a_density, "fit, univariate, K = 8", "the density integrates to 2."),
        (rising_loss, "jobs against others, one thread: a training step", "20 steps take the loss from"),
        (wide_samples, "sample, univariate", "the samples are off by"),
        (no_fit, "fit, univariate, K by default", "one normal"),
        (other_formula, "fit, univariate, logistic, K = 8", "plain PyTorch: only"),
    ],
)
def test_a_job_with_a_wrong_result_is_not_timed(wrong, only, message, monkeypatch, capsys):
    wrong(monkeypatch)
    monkeypatch.setattr(cases, "race", lambda *_: pytest.fail("a wrong result was timed"))
    assert main([*QUICK, only]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.endswith("nothing was timed\n")


@pytest.mark.parametrize(
    ("make", "samples"),
    [
        (jobs._coupling, False),
        (jobs._coupling, True),
        (jobs._autoregressive, False),
        (jobs._univariate, False),
        (jobs._univariate, True),
    ],
)
def test_the_parts_have_the_sizes_of_those_of_the_flow(make, samples, monkeypatch):
    flow, x = jobs._started(make, 16, Settings())
    called = []

    def noted(op):
        def call(*tensors, **options):
            called.append([tuple(tensor.shape) for tensor in tensors])
            return op(*tensors, **options)

        return call

    for module, op in (
        (elementwise, "affine_transform"),
        (mixture, "cdf_transform"),
        (mixture, "cdf_transform_inverse"),
    ):
        monkeypatch.setattr(module, op, noted(getattr(module, op)))
    with torch.no_grad():
        _ = flow.sample(len(x)) if samples else flow.log_prob(x)
    kernels = jobs._kernels(flow, x, inverse=samples)
    found = [[tuple(tensor.shape) for tensor in kernel.results.args] for kernel in kernels]
    assert found == (called[::-1] if samples else called)
    outputs = [(len(x), mapped[1] * rows[2]) for mapped, *rest in found if len(rest) == 1 for rows in rest]
    networks = jobs._networks(flow, x)
    assert [tuple(network(inputs).shape) for network, inputs in networks] == outputs
    for network, _ in networks:
        assert tuple(part.out_features for part in network if isinstance(part, nn.Linear))[:-1] == jobs.HIDDEN
        assert flow.recipe.arguments["hidden"] == list(jobs.HIDDEN)


# -- the loop on two moons -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moons():
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


def test_what_is_no_density_is_not_timed(moons, monkeypatch):
    def half_a_density():
        flow, log_prob = moons.mixflow_coupling()
        return flow, lambda x: log_prob(x) - torch.tensor(2.0).log()

    monkeypatch.setitem(moons.CONTENDERS, "wrong", half_a_density)
    monkeypatch.setattr(moons, "WARM_UP", 1)
    with pytest.raises(WrongResult, match=r"wrong: the density integrates to 0\.\d+; nothing was timed"):
        moons.run(["wrong"], steps=1, rounds=1)


def test_a_package_that_is_not_there_is_named(moons, monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    assert moons.missing("zuko NSF, 3") == "zuko is not installed: pip install mixflow[bench]"
    monkeypatch.setitem(sys.modules, "nflows", None)
    assert moons.missing("nflows spline couplings, 4").endswith("is not installed")
    assert moons.missing("mixflow coupling, 4") is None
