"""Every bad option, file and value is one line on stderr and exit status 2, and nothing is half written."""

import os
import re

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import mixflow
from commands import command, fitted_in, run, weather_in, write_csv
from mixflow.cli import fit, names, roles, score, source


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return weather_in(fitted_in(tmp_path_factory.mktemp("fitted")))


@pytest.fixture
def folder(tmp_path, fitted):
    """A folder with every kind of bad input beside a good model and good data."""
    for name in ("model.safetensors", "data.csv", "weather.safetensors", "weather.csv"):
        (tmp_path / name).write_bytes((fitted / name).read_bytes())
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
    flow = mixflow.flows.gaussianization(2, 1)
    mixflow.save(flow, tmp_path / "wide.safetensors")
    flow.notes["columns"] = 2
    mixflow.save(flow, tmp_path / "forged.safetensors")
    mixflow.save(mixflow.flows.gaussian_mixture(2, 1), tmp_path / "mixture.safetensors")
    (tmp_path / "archive.npy").write_bytes(b"PK\x03\x04" + bytes(60))
    for name, shape in (("unbalanced", "(3,"), ("vast", "(99999999999999999999,)}")):
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}".ljust(117) + "\n"
        (tmp_path / f"{name}.npy").write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header.encode() + bytes(24))
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "lacking.csv").write_text("length\nNA\nNA\n")
    (tmp_path / "negative.csv").write_text("a,b\n" + "1,1\n2,-1\n3,1\n4,1\n" * 5)
    (tmp_path / "words.csv").write_text("a,b\n1,x\n2,y\n3,x\n")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    return tmp_path


