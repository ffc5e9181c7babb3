"""Gradients of the ops: finite differences, the oracle's autograd, and torch.func, in both directions."""

from __future__ import annotations

import math

import pytest
import torch

import mixflow
from cases import EPSILON, FAMILY_AND_BASE, LAYOUTS, arguments, to_base_range
from mixflow import reference
from truth import FAMILIES as RECORDS
from truth import mpf

OPS = {"forward": mixflow.cdf_transform, "inverse": mixflow.cdf_transform_inverse}
SMALL = ["shared", "per feature", "per row", "per element", "mixed", "transposed", "scalar x", "expanded"]


def leaves(tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def small(layout, base, direction, device):
    x, *parameters = arguments(layout, torch.float64, device)
    x = x[:3] if x.dim() == 1 and parameters[0].dim() == 1 else x
    return leaves([to_base_range(x, base) if direction == "inverse" else x, *parameters])


@pytest.mark.parametrize("direction", OPS)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
@pytest.mark.parametrize("layout", SMALL)
def test_gradcheck(layout, family, base, direction, device):
    def run(*args):
        return OPS[direction](*args, family=family, base=base)

    assert torch.autograd.gradcheck(run, small(layout, base, direction, device), fast_mode=True)


@pytest.mark.parametrize("direction", OPS)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_gradgradcheck(family, base, direction, device):
    def run(*args):
        return OPS[direction](*args, family=family, base=base)

    assert torch.autograd.gradgradcheck(run, small("per feature", base, direction, device), fast_mode=True)


@pytest.mark.parametrize("direction", OPS)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_forward_mode(family, base, direction, device):
    def run(*args):
        return OPS[direction](*args, family=family, base=base)

    inputs = small("per feature", base, direction, device)
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True, check_backward_ad=False, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("direction", OPS)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_agree_with_the_oracle(layout, family, base, direction, dtype, device):
    x, *parameters = arguments(layout, dtype, device)
    if direction == "inverse":
        x = to_base_range(x, base)
    ours = leaves([x, *parameters])
    value, ladj = OPS[direction](*ours, family=family, base=base)
    generator = torch.Generator().manual_seed(2)
    seeds = [torch.randn(value.shape, generator=generator, dtype=torch.float64).to(device) for _ in range(2)]
    actual = torch.autograd.grad([value, ladj], ours, [s.to(dtype) for s in seeds])

    oracle = {"forward": reference.cdf_transform, "inverse": reference.cdf_transform_inverse}[direction]
    theirs = leaves([t.double() for t in ours])
    seeds = [s.to(dtype).double() for s in seeds]
    expected = torch.autograd.grad(oracle(*theirs, family=family, base=base), theirs, seeds)
    for name, mine, truth in zip(("x", "logits", "loc", "log_scale"), actual, expected, strict=True):
        assert mine.shape == truth.shape
        if not mine.numel():
            continue
        # A summed gradient may cancel. Its scale is that of its terms, times sqrt(count) for random seeds.
        count = max(1, value.numel() // mine.numel())
        error = (mine.double() - truth).abs().max() / (truth.abs().max() + math.sqrt(count))
        assert error <= 256 * EPSILON[dtype], f"{name}: off by {error / EPSILON[dtype]:.0f} eps"


def test_only_one_output_used(device):
    x, *parameters = leaves(arguments("per feature", torch.float64, device))
    z, ladj = mixflow.cdf_transform(x, *parameters)
    separate = [torch.autograd.grad(out.sum(), [x, *parameters], retain_graph=True) for out in (z, ladj)]
    both = torch.autograd.grad(z.sum() + ladj.sum(), [x, *parameters])
    for a, b, c in zip(*separate, both, strict=True):
        torch.testing.assert_close(a + b, c)


def test_gradient_sums_do_not_depend_on_threads(device):
    x, *parameters = leaves(arguments("shared, many chunks", torch.float32, device))

    def gradients():
        z, ladj = mixflow.cdf_transform(x, *parameters)
        return torch.autograd.grad((z * z + ladj).sum(), [x, *parameters])

    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(gradients())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_a_component_of_weight_zero_gets_gradient_zero(device):
    x, *parameters = arguments("shared", torch.float64, device)
    parameters[0] = parameters[0].clone()
    parameters[0][2] = -math.inf
    for op in OPS.values():
        ours = leaves([x, *parameters])
        value, ladj = op(*ours)
        grads = torch.autograd.grad((value * value + ladj).sum(), ours)
        assert all(g.isfinite().all() for g in grads)
        assert [g[2].item() for g in grads[1:]] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("direction", OPS)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_bits_of_gradients_do_not_depend_on_neighbours(family, base, direction, dtype, device):
    _, *parameters = arguments("shared", dtype, device)
    per_element = [p.expand(128, -1).contiguous() for p in parameters]
    median, _ = mixflow.cdf_transform_inverse(torch.zeros((), dtype=dtype, device=device), *parameters, family=family)
    steps = torch.arange(-64, 64, dtype=dtype, device=device) * EPSILON[dtype] / 4
    calm = median * (1 + steps) if direction == "forward" else to_base_range(steps, base)
    wild = calm.clone()
    wild[::2] = 1e4 if direction == "forward" or base != "uniform" else 1e-30

    def gradients(x):
        ours = leaves([x, *per_element])
        value, ladj = OPS[direction](*ours, family=family, base=base)
        return [g[1::2] for g in torch.autograd.grad((value + ladj).sum(), ours)]

    assert all(map(torch.equal, gradients(calm), gradients(wild)))


@pytest.mark.parametrize("direction", OPS)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_a_vanishing_scale_leaves_gradients_finite(family, base, direction, device):
    x = torch.tensor([0.3, 0.6], device=device)
    ours = leaves(
        [x, torch.zeros(2, device=device), torch.zeros(2, device=device), torch.tensor([-70.0, 0.0], device=device)]
    )
    value, ladj = OPS[direction](*ours, family=family, base=base)
    for gradient in torch.autograd.grad((value + ladj).sum(), ours):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("direction", OPS)
def test_vmap_over_elements_and_parameters(direction, device):
    x, *parameters = arguments("per feature", torch.float64, device)
    batch = [torch.stack([p, p + 0.1, p - 0.1, p * 0.9]) for p in parameters]
    op = OPS[direction]
    for in_dims, args in {
        (0, None, None, None): (x, *parameters),
        (None, 0, 0, 0): (x, *batch),
        (1, 0, 0, 0): (x, *parameters),
        (None, None, 0, None): (x, parameters[0], batch[1], parameters[2]),
    }.items():
        actual = torch.func.vmap(op, in_dims)(*args)
        size = next(a.shape[d] for a, d in zip(args, in_dims, strict=True) if d is not None)
        rows = [
            op(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True))) for i in range(size)
        ]
        for out, expected in zip(actual, zip(*rows, strict=True), strict=True):
            torch.testing.assert_close(out, torch.stack(expected))


