"""``mixflow sample`` as a user runs it: contexts as values and as tables, chunks, what is written."""

import re

import numpy as np
import pytest
import torch

import mixflow
from commands import WEATHER, command, fitted_in, run, weather_in, write_csv
from mixflow.cli import sample
from mixflow.files.tables import read_table, write_table


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return fitted_in(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return weather_in(tmp_path_factory.mktemp("weather"))


def test_samples_are_the_same_in_every_kind_of_file(fitted, tmp_path):
    kinds = "csv", "npy", "parquet", "tsv", "csv.gz"
    for kind in kinds[1:]:
        assert command(f"sample {fitted}/model.safetensors -n 50 --seed 1 --out {tmp_path}/samples.{kind}") == 0
    result = run("sample", fitted / "model.safetensors", "-n", 50, "--out", "samples.csv", "--seed", 1, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "saved 50 samples to samples.csv\n", "")
    tables = {kind: read_table(tmp_path / f"samples.{kind}") for kind in kinds}
    for kind, table in tables.items():
        assert table.columns == (["x1"] if kind == "npy" else ["length"])
        np.testing.assert_array_equal(table.values.astype(np.float32), tables["csv"].values.astype(np.float32))
    assert tables["csv"].values.shape == (50, 1)


def test_samples_are_drawn_in_chunks(fitted, tmp_path, monkeypatch):
    drawn = []
    draw = mixflow.flows.Flow.sample

    def watched(self, n, *args, **options):
        drawn.append(n)
        return draw(self, n, *args, **options)

    monkeypatch.setattr(mixflow.flows.Flow, "sample", watched)
    monkeypatch.setattr(sample, "PART", 64)
    for name, count in (("many.csv", 150), ("none.csv", 0)):
        assert command(f"sample {fitted}/model.safetensors --seed 3 --out {tmp_path}/{name} -n {count}") == 0
    assert [np.prod(n) for n in drawn] == [64, 64, 22, 0]
    values = read_table(tmp_path / "many.csv").values
    assert values.shape == (150, 1)
    assert len(np.unique(values)) == 150
    assert (tmp_path / "none.csv").read_text() == "length\n"


def test_models_of_every_dtype_can_be_used(fitted, tmp_path, capsys):
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model = f"{tmp_path}/{dtype}.safetensors"
        mixflow.save(mixflow.load(fitted / "model.safetensors").to(dtype), model)
        assert command(f"sample {model} -n 5 --out {tmp_path}/samples.csv") == 0
        assert command(f"score {model} {fitted}/data.csv --out {tmp_path}/scores.csv") == 0
        assert command(f"plot {model} {fitted}/data.csv --out {tmp_path}/picture.png") == 0
        assert read_table(tmp_path / "samples.csv").values.shape == (5, 1)
        assert -3.0 < read_table(tmp_path / "scores.csv").values.mean() < -1.0
    assert capsys.readouterr().err == ""


# -- contexts ------------------------------------------------------------------------------------------------

VALUES = {
    "in order": ("7,480.5", [7.0, 480.5]),
    "by name": ("month=7,height=480.5", [7.0, 480.5]),
    "by name in another order": ("height=480.5, month=7", [7.0, 480.5]),
    "negative first": ("-1,2", [-1.0, 2.0]),
    "a negative fraction first": ("-.5,-2e1", [-0.5, -20.0]),
    "negative by name": ("month=-1,height=-2", [-1.0, -2.0]),
}


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("typed", ["--context {}", "--context={}"])
def test_a_context_is_typed_as_numbers(conditional, tmp_path, case, typed):
    text, context = VALUES[case]
    options = typed.format(text.replace(" ", "")).split(" ")
    assert command(f"sample {conditional}/weather.safetensors -n 4 --seed 2 --out {tmp_path}/s.csv", *options) == 0
    found = read_table(tmp_path / "s.csv")
    assert found.columns == WEATHER.split(",")
    assert found.values[:, 2:].tolist() == [context] * 4
    flow = mixflow.load(conditional / "weather.safetensors")
    generator = torch.Generator().manual_seed(2)
    expected = flow.sample(4, torch.tensor(context, dtype=torch.float64), generator=generator)
    np.testing.assert_array_equal(found.values[:, :2].astype(np.float32), expected)
    assert max(map(len, (tmp_path / "s.csv").read_text().replace("\n", ",").split(","))) < 14  # "temperature" has 11


def contexts(n):
    return np.stack([np.arange(n) % 12 + 1.0, 400.0 + np.arange(n)], axis=1)


@pytest.mark.parametrize("rows", [7, 64, 10_000])
def test_each_row_of_a_table_of_contexts_has_its_own_samples(conditional, tmp_path, monkeypatch, rows):
    monkeypatch.setattr(sample, "PART", rows)
    write_table(tmp_path / "c.csv", ["height", "other", "month"], contexts(9)[:, [1, 0, 0]])
    model = f"{conditional}/weather.safetensors"
    assert command(f"sample {model} -n 20 --seed 1 --context {tmp_path}/c.csv --out {tmp_path}/s.csv") == 0
    found = read_table(tmp_path / "s.csv")
    assert found.columns == WEATHER.split(",")
    np.testing.assert_array_equal(found.values[:, 2:], contexts(9).repeat(20, axis=0))
    assert len(np.unique(found.values[:, 0])) == 180
    # Each row is drawn at the context beside it.
    assert command(f"score {model} {tmp_path}/s.csv --out {tmp_path}/scores.csv") == 0
    flow = mixflow.load(model)
    drawn, given = (torch.from_numpy(found.values[:, part]) for part in (slice(0, 2), slice(2, 4)))
    with torch.no_grad():
        expected = flow.log_prob(drawn, given)
        elsewhere = flow.log_prob(drawn, given.flip(0))
    np.testing.assert_allclose(read_table(tmp_path / "scores.csv").values[:, 0], expected, rtol=1e-6)
    assert expected.mean() > elsewhere.mean() + 0.05
    if rows == 10_000:
        at_once = flow.sample(20, torch.from_numpy(contexts(9)), seed=1).transpose(0, 1).reshape(180, 2)
        np.testing.assert_array_equal(found.values[:, :2].astype(np.float32), at_once)


@pytest.mark.parametrize("width", ["context", "whole"])
def test_a_table_of_contexts_without_names(tmp_path, width):
    table = np.random.default_rng(0).normal(size=(50, 3))
    np.save(tmp_path / "data.npy", table)
    fit = f"fit {tmp_path}/data.npy --context x1 --flow gaussian_mixture --components 1 --epochs 1 --quiet"
    assert command(f"{fit} --out {tmp_path}/m") == 0
    np.save(tmp_path / "c.npy", table[:, :1] if width == "context" else table)
    assert command(f"sample {tmp_path}/m -n 1 --context {tmp_path}/c.npy --out {tmp_path}/s.csv") == 0
    found = read_table(tmp_path / "s.csv")
    assert found.columns == ["x1", "x2", "x3"]  # as in the file that was fitted
    np.testing.assert_array_equal(found.values[:, 0], table[:, 0])


@pytest.mark.parametrize("ending", ["csv", "npy"])
@pytest.mark.parametrize("context", ["x1", "x3"])
def test_samples_of_a_model_without_names_are_read_back_alike(tmp_path, capsys, ending, context):
    # Of a file without names, in whose order the samples come; by their number alone, they would be confused.
    table = np.random.default_rng(0).normal([0.0, 100.0, 2000.0], 1.0, (50, 3))
    np.save(tmp_path / "data.npy", table)
    fit = f"fit {tmp_path}/data.npy --context {context} --flow gaussian_mixture --components 1 --epochs 1 --quiet"
    assert command(f"{fit} --out {tmp_path}/m") == 0
    assert command(f"sample {tmp_path}/m -n 1 --context {tmp_path}/data.npy --out {tmp_path}/s.{ending}") == 0
    means = read_table(tmp_path / f"s.{ending}").values.mean(0)
    np.testing.assert_allclose(means, [0.0, 100.0, 2000.0], atol=1.0)
    capsys.readouterr()
    assert command(f"score {tmp_path}/m {tmp_path}/s.{ending}") == 0
    assert float(re.search(r"mean log_prob: (\S+)\n", capsys.readouterr().out)[1]) > -4.0


def test_a_model_that_was_fitted_in_python_has_contexts_c1_and_so_on(tmp_path):
    mixflow.save(mixflow.flows.coupling(2, 1, context=2, seed=0), tmp_path / "m")
    assert command(f"sample {tmp_path}/m -n 2 --context c2=3,c1=1 --out {tmp_path}/s.csv") == 0
    found = read_table(tmp_path / "s.csv")
    assert found.columns == ["x1", "x2", "c1", "c2"]
    assert found.values[:, 2:].tolist() == [[1.0, 3.0]] * 2
    write_csv(tmp_path / "c.csv", contexts(3), "anything,goes")
    assert command(f"sample {tmp_path}/m -n 2 --context {tmp_path}/c.csv --out {tmp_path}/s.csv") == 0
    assert command(f"score {tmp_path}/m {tmp_path}/s.csv") == 0


def test_missing_contexts_are_left_out(conditional, tmp_path, capsys):
    (tmp_path / "c.csv").write_text("month,height\n1,500\n,500\n3,500\n")
    model = f"{conditional}/weather.safetensors"
    assert command(f"sample {model} -n 2 --context {tmp_path}/c.csv --out {tmp_path}/s.csv") == 2
    assert "c.csv, line 3, column 'month'" in capsys.readouterr().err
    assert command(f"sample {model} -n 2 --context {tmp_path}/c.csv --out {tmp_path}/s.csv --na drop") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/c.csv: without 1 of 3 rows, which lack a value",
        f"saved 4 samples to {tmp_path}/s.csv",
    ]
    assert read_table(tmp_path / "s.csv", ["month"]).values.ravel().tolist() == [1.0, 1.0, 3.0, 3.0]
