"""``mixflow score`` as a user runs it: columns by name, weights, odd rows, sums, memory."""

import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

import mixflow
from commands import WEATHER, column, command, fitted_in, run, weather, weather_in, write_csv
from mixflow.cli import sample, source, sums
from mixflow.cli.sums import Sum
from mixflow.files.tables import read_table


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return fitted_in(tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return weather_in(tmp_path_factory.mktemp("weather"))


def mean_of(said):
    return float(re.fullmatch(r"mean log_prob: (-?\d+\.\d+|-inf)", said.splitlines()[-1])[1])


def test_the_mean_is_the_last_line_and_each_row_has_its_score(fitted, tmp_path):
    result = run("score", fitted / "model.safetensors", fitted / "data.csv", "--out", "scores.csv", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    scores = read_table(tmp_path / "scores.csv")
    assert scores.columns == ["log_prob"]
    assert scores.values.shape == (300, 1)
    assert mean_of(result.stdout) == pytest.approx(scores.values.mean(), abs=1e-5)
    assert -3.0 < mean_of(result.stdout) < -1.0


# -- columns by name -----------------------------------------------------------------------------------------


def test_data_are_matched_to_the_model_by_column_name(fitted, tmp_path, capsys):
    values = column(seed=1)
    rows = "\n".join(f"ox,{value!r}" for value in values.tolist())
    (tmp_path / "more.csv").write_text(f"name,length\n{rows}\n")
    np.save(tmp_path / "bare.npy", values)
    write_csv(tmp_path / "other.csv", values, header="weight")
    said = []
    for name in ("more.csv", "bare.npy"):
        assert command(f"score {fitted}/model.safetensors {tmp_path}/{name}") == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert command(f"score {fitted}/model.safetensors {tmp_path}/other.csv") == 2
    assert "no column 'length'; the columns are weight" in capsys.readouterr().err


def test_contexts_are_matched_by_name_too(conditional, tmp_path, capsys):
    table = weather(50, seed=3)
    names = WEATHER.split(",")
    order = [3, 0, 2, 1]
    write_csv(tmp_path / "shuffled.csv", table[:, order], ",".join(names[i] for i in order))
    np.save(tmp_path / "columns then contexts.npy", table)
    flow = mixflow.load(conditional / "weather.safetensors")
    with torch.no_grad():
        expected = flow.log_prob(torch.from_numpy(table[:, :2]), torch.from_numpy(table[:, 2:])).double().mean().item()
    for name in ("shuffled.csv", "columns then contexts.npy"):
        assert command(f"score {conditional}/weather.safetensors", tmp_path / name) == 0
        assert mean_of(capsys.readouterr().out) == pytest.approx(expected, abs=1e-5)
    write_csv(tmp_path / "lacking.csv", table[:, :3], "temperature,rain,month")
    assert command(f"score {conditional}/weather.safetensors {tmp_path}/lacking.csv") == 2
    assert "no column 'height'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "wide"),
    [("--context x1", 3), ("--context x2", 3), ("--context x1 --weight x2", 3), ("--column x3 --context x1", 4)],
)
def test_files_without_names_are_the_whole_file_or_columns_then_contexts(tmp_path, capsys, options, wide):
    # Columns far from each other: taken for another one, none has any density.
    table = np.abs(np.random.default_rng(0).normal(1000.0 * np.arange(1, wide + 1), 1.0, (60, wide)))
    np.save(tmp_path / "data.npy", table)
    fit = f"fit {tmp_path}/data.npy {options} --components 1 --epochs 1 --quiet --out {tmp_path}/m"
    assert command(f"{fit} --flow gaussian_mixture") == 0
    notes = mixflow.load(tmp_path / "m").notes
    positions = [int(name[1:]) - 1 for name in notes["columns"] + notes["context"]]
    files = {"data.npy": table}
    if set(positions) != set(range(wide)):
        files["part.npy"] = table[:, positions]
    for name, values in files.items():
        np.save(tmp_path / name, values)
        assert command(f"score {tmp_path}/m {tmp_path}/{name}") == 0
        assert mean_of(capsys.readouterr().out) > -5.0
    np.save(tmp_path / "wrong.npy", table[:, :1])
    assert command(f"score {tmp_path}/m {tmp_path}/wrong.npy") == 2
    assert re.search("no column 'x[123]'; the columns are x1", capsys.readouterr().err)


def test_a_file_without_names_that_holds_some_of_the_typed_ones_is_refused(tmp_path, capsys):
    np.save(tmp_path / "data.npy", weather(60)[:, :2])
    assert command(f"fit {tmp_path}/data.npy --column x2 --context x9 --out {tmp_path}/m --flow univariate") == 2
    assert capsys.readouterr().err == f"mixflow: error: {tmp_path}/data.npy: no column 'x9'; the columns are x1, x2\n"


def test_data_of_another_width_than_a_model_without_names_is_refused(tmp_path, capsys):
    mixflow.save(mixflow.flows.univariate(3), tmp_path / "model.safetensors")
    np.save(tmp_path / "data.npy", np.zeros((5, 2)))
    assert command(f"score {tmp_path}/model.safetensors {tmp_path}/data.npy") == 2
    assert "data.npy: expected 1 column(s), got x1, x2" in capsys.readouterr().err


# -- weights -------------------------------------------------------------------------------------------------


def test_weights_count_where_they_are_asked_for(fitted, tmp_path, capsys):
    values, weights = column(200, seed=2), np.arange(200) % 3.0
    write_csv(tmp_path / "data.csv", np.stack([values, weights], axis=1), "length,often")
    score = f"score {fitted}/model.safetensors {tmp_path}/data.csv --out {tmp_path}/s.csv"
    assert command(score) == 0
    scores = read_table(tmp_path / "s.csv").values[:, 0]
    assert mean_of(capsys.readouterr().out) == pytest.approx(scores.mean(), abs=1e-6)
    assert command(f"{score} --weight often") == 0
    assert mean_of(capsys.readouterr().out) == pytest.approx(np.average(scores, weights=weights), abs=1e-6)
    np.testing.assert_array_equal(read_table(tmp_path / "s.csv").values[:, 0], scores)


def test_the_weight_of_a_model_does_not_count_by_itself(tmp_path, capsys):
    table = np.stack([column(100), np.arange(100) % 4.0], axis=1)
    write_csv(tmp_path / "data.csv", table, "length,often")
    assert command(f"fit {tmp_path}/data.csv --weight often --epochs 1 --quiet --out {tmp_path}/m") == 0
    capsys.readouterr()
    means = []
    for option in ("", "--weight often"):
        assert command(f"score {tmp_path}/m {tmp_path}/data.csv --out {tmp_path}/s.csv {option}") == 0
        means.append(mean_of(capsys.readouterr().out))
    assert means[0] == pytest.approx(read_table(tmp_path / "s.csv").values.mean(), abs=1e-6)
    assert abs(means[1] - means[0]) > 1e-3


def test_a_model_without_names_takes_all_columns_but_the_weight(tmp_path, capsys):
    mixflow.save(mixflow.flows.gaussian_mixture(1, context=1), tmp_path / "m")
    write_csv(tmp_path / "data.csv", weather(20)[:, :3], "a,often,b")
    write_csv(tmp_path / "bare.csv", weather(20)[:, [0, 2]], "a,b")
    means = []
    for text in ("data.csv --weight often", "bare.csv"):
        assert command(f"score {tmp_path}/m {tmp_path}/{text} --out {tmp_path}/{len(means)}.npy") == 0
        means.append(np.load(tmp_path / f"{len(means)}.npy"))
    np.testing.assert_array_equal(*means)
    assert command(f"score {tmp_path}/m {tmp_path}/data.csv") == 2
    assert "data.csv: expected 2 column(s), got a, often, b" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -2.0, 1.0], "--weight: expected weights of at least 0, got -2 in row 2"),
        ([0.0, 0.0, 0.0], "--weight: expected a positive weight in 'often', got zeros alone"),
    ],
)
def test_weights_that_are_none_are_refused(fitted, tmp_path, capsys, weights, message):
    write_csv(tmp_path / "data.csv", np.stack([column(3), weights], axis=1), "length,often")
    score = f"score {fitted}/model.safetensors {tmp_path}/data.csv --weight"
    assert command(f"{score} often --out {tmp_path}/s.csv") == 2
    assert capsys.readouterr().err == f"mixflow: error: {message}\n"
    assert not (tmp_path / "s.csv").exists()
    assert command(f"{score} length") == 2
    assert "--weight: expected a column that the model does not use, got 'length'" in capsys.readouterr().err


