"""Importing and calling mixflow changes little in a process, whatever the process and its surroundings are."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import mixflow
from mixflow import _core

HEAVY = {"IPython", "matplotlib", "mixflow.bench", "mixflow.cli", "mixflow.plot", "pandas", "pyarrow", "scipy"}
HEAVY |= {"sklearn", "torch._dynamo", "torch._inductor", "torch.utils.flop_counter", "triton", "zuko"}


def run(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=os.environ | environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_nothing_heavy_is_imported():
    code = "import sys, torch, numpy; before = set(sys.modules); import mixflow; print(*set(sys.modules) - before)"
    loaded = set(run(code).split())
    assert "mixflow.op" in loaded
    assert not loaded & HEAVY


# Torch itself looks for CUDA at every step of an optimizer, if it is built for it; some versions do so indirectly.
NO_CUDA = """
import traceback, torch

def fail(*_, **__):
    callers = [frame.name for frame in traceback.extract_stack()[:-1]]
    if not any(name.endswith("capture_health_check") for name in callers):
        raise AssertionError("CUDA was asked for by " + " < ".join(reversed(callers)))

for name in ("init", "_lazy_init", "is_available", "device_count", "current_device", "current_stream"):
    setattr(torch.cuda, name, fail)
import mixflow
x = torch.randn(1000)
parameters = [torch.zeros(3, requires_grad=True) for _ in range(3)]
sum(t.sum() for t in mixflow.cdf_transform(x, *parameters)).backward()
flow = mixflow.flows.univariate(2)
mixflow.fit(flow, x, epochs=1, progress=False)
flow.sample(3)
assert not torch.cuda.is_initialized()
"""


def test_work_on_the_cpu_never_asks_for_cuda():
    run(NO_CUDA)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that nobody can write to")
def test_a_home_that_cannot_be_written_to(tmp_path):
    code = """
import torch, mixflow
flow = mixflow.flows.univariate(2)
mixflow.fit(flow, torch.randn(100), epochs=1, progress=False)
mixflow.save(flow, "model")
mixflow.load("model").sample(3)
"""
    run(
        f"import os; os.chdir({str(tmp_path)!r})\n{code}", HOME="/proc", XDG_CACHE_HOME="/proc", XDG_CONFIG_HOME="/proc"
    )


FORK = """
import os, numpy as np, torch, mixflow
torch.set_num_threads(2)
arguments = torch.randn(2**21), torch.zeros(3), torch.randn(3), torch.zeros(3)  # long enough for two threads
expected = mixflow.cdf_transform(*arguments)  # starts threads that the forked child will not have
child = os.fork()
if child == 0:  # torch's own operations on many elements would wait for those threads forever
    found = mixflow.cdf_transform(*arguments)
    os._exit(0 if all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(found, expected)) else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert all(map(torch.equal, expected, mixflow.cdf_transform(*arguments)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_works_alone():
    run(FORK)


ALONE = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("_core", sys.argv[1])
core = importlib.util.module_from_spec(spec)
spec.loader.exec_module(core)
x, zero, z, ladj = (np.zeros(n) for n in (100_000, 3, 100_000, 100_000))
operands = [(a.ctypes.data, a.shape, (1,)) for a in (x, zero, zero, zero, z, ladj)]
core.map(False, 0, 0, True, operands, -1, 0, 2)
assert np.isfinite(z).all() and np.isfinite(ladj).all()
print(core.has_openmp())
"""


def test_a_core_that_finds_no_openmp_works_on_one_thread():
    # Torch loads the OpenMP runtime. Without torch there is none.
    said = subprocess.run([sys.executable, "-c", ALONE, _core.__file__], capture_output=True, text=True, check=True)
    assert said.stdout == ("False\n" if sys.platform == "linux" else f"{_core.has_openmp()}\n")


def test_the_openmp_runtime_is_torch_s_own():
    code = "{}\nimport mixflow.config; print(mixflow.config.openmp_runtimes(), mixflow.show_config()['openmp'])"
    work = "torch.set_num_threads(2); torch.zeros(1 << 20).exp()"
    expected = run(code.format(f"import torch; {work}"))
    assert expected.endswith(" True\n") or sys.platform != "linux"
    op = "mixflow.cdf_transform(torch.zeros(1 << 21), *[torch.zeros(3)] * 3)"
    assert run(code.format(f"import mixflow, torch; {work}; {op}")) == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_32_threads_at_once_agree_bit_for_bit(threads):
    generator = torch.Generator().manual_seed(0)
    x, *parameters = (torch.randn(n, generator=generator) for n in (30_000, 5, 5, 5))

    def work():
        leaves = [p.clone().requires_grad_() for p in (x, *parameters)]
        z, ladj = mixflow.cdf_transform(*leaves)
        back, inverse_ladj = mixflow.cdf_transform_inverse(z, *leaves[1:])
        grads = torch.autograd.grad((z * ladj + back * inverse_ladj).sum(), leaves)
        return [t.detach() for t in (z, ladj, back, inverse_ladj, *grads)]

    expected = work()
    results, start = {}, threading.Barrier(32)
    before = torch.get_num_threads()

    def call(number):
        torch.set_num_threads(threads)
        start.wait()
        results[number] = [work() for _ in range(3)]

    try:
        running = [threading.Thread(target=call, args=(number,)) for number in range(32)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert len(results) == 32
    assert all(all(map(torch.equal, expected, result)) for each in results.values() for result in each)


def test_reading_and_calling_a_model_imports_no_compiler(tmp_path):
    """Torch has a compiler, whose import takes half a second, and imports sympy for symbolic sizes."""
    for name, flow in {"one": mixflow.flows.univariate(2), "several": mixflow.flows.coupling(3, 2)}.items():
        mixflow.save(flow, tmp_path / name)
    code = f"""
import sys, torch, mixflow
for name, features in (("one", 1), ("several", 3)):
    flow = mixflow.load({str(tmp_path)!r} + "/" + name)
    flow.log_prob(flow.sample(3))
print(*sys.modules)
"""
    assert not set(run(code).split()) & {"sympy", "torch._dynamo"}