BAD_INPUT = {
    "missing data": ("fit none.csv --out new", "none.csv: no such file"),
    "empty": ("fit empty.csv --out new", "empty.csv: empty"),
    "model over its table": ("fit data.csv --out data.csv", "--out: expected another file than DATA, got 'data.csv'"),
    "checkpoint over the table": (
        "fit data.csv --checkpoint data.csv --out new",
        "--checkpoint: expected another file",
    ),
    "checkpoint and model": (
        "fit data.csv --checkpoint new --out new",
        "--out: expected another file than --checkpoint",
    ),
    "scores over the table": ("score model.safetensors data.csv --out ./data.csv", "--out: expected another file than"),
    "samples over their contexts": (
        "sample weather.safetensors -n 1 --context weather.csv --out weather.csv",
        "--out: expected another file than --context",
    ),
    "two supports": (
        "fit two.csv --support a=positive --support a=0:9 --out new",
        "--support: expected one for each column, got two for 'a'",
    ),
    "ragged": ("fit ragged.csv --out new", "ragged.csv, line 3: expected 2 cells"),
    "word": ("fit word.csv --out new", "word.csv, line 3, column 'length': .* got 'two'"),
    "blank cell": ("fit blank.csv --column length --out new", "line 3, column 'length': .*a blank cell"),
    "nan": ("fit nan.csv --out new", "nan.csv, line 3, column 'length': .*got 'nan'"),
    "nan in npy": ("fit nan.npy --out new", "nan.npy, data row 2, column 'x1': expected a finite number, got nan"),
    "constant": (
        "fit constant.csv --out new",
        "expected columns that vary, got the constant 2.5 in column 'length'",
    ),
    "too short": ("fit short.csv --out new", "expected at least 2 rows"),
    "two columns": (
        "fit two.csv --flow univariate --out new",
        "expected 1 column for a univariate flow, got a, b; .*--column",
    ),
    "no layers": ("fit data.csv --layers 3 --out new", "--layers: no option of a univariate flow, which takes --comp"),
    "no option of the default": (
        "fit two.csv --flow autoregressive --base round --out new",
        "argument --base: invalid choice: 'round'",
    ),
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
        "target: expected 1 features, as many as source, got 2",
    ),
    "transport of a mixture": (
        "transport mixture.safetensors wide.safetensors two.csv --out new.csv",
        "source: expected a flow with a map to one of normal.*got a GaussianMixture",
    ),
    "no such column": ("fit two.csv --column c --out new", "no column 'c'; the columns are a, b"),
    "unknown kind of data": (
        "fit data.txt --out new",
        "data.txt: expected a file ending in .csv, .csv.gz, .tsv, ",
    ),
    "out in no folder": ("fit data.csv --out none/new", "none/new: cannot write here"),
    "out is a folder": ("fit data.csv --out folder", "folder: expected a file, got a directory"),
    "zero components": ("fit data.csv --components 0 --out new", "components: .*at least 1, got 0"),
    "too many components": (f"fit data.csv --components {10**14} --out new", "can't allocate memory"),
    "endless components": (f"fit data.csv --components {10**20} --out new", f"components: expected .*got {10**20}"),
    "endless seed": (f"fit data.csv --seed {10**23} --out new", f"seed: expected an integer .*got {10**23}"),
    "out is a pipe": ("fit data.csv --out pipe", "pipe: expected a file, got a device, a pipe or a socket"),
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
    "nothing to time": ("bench --n 0 --out new", "n: expected at least 1, got 0"),
    "no such device": ("bench --device meta", "device: expected cpu or cuda, got meta"),
    "bad data to plot": ("plot model.safetensors word.csv --out new.png", "line 3, column 'length'"),
    # -- how a table is read
    "a folder as data": ("score model.safetensors folder.csv", "folder.csv: .*(directory|no such file)"),
    "a folder for scores": (
        "score model.safetensors data.csv --out folder.csv",
        "folder.csv: expected a file, got a",
    ),
    "a folder for samples": (
        "sample model.safetensors -n 1 --out folder.csv",
        "folder.csv: expected a file, got a",
    ),
    "a folder as a model": ("score folder data.csv", "folder: "),
    "a separator of two characters": (
        "fit data.csv --sep ;; --out new",
        "argument --sep: expected one .*character.*got ';;'",
    ),
    "an empty separator": ("fit data.csv --sep= --out new", "argument --sep: expected one .*character.*got ''"),
    "no decimal mark": ("score model.safetensors data.csv --decimal ;", "argument --decimal: invalid choice: ';'"),
    "one character for both": ("fit data.csv --sep , --decimal , --out new", "decimal: .*got ','"),
    "unknown care of missing values": ("fit data.csv --na keep --out new", "argument --na: invalid choice: 'keep'"),
    "all rows dropped": ("fit lacking.csv --na drop --out new", "lacking.csv: "),
    # -- columns
    "unknown context": ("fit two.csv --context c --out new", "two.csv: no column 'c'; the columns are a, b"),
    "unknown weight": ("fit two.csv --weight c --out new", "two.csv: no column 'c'; the columns are a, b"),
    "unknown weight of scores": ("score model.safetensors data.csv --weight c", "data.csv: no column 'c'"),
    "a column twice": ("fit two.csv --column a --column a --out new", "--column: expected each .*, got 'a' twice"),
    "a context twice": ("fit two.csv --context a --context a --out new", "--context: expected each .*, got 'a' twice"),
    "column and context": (
        "fit two.csv --column a --context a --out new",
        "--context: expected each column once, got 'a' as --column, too",
    ),
    "context and weight": (
        "fit two.csv --context a --weight a --out new",
        "--weight: expected each column once, got 'a' as --context, too",
    ),
    "all columns as contexts": (
        "fit two.csv --context a --context b --out new",
        "two.csv: expected a column to fit beside --context and --weight, got none",
    ),
    "two names after one option": (
        "fit two.csv --out new --context a b",
        "unrecognized arguments: b; an option that takes several names is repeated: --column a --column b",
    ),
    "an option that there is not": ("fit two.csv --out new --colour a", "unrecognized arguments: --colour a"),
    "negative weights": ("fit negative.csv --weight b --out new", "weights: expected weights of at least 0, got -1.0"),
    "words as context": ("fit words.csv --context b --out new", "words.csv, line 2, column 'b': "),
    "support of a context": (
        "fit weather.csv --context month --support month=1:12 --out new",
        "--support: expected NAME=positive or NAME=LOW:HIGH of a column, got 'month=1:12'",
    ),
    "a model with forged notes": (
        "score forged.safetensors two.csv",
        "notes of the model: expected names of its columns, got 2",
    ),
    # -- going on from a model
    "init of no model": ("fit data.csv --init data.csv --out new", "data.csv: .*not a safetensors file"),
    "init of a missing model": ("fit data.csv --init none --out new", "none: No such file"),
    "init with another table": ("fit two.csv --init model.safetensors --out new", "no column 'length'"),
    "init with a flow": (
        "fit data.csv --init model.safetensors --flow coupling --out new",
        "--flow: no option beside --init, whose model brings it",
    ),
    "init with a weight of the model's": (
        "fit data.csv --init model.safetensors --weight length --out new",
        "--weight: expected a column that the model does not use, got 'length'",
    ),
    # -- contexts to sample at
    "no context": (
        "sample weather.safetensors -n 1 --out new.csv",
        "weather.safetensors: expected --context, as the density depends on month, height, got none",
    ),
    "a context too many": (
        "sample model.safetensors -n 1 --context 1 --out new.csv",
        "--context: expected none, as model.safetensors has no context, got '1'",
    ),
    "too few numbers": ("sample weather.safetensors -n 1 --context 1 --out new.csv", "--context: expected 2 .*got '1'"),
    "too many numbers": (
        "sample weather.safetensors -n 1 --context 1,2,3 --out new.csv",
        "--context: expected 2 number.s. separated by commas, of month, height, or month=1.5,height=1.5, or a table",
    ),
    "a negative number alone": (
        "sample weather.safetensors -n 1 --out new.csv --context -1",
        "--context: expected 2 .*got '-1'",
    ),
    "a word among numbers": (
        "sample weather.safetensors -n 1 --context 1,two --out new.csv",
        "--context: .*got '1,two'",
    ),
    "infinity": ("sample weather.safetensors -n 1 --context 1,inf --out new.csv", "--context: .*got '1,inf'"),
    "a name that is none": (
        "sample weather.safetensors -n 1 --context month=1,depth=2 --out new.csv",
        "--context: .*got 'month=1,depth=2'",
    ),
    "a name too few": ("sample weather.safetensors -n 1 --context month=1 --out new.csv", "--context: .*got 'month=1'"),
    "a name twice": (
        "sample weather.safetensors -n 1 --context month=1,height=2,month=3 --out new.csv",
        "--context: .*got 'month=1,height=2,month=3'",
    ),
    "half named": ("sample weather.safetensors -n 1 --context month=1,2 --out new.csv", "--context: .*got 'month=1,2'"),
    "missing contexts": ("sample weather.safetensors -n 1 --context none.csv --out new.csv", "none.csv: no such file"),
    "a table that lacks a context": (
        "sample weather.safetensors -n 1 --context two.csv --out new.csv",
        "two.csv: no column 'month'; the columns are a, b",
    ),
    "an unknown kind of contexts": (
        "sample weather.safetensors -n 1 --context data.txt --out new.csv",
        "--context: expected 2 .*or a table, got 'data.txt'",
    ),
    "scores without contexts": ("score weather.safetensors two.csv", "two.csv: no column 'temperature'"),
    "transport between contexts": (
        "transport model.safetensors weather.safetensors data.csv --out new.csv",
        "MODEL_B: expected the context of MODEL_A, none, got month, height",
    ),
    "completion of no shell": ("--print-completion fish", "argument --print-completion: invalid choice: 'fish'"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_status_2(folder, capsys, monkeypatch, case):
    text, message = BAD_INPUT[case]
    monkeypatch.chdir(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    status = command(text)
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
    assert command(f"sample {folder}/model.safetensors -n 5 --out {folder}/new.npy") == 2
    assert capsys.readouterr().err == "mixflow: error: first line\n"


def test_an_unknown_instruction_set_is_one_line_and_status_2(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXFLOW_CPU_CAPABILITY", "sse")
    result = run("info", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch("mixflow: error: .*MIXFLOW_CPU_CAPABILITY.*sse.*\n", result.stderr)


def test_bad_input_in_a_process(folder):
    for case in ("missing data", "constant", "truncated model", "no command"):
        text, message = BAD_INPUT[case]
        result = run(*text.split(), cwd=folder)
        assert result.returncode == 2
        assert re.fullmatch(f"mixflow: error: .*{message}.*\n", result.stderr)
        assert "saved" not in result.stdout


@pytest.mark.parametrize("text", ["score model.safetensors data.csv", "fit data.csv --out new --quiet"])
def test_a_file_that_may_not_be_read_is_one_line(folder, capsys, monkeypatch, text):
    # Tests may run as root, to whom every file is open.
    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied", "data.csv")

    monkeypatch.chdir(folder)
    for module in (names, source, fit, roles, score):
        for name in {"columns_of", "iter_table", "map_table", "count_rows"} & set(vars(module)):
            monkeypatch.setattr(module, name, forbidden)
    assert command(text) == 2
    assert capsys.readouterr() == ("", "mixflow: error: data.csv: Permission denied\n")
    assert not (folder / "new").exists()
