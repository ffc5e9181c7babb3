"""Any layout of any operand gives the bits of the contiguous call, and results keep the layout of x."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mixflow
from cases import EPSILON, to_base_range
from mixflow.op import affine_transform, table

# torch's own tracing instantiates the Function class, which torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning")

OPS = {"forward": mixflow.cdf_transform, "inverse": mixflow.cdf_transform_inverse}
# The shape of x, and that of the parameters without their component axis: a set for each element, for few, for many.
SHAPES = {
    "per element": ((6, 3, 7, 9), (6, 3, 7, 9)),
    "per channel": ((6, 3, 7, 9), (3, 1, 1)),
    "per row of few": ((40, 9), (40, 1)),
    "a middle axis": ((20, 6, 30), (20, 1, 30)),
    "narrow": ((70, 3), ()),
    "many": ((41, 37), ()),
    "few sets of many": ((5, 300), (5, 1)),
    "hundreds of middle size": ((50, 60), (50, 1)),
    "tiled": ((256, 530), (256, 530)),
    "tiled, not split": ((7, 600), (7, 600)),
}


def random_layout(tensor, generator):
    """The same numbers, with axes in a random order in memory and gaps between them; sometimes unchanged."""

    def draw(n):
        return int(torch.randint(n, (), generator=generator))

    if draw(4) == 0 or tensor.dim() == 0:
        return tensor
    order = torch.randperm(tensor.dim(), generator=generator).tolist()
    sizes = [tensor.shape[axis] for axis in order]
    gaps = [draw(3) if draw(3) == 0 else 0 for _ in sizes]
    memory = tensor.new_full([s + g for s, g in zip(sizes, gaps, strict=True)], torch.nan)
    for i, size in enumerate(sizes):
        memory = memory.narrow(i, 0, size)
    result = memory.permute([order.index(axis) for axis in range(tensor.dim())])
    return result.copy_(tensor)


def draw_arguments(shape, dtype, components, generator, device):
    x_shape, batch = SHAPES[shape]

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype)

    loc, log_scale = 2 * draw(*batch, components), 0.5 * draw(*batch, components) - 0.5
    return draw(*x_shape), draw(*batch, components), loc, log_scale, draw(*x_shape), draw(*x_shape)


@pytest.mark.parametrize("components", [1, 3, 8, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("direction", OPS)
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_have_the_bits_of_the_contiguous_call(shape, direction, dtype, components, device):
    generator = torch.Generator().manual_seed(components)

    def results(tensors):
        x, *parameters, g_value, g_ladj = tensors
        leaves = [t.detach().requires_grad_() for t in (x, *parameters)]
        value, ladj = OPS[direction](*leaves, family="logistic", base="logistic")
        return value, ladj, *torch.autograd.grad((value, ladj), leaves, (g_value, g_ladj))

    plain = draw_arguments(shape, dtype, components, generator, device)
    expected = results(plain)
    for _ in range(4):
        actual = results([random_layout(t, generator) for t in plain])
        for name, mine, theirs in zip(
            ("value", "ladj", "x", "logits", "loc", "log_scale"), actual, expected, strict=True
        ):
            assert torch.equal(mine, theirs), name


@pytest.mark.parametrize("which", range(6))
def test_gradients_of_stride_zero_and_narrow_columns(which, device):
    """The layouts of every training step: ``ladj.sum(-1)``, ``mean()``, ``x[:, half:]``, ``x[:, ::2]``, one by one."""
    generator = torch.Generator().manual_seed(which)
    x, logits, loc, log_scale, *_ = draw_arguments("per element", torch.float32, 8, generator, device)
    views = {
        0: (x[:, :, :, 4:], slice(4, None)),
        1: (x[:, :, :, ::2], slice(None, None, 2)),
    }
    part, columns = views.get(which, (x, slice(None)))
    leaves = [part.detach(), *(p[:, :, :, columns] for p in (logits, loc, log_scale))]
    losses = {
        2: lambda z, ladj: (z.square().sum(-1) + ladj.sum(-1)).mean(),
        3: lambda z, ladj: z.mean() + ladj.mean(),
        4: lambda z, ladj: ladj.sum((0, 2)).square().sum() + z.sum(),
        5: lambda z, ladj: z.sum() + ladj.flatten(1).sum(-1).square().sum(),
    }
    loss = losses.get(which, lambda z, ladj: z.square().sum() + ladj.sum())

    def gradients(tensors, copies):
        own = [t.detach().requires_grad_() for t in tensors]
        z, ladj = mixflow.cdf_transform(*own)
        seeds = torch.autograd.grad(loss(z, ladj), (z, ladj), retain_graph=True)
        if copies:
            seeds = [s.contiguous().clone() for s in seeds]
        return torch.autograd.grad((z, ladj), own, seeds)

    expected = gradients([t.contiguous() for t in leaves], True)
    assert all(map(torch.equal, gradients(leaves, False), expected))


@pytest.mark.parametrize("dim", [0, 1, 2, -2, -4])
@pytest.mark.parametrize("direction", OPS)
def test_dim_tells_where_the_components_are(direction, dim, device):
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(3)
    x, logits, loc, log_scale, *_ = draw_arguments("per element", torch.float64, 5, generator, device)
    plain = [p.requires_grad_() for p in (logits, loc, log_scale)]
    moved = [p.detach().movedim(-1, dim).contiguous().requires_grad_() for p in plain]
    expected, actual = OPS[direction](x, *plain), OPS[direction](x, *moved, dim=dim)
    assert all(map(torch.equal, actual, expected))
    grads = [torch.autograd.grad(v.sum() + w.sum(), p) for (v, w), p in ((expected, plain), (actual, moved))]
    for theirs, mine, parameter in zip(*grads, moved, strict=True):
        assert mine.stride() == parameter.stride()
        assert torch.equal(mine.movedim(dim, -1), theirs)
    compiled = torch.compile(OPS[direction], fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(x, *moved, dim=dim), expected))
    if x.is_cpu:
        arrays = [t.detach().numpy() for t in (x, *moved)]
        for mine, theirs in zip(OPS[direction](*arrays, dim=dim), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs.detach().numpy())


def test_dim_of_intervals_mixtures_and_transforms(device):
    generator = torch.Generator().manual_seed(4)
    x, *plain, _, _ = draw_arguments("a middle axis", torch.float64, 4, generator, device)
    moved = [p.movedim(-1, 1) for p in plain]
    expected = mixflow.discretized_log_prob(x, x + 1, *plain)
    assert torch.equal(mixflow.discretized_log_prob(x, x + 1, *moved, dim=1), expected)
    ours, theirs = mixflow.Mixture(*moved, dim=1), mixflow.Mixture(*plain)
    assert ours.batch_shape == theirs.batch_shape
    assert torch.equal(ours.log_prob(x), theirs.log_prob(x))
    assert torch.equal(ours.logits, theirs.logits)
    ours, theirs = mixflow.MixtureCDFTransform(*moved, dim=1), mixflow.MixtureCDFTransform(*plain)
    assert torch.equal(ours(x), theirs(x))
    assert ours == theirs


@pytest.mark.parametrize(
    ("dim", "error", "message"),
    [
        (3, ValueError, r"^dim: expected an axis of logits, of shape \(4, 3, 2\), got 3$"),
        (-4, ValueError, r"^dim: expected an axis of logits, of shape \(4, 3, 2\), got -4$"),
        ("1", TypeError, r"^dim: expected an integer, an axis of the parameters, got str$"),
        (True, TypeError, r"^dim: expected an integer, an axis of the parameters, got bool$"),
    ],
)
def test_a_wrong_dim_is_refused(dim, error, message):
    x, parameters = torch.zeros(4, 3), [torch.zeros(4, 3, 2)] * 3
    for call in (mixflow.cdf_transform, mixflow.cdf_transform_inverse):
        with pytest.raises(error, match=message):
            call(x, *parameters, dim=dim)
    for make in (mixflow.Mixture, mixflow.MixtureCDFTransform):
        with pytest.raises(error, match=message):
            make(*parameters, dim=dim)


FORMATS = {
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.mT.contiguous().mT,
    "permuted": lambda t: t.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "every other": lambda t: torch.stack([t, t], -1)[..., 0],
    "expanded": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("direction", OPS)
def test_results_have_the_memory_format_of_x(direction, name, device):
    torch.compiler.reset()
    generator = torch.Generator().manual_seed(5)
    x, *parameters, _, _ = draw_arguments("per element", torch.float32, 3, generator, device)
    x = FORMATS[name](x)
    op = OPS[direction]
    wanted = (x + 1).stride()
    results = op(x, *parameters)
    assert [r.stride() for r in results] == [wanted, wanted]
    for backend in ("eager", "aot_eager"):
        compiled = torch.compile(op, fullgraph=True, backend=backend)
        assert [r.stride() for r in compiled(x, *parameters)] == [wanted, wanted]
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fakes = op(*(mode.from_tensor(t) for t in (x, *parameters)))
    assert [r.stride() for r in fakes] == [wanted, wanted]
    if name != "expanded":
        leaf = x.detach().requires_grad_()
        value, ladj = op(leaf, *(p.requires_grad_() for p in parameters))
        grad, *_ = torch.autograd.grad(value.sum() + ladj.sum(), [leaf, *parameters])
        assert grad.stride() == wanted


def spied_gradients(monkeypatch, run):
    """Which gradients each call of a backward kernel has an address for, and the result of ``run``."""
    asked = []
    for op in table.OPS:
        kernel = op.backward_kernel

        def spy(*args, kernel=kernel, op=op):
            operands = next(a for a in args if isinstance(a, list))
            asked.append([address != 0 for address, _, _ in operands[-len(op.tensors) :]])
            return kernel(*args)

        monkeypatch.setattr(op, "backward_kernel", spy)
    return asked, run()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("direction", OPS)
def test_only_gradients_that_are_asked_for_are_computed(direction, shared, monkeypatch):
    generator = torch.Generator().manual_seed(6)
    shapes = (4000, 18), *[(18, 4) if shared else (4000, 18, 4)] * 3
    x, *parameters = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)

    def gradients(flags, inputs=None):
        leaves = [t.detach().clone().requires_grad_(f) for t, f in zip((x, *parameters), flags, strict=True)]
        value, ladj = OPS[direction](*leaves)
        own = [t for t, f in zip(leaves, inputs or flags, strict=True) if f]
        return torch.autograd.grad(value.sum() + (ladj * ladj).sum(), own)

    whole = gradients((True,) * 4)
    for flags in (
        (True, False, False, False),
        (False, True, True, True),
        (False, False, True, False),
        (True, True, False, True),
    ):
        asked, found = spied_gradients(monkeypatch, lambda flags=flags: gradients(flags))
        slopes = direction == "forward" and not any(flags[1:])  # then the forward op has already computed the slopes
        assert asked == ([] if slopes else [list(flags)])
        for mine, theirs in zip(found, (g for g, f in zip(whole, flags, strict=True) if f), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)
            assert slopes or torch.equal(mine, theirs)
        monkeypatch.undo()
    # All tensors are leaves that require a gradient, and the caller needs one.
    asked, _ = spied_gradients(monkeypatch, lambda: gradients((True,) * 4, (True, False, False, False)))
    assert asked == [[True, False, False, False]]


def test_a_frozen_mixture_gives_the_same_with_slopes(device):
    generator = torch.Generator().manual_seed(7)
    for dtype in (torch.float32, torch.float64):
        x, *parameters, _, _ = draw_arguments("per element", dtype, 5, generator, device)
        x = x * 4
        leaf = x.clone().requires_grad_()
        plain, sloped = mixflow.cdf_transform(x, *parameters), mixflow.cdf_transform(leaf, *parameters)
        assert all(map(torch.equal, plain, sloped))
        (grad,) = torch.autograd.grad(sloped[1].sum(), leaf, retain_graph=True)
        other = [p.clone().requires_grad_() for p in parameters]
        (expected,) = torch.autograd.grad(mixflow.cdf_transform(leaf, *other)[1].sum(), leaf)
        scale = 64 * EPSILON[dtype] * (1 + expected.abs().max())
        torch.testing.assert_close(grad, expected, rtol=0, atol=float(scale))
        assert torch.autograd.grad(sloped[0].sum(), leaf, create_graph=True)[0].requires_grad


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(
    ("family", "base"), [("logistic", "logistic"), ("gaussian", "normal"), ("gaussian", "uniform")]
)
def test_the_affine_map_is_the_composition(family, base, inverse, device):
    generator = torch.Generator().manual_seed(8)
    components = 4
    rows = torch.randn(60, 3, 3 * components + 2, generator=generator, dtype=torch.float64).to(device)
    x = torch.randn(60, 3, generator=generator, dtype=torch.float64).to(device)
    if base == "uniform" and inverse:
        x = torch.sigmoid(x) * rows[..., -1].exp() + rows[..., -2]

    def composed(x, rows):
        logits, loc, log_scale, shift, log_slope = rows.split([components] * 3 + [1, 1], -1)
        shift, log_slope = shift.squeeze(-1), log_slope.squeeze(-1)
        if inverse:
            x = (x - shift) * torch.exp(-log_slope)
            value, ladj = mixflow.cdf_transform_inverse(x, logits, loc, log_scale, family=family, base=base)
            return value, ladj - log_slope
        value, ladj = mixflow.cdf_transform(x, logits, loc, log_scale, family=family, base=base)
        return value * log_slope.exp() + shift, ladj + log_slope

    def own(x, rows):
        return affine_transform(x, rows, family=family, base=base, inverse=inverse)

    leaves = [t.clone().requires_grad_() for t in (x, rows)]
    results, expected = own(*leaves), composed(*leaves)
    torch.testing.assert_close(results, expected)
    loss = [(v * v + w.sin()).sum() for v, w in (results, expected)]
    actual, truth = (torch.autograd.grad(value, leaves) for value in loss)
    torch.testing.assert_close(actual, truth, rtol=1e-9, atol=1e-9)
    few = [t[:2].detach().clone().requires_grad_() for t in (x, rows)]
    assert torch.autograd.gradcheck(own, few, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(own, few, fast_mode=True)
    broadcast = [x[:, 0].detach().clone().requires_grad_(), rows[0, 0].detach().clone().requires_grad_()]
    if not (base == "uniform" and inverse):
        assert torch.autograd.gradcheck(own, broadcast, fast_mode=True)
    torch.testing.assert_close(torch.func.vmap(own)(x, rows), own(x, rows))
    jacobian = torch.func.vmap(torch.func.grad(lambda x, r: own(x, r)[0].sum(), 1))(x, rows)
    whole = torch.autograd.grad(own(*leaves)[0].sum(), leaves[1])[0]
    torch.testing.assert_close(jacobian, whole)
    compiled = torch.compile(own, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*leaves), results)
    torch.testing.assert_close(
        torch.autograd.grad(sum((v * v + w.sin()).sum() for v, w in [compiled(*leaves)]), leaves), actual
    )


@pytest.mark.parametrize("inverse", [False, True])
def test_rows_of_any_layout_and_dtype(inverse, device):
    generator = torch.Generator().manual_seed(9)
    rows = torch.randn(40, 5, 14, generator=generator).to(device)
    x = torch.randn(40, 5, generator=generator).to(device)
    seeds = torch.randn(2, 40, 5, generator=generator).to(device)

    def results(x, rows, g_value, g_ladj):
        leaves = [t.detach().requires_grad_() for t in (x, rows)]
        value, ladj = affine_transform(*leaves, family="gaussian", base="normal", inverse=inverse)
        return value, ladj, *torch.autograd.grad((value, ladj), leaves, (g_value, g_ladj))

    expected = results(x, rows, *seeds)
    assert expected[-1].stride() == rows.stride()
    for _ in range(8):
        operands = [random_layout(t, generator) for t in (x, rows, *seeds)]
        assert all(map(torch.equal, results(*operands), expected))
    value, ladj = affine_transform(x.bfloat16(), rows, family="gaussian", base="normal", inverse=inverse)
    assert value.dtype == ladj.dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r"^rows: expected torch.float32, like x, got torch.float64$"):
        affine_transform(x, rows.double(), family="gaussian", base="normal")
    with pytest.raises(ValueError, match=r"^rows: expected shape \(\.\.\., 3 K \+ 2\) with K >= 1, got \(40, 5, 13\)$"):
        affine_transform(x, rows[..., 1:], family="gaussian", base="normal")


def test_uniform_inverse_stays_in_range(device):
    u = to_base_range(torch.linspace(-3, 3, 7, device=device), "uniform")
    rows = torch.zeros(7, 8, device=device)
    value, _ = affine_transform(u, rows, family="gaussian", base="uniform", inverse=True)
    assert value.isfinite().all()
