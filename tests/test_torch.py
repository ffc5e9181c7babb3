"""Torch's own machinery around ops and modules: compilation, torch.func, export, traces, modes, threads, copies."""

from __future__ import annotations

import concurrent.futures
import copy
import io
import pickle
import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import mixflow
from cases import FAMILY_AND_BASE, arguments, to_base_range
from mixflow import flows, transforms

OPS = {"forward": mixflow.cdf_transform, "inverse": mixflow.cdf_transform_inverse}
ALL = (0, 1, 2, 3)

pytestmark = [
    # torch's own tracing instantiates the Function class, which torch itself deprecates.
    pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning"),
    pytest.mark.parametrize("direction", OPS),
]


def some(device):
    """x (6, 3) and parameters (3, 4), sizes that no other axis has."""
    x, *parameters = arguments("per feature", torch.float64, device)
    return x[:6].clone(), *parameters


def leaves(tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def loss_of(op, **options):
    def loss(*args):
        value, ladj = op(*args, **options)
        return (value * value + ladj).sum()

    return loss


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# -------------------------------------------------------------------------------------------------------- compilation


def calls_the_op(*graphs):
    modules = [module for graph in graphs for module in graph.modules() if isinstance(module, torch.fx.GraphModule)]
    return any("mixflow.map" in str(node.target) for module in modules for node in module.graph.nodes)


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("dynamic", [False, True])
def test_one_graph_for_a_training_step_and_one_for_all_sizes(direction, dynamic, device):
    loss = loss_of(OPS[direction])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend=counter)
    x, *parameters = some(device)
    sizes = (6, 5, 4, 3) if dynamic else (6,)  # 3 is also the number of features, and 4 that of components
    for size in sizes:
        args = leaves([x[:size], *parameters])
        expected, actual = loss(*args), compiled(*args)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(torch.autograd.grad(actual, args), torch.autograd.grad(expected, args))
        same(compiled(*args), actual)
    assert counter.frame_count == 1
    assert torch._dynamo.utils.counters["graph_break"] == {}
    assert calls_the_op(*counter.graphs)


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_flow_trains_in_a_compiled_step(direction, device):
    """One direction uses inductor if there is a compiler. Inductor generates C++, or Triton on a GPU."""
    flow = flows.gaussianization(3, layers=2, components=4).double().to(device)
    x = some(device)[0]

    def step(x):
        return flow.log_prob(x).mean() if direction == "forward" else flow.inverse(x)[0].square().mean()

    generates = direction == "forward" and (shutil.which("g++") or device.type == "cuda")
    counter = CompileCounterWithBackend("inductor" if generates else "aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    parameters = list(flow.parameters())
    expected, actual = step(x), compiled(x)
    torch.testing.assert_close(actual, expected)
    gradients = [torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (actual, expected)]
    torch.testing.assert_close(*gradients)
    assert counter.frame_count == 1


FUNCTIONAL = {
    "gradient of every sample": lambda loss: vmap(grad(loss, ALL), (0, None, None, None)),
    "vjp": lambda loss: lambda *args: vjp(loss, *args)[1](args[0].new_ones(())),
    "jvp": lambda loss: lambda *args: jvp(loss, args, args),
    "hessian": lambda loss: hessian(loss, 1),
}


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("transform", FUNCTIONAL)
def test_functional_transforms_inside_a_graph(direction, transform, device):
    function = FUNCTIONAL[transform](loss_of(OPS[direction], family="logistic", base="logistic"))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*some(device)), function(*some(device)))


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("in_dims", [(0, None, None, None), (None, 0, 0, 0)], ids=["elements", "parameters"])
def test_vmap_inside_a_graph(direction, in_dims, device):
    op = OPS[direction]
    x, *parameters = some(device)
    if in_dims[1] == 0:
        parameters = [torch.stack([p, p + 0.1]) for p in parameters]

    def run(*args):
        return vmap(loss_of(op, family="logistic", base="logistic"), in_dims)(*args).sum()

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, fullgraph=True, backend=counter)
    args = leaves([x, *parameters])
    expected, actual = run(*args), compiled(*args)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, args), torch.autograd.grad(expected, args))
    with torch.no_grad():
        same(compiled(*args), run(*args))
    assert calls_the_op(counter.graphs[-1])  # without a derivative, the op stays one kernel


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_second_derivative_of_a_graph_is_refused(direction, device):
    """Torch cannot compute one (pytorch#91469). A wrong result must not come back."""
    args = leaves(some(device))
    compiled = torch.compile(loss_of(OPS[direction]), fullgraph=True, backend="aot_eager")
    first = torch.autograd.grad(compiled(*args), args, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(first[0].sum(), args)


# ------------------------------------------------------------------------------------------------- registration, traces


# opcheck reads .grad of copies of its inputs, and hides the warning in a way that pytest's filter "error" overrides.
@pytest.mark.parametrize("requires_grad", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_every_registered_op_passes_opcheck(direction, requires_grad, device):
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mixflow::")}
    ops = {"map", "map_backward", "affine_map", "affine_map_backward", "interval", "interval_backward"}
    assert names == {f"mixflow::{op}" for op in ops}, "give a new op its arguments here"
    x, *parameters = [t.requires_grad_(requires_grad) for t in leaves(some(device))]
    options = "gaussian", "normal", direction == "inverse"
    torch.library.opcheck(torch.ops.mixflow.map.default, (x, *parameters, *options))
    seed = torch.ones_like(x).requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.mixflow.map_backward.default, (seed, seed, x, *parameters, *options))
    rows = torch.cat([*parameters, parameters[0][..., :2]], -1).expand(*x.shape, -1).detach().clone()
    rows.requires_grad_(requires_grad)
    torch.library.opcheck(torch.ops.mixflow.affine_map.default, (x, rows, *options))
    torch.library.opcheck(torch.ops.mixflow.affine_map_backward.default, (seed, seed, x, rows, *options))
    if direction == "forward":
        edges = (x.detach() - 0.5).requires_grad_(requires_grad), (x.detach() + 0.5).requires_grad_(requires_grad)
        torch.library.opcheck(torch.ops.mixflow.interval.default, (*edges, *parameters, "logistic"))
        torch.library.opcheck(torch.ops.mixflow.interval_backward.default, (seed, *edges, *parameters, "logistic"))


class Layer(torch.nn.Module):
    def __init__(self, direction):
        super().__init__()
        self.mixture = transforms.MixtureCDF(3, 4).double()
        self.direction = direction

    def forward(self, x):
        return self.mixture(x) if self.direction == "forward" else self.mixture.inverse(x)


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # a buffer that torch itself reads
@pytest.mark.parametrize("strict", [False, True])
def test_export(direction, strict, device):
    layer, x = Layer(direction).to(device), some(device)[0]
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: torch.export.Dim("rows")}}, strict=strict)
    assert calls_the_op(program.graph_module)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for rows in (6, 3, 4):
        torch.testing.assert_close(loaded.module()(x[:rows]), layer(x[:rows]))
    torch.testing.assert_close(program.run_decompositions().module()(x), layer(x))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(direction, mode, device):
    op, loss = OPS[direction], loss_of(OPS[direction])

    def step(*args):
        args = leaves(args)
        return torch.autograd.grad(loss(*args), args)

    functions = {
        "op": lambda *args: op(*args),  # make_fx counts keyword-only arguments as positional ones
        "step": step,
        "grad": grad(loss, ALL),
        "vmap": lambda *args: vmap(op, (0, None, None, None))(*args),
    }
    x, *parameters = some(device)
    for function in functions.values():
        graph = make_fx(function, tracing_mode=mode)(x, *parameters)
        torch.testing.assert_close(graph(x + 0.1, *parameters), function(x + 0.1, *parameters))
    graph = make_fx(functions["op"], tracing_mode="symbolic")(x, *parameters)
    same(graph(x[:4], *parameters), op(x[:4], *parameters))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_jit_trace_records_the_op(direction, device):
    x, *parameters = some(device)
    traced = torch.jit.trace(lambda x: OPS[direction](x, *parameters), (x,))
    same(traced(x + 0.1), OPS[direction](x + 0.1, *parameters))


