"""``mixflow fit`` as a user runs it: options, columns by name, what is remembered, what is said."""

import math
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

import mixflow
from commands import WEATHER, column, command, run, weather, weather_in, write_csv
from mixflow import History, transforms
from mixflow.cli import fit as fit_command
from mixflow.cli import main, roles
from mixflow.files.tables import write_table
from mixflow.start.gaussian import gaussian


def test_fit_says_what_it_did(tmp_path):
    write_csv(tmp_path / "data.csv", column())
    result = run("fit", "data.csv", "--out", "model.safetensors", "--components", 3, "--epochs", 20, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "flow: univariate, for 1 column and 300 rows; --flow chooses another"
    assert re.fullmatch(r"20 epochs in \d+\.\d s; kept (the start|epoch \d+)", lines[1])
    assert lines[2] == "- Data: 270 rows to learn from, 30 held out; 1 column (length)."
    number = r"-\d\.\d{4}"
    assert re.fullmatch(f"log_prob of 30 held-out rows: {number} nats; one Gaussian: {number}", lines[-2])
    assert lines[-1] == "saved model.safetensors"
    assert "rows/s" in result.stderr  # the progress bar
    flow = mixflow.load(tmp_path / "model.safetensors")
    assert flow.recipe.arguments["components"] == 3
    assert flow.notes["columns"] == ["length"]


def test_quiet_is_quiet(tmp_path, capsys):
    write_csv(tmp_path / "data.csv", column())
    assert command(f"fit {tmp_path}/data.csv --out {tmp_path}/m --epochs 2 --quiet") == 0
    assert capsys.readouterr() == (f"saved {tmp_path}/m\n", "")


def test_options_reach_the_fit(tmp_path, capsys):
    np.save(tmp_path / "data.npy", column())
    arguments = ["fit", str(tmp_path / "data.npy"), "--quiet", "--epochs", "3", "--family", "logistic"]
    arguments += ["--base", "uniform", "--batch-size", "50", "--lr", "0.01", "--validation", "0.2"]
    arguments += ["--patience", "2", "--dtype", "float64", "--flow", "univariate"]
    models = []
    for seed in (0, 0, 1):
        out = tmp_path / f"model{len(models)}.safetensors"
        assert main([*arguments, "--seed", str(seed), "--out", str(out)]) == 0
        models.append(mixflow.load(out))
    said = capsys.readouterr()
    assert said.err == ""
    first, second, third = (flow.state_dict()["data_to_base.transforms.1.loc"].tolist() for flow in models)
    assert first == second != third
    assert models[0].recipe.arguments == {
        "components": 16,
        "family": "logistic",
        "base": "uniform",
        "context": 0,
        "support": None,
    }
    assert len(models[0].notes["history"]["lr"]) == 3
    assert models[0].notes["history"]["lr"][0] == pytest.approx(0.001)  # a tenth of it, from which it rises
    assert "columns" not in models[0].notes


def test_a_network_s_weights_follow_the_seed(tmp_path):
    write_csv(tmp_path / "data.csv", weather(60)[:, :2], "a,b")
    fit = f"fit {tmp_path}/data.csv --flow coupling --layers 1 --hidden 4 --epochs 1 --quiet"
    files = []
    for number, seed in enumerate(("", "--seed 0", "--seed 1")):
        torch.rand(3)  # the state of the global generator is no concern
        assert command(f"{fit} {seed} --out {tmp_path}/{number}") == 0
        flow = mixflow.load(tmp_path / str(number))
        files.append(next(value for name, value in flow.state_dict().items() if name.endswith("weight")).tolist())
    assert files[0] == files[1] != files[2]


# -- flows ---------------------------------------------------------------------------------------------------


CHOICES = {
    "one column": (60, "--column a", "univariate"),
    "one column and a context": (60, "--column a --context c", "univariate"),
    "few rows": (499, "--column a --column b", "gaussianization"),
    "many rows": (500, "--column a --column b", "autoregressive"),
    "few rows and a context": (60, "--column a --column b --context c", "autoregressive"),
    "few rows and an option of networks": (60, "--column a --column b --hidden 8", "autoregressive"),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_flow_follows_columns_and_rows(tmp_path, capsys, case):
    rows, options, flow = CHOICES[case]
    write_csv(tmp_path / "data.csv", weather(rows)[:, :3], "a,b,c")
    assert command(f"fit {tmp_path}/data.csv --out {tmp_path}/m --epochs 1 {options}") == 0
    columns = options.count("--column")
    said = f"flow: {flow}, for {columns} column{'s' * (columns > 1)} and {rows} rows; --flow chooses another\n"
    assert capsys.readouterr().out.startswith(said)
    loaded = mixflow.load(tmp_path / "m")
    assert (loaded.recipe.name, loaded.context) == (flow, options.count("--context"))


def test_no_flow_is_chosen_for_very_many_columns(tmp_path, capsys):
    np.save(tmp_path / "data.npy", np.zeros((3, 1001)))
    assert command(f"fit {tmp_path}/data.npy --out {tmp_path}/m") == 2
    said = capsys.readouterr().err
    assert "expected at most 1,000 columns, for a flow to be chosen, got 1,001; choose columns with --column" in said
    assert [path.name for path in tmp_path.iterdir()] == ["data.npy"]


FLOWS = ("gaussianization", "coupling", "autoregressive", "gaussian_mixture", "univariate")


@pytest.mark.parametrize("flow", FLOWS)
def test_every_flow_takes_a_context(tmp_path, capsys, flow):
    write_csv(tmp_path / "data.csv", weather(80), WEATHER)
    columns = "--column rain" + " --column temperature" * (flow != "univariate")
    fit = f"fit {tmp_path}/data.csv --flow {flow} {columns} --context height --out {tmp_path}/m --epochs 2"
    assert command(fit) == 0
    said = capsys.readouterr().out
    assert "- Context: 1 column (height)." in said
    baseline = r"one Gaussian, linear in the context: -\d+\.\d+"
    assert re.search(rf"log_prob of 8 held-out rows: -\d+\.\d+ nats; {baseline}\n", said)
    assert mixflow.load(tmp_path / "m").context == 1


# -- columns -------------------------------------------------------------------------------------------------


def test_a_column_is_chosen_by_name(tmp_path, capsys):
    values = column()
    rows = "\n".join(f"ox,{value!r},{-value!r}" for value in values.tolist())
    (tmp_path / "data.csv").write_text(f"name,x,y\n{rows}\n")
    assert command(f"fit {tmp_path}/data.csv --out {tmp_path}/m --epochs 2 --quiet --column y") == 0
    flow = mixflow.load(tmp_path / "m")
    assert flow.notes["columns"] == ["y"]
    assert flow.state_dict()["data_to_base.transforms.0.loc"].item() == pytest.approx(-values.mean(), abs=0.2)


def test_columns_that_are_not_chosen_may_hold_anything(tmp_path, capsys):
    values = column(50)
    rows = "\n".join(f"ox,{value!r},{-value!r},{value!r},1" for value in values.tolist())
    (tmp_path / "data.csv").write_text(f"b,b,a,c,w\n{rows}\n")
    table = {"name": ["ox"] * 50, "a": -values, "c": values, "w": np.ones(50)}
    parquet.write_table(pyarrow.table(table), tmp_path / "data.parquet")
    for name in ("data.csv", "data.parquet"):
        fit = f"fit {tmp_path}/{name} --column a --context c --weight w --epochs 1 --quiet --out {tmp_path}/m"
        assert command(fit) == 0
        assert command(f"score {tmp_path}/m {tmp_path}/{name}") == 0
        assert command(f"sample {tmp_path}/m -n 1 --context {tmp_path}/{name} --out {tmp_path}/s.csv") == 0
        again = f"fit {tmp_path}/{name} --init {tmp_path}/m --epochs 1 --out {tmp_path}/n"
        capsys.readouterr()
        assert command(again) == 0
        assert "- Weights: w." in capsys.readouterr().out
        assert command(f"fit {tmp_path}/{name} --epochs 1 --out {tmp_path}/m") == 2
        assert "--column" in capsys.readouterr().err


# Of a table of a, b, c, w: options, and what is then remembered as columns, context and weight.
ROLES = {
    "nothing": ("", "abcw", "", None),
    "a column": ("--column b", "b", "", None),
    "a context": ("--context b", "acw", "b", None),
    "contexts in their order": ("--context c --context a", "bw", "ca", None),
    "a weight": ("--weight w", "abc", "", "w"),
    "context and weight": ("--context c --weight w", "ab", "c", "w"),
    "all three": ("--column c --column a --context b --weight w", "ca", "b", "w"),
    "columns that are not evenly spaced": ("--column w --column a --column b --context c", "wab", "c", None),
}


@pytest.mark.parametrize("ending", ["csv", "npy"])
@pytest.mark.parametrize("case", ROLES)
def test_each_column_has_the_role_that_was_typed(tmp_path, monkeypatch, case, ending):
    options, columns, context, weight = ROLES[case]
    table = np.abs(weather(60))
    names = dict(zip("abcw", range(4), strict=True))
    if ending == "npy":  # whose columns are x1, x2, x3, x4
        options = re.sub(r" ([abcw])\b", lambda found: f" x{names[found[1]] + 1}", options)
    write_table(tmp_path / f"data.{ending}", list(names), table)
    seen = {}

    def watched(flow, data, *, context, weights, **options):
        seen.update(data=data, context=context, weights=weights)
        return mixflow.fit(flow, data, context=context, weights=weights, **options)

    monkeypatch.setattr(fit_command, "fit", watched)
    fit = f"fit {tmp_path}/data.{ending} --flow gaussian_mixture --components 1 --epochs 1 --quiet --out {tmp_path}/m"
    fit = fit.replace("gaussian_mixture", "univariate") if len(columns) == 1 else fit
    assert command(f"{fit} {options}") == 0
    np.testing.assert_array_equal(seen["data"], table[:, [names[name] for name in columns]])
    assert seen["data"].dtype == np.float64
    if context:
        np.testing.assert_array_equal(seen["context"], table[:, [names[name] for name in context]])
    else:
        assert seen["context"] is None
    if weight:
        np.testing.assert_array_equal(seen["weights"], table[:, names[weight]])
    else:
        assert seen["weights"] is None
    notes = mixflow.load(tmp_path / "m").notes
    remembered = {"columns": list(columns), "context": list(context), "weight": weight}
    if ending == "npy":
        remembered = {"columns": [f"x{names[name] + 1}" for name in columns] if options else [], "weight": None}
        remembered["context"] = [f"x{names[name] + 1}" for name in context]
        remembered["weight"] = weight and f"x{names[weight] + 1}"
    assert {name: value for name, value in remembered.items() if value} == {
        name: notes[name] for name in ("columns", "context", "weight") if name in notes
    }


def test_all_parts_of_a_table_are_memory_maps(tmp_path, monkeypatch):
    np.save(tmp_path / "data.npy", np.abs(weather(60)))

    def is_mapped(array):
        while not isinstance(array, np.memmap):
            array = array.base
        return isinstance(array, np.memmap)

    monkeypatch.setattr(roles, "_CHUNK", 7)
    for options in ("--context x4 --weight x3", "--context x3"):  # x1, x2 side by side; x1, x2, x4
        fitted = []

        def watched(flow, data, *, context, weights, **options):
            fitted.extend([data, context, *[weights] * (weights is not None)])  # noqa: B023
            return mixflow.fit(flow, data, context=context, weights=weights, **options)

        monkeypatch.setattr(fit_command, "fit", watched)
        fit = f"fit {tmp_path}/data.npy --flow gaussian_mixture --components 1 --epochs 1 --out {tmp_path}/m --quiet"
        assert command(f"{fit} {options}") == 0
        assert len(fitted) >= 2
        assert all(map(is_mapped, fitted))
        assert np.may_share_memory(fitted[0], fitted[1]) is ("--weight" in options), "no copy unless it is needed"


def test_a_weight_counts_as_so_many_rows(tmp_path):
    values = column(200)
    write_csv(tmp_path / "weighted.csv", np.stack([values, 1.0 + 8.0 * (values > 0)], axis=1), "length,often")
    fit = f"fit {tmp_path}/weighted.csv --column length --epochs 30 --quiet --out {tmp_path}"
    assert command(f"{fit}/m --weight often") == 0
    assert command(f"{fit}/plain") == 0
    share = [(mixflow.load(tmp_path / name).sample(5000, seed=0) > 0).double().mean().item() for name in ("m", "plain")]
    plain = (values > 0).mean()
    assert share[0] == pytest.approx(9 * plain / (9 * plain + 1 - plain), abs=0.05)
    assert share[1] == pytest.approx(plain, abs=0.05)


def test_typed_names_name_the_columns_of_a_file_without_names(tmp_path):
    np.save(tmp_path / "data.npy", weather(60)[:, :3])
    fit = f"fit {tmp_path}/data.npy --column temperature --column rain --context month --out {tmp_path}/m --epochs 1"
    assert command(f"{fit} --quiet") == 0
    notes = mixflow.load(tmp_path / "m").notes
    assert (notes["columns"], notes["context"]) == (["temperature", "rain"], ["month"])


@pytest.mark.parametrize(("options", "expected"), [("--na drop", 0), ("", 2)])
def test_rows_with_missing_values_are_left_out_or_refused(tmp_path, capsys, options, expected):
    values = weather(60)
    rows = [",".join(map(repr, row)) for row in values.tolist()]
    rows[3] = "," + rows[3].partition(",")[2]
    rows[7] = rows[7].rpartition(",")[0] + ",NA"
    (tmp_path / "data.csv").write_text("\n".join([WEATHER, *rows]) + "\n")
    fit = f"fit {tmp_path}/data.csv --flow gaussian_mixture --context height --out {tmp_path}/m --epochs 1 {options}"
    assert command(fit) == expected
    said = capsys.readouterr()
    if expected:
        assert re.fullmatch(r"mixflow: error: .*data.csv, line 5, column 'temperature'.*--na drop.*\n", said.err)
    else:
        assert re.match(r"\S*data.csv: without 2 of 60 rows", said.out)
        assert "- Data: 52 rows to learn from, 6 held out" in said.out


def test_what_the_reader_assumed_is_told_even_if_quiet(tmp_path, capsys):
    rows = "\n".join(f"{value:.3f};{value * value:.3f}".replace(".", ",") for value in column(50).tolist())
    (tmp_path / "data.csv").write_text(f"a;b\n{rows}\n")
    fit = f"fit {tmp_path}/data.csv --flow gaussian_mixture --components 1 --out {tmp_path}/m --epochs 1 --quiet"
    assert command(fit) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{tmp_path}/data.csv: ")
    assert "semicolon" in said[0]
    assert said[1:] == [f"saved {tmp_path}/m"]
    assert command(f"{fit} --sep ; --decimal , --header") == 0
    assert capsys.readouterr().out.splitlines() == [f"saved {tmp_path}/m"]


def test_an_index_is_left_out_and_said_also_beside_contexts(tmp_path, capsys):
    rows = "\n".join(",".join(map(repr, row)) for row in weather(60).tolist())
    (tmp_path / "data.csv").write_text(f",{WEATHER}\n" + "".join(f"{i},{r}\n" for i, r in enumerate(rows.split())))
    fit = f"fit {tmp_path}/data.csv --flow gaussian_mixture --components 1 --out {tmp_path}/m --epochs 1 --quiet"
    for options in ("", "--context month --context height"):
        assert command(f"{fit} {options}") == 0
        assert "without the first column" in capsys.readouterr().out.splitlines()[0]
        assert "" not in mixflow.load(tmp_path / "m").notes["columns"]


SEPARATORS = {"tab": "\t", r"\t": "\t", "space": " ", "|": "|", ";": ";"}


@pytest.mark.parametrize("typed", SEPARATORS)
def test_separators_are_typed_as_characters_or_words(tmp_path, typed):
    rows = "\n".join(f"{value}{SEPARATORS[typed]}{value * value}" for value in column(50).tolist())
    (tmp_path / "data.csv").write_text(f"{rows}\n")
    fit = "fit {0}/data.csv --no-header --flow gaussian_mixture --components 1 --out {0}/m --epochs 1 --quiet"
    assert command(fit.format(tmp_path), "--sep", typed) == 0
    assert mixflow.load(tmp_path / "m").features == 2


# -- going on from a model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return weather_in(tmp_path_factory.mktemp("weather"))


def test_a_fit_goes_on_from_a_model_with_its_columns(model, tmp_path, capsys):
    shuffled = [3, 1, 0, 2]
    names = WEATHER.split(",")
    write_csv(tmp_path / "more.csv", weather(200, seed=1)[:, shuffled], ",".join(names[i] for i in shuffled))
    fit = f"fit {tmp_path}/more.csv --init {model}/weather.safetensors --out {tmp_path}/m"
    assert command(f"{fit} --epochs 1 --lr 1e-9 --validation 0 --quiet") == 0
    before, after = mixflow.load(model / "weather.safetensors"), mixflow.load(tmp_path / "m")
    for name, value in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], value, rtol=0, atol=1e-6)
    assert {**after.notes, "history": None} == {**before.notes, "history": None}
    assert command(f"{fit} --epochs 1") == 0
    said = capsys.readouterr().out
    assert "flow:" not in said
    assert "- Start: the flow's own weights.\n" in said


