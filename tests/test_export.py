"""Gradients through exported programs, traces and the registered ops, and one tensor as several arguments."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import mixflow
from mixflow.op import affine_transform

pytestmark = [
    # torch's own tracing instantiates the Function class, which torch itself deprecates.
    pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),  # which torch itself has read
]

K = 4
PUBLIC = {
    "forward": mixflow.cdf_transform,
    "inverse": mixflow.cdf_transform_inverse,
    "interval": lambda x, *p: (mixflow.discretized_log_prob(x - 0.5, x + 0.5, *p),),
    "affine": lambda x, rows: affine_transform(x, rows, family="gaussian", base="normal"),
}
RAW = {
    "forward": lambda *args: torch.ops.mixflow.map(*args, "gaussian", "normal", False),
    "inverse": lambda *args: torch.ops.mixflow.map(*args, "gaussian", "normal", True),
    "interval": lambda x, *p: (torch.ops.mixflow.interval(x - 0.5, x + 0.5, *p, "gaussian"),),
    "affine": lambda *args: torch.ops.mixflow.affine_map(*args, "gaussian", "normal", False),
}


def arguments(name, device):
    generator = torch.Generator().manual_seed(2)
    shapes = [(6, 3), (6, 3, 3 * K + 2)] if name == "affine" else [(6, 3), *[(3, K)] * 3]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(device) for s in shapes]


def loss_of(op):
    def loss(*args):
        return sum((r * r).sum() for r in op(*args))

    return loss


def leaves(tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


class Layer(nn.Module):
    """One op whose parameters come from others of the module: as they are, shared, or from a network."""

    def __init__(self, name, parameters):
        super().__init__()
        self.name = name
        self.own = nn.ParameterList(parameters)
        self.network = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x):
        return PUBLIC[self.name](self.network(x), *self.own)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("name", PUBLIC)
def test_gradients_through_an_exported_program(name, saved, strict, device):
    x, *parameters = arguments(name, device)
    layer = Layer(name, leaves(parameters)).to(device)
    program = torch.export.export(layer, (x,), strict=strict)
    if saved:
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        program = torch.export.load(file)
    exported = program.module()
    gradients = []
    for module in (layer, exported):
        leaf = x.clone().requires_grad_()
        loss_of(module)(leaf).backward()
        gradients.append({"x": leaf.grad, **{n: p.grad for n, p in module.named_parameters()}})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(g.abs().sum() > 0 for g in gradients[0].values())
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected)


def test_second_derivatives_through_an_exported_program(device):
    x, *parameters = arguments("forward", device)
    layer = Layer("forward", leaves(parameters)).to(device)
    exported = torch.export.export(layer, (x,)).module()
    found = []
    for module in (layer, exported):
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss_of(module)(leaf), leaf, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [leaf, *module.parameters()]))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.filterwarnings("ignore:.torch.jit.trace(_method)?. is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", PUBLIC)
def test_gradients_through_a_trace(name, device):
    """Torch checks the trace by running it again, its gradients among the rest."""
    x, *parameters = arguments(name, device)
    layer = Layer(name, leaves(parameters)).to(device)
    traced = torch.jit.trace(layer, (x,))
    assert "mixflow::" in str(traced.inlined_graph)
    for point in (x, x + 0.1):
        actual, expected = (torch.autograd.grad(loss_of(m)(point), list(layer.parameters())) for m in (traced, layer))
        torch.testing.assert_close(actual, expected)


def dual(loss):
    def run(x, *rest):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(loss(forward_ad.make_dual(x, x), *rest)).tangent

    return run


WAYS = {
    "autograd": lambda loss, n: lambda *args: torch.autograd.grad(loss(*(own := leaves(args))), own),
    "hessian of autograd": lambda loss, n: lambda *args: torch.autograd.functional.hessian(loss, args),
    "forward mode": lambda loss, n: dual(loss),
    "grad": lambda loss, n: grad(loss, tuple(range(n))),
    "grad of each": lambda loss, n: vmap(grad(loss), (0, *(None if n > 2 else 0,) * (n - 1))),
    "jvp": lambda loss, n: lambda *args: jvp(loss, args, args),
    "hessian": lambda loss, n: hessian(loss, n - 1),
    "jacfwd of jacfwd": lambda loss, n: jacfwd(jacfwd(loss), n - 1),
    "jacrev of jacrev": lambda loss, n: jacrev(jacrev(loss), n - 1),
    "jacrev of jacfwd": lambda loss, n: jacrev(jacfwd(loss), n - 1),
    "vmap": lambda loss, n: lambda *args: vmap(loss, (0, *(None if n > 2 else 0,) * (n - 1)))(*args),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PUBLIC)
def test_the_registered_op_has_every_derivative(name, way, device):
    """Also where torch.library.register_autograd makes none (pytorch#168393)."""
    args = [a[:2] for a in arguments(name, device)] if name == "affine" else arguments(name, device)
    raw, public = (WAYS[way](loss_of(ops[name]), len(args))(*args) for ops in (RAW, PUBLIC))
    torch.testing.assert_close(raw, public)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("forward", "forward mode"),
        pytest.param("forward", "jacfwd of jacfwd", marks=pytest.mark.slow),
        pytest.param("inverse", "jacrev of jacrev", marks=pytest.mark.slow),
        ("interval", "jvp"),
        ("affine", "jvp"),
    ],
)
def test_every_derivative_inside_a_graph(name, way, device):
    args = [a[:2] for a in arguments(name, device)] if name == "affine" else arguments(name, device)
    torch.compiler.reset()
    run = WAYS[way](loss_of(PUBLIC[name]), len(args))
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(*args), run(*args))


