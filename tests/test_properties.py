"""Properties of the ops over shapes, dtypes, layouts and extreme values that hypothesis draws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mixflow
import truth
from cases import EPSILON, FAMILY_AND_BASE
from mixflow.op import inverse_diagnostics

# derandomize: every run has the same examples, so that CI fails because of a change and not by chance.
bounded = settings(max_examples=225, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
long = settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))

ORDINARY = {"x": (-20.0, 20.0), "logits": (-5.0, 5.0), "loc": (-5.0, 5.0), "log_scale": (-2.0, 2.0)}
DTYPES = [torch.float32, torch.float64]


def numbers(name, extreme):
    if extreme:
        return st.floats(allow_nan=True, allow_infinity=True)
    return st.floats(*ORDINARY[name])


@st.composite
def tensors(draw, name, shape, dtype, extreme):
    """A tensor of this shape: any order of axes in memory, with gaps or with axes that repeat."""
    values = draw(st.lists(numbers(name, extreme), min_size=1, max_size=12))
    count = math.prod(shape)
    flat = torch.tensor([values[i % len(values)] for i in range(count)], dtype=torch.float64).to(dtype)
    tensor = flat.reshape(shape)
    match draw(st.sampled_from(["contiguous", "permuted", "gaps", "repeats"])):
        case "permuted":
            order = draw(st.permutations(range(len(shape))))
            inverse = [order.index(i) for i in range(len(shape))]
            tensor = tensor.permute(order).contiguous().permute(inverse)
        case "gaps" if shape:
            wide = torch.full((*shape[:-1], 2 * shape[-1] + 1), math.nan, dtype=dtype)
            wide[..., 1::2] = tensor
            tensor = wide[..., 1::2]
        case "repeats" if shape and shape[0] > 0:
            tensor = tensor[:1].expand(shape)
    return tensor


@st.composite
def calls(draw, extreme=False):
    """The arguments of an op: a batch shape, and operands that broadcast to it."""
    dtype = draw(st.sampled_from(DTYPES))
    batch = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 16, 17, 40]), max_size=3)))
    components = draw(st.sampled_from([1, 2, 3, 4, 8, 9, 17]))

    def part():
        own = batch[draw(st.integers(0, len(batch))) :]
        return tuple(draw(st.sampled_from([size, 1])) for size in own)

    x = draw(tensors("x", batch, dtype, extreme))
    shared = part()
    shapes = [shared if draw(st.booleans()) else part() for _ in range(3)]
    parameters = [
        draw(tensors(name, (*shape, components), dtype, extreme))
        for name, shape in zip(("logits", "loc", "log_scale"), shapes, strict=True)
    ]
    family, base = draw(st.sampled_from(FAMILY_AND_BASE))
    return (x, *parameters), {"family": family, "base": base}


def on(device, call):
    """The same call on the device, with the strides that its tensors have."""

    def moved(t):
        memory = t.as_strided((t.untyped_storage().nbytes() // t.itemsize,), (1,), 0).to(device)
        return memory.as_strided(t.shape, t.stride(), t.storage_offset())

    arguments, options = call
    return tuple(map(moved, arguments)), options


def same(a, b):
    return a.dtype == b.dtype and np.array_equal(a.cpu().numpy(), b.cpu().numpy(), equal_nan=True)


def batch_independence(call):
    """An element has the same result alone and in a batch, in any layout; shapes are those of broadcasting."""
    arguments, options = call
    shape = torch.broadcast_shapes(arguments[0].shape, *(p.shape[:-1] for p in arguments[1:]))
    expanded = [arguments[0].expand(shape), *(p.expand(*shape, p.shape[-1]) for p in arguments[1:])]
    plain = [t.contiguous() for t in expanded]
    for op in (mixflow.cdf_transform, mixflow.cdf_transform_inverse):
        whole = op(*arguments, **options)
        assert [t.shape for t in whole] == [shape, shape]
        assert all(map(same, whole, op(*plain, **options)))
        flat = [t.reshape(-1) for t in whole]
        rows = [plain[0].reshape(-1), *(p.reshape(-1, p.shape[-1]) for p in plain[1:])]
        for index in range(0, len(flat[0]), max(1, len(flat[0]) // 5)):
            alone = op(*(row[index] for row in rows), **options)
            assert all(same(mine, theirs[index]) for mine, theirs in zip(alone, flat, strict=True))


@bounded
@given(calls(extreme=False))
def test_results_belong_to_the_element(device, call):
    batch_independence(on(device, call))


@bounded
@given(calls(extreme=True))
def test_extreme_results_belong_to_the_element(device, call):
    batch_independence(on(device, call))


def round_trip(call):
    """The inverse undoes the map, as far as the digits of x and z allow; the map is monotone."""
    arguments, options = call
    x, *parameters = arguments
    if x.numel() == 0:
        return
    epsilon = EPSILON[x.dtype]
    z, ladj = mixflow.cdf_transform(*arguments, **options)
    assert z.isfinite().all()
    x = x.expand(z.shape)
    if options["base"] == "uniform":  # near 1, u has too few digits for x
        inside = (z > epsilon) & (z < 1 - 2**10 * epsilon)
    else:
        inside = torch.ones_like(z, dtype=torch.bool)
    back, _ = mixflow.cdf_transform_inverse(z, *parameters, **options)
    allowed = 64 * epsilon * (torch.exp(-ladj) * z.abs().clamp(min=1) + x.abs().clamp(min=1))
    assert ((back - x).abs() <= allowed)[inside].all()
    flat = x.double()
    higher, _ = mixflow.cdf_transform((flat + 0.5).to(x.dtype), *parameters, **options)
    # Where F is flat or saturated, both are the same number within four roundings.
    assert (higher >= z - 8 * epsilon * z.abs().clamp(min=1)).all()


@bounded
@given(calls(extreme=False))
def test_round_trip_and_order(device, call):
    round_trip(on(device, call))


def sound_gradients(call):
    """Gradients by ordinary numbers are finite and have the shape of their input."""
    arguments, options = call
    leaves = [t.detach().clone().requires_grad_() for t in arguments]
    z, ladj = mixflow.cdf_transform(*leaves, **options)
    grads = torch.autograd.grad((z + ladj).sum(), leaves)
    for grad, leaf in zip(grads, leaves, strict=True):
        assert grad.shape == leaf.shape
        assert grad.isfinite().all()
    # A common shift of all logits changes nothing, except by the rounding of every element of a parameter set.
    if z.numel():
        scale = 1e4 * (grads[1].abs().sum(-1) + 1) + 64 * z.numel() / grads[1][..., 0].numel()
        assert (grads[1].sum(-1).abs() <= EPSILON[z.dtype] * scale).all()


@bounded
@given(calls(extreme=False))
def test_gradients_are_sound(device, call):
    sound_gradients(on(device, call))


def survives(call):
    """No input makes an op fail, hang or read other memory; NaN in x gives NaN, and gradients can be computed."""
    arguments, options = call
    z, ladj = mixflow.cdf_transform(*arguments, **options)
    x = arguments[0].expand(z.shape)
    assert z[x.isnan()].isnan().all()
    assert ladj[x.isnan()].isnan().all()
    if z.numel():
        _, evaluations, _ = inverse_diagnostics(*(t.cpu() for t in arguments), **options)
        assert evaluations.max() < truth.CONSTANTS["float32"]["most_evaluations"]  # no search was cut off
    leaves = [t.detach().clone().requires_grad_() for t in arguments]
    for op in (mixflow.cdf_transform, mixflow.cdf_transform_inverse):
        torch.autograd.grad(sum(t.sum() for t in op(*leaves, **options)), leaves)


@bounded
@given(calls(extreme=True))
def test_every_input_is_survived(device, call):
    survives(on(device, call))


MANY = {
    "batch independence": (batch_independence, False),
    "batch independence, extreme": (batch_independence, True),
    "round trip": (round_trip, False),
    "gradients": (sound_gradients, False),
    "survival": (survives, True),
}


@pytest.mark.release
@pytest.mark.parametrize("case", MANY)
def test_many_more_examples(case):
    check, extreme = MANY[case]
    long(given(calls(extreme=extreme))(check))()