def test_the_precision_of_a_model_is_kept_or_chosen(model, tmp_path):
    fit = f"fit {model}/weather.csv --init {model}/weather.safetensors --out {tmp_path}/m --epochs 1 --quiet"
    for options, expected in (("", torch.float32), ("--dtype float64", torch.float64)):
        assert command(f"{fit} {options}") == 0
        assert next(mixflow.load(tmp_path / "m").parameters()).dtype == expected
    assert command(fit.replace(f"{model}/weather.safetensors", f"{tmp_path}/m")) == 0
    assert next(mixflow.load(tmp_path / "m").parameters()).dtype == torch.float64


BROUGHT = ("--flow coupling", "--column rain", "--context month", "--components 3", "--layers 2", "--hidden 8")
BROUGHT += ("--support rain=positive", "--family gaussian", "--base normal", "--marginal-components 3")


@pytest.mark.parametrize("option", BROUGHT)
def test_what_the_model_brings_is_no_option_beside_it(model, tmp_path, capsys, option):
    fit = f"fit {model}/weather.csv --init {model}/weather.safetensors --out {tmp_path}/m"
    assert command(f"{fit} {option}") == 2
    name = option.split()[0]
    assert capsys.readouterr().err == f"mixflow: error: {name}: no option beside --init, whose model brings it\n"


