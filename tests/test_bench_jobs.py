"""Jobs in training: checked before they are timed, against parts that are those of the flow, and against others."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import mixflow
from mixflow import flows
from mixflow.bench import cases
from mixflow.bench.cases import Baseline, timed
from mixflow.bench.inputs import Settings
from mixflow.bench.timing import Call
from mixflow.bench.verify import WrongResult
from mixflow.transforms import elementwise, mixture

BENCH = Path(__file__).parent.parent / "bench"
QUICK = ["--quick", "--n", "256", "--threads", "1", "--only"]
PARTS, OTHERS = "Jobs against their parts, one thread", "Jobs against others, one thread"


@pytest.fixture(scope="module")
def clone():
    """The modules of the scripts, by name."""
    names = "formula", "jobs", "layouts", "limits", "ops", "parts", "scaling", "training"
    sys.path.append(str(BENCH))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(BENCH))
    for name in names:
        del sys.modules[name]


# -- the groups of `make bench-jobs` -------------------------------------------------------------------------


@pytest.mark.slow
def test_every_job_is_timed_against_each_of_its_baselines(clone, tmp_path, capsys):
    assert clone.ops.main([*QUICK, "jobs", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "cpu.json").read_text())["groups"]
    for group in (*clone.parts.GROUPS, *clone.training.GROUPS):
        names = [case.name for case in group.cases]
        assert list(dict.fromkeys(row["case"] for row in written[group.name])) == names
        for row in written[group.name]:
            low, high = row["ratio_range"]
            assert 0.0 < low <= row["ratio"] <= high
    found = {
        (row["contender"], row["target"]) for row in written[PARTS] if "step, coupling, D = 5, N = 256" in row["case"]
    }
    assert found == {("its networks alone", 2.2), ("its kernels alone", None)}
    assert {row["contender"] for row in written[OTHERS]} == {"zuko NSF", "plain PyTorch"}
    for row in written[PARTS]:
        assert row["seconds"] > 0.0
        assert row["contender_seconds"] > 0.0
        assert row["reached"] == (None if row["target"] is None else row["ratio"] <= row["target"])
    assert "times as long       target  reached" in capsys.readouterr().out


def test_every_family_s_fit_is_timed(clone):
    fits = [case.name for group in clone.training.GROUPS for case in group.cases if case.name.startswith("fit")]
    assert {name.split(", ")[2] for name in fits} == set(mixflow.FAMILIES)


@pytest.mark.parametrize(
    ("target", "reached", "shown"),
    [(1.9, False, "at most 1.9"), (2.0, True, "at most 2"), (None, None, "-")],
)
def test_a_job_reaches_its_target_if_it_takes_no_longer(clone, target, reached, shown, monkeypatch):
    seconds = np.array([[1.0, 1.0], [4.0, 2.0], [9.0, 3.0]]) * 1e-4
    monkeypatch.setattr(cases, "seconds_per_element", lambda *_: seconds)
    case = timed("step", lambda _: (Call(list, 10), [Baseline("networks", target, Call(list, 10))]), in_time=True)
    [row] = case.measure(Settings())
    assert (row["seconds"], row["contender_seconds"]) == pytest.approx((4e-3, 2e-3))
    assert (row["ratio"], *row["ratio_range"]) == pytest.approx((2.0, 1.0, 3.0))
    assert row["reached"] is reached
    assert [show(row) for show in clone.parts.TIMES.values()][1:-1] == ["4", "networks", "2", "2.00", shown]


def test_a_package_that_is_not_installed_has_a_row_with_the_reason(clone, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "zuko", None)
    only = "jobs against others, one thread: a training step"
    assert clone.ops.main([*QUICK, only, "--out", str(tmp_path)]) == 0
    assert "zuko NSF: zuko is not installed: pip install mixflow[bench]" in capsys.readouterr().out
    for row in json.loads((tmp_path / "cpu.json").read_text())["groups"][OTHERS]:
        assert (row["ratio"], row["reached"], row["target"]) == (None, None, 2.2)
        assert row["rate"] > 0.0


def twice_a_density(clone, monkeypatch):
    right = flows.Flow.log_prob
    monkeypatch.setattr(flows.Flow, "log_prob", lambda flow, *x: right(flow, *x) + 0.7)


def rising_loss(clone, monkeypatch):
    def rising(parameters):
        return torch.optim.AdamW(parameters, 1e-4, maximize=True)

    monkeypatch.setattr(clone.training, "optimizer_of", rising)


def wide_samples(clone, monkeypatch):
    right = flows.Flow.sample
    monkeypatch.setattr(flows.Flow, "sample", lambda flow, n, **seed: 1.5 * right(flow, n, **seed))


def no_fit(clone, monkeypatch):
    monkeypatch.setattr(mixflow, "fit", lambda *_, **__: None)


def other_formula(clone, monkeypatch):
    right = clone.training.log_space_forward
    monkeypatch.setattr(clone.training, "log_space_forward", lambda x, p, family: right(x + 1.0, p, family))


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
def test_a_job_with_a_wrong_result_is_not_timed(clone, wrong, only, message, monkeypatch, tmp_path, capsys):
    wrong(clone, monkeypatch)
    monkeypatch.setattr(cases, "seconds_per_element", lambda *_: pytest.fail("a wrong result was timed"))
    assert clone.ops.main([*QUICK, only, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.endswith("nothing was timed\n")


@pytest.mark.parametrize(
    ("make", "samples"),
    [
        ("coupling", False),
        ("coupling", True),
        ("wide", False),
        ("univariate", False),
        ("univariate", True),
    ],
)
def test_the_parts_have_the_sizes_of_those_of_the_flow(clone, make, samples, monkeypatch):
    flow, x = clone.training.started(getattr(clone.parts, make), 16, Settings())
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
    kernels = clone.parts.kernels_of(flow, x, inverse=samples)
    found = [[tuple(tensor.shape) for tensor in kernel.results.args] for kernel in kernels]
    assert found == (called[::-1] if samples else called)
    outputs = [(len(x), mapped[1] * rows[2]) for mapped, *rest in found if len(rest) == 1 for rows in rest]
    networks = clone.parts.networks_of(flow, x)
    assert [tuple(network(inputs).shape) for network, inputs in networks] == outputs
    for network, _ in networks:
        assert tuple(part.out_features for part in network if isinstance(part, nn.Linear))[:-1] == clone.training.HIDDEN
        assert flow.recipe.arguments["hidden"] == list(clone.training.HIDDEN)


def test_a_density_that_integrates_to_1_passes_the_check(clone):
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    clone.training.check_density("normal", normal.log_prob, x)
    with pytest.raises(WrongResult, match=r"twice the normal: the density integrates to 2\.0\d*; nothing was timed"):
        clone.training.check_density("twice the normal", lambda x: normal.log_prob(x) + 0.7, x)


# -- the loop on two moons -----------------------------------------------------------------------------------


def test_a_run_prints_a_table_and_writes_json(tmp_path):
    options = ["--steps", "2", "--rounds", "1", "--only", "autoregressive", "--out", str(tmp_path)]
    said = subprocess.run(
        [sys.executable, BENCH / "jobs.py", *options], check=True, capture_output=True, text=True
    ).stdout
    written = json.loads((tmp_path / "jobs.json").read_text())
    names = [outcome["flow"] for outcome in written["two moons"]]
    assert names == ["mixflow coupling, 4", "mixflow autoregressive, 3"]
    assert all(any(line.startswith(name) for line in said.splitlines()) for name in names)
    assert written["two moons"][0]["ratio"] == 1.0
    assert all(seconds > 0.0 for outcome in written["two moons"] for seconds in outcome["seconds"])


def test_what_is_no_density_is_not_timed(clone, monkeypatch):
    def half_a_density():
        flow, log_prob = clone.jobs.mixflow_coupling()
        return flow, lambda x: log_prob(x) - torch.tensor(2.0).log()

    monkeypatch.setitem(clone.jobs.FLOWS, "wrong", half_a_density)
    monkeypatch.setattr(clone.jobs, "WARM_UP", 1)
    with pytest.raises(WrongResult, match=r"wrong: the density integrates to 0\.\d+; nothing was timed"):
        clone.jobs.run(["wrong"], steps=1, rounds=1)


def test_a_package_that_is_not_there_is_named(clone, monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    assert clone.jobs.missing("zuko NSF, 3") == "zuko is not installed: pip install mixflow[bench]"
    monkeypatch.setitem(sys.modules, "nflows", None)
    assert clone.jobs.missing("nflows spline couplings, 4").endswith("is not installed")
    assert clone.jobs.missing("mixflow coupling, 4") is None