# ----------------------------------------------------------------------------------------------------------- torch.func


def test_nested_vmap(direction, device):
    op = OPS[direction]
    x, *parameters = some(device)
    xs = torch.stack([x, x + 0.1])
    sets = [torch.stack([p, p + 0.2, p - 0.1]) for p in parameters]
    value, ladj = vmap(vmap(op, (None, 0, 0, 0)), (0, None, None, None))(xs, *sets)
    both = vmap(vmap(op))(*(t.unsqueeze(1).expand(2, 3, *t.shape[1:]) for t in (xs, *(s[:2] for s in sets))))
    for i in range(2):
        for j in range(3):
            same((value[i, j], ladj[i, j]), op(xs[i], *(s[j] for s in sets)))
            same((both[0][i, j], both[1][i, j]), op(xs[i], *(s[i] for s in sets)))


def test_vmap_axes(direction, device):
    op = OPS[direction]
    x, *parameters = some(device)
    sets = [torch.stack([p, p + 0.2], -1) for p in parameters]
    value, ladj = vmap(op, (None, -1, -1, -1), out_dims=(1, -1))(x, *sets)
    chunked = vmap(op, (0, None, None, None), chunk_size=4)(x, *parameters)
    same(chunked, op(x, *parameters))
    for i in range(2):
        same((value[:, i], ladj[..., i]), op(x, *(s[..., i] for s in sets)))