def test_a_model_s_weight_and_resolution_are_used_again(tmp_path, capsys, monkeypatch):
    table = np.stack([column(100).round(1), np.arange(100) % 3 + 1.0], axis=1)
    write_csv(tmp_path / "data.csv", table, "length,often")
    write_csv(tmp_path / "bare.csv", table[:, 0])
    write_csv(tmp_path / "other.csv", table, "length,copies")
    fit = f"fit {tmp_path}/data.csv --weight often --resolution auto --epochs 1 --quiet --out {tmp_path}/m"
    assert command(fit) == 0
    seen = {}

    def watched(flow, data, **options):
        seen.update(options)
        return mixflow.fit(flow, data, **options)

    monkeypatch.setattr(fit_command, "fit", watched)
    weights = {"data.csv": True, "bare.csv": False, "other.csv --weight copies": True}
    for data, weighted in weights.items():
        assert command(f"fit {tmp_path}/{data} --init {tmp_path}/m --out {tmp_path}/n --epochs 1 --quiet") == 0
        assert (seen["weights"] is not None) is weighted
        assert seen["resolution"] == [0.1]
    capsys.readouterr()
    assert command(f"fit {tmp_path}/bare.csv --init {tmp_path}/m --out {tmp_path}/n --epochs 1") == 0
    assert "- Weights: none, as the table has no column often.\n" in capsys.readouterr().out
    again = f"fit {tmp_path}/data.csv --init {tmp_path}/m --out {tmp_path}/n --epochs 1 --quiet --resolution 0"
    assert command(again) == 0
    assert "resolution" not in mixflow.load(tmp_path / "n").notes


