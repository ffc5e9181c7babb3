"""Faults that happen to files, disks and processes: each ends in a clear error and leaves whole files, old or new."""

import contextlib
import gzip
import importlib
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import mixflow
from mixflow.cli import main
from mixflow.files import tables, tensor_file
from mixflow.files.tables import TableError, iter_table, read_table

limits_memory = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs limits that count what is used")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with a table of one column and a model of it."""
    folder = tmp_path_factory.mktemp("fitted")
    x = np.random.default_rng(0).normal(size=3000)
    np.save(folder / "data.npy", x)
    flow = mixflow.flows.univariate(components=3)
    mixflow.fit(flow, x, epochs=2, progress=False)
    mixflow.save(flow, folder / "model.safetensors")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# -- the disk is full ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def file_size_limit(size):
    """No file may grow beyond ``size`` bytes; Python ignores the signal and sees the error of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {
    "fit": "fit {data} --quiet --epochs 2 --out {out}",
    "fit's checkpoint": "fit {data} --quiet --epochs 2 --out {folder}/model --checkpoint {out}",
    "sample csv": "sample {model} -n 3000 --out {out}.csv",
    "sample csv.gz": "sample {model} -n 3000 --out {out}.csv.gz",
    "sample npy": "sample {model} -n 3000 --out {out}.npy",
    "sample parquet": "sample {model} -n 3000 --out {out}.parquet",
    "score csv": "score {model} {data} --out {out}.csv",
    "score npy": "score {model} {data} --out {out}.npy",
    "transport": "transport {model} {model} {data} --out {out}.csv",
    "plot": "plot {model} {data} --out {out}.png",
}


@pytest.mark.parametrize("old", [None, b"what was there before"])
@pytest.mark.parametrize("case", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_the_old_file(fitted, tmp_path, capsys, case, old):
    ending = re.search(r"\{out\}(\S*)", WRITERS[case])[1]
    out = tmp_path / f"out{ending}"
    if old is not None:
        out.write_bytes(old)
    places = {"data": fitted / "data.npy", "model": fitted / "model.safetensors", "folder": tmp_path}
    with file_size_limit(1000):
        status = main(WRITERS[case].format(out=tmp_path / "out", **places).split())
    said = capsys.readouterr().err.splitlines()
    assert status == 2
    assert said == [f"mixflow: error: {out}: File too large"]
    assert names(tmp_path) == ([] if old is None else [out.name])
    assert old is None or out.read_bytes() == old


def test_no_room_for_the_temporary_copy_of_a_csv_file(tmp_path, capsys):
    (tmp_path / "data.csv").write_text("x\n" + "1.5\n2.5\n" * 500)
    with file_size_limit(1000):
        assert main(["fit", f"{tmp_path}/data.csv", "--out", f"{tmp_path}/model"]) == 2
    assert re.fullmatch(r"mixflow: error: .*data\.csv: no room .*TMPDIR.*\n", capsys.readouterr().err)
    assert names(tmp_path) == ["data.csv"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize("case", WRITERS)
def test_a_folder_that_cannot_be_written_to_is_said_at_once(fitted, tmp_path, capsys, monkeypatch, case):
    def not_reached(*_, **__):
        raise AssertionError("the work was begun")

    if case != "fit's checkpoint":  # which fit itself opens
        for command in ("fit_flow", "sample", "score", "transport", "plot"):
            module = importlib.import_module(f"mixflow.cli.{command}")
            monkeypatch.setattr(module, "load", not_reached)
        monkeypatch.setattr(importlib.import_module("mixflow.cli.fit"), "fit", not_reached)
    places = {"data": fitted / "data.npy", "model": fitted / "model.safetensors", "folder": tmp_path}
    assert main(WRITERS[case].format(out="/proc/out", **places).split()) == 2
    assert re.fullmatch(r"mixflow: error: (checkpoint: )?/proc/out\S*: cannot write here .*\n", capsys.readouterr().err)
    assert names(tmp_path) == []


# -- the process is killed -----------------------------------------------------------------------------------

SAVE_FOREVER = """
import itertools, mixflow
flow = mixflow.flows.coupling(4, layers=4, hidden=(200, 200))
for number in itertools.count():
    flow.notes["number"] = number
    mixflow.save(flow, "model")
    print(number, flush=True)
