"""Several processes on one machine, as torchrun starts them: the result is one process's, and nobody waits forever."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

import mixflow
from mixflow import flows
from mixflow.fitting.parallel import Group

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def draw(n=500):
    return np.random.default_rng(0).normal(size=(n, 1)) ** 3


def torchrun(*command, cwd, **options):
    return subprocess.run(
        [*TORCHRUN, *map(str, command)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


# Run by one process and by two: what each fit came to, in the words of the first.
RUN = """
import atexit, json, sys, weakref
import numpy as np, torch, mixflow
from torch.utils.data import DataLoader, TensorDataset, DistributedSampler
import torch.distributed as dist

data = np.load("data.npy")
said = {}

@atexit.register  # before fit's own, so called after it
def write():
    said["group is gone"] = world() is None
    with open(f"{sys.argv[1]}{rank}.json", "w") as file:
        json.dump(said, file)

def fit(name, data, flow=None, **options):
    torch.manual_seed(dist.get_rank() if dist.is_initialized() else 0)
    flow = flow or mixflow.flows.univariate(3).double()
    history = mixflow.fit(flow, data, **{"epochs": 4, "progress": True} | options)
    weights = {key: value.tolist() for key, value in flow.state_dict().items()}
    said[name] = [history.train_log_prob, history.validation_log_prob, weights]
    said["notes on " + name] = history.notes

# 450 rows in batches of 64 leave a last one of 2; batches of 449 leave one of 1, and a process without a row.
fit("uneven", data, batch_size=64)
fit("one row", data, batch_size=449)
fit("clipped", data, batch_size=64, max_grad_norm=0.1, weight_decay=0.1, validation=0)
fit("mapped", np.load("data.npy", mmap_mode="r"), batch_size=64, checkpoint="run.checkpoint")
fit("resumed", data, batch_size=64, checkpoint="run.checkpoint", resume=True)

rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
world = weakref.ref(dist.group.WORLD) if dist.is_initialized() else lambda: None
# Each process brings every second of the batches' rows, the last of them one batch less.
batches = [torch.from_numpy(data[start : start + 100][rank::size]) for start in range(0, 300, 100)]
if rank == 0:
    batches.append(torch.from_numpy(data[300:350]))
class Stream:
    def __iter__(self):
        return iter(batches)
fit("loader", Stream(), validation=torch.from_numpy(data[400:]))

# A conditioner whose random start differs from process to process.
flow = mixflow.transforms.MixtureCDF(1, 3, context=1)
torch.manual_seed(rank)
flow = mixflow.flows.univariate(3, context=1).double()
fit("started alike", data, flow, context=data**2)

for name, options in {
    "nan": {"lr": 1e300, "max_grad_norm": float("inf")},
    "other data": {"data": data + rank},
    "no folder": {"checkpoint": "none/run.checkpoint"},
}.items():
    try:
        fit(name, **{"data": data} | options)
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What one process said, and each of two."""
    folder = tmp_path_factory.mktemp("runs")
    np.save(folder / "data.npy", draw())
    (folder / "run.py").write_text(RUN)
    subprocess.run([sys.executable, "run.py", "alone"], cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
    (folder / "run.checkpoint").unlink()
    result = torchrun("run.py", "together", cwd=folder)
    assert result.returncode == 0, result.stderr
    names = ("alone0", "together0", "together1")
    return [json.loads((folder / f"{name}.json").read_text()) for name in names], result, folder


def flat(nested):
    if isinstance(nested, dict):
        nested = list(nested.values())
    return [number for part in nested for number in flat(part)] if isinstance(nested, list) else [nested]


@pytest.mark.parametrize("name", ["uneven", "one row", "clipped", "mapped", "resumed", "loader"])
def test_two_processes_come_to_what_one_does(runs, name):
    (alone, first, second), _, _ = runs
    assert first[name] == second[name]
    assert flat(first[name]) == pytest.approx(flat(alone[name]), rel=1e-10, abs=1e-10)
    assert len(flat(alone[name])) > 10


def test_processes_start_alike(runs):
    (_, first, second), _, _ = runs
    assert first["started alike"] == second["started alike"]


def test_errors_are_raised_on_all_processes(runs):
    (alone, first, second), _, _ = runs
    assert first["nan"] == second["nan"]
    for said in (alone, first, second):
        assert re.search(r"is (nan|inf) at step \d+ \(epoch \d\): the training ends here", said["notes on nan"][-1])
    for said in (first, second):
        assert said["other data"].startswith("ValueError: data: expected the same on every process, got ")
        assert said["no folder"].startswith("FileNotFoundError: none/run.checkpoint: cannot write here")


def test_no_thread_of_the_group_outlives_it(runs):
    for said in runs[0]:
        assert said["group is gone"]


def test_the_first_process_alone_shows_progress_and_writes(runs):
    _, result, folder = runs
    # Seven fits begin at their first epoch, the resumed one does not; with two bars there would be fourteen.
    begun = re.findall(r"epoch 1/4: +0%\|[^\r\n]*\| 0\.00/|epoch 1/4: 0\.00rows", result.stderr)
    assert len(begun) == 7
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".json") == [
        "data.npy",
        "run.checkpoint",
        "run.py",
    ]


def test_shards_are_disjoint_even_and_whole():
    for rows in (0, 1, 2, 7, 64):
        shards = [list(range(rows))[Group(rank, 3).shard(rows)] for rank in range(3)]
        assert list(chain.from_iterable(shards)) == list(range(rows))
        assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.slow
def test_the_command_line_under_torchrun(tmp_path):
    np.save(tmp_path / "data.npy", draw())
    fit = ["-m", "mixflow", "fit", "data.npy", "--epochs", "3", "--dtype", "float64"]
    result = torchrun(*fit, "--out", "two.safetensors", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(lines_with(result.stdout, "- Data: 450 rows to learn from, 50 held out; 1 column (x1)")) == 1
    assert len(lines_with(result.stdout, "saved two.safetensors")) == 1
    alone = subprocess.run([sys.executable, *fit, "--out", "one.safetensors"], cwd=tmp_path, capture_output=True)
    assert alone.returncode == 0
    one, two = (mixflow.load(tmp_path / f"{name}.safetensors").state_dict() for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-10, atol=1e-10)
    failed = torchrun("-m", "mixflow", "fit", "none.npy", "--out", "new", cwd=tmp_path)
    assert failed.returncode != 0
    assert len(lines_with(failed.stderr, "mixflow: error: none.npy: no such file")) >= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npy", "one.safetensors", "two.safetensors"]


def lines_with(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


FOREVER = """
import os, sys
import numpy as np, mixflow
flow = mixflow.flows.univariate(3)
open(f"pid{os.environ['RANK']}", "w").write(str(os.getpid()))
history = mixflow.fit(flow, np.load("data.npy"), epochs=10**6, patience=10**6, batch_size=64, progress=False,
                      checkpoint="run.checkpoint")