# -- what is said at the end ---------------------------------------------------------------------------------


def judged(said):
    baseline = r"(?:; one Gaussian(?:, linear in the context)?: (\S+))?"
    found = re.search(rf"log_prob of ([\d,]+) held-out rows: (\S+) nats{baseline}\n", said)
    return found[1], float(found[2]), found[3] and float(found[3])


def test_the_flow_is_compared_with_one_gaussian_on_the_same_rows(tmp_path, capsys):
    # Of a normal column, the flow of one component is the Gaussian: both must be scored on the same rows.
    write_csv(tmp_path / "data.csv", np.random.default_rng(0).normal(50, 7, 2000))
    for options in ("", "--validation 0.3 --seed 5"):
        fit = f"fit {tmp_path}/data.csv --components 1 --epochs 1 --out {tmp_path}/m {options}"
        assert command(fit) == 0
        count, flow, plain = judged(capsys.readouterr().out)
        assert count == ("600" if options else "200")
        history = mixflow.load(tmp_path / "m").notes["history"]
        assert flow == pytest.approx(max(history["starts"]["the start"], *history["validation_log_prob"]), abs=1e-4)
        assert plain == pytest.approx(flow, abs=2e-3)


def test_fit_s_own_score_of_one_gaussian_is_used_where_there_is_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fit_command, "one_gaussian", None)
    write_csv(tmp_path / "data.csv", weather(200)[:, :2], "a,b")
    assert command(f"fit {tmp_path}/data.csv --flow coupling --layers 1 --epochs 1 --out {tmp_path}/m") == 0
    _, _, plain = judged(capsys.readouterr().out)
    assert plain == pytest.approx(mixflow.load(tmp_path / "m").notes["history"]["starts"]["one Gaussian"], abs=1e-4)


