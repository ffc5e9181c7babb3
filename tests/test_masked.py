"""An element without an incoming gradient adds nothing to any gradient, whatever it or its own parameters are.

A loss may be masked because of what is masked: a missing target is NaN, a distance infinite. Each test compares the
gradients of such a batch to those of the same batch with ordinary numbers in the masked places.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch.func import grad, hessian, vmap

import mixflow
from mixflow.op import affine_transform

# torch's own tracing instantiates the Function class, which torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning")

N, FEATURES, K = 37, 3, 4
MASKED = [0, 5, 6, 7, 19, 36]  # rows: at both ends, alone and together
BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
SETS = {"shared": (), "per feature": (FEATURES,), "per row": (N, 1), "per element": (N, FEATURES)}


def interval(x, *parameters):
    lower, upper = x.unbind(0)
    return (mixflow.discretized_log_prob(lower, upper, *parameters, family="logistic"),)


def affine(x, rows, inverse=False):
    return affine_transform(x, rows, family="gaussian", base="logistic", inverse=inverse)


OPS = {
    "forward": mixflow.cdf_transform,
    "inverse": mixflow.cdf_transform_inverse,
    "forward to uniform": functools.partial(mixflow.cdf_transform, family="logistic", base="uniform"),
    "interval": interval,
    "affine": affine,
    "affine inverse": functools.partial(affine, inverse=True),
}


def clean(name, sets, device, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    x = draw(N, FEATURES)
    if name == "interval":
        x = torch.stack([x - 0.4, x + 0.7])
    if name.startswith("affine"):
        return x, draw(*SETS[sets], 3 * K + 2)
    return x, *(draw(*SETS[sets], K) for _ in range(3))


def spoil(args, sets, bad, where):
    """The same tensors with ``bad`` in the masked rows: of the elements, or of parameters that no other row uses."""
    args = [a.clone() for a in args]
    if where == "elements":
        args[0][..., MASKED, :] = bad
    else:
        for parameter in args[1:]:
            parameter[MASKED] = bad
    return args


SPOILED = [
    (name, sets, where)
    for name in OPS
    for sets in SETS
    for where in ("elements", "parameters")
    if where == "elements" or sets in ("per row", "per element")
]


def loss_of(name):
    """A masked loss: zero in the masked rows, whatever the op returns there."""

    def loss(*args):
        seen = torch.ones(N, 1, dtype=torch.bool, device=args[0].device)
        seen[MASKED] = False
        return sum(torch.where(seen, r, 0.0).sin().sum() for r in OPS[name](*args))

    return loss


def leaves(args):
    return [a.detach().clone().requires_grad_() for a in args]


def first(loss, args):
    args = leaves(args)
    return torch.autograd.grad(loss(*args), args)


def second(loss, args):
    args = leaves(args)
    gradients = torch.autograd.grad(loss(*args), args, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in gradients), args)


def compiled(loss, args):
    torch.compiler.reset()
    return first(torch.compile(loss, fullgraph=True, backend="aot_eager"), args)


def functional(loss, args):
    return grad(loss, tuple(range(len(args))))(*args)


def functional_compiled(loss, args):
    torch.compiler.reset()
    return torch.compile(lambda *a: functional(loss, a), fullgraph=True, backend="aot_eager")(*args)


def same(actual, expected):
    assert all(g.isfinite().all() for g in expected)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(("name", "sets", "where"), SPOILED)
def test_gradients_are_those_without_the_bad_rows(name, sets, where, bad, device):
    for dtype in (torch.float32, torch.float64):
        args = clean(name, sets, device, dtype)
        same(first(loss_of(name), spoil(args, sets, BAD[bad], where)), first(loss_of(name), args))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(("name", "sets", "where"), SPOILED)
def test_second_derivatives_too(name, sets, where, bad, device):
    args = clean(name, sets, device)
    same(second(loss_of(name), spoil(args, sets, BAD[bad], where)), second(loss_of(name), args))


@pytest.mark.parametrize("way", [compiled, functional, functional_compiled])
@pytest.mark.parametrize("where", ["elements", "parameters"])
@pytest.mark.parametrize("name", OPS)
def test_in_graphs_and_functional_transforms(name, where, way, device):
    args = clean(name, "per row", device)
    same(way(loss_of(name), spoil(args, "per row", math.nan, where)), first(loss_of(name), args))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.slow
def test_hessians(name, device):
    args = clean(name, "per row", device)
    expected = torch.autograd.functional.hessian(lambda p: loss_of(name)(*args[:-1], p), args[-1])
    actual = hessian(loss_of(name), len(args) - 1)(*spoil(args, "per row", math.nan, "elements"))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", OPS)
def test_of_the_elements_alone(name, device):
    """With frozen parameters, the forward op saves its slopes for the gradient."""
    for bad in BAD.values():
        x, *parameters = clean(name, "per element", device, torch.float32)
        expected = first(lambda x: loss_of(name)(x, *parameters), [x])  # noqa: B023
        (spoiled,) = spoil([x], "", bad, "elements")
        same(first(lambda x: loss_of(name)(x, *parameters), [spoiled]), expected)  # noqa: B023


def test_frozen_parameters_in_batches_of_seeds(device):
    x, *parameters = clean("forward", "shared", device)
    x[2, 1] = math.nan
    x.requires_grad_()
    value, _ = mixflow.cdf_transform(x, *parameters)
    seeds = torch.randn(2, N, FEATURES, dtype=torch.float64, device=device)
    seeds[:, 2, 1] = 0.0
    (batch,) = torch.autograd.grad(value, x, seeds, is_grads_batched=True, retain_graph=True)
    same(batch[1], torch.autograd.grad(value, x, seeds[1])[0])


@pytest.mark.parametrize("zero", [0.0, -0.0])
@pytest.mark.parametrize("name", OPS)
def test_a_zero_of_either_sign_counts(name, zero, device):
    args = leaves(spoil(clean(name, "per element", device), "", math.nan, "elements"))
    results = OPS[name](*args)
    seeds = [torch.ones_like(r) for r in results]
    for seed in seeds:
        seed[MASKED] = zero
    by_elements, *by_parameters = torch.autograd.grad(results, args, seeds)
    assert by_elements[..., MASKED, :].abs().sum() == 0
    assert all(g[MASKED].abs().sum() == 0 for g in by_parameters)
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in (by_elements, *by_parameters))


@pytest.mark.parametrize("name", OPS)
def test_an_element_with_a_gradient_is_not_hidden(name, device):
    """NaN in an element of the loss gives NaN in the gradients of the element and of the parameters that it uses."""
    x, *parameters = leaves(spoil(clean(name, "per feature", device), "", math.nan, "elements"))
    results = OPS[name](x, *parameters)
    gradients = torch.autograd.grad(sum(r[5, 1] for r in results), [x, *parameters])
    assert gradients[0][..., 5, 1].isnan().all()
    for gradient in gradients[1:]:
        assert gradient[1, :K].isnan().all()
        assert gradient[[0, 2]].count_nonzero() == 0


@pytest.mark.parametrize("name", OPS)
def test_gradients_by_zero_seeds_are_right(name, device):
    """A gradient is linear in the seeds: its derivative by a seed of zero equals the gradient for a seed of one."""
    args = [a[:2] if a.shape[0] == N else a[:, :2] for a in clean(name, "per element", device)]
    args = leaves(args)
    results = OPS[name](*args)
    zero, one = ([torch.full_like(r, v).requires_grad_() for r in results] for v in (0.0, 1.0))
    at_zero = torch.autograd.grad(results, args, zero, create_graph=True)
    weights = [torch.randn_like(g) for g in at_zero]
    by_seeds = torch.autograd.grad(at_zero, zero, weights)
    at_one = torch.autograd.grad(results, args, one)
    total = sum((g * w).sum() for g, w in zip(at_one, weights, strict=True))
    torch.testing.assert_close(sum(g.sum() for g in by_seeds), total)


@pytest.mark.parametrize("name", OPS)
def test_a_gradient_for_every_row(name, device):
    args = clean(name, "shared", device)
    in_dims = (1 if name == "interval" else 0, *(None,) * (len(args) - 1))

    def of_row(*args):
        return sum(torch.where(args[0].isnan().any(), 0.0, r).sin().sum() for r in OPS[name](*args))

    spoiled = spoil(args, "", math.nan, "elements")
    gradients = vmap(grad(of_row, tuple(range(len(args)))), in_dims)(*spoiled)
    assert all(g.isfinite().all() for g in gradients)
    for gradient in gradients[1:]:
        assert gradient[MASKED].count_nonzero() == 0
        assert gradient.count_nonzero() > 0


# ---------------------------------------------------------------------------------------------------------- Mixture

VALUES = ("log_prob", "cdf", "log_cdf", "log_sf", "icdf", "discretized_log_prob")


def evaluated(name, mixture, value):
    if name == "discretized_log_prob":
        return mixture.discretized_log_prob(value, value - 0.5, value + 0.5)
    return getattr(mixture, name)(value)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
@pytest.mark.parametrize("name", VALUES)
def test_a_masked_value_of_a_mixture(name, family, bad, device):
    generator = torch.Generator().manual_seed(5)
    value = torch.randn(N, generator=generator, dtype=torch.float64).to(device)
    parameters = [torch.randn(K, generator=generator, dtype=torch.float64).to(device) for _ in range(3)]
    seen = torch.ones(N, dtype=torch.bool, device=device)
    seen[MASKED] = False
    spoiled = torch.where(seen, value, BAD[bad])
    if name == "icdf":
        value, spoiled = value.sigmoid(), spoiled.sigmoid()  # infinities become 0 and 1
    gradients = []
    for values in (value, spoiled):
        value_and_parameters = leaves([values, *parameters])
        mixture = mixflow.Mixture(*value_and_parameters[1:], family=family, validate_args=False)
        loss = torch.where(seen, evaluated(name, mixture, value_and_parameters[0]), 0.0).sum()
        gradients.append(torch.autograd.grad(loss, value_and_parameters, create_graph=True))
        penalty = sum(g.square().sum() for g in gradients[-1])
        gradients[-1] = (*gradients[-1], *torch.autograd.grad(penalty, value_and_parameters))
    same(gradients[1], gradients[0])
    alone = leaves(parameters)
    rest = evaluated(name, mixflow.Mixture(*alone, family=family), value[seen])
    torch.testing.assert_close(torch.autograd.grad(rest.sum(), alone), gradients[1][1:4])


@pytest.mark.parametrize("name", ["log_prob", "log_cdf", "log_sf", "entropy"])
def test_a_masked_mixture_in_a_batch(name, device):
    generator = torch.Generator().manual_seed(6)
    logits, log_scale = (torch.randn(K, generator=generator, dtype=torch.float64).to(device) for _ in range(2))
    loc = torch.randn(5, K, generator=generator, dtype=torch.float64).to(device)
    gradients = []
    for bad in (0.0, math.nan, math.inf):
        loc[2] = bad
        parameters = leaves([logits, loc, log_scale])
        mixture = mixflow.Mixture(*parameters, validate_args=False)
        results = mixture.entropy() if name == "entropy" else getattr(mixture, name)(loc.new_zeros(5))
        assert results[2].isfinite() == (bad == 0.0) or name != "entropy"
        loss = torch.where(torch.arange(5, device=device) == 2, 0.0, results).sum()
        gradients.append(torch.autograd.grad(loss, parameters))
    same(gradients[1], gradients[0])
    same(gradients[2], gradients[0])