def test_a_registered_gradient_is_differentiable(device):
    """By seeds, points and parameters, also where its last argument has the default."""
    x, *parameters = arguments("forward", device)
    tensors = leaves([torch.ones_like(x), torch.full_like(x, 2.0), x, *parameters])

    def own(*tensors):
        g_value, g_ladj, *args = tensors
        results = mixflow.cdf_transform(*args)
        return torch.autograd.grad(results, args, (g_value, g_ladj), create_graph=True)

    def raw(*tensors):
        return torch.ops.mixflow.map_backward(*tensors, "gaussian", "normal", False)

    second = [torch.autograd.grad(loss_of(f)(*tensors), tensors) for f in (raw, own)]
    torch.testing.assert_close(*second)
    torch.testing.assert_close(grad(loss_of(raw), (0, 2, 4))(*tensors), tuple(second[0][i] for i in (0, 2, 4)))


ALIASES = {
    "zeros for logits and log_scale": lambda op, x, p: op(x, p, p + 1, p),
    "one tensor for all parameters": lambda op, x, p: op(x, p, p, p),
    "x is a parameter's view": lambda op, x, p: op(p[..., 0], p, p, p),
}


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("name", ["forward", "inverse", "interval"])
def test_one_tensor_as_several_arguments_of_a_graph(name, alias, requires_grad, device):
    x, p, *_ = (t.requires_grad_(requires_grad) for t in arguments(name, device))

    def run(x, p):
        return ALIASES[alias](PUBLIC[name], x, p)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, p), run(x, p))
    if requires_grad:
        used = [x, p] if "view" not in alias else [p]
        actual, expected = (torch.autograd.grad(loss_of(f)(x, p), used) for f in (compiled, run))
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_x_as_a_parameter_of_a_graph(requires_grad, device):
    x = torch.randn(5, 1, dtype=torch.float64, device=device, requires_grad=requires_grad)

    def run(x):
        return mixflow.cdf_transform(x, x, x, x), mixflow.discretized_log_prob(x, x + 1, x, x, x)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), run(x))
    if requires_grad:
        losses = [pair[0].sin().sum() + pair[1].sum() + log_p.sum() for pair, log_p in (compiled(x), run(x))]
        actual, expected = (torch.autograd.grad(loss, x) for loss in losses)
        torch.testing.assert_close(actual, expected)