def linear(n, seed=0):
    """A column that is linear in two contexts of very different sizes, with normal noise."""
    generator = np.random.default_rng(seed)
    context = generator.normal([5.0, 1e6], [0.1, 1e5], (n, 2))
    return np.column_stack([3.0 * context[:, 0] - 2e-5 * context[:, 1] + generator.normal(0.0, 0.5, n), context])


@pytest.mark.parametrize("flow", ["univariate", "autoregressive"])
def test_with_a_context_the_gaussian_s_mean_is_linear_in_it(tmp_path, capsys, flow):
    write_csv(tmp_path / "data.csv", linear(4000), "x,a,b")
    fit = f"fit {tmp_path}/data.csv --context a --context b --flow {flow} --epochs 1 --out {tmp_path}/m"
    assert command(fit) == 0
    _, _, plain = judged(capsys.readouterr().out)
    truth = -0.5 * math.log(2.0 * math.pi * math.e * 0.25)  # of normal noise of standard deviation 0.5
    assert plain == pytest.approx(truth, abs=4.0 * math.sqrt(0.5 / 400))


def test_the_gaussian_is_weighted_as_the_flow_is(tmp_path, capsys):
    values = column(2000)
    write_csv(tmp_path / "data.csv", np.stack([values, (values > 0) + 0.0], axis=1), "x,w")
    assert command(f"fit {tmp_path}/data.csv --weight w --components 1 --epochs 1 --out {tmp_path}/m") == 0
    _, flow, plain = judged(capsys.readouterr().out)
    _, covariance = gaussian(torch.from_numpy(values[values > 0])[:, None])
    entropy = 0.5 * math.log(2.0 * math.pi * math.e * covariance.item())
    assert plain == pytest.approx(flow, abs=0.02)
    assert plain == pytest.approx(-entropy, abs=0.15)