def test_an_ensemble_of_modules(direction, device):
    modules = [Layer(direction).to(device) for _ in range(3)]
    for i, module in enumerate(modules):
        module.mixture.loc.data += 0.1 * i
    stacked = torch.func.stack_module_state(modules)
    skeleton = copy.deepcopy(modules[0]).to("meta")
    x = some(device)[0]
    value, ladj = vmap(lambda p, b: torch.func.functional_call(skeleton, (p, b), (x,)))(*stacked)
    for i, module in enumerate(modules):
        same((value[i], ladj[i]), module(x))


@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_jvp_against_differences(direction, family, base, device):
    generator = torch.Generator().manual_seed(5)
    x, *parameters = some(device)
    args = to_base_range(x, base) if direction == "inverse" else x, *parameters
    step = [torch.randn(t.shape, generator=generator, dtype=t.dtype).to(device) for t in args]

    def run(*args):
        return torch.stack(OPS[direction](*args, family=family, base=base))

    _, tangent = jvp(run, args, tuple(step))
    h = 1e-6
    ahead, behind = (run(*(t + s * h * d for t, d in zip(args, step, strict=True))) for s in (1, -1))
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)


# torch itself warns so when linearize folds the constants of any graph.
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
def test_linearize(direction, device):
    args = some(device)
    _, push = linearize(OPS[direction], *args)
    torch.testing.assert_close(push(*args), jvp(OPS[direction], args, args)[1])


def test_every_way_to_a_hessian(direction, device):
    loss = loss_of(OPS[direction])
    args = [t[:2] for t in some(device)[:1]] + list(some(device)[1:])
    expected = torch.autograd.functional.hessian(loss, tuple(args))
    for outer in (jacrev, jacfwd):
        for inner in (jacrev, jacfwd):
            torch.testing.assert_close(outer(inner(loss, ALL), ALL)(*args), expected)
    of_each = vmap(hessian(loss, 2), (0, None, None, None))(*args)
    torch.testing.assert_close(of_each.sum(0), expected[2][2])


