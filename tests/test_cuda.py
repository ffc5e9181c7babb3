"""What is particular to a GPU: streams, graphs, devices, addresses beyond 32 bits, and memory from torch alone.

The values of the ops are tested by the same tests on every device; ``--device cuda`` runs those on a GPU. The tests
here run wherever there is a GPU, whatever that option.
"""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import mixflow
from cases import EPSILON, FAMILY_AND_BASE, arguments, to_base_range
from mixflow import flows, standard
from mixflow.bench.memory import beyond_outputs_on_cuda
from mixflow.cli import main
from mixflow.op import kernels

GIB = 2**30
DTYPES = [torch.float32, torch.float64]
OPS = {
    "forward": mixflow.cdf_transform,
    "inverse": mixflow.cdf_transform_inverse,
    "interval": lambda x, *parameters: (mixflow.discretized_log_prob(x - 0.5, x + 0.5, *parameters),),
}


@pytest.fixture(params=OPS)
def op(request):
    return OPS[request.param]


def with_gradients(op, *tensors):
    """The results of an op and the gradients of all its arguments."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    results = op(*leaves)
    loss = sum((r * r).sum() for r in results)
    return [*(r.detach() for r in results), *torch.autograd.grad(loss, leaves)]


def same(actual, expected):
    torch.testing.assert_close(list(actual), list(expected), rtol=0, atol=0, equal_nan=True)


def needs_memory(gpu, gib):
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(gpu)[0]
    if free < gib * GIB:
        pytest.skip(f"needs {gib} GiB of free memory on the GPU; there are {free / GIB:.1f}")


# ------------------------------------------------------------------------------------------------------- without a GPU


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_and_working_on_the_cpu_leave_cuda_alone():
    run("""