NOT_COMPARED = {
    "no held-out rows": ("--validation 0", None),
    "a support": ("--support x=positive", "nats"),
    "a resolution": ("--resolution 0.01", "nats"),
}


@pytest.mark.parametrize("case", NOT_COMPARED)
def test_what_cannot_be_compared_is_left_out(tmp_path, capsys, case):
    options, expected = NOT_COMPARED[case]
    write_csv(tmp_path / "data.csv", np.random.default_rng(0).gamma(2.0, size=200), "x")
    assert command(f"fit {tmp_path}/data.csv --epochs 1 --out {tmp_path}/m {options}") == 0
    said = capsys.readouterr().out
    if expected is None:
        assert "log_prob of" not in said
    else:
        assert judged(said)[2] is None


def test_supports_and_resolutions_reach_the_fit(tmp_path, capsys):
    generator = np.random.default_rng(0)
    amount, share = generator.gamma(2.0, size=200), generator.beta(2.0, 3.0, size=200).round(2)
    write_table(tmp_path / "data.csv", ["amount", "share"], np.stack([amount, share], 1))
    out = str(tmp_path / "model.safetensors")
    arguments = ["fit", str(tmp_path / "data.csv"), "--flow", "gaussian_mixture", "--out", out, "--quiet"]
    assert main([*arguments, "--support", "amount=positive", "--support", "share=:1.5", "--resolution", "auto"]) == 0
    flow = mixflow.load(out)
    assert flow.recipe.arguments["support"] == [[0.0, None], [None, 1.5]]
    assert flow.notes["resolution"] == [0.0, 0.01]
    with torch.no_grad():
        assert flow.log_prob(torch.tensor([[-1.0, 0.5], [1.0, 1.6]])).tolist() == [-np.inf, -np.inf]
    for option, message in {
        ("--support", "mass=positive"): "--support: expected NAME=positive or NAME=LOW:HIGH of a column, got",
        ("--support", "amount=large"): "--support: expected positive or LOW:HIGH after amount=, got 'large'",
        ("--support", "amount=2:1"): "support: expected",
        ("--resolution", "fine"): "--resolution: expected auto or a number, got 'fine'",
    }.items():
        capsys.readouterr()
        assert main([*arguments, *option]) == 2
        assert message in capsys.readouterr().err