# -- rows of density zero, rows without a score --------------------------------------------------------------


@pytest.fixture(scope="module")
def positive(tmp_path_factory):
    """A model whose density is zero for amounts that are not positive."""
    folder = tmp_path_factory.mktemp("positive")
    flow = mixflow.flows.univariate(2, support="positive")
    flow.initialize(torch.linspace(0.5, 3.0, 50))
    flow.notes["columns"] = ["amount"]
    mixflow.save(flow, folder / "m")
    return folder / "m"


def scored(model, path, capsys, *options):
    status = command(f"score {model} {path}", *options)
    return status, capsys.readouterr()


def test_rows_of_density_zero_are_counted_and_shown(positive, tmp_path, capsys, monkeypatch):
    amounts = np.full(500, 1.5)
    amounts[[11, 250, 499]] = -2.5, 0.0, -1.0
    write_csv(tmp_path / "data.csv", amounts, "amount")
    inside = mixflow.load(positive).log_prob(torch.tensor([[1.5]], dtype=torch.float64)).item()
    for rows in (7, 1000):
        monkeypatch.setattr(source, "PART", rows)
        status, said = scored(positive, tmp_path / "data.csv", capsys, "--out", tmp_path / "s.npy")
        assert (status, said.err) == (0, "")
        assert said.out.splitlines()[1:] == [
            f"log_prob is -inf in 3 of 500 rows, first in row 12: amount=-2.5; mean of the others: {inside:.6f}",
            "mean log_prob: -inf",
        ]
        assert np.flatnonzero(np.isneginf(np.load(tmp_path / "s.npy"))).tolist() == [11, 250, 499]


