"""The command line as a user runs it: a process, files, an exit status and what is said."""

import functools
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import mixflow
from mixflow import cli, transforms
from mixflow.cli import main
from mixflow.tables import iter_table, read_table, write_table


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "mixflow", *map(str, arguments)], cwd=cwd, capture_output=True, text=True
    )


def column(n=300, seed=0):
    generator = np.random.default_rng(seed)
    return np.where(generator.random(n) < 0.4, generator.normal(-3, 0.5, n), generator.normal(2, 1.0, n))


def write_csv(path, values, header="length"):
    path.write_text("\n".join([header, *map(repr, values.tolist())]) + "\n")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with data and a model fitted to them."""
    folder = tmp_path_factory.mktemp("fitted")
    write_csv(folder / "data.csv", column())
    result = run("fit", "data.csv", "--out", "model.safetensors", "--components", 3, "--epochs", 20, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_fit_says_what_it_did(fitted):
    folder, result = fitted
    assert "300 rows of length: History(" in result.stdout
    assert result.stdout.splitlines()[-1] == "saved model.safetensors"
    assert "rows/s" in result.stderr  # the progress bar
    flow = mixflow.load(folder / "model.safetensors")
    assert flow.recipe.arguments["components"] == 3
    assert flow.notes["columns"] == ["length"]


def test_sample_score_and_plot(fitted):
    folder, _ = fitted
    for name in ("samples.csv", "samples.npy", "samples.parquet"):
        result = run("sample", "model.safetensors", "-n", 50, "--out", name, "--seed", 1, cwd=folder)
        assert (result.returncode, result.stderr) == (0, "")
    first, second, third = (read_table(folder / f"samples.{kind}") for kind in ("csv", "npy", "parquet"))
    assert first.columns == third.columns == ["length"]
    assert first.values.shape == (50, 1)
    np.testing.assert_array_equal(first.values.astype(np.float32), second.values.astype(np.float32))
    np.testing.assert_array_equal(second.values, third.values)

    result = run("score", "model.safetensors", "data.csv", "--out", "scores.csv", cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    last = re.fullmatch(r"mean log_prob: (-?\d+\.\d+)", result.stdout.splitlines()[-1])
    scores = read_table(folder / "scores.csv")
    assert scores.columns == ["log_prob"]
    assert scores.values.shape == (300, 1)
    assert float(last[1]) == pytest.approx(scores.values.mean(), abs=1e-5)
    assert -3.0 < float(last[1]) < -1.0

    result = run("plot", "model.safetensors", "data.csv", "--out", "picture.png", cwd=folder)
    assert (result.returncode, result.stderr) == (0, "")
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_data_are_matched_to_the_model_by_column_name(fitted, tmp_path, capsys):
    folder, _ = fitted
    model = str(folder / "model.safetensors")
    values = column(seed=1)
    rows = "\n".join(f"ox,{value!r}" for value in values.tolist())
    (tmp_path / "more.csv").write_text(f"name,length\n{rows}\n")
    np.save(tmp_path / "bare.npy", values)
    write_csv(tmp_path / "other.csv", values, header="weight")
    said = []
    for name in ("more.csv", "bare.npy"):
        assert main(["score", model, str(tmp_path / name)]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["score", model, str(tmp_path / "other.csv")]) == 2
    assert "no column 'length'; the columns are weight" in capsys.readouterr().err


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


def test_a_column_is_chosen_by_name(tmp_path, capsys):
    values = column()
    rows = "\n".join(f"ox,{value!r},{-value!r}" for value in values.tolist())
    (tmp_path / "data.csv").write_text(f"name,x,y\n{rows}\n")
    fit = [
        "fit",
        str(tmp_path / "data.csv"),
        "--out",
        str(tmp_path / "m.safetensors"),
        "--epochs",
        "2",
        "--quiet",
    ]
    assert main([*fit, "--column", "y"]) == 0
    flow = mixflow.load(tmp_path / "m.safetensors")
    assert flow.notes["columns"] == ["y"]
    assert flow.state_dict()["data_to_base.transforms.0.loc"].item() == pytest.approx(-values.mean(), abs=0.2)


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
        assert main([*fit.split(), "--epochs", "2", "--quiet", *options.split()]) == 0
    return folder


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
    assert main(["sample", model, "-n", "20", "--out", f"{tmp_path}/samples.csv"]) == 0
    assert main(["plot", model, data, "--out", f"{tmp_path}/picture.png"]) == 0
    assert main(["score", model, data]) == 0
    assert re.search(r"mean log_prob: -?\d+\.\d+\n$", capsys.readouterr().out)
    samples = read_table(tmp_path / "samples.csv")
    assert (samples.columns, samples.values.shape) == (["length", "mass"], (20, 2))


def test_transport_carries_a_table_from_one_model_to_another_and_back(several, tmp_path, capsys):
    a, b = f"{several}/gaussianization.safetensors", f"{several}/coupling.safetensors"
    assert main(["transport", a, b, f"{several}/data.csv", "--out", f"{tmp_path}/there.csv"]) == 0
    assert main(["transport", b, a, f"{tmp_path}/there.csv", "--out", f"{tmp_path}/back.csv"]) == 0
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
    models = [f"{tmp_path}/{name}.safetensors" for name in "ab"]
    assert main(["transport", *models, f"{several}/data.csv", "--out", f"{tmp_path}/there.npy"]) == 0
    assert np.isfinite(np.load(tmp_path / "there.npy")).all()


def test_transport_between_models_of_different_dtypes(several, tmp_path):
    a, b = f"{several}/gaussianization.safetensors", f"{tmp_path}/double.safetensors"
    mixflow.save(mixflow.load(f"{several}/coupling.safetensors").double(), b)
    assert main(["transport", a, b, f"{several}/data.csv", "--out", f"{tmp_path}/there.npy"]) == 0
    assert np.load(tmp_path / "there.npy").dtype == np.float64


def test_scores_do_not_depend_on_chunks(fitted, tmp_path, capsys, monkeypatch):
    folder, _ = fitted
    said = []
    monkeypatch.setattr(cli, "_BLOCK", 64)
    for rows in (7, 300, 1000):
        monkeypatch.setattr(cli, "iter_table", functools.partial(iter_table, rows=rows))
        out = tmp_path / f"scores{rows}.npy"
        assert main(["score", str(folder / "model.safetensors"), str(folder / "data.csv"), "--out", str(out)]) == 0
        said.append((out.read_bytes(), capsys.readouterr().out.splitlines()[-1]))
    assert said[0] == said[1] == said[2]


def chunks_of(values, size):
    return np.split(values, range(size, len(values), size))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [0, 1, 4095, 4096, 4097, 30_000])
def test_a_sum_is_the_same_to_the_last_bit_for_all_chunks(dtype, n):
    generator = np.random.default_rng(n)
    values = (generator.normal(-3, 1, n) * 10.0 ** generator.integers(-6, 6, n)).astype(dtype)
    sums = [cli._sum(chunks_of(values, size)) for size in (1, 97, 4095, 4096, 4097, 8192, 30_000)]
    sums.append(cli._sum([values[:0], values[:1], values[1:1], values[1:]]))
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

    assert outcome(lambda: cli._sum(chunks_of(values, 7000))) == outcome(lambda: math.fsum(values))


def test_samples_are_drawn_in_chunks(fitted, tmp_path, monkeypatch):
    folder, _ = fitted
    drawn = []
    sample = mixflow.flows.Flow.sample

    def watched(self, n, *args, **options):
        drawn.append(n)
        return sample(self, n, *args, **options)

    monkeypatch.setattr(mixflow.flows.Flow, "sample", watched)
    monkeypatch.setattr(cli, "ROWS", 64)
    command = ["sample", str(folder / "model.safetensors"), "--seed", "3", "--out"]
    for name, count in (("many.csv", 150), ("none.csv", 0)):
        assert main([*command, str(tmp_path / name), "-n", str(count)]) == 0
    assert drawn == [64, 64, 22, 0]
    values = read_table(tmp_path / "many.csv").values
    assert values.shape == (150, 1)
    assert len(np.unique(values)) == 150
    assert (tmp_path / "none.csv").read_text() == "length\n"


# Each command in a process of its own, so that its largest size is the command's.
MEASURE = """
import resource, sys
from mixflow.cli import main
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1))
"""


@pytest.mark.parametrize("ending", ["npy", "parquet", "csv"])
def test_memory_does_not_grow_with_the_file(fitted, tmp_path, ending):
    folder, _ = fitted
    model = str(folder / "model.safetensors")

    def kilobytes(*command):
        result = subprocess.run([sys.executable, "-c", MEASURE, *command], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return int(result.stdout.splitlines()[-1])

    # Of the large table one copy as float64 would be 32 MB (csv: 8), and there used to be several.
    sizes = {"small": 100_000, "large": 1_000_000 if ending == "csv" else 4_000_000}
    scored, sampled = {}, {}
    for name, rows in sizes.items():
        sampled[name] = kilobytes("sample", model, "-n", str(rows), "--seed", "0", "--out", f"{name}.{ending}")
        scored[name] = kilobytes("score", model, f"{name}.{ending}", "--out", f"scores.{ending}")
    allowed = 8 * (sizes["large"] - sizes["small"]) / 1024 / 2
    assert sampled["large"] - sampled["small"] < allowed
    assert scored["large"] - scored["small"] < allowed


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


def test_models_of_every_dtype_can_be_used(fitted, tmp_path, capsys):
    folder, _ = fitted
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model = str(tmp_path / f"{dtype}.safetensors")
        mixflow.save(mixflow.load(folder / "model.safetensors").to(dtype), model)
        assert main(["sample", model, "-n", "5", "--out", str(tmp_path / "samples.csv")]) == 0
        assert main(["score", model, str(folder / "data.csv"), "--out", str(tmp_path / "scores.csv")]) == 0
        assert main(["plot", model, str(folder / "data.csv"), "--out", str(tmp_path / "picture.png")]) == 0
        assert read_table(tmp_path / "samples.csv").values.shape == (5, 1)
        assert -3.0 < read_table(tmp_path / "scores.csv").values.mean() < -1.0
    assert capsys.readouterr().err == ""


def test_info_and_version(tmp_path):
    result = run("info", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert mixflow.__version__ in result.stdout
    assert run("--version", cwd=tmp_path).stdout == f"mixflow {mixflow.__version__}\n"


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


def test_data_of_another_width_than_a_model_without_names_is_refused(tmp_path, capsys):
    mixflow.save(mixflow.flows.univariate(3), tmp_path / "model.safetensors")
    np.save(tmp_path / "data.npy", np.zeros((5, 2)))
    assert main(["score", f"{tmp_path}/model.safetensors", f"{tmp_path}/data.npy"]) == 2
    assert "data.npy: expected 1 column(s), got x1, x2" in capsys.readouterr().err


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, fitted):
    """A folder with every kind of bad input beside a good model and good data."""
    source, _ = fitted
    for name in ("model.safetensors", "data.csv"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n3\n")
    (tmp_path / "word.csv").write_text("length\n1\ntwo\n3\n")
    (tmp_path / "blank.csv").write_text("length,b\n1,2\n,3\n")
    (tmp_path / "nan.csv").write_text("length\n1\nnan\n3\n")
    (tmp_path / "two.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "short.csv").write_text("length\n1\n")
    (tmp_path / "data.txt").write_text("1\n2\n")
    write_csv(tmp_path / "constant.csv", np.full(50, 2.5))
    np.save(tmp_path / "nan.npy", np.array([1.0, np.nan, 3.0]))
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, tmp_path / "future.safetensors", file.metadata() | {"version": "99"})
        save_file(tensors, tmp_path / "foreign.safetensors")
    mixflow.save(mixflow.flows.gaussianization(2, 1), tmp_path / "wide.safetensors")
    mixflow.save(mixflow.flows.gaussian_mixture(2, 1), tmp_path / "mixture.safetensors")
    (tmp_path / "archive.npy").write_bytes(b"PK\x03\x04" + bytes(60))
    for name, shape in (("unbalanced", "(3,"), ("vast", "(99999999999999999999,)}")):
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}".ljust(117) + "\n"
        (tmp_path / f"{name}.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header.encode() + bytes(24))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    return tmp_path


BAD_INPUT = {
    "missing data": ("fit none.csv --out new", "none.csv: no such file"),
    "empty": ("fit empty.csv --out new", "empty.csv: empty"),
    "ragged": ("fit ragged.csv --out new", "ragged.csv, line 3: expected 2 cells"),
    "word": ("fit word.csv --out new", "word.csv, line 3, column 'length': .* got 'two'"),
    "blank cell": ("fit blank.csv --column length --out new", "line 3, column 'length': .*a blank cell"),
    "nan": ("fit nan.csv --out new", "nan.csv, line 3, column 'length': .*got 'nan'"),
    "nan in npy": ("fit nan.npy --out new", "data: expected finite numbers, got nan in row 1, column 0"),
    "constant": (
        "fit constant.csv --out new",
        "expected columns that vary, got the constant 2.5 in column 'length'",
    ),
    "too short": ("fit short.csv --out new", "expected at least 2 rows"),
    "two columns": ("fit two.csv --out new", "expected 1 column for a univariate flow, got a, b; .*--column"),
    "no layers": ("fit data.csv --layers 3 --out new", "--layers: no option of a univariate flow, which takes --comp"),
    "no base": (
        "fit two.csv --flow gaussian_mixture --base normal --out new",
        "--base: no option of a gaussian_mixture flow, which takes --components, --support$",
    ),
    "no hidden layers": (
        "fit two.csv --flow gaussianization --hidden 8 8 --out new",
        "--hidden: no option of a gaussianization flow, which takes --layers, --comp",
    ),
    "no width": ("fit two.csv --flow coupling --hidden 8 0 --out new", "hidden: expected .*got 0"),
    "one column": ("fit data.csv --flow coupling --out new", "features: expected an integer of at least 2, got 1"),
    "endless layers": (f"fit two.csv --flow coupling --layers {10**9} --out new", "layers: .*at most 1000, got"),
    "transport of another kind": (
        "transport model.safetensors model.safetensors data.csv --out new.txt",
        "new.txt: expected a file ending",
    ),
    "transport from nowhere": (
        "transport none.safetensors model.safetensors data.csv --out new.csv",
        "none.safetensors: No such file",
    ),
    "transport to nowhere": (
        "transport model.safetensors model.safetensors data.csv --out none/new.csv",
        "none/new.csv: cannot write",
    ),
    "transport across sizes": (
        "transport model.safetensors wide.safetensors data.csv --out new.csv",
        "target: expected 1 features, as many as source; got 2",
    ),
    "transport of a mixture": (
        "transport mixture.safetensors wide.safetensors two.csv --out new.csv",
        "source: expected a flow with a map to one of normal.*got a GaussianMixture",
    ),
    "no such column": ("fit two.csv --column c --out new", "no column 'c'; the columns are a, b"),
    "unknown kind of data": (
        "fit data.txt --out new",
        "data.txt: expected a file ending in .csv, .csv.gz, .npy, .parquet",
    ),
    "out in no folder": ("fit data.csv --out none/new", "none/new: cannot write here"),
    "out is a folder": ("fit data.csv --out folder", "folder: expected a file, this is a directory"),
    "zero components": ("fit data.csv --components 0 --out new", "components: .*at least 1, got 0"),
    "too many components": (f"fit data.csv --components {10**14} --out new", "can't allocate memory"),
    "endless components": (f"fit data.csv --components {10**20} --out new", f"components: expected .*got {10**20}"),
    "endless seed": (f"fit data.csv --seed {10**23} --out new", f"seed: expected an integer .*got {10**23}"),
    "out is a pipe": ("fit data.csv --out pipe", "pipe: expected a file, this is a device, a pipe or a socket"),
    "archive": ("score model.safetensors archive.npy", "archive.npy: .*not a npy file"),
    "unbalanced header": ("score model.safetensors unbalanced.npy", "unbalanced.npy: .*damaged or not a npy file"),
    "vast shape": ("score model.safetensors vast.npy", "vast.npy: .*damaged or not a npy file"),
    "unusable device": ("fit data.csv --device cuda:99 --out new", "device: expected one that torch can use here"),
    "resume from nowhere": ("fit data.csv --resume --out new", "resume: expected a checkpoint to go on from"),
    "bad validation": ("fit data.csv --validation 2 --out new", "validation: .*got 2.0"),
    "unknown flow": ("fit data.csv --flow round --out new", "argument --flow: invalid choice: 'round'"),
    "unknown family": ("fit data.csv --family round --out new", "argument --family: invalid choice: 'round'"),
    "no number": ("fit data.csv --epochs many --out new", "argument --epochs: invalid int value: 'many'"),
    "no out": ("fit data.csv", "the following arguments are required: --out"),
    "no command": ("", "the following arguments are required: COMMAND"),
    "missing model": ("score none.safetensors data.csv", "none.safetensors: No such file"),
    "truncated model": (
        "score truncated.safetensors data.csv",
        "truncated, damaged or not a safetensors file",
    ),
    "future model": ("sample future.safetensors -n 5 --out new.csv", "expected format version 1 or 2, got '99'"),
    "foreign model": ("plot foreign.safetensors data.csv --out new.png", "expected a mixflow model"),
    "data as model": ("score data.csv data.csv", "truncated, damaged or not a safetensors file"),
    "model as data": ("score model.safetensors model.safetensors", "expected a file ending in"),
    "negative count": (
        "sample model.safetensors -n -5 --out new.csv",
        "n: expected an integer of at least 0, got -5",
    ),
    "too many samples": (
        f"sample model.safetensors -n {10**14} --out new.npy",
        "new.npy: expected room for at least 2e\\+05 GB",
    ),
    "endless samples": (f"sample model.safetensors -n {10**22} --out new.npy", f"n: expected .*got {10**22}"),
    "endless sample seed": (
        f"sample model.safetensors -n 5 --seed {10**23} --out new.npy",
        f"seed: expected an integer .*got {10**23}",
    ),
    "unknown kind of samples": (
        "sample model.safetensors -n 5 --out new.txt",
        "new.txt: expected a file ending",
    ),
    "samples in no folder": (
        "sample model.safetensors -n 5 --out none/new.csv",
        "none/new.csv: cannot write",
    ),
    "scores in no folder": (
        "score model.safetensors data.csv --out none/new.csv",
        "none/new.csv: cannot write",
    ),
    "unknown kind of picture": ("plot model.safetensors data.csv --out new.xyz", "expected an ending among"),
    "picture in no folder": (
        "plot model.safetensors data.csv --out none/new.png",
        "none/new.png: cannot write",
    ),
    "no such case": ("bench --only round", "only: expected a part of the name of a table .* got 'round'"),
    "nothing to time": ("bench --n 0 --out new", "n: expected at least 1; got 0"),
    "no such device": ("bench --device meta", "device: expected cpu or cuda; got meta"),
    "bad data to plot": ("plot model.safetensors word.csv --out new.png", "line 3, column 'length'"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_status_2(folder, capsys, monkeypatch, case):
    command, message = BAD_INPUT[case]
    monkeypatch.chdir(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    try:
        status = main(command.split())
    except SystemExit as exit_:  # how argparse ends
        status = exit_.code
    said = capsys.readouterr()
    assert status == 2
    lines = [line for line in said.err.splitlines() if line.startswith("mixflow")]
    assert said.err.splitlines() == lines, "nothing but the error on stderr"
    assert len(lines) == 1
    assert re.search(f"^mixflow: error: .*{message}", lines[0]), lines[0]
    assert "mean log_prob" not in said.out
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert list((folder / "folder").iterdir()) == []


def test_only_the_first_line_of_a_long_message_is_shown(folder, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(mixflow.flows.Flow, "sample", fail)
    assert main(["sample", str(folder / "model.safetensors"), "-n", "5", "--out", str(folder / "new.npy")]) == 2
    assert capsys.readouterr().err == "mixflow: error: first line\n"


def test_an_unknown_instruction_set_is_one_line_and_status_2(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXFLOW_CPU_CAPABILITY", "sse")
    result = run("info", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch("mixflow: error: .*MIXFLOW_CPU_CAPABILITY.*sse.*\n", result.stderr)


def test_bad_input_in_a_process(folder):
    for case in ("missing data", "constant", "truncated model", "no command"):
        command, message = BAD_INPUT[case]
        result = run(*command.split(), cwd=folder)
        assert result.returncode == 2
        assert re.fullmatch(f"mixflow: error: .*{message}.*\n", result.stderr)
        assert result.stdout == ""


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
    assert (
        main(["fit", str(tmp_path / "counts.npy"), "--out", str(tmp_path / "model.safetensors"), "--epochs", "2"]) == 0
    )
    said = capsys.readouterr().out
    assert "500 rows of x1: History(2 epochs" in said
    assert "- Repeated values: x1. x1 has" in said
    assert 'resolution="auto"' in said
