"""Values of the ops: against the oracle, over every layout, at the edges, and the errors for bad input."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import mixflow
from cases import EPSILON, FAMILY_AND_BASE, LAYOUTS, arguments, computes_by_units, to_base_range
from mixflow import reference
from mixflow.op import inverse_diagnostics

DTYPES = [torch.float32, torch.float64]


def assert_close(actual: torch.Tensor, expected: torch.Tensor, eps: float, what: str) -> None:
    """|actual - expected| <= eps max(1, |expected|), element by element, and the same shape."""
    assert actual.shape == expected.shape, what
    scale = expected.abs().clamp(min=1)
    error = ((actual.double() - expected.double()).abs() / scale.double()).max() if actual.numel() else torch.zeros(())
    assert error <= eps, f"{what}: off by {error / EPSILON[actual.dtype]:.1f} eps"


def log_density(z: torch.Tensor, base: str) -> torch.Tensor:
    """Of a base distribution."""
    if base == "normal":
        return -0.5 * z * z - 0.5 * math.log(2 * math.pi)
    return z - 2 * torch.nn.functional.softplus(z) if base == "logistic" else torch.zeros_like(z)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_forward_agrees_with_the_oracle(layout, family, base, dtype, device):
    x, *parameters = arguments(layout, dtype, device)
    z, ladj = mixflow.cdf_transform(x, *parameters, family=family, base=base)
    expected = reference.cdf_transform(x.double(), *(p.double() for p in parameters), family=family, base=base)
    assert z.dtype == ladj.dtype == dtype
    if computes_by_units(dtype, device):
        log_base = log_density(expected[0], base)
        ladj_scale = 1 + log_base.abs() + (expected[1] + log_base).abs()
        assert_close(z, expected[0], 8 * EPSILON[dtype], "z")
        assert_close(ladj / ladj_scale, expected[1] / ladj_scale, 8 * EPSILON[dtype], "ladj")
        return
    # The oracle itself is good to some 20 eps of float64.
    eps = (4 if dtype == torch.float32 else 24) * EPSILON[dtype]
    assert_close(z, expected[0], eps, "z")
    assert_close(ladj, expected[1], 2 * eps, "ladj")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inverse_solves_the_equation(layout, family, base, dtype, device):
    z, *parameters = arguments(layout, dtype, device)
    z = to_base_range(z, base)
    x, ladj = mixflow.cdf_transform_inverse(z, *parameters, family=family, base=base)
    doubles = [p.double() for p in parameters]
    back, forward_ladj = reference.cdf_transform(x.double(), *doubles, family=family, base=base)
    slope = forward_ladj.exp()
    z = z.expand(x.shape)
    allowed = 16 * EPSILON[dtype] * z.double().abs().clamp(min=1) + slope * x.double().abs() * EPSILON[dtype]
    assert ((back - z.double()).abs() <= allowed).all()
    assert_close(ladj, -forward_ladj, 64 * EPSILON[dtype], "ladj")


@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_round_trip(family, base, device):
    generator = torch.Generator().manual_seed(1)
    x = (4 * torch.randn(4000, generator=generator, dtype=torch.float64)).to(device)
    if base == "uniform":
        x = x[x.abs() < 3]  # near u = 1, many x have the same u
    _, *parameters = arguments("shared", torch.float64, device)
    z, ladj = mixflow.cdf_transform(x, *parameters, family=family, base=base)
    back, inverse_ladj = mixflow.cdf_transform_inverse(z, *parameters, family=family, base=base)
    allowed = 64 * EPSILON[torch.float64] * (x.abs() + z.abs().clamp(min=1) * (-ladj).exp())
    assert ((back - x).abs() <= allowed).all()
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("family", "base", "reach"), [("gaussian", "normal", 1e3), ("logistic", "logistic", 1e4)])
def test_one_component_is_the_identity_far_into_both_tails(family, base, reach, dtype, device):
    x = torch.linspace(-reach, reach, 4001, dtype=dtype, device=device)
    zero = torch.zeros(1, dtype=dtype, device=device)
    z, ladj = mixflow.cdf_transform(x, zero, zero, zero, family=family, base=base)
    assert_close(z, x, 4 * EPSILON[dtype], "z")
    assert ladj.abs().max() <= 8 * EPSILON[dtype] * reach
    back, _ = mixflow.cdf_transform_inverse(x, zero, zero, zero, family=family, base=base)
    assert_close(back, x, 16 * EPSILON[dtype], "x")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_infinities_and_nan(family, base, dtype, device):
    x = torch.tensor([-math.inf, 0.0, math.nan, 1.0, math.inf], dtype=dtype, device=device)
    parameters = [torch.tensor(p, dtype=dtype, device=device) for p in ([0.0, 1.0], [-1.0, 1.0], [0.0, 0.5])]
    z, ladj = mixflow.cdf_transform(x, *parameters, family=family, base=base)
    ends = (0.0, 1.0) if base == "uniform" else (-math.inf, math.inf)
    assert (z[0].item(), z[4].item()) == ends
    assert z[2].isnan()
    assert ladj[2].isnan()
    assert z[[1, 3]].isfinite().all()
    assert ladj[[1, 3]].isfinite().all()
    back, _ = mixflow.cdf_transform_inverse(z, *parameters, family=family, base=base)
    assert (back[0].item(), back[4].item()) == (-math.inf, math.inf)
    assert back[2].isnan()
    assert back[[1, 3]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["x", "logits", "loc", "log_scale"])
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_nan_of_any_bits_gives_nan(family, base, name, dtype, device):
    info, integer = (np.finfo(np.float32), np.int32) if dtype == torch.float32 else (np.finfo(np.float64), np.int64)
    payloads = np.array([1 << bit for bit in range(info.nmant)] + [(1 << info.nmant) - 1], dtype=integer)
    infinity = np.array(np.inf, info.dtype).view(integer)
    quiet = infinity | payloads | (1 << info.nmant - 1)
    nan = torch.from_numpy(np.concatenate([quiet, infinity | payloads]).view(info.dtype))
    nan = torch.cat([nan, torch.from_numpy(-nan.numpy())]).to(device)
    assert nan.isnan().all()
    parameters = {p: torch.zeros(len(nan), 3, dtype=dtype, device=device) for p in ("logits", "loc", "log_scale")}
    inputs = {"x": torch.full_like(nan, 0.25), **parameters}
    inputs[name].view(len(nan), -1)[:, -1] = nan
    for op in (mixflow.cdf_transform, mixflow.cdf_transform_inverse):
        value, ladj = op(*inputs.values(), family=family, base=base)
        assert value.isnan().all()
        assert ladj.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_a_parameter_that_is_nan_makes_nan_of_every_z(family, base, which, dtype, device):
    """Also where the root is infinite, and the inverse ends before it evaluates anything."""
    largest = torch.finfo(dtype).max
    ends = [0.0, 0.5, 1.0] if base == "uniform" else [-math.inf, -largest, -1e3, 0.0, 1e3, largest, math.inf]
    z = torch.tensor(ends, dtype=dtype, device=device)
    parameters = [torch.tensor([0.0, 1.0], dtype=dtype, device=device) for _ in range(3)]
    parameters[which][0] = math.nan
    for result in mixflow.cdf_transform_inverse(z, *parameters, family=family, base=base):
        assert result.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_a_point_mass_does_not_spoil_a_quantile_that_overflows(family, dtype, device):
    z = torch.tensor([1e3, 1e4], dtype=dtype, device=device)
    parameters = [torch.tensor(p, dtype=dtype, device=device) for p in ([0.0, 0.0], [0.0, 0.0], [-1000.0, 0.0])]
    x, ladj = mixflow.cdf_transform_inverse(z, *parameters, family=family, base="logistic")
    assert not x.isnan().any()
    assert not ladj.isnan().any()


def test_values_outside_the_uniform_base_are_nan(device):
    parameters = [torch.zeros(2, device=device)] * 3
    u = torch.tensor([-0.1, 0.5, 1.1], device=device)
    x, _ = mixflow.cdf_transform_inverse(u, *parameters, base="uniform")
    assert x.isnan().tolist() == [True, False, True]


def random_sets(count, components, spread, log_scale, logit_spread, seed=3):
    """(count, components) parameters: loc in +-spread, log_scale = mean + width N, logits = logit_spread N."""
    g = torch.Generator().manual_seed(seed)
    normal, mean, width = (lambda: torch.randn(count, components, generator=g, dtype=torch.float64)), *log_scale
    return logit_spread * normal(), spread * normal(), mean + width * normal()


HARD = {
    "overlapping": random_sets(400, 8, 1, (-1, 0.3), 1),
    "far apart": random_sets(400, 8, 1000, (0, 3), 1),
    "gap": random_sets(400, 2, 1e6, (-13.8, 0), 1),
    "spike in a bump": (
        *random_sets(400, 2, 1, (0, 0), 1)[:2],
        torch.tensor([[3.0, -10.0]] * 400, dtype=torch.float64),
    ),
    "weights that underflow": random_sets(400, 8, 10, (0, 3), 60),
    "many": random_sets(100, 128, 10, (-1, 1), 3),
    "equal": tuple(torch.zeros(50, 4, dtype=torch.float64) for _ in range(3)),
    "scales over e^+-80": (*random_sets(200, 3, 1, (0, 0), 3)[:2], 25 * random_sets(200, 3, 1, (0, 1), 1)[2]),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
@pytest.mark.parametrize("case", HARD)
def test_inverse_of_hard_mixtures(case, family, base, dtype, device):
    parameters = [p.to(device, dtype) for p in HARD[case]]
    z = 5 * torch.randn(len(parameters[0]), generator=torch.Generator().manual_seed(4))
    z = to_base_range(z, base).to(device, dtype)
    x, _ = mixflow.cdf_transform_inverse(z, *parameters, family=family, base=base)
    _, evaluations, _ = inverse_diagnostics(z.cpu(), *(p.cpu() for p in parameters), family=family, base=base)
    assert evaluations.max() <= (40 if case != "scales over e^+-80" else 150)
    # The quantile of a heavy tail may lie beyond the dtype's range.
    beyond = x.isinf()
    exact, _ = mixflow.cdf_transform_inverse(
        z[beyond].double(), *(p[beyond].double() for p in parameters), family=family, base=base
    )
    assert (exact.abs() > torch.finfo(dtype).max).all()
    x, z, *parameters = (t[~beyond] for t in (x, z, *parameters))
    if dtype == torch.float64:  # the oracle is no more accurate: compare both after the op's own forward direction
        back, ladj = mixflow.cdf_transform(x, *parameters, family=family, base=base)
    else:
        doubles = [p.double() for p in parameters]
        back, ladj = reference.cdf_transform(x.double(), *doubles, family=family, base=base)
    spacing = torch.nextafter(x.abs(), torch.full_like(x, math.inf)) - x.abs()
    allowed = 16 * EPSILON[dtype] * z.double().abs().clamp(min=1) + ladj.double().exp() * spacing.double()
    assert ((back.double() - z.double()).abs() <= allowed).all()


@pytest.mark.parametrize(
    ("spread", "mean_evaluations"), [(1, 4.5), (10, 8)], ids=["overlapping components", "components spread 10 apart"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_mean_number_of_evaluations(family, dtype, spread, mean_evaluations):
    parameters = [p.to(dtype) for p in random_sets(20000, 8, spread, (-1, 0.3), 1)]
    z = torch.randn(20000, generator=torch.Generator().manual_seed(4)).to(dtype)
    _, evaluations, _ = inverse_diagnostics(z, *parameters, family=family)
    assert evaluations.mean() <= mean_evaluations


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_quantile_beyond_the_dtype_is_infinite(dtype, device):
    """F(x) = 1 - 1 / (2 x^2) far out: a logit of 1e4 has its quantile near exp(5000)."""
    zero = torch.zeros(1, dtype=dtype, device=device)
    logit = torch.tensor([-1e4, 1e4], dtype=dtype, device=device)
    x, ladj = mixflow.cdf_transform_inverse(logit, zero, zero, zero, family="student", base="logistic")
    assert x.tolist() == [-math.inf, math.inf]
    assert ladj.tolist() == [math.inf, math.inf]
    # A component so narrow that its own quantile is a number bounds that of both.
    log_scale = torch.tensor([0.0, -5020.0], dtype=torch.float64, device=device).to(dtype)
    none = torch.tensor([0.0, -math.inf], dtype=dtype, device=device)
    x, _ = mixflow.cdf_transform_inverse(logit, none, zero.expand(2), log_scale, family="student", base="logistic")
    assert x.tolist() == [-math.inf, math.inf]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", range(3))
def test_a_bad_parameter_touches_only_the_elements_that_use_it(which, value, device):
    x, *parameters = arguments("per element", torch.float32, device)
    clean = mixflow.cdf_transform(x, *parameters), mixflow.cdf_transform_inverse(x, *parameters)
    parameters[which] = parameters[which].clone()
    parameters[which][7, 1, 2] = value
    broken = mixflow.cdf_transform(x, *parameters), mixflow.cdf_transform_inverse(x, *parameters)
    for before, after in zip(clean, broken, strict=True):
        for mine, theirs in zip(before, after, strict=True):
            changed = mine != theirs
            changed[7, 1] = False
            assert not changed.any()
            assert which == 0 or not math.isnan(value) or theirs[7, 1].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_parameters_beyond_the_dtype(family, dtype, device):
    """The table of edges in docs/how-exact.md."""

    def both(logits, loc, log_scale, x):
        tensors = [torch.tensor(t, dtype=dtype, device=device) for t in (x, logits, loc, log_scale)]
        z, ladj = mixflow.cdf_transform(*tensors, family=family)
        return z, ladj, mixflow.cdf_transform_inverse(*tensors, family=family)[0]

    # Half of the mass at infinity: the upper half of z is never reached.
    z, ladj, x = both([0.0, 0.0], [0.0, math.inf], [0.0, 0.0], [1.0])
    assert z < 0
    assert ladj.isfinite()
    assert x.item() == torch.finfo(dtype).max
    # A point mass: right beside it, NaN at it.
    z, ladj, _ = both([0.0, 0.0], [0.0, 0.0], [0.0, -1000.0], [-1.0, 0.0, 1.0])
    torch.testing.assert_close(z[0], -z[2])
    assert z.isnan().tolist() == ladj.isnan().tolist() == [False, True, False]
    for logits in ([-math.inf] * 2, [0.0, math.inf], [0.0, math.nan]):
        z, ladj, x = both(logits, [0.0, 0.0], [0.0, 0.0], [1.0])
        assert z.isnan().all()
        assert ladj.isnan().all()
        assert x.isnan().all()
    for extreme in (-math.inf, -1000.0, 1000.0, math.inf, math.nan):
        parameters = [0.0, 0.0], [0.0, 1.0], [0.0, extreme]
        z = [-3.0, 0.0, 0.1, 3.0]
        both(*parameters, z)  # returns, on any device
        _, evaluations, _ = inverse_diagnostics(
            *(torch.tensor(t, dtype=dtype) for t in (z, *parameters)), family=family
        )
        assert evaluations.max() <= 100


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_a_component_of_weight_zero_changes_nothing(family, device):
    x, *parameters = arguments("shared", torch.float64, device)
    extra = [
        torch.cat([p, torch.tensor([v], dtype=p.dtype, device=device)])
        for p, v in zip(parameters, (-math.inf, 100.0, 3.0), strict=True)
    ]
    for op in (mixflow.cdf_transform, mixflow.cdf_transform_inverse):
        for mine, theirs in zip(op(x, *parameters, family=family), op(x, *extra, family=family), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
@pytest.mark.parametrize("op", [mixflow.cdf_transform, mixflow.cdf_transform_inverse])
def test_bits_do_not_depend_on_batch_position_or_threads(op, family, dtype, device):
    x, *parameters = arguments("shared, many chunks", dtype, device)
    x = 5 * x  # tails and centre side by side in one pack
    whole = op(x, *parameters, family=family)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert all(map(torch.equal, whole, op(x, *parameters, family=family)))
    finally:
        torch.set_num_threads(threads)
    for begin, end in ((0, 1), (3, 18), (5, 400), (19990, 20001)):
        part = op(x[begin:end], *parameters, family=family)
        assert all(torch.equal(mine[begin:end], piece) for mine, piece in zip(whole, part, strict=True))
    per_element = [p.expand(*x.shape, -1).contiguous() for p in parameters]
    assert all(map(torch.equal, whole, op(x, *per_element, family=family)))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(half, device):
    x, *parameters = arguments("per feature", half, device)
    z, ladj = mixflow.cdf_transform(x, *parameters)
    expected = mixflow.cdf_transform(x.float(), *(p.float() for p in parameters))
    assert z.dtype == ladj.dtype == half
    assert torch.equal(z, expected[0].to(half))
    assert torch.equal(ladj, expected[1].to(half))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["shared", "per feature", "transposed", "strided", "scalar x", "empty", "mixed"])
def test_numpy_gives_what_torch_gives(layout, dtype):
    tensors = arguments(layout, torch.float32 if dtype == np.float32 else torch.float64)
    arrays = [t.numpy() for t in tensors]
    for op in (mixflow.cdf_transform, mixflow.cdf_transform_inverse):
        for array, tensor in zip(op(*arrays), op(*tensors), strict=True):
            assert isinstance(array, np.ndarray)
            assert array.dtype == dtype
            np.testing.assert_array_equal(array, tensor.numpy())


X, P = torch.zeros(4, 3), torch.zeros(5)
BAD_INPUT = {
    "list": (([1.0], P, P, P), {}, TypeError, r"x: expected a torch tensor.*got list"),
    "list parameter": ((X, P, [0.0], P), {}, TypeError, r"loc: expected a torch tensor.*got list"),
    "integer": ((X.int(), P, P, P), {}, TypeError, r"x: expected float16.*got torch.int32"),
    "mixed dtypes": ((X, P, P.double(), P), {}, TypeError, r"loc: expected torch.float32.*got torch.float64"),
    "numpy and torch": ((X.numpy(), P, P, P), {}, TypeError, r"logits: expected a numpy array.*got Tensor"),
    "numpy integers": (
        (X.int().numpy(), *[P.numpy()] * 3),
        {},
        TypeError,
        r"x: expected a float16.*got int32",
    ),
    "device": ((X, P, P, P.to("meta")), {}, ValueError, r"log_scale: expected device cpu.*got meta"),
    "family": (
        (X, P, P, P),
        {"family": "cauchy"},
        ValueError,
        r"family: expected one of gaussian.*got 'cauchy'",
    ),
    "base": ((X, P, P, P), {"base": "beta"}, ValueError, r"base: expected one of normal.*got 'beta'"),
    "no components": ((X, *[P[:0]] * 3), {}, ValueError, r"logits: expected shape \(\.\.\., K\).*got \(0,\)"),
    "scalar parameter": ((X, P, P[0], P), {}, ValueError, r"loc: expected shape \(\.\.\., K\).*got \(\)"),
    "components differ": ((X, P, P[:4], P), {}, ValueError, r"loc: expected shape \(\.\.\., 5\).*got \(4,\)"),
    "batch": (
        (X, P, P, P.expand(2, 5)),
        {},
        ValueError,
        r"log_scale: expected.*against \(4, 3\), got \(2, 5\)",
    ),
}


@pytest.mark.parametrize("op", [mixflow.cdf_transform, mixflow.cdf_transform_inverse])
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_clear_error(case, op):
    args, options, error, message = BAD_INPUT[case]
    if op is mixflow.cdf_transform_inverse:
        message = message.replace("x: ", "z: ")
    with pytest.raises(error, match=message):
        op(*args, **options)


def test_too_many_axes_are_refused_not_overrun():
    x = torch.zeros(18).as_strided((2,) * 17, (1,) * 17)
    parameters = [torch.zeros(3)] * 3
    with pytest.raises(ValueError, match="at most 16 batch axes"):
        mixflow.cdf_transform(x, *parameters)


# torch's own tracing instantiates the Function class, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic, device):
    def loss(x, logits, loc, log_scale):
        z, ladj = mixflow.cdf_transform(x, logits, loc, log_scale, family="logistic", base="logistic")
        back, inverse_ladj = mixflow.cdf_transform_inverse(
            z, logits, loc, log_scale, family="logistic", base="logistic"
        )
        return (z * z + ladj).sum() + (back * inverse_ladj).sum()

    x, *parameters = arguments("per feature", torch.float64, device)
    leaves = [p.requires_grad_() for p in parameters]
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    expected, actual = loss(x, *leaves), compiled(x, *leaves)
    torch.testing.assert_close(actual, expected)
    expected_grads, actual_grads = torch.autograd.grad(expected, leaves), torch.autograd.grad(actual, leaves)
    torch.testing.assert_close(actual_grads, expected_grads)


@pytest.mark.parametrize("inverse", [False, True])
def test_registered_ops_pass_opcheck(inverse, device):
    x, *parameters = arguments("per feature", torch.float64, device)
    tests = ["test_schema", "test_faketensor"]
    torch.library.opcheck(
        torch.ops.mixflow.map.default, (x, *parameters, "gaussian", "normal", inverse), test_utils=tests
    )
    g = torch.ones_like(x)
    torch.library.opcheck(
        torch.ops.mixflow.map_backward.default,
        (g, g, x, *parameters, "gaussian", "normal", inverse),
        test_utils=tests,
    )


def test_show_config_prints_readably():
    config = mixflow.show_config()
    assert config["mixflow"] == mixflow.__version__
    assert f"threads           {torch.get_num_threads()}" in str(config)


@pytest.mark.parametrize("which", ["family", "base"])
def test_a_name_of_any_type_is_refused_by_name(which):
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match=rf"^{which}: expected one of .*, got \['gaussian'\]$"):
        mixflow.cdf_transform(zero, zero, zero, zero, **{which: ["gaussian"]})


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
def test_large_results_ask_for_huge_pages():
    z, _ = mixflow.cdf_transform(torch.zeros(1 << 22), *torch.zeros(3, 2))
    inside, flags = z.data_ptr() + z.nbytes // 2, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            begin, end = (int(address, 16) for address in line.split()[0].split("-"))
        elif line.startswith("VmFlags") and begin <= inside < end:
            flags = line
    assert "hg" in flags.split()


def test_a_root_far_inside_a_bracket_of_astronomic_length_is_found():
    """The root lies between two components; a third, of weight zero, widens the bracket to the largest number."""
    logits, loc = [0.0, 0.0, -1e300], [-123.8, 0.63, 16.7]
    parameters = [torch.tensor(p, dtype=torch.float64) for p in (logits, loc, [1.0, 0.82, math.inf])]
    z = torch.linspace(0.51, 0.99, 49, dtype=torch.float64)
    x, evaluations, residual = inverse_diagnostics(z, *parameters, base="uniform")
    assert residual.abs().max() < 1e-13
    assert evaluations.max() < 200
    torch.testing.assert_close(mixflow.cdf_transform(x, *parameters, base="uniform")[0], z)
