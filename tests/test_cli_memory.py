"""``mixflow score`` and ``mixflow sample`` take files of any size in the memory that a small one takes."""

import os
import subprocess
import sys

import numpy as np
import pytest

import mixflow
from commands import fitted_in


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return fitted_in(tmp_path_factory.mktemp("fitted"))


# Each command in a process of its own, so that its largest size is the command's. Linux counts the size of the process
# that started it, too, except in /proc.
MEASURE = """
import pathlib, re, resource, sys
from mixflow.cli import main
assert main(sys.argv[1:]) == 0
status = pathlib.Path("/proc/self/status")
if status.exists():
    print(re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text())[1])
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1))
"""


# Large arrays go back to the system at once: what the C library keeps of them differs by tens of megabytes.
ALLOCATE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def kilobytes(folder, *typed):
    program = [sys.executable, "-c", MEASURE, *typed]
    said = subprocess.run(program, cwd=folder, capture_output=True, text=True, env=os.environ | ALLOCATE)
    assert said.returncode == 0, said.stderr
    return int(said.stdout.splitlines()[-1])


@pytest.mark.parametrize("ending", ["npy", "parquet", "csv"])
@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(fitted, tmp_path, ending):
    model = str(fitted / "model.safetensors")

    first = 1_000_000 if ending == "csv" else 200_000  # beyond which what Arrow's parser holds does not grow
    sizes = {"small": first, "large": first + 1_000_000}
    scored, sampled = {}, {}
    for name, rows in sizes.items():
        sampled[name] = kilobytes(
            tmp_path, "sample", model, "-n", str(rows), "--seed", "0", "--out", f"{name}.{ending}"
        )
        scored[name] = kilobytes(tmp_path, "score", model, f"{name}.{ending}", "--out", f"scores.{ending}")
    allowed = 8 * (sizes["large"] - sizes["small"]) / 1024 / 2  # half of one copy as float64
    assert sampled["large"] - sampled["small"] < allowed, sampled
    assert scored["large"] - scored["small"] < allowed, scored


@pytest.mark.parametrize(("small", "large"), [((100_000, 1), (500_000, 1)), ((500, 100), (500, 900))])
@pytest.mark.slow
def test_memory_does_not_grow_with_the_contexts(tmp_path, small, large):
    mixflow.save(mixflow.flows.univariate(2, context=1, seed=0), tmp_path / "m")
    peaks = []
    for rows, n in (small, large):
        np.save(tmp_path / "c.npy", np.random.default_rng(0).normal(size=(rows, 1)))
        peaks.append(kilobytes(tmp_path, *f"sample m -n {n} --context c.npy --out s.npy".split()))
    assert peaks[1] - peaks[0] < 8 * 2 * 400_000 / 1024 / 2, peaks  # half of what is written