open(f"ended{os.environ['RANK']}", "w").write(f"{history.interrupted} {len(history.lr)}")
"""


def start_forever(folder):
    np.save(folder / "data.npy", draw())
    (folder / "run.py").write_text(FOREVER)
    process = subprocess.Popen([*TORCHRUN, "run.py"], cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120.0
    while not (folder / "run.checkpoint").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None
    return process


@pytest.mark.slow
def test_ctrl_c_on_one_process_ends_all_at_the_same_step(tmp_path):
    process = start_forever(tmp_path)
    os.kill(int((tmp_path / "pid1").read_text()), signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    ended = [(tmp_path / f"ended{rank}").read_text() for rank in range(2)]
    assert ended[0] == ended[1]
    assert ended[0].startswith("True ")


@pytest.mark.slow
def test_a_process_that_dies_is_an_error_in_the_other(tmp_path):
    process = start_forever(tmp_path)
    os.kill(int((tmp_path / "pid1").read_text()), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert not list(Path(tmp_path).glob("ended*"))
    assert b"run.py" in said


def test_a_process_alone_is_a_group_of_one():
    group = Group.join(torch.device("cpu"))
    assert (group.rank, group.size) == (0, 1)
    flow = flows.univariate(3)
    mixflow.fit(flow, draw(), epochs=1, progress=False)
    assert not torch.distributed.is_initialized()


WRAPPED = """
import os, numpy as np, torch, mixflow
from torch.nn.parallel import DistributedDataParallel

torch.distributed.init_process_group("gloo")
rank, x = torch.distributed.get_rank(), torch.from_numpy(np.load("data.npy"))
gradients = {}
for name, flow in {
    "coupling": mixflow.flows.coupling(2, 2, 3, context=1, seed=0),
    "gaussian_mixture": mixflow.flows.gaussian_mixture(2, 3, context=1, seed=0),
}.items():
    wrapped = DistributedDataParallel(flow.double())
    rows = x[rank::2]
    (-wrapped(rows[:, :2], rows[:, 2:]).mean()).backward()
    gradients |= {f"{name}.{key}": parameter.grad.numpy() for key, parameter in flow.named_parameters()}
np.savez(f"gradients{rank}.npz", **gradients)
torch.distributed.barrier()
os._exit(0)  # gloo's threads may be alive when Python ends, and then torch aborts
"""


@pytest.mark.slow
def test_distributed_data_parallel_takes_a_flow(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 3))
    np.save(tmp_path / "data.npy", x)
    (tmp_path / "run.py").write_text(WRAPPED)
    result = torchrun("run.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = torch.from_numpy(x)
    alone = {
        "coupling": flows.coupling(2, 2, 3, context=1, seed=0),
        "gaussian_mixture": flows.gaussian_mixture(2, 3, context=1, seed=0),
    }
    for rank in range(2):
        found = np.load(tmp_path / f"gradients{rank}.npz")
        for name, flow in alone.items():
            flow.double().zero_grad()
            (-flow(rows[:, :2], rows[:, 2:]).mean()).backward()
            for key, parameter in flow.named_parameters():
                np.testing.assert_allclose(found[f"{name}.{key}"], parameter.grad, rtol=1e-9, atol=1e-12)
