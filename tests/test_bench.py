"""The benchmark: it checks before it times, takes turns, tells what could not run, and writes what it found."""

import importlib
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
from mixflow.bench import cases, command, large_calls
from mixflow.bench.cases import RATES, Baseline, Case, Group, timed
from mixflow.bench.inputs import Settings, draw_inputs
from mixflow.bench.timing import Call, seconds_per_element
from mixflow.cli import main

BENCH = Path(__file__).parent.parent / "bench"
QUICK = ["--quick", "--n", "256", "--threads", "1", "--only"]
FORWARD = "Forward: forward + ladj, logistic, per element"


@pytest.fixture(scope="module")
def clone():
    """The modules of the scripts that run the groups of a clone, by name."""
    names = "formula", "layouts", "limits", "ops", "parts", "scaling", "training"
    sys.path.append(str(BENCH))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(BENCH))
    for name in names:
        del sys.modules[name]


# -- a run ---------------------------------------------------------------------------------------------------


def test_a_run_prints_a_table_and_writes_json_and_picture(tmp_path, capsys):
    assert main(["bench", *QUICK, FORWARD, "--out", str(tmp_path / "results")]) == 0
    said = capsys.readouterr().out
    assert "quick: no case has more than 256 elements" in said
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["cpu.json", "cpu.png"]
    assert (tmp_path / "results/cpu.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "results/cpu.json").read_text())
    machine = written["machine"]
    assert (machine["elements"], machine["threads"], machine["torch"]) == (256, 1, torch.__version__)
    assert machine["instruction set"] == mixflow.show_config()["cpu_capability"]
    rows = written["groups"]["Forward"]
    assert [row["contender"] for row in rows] == ["eager log-space", "eager linear"]
    for row in rows:
        low, high = row["ratio_range"]
        assert 0 < low <= row["ratio"] <= high
        assert row["rate"] > 0
        assert row["contender_rate"] > 0
        assert row["reached"] == (None if row["target"] is None else row["ratio"] >= row["target"])
    table = [line for line in said.splitlines() if line.startswith("forward + ladj, logistic, per element ")]
    assert [line.split()[-1] for line in table] == [{None: "-", True: "yes", False: "no"}[r["reached"]] for r in rows]


def test_a_run_without_matplotlib_writes_json_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda _: None)
    assert main(["bench", *QUICK, FORWARD, "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cpu.json"]
    assert f"wrote {tmp_path / 'cpu.json'}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "only",
    [
        "Inverse and backward: inverse + backward, gaussian, shared",
        "One call of 64 elements: forward + backward, logistic",
        "Peak memory beyond the outputs: forward + backward, per feature",
    ],
)
def test_every_kind_of_case_runs(only, capsys):
    assert main(["bench", *QUICK, only]) == 0
    said = capsys.readouterr().out
    assert only.split(":")[0] in said
    assert "targets reached" in said