def test_third_derivatives(direction, device):
    x, *parameters = (t[0] for t in some(device))

    def forward_mode(f):
        return lambda u: jvp(f, (u,), (torch.ones_like(u),))[1]

    x0 = x[0]
    for output in (0, 1):

        def f(u, output=output):
            return OPS[direction](u, *parameters)[output]

        h = 1e-4
        expected = (grad(grad(f))(x0 + h) - grad(grad(f))(x0 - h)) / (2 * h)
        for third in (grad(grad(grad(f))), forward_mode(forward_mode(forward_mode(f))), forward_mode(grad(grad(f)))):
            torch.testing.assert_close(third(x0), expected, rtol=1e-5, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- autograd


def test_seeds_of_any_kind(direction, device):
    args = leaves(some(device))
    value, _ = OPS[direction](*args)

    def pull(seed, **options):
        return torch.autograd.grad(value, args, seed, retain_graph=True, **options)

    seed = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device).T
    expected = pull(seed.contiguous())
    same(pull(seed), expected)
    same(pull(torch.complex(seed, -seed).conj().imag), expected)
    same(pull(seed.new_ones(()).expand(6, 3)), pull(seed.new_ones(6, 3)))
    batch = pull(torch.stack([seed, 2 * seed]), is_grads_batched=True)
    torch.testing.assert_close([g[0] for g in batch], list(expected))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(direction, use_reentrant, device):
    args = leaves(some(device))
    loss = loss_of(OPS[direction])
    expected = torch.autograd.grad(loss(*args), args)
    checkpoint(loss, *args, use_reentrant=use_reentrant).backward()
    same([t.grad for t in args], list(expected))


def test_checkpointing_of_a_large_call(direction, device):
    """Torch's checkpointing lets a backward pass read what it saved only once."""
    args = leaves([torch.randn(2**17, device=device), *(torch.zeros(3, device=device) for _ in range(3))])
    loss = loss_of(OPS[direction])
    expected = torch.autograd.grad(loss(*args), args)
    checkpoint(loss, *args, use_reentrant=False).backward()
    same([t.grad for t in args], list(expected))


def test_a_change_in_place_before_backward_is_noticed(direction, device):
    x, *parameters = leaves(some(device))
    moved = parameters[1] * 1
    value, _ = OPS[direction](x, parameters[0], moved, parameters[2])
    moved.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.sum().backward()


def test_inference_mode(direction, device):
    args = some(device)
    with torch.inference_mode():
        results = OPS[direction](*args)
        assert all(t.is_inference() for t in results)
        own = OPS[direction](*(t.clone() for t in args))
    same(results, OPS[direction](*args))
    same(own, results)


# --------------------------------------------------------------------------------------------- dtypes, devices, classes


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(direction, half, device):
    x, *parameters = (t.float() for t in some(device))
    linear = torch.nn.Linear(3, 3, device=device)
    with torch.autocast(device.type, dtype=half):
        hidden = linear(x)
        assert hidden.dtype == half
        results = OPS[direction](hidden, *parameters)
        full = OPS[direction](x, *parameters)
        loss = sum(r.float().sum() for r in results)
    expected = OPS[direction](hidden.float(), *parameters)
    same(results, tuple(t.to(half) for t in expected))
    assert all(r.dtype == torch.float32 for r in full)
    same(full, OPS[direction](x, *parameters))
    loss.backward()
    assert linear.weight.grad.dtype == torch.float32
    assert linear.weight.grad.abs().sum() > 0


def test_fake_and_meta_tensors(direction, device):
    args = some(device)
    meta = [t.to("meta").requires_grad_() for t in args]
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t).requires_grad_() for t in args]
    for tensors in (meta, fake):
        results = OPS[direction](*tensors)
        grads = torch.autograd.grad(results[0].sum() + results[1].sum(), tensors)
        assert [r.shape for r in results] == [(6, 3)] * 2
        assert [g.shape for g in grads] == [t.shape for t in args]
        assert {r.device for r in results} == {tensors[0].device}
    with FakeTensorMode():
        x, p = torch.empty(5, 1, device=device), torch.empty(3, 4, device=device)
        assert OPS[direction](x, p, p, p)[0].shape == (5, 3)


def test_views_that_are_not_their_memory(direction, device):
    x, *parameters = some(device)
    negated = torch.complex(x, -x).conj().imag  # x itself, by a flag: the memory holds -x
    assert negated.is_neg()
    same(OPS[direction](negated, *parameters), OPS[direction](x, *parameters))
    args = [negated, *leaves(parameters)]
    expected = torch.autograd.grad(loss_of(OPS[direction])(x, *args[1:]), args[1:])
    same(torch.autograd.grad(loss_of(OPS[direction])(*args), args[1:]), expected)
    flipped = [torch.complex(p, -p).conj().imag for p in parameters]
    same(OPS[direction](x, *flipped), OPS[direction](x, *parameters))