def test_fit_says_what_it_saw(tmp_path, capsys):
    counts = np.random.default_rng(0).poisson(2.0, 500).astype(float)
    np.save(tmp_path / "counts.npy", counts)
    assert command(f"fit {tmp_path}/counts.npy --out {tmp_path}/model.safetensors --epochs 2") == 0
    said = capsys.readouterr().out
    assert "- Data: 450 rows to learn from, 50 held out; 1 column (x1)." in said
    assert "- Repeated values: x1. x1 has" in said
    assert "--resolution auto fits" in said
    assert "=" not in said, "no words of Python"


# -- checkpoints and Ctrl-C ----------------------------------------------------------------------------------


def test_a_fit_goes_on_from_its_checkpoint(tmp_path, capsys):
    np.save(tmp_path / "data.npy", column())
    fit = ["fit", str(tmp_path / "data.npy"), "--epochs", "4", "--quiet", "--device", "cpu", "--weight-decay", "0.1"]
    fit += ["--max-grad-norm", "1", "--checkpoint", str(tmp_path / "c"), "--resume", "--out"]
    for name in ("first", "again"):
        assert main([*fit, str(tmp_path / name)]) == 0
    first, again = (mixflow.load(tmp_path / name) for name in ("first", "again"))
    assert first.notes["history"] == again.notes["history"]
    assert main([*fit, str(tmp_path / "new"), "--max-grad-norm", "2"]) == 2
    assert "a run with max_grad_norm = 1.0, this run has max_grad_norm = 2.0" in capsys.readouterr().err


def test_ctrl_c_saves_the_best_so_far(tmp_path):
    np.save(tmp_path / "data.npy", column(2000))
    # Where the tests run in the background of a shell, the signal is ignored, by whatever they start, too.
    code = "import signal, sys; from mixflow.cli import main; signal.signal(signal.SIGINT, signal.default_int_handler);"
    fit = ["fit", "data.npy", "--out", "m.safetensors", "--epochs", "100000", "--patience", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code} sys.exit(main())", *fit], cwd=tmp_path, stderr=subprocess.PIPE
    )
    shown = b""
    deadline = time.monotonic() + 100.0
    while b"validation" not in shown and process.poll() is None and time.monotonic() < deadline:
        shown += process.stderr.read1()
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest.decode().splitlines()[-1] == "interrupted; saved the best weights so far to m.safetensors"
    assert mixflow.load(tmp_path / "m.safetensors").notes["history"]["interrupted"]


def test_ctrl_c_before_the_first_weights_leaves_an_older_model(tmp_path, capsys, monkeypatch):
    write_csv(tmp_path / "data.csv", column())
    (tmp_path / "m").write_bytes(b"an older model")

    def interrupted(*_, **__):
        return History(interrupted=True)

    monkeypatch.setattr(fit_command, "fit", interrupted)
    assert command(f"fit {tmp_path}/data.csv --out {tmp_path}/m --quiet") == 130
    assert capsys.readouterr().err == "mixflow: interrupted\n"
    assert (tmp_path / "m").read_bytes() == b"an older model"


def test_a_model_of_images_goes_on(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 1, 3, 3))
    flow = mixflow.flows.Flow(transforms.Compose(transforms.Reshape((1, 3, 3), (9,)), transforms.MixtureCDF(9, 2)))
    mixflow.fit(flow, x, epochs=1, progress=False)
    mixflow.save(flow, tmp_path / "old")
    np.save(tmp_path / "data.npy", x.reshape(60, 9))
    assert command(f"fit {tmp_path}/data.npy --init {tmp_path}/old --out {tmp_path}/new --epochs 1") == 0
    assert mixflow.load(tmp_path / "new").event_shape == (1, 3, 3)


def test_steps_of_float32_columns_are_found(tmp_path):
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(20, 3, 400).round(1).astype(np.float32))
    assert command(f"fit {tmp_path}/data.npy --out {tmp_path}/m --epochs 1 --quiet --resolution auto") == 0
    assert mixflow.load(tmp_path / "m").notes["resolution"] == [0.1]
