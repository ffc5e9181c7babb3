"""The table of awkward data: a run ends with rows and a file, scores are right, and so is what is judged by them."""

import importlib.util
import json
import math
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

SCRIPT = Path(__file__).parent.parent / "bench" / "robust.py"


@pytest.fixture(scope="module")
def robust():
    spec = importlib.util.spec_from_file_location("bench_robust", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def row(robust):
    references = {"truth": -1.0, "Gaussian": -1.3, "mixture": -1.1}
    return robust.Row("kind", "univariate", 100, 2, -1.2, references, reference="truth", target=0.25)


@pytest.mark.slow
def test_a_run_prints_rows_and_writes_json_and_a_table(tmp_path):
    options = ["--only", "0.1 % to 1e5", "--quick", "--jobs", "1"]
    options += ["--out", str(tmp_path / "results"), "--table", str(tmp_path / "table.md")]
    said = subprocess.run([sys.executable, SCRIPT, *options], check=True, capture_output=True, text=True).stdout
    written = json.loads((tmp_path / "results/robust.json").read_text())
    [row] = written["rows"]
    assert (row["kind"], row["flow"], row["rows"]) == ("outliers: 0.1 % to 1e5", "univariate", 1000)
    assert row["shortfall"] == row["references"]["truth"] - row["log_prob"]
    assert [judgement["rule"] for judgement in row["judgements"]] == ["below truth", "below Gaussian"]
    assert {"truth", "Gaussian", "kernel", "mixture"} == set(row["references"])
    assert "outliers: 0.1 % to 1e5" in said
    assert f"{sum(j['reached'] for j in row['judgements'])} of 2 reached, in 1 rows" in said
    heading, below, cells = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert heading.count("|") == below.count("|") == cells.count("|") == 10
    assert cells.startswith("| outliers: 0.1 % to 1e5 | 1,000 x 1 | univariate | ")
    assert "(truth)" in cells


def test_every_kind_draws_a_table(robust):
    for name, kind in robust.KINDS.items():
        data = kind.data(0, quick=True)
        assert data.train.ndim == data.test.ndim == 2, name
        assert np.isfinite(data.train).all(), name
        assert np.isfinite(data.test).all(), name
        assert kind.reference != "truth" or math.isfinite(data.truth), name
        assert np.array_equal(data.train, kind.data(0, quick=True).train), name
        assert not np.array_equal(data.train, kind.data(1, quick=True).train), name


def reached(row):
    return {judgement.rule: judgement.reached for judgement in row.judgements()}


def test_a_shortfall_is_judged_by_the_target(row):
    assert row.shortfall == pytest.approx(0.2)
    assert reached(row) == {"below truth": True, "below Gaussian": True}
    assert reached(replace(row, target=0.15)) == {"below truth": False, "below Gaussian": True}
    assert reached(replace(row, log_prob=-1.81, target=1.0)) == {"below truth": True, "below Gaussian": False}
    assert reached(replace(row, log_prob=-1.79, target=1.0)) == {"below truth": True, "below Gaussian": True}
    assert reached(replace(row, log_prob=math.nan)) == {"below truth": False, "below Gaussian": False}


def test_one_gaussian_is_judged_once(row):
    assert reached(replace(row, reference="Gaussian")) == {"below Gaussian": True}


def test_without_a_reference_a_finite_score_will_do(row):
    alone = replace(row, references={}, reference="Gaussian")
    assert reached(alone) == {"is finite": True}
    assert reached(replace(alone, log_prob=-math.inf)) == {"is finite": False}


def test_a_mixture_is_judged_by_scikit_learns(row):
    of = replace(row, flow="gaussian_mixture", log_prob=-1.11, timed=True, seconds=3.0, mixture_seconds=1.0)
    rules = {"below truth": True, "below Gaussian": True, "below mixture": True, "times the mixture's seconds": False}
    assert reached(of) == rules
    assert not reached(replace(of, log_prob=-1.13))["below mixture"]
    assert "times the mixture's seconds 3.000" in of.cells()["notes"]


def test_distinct_samples_are_judged(row):
    assert reached(replace(row, distinct=0.989))["distinct samples"] is False
    assert reached(replace(row, distinct=0.99))["distinct samples"] is True


def test_an_error_is_not_reached(row):
    failed = replace(row, log_prob=None, error="ValueError: no\nmodel")
    assert reached(failed) == {"ends with a model": False}
    assert failed.cells()["notes"] == "ValueError: no model"
    assert failed.cells()["reached"] == "no"


def test_a_table_names_the_reference_and_what_was_missed(robust, row):
    about = {"processor": "a CPU", "instruction set": "avx2", "torch": "2.6"}
    failed = replace(row, log_prob=None, error="ValueError: a | b")
    machine, _, _, _, good, bad, alone = robust.markdown(
        about, [row, failed, replace(row, log_prob=-2.0, references={}, reference="Gaussian")]
    ).splitlines()
    assert machine == "a CPU, avx2, one thread a fit; torch 2.6."
    assert good == "| kind | 100 x 2 | univariate | -1.200 | -1.000 (truth) | 0.200 | 0.25 | - | yes |"
    assert bad == "| kind | 100 x 2 | univariate | - | - | - | 0.25 | - | no (ValueError: a \\| b) |"
    assert alone == "| kind | 100 x 2 | univariate | -2.000 | - | - | finite | - | yes |"
    below = replace(row, log_prob=-1.81, target=1.0)
    assert robust.markdown(about, [below]).endswith("| no (below Gaussian 0.510) |\n")


def test_the_best_plain_estimator_is_chosen(robust):
    references = {"truth": -3.0, "Gaussian": -5.0, "kernel": -4.0}
    assert robust.chosen_reference("best", references, 2) == "kernel"
    assert robust.chosen_reference("best", {"truth": -3.0, "Gaussian": -5.0}, 2) == "Gaussian"
    alone = {"truth": -3.0}
    assert robust.chosen_reference("best", alone, 2) == "truth less 1"
    assert alone["truth less 1"] == -5.0


def test_seeds_are_averaged_and_an_error_in_one_is_the_rows(robust):
    kind = robust.KINDS["few: 20 x 2"]
    tables = [robust.Known(20, 2, {"Gaussian": -3.0, "kernel": -4.0}), robust.Known(20, 2, {"Gaussian": -5.0})]
    outcomes = [robust.Outcome(robust.Measured(score, 1.0)) for score in (-4.0, -5.0)]
    row = robust.row_of("few", kind, "coupling", tables, outcomes)
    assert row.references == {"Gaussian": -4.0}
    assert (row.log_prob, row.shortfall, row.target) == (-4.5, 0.5, 0.5)
    failed = robust.row_of("few", kind, "coupling", tables, [outcomes[0], robust.Outcome(None, "ValueError: no")])
    assert (failed.log_prob, failed.error) == (None, "ValueError: no")
    each = robust.row_of("few", replace(kind, target={"coupling": 0.3}), "coupling", tables, outcomes)
    assert each.target == 0.3


def test_the_probability_of_intervals(robust):
    data = robust.Rounded(np.zeros((1, 1)), np.array([[0.0], [1.0], [0.0]]), width=1.0)
    broad, spike = stats.norm(0.3, 1.0), stats.norm(0.0, 1e-3)
    expected = np.log(robust.between(broad, data.test, 1.0)).mean()
    assert data.score(lambda x: broad.logpdf(x[:, 0])) == pytest.approx(expected, abs=1e-6)
    inside = replace(data, test=np.zeros((3, 1)))
    assert inside.score(lambda x: spike.logpdf(x[:, 0])) == pytest.approx(0.0, abs=0.01)


def test_the_probability_of_cells(robust):
    data = robust.KINDS["resolution: three rounded columns"].data(0, quick=True)
    independent = np.log(robust.between(stats.norm, data.test, 0.5)).sum(1).mean()
    assert data.score(lambda x: stats.norm.logpdf(x).sum(1)) == pytest.approx(independent, abs=0.01)
    assert data.score(robust.correlated(3, 0.9).log_density) == pytest.approx(data.truth)
    assert 0.0 < data.slack < 0.02


def test_densities_are_those_that_rows_are_drawn_from(robust):
    x = stats.t(1.5).rvs(size=(50, 3), random_state=0)
    assert robust.joined_tails(1.5, 0.0).log_density(x) == pytest.approx(stats.t(1.5).logpdf(x).sum(1))
    grid = np.stack(np.meshgrid(np.linspace(-2.0, 3.0, 101), np.linspace(-1.5, 2.0, 71)), -1).reshape(-1, 2)
    assert np.exp(robust.moons_log_density(grid)).sum() * 0.05**2 == pytest.approx(1.0, abs=1e-3)
    two = robust.normals([(0.5, -2.0, 0.5), (0.5, 2.0, 0.5)])
    assert two.log_density(np.array([[2.0]])) == pytest.approx(math.log(0.5) + stats.norm.logpdf(0.0) + math.log(2.0))


def test_one_gaussian_asks_for_independent_columns(robust):
    x = np.random.default_rng(0).normal([5.0, -1.0], [2.0, 1e-3], (100, 2))
    expected = stats.multivariate_normal(x.mean(0), np.cov(x.T, bias=True)).logpdf(x)
    assert robust.one_gaussian(x)(x) == pytest.approx(expected, abs=1e-5)
    for singular in (x[:2], np.stack([x[:, 0], 2.0 * x[:, 0] + 1.0], 1)):
        with pytest.raises(ValueError, match="fewer dimensions"):
            robust.one_gaussian(singular)


def test_errors_and_warnings_of_a_fit_are_its_outcome(robust, monkeypatch):
    def fit(flow, x, **_):
        warnings.warn("odd", stacklevel=1)
        raise ValueError("no model")

    monkeypatch.setattr(robust.mixflow, "fit", fit)
    outcome = robust.run("few: 5 x 1", None, "univariate", 0, True, 60.0)
    assert outcome == robust.Outcome(None, "ValueError: no model", warnings=("odd",))
    monkeypatch.setattr(robust.mixflow, "fit", lambda flow, x, **_: time.sleep(60.0))
    assert "stopped after 0.05 s" in robust.run("few: 5 x 1", None, "univariate", 0, True, 0.05).error