import torch, mixflow
mixflow.cdf_transform(torch.zeros(5), *[torch.zeros(3)] * 3)
mixflow.flows.gaussianization(2).log_prob(torch.zeros(3, 2)).sum().backward()
assert not torch.cuda.is_initialized()
""")


def test_a_build_without_kernels_says_how_to_get_one_with_them(monkeypatch):
    monkeypatch.setattr(kernels._core, "cuda_architectures", lambda: "")
    elsewhere = SimpleNamespace(
        device=torch.device("cuda", 1),
        is_cpu=False,
        data_ptr=lambda: 0,
        shape=(3,),
        stride=lambda: (1,),
        dtype=torch.float32,
    )
    with pytest.raises(
        RuntimeError, match=r"^x: expected a CPU tensor, .* no CUDA kernels, got one on cuda:1\. .*nvcc"
    ):
        kernels.run(kernels._core.map, (False, 0, 0), (elsewhere,) * 6)


def test_so_does_the_op_itself(gpu, op, monkeypatch):
    monkeypatch.setattr(kernels._core, "cuda_architectures", lambda: "")
    with pytest.raises(RuntimeError, match="no CUDA kernels"):
        op(*arguments("shared", torch.float32, gpu))


# -------------------------------------------------------------------------------------------------------- same results


def scales(z, ladj, base):
    """The factors of the bounds in docs/how-exact.md, for the value and for ladj."""
    log_g = standard.BASES[base].log_prob(z)
    size = z * z.log().abs().clamp(min=1) if base == "uniform" else z.abs().clamp(min=1)
    return size, 1 + (ladj + log_g).abs() + log_g.abs()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
@pytest.mark.parametrize("layout", ["shared, many chunks", "per feature", "per element"])
def test_agrees_with_the_cpu(gpu, layout, family, base, dtype):
    """Each result is within its bound of the truth, so two results differ by at most twice the bound."""
    options = {"family": family, "base": base}
    x, *parameters = arguments(layout, dtype)
    there = [t.to(gpu) for t in (x, *parameters)]
    z, ladj = mixflow.cdf_transform(x, *parameters, **options)
    found = [t.cpu() for t in mixflow.cdf_transform(*there, **options)]
    for name, mine, other, scale in zip(("z", "ladj"), found, (z, ladj), scales(z, ladj, base), strict=True):
        error = ((mine - other).abs() / scale).max() / EPSILON[dtype]
        assert error <= 2 * 4, f"{name}: {error:.1f} eps apart"
    target = to_base_range(x, base)
    root, _ = mixflow.cdf_transform_inverse(target, *parameters, **options)
    found, _ = mixflow.cdf_transform_inverse(target.to(gpu), *there[1:], **options)
    slope = mixflow.cdf_transform(root, *parameters, **options)[1].exp()
    allowed = 2 * EPSILON[dtype] * (16 * target.abs().clamp(min=1) + slope * root.abs())
    assert (slope * (found.cpu() - root).abs() <= allowed).all()

    def both(*tensors):
        return mixflow.cdf_transform(*tensors, **options)

    expected = with_gradients(both, x, *parameters)[2:]
    for mine, other in zip(with_gradients(both, *there)[2:], expected, strict=True):
        # The error of a sum scales with the size of its terms, of which there is at most one for each element.
        scale = other.norm() + (x.numel() / max(1, other.numel() // parameters[0].shape[-1])) ** 0.5
        assert (mine.cpu() - other).norm() <= 2 * 64 * EPSILON[dtype] * scale


@pytest.mark.parametrize("components", [1000, 5000, 20000])
def test_more_components_than_fast_memory_holds(gpu, components, op):
    generator = torch.Generator().manual_seed(0)
    x, *parameters = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (7, *[components] * 3))
    expected = with_gradients(op, x, *parameters)
    found = with_gradients(op, *(t.to(gpu) for t in (x, *parameters)))
    torch.testing.assert_close([t.cpu() for t in found], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("components", [1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 130])
def test_bits_do_not_depend_on_where_memory_starts(gpu, op, components, dtype):
    """A load of 16 bytes needs an aligned address and whole rows. Views may have neither."""
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 31, 33, 129, 1025):
        shapes = (n,), *[(n, components)] * 3
        tensors = [torch.randn(s, generator=generator, dtype=torch.float64).to(gpu, dtype) for s in shapes]
        expected = with_gradients(op, *tensors)
        for offset in (1, 2, 3):
            moved = []
            for t in tensors:
                wide = t.new_empty(t.numel() + offset)
                wide[offset:] = t.flatten()
                moved.append(wide[offset:].view(t.shape))
            same(with_gradients(op, *moved), expected)
        padded = [torch.nn.functional.pad(p, (1, 2))[:, 1:-2] for p in tensors[1:]]
        same(op(tensors[0], *padded), expected[: len(op(*tensors))])


@pytest.mark.parametrize("layout", ["shared, many chunks", "per feature", "per row, long rows", "per element"])
def test_a_hundred_calls_give_the_same_bits(gpu, op, layout):
    tensors = arguments(layout, torch.float32, gpu)
    expected = with_gradients(op, *tensors)
    differ = torch.zeros((), dtype=torch.int64, device=gpu)
    for _ in range(100):
        for mine, other in zip(with_gradients(op, *tensors), expected, strict=True):
            differ += (mine != other).sum()
    assert differ == 0


def test_bits_of_gradients_do_not_depend_on_batch_or_position(gpu, op):
    x, *parameters = arguments("shared, many chunks", torch.float32, gpu)
    sets = [p.expand(len(x), -1).contiguous() for p in parameters]
    whole = with_gradients(op, x, *sets)
    flipped = with_gradients(op, x.flip(0), *sets)
    same([t.flip(0) for t in flipped], whole)
    for begin, end in ((0, 1), (3, 18), (5, 400), (19990, 20001)):
        part = with_gradients(op, x[begin:end], *(s[begin:end] for s in sets))
        same(part, [t[begin:end] for t in whole])


# ----------------------------------------------------------------------------------------------------- streams, graphs


def keep_busy():
    """Make the current stream wait for about a tenth of a second, far longer than a call of an op takes."""
    torch.cuda._sleep(300_000_000)


@pytest.mark.parametrize("layout", ["shared", "per element"])
def test_work_is_in_the_order_of_the_stream_it_is_called_on(gpu, op, layout):
    x, *parameters = arguments(layout, torch.float32, gpu)
    expected = with_gradients(op, x, *parameters)
    late = torch.full_like(x, torch.nan)
    producer, consumer = torch.cuda.Stream(gpu), torch.cuda.Stream(gpu)
    torch.cuda.synchronize(gpu)
    with torch.cuda.stream(producer):
        keep_busy()
        late.copy_(x)
        results = with_gradients(op, late, *parameters)
        done = producer.record_event()
    with torch.cuda.stream(consumer):
        consumer.wait_event(done)
        copies = [r.clone() for r in results]
    consumer.synchronize()
    same(copies, expected)


def test_calls_do_not_wait_for_the_gpu(gpu, op):
    tensors = arguments("shared", torch.float32, gpu)
    with_gradients(op, *tensors)
    torch.cuda.synchronize(gpu)
    keep_busy()
    with_gradients(op, *tensors)
    assert not torch.cuda.current_stream(gpu).query(), "the stream was waited for"


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("layout", ["shared", "per feature", "per element"])
def test_nothing_synchronises(gpu, op, layout):
    tensors = arguments(layout, torch.float32, gpu)
    with_gradients(op, *tensors)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with_gradients(op, *tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("recipe", ["gaussianization", "coupling", "autoregressive"])
def test_training_steps_do_not_synchronise(gpu, recipe):
    x = torch.randn(64, 3, device=gpu)
    flow = getattr(flows, recipe)(3, layers=2, components=4).to(gpu)
    flow.initialize(x)

    def step():
        return torch.autograd.grad(-flow.log_prob(x).mean(), list(flow.parameters()))

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(step, gpu):
    """A CUDA graph of ``step``, and the results that its replays write."""
    side = torch.cuda.Stream(gpu)
    side.wait_stream(torch.cuda.current_stream(gpu))
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream(gpu).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    return graph, results


@pytest.mark.parametrize("gradients", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("layout", ["shared", "shared, many chunks", "per feature", "per element"])
def test_graphs_are_captured_and_replayed(gpu, op, layout, gradients):
    static = arguments(layout, torch.float32, gpu)

    def step(*tensors):
        return with_gradients(op, *tensors) if gradients else op(*tensors)

    graph, results = captured(lambda: step(*static), gpu)
    for seed in (1, 2, 3):
        fresh = arguments(layout, torch.float32, gpu, seed)
        for into, values in zip(static, fresh, strict=True):
            into.copy_(values)
        graph.replay()
        same(results, step(*fresh))


def test_a_flow_trains_in_a_graph(gpu):
    torch.manual_seed(0)
    x = torch.randn(256, 3, device=gpu)
    flow, twin = (flows.coupling(3, layers=2, components=4, hidden=(16,)).to(gpu) for _ in range(2))
    flow.initialize(x)
    twin.load_state_dict(flow.state_dict())

    def step(model):
        loss = -model.log_prob(x).mean()
        return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]

    graph, results = captured(lambda: step(flow), gpu)
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(results, step(twin))


@pytest.mark.parametrize("recipe", ["univariate", "gaussianization", "coupling", "autoregressive", "gaussian_mixture"])
def test_fit_takes_captured_steps_with_the_numbers_of_plain_ones(gpu, recipe):
    data = torch.randn(500, 1 if recipe == "univariate" else 3, generator=torch.Generator().manual_seed(0))
    settings = {"device": gpu, "epochs": 4, "batch_size": 64, "progress": False}
    build = getattr(flows, recipe)
    plain, flow = (build(components=4, **({} if recipe == "univariate" else {"features": 3})) for _ in range(2))
    flow.load_state_dict(plain.state_dict())
    plain.fitted = flow.fitted = False
    with mixflow.fitting.captured.disabled():
        expected = mixflow.fit(plain, data, **settings)
    history = mixflow.fit(flow, data, **settings)
    assert history.notes[-1] == "Steps: each is one launch of a CUDA graph."
    assert history.train_log_prob == expected.train_log_prob
    same(flow.state_dict().values(), plain.state_dict().values())


# ------------------------------------------------------------------------------------------------------------- devices


def test_a_device_that_is_not_the_current_one(gpu, op):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    tensors = arguments("per feature", torch.float32)
    with torch.cuda.device(0):
        expected = with_gradients(op, *(t.to("cuda:0") for t in tensors))
        found = with_gradients(op, *(t.to("cuda:1") for t in tensors))
        assert torch.cuda.current_device() == 0
    assert {t.device.index for t in found} == {1}
    same([t.cpu() for t in found], [t.cpu() for t in expected])


def test_devices_are_not_mixed(gpu):
    x, *parameters = arguments("shared", torch.float32)
    for wrong in range(3):
        mixed = [p.to(gpu) if i != wrong else p for i, p in enumerate(parameters)]
        with pytest.raises(ValueError, match=rf"^\w+: expected device {gpu}, like x, got cpu$"):
            mixflow.cdf_transform(x.to(gpu), *mixed)
    with pytest.raises(ValueError, match=rf"^logits: expected device cpu, like z, got {gpu}$"):
        mixflow.cdf_transform_inverse(x, *(p.to(gpu) for p in parameters))


# -------------------------------------------------------------------------------------------------------------- memory


def test_memory_is_the_results_and_torch_s(gpu, op):
    x, *parameters = arguments("per element", torch.float32, gpu)
    x, *parameters = (t.repeat(2**12, *[1] * (t.dim() - 1)) for t in (x, *parameters))
    if op is OPS["interval"]:
        edges = x - 0.5, x + 0.5
        call = lambda: (mixflow.discretized_log_prob(*edges, *parameters),)  # noqa: E731
    else:
        call = lambda: op(x, *parameters)  # noqa: E731
    call()
    outputs, beyond = beyond_outputs_on_cuda(call)
    assert outputs == x.nbytes * len(call())
    assert beyond == 0
    for _ in range(3):
        with_gradients(op, x, *parameters)
    torch.cuda.synchronize(gpu)
    free = torch.cuda.mem_get_info(gpu)[0]
    for _ in range(20):
        with_gradients(op, x, *parameters)
    torch.cuda.synchronize(gpu)
    assert torch.cuda.mem_get_info(gpu)[0] == free


def test_more_than_2_31_elements(gpu):
    """Rows of x share one memory, so every row of the results is the same."""
    needs_memory(gpu, 28)
    generator = torch.Generator().manual_seed(0)
    width, rows = 2**12, 2**19 + 1
    x = torch.randn(width, generator=generator).to(gpu)
    parameters = [torch.randn(3, generator=generator).to(gpu) for _ in range(3)]
    for op in (mixflow.cdf_transform, mixflow.cdf_transform_inverse):
        expected = op(x, *parameters)
        for found, row in zip(op(x.expand(rows, width), *parameters), expected, strict=True):
            assert found.numel() > 2**31
            for part in found.split(2**16):
                assert (part == row).all()


@pytest.mark.parametrize("layout", ["shared", "per element"])
def test_gradients_of_more_than_2_31_bytes(gpu, layout):
    needs_memory(gpu, 40)
    generator = torch.Generator().manual_seed(0)
    period, copies, components = 2**12, 2**17 + 1, 1
    batch = () if layout == "shared" else (period,)
    shapes = (period,), *[(*batch, components)] * 3
    few = [torch.randn(s, generator=generator).to(gpu) for s in shapes]
    many = [t.repeat(copies, *[1] * (t.dim() - 1)) if len(t) == period else t for t in few]
    assert many[0].nbytes > 2**31
    expected, found = (with_gradients(mixflow.cdf_transform, *tensors) for tensors in (few, many))
    for mine, other in zip(found, expected, strict=True):
        if len(mine) != len(other):
            for part in mine.view(copies, *other.shape).split(2**12):
                assert (part == other).all()
        else:  # a sum, with a term for each copy
            torch.testing.assert_close(mine / copies, other, rtol=1e-4, atol=1e-5 * period)


@pytest.mark.parametrize("which", range(4), ids=["x", "logits", "loc", "log_scale"])
def test_strides_of_more_than_2_31_elements(gpu, op, which):
    needs_memory(gpu, 10)
    tensors = list(arguments("per row", torch.float32, gpu))
    tensors = [t[:2].contiguous() for t in tensors]
    expected = with_gradients(op, *tensors)
    t = tensors[which]
    far = t.new_empty(2**31 + t[0].numel()).as_strided(t.shape, (2**31, *t.stride()[1:]))
    far.copy_(t)
    tensors[which] = far
    same(op(*tensors), expected[: len(op(*tensors))])
    same(with_gradients(op, *tensors), expected)


# --------------------------------------------------------------------------------------------------- the rest of torch


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning")
def test_compiles_with_inductor(gpu, op):
    def loss(*tensors):
        return sum((r * r).sum() for r in op(*tensors))

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True)
    leaves = [t.detach().requires_grad_() for t in arguments("per feature", torch.float64, gpu)]
    expected, actual = loss(*leaves), compiled(*leaves)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves))
    torch._dynamo.reset()


# In a process of its own: a process group would stay in this one.
DISTRIBUTED = """
import copy, torch, mixflow
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("nccl" if dist.is_nccl_available() else "gloo", store=dist.HashStore(), rank=0, world_size=1)
module = mixflow.transforms.MixtureCDF(3, 4).cuda()
twin = copy.deepcopy(module)
parallel = DistributedDataParallel(module, device_ids=[torch.cuda.current_device()])
x = torch.randn(50, 3, device="cuda")
for model in (parallel, twin):
    z, ladj = model(x)
    (z.square().sum() + ladj.sum()).backward()