@pytest.mark.parametrize(
    "only",
    [
        "Limits of the machine",
        "float64 against float32: inverse + ladj, gaussian",
        "Each family against the next: forward + ladj",
        "Two threads against one: forward + ladj, gaussian, shared",
        "Throughput by N, one thread: forward + ladj, logistic",
        "Cost by K: forward + ladj, logistic",
        "As real code calls it, one thread",
        "Against the formula it replaces, one thread",
    ],
)
def test_every_kind_of_case_of_a_clone_runs(clone, only, tmp_path, capsys):
    assert clone.ops.main([*QUICK, only, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert only.split(":")[0] in said
    assert "targets reached" in said


def test_every_family_is_in_every_table_of_the_op():
    for group in large_calls.GROUPS:
        found = {case.name.split(", ")[1] for case in group.cases}
        assert found == ({"gaussian"} if "zuko" in group.name else set(mixflow.FAMILIES)), group.name


def test_options_reach_the_cases(capsys):
    only = "Forward: forward + ladj, gaussian, shared"
    assert main(["bench", *QUICK, only, "--dtype", "float64", "--components", "3"]) == 0
    said = capsys.readouterr().out
    assert "dtype            float64" in said
    assert "components       3" in said


def test_a_script_s_bad_option_is_one_line_and_status_2(clone, tmp_path, capsys):
    assert clone.ops.main(["--only", "round", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("ops: error: only: expected a part of the name of a table (Jobs")


# -- results are checked -------------------------------------------------------------------------------------


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
def test_a_wrong_result_is_not_timed(clone, op, part, only, message, monkeypatch, tmp_path, capsys):
    right = getattr(mixflow, op)
    monkeypatch.setattr(mixflow, op, lambda x, *p, **kw: broken((*right(x, *p, **kw), p[1]), part))
    monkeypatch.setattr(cases, "seconds_per_element", lambda *_: pytest.fail("a wrong result was timed"))
    assert clone.ops.main([*QUICK, only, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "nothing was timed" in said.err
    assert len(said.err.splitlines()) == 1
    assert "M/s" not in said.out
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_reports_a_wrong_result_in_one_line(monkeypatch, capsys):
    right = mixflow.cdf_transform
    monkeypatch.setattr(mixflow, "cdf_transform", lambda x, *p, **kw: broken((*right(x, *p, **kw), p[1]), "value"))
    assert main(["bench", *QUICK, FORWARD]) == 2
    assert "z is off by" in capsys.readouterr().err


def test_a_baseline_that_does_other_work_is_not_timed(monkeypatch, capsys):
    monkeypatch.setitem(large_calls.PLAIN, "eager linear", lambda settings: lambda inputs: (inputs.x, inputs.x))
    monkeypatch.setattr(cases, "seconds_per_element", lambda *_: pytest.fail("a wrong baseline was timed"))
    assert main(["bench", *QUICK, FORWARD]) == 2
    assert "eager linear: only" in capsys.readouterr().err


def test_a_layout_that_changes_the_result_is_not_timed(clone, monkeypatch, tmp_path, capsys):
    right = clone.layouts.op
    monkeypatch.setattr(clone.layouts, "op", lambda x, *p: [r + (not x.is_contiguous()) * 1e-6 for r in right(x, *p)])
    assert clone.ops.main([*QUICK, "forward, x[:, half:]", "--out", str(tmp_path)]) == 2
    assert "forward, x[:, half:]: the layout changes the result; nothing was timed" in capsys.readouterr().err


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_baselines_are_right_in_float64(family):
    settings = Settings(dtype=torch.float64, components=3)

    def inputs(op, layout):
        [drawn] = draw_inputs(settings, op, family, layout, 50)
        return drawn

    given = inputs("inverse + backward", "per element")
    own = torch.autograd.grad(given.op(), given.leaves, given.seeds)
    implicit = large_calls.PLAIN["implicit, 40 eager bisections"](settings)(given)
    for mine, other in zip(own, implicit, strict=True):
        torch.testing.assert_close(other, mine, rtol=1e-6, atol=1e-6)
    given = inputs("forward + ladj", "shared")
    for formula in ("eager log-space", "eager linear"):
        for mine, other in zip(given.op(), large_calls.PLAIN[formula](settings)(given), strict=True):
            torch.testing.assert_close(other, mine, rtol=1e-6, atol=1e-6)


def test_the_published_formula_is_right_in_float64(clone):
    [given] = draw_inputs(Settings(dtype=torch.float64), "forward + ladj", "logistic", "per element", 50)
    for base in mixflow.BASES:
        z, ladj = mixflow.cdf_transform(given.x, *given.parameters, family="logistic", base=base)
        others = clone.formula.formula(given.x, *(p.T for p in given.parameters), dim=0, family="logistic", base=base)
        torch.testing.assert_close(others[1], ladj, rtol=1e-9, atol=1e-9)
        if base != "uniform":  # of which only the density is asked for
            torch.testing.assert_close(others[0], z, rtol=1e-9, atol=1e-9)


# -- what is marked ------------------------------------------------------------------------------------------


def test_a_baseline_that_gets_fewer_elements_is_marked(monkeypatch, tmp_path):
    monkeypatch.setattr(large_calls, "SLOW", {"eager linear"})
    monkeypatch.setattr(large_calls, "MOST", {"cpu": 100})
    assert main(["bench", *QUICK, FORWARD, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "cpu.json").read_text())["groups"]["Forward"]
    assert [row["contender"] for row in rows] == ["eager log-space", "eager linear, N = 100"]


def test_a_baseline_that_cannot_run_has_a_row_with_the_reason(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "zuko", None)
    assert main(["bench", *QUICK, "zuko's GaussianizationTransform: inverse", "--out", str(tmp_path)]) == 0
    assert "zuko: zuko is not installed: pip install mixflow[bench]" in capsys.readouterr().out
    [row] = json.loads((tmp_path / "cpu.json").read_text())["groups"]["zuko's GaussianizationTransform"]
    assert (row["contender_rate"], row["ratio"], row["reached"], row["target"]) == (None, None, None, 40)


def test_a_compiler_that_fails_is_a_reason_and_ends_nothing(monkeypatch):
    def fail(*_, **__):
        raise torch._dynamo.exc.TorchDynamoException("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    prepare = large_calls.plain_code({"compiled linear": 4.0})
    settings = Settings(n=3)
    [found] = prepare("case", settings, draw_inputs(settings, "forward + ladj", "logistic", "shared", 3))
    assert found.call is None
    assert found.note.startswith("torch.compile does not work here: ")
    assert found.note.endswith("no compiler")


def test_the_command_line_does_not_wait_for_what_a_benchmark_needs():
    code = "import sys, mixflow.cli; assert not {'torch._dynamo', 'scipy', 'zuko', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_gpu_that_cannot_be_used_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(mixflow, "show_config", lambda: {"cuda_usable": False})
    assert main(["bench", "--device", "cuda"]) == 2
    assert "device: expected one that can be used here, see mixflow info, got cuda" in capsys.readouterr().err


def test_cases_have_names_of_their_own_and_baselines_that_exist(clone):
    for device in ("cpu", "cuda"):
        groups = [group for group in clone.ops.GROUPS if group.device in ("", device)]
        names = [(group.name, case.name) for group in groups for case in group.cases]
        assert len(set(names)) == len(names)
    for layouts in large_calls.COMPARISONS.values():
        assert all(set(targets) <= set(large_calls.PLAIN) for targets in layouts.values())


# -- times and ratios ----------------------------------------------------------------------------------------


def test_calls_take_turns_with_the_threads_that_they_name():
    log = []

    def call(name, threads):
        return Call(lambda: log.append((name, torch.get_num_threads())), 10, threads)

    before = torch.get_num_threads()
    seconds = seconds_per_element([call("a", 1), call("b", 2)], Settings(quick=True, threads=before))
    assert torch.get_num_threads() == before
    assert seconds.shape == (3, 2)
    assert set(log) == {("a", 1), ("b", 2)}
    turns = "".join(name for i, (name, _) in enumerate(log) if i == 0 or name != log[i - 1][0])
    assert turns == "ab" * 5  # a warm-up, a measurement of one call, and three rounds


def test_inputs_are_taken_in_turn():
    seen = []
    settings = Settings()
    inputs = [draw_inputs(settings, "forward + ladj", "logistic", "shared", n)[0] for n in (1, 2)]
    call = large_calls.in_turn(lambda given: seen.append(len(given.x)), inputs, settings)
    for _ in range(3):
        call.run()
    assert seen == [1, 2, 1]


@pytest.fixture
def rows_of(monkeypatch):
    """The rows of a case whose rounds take the given seconds per element: one column for mixflow, one a baseline."""

    def rows(seconds, baselines, elements=1, **options):
        monkeypatch.setattr(cases, "seconds_per_element", lambda *_: np.array(seconds))
        return timed("case", lambda _: (Call(list, elements), baselines), **options).measure(Settings())

    return rows


def test_the_ratio_is_the_median_of_the_rounds(rows_of):
    seconds = np.array([[1.0, 2.0], [10.0, 30.0], [1.0, 9.0]]) * 1e-9
    [row] = rows_of(seconds, [Baseline("other", 3.0, Call(list, 1))])
    assert row["ratio"] == pytest.approx(3.0)
    assert row["ratio_range"] == pytest.approx((2.0, 9.0))
    assert row["rate"] == pytest.approx(1000.0)
    assert row["contender_rate"] == pytest.approx(1e3 / 9)
    assert row["reached"] is True


def test_a_limit_is_computed_and_noted(rows_of, monkeypatch, capsys):
    limit = Baseline("limit", 0.6, limit=1e-6, note="one a microsecond")
    [row, other] = rows_of([[2e-6, 3e-6]], [limit, Baseline("other", None, Call(list, 1))])
    assert (row["contender_rate"], row["ratio"], row["reached"]) == (pytest.approx(1.0), pytest.approx(0.5), False)
    assert (other["ratio"], other["reached"]) == (pytest.approx(1.5), None)
    monkeypatch.setattr(command, "GROUPS", [Group("limits", [Case("case", lambda _: [row])], RATES)])
    command.run(SimpleNamespace(**vars(bench_options()), out=None), command.GROUPS)
    assert "  limit: one a microsecond\n" in capsys.readouterr().out


def bench_options():
    return SimpleNamespace(only=None, n=1, components=1, dtype="float32", threads=1, device="cpu", quick=True)


@pytest.fixture
def compared(clone, monkeypatch):
    """How many elements, or components, the two calls of a case of scaling have, with what is timed left out."""
    calls = []

    def op_call(name, settings, op, family, layout, n):
        calls.append((n, settings.components))
        return Call(list, n, settings.threads), []

    monkeypatch.setattr(clone.scaling, "op_call", op_call)
    monkeypatch.setattr(cases, "seconds_per_element", lambda calls, _: np.array([[1.0, 1.25]]))
    return calls


def test_scaling_with_n_is_against_a_million(clone, compared):
    [row] = clone.scaling.elements("gaussian", 10**5).measure(Settings())
    assert [n for n, _ in compared] == [10**5, 10**6]
    assert (row["contender"], row["ratio"], row["target"], row["reached"]) == ("N = 1,000,000", 1.25, 0.85, True)


def test_more_elements_than_memory_holds_are_mapped_in_several_calls(clone, compared, monkeypatch):
    monkeypatch.setattr(clone.scaling, "memory", lambda _: 32 * 10**6)
    clone.scaling.elements("gaussian", 10**7).measure(Settings())
    assert [n for n, _ in compared] == [10**6, 10**6]


def test_cost_by_components_is_against_two_calls_with_half_of_them(clone, compared):
    [row] = clone.scaling.components("gaussian", 8).measure(Settings())
    assert [k for _, k in compared] == [8, 4]
    assert (row["contender"], row["ratio"], row["target"], row["reached"]) == ("two calls, K = 4", 1.25, 1.0, True)


# -- memory and limits of the machine ------------------------------------------------------------------------


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


def test_the_bare_loop_of_the_core_is_called_with_what_is_measured(clone, monkeypatch):
    calls = []
    monkeypatch.setattr(clone.limits._core, "bare_loop", lambda *arguments: calls.append(arguments), raising=False)
    settings = Settings(components=5, threads=2)
    inputs = draw_inputs(settings, "forward + ladj", "gaussian", "shared", 7)
    clone.limits.bare_loop("loop", 0.65, settings, inputs).call.run()
    assert calls == [(False, 5, 7, 2)]


def test_what_is_measured_on_a_gpu_can_be_measured(clone, monkeypatch):
    """Here on the CPU, for want of a GPU: all except the clock."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace())
    settings = Settings(n=256, quick=True)
    for group in [group for group in clone.ops.GROUPS if group.device == "cuda"]:
        for case in group.cases:
            rows = case.measure(settings)
            assert rows
            assert all(row["ratio"] is not None or row["note"] for row in rows), case.name
            if (group.name, case.name) == ("Limits of the machine", "forward + ladj, logistic, per element"):
                assert rows[-1]["note"] == "108 bytes an element"


def test_the_limit_of_special_functions(clone, monkeypatch):
    properties = SimpleNamespace(multi_processor_count=100, clock_rate=2_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    gpu = Settings(components=8, device=torch.device("cuda"))

    def limit(settings):
        return clone.limits.special_functions("special", 0.6, settings, [])

    found = limit(gpu)
    assert 1 / found.limit == pytest.approx(100 * 16 * 2e9 / 21)
    assert found.note == "100 multiprocessors x 16 x 2.00 GHz / 21 special functions an element"
    del properties.clock_rate
    for settings, reason in ((gpu, "does not tell the clock"), (replace(gpu, dtype=torch.float64), "float32 alone")):
        assert limit(settings).limit is None
        assert reason in limit(settings).note


class Copies(TorchDispatchMode):
    """Notes the bytes of every copy."""

    def __init__(self, copied):
        super().__init__()
        self.copied = copied

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.copy_.default:
            self.copied.append(args[0].nbytes)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("op", "numbers"), [("forward + ladj", 18), ("forward + backward", 34)])
def test_copies_are_of_the_bytes_that_the_op_moves(clone, op, numbers):
    settings = Settings(components=5)
    inputs = draw_inputs(settings, op, "logistic", "per element", 64)
    assert clone.limits.bytes_moved(inputs[0]) == 4 * 64 * numbers
    copied = []
    copy = clone.limits.copy("copy", 0.8, settings, inputs)
    with Copies(copied):
        copy.call.run()
    assert copied == [4 * 64 * numbers // 2]


# -- flows against zuko's ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_flows_are_compared_with_zuko_s(tmp_path):
    rows = np.random.default_rng(0).normal(size=(300, 2)).cumsum(axis=1)
    np.savetxt(tmp_path / "walk.csv", rows, delimiter=",", header="a,b", comments="")
    command = [
        sys.executable,
        BENCH / "flows.py",
        tmp_path / "walk.csv",
        "--seconds",
        "1",
        "--epochs",
        "30",
        "--only",
        "tables",
    ]
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "flows.json").read_text())
    runs = {run["flow"]: run for run in written["flows"]}
    assert set(runs) == {"GF", "NSF", "MAF", "gaussianization", "coupling", "autoregressive"}
    for flow, run in runs.items():
        # The truth is two standard normals, which nobody beats on average by more than luck with 30 rows.
        assert run["validation"] < -1.0
        # fit keeps its start where 30 held-out rows speak for an epoch by no more than chance.
        assert flow.islower() or run["validation"] == max(score for _, score in run["curve"])
        assert run["table"] == "walk"
    best = {ours: max(runs[f]["test"] for f in runs if f.islower() == ours) for ours in (True, False)}
    judgements = {row["case"]: row for row in written["judgements"]}
    row = judgements["walk: best test log_prob, best of zuko as target"]
    assert (row["value"], row["target"], row["reached"]) == (best[True], best[False], best[True] >= best[False])
    assert f"{sum(row['reached'] for row in judgements.values())} of {len(judgements)} reached." in done.stdout
