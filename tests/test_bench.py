"""The benchmark: it checks before it times, takes turns, says what is missing, and writes what it found."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mixflow
from mixflow.bench import baselines, cases, rivals, works
from mixflow.bench.cases import CASES, each_against_fastest, each_against_line, rate_row
from mixflow.bench.inputs import Inputs, Settings
from mixflow.bench.rivals import Rival
from mixflow.bench.timing import Contender, race
from mixflow.cli import main

QUICK = ["bench", "--quick", "--n", "256", "--threads", "1", "--only"]
FORWARD = "Forward: forward + ladj, logistic, per element"


def test_a_run_prints_a_table_and_writes_json_and_picture(tmp_path, capsys):
    assert main([*QUICK, FORWARD, "--out", str(tmp_path / "results")]) == 0
    said = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["cpu.json", "cpu.png"]
    assert (tmp_path / "results/cpu.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "results/cpu.json").read_text())
    machine = written["machine"]
    assert (machine["elements"], machine["threads"], machine["torch"]) == (256, 1, torch.__version__)
    assert machine["instruction set"] == mixflow.show_config()["cpu_capability"]
    rows = written["groups"]["Forward"]
    assert [row["contender"] for row in rows] == ["eager log-space", "eager linear", "plain read, same bytes"]
    for row in rows:
        low, high = row["ratio_range"]
        assert 0 < low <= row["ratio"] <= high
        assert row["rate"] > 0
        assert row["contender_rate"] > 0
        assert row["reached"] == (None if row["target"] is None else row["ratio"] >= row["target"])
    table = [line for line in said.splitlines() if line.startswith("forward + ladj, logistic, per element ")]
    assert [line.split()[-1] for line in table] == [{None: "-", True: "yes", False: "no"}[r["reached"]] for r in rows]


@pytest.mark.parametrize(
    "only",
    [
        "Inverse and backward: inverse + backward, gaussian, shared",
        "One call of 64 elements: forward + backward, logistic",
        "float64 against float32: inverse + ladj, gaussian",
        "A Gaussian component against a logistic one: forward + ladj",
        "Throughput by N, one thread: forward + ladj, logistic",
        "Cost by K: forward + ladj, logistic",
        "Peak memory beyond the outputs: forward + backward, gaussian, per feature",
        "As real code calls it, one thread",
        "Against the formula it replaces, one thread",
    ],
)
def test_every_kind_of_case_runs(only, capsys):
    assert main([*QUICK, only]) == 0
    said = capsys.readouterr().out
    assert only.split(":")[0] in said
    assert "targets reached" in said


def test_options_reach_the_cases(capsys):
    assert main([*QUICK, "Forward: forward + ladj, gaussian, shared", "--dtype", "float64", "--components", "3"]) == 0
    said = capsys.readouterr().out
    assert "dtype            float64" in said
    assert "components       3" in said


def broken(result, part):
    """What mixflow returns, with one thing wrong: a value, or the gradient of loc alone."""
    value, ladj, loc = result
    if part == "gradient":
        return value + 1e-2 * (loc.sum(-1) - loc.detach().sum(-1)), ladj
    return (value + 1e-3, ladj) if part == "value" else (value, ladj + 1e-3)


@pytest.mark.parametrize(
    ("op", "part", "only", "message"),
    [
        ("cdf_transform", "value", "Forward: forward + ladj, gaussian, shared", "z is off by"),
        ("cdf_transform", "ladj", "Forward: forward + ladj, gaussian, per element", "ladj is off by"),
        (
            "cdf_transform",
            "gradient",
            "Forward and backward: forward + backward, logistic, shared",
            "the gradient of loc is off by",
        ),
        (
            "cdf_transform",
            "gradient",
            "Forward and backward: forward + backward, logistic, per element",
            "the gradient of loc is off by",
        ),
        ("cdf_transform_inverse", "value", "Inverse: inverse + ladj, logistic, shared", "x is off by"),
        ("cdf_transform_inverse", "ladj", "float64 against float32: inverse + ladj, logistic", "ladj is off by"),
        (
            "cdf_transform_inverse",
            "gradient",
            "Inverse and backward: inverse + backward, gaussian, shared",
            "the gradient of loc is off by",
        ),
    ],
)
def test_a_wrong_result_is_not_timed(op, part, only, message, monkeypatch, tmp_path, capsys):
    right = getattr(mixflow, op)
    monkeypatch.setattr(mixflow, op, lambda x, *p, **kw: broken((*right(x, *p, **kw), p[1]), part))
    monkeypatch.setattr(cases, "race", lambda *_: pytest.fail("a wrong result was timed"))
    assert main([*QUICK, only, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "nothing was timed" in said.err
    assert len(said.err.splitlines()) == 1
    assert "M/s" not in said.out
    assert list(tmp_path.iterdir()) == []


def test_a_rival_that_does_other_work_is_not_timed(monkeypatch, capsys):
    other = Rival(lambda settings, work, family: work.call(lambda x, p, family: (x, x), family))
    monkeypatch.setitem(rivals.RIVALS, "eager linear", other)
    monkeypatch.setattr(cases, "race", lambda *_: pytest.fail("a wrong rival was timed"))
    assert main([*QUICK, FORWARD]) == 2
    assert "eager linear: only" in capsys.readouterr().err


def test_a_rival_that_is_given_fewer_elements_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(rivals.RIVALS, "eager linear", Rival(rivals.RIVALS["eager linear"].build, elements=100))
    assert main([*QUICK, FORWARD, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "cpu.json").read_text())["groups"]["Forward"]
    assert [row["contender"] for row in rows] == ["eager log-space", "eager linear, N = 100", "plain read, same bytes"]


def test_what_is_absent_has_a_row_that_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "zuko", None)
    assert main([*QUICK, "zuko's GaussianizationTransform: inverse", "--out", str(tmp_path)]) == 0
    assert "zuko: zuko is not installed: pip install mixflow[bench]" in capsys.readouterr().out
    [row] = json.loads((tmp_path / "cpu.json").read_text())["groups"]["zuko's GaussianizationTransform"]
    assert (row["contender_rate"], row["ratio"], row["reached"], row["target"]) == (None, None, None, 40)


def test_a_compiler_that_fails_is_said_and_ends_nothing(monkeypatch):
    def fail(*_, **__):
        raise torch._dynamo.exc.TorchDynamoException("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    call = rivals.RIVALS["compiled linear"].build(Settings(), works.FORWARD, "logistic")
    with pytest.raises(rivals.Absent, match=r"torch\.compile does not work here: .*no compiler"):
        call(Inputs(torch.zeros(3), (torch.zeros(2),) * 3))


def test_the_command_line_does_not_wait_for_what_a_benchmark_needs():
    code = "import sys, mixflow.cli; assert not {'torch._dynamo', 'scipy', 'zuko', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_bare_loop_of_the_core_is_called_with_what_is_measured(monkeypatch):
    calls = []
    monkeypatch.setattr(rivals._core, "bare_loop", lambda *arguments: calls.append(arguments), raising=False)
    call = rivals.RIVALS[cases.LIMIT].build(Settings(components=5, threads=2), works.FORWARD, "gaussian")
    call(Inputs(torch.zeros(7), (torch.zeros(5),) * 3))
    assert calls == [(False, 5, 7, 2)]


def test_contenders_take_turns_with_the_threads_they_ask_for():
    log = []
    inputs = [Inputs(torch.zeros(number), (torch.zeros(1),) * 3) for number in (1, 2)]

    def contender(name, threads):
        return Contender(name, lambda i: log.append((name, torch.get_num_threads(), len(i.x))), inputs, 10, threads)

    before = torch.get_num_threads()
    seconds = race([contender("a", 1), contender("b", 2)], Settings(quick=True, threads=before))
    assert torch.get_num_threads() == before
    assert seconds.shape == (3, 2)
    assert {entry[:2] for entry in log} == {("a", 1), ("b", 2)}
    turns = "".join(name for i, (name, _, _) in enumerate(log) if i == 0 or name != log[i - 1][0])
    assert turns == "ab" * 5  # a warm-up, a measurement of one call, and three rounds
    assert {entry[2] for entry in log} == {1, 2}, "inputs are taken in turn"


class Copies(TorchDispatchMode):
    """Notes the bytes of every copy."""

    def __init__(self, copied):
        super().__init__()
        self.copied = copied

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default:
            self.copied.append(args[0].nbytes)
        return func(*args, **(kwargs or {}))


def contenders(*names, components=(1,)):
    padded = [*components, *[1] * (len(names) - len(components))]
    return [
        Contender(n, lambda _: None, [Inputs(torch.zeros(4), (torch.zeros(k),) * 3)], 4)
        for n, k in zip(names, padded, strict=True)
    ]


def test_the_ratio_is_the_median_of_the_rounds():
    seconds = np.array([[1.0, 2.0], [10.0, 30.0], [1.0, 9.0]]) * 1e-9
    row = rate_row("case", contenders("a", "b"), seconds, 0, 1, 3.0)
    assert row.ratio == pytest.approx(3.0)
    assert row.ratio_range == pytest.approx((2.0, 9.0))
    assert row.rate == pytest.approx(1000.0)
    assert row.contender_rate == pytest.approx(1e3 / 9)


def test_scaling_is_against_the_fastest():
    rows = each_against_fastest(0.85)("case", contenders("a", "b", "c"), np.array([[2.0, 1.0, 1.1]]))
    assert [row.contender for row in rows] == ["b"] * 3
    assert [row.reached for row in rows] == [False, True, True]


def test_cost_is_against_a_straight_line():
    components = (2, 4, 8, 16, 32)
    names = [f"K = {k}" for k in components]
    line = np.array([[3.0 + 2.0 * k for k in components]])
    rows = each_against_line(0.85)("case", contenders(*names, components=components), line)
    assert [row.ratio for row in rows] == pytest.approx([1.0] * 5)
    bent = line * [1, 1, 1.5, 1, 1]
    rows = each_against_line(0.85)("case", contenders(*names, components=components), bent)
    assert [row.reached for row in rows] == [True, True, False, True, True]


def test_memory_of_temporaries_is_seen_and_outputs_are_not_counted():
    code = """