for mine, other in zip(module.parameters(), twin.parameters()):
    assert torch.equal(mine.grad, other.grad)
dist.destroy_process_group()
"""


def test_distributed_data_parallel(gpu):
    run(DISTRIBUTED)


TOGETHER = """
import numpy as np, torch, mixflow
torch.manual_seed(0)
flow = mixflow.flows.univariate(3)
mixflow.fit(flow, np.random.default_rng(0).normal(size=500), device="cuda", epochs=2, progress=False)
mixflow.save(flow, "model")
"""


def test_one_process_for_each_of_two_gpus(gpu, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    (tmp_path / "fit.py").write_text(TOGETHER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "fit.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert mixflow.load(tmp_path / "model").log_prob(torch.zeros(1)).isfinite().all()


def test_fit_score_sample_and_save(gpu, tmp_path):
    generator = np.random.default_rng(0)
    data = generator.normal(size=(4000, 3)).astype(np.float32) ** 3
    scores = []
    for device in ("cpu", gpu):
        torch.manual_seed(0)
        flow = flows.gaussianization(3, layers=2, components=4)
        history = mixflow.fit(flow, data, device=device, epochs=4, progress=False)
        scores.append(history.validation_log_prob[-1])
    assert next(flow.parameters()).device == gpu
    assert abs(scores[0] - scores[1]) < 0.05, "both devices reach the same score"
    drawn = flow.sample(1000, seed=0)
    assert drawn.device == gpu
    assert drawn.isfinite().all()
    z, ladj = flow.transform(drawn)
    back, inverse_ladj = flow.inverse(z)
    torch.testing.assert_close(back, drawn, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-3, atol=1e-2)
    mixflow.save(flow, tmp_path / "model")
    loaded = mixflow.load(tmp_path / "model")
    torch.testing.assert_close(loaded.log_prob(drawn.cpu()), flow.log_prob(drawn).cpu(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "only", ["Forward: forward + ladj, gaussian", "Inverse: ", "Forward and backward: ", "Peak memory"]
)
def test_benchmark(gpu, only, tmp_path, capsys):
    options = ["--quick", "--n", "4096", "--device", "cuda", "--only", only, "--out", str(tmp_path)]
    assert main(["bench", *options]) == 0
    assert torch.cuda.get_device_name(gpu) in capsys.readouterr().out
    assert (tmp_path / "cuda.json").exists()