def test_tensors_without_dense_memory_are_refused(direction, device):
    x, *parameters = some(device)
    name = "x" if direction == "forward" else "z"
    nested = torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged)
    for wrong, kind in ((x.to_sparse(), "torch.sparse_coo"), (nested, "a nested tensor")):
        with pytest.raises(TypeError, match=rf"^{name}: expected a dense tensor .*, got {kind}"):
            OPS[direction](wrong, *parameters)
    # On another device the call goes through torch's dispatch, which gives the tensor memory.
    with pytest.raises(ValueError, match="memory of their own"):
        OPS[direction](torch._efficientzerotensor(6, 3, dtype=torch.float64), *some("cpu")[1:])


class Tagged(torch.Tensor):
    pass


def test_subclasses(direction, device):
    x, *parameters = some(device)
    op, loss = OPS[direction], loss_of(OPS[direction])
    tagged = op(x.as_subclass(Tagged), *parameters)
    assert all(type(t) is Tagged for t in tagged)
    same(tuple(t.as_subclass(torch.Tensor) for t in tagged), op(x, *parameters))
    pair = TwoTensor(x.clone(), x + 1).requires_grad_()
    value, _ = op(pair, *parameters)
    same((value.a, value.b), (op(x, *parameters)[0], op(x + 1, *parameters)[0]))
    loss(pair, *parameters).backward()
    assert type(pair.grad) is TwoTensor
    for mine, point in ((pair.grad.a, x), (pair.grad.b, x + 1)):
        torch.testing.assert_close(mine, grad(loss)(point, *parameters))


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_modes(direction, device):
    args = leaves(some(device))
    with Recorder() as mode:
        loss_of(OPS[direction])(*args).backward()
    assert {"mixflow.map.default", "mixflow.map_backward.default"} <= set(mode.seen)
    x, *parameters = some(device)
    with torch.device("meta"):  # a default device is for new tensors, not for results of old ones
        same(OPS[direction](x[0], *parameters), tuple(r[0] for r in OPS[direction](x, *parameters)))


# --------------------------------------------------------------------------------------------------- modules, threads

MODULES = {
    "mixture": lambda: Layer("forward"),
    "coupling": lambda: flows.coupling(3, layers=2, components=2, hidden=(8,), context=1),
    "gaussianization": lambda: flows.gaussianization(3, layers=2, components=2),
    "autoregressive": lambda: flows.autoregressive(3, layers=1, components=2, hidden=(8,)),
}


@pytest.mark.parametrize("name", MODULES)
def test_copies_and_pickles_of_modules(direction, name, device):
    module = MODULES[name]().to(device)
    if direction == "inverse":
        module.requires_grad_(False)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(copied) == repr(module)
        same(copied.state_dict(), module.state_dict())
        assert not {p.data_ptr() for p in copied.parameters()} & {p.data_ptr() for p in module.parameters()}
        x = some(device)[0].to(next(module.parameters()).dtype)
        context = [x[:, :1]] if name == "coupling" else []
        run = (lambda m: m(x)) if name == "mixture" else (lambda m: m.log_prob(x, *context))  # noqa: B023
        same(run(copied), run(module))


def test_threads_share_ops_and_a_module(direction, device):
    layer = Layer(direction).to(device)
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(200 + i, 3, dtype=torch.float64, generator=generator).to(device) for i in range(24)]

    def work(x):
        value, ladj = layer(x)
        grads = torch.autograd.grad((value * value + ladj.unsqueeze(-1)).sum(), list(layer.parameters()))
        second = grad(grad(lambda u: OPS[direction](u, *(p.detach()[0] for p in layer.parameters()))[0]))(x[0, 0])
        return value.detach(), ladj.detach(), *grads, second

    alone = [work(x) for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(4):
            for result, expected in zip(pool.map(work, inputs), alone, strict=True):
                same(result, expected)
