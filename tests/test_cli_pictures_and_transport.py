"""``mixflow plot`` and ``mixflow transport`` as a user runs them."""

import re

import numpy as np
import pytest
import torch

import mixflow
from commands import WEATHER, column, command, fitted_in, run, weather, weather_in, write_csv
from mixflow import plot, transforms
from mixflow.files.tables import read_table

FLOWS = {
    "gaussianization": "--layers 2 --components 3 --family logistic --base logistic",
    "coupling": "--layers 2 --hidden 8 8 --components 3",
    "autoregressive": "--layers 1 --hidden 8 --base uniform",
    "gaussian_mixture": "--components 2",
}


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A folder with a table of three columns, one of them words, and a flow of every kind fitted to two."""
    folder = tmp_path_factory.mktemp("several")
    x = np.stack([column(), column(seed=1) ** 2], axis=1)
    rows = "\n".join(f"{a!r},ox,{b!r}" for a, b in x.tolist())
    (folder / "data.csv").write_text(f"length,name,mass\n{rows}\n")
    for flow, options in FLOWS.items():
        fit = f"fit {folder}/data.csv --flow {flow} --out {folder}/{flow}.safetensors --column length --column mass"
        assert command(f"{fit} --epochs 2 --quiet {options}") == 0
    return folder


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return weather_in(tmp_path_factory.mktemp("weather"))


@pytest.mark.parametrize("flow", FLOWS)
def test_every_flow_is_fitted_sampled_scored_and_drawn(several, tmp_path, capsys, flow):
    model, data = f"{several}/{flow}.safetensors", f"{several}/data.csv"
    loaded = mixflow.load(model)
    assert loaded.recipe.name == flow
    assert loaded.recipe.arguments["features"] == 2
    options = dict(re.findall(r"--(\w+) ([\w ]+)", FLOWS[flow]))
    for name, value in options.items():
        given = loaded.recipe.arguments[name]
        assert " ".join(map(str, given if isinstance(given, list) else [given])) == value.strip()
    assert command(f"sample {model} -n 20 --out {tmp_path}/samples.csv") == 0
    assert command(f"plot {model} {data} --out {tmp_path}/picture.png") == 0
    assert command(f"score {model} {data}") == 0
    assert re.search(r"mean log_prob: -?\d+\.\d+\n$", capsys.readouterr().out)
    samples = read_table(tmp_path / "samples.csv")
    assert (samples.columns, samples.values.shape) == (["length", "mass"], (20, 2))


# -- pictures ------------------------------------------------------------------------------------------------


def test_a_picture_is_drawn(tmp_path):
    fitted_in(tmp_path)
    result = run("plot", "model.safetensors", "data.csv", "--out", "picture.png", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "saved picture.png\n", "")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_a_density_with_contexts(conditional, tmp_path, capsys, monkeypatch):
    seen = {}
    summary = plot.summary

    def watched(flow, data, history, context, columns):
        seen.update(data=data, context=context, history=history, columns=columns)
        return summary(flow, data, history, context=context, columns=columns)

    monkeypatch.setattr(plot, "summary", watched)
    order = [2, 0, 3, 1]
    names = WEATHER.split(",")
    write_csv(tmp_path / "data.csv", weather(60)[:, order], ",".join(names[i] for i in order))
    assert command(f"plot {conditional}/weather.safetensors {tmp_path}/data.csv --out {tmp_path}/p.png") == 0
    np.testing.assert_array_equal(np.hstack([seen["data"], seen["context"]]), weather(60))
    assert len(seen["history"].lr) == 30
    assert seen["columns"] is None
    assert (tmp_path / "p.png").stat().st_size > 10_000
    drawn = f"plot {conditional}/weather.safetensors {tmp_path}/data.csv --out {tmp_path}/p.png --column"
    assert command(f"{drawn} rain --column temperature") == 0
    assert seen["columns"] == ["rain", "temperature"]
    capsys.readouterr()
    assert command(f"{drawn} month") == 2
    assert re.fullmatch("mixflow: error: columns: .*got 'month'\n", capsys.readouterr().err)


# -- transport -----------------------------------------------------------------------------------------------


def test_transport_carries_a_table_from_one_model_to_another_and_back(several, tmp_path, capsys):
    a, b = f"{several}/gaussianization.safetensors", f"{several}/coupling.safetensors"
    assert command(f"transport {a} {b} {several}/data.csv --out {tmp_path}/there.csv") == 0
    assert command(f"transport {b} {a} {tmp_path}/there.csv --out {tmp_path}/back.csv") == 0
    assert capsys.readouterr().out.startswith(f"saved 300 rows to {tmp_path}/there.csv\n")
    data = read_table(several / "data.csv", ["length", "mass"]).values
    there, back = (read_table(tmp_path / f"{name}.csv") for name in ("there", "back"))
    assert there.columns == back.columns == ["length", "mass"]
    assert np.abs(there.values - data).max() > 0.01
    np.testing.assert_allclose(back.values, data, rtol=1e-3, atol=1e-3)
    source, target = mixflow.load(a), mixflow.load(b)
    with torch.no_grad():
        expected, _ = mixflow.flows.transport(source, target)(torch.from_numpy(data))
    np.testing.assert_array_equal(there.values.astype(np.float32), expected.float().numpy())


def test_transport_takes_a_model_that_begins_with_a_network(several, tmp_path):
    source = mixflow.flows.Flow(transforms.Inverse(transforms.Autoregressive(2, 2, (4,))))
    for name, flow in (("a", source), ("b", mixflow.flows.gaussianization(2, 1))):
        flow.notes["columns"] = ["length", "mass"]
        mixflow.save(flow, tmp_path / f"{name}.safetensors")
    models = " ".join(f"{tmp_path}/{name}.safetensors" for name in "ab")
    assert command(f"transport {models} {several}/data.csv --out {tmp_path}/there.npy") == 0
    assert np.isfinite(np.load(tmp_path / "there.npy")).all()


def test_transport_between_models_of_different_dtypes(several, tmp_path):
    a, b = f"{several}/gaussianization.safetensors", f"{tmp_path}/double.safetensors"
    mixflow.save(mixflow.load(f"{several}/coupling.safetensors").double(), b)
    assert command(f"transport {a} {b} {several}/data.csv --out {tmp_path}/there.npy") == 0
    assert np.load(tmp_path / "there.npy").dtype == np.float64


def test_transport_given_the_same_contexts(conditional, tmp_path, capsys):
    write_csv(tmp_path / "more.csv", weather(300, seed=5) * [2.0, 1.0, 1.0, 1.0], WEATHER)
    fit = f"fit {tmp_path}/more.csv --context month --context height --flow coupling --layers 1 --epochs 5 --quiet"
    assert command(f"{fit} --out {tmp_path}/b") == 0
    models = f"{conditional}/weather.safetensors {tmp_path}/b"
    assert command(f"transport {models} {conditional}/weather.csv --out {tmp_path}/there.csv") == 0
    found, data = read_table(tmp_path / "there.csv"), weather()
    assert found.columns == WEATHER.split(",")
    np.testing.assert_array_equal(found.values[:, 2:], data[:, 2:])
    source, target = map(mixflow.load, models.split())
    with torch.no_grad():
        x, context = (torch.from_numpy(data[:, part]) for part in (slice(0, 2), slice(2, 4)))
        expected, _ = mixflow.flows.transport(source, target)(x, context)
    np.testing.assert_array_equal(found.values[:, :2].astype(np.float32), expected)
    assert command(f"score {tmp_path}/b {tmp_path}/there.csv") == 0

    other = fit.replace("--context month --context height", "--context height")
    assert command(f"{other} --column rain --column temperature --out {tmp_path}/c") == 0
    capsys.readouterr()
    models = f"{conditional}/weather.safetensors {tmp_path}/c"
    assert command(f"transport {models} {conditional}/weather.csv --out {tmp_path}/new.csv") == 2
    message = "MODEL_B: expected the context of MODEL_A, month, height, got height"
    assert capsys.readouterr().err == f"mixflow: error: {message}\n"


def test_dropped_rows_keep_their_place(tmp_path, capsys):
    # In these models the columns have nothing to do with each other.
    for name in "ab":
        mixflow.save(mixflow.flows.Flow(transforms.MixtureCDF(2, 3)), tmp_path / name)
    (tmp_path / "data.csv").write_text("length,mass\n1,2\n,2\n1,3\n2,\n")
    transport = f"transport {tmp_path}/a {tmp_path}/b {tmp_path}/data.csv --out {tmp_path}/there.npy"
    assert command(transport) == 2
    capsys.readouterr()
    assert command(f"{transport} --na drop") == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/data.csv: without 2 of 4 rows, which lack a value; they are nan in {tmp_path}/there.npy",
        f"saved 4 rows to {tmp_path}/there.npy",
    ]
    assert np.isnan(np.load(tmp_path / "there.npy")).tolist() == [[False] * 2, [True] * 2] * 2


def test_transport_counts_the_rows_of_density_zero(tmp_path, capsys):
    for name in "ab":
        mixflow.save(mixflow.flows.univariate(2, support="positive"), tmp_path / name)
    (tmp_path / "data.csv").write_text("x\n1.5\n-2\n0.5\n")
    assert command(f"transport {tmp_path}/a {tmp_path}/b {tmp_path}/data.csv --out {tmp_path}/out.npy") == 0
    assert f"1 of 3 rows have density zero; they are nan in {tmp_path}/out.npy" in capsys.readouterr().out
    assert np.isnan(np.load(tmp_path / "out.npy")).ravel().tolist() == [False, True, False]