def test_rows_that_all_have_density_zero(positive, tmp_path, capsys):
    write_csv(tmp_path / "data.csv", np.full(4, -1.0), "amount")
    status, said = scored(positive, tmp_path / "data.csv", capsys)
    assert status == 0
    assert said.out == "log_prob is -inf in 4 of 4 rows, first in row 1: amount=-1\nmean log_prob: -inf\n"


def test_a_row_of_density_zero_and_weight_zero_counts_nothing(positive, tmp_path, capsys):
    write_csv(tmp_path / "data.csv", np.array([[-1.0, 0.0], [1.5, 2.0], [1.5, 1.0]]), "amount,w")
    status, said = scored(positive, tmp_path / "data.csv", capsys, "--weight", "w")
    assert status == 0
    assert math.isfinite(mean_of(said.out))


def test_a_score_that_is_no_number_is_an_error(fitted, tmp_path, capsys, monkeypatch):
    log_prob = mixflow.flows.Flow.log_prob

    def broken(self, x, context=None):
        return log_prob(self, x, context).masked_fill(x[:, 0] > 3.0, math.nan)

    monkeypatch.setattr(mixflow.flows.Flow, "log_prob", broken)
    write_csv(tmp_path / "data.csv", np.array([1.0, 4.0, 2.0, 5.0]))
    status, said = scored(fitted / "model.safetensors", tmp_path / "data.csv", capsys, "--out", tmp_path / "s.csv")
    assert status == 2
    message = f"{tmp_path}/data.csv: log_prob is nan in 2 of 4 rows, first in row 2: length=4"
    assert said == ("", f"mixflow: error: {message}\n")
    assert not (tmp_path / "s.csv").exists()


def test_dropped_rows_keep_their_place(conditional, tmp_path, capsys):
    table = weather(5)
    cells = [[repr(value) for value in row] for row in table.tolist()]
    cells[1][0], cells[3][3] = "", "NA"  # of a column, and of a context
    (tmp_path / "data.csv").write_text("\n".join([WEATHER, *map(",".join, cells)]) + "\n")
    model, path = conditional / "weather.safetensors", tmp_path / "data.csv"
    status, said = scored(model, path, capsys, "--out", tmp_path / "s.npy")
    assert (status, said.out) == (2, "")
    status, said = scored(model, path, capsys, "--out", tmp_path / "s.npy", "--na", "drop")
    assert status == 0
    assert said.out.splitlines()[:-1] == [
        f"{path}: without 2 of 5 rows, which lack a value; they are nan in {tmp_path}/s.npy",
        f"saved 5 values to {tmp_path}/s.npy",
    ]
    scores = np.load(tmp_path / "s.npy")[:, 0]
    assert np.flatnonzero(np.isnan(scores)).tolist() == [1, 3]
    assert mean_of(said.out) == pytest.approx(np.nanmean(scores), abs=1e-5)
    (tmp_path / "data.csv").write_text(f"{WEATHER},w\n1,1,2,300,\n1,1,2,300,1\n")  # the weight alone is missing
    status, said = scored(model, path, capsys, "--out", tmp_path / "s.npy", "--na", "drop", "--weight", "w")
    assert "without 1 of 2 rows" in said.out
    assert np.isnan(np.load(tmp_path / "s.npy")[:, 0]).tolist() == [True, False]
    (tmp_path / "data.csv").write_text(f"{WEATHER}\n,1,2,3\n")
    status, said = scored(model, path, capsys, "--na", "drop")
    assert (status, said.err) == (2, f"mixflow: error: {path}: expected a row without a missing value, got none\n")


# -- sums ----------------------------------------------------------------------------------------------------


def test_scores_do_not_depend_on_chunks(fitted, tmp_path, capsys, monkeypatch):
    said = []
    monkeypatch.setattr(sums, "_BLOCK", 64)
    np.save(tmp_path / "data.npy", column())
    for rows in (7, 300, 1000):
        monkeypatch.setattr(source, "PART", rows)
        out = tmp_path / f"scores{rows}.npy"
        assert command(f"score {fitted}/model.safetensors {tmp_path}/data.npy --out {out}") == 0
        said.append((out.read_bytes(), capsys.readouterr().out.splitlines()[-1]))
    assert said[0] == said[1] == said[2]