"""


@pytest.mark.parametrize(
    "kills", [pytest.param(2, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.release)]
)
def test_a_save_killed_at_any_moment_leaves_a_whole_model(tmp_path, kills):
    wait = random.Random(0)
    for _ in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE_FOREVER], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )
        first = int(process.stdout.readline())
        time.sleep(wait.uniform(0.0, 0.3))
        process.kill()
        saved = [first, *map(int, re.findall(r"^\d+$", process.communicate()[0], re.MULTILINE))]
        assert mixflow.load(tmp_path / "model").notes["number"] in (saved[-1], saved[-1] + 1)


@pytest.mark.parametrize("command", ["score", "sample"])
@pytest.mark.parametrize("ending", ["csv", "npy"])
@pytest.mark.slow
def test_a_command_killed_while_it_writes_leaves_the_old_file(fitted, tmp_path, command, ending):
    out = tmp_path / f"out.{ending}"
    out.write_bytes(b"old")
    np.save(tmp_path / "data.npy", np.random.default_rng(0).normal(size=3_000_000))
    source = [str(tmp_path / "data.npy")] if command == "score" else ["-n", "3000000"]
    arguments = [command, str(fitted / "model.safetensors"), *source, "--out", str(out)]
    with subprocess.Popen([sys.executable, "-m", "mixflow", *arguments], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 100
        while not (half := half_written(tmp_path)):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert out.read_bytes() == b"old"
    assert half.exists(), "it was killed in the middle"


def half_written(folder):
    """The temporary file once there is something in it: another, empty one comes and goes at the start."""
    for path in folder.glob(".mixflow.*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > 1000:
                return path
    return None


# -- damaged and hostile files -------------------------------------------------------------------------------

# In a process of its own, in which nothing large can be allocated and nothing can be executed.
MUTATE = """
import random, resource, sys
from pathlib import Path
import torch, mixflow

torch.set_num_threads(1)
folder, count = Path(sys.argv[1]), int(sys.argv[2])
x = torch.linspace(-2, 2, 200)


def fit(flow, **options):
    return mixflow.fit(flow, x, epochs=1, progress=False, checkpoint=folder / "file", resume=True)


def load_model():
    return mixflow.load(folder / "file").state_dict()


def load_checkpoint():
    flow = mixflow.flows.univariate(components=3)
    fit(flow)
    return flow.state_dict()


def mutated(whole, random):
    data = bytearray(whole)
    header = 8 + int.from_bytes(whole[:8], "little")
    place = random.randrange(header if random.random() < 0.7 else len(data))
    kind = random.randrange(7)
    if kind == 0:
        del data[place:]
    elif kind == 1:
        data[place] ^= 1 << random.randrange(8)
    elif kind == 2:
        data[place : place + 8] = random.randbytes(8)
    elif kind == 3:
        data[:8] = random.choice([0, 1, 2**20, 2**31, 2**40, 2**63, 2**64 - 1]).to_bytes(8, "little")
    elif kind == 4:
        data[place:place] = random.randbytes(random.randrange(1, 100))
    elif kind == 5:
        digits = [i for i in range(8, header) if 48 <= data[i] < 58]
        place = random.choice(digits)
        data[place : place + 1] = str(random.choice([-1, 0, 2**31, 2**62, 10**40])).encode()
    else:
        end = min(len(data), place + random.randrange(1, 200))
        data[place:place] = data[place:end]
    return bytes(data)


flow = mixflow.flows.univariate(components=3)
mixflow.save(flow, folder / "file")
model = (folder / "file").read_bytes(), load_model
(folder / "file").unlink()
load_checkpoint()
checkpoint = (folder / "file").read_bytes(), load_checkpoint
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
watching = False


def watch(event, arguments):
    forbidden = ("os.system", "os.exec", "os.fork", "subprocess.Popen", "pickle.find_class", "exec", "socket.connect")
    if watching and event in forbidden:
        raise SystemExit(f"{event} {arguments}")


sys.addaudithook(watch)
refused = same = 0
for number in range(count):
    whole, load = (model, checkpoint)[number % 2]
    (folder / "file").write_bytes(whole)
    expected = load()
    (folder / "file").write_bytes(mutated(whole, random.Random(number)))
    watching = True
    try:
        loaded = load()
    except ValueError as error:
        assert str(error).startswith((str(folder), "checkpoint: ")), (number, error)
        assert len(str(error)) < 1000, (number, error)
        refused += 1
    except BaseException as error:
        raise SystemExit(f"mutation {number}: {error!r}")
    else:
        assert all(torch.equal(loaded[name], value) for name, value in expected.items()), number
        same += 1
    watching = False