import torch
from mixflow.bench.memory import beyond_outputs
x = torch.ones(2**22)
y = (x + 1).exp()
_ = torch.ones(2**24)  # freed, but not forgotten by the peak
del _
results = [beyond_outputs(lambda: [(x + 1).exp()]), beyond_outputs(lambda: [x + 1])]
print([round(b / 2**20) for pair in results for b in pair])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [16, 16, 16, 0]


@pytest.mark.parametrize("family", baselines.BASE_OF)
def test_rivals_are_right_in_float64(family):
    settings = Settings(dtype=torch.float64)
    [inputs] = works.INVERSE_BACKWARD.inputs(settings, 50, 3, family, "per element")
    own = works.INVERSE_BACKWARD.own(family)(inputs)
    implicit = works.INVERSE_BACKWARD.call(baselines.implicit_bisection_inverse, family)(inputs)
    for mine, other in zip(own, implicit, strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-6, atol=1e-6)
    [inputs] = works.FORWARD.inputs(settings, 50, 3, family, "shared")
    z, ladj = works.FORWARD.own(family)(inputs)
    for formula in ("eager log-space", "eager linear", "scipy linear, 1 thread"):
        results = rivals.RIVALS[formula].build(settings, works.FORWARD, family)(inputs)
        for mine, other in zip((z, ladj), results, strict=True):
            torch.testing.assert_close(torch.as_tensor(other), mine, rtol=1e-6, atol=1e-6)


