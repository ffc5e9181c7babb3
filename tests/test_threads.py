"""Threads: who takes part in a call, and that nobody sees it in the results."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import mixflow
from mixflow import _core

OPS = (
    "forward",
    "forward_with_slopes",
    "backward",
    "inverse",
    "inverse_backward",
    "interval",
    "interval_backward",
)
# Sets of parameters, elements for each, and components.
SMALL = {"shared": (1, 1000, 8), "per element": (300, 1, 8)}
BATCH = {"shared": (1, 16_384, 16), "per element": (4096, 1, 16)}  # as in a training, on one thread in every op
LARGE = {"shared": (1, 2**20, 8), "per element": (2**19, 1, 8), "per row": (2**12, 2**8, 8)}


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("op", OPS)
def test_only_large_calls_take_threads_and_then_all(op):
    def taken(sizes, count, is_double=False):
        sets, elements, components = sizes
        return _core.worthwhile_threads(op, is_double, components, sets, elements, count)

    for count in (1, 2, 3, 64):
        assert {taken(sizes, count) for sizes in SMALL.values()} == {1}
        assert {taken(sizes, count) for sizes in LARGE.values()} == {count}
        assert {taken(sizes, count, is_double=True) for sizes in LARGE.values()} == {count}
    if _core.cpu_capability() == "avx512":
        assert {taken(sizes, 2) for sizes in BATCH.values()} == {1}


@pytest.mark.parametrize("op", OPS)
def test_the_decision_follows_the_work(op):
    def fewest(components, is_double=False, sets=1):
        """The fewest elements that are worth a second thread."""
        low, high = 0, 2**40
        while high - low > 1:
            middle = (low + high) // 2
            elements = middle // sets
            taken = _core.worthwhile_threads(op, is_double, components, sets, elements, 2)
            low, high = (middle, high) if taken == 1 else (low, middle)
        return high

    assert fewest(1) > 3 * fewest(32) > 20 * fewest(1000) > 0
    assert fewest(8) == pytest.approx(3 * fewest(8, is_double=True), rel=0.01)
    assert fewest(8) > 1.01 * fewest(8, sets=20_000)  # to prepare a set of parameters is work, too


def test_an_unknown_op_has_no_threads():
    with pytest.raises(ValueError, match="op: expected the name of an op, got sideways"):
        _core.worthwhile_threads("sideways", False, 1, 1, 1, 1)


def outcomes(sizes, dtype, family):
    """Everything that the ops return for these sizes, gradients included."""
    sets, elements, components = sizes
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    x = 3 * draw(sets, elements)
    p = draw(sets, 1, components), 2 * draw(sets, 1, components), draw(sets, 1, components) / 3
    leaves = [value.requires_grad_() for value in (x, *p)]
    z, ladj = mixflow.cdf_transform(*leaves, family=family)
    back, inverse_ladj = mixflow.cdf_transform_inverse(z.detach(), *leaves[1:], family=family)
    inside = mixflow.discretized_log_prob(leaves[0], leaves[0] + 0.5, *leaves[1:], family=family)
    results = (z, ladj), (back, inverse_ladj), (inside,)
    ones = [[torch.ones_like(value) for value in values] for values in results]
    gradients = [
        torch.autograd.grad(values, leaves, seeds, allow_unused=True)
        for values, seeds in zip(results, ones, strict=True)
    ]
    return [value for each in (*results, *gradients) for value in each if value is not None]


@pytest.mark.parametrize("family", mixflow.FAMILIES)
@pytest.mark.parametrize("layout", LARGE)
def test_results_are_the_same_bits_on_one_two_and_three_threads(layout, family):
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(outcomes(LARGE[layout], torch.float32, family))
    for other in found[1:]:
        assert len(found[0]) == len(other) == 5 + 4 + 3 + 4
        assert all(map(torch.equal, found[0], other))


STARTED = """
import os, sys, numpy as np, torch, mixflow
def alive(): return len(os.listdir("/proc/self/task"))
torch.set_num_threads(3)
n, k = int(sys.argv[1]), 8
arguments = [torch.from_numpy(np.zeros(size, "f4")) for size in (n, k, k, k)]  # to fill them, torch would start threads
before = alive()
mixflow.cdf_transform(*arguments)
print(alive() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists() or not _core.has_openmp(), reason="threads cannot be counted")
@pytest.mark.parametrize(("elements", "started"), [(1000, 0), (16_384, 0), (2**21, 2)])
def test_a_call_starts_the_threads_that_it_takes(elements, started):
    said = subprocess.run([sys.executable, "-c", STARTED, str(elements)], capture_output=True, text=True, check=True)
    assert int(said.stdout) == started


FORK = """
import os, torch, mixflow
torch.set_num_threads(2)
arguments = torch.linspace(-3, 3, 2**21), torch.zeros(8), torch.linspace(-1, 1, 8), torch.zeros(8)
expected = mixflow.cdf_transform(*arguments)  # starts the threads, which a fork leaves behind
child = os.fork()
if child == 0:  # where torch's own operations on many elements would wait for them forever
    found = mixflow.cdf_transform(*arguments)
    os._exit(0 if all(a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(found, expected)) else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_works_alone_on_a_large_call():
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)