def total_of(chunks):
    total = Sum()
    for chunk in chunks:
        total.add(chunk)
    return total.value()


def chunks_of(values, size):
    return np.split(values, range(size, len(values), size))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 4095, 4096, 4097, 30_000])
def test_a_sum_is_the_same_to_the_last_bit_for_all_chunks(dtype, n):
    generator = np.random.default_rng(n)
    values = (generator.normal(-3, 1, n) * 10.0 ** generator.integers(-6, 6, n)).astype(dtype)
    sums = [total_of(chunks_of(values, size)) for size in (1, 97, 4095, 4096, 4097, 8192, 30_000)]
    sums.append(total_of([values[:0], values[:1], values[1:1], values[1:]]))
    assert len(set(sums)) == 1
    # Each number of a block is rounded at most 24 times: numpy adds 128 of them in 8 sums of 16 (15), adds these in
    # pairs (3), and so the 32 sums of 128 (5); the sums of blocks are added exactly, and the last is rounded once.
    assert abs(sums[0] - math.fsum(values)) <= 24 * 2.0**-53 * math.fsum(np.abs(values))


ODD_SUMS = {
    "nan": [math.nan],
    "nothing": [-math.inf, -math.inf],
    "nan and nothing": [-math.inf, math.nan],
    "both infinities": [math.inf, -math.inf],
    "overflow": [-1.7e308, -1.7e308],
    "overflow on the way": [-1.7e308, -1.7e308, 1.7e308],
}


@pytest.mark.parametrize("case", ODD_SUMS)
@pytest.mark.parametrize("apart", [1, 5000])
def test_sums_that_are_not_finite_are_those_of_fsum(case, apart):
    values = np.zeros(20_000)
    values[: apart * len(ODD_SUMS[case]) : apart] = ODD_SUMS[case]

    def outcome(total):
        try:
            return repr(total())
        except (ValueError, OverflowError) as error:
            return repr(error)

    assert outcome(lambda: total_of(chunks_of(values, 7000))) == outcome(lambda: math.fsum(values))


def test_a_model_without_names_finds_the_names_that_sample_writes(tmp_path, capsys):
    flow = mixflow.flows.autoregressive(2, context=1, layers=1, seed=0)
    mixflow.save(flow, tmp_path / "m")
    values = np.random.default_rng(0).normal(size=(9, 3))
    write_csv(tmp_path / "straight.csv", values, "x1,x2,c1")
    write_csv(tmp_path / "turned.csv", values[:, [2, 1, 0]], "c1,x2,x1")
    said = []
    for name in ("straight", "turned"):
        assert command(f"score {tmp_path}/m {tmp_path}/{name}.csv") == 0
        said.append(capsys.readouterr().out.splitlines()[-1])
    assert said[0] == said[1]


def test_a_name_that_stdout_cannot_show_ends_no_command(tmp_path):
    mixflow.save(mixflow.flows.univariate(2), tmp_path / "m")
    (tmp_path / "n\u00f6.csv").write_text("1.5;2\n0.5;3\n")
    arguments = ["-m", "mixflow", "score", "m", "n\u00f6.csv", "--sep", ","]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    (tmp_path / "n\u00f6.csv").write_text("1.5\n0.5\n")
    result = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("n\\xf6.csv: no header")
    assert result.stdout.splitlines()[-1].startswith("mean log_prob: ")


def test_a_reader_of_stdout_that_goes_away_is_no_error(tmp_path):
    arguments = [sys.executable, "-m", "mixflow", "info"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_scores_and_samples_do_not_depend_on_threads(tmp_path, monkeypatch):
    mixflow.save(mixflow.flows.coupling(2, layers=2, seed=0), tmp_path / "m")
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=(500, 2)))
    for module in (source, sample):
        monkeypatch.setattr(module, "PART", 64)
    written, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert command(f"score {tmp_path}/m {tmp_path}/data.npy --out {tmp_path}/scores.npy") == 0
            assert command(f"sample {tmp_path}/m -n 500 --seed 3 --out {tmp_path}/samples.npy") == 0
            assert torch.get_num_threads() == threads
            written.append([(tmp_path / name).read_bytes() for name in ("scores.npy", "samples.npy")])
    finally:
        torch.set_num_threads(before)
    assert written[0] == written[1] == written[2]
    flow = mixflow.load(tmp_path / "m")
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy")[:64], flow.sample(64, seed=3).numpy())
    with torch.no_grad():
        expected = flow.log_prob(torch.from_numpy(np.load(tmp_path / "data.npy"))).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy")[:, 0], expected, rtol=1e-5)