def test_cases_have_names_of_their_own_and_rivals_that_exist():
    for device in ("cpu", "cuda"):
        names = [(case.group, case.name) for case in CASES if case.device in ("", device)]
        assert len(set(names)) == len(names)
        for *_, targets in cases.COMPARISONS[device]:
            assert set(targets) <= set(rivals.RIVALS)


def test_what_is_measured_on_a_card_can_be_measured():
    """Here on the CPU, for want of a card: all but the clock."""
    settings = Settings(n=256, quick=True)
    for case in [case for case in CASES if case.device == "cuda"]:
        rows = case.measure(settings)
        assert rows
        assert all(row.ratio is not None or row.note for row in rows), case.name
        if case.name == "forward + ladj, logistic, per element":
            assert rows[-1].note == "108 bytes an element"


def test_a_limit_is_computed_and_says_from_what(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(rivals.RIVALS, "eager linear", rivals.Limit(lambda settings, work: (1e-6, "one a microsecond")))
    assert main([*QUICK, FORWARD, "--out", str(tmp_path)]) == 0
    assert "eager linear: one a microsecond" in capsys.readouterr().out
    row = json.loads((tmp_path / "cpu.json").read_text())["groups"]["Forward"][1]
    assert (row["contender"], row["contender_rate"]) == ("eager linear", pytest.approx(1.0))
    assert row["ratio"] == pytest.approx(row["rate"], rel=0.5)  # the medians of a ratio and of a rate


def test_the_limit_of_special_functions(monkeypatch):
    limit = rivals.RIVALS[cases.SPECIAL]
    properties = SimpleNamespace(multi_processor_count=100, clock_rate=2_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    card = Settings(components=8, device=torch.device("cuda"))
    seconds, said = limit.seconds(card, works.FORWARD)
    assert 1 / seconds == pytest.approx(100 * 16 * 2e9 / 21)
    assert said == "100 multiprocessors x 16 x 2.00 GHz / 21 special functions an element"
    del properties.clock_rate
    for settings, reason in (
        (card, "does not tell the clock"),
        (replace(card, dtype=torch.float64), "know float32 alone"),
        (Settings(), "CPUs have no units"),
    ):
        with pytest.raises(rivals.Absent, match=reason):
            limit.seconds(settings, works.FORWARD)


@pytest.mark.parametrize(("rival", "reason"), [("scipy linear, 1 thread", "scipy runs on"), (cases.LIMIT, "the CPU's")])
def test_what_is_the_cpu_s_alone_is_absent_on_a_card(rival, reason):
    with pytest.raises(rivals.Absent, match=reason):
        rivals.RIVALS[rival].build(Settings(device=torch.device("cuda")), works.FORWARD, "logistic")


def test_a_card_that_cannot_be_used_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(mixflow, "show_config", lambda: {"cuda_usable": False})
    assert main(["bench", "--device", "cuda"]) == 2
    assert "device: expected one that can be used here, see mixflow info; got cuda" in capsys.readouterr().err


@pytest.mark.parametrize(("work", "numbers"), [(works.FORWARD, 18), (works.FORWARD_BACKWARD, 34)])
def test_copies_are_of_the_bytes_that_the_work_moves(work, numbers):
    [inputs] = work.inputs(Settings(), 64, 5, "logistic", "per element")
    assert work.bytes_moved(inputs) == 4 * 64 * numbers
    copied = []
    copy = rivals.RIVALS[cases.COPY].build(Settings(), work, "logistic")
    with Copies(copied):
        copy(inputs)
    assert copied == [4 * 64 * numbers // 2]


def test_flows_are_compared_with_zuko_s(tmp_path):
    rows = np.random.default_rng(0).normal(size=(300, 3)).cumsum(axis=1)
    np.savetxt(tmp_path / "walk.csv", rows, delimiter=",", header="a,b,c", comments="")
    script = Path(__file__).parent.parent / "bench" / "flows.py"
    command = [sys.executable, script, tmp_path / "walk.csv", "--seconds", "1.5", "--only", "tables", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "flows.json").read_text())
    runs = {run["flow"]: run for run in written["flows"]}
    assert set(runs) == {"GF", "NSF", "MAF", "gaussianization", "coupling", "autoregressive"}
    for flow, run in runs.items():
        # The truth is three standard normals, which nobody beats on average by more than luck with 30 rows.
        assert run["validation"] < -1.5
        # fit keeps its start where 30 held-out rows speak for an epoch by no more than chance.
        assert flow.islower() or run["validation"] == max(score for _, score in run["curve"])
        assert run["table"] == "walk"
    best = {ours: max(runs[f]["test"] for f in runs if f.islower() == ours) for ours in (True, False)}
    judgements = {row["case"]: row for row in written["judgements"]}
    row = judgements["walk: best test log_prob, best of zuko as target"]
    assert (row["value"], row["target"], row["reached"]) == (best[True], best[False], best[True] >= best[False])
    assert f"{sum(row['reached'] for row in judgements.values())} of {len(judgements)} reached." in done.stdout