print(refused, same)
"""


@limits_memory
@pytest.mark.parametrize(
    "count", [pytest.param(100, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.release)]
)
def test_mutated_models_and_checkpoints_are_refused_or_harmless(tmp_path, count):
    run = subprocess.run([sys.executable, "-c", MUTATE, tmp_path, str(count)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    refused, same = map(int, run.stdout.split())
    assert refused + same == count
    assert refused > 0.8 * count


def checkpoint_of(path, data):
    mixflow.fit(mixflow.flows.univariate(components=3), data, epochs=1, progress=False, checkpoint=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda metadata, tensors: metadata.update(settings="[1, 2]"), "settings or history cannot be read"),
        (lambda metadata, tensors: metadata.update(settings="[" * 100_000), "settings or history cannot be read"),
        (lambda metadata, tensors: metadata.update(history="{}"), "settings or history cannot be read"),
        (lambda metadata, tensors: metadata.pop("history"), "settings or history cannot be read"),
        (lambda metadata, tensors: metadata.update(settings="{}"), "a run with epochs = None, this run has epochs = 1"),
        (lambda metadata, tensors: tensors.update({"optimizer.x.step": torch.zeros(())}), "optimizer.x.step"),
        (lambda metadata, tensors: tensors.pop("optimizer.0.exp_avg"), "optimizer.0.exp_avg: expected shape"),
        (lambda metadata, tensors: tensors.update({"other": torch.zeros(3)}), "other: expected shape none, got"),
    ],
)
def test_forged_checkpoints_with_a_checksum_are_refused(tmp_path, change, message):
    path, data = tmp_path / "checkpoint", torch.linspace(-2, 2, 100)
    checkpoint_of(path, data)
    metadata, tensors = tensor_file.read(path)
    change(metadata, tensors)
    tensor_file.write(path, metadata, tensors)
    flow = mixflow.flows.univariate(components=3)
    with pytest.raises(ValueError, match=f"^checkpoint: .*{re.escape(message)}"):
        mixflow.fit(flow, data, epochs=1, progress=False, checkpoint=path, resume=True)


def test_every_flipped_bit_of_a_checkpoint_s_numbers_is_noticed(tmp_path):
    path, data = tmp_path / "checkpoint", torch.linspace(-2, 2, 100)
    checkpoint_of(path, data)
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in range(start, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged, its contents do not match its checksum"):
            mixflow.fit(mixflow.flows.univariate(3), data, epochs=1, progress=False, checkpoint=path, resume=True)


# -- csv files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [10_000, pytest.param(1_000_000, marks=pytest.mark.release)])
@pytest.mark.parametrize(
    ("name", "start", "cell", "end"),
    [
        ("long.csv", "\ufeff", '"{}"', "\r\n"),
        ("long.csv", "", "{}", "\n"),
        ("long.csv", "", '"{}"', "\r"),
        ("LONG.CSV.GZ", "\ufeff", '"{}"', "\r\n"),
    ],
    ids=["byte-order mark, quotes, CRLF", "plain", "quotes, CR", "gzip, byte-order mark, quotes, CRLF"],
)
def test_long_csv_files_of_every_dialect(tmp_path, rows, name, start, cell, end):
    opener = gzip.open if name.endswith("GZ") else open
    with opener(tmp_path / name, "wt", encoding="utf-8", newline="") as file:
        file.write(start + cell.format("a") + "," + cell.format("b") + end)
        file.writelines(cell.format(i) + "," + cell.format(-i / 4) + end for i in range(rows))
    count, total = 0, np.zeros(2)
    for table in iter_table(tmp_path / name):
        assert table.columns == ["a", "b"]
        count += len(table.values)
        total += table.values.sum(axis=0)
    assert count == rows
    assert total.tolist() == [rows * (rows - 1) / 2, -rows * (rows - 1) / 8]


@pytest.mark.parametrize("name", ["data.npy.gz", "data.csv", "data.npy"])
def test_compressed_files_are_refused_by_name_and_by_content(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"a\n1\n2\n"))
    expected = {
        "data.npy.gz": "expected a file ending in .csv, .csv.gz, .tsv, .tsv.gz, .npy, .parquet, got '.gz'",
        "data.csv": "expected text, got a file packed by gzip",
        "data.npy": "not a npy file",
    }
    with pytest.raises(TableError, match=expected[name]):
        read_table(tmp_path / name)


def test_damaged_gzip_files_are_refused(tmp_path):
    path = tmp_path / "data.csv.gz"
    whole = gzip.compress(b"a\n" + b"1\n" * 1000)
    flipped = bytes(byte ^ (1 if place == len(whole) - 6 else 0) for place, byte in enumerate(whole))
    deflated = whole[:10] + bytes([0b111]) + whole[11:]
    for damaged in (b"a\n1\n", b"\x1f\x8b", whole[:10], whole[: len(whole) // 2], whole[:-1], flipped, deflated):
        path.write_bytes(damaged)
        with pytest.raises(TableError, match=r"data\.csv\.gz: truncated, damaged or not a gzip file"):
            read_table(path)


# -- memory --------------------------------------------------------------------------------------------------

TOO_MANY_COMPONENTS = """
import resource
from pathlib import Path
import torch, mixflow

parameters = [torch.zeros(2**21, dtype=torch.float64)] * 3
x = torch.zeros(100, dtype=torch.float64)
mixflow.cdf_transform(x, *(p[:1] for p in parameters))  # torch imports more at a first call
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**24, resource.RLIM_INFINITY))
for threads in (1, 2):
    torch.set_num_threads(threads)
    try:
        mixflow.cdf_transform(x, *parameters)
    except MemoryError as error:
        print(error)
"""


@limits_memory
def test_memory_that_cannot_be_had_is_an_error_and_no_crash():
    said = subprocess.run([sys.executable, "-c", TOO_MANY_COMPONENTS], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == [f"logits: not enough memory to work with {2**21} components"] * 2


def test_rows_that_do_not_fit_in_memory_are_an_error(fitted, tmp_path, capsys, monkeypatch):
    def too_large(*_, **__):
        raise MemoryError

    monkeypatch.setattr(tables.reading.np, "concatenate", too_large)
    arguments = ["plot", str(fitted / "model.safetensors"), str(fitted / "data.npy"), "--out", f"{tmp_path}/p.png"]
    assert main(arguments) == 2
    assert capsys.readouterr().err == "mixflow: error: out of memory\n"
    assert names(tmp_path) == []