@pytest.mark.parametrize("direction", OPS)
def test_functional_transforms(direction, device):
    x, *parameters = arguments("shared", torch.float64, device)
    x = x[:4]

    def loss(x, *parameters):
        value, ladj = OPS[direction](x, *parameters)
        return (value * value + ladj).sum()

    tensors = leaves([x, *parameters])
    expected = torch.autograd.grad(loss(*tensors), tensors)
    argnums = tuple(range(4))
    torch.testing.assert_close(torch.func.grad(loss, argnums)(x, *parameters), expected)
    torch.testing.assert_close(torch.func.jacrev(loss, argnums)(x, *parameters), expected)
    torch.testing.assert_close(torch.func.jacfwd(loss, argnums)(x, *parameters), expected)
    # A gradient for every sample, which differential privacy needs.
    each = torch.func.vmap(torch.func.grad(loss, argnums), (0, None, None, None))(x, *parameters)
    torch.testing.assert_close(each[0], expected[0])
    torch.testing.assert_close(tuple(g.sum(0) for g in each[1:]), expected[1:])
    hessian = torch.func.hessian(loss, 2)(x, *parameters)
    twice = torch.autograd.functional.hessian(lambda loc: loss(x, parameters[0], loc, parameters[2]), parameters[1])
    torch.testing.assert_close(hessian, twice)


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_gradients_of_one_wide_component_follow_the_closed_form(family, device):
    # d log c(a) / dx is the score over the scale: so small that its square underflows
    for dtype, log_scale in ((torch.float64, 400.0), (torch.float32, 40.0)):
        scale = math.exp(log_scale)
        x = torch.tensor([-1.5 * scale, 0.2 * scale, 0.7 * scale], dtype=dtype, device=device, requires_grad=True)
        zero = torch.zeros(1, dtype=dtype, device=device)
        _, ladj = mixflow.cdf_transform(x, zero, zero, zero + log_scale, family=family, base="uniform")
        (found,) = torch.autograd.grad(ladj.sum(), x)
        a = x.detach().double() / scale
        scores = [float(RECORDS[family].at(mpf(v)).score) for v in a.tolist()]
        expected = torch.tensor(scores, dtype=torch.float64, device=device) / scale
        assert torch.allclose(found.double(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("infinity", [math.inf, -math.inf])
def test_a_component_at_infinity_has_gradients_zero(infinity, dtype, device):
    x = torch.tensor([0.3], dtype=dtype, device=device)
    ours = leaves(
        [x, *(torch.tensor(p, dtype=dtype, device=device) for p in ([0.1, -0.3], [infinity, 1.0], [0.1, -0.5]))]
    )
    value, ladj = mixflow.cdf_transform(*ours, family="logistic")
    for gradient in torch.autograd.grad((value + ladj).sum(), ours)[2:]:
        assert gradient[0] == 0
        assert gradient[1].isfinite()
