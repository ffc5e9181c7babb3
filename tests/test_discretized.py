"""discretized_log_prob: against mpmath and the oracle, its derivatives, its edges, and as a registered op."""

from __future__ import annotations

import dataclasses
import math

import mpmath as mp
import numpy as np
import pytest
import torch

import mixflow
import truth
from cases import EPSILON, LAYOUTS, arguments
from mixflow import reference, standard
from mixflow.op import written_out

DTYPES = [torch.float32, torch.float64]
SMALL = ["shared", "per feature", "per row", "per element", "mixed", "transposed", "scalar x", "expanded"]


def leaves(tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


def edges_around(x, seed=5):
    """Edges of intervals around x, 0.002 to 20 long, some of them without a lower or an upper end."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.logspace(-3, 1, max(1, x.numel()), dtype=torch.float64)[: x.numel()]
    half = half[torch.randperm(x.numel(), generator=generator)].reshape(x.shape).to(x.device, x.dtype)
    which = torch.randint(8, x.shape, generator=generator).to(x.device)
    return torch.where(which == 0, -math.inf, x - half), torch.where(which == 1, math.inf, x + half)


def interval_arguments(layout, dtype, device="cpu"):
    x, *parameters = arguments(layout, dtype, device)
    return [*edges_around(x), *parameters]


# ------------------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("dtype", truth.DTYPES)
@pytest.mark.parametrize("family", truth.FAMILIES)
def test_bounds(family, dtype, device):
    """4 eps times 1 + |log P| for the value, 64 eps times the terms of its sum for a gradient."""
    bins = truth.sample_bins(dtype, family, 225, seed=3)
    table = truth.measure_bins(bins, mixflow.discretized_log_prob, device)
    assert table.keys() == {(figure, kind) for figure in truth.BIN_BOUNDS for kind in truth.BIN_KINDS}
    for (figure, kind), worst in table.items():
        assert worst.error <= truth.BIN_BOUNDS[figure], f"{figure}, {kind}: {worst.error:.3g} eps; {worst.note}"


@pytest.mark.parametrize("family", truth.FAMILIES)
def test_truth_differentiates_itself(family):
    point = [mp.mpf(v) for v in (0.2, 0.7, 0.3, -0.7, -1.0, 0.25, -0.5, 0.4)]

    def split(p):
        return p[0], p[1], p[2:4], p[4:6], p[6:8]

    exact = truth.log_interval(*split(point), family)[1]
    flat = [value for name in (*truth.EDGES, *truth.PARAMETERS) for value, _ in exact[name]]
    with mp.workdps(140):
        h = mp.mpf(10) ** -40
        for i, derivative in enumerate(flat):
            ends = [[p + sign * h * (i == j) for j, p in enumerate(point)] for sign in (1, -1)]
            up, down = (truth.log_interval(*split(end), family)[0] for end in ends)
            assert abs((up - down) / (2 * h) - derivative) < mp.mpf(10) ** -60


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_the_oracle(layout, family, dtype, device):
    ours = leaves(interval_arguments(layout, dtype, device))
    value = mixflow.discretized_log_prob(*ours, family=family)
    theirs = leaves([t.double() for t in ours])
    expected = reference.discretized_log_prob(*theirs, family=family)
    assert value.shape == expected.shape
    assert value.dtype == dtype
    if not value.numel():
        return
    error = (value.double() - expected).abs() / (1 + expected.abs())
    assert error.max() <= 8 * EPSILON[dtype]
    seed = torch.randn(value.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device, dtype)
    actual = torch.autograd.grad(value, ours, seed)
    truths = torch.autograd.grad(expected, theirs, seed.double())
    for name, mine, truth_ in zip(("lower", "upper", *truth.PARAMETERS), actual, truths, strict=True):
        assert mine.shape == truth_.shape
        count = max(1, value.numel() // mine.numel())
        error = (mine.double() - truth_).abs().max() / (truth_.abs().max() + math.sqrt(count))
        assert error <= 256 * EPSILON[dtype], f"{name}: off by {error / EPSILON[dtype]:.0f} eps"


FORMULAS = {"oracle": reference.discretized_log_prob, "written out": written_out.discretized_log_prob}


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_the_formulas_agree_with_high_precision(family, formula):
    for b in truth.sample_bins("float64", family, 54, seed=4):
        exact, _ = truth.log_interval(b.lower, b.upper, b.logits, b.loc, b.log_scale, family)
        values = [torch.tensor(getattr(b, n), dtype=torch.float64) for n in (*truth.EDGES, *truth.PARAMETERS)]
        got = FORMULAS[formula](*values, family=family).item()
        assert abs(got - exact) <= 1e-13 * (1 + abs(exact)), b


def test_the_written_out_op_integrates_over_a_kink(monkeypatch):
    """The density of the Laplace distribution has a kink, and its intervals have a closed form."""
    laplace = dataclasses.replace(
        standard.FAMILIES["logistic"],
        log_cdf=lambda a: torch.where(a < 0, a.clamp(max=0), torch.log(2 - torch.exp(-a.clamp(min=0)))) - math.log(2),
        log_pdf=lambda a: -a.abs() - math.log(2),
        smooth=False,
    )
    monkeypatch.setitem(standard.FAMILIES, "laplace", laplace)
    edges = torch.tensor([-3.0, -1.0, -0.4, -1e-9, 0.0, 1e-12, 0.3, 0.9, 5.0], dtype=torch.float64)
    lower, upper = (edge.clone().requires_grad_() for edge in torch.combinations(edges).T)
    zero = torch.zeros(1, dtype=torch.float64)
    value = written_out.discretized_log_prob(lower, upper, zero, zero, zero, family="laplace")

    def mass(t):  # between 0 and t >= 0
        return -0.5 * torch.expm1(-t)

    a, b = lower.detach(), upper.detach()
    apart = torch.exp(-torch.minimum(a.abs(), b.abs())) * mass(b - a)
    expected = torch.where((a < 0) & (b > 0), mass(-a) + mass(b), apart)
    torch.testing.assert_close(value.exp(), expected, rtol=1e-13, atol=0)
    slopes = torch.autograd.grad(value.sum(), (lower, upper))
    for slope, edge, sign in zip(slopes, (a, b), (-1, 1), strict=True):
        torch.testing.assert_close(slope, sign * 0.5 * torch.exp(-edge.abs()) / expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", truth.DTYPES)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_a_narrow_bin_has_the_density_times_its_width(family, dtype, device):
    """Over one ulp at x, F(upper) - F(lower) is zero or one ulp of 1; here the density is right to the last digits."""
    number = np.dtype(dtype).type
    lower = np.concatenate([s * np.logspace(-2, 1.5, 200) for s in (-1, 1)]).astype(number)
    upper = np.nextafter(lower, number(math.inf))
    parameters = [np.array(p, dtype=number) for p in ([0.3, -0.7, 0.1], [-1.0, 0.25, 1.5], [-0.5, 0.0, -1.0])]
    tensors = [torch.tensor(a, device=device) for a in (lower, upper, *parameters)]
    got = mixflow.discretized_log_prob(*tensors, family=family).cpu().numpy().astype(np.float64)
    density = mixflow.cdf_transform(
        0.5 * lower.astype(np.float64) + 0.5 * upper, *(p.astype(np.float64) for p in parameters), family=family,
        base="uniform",
    )[1]  # fmt: skip
    expected = density + np.log(upper.astype(np.float64) - lower)
    assert (np.abs(got - expected) <= 4 * truth.EPSILON[dtype] * (1 + np.abs(expected))).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_bins_add_up(family, dtype, device):
    _, *parameters = arguments("shared", dtype, device)
    inner = torch.linspace(-6, 6, 257, dtype=dtype, device=device)
    ends = torch.tensor([math.inf], dtype=dtype, device=device)
    edges = torch.cat([-ends, inner, ends])
    whole = mixflow.discretized_log_prob(edges[:-1], edges[1:], *parameters, family=family).exp().sum()
    assert abs(whole.item() - 1) <= 32 * EPSILON[dtype]
    upper = mixflow.discretized_log_prob(inner, ends, *parameters, family=family)
    torch.testing.assert_close(upper.flip(0).exp().diff().sum(), (upper[0].exp() - upper[-1].exp()))
    m = mixflow.Mixture(*parameters, family=family)
    lower = mixflow.discretized_log_prob(-ends, inner, *parameters, family=family)
    bound = {"rtol": 8 * EPSILON[dtype], "atol": 8 * EPSILON[dtype]}
    torch.testing.assert_close(lower, m.log_cdf(inner), **bound)
    torch.testing.assert_close(upper, m.log_sf(inner), **bound)


# ------------------------------------------------------------------------------------------------------- the edges


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_special_edges(family, dtype, device):
    inf, nan = math.inf, math.nan
    table = [
        ((-inf, inf), 0.0),
        ((1.0, 1.0), -inf),
        ((inf, inf), -inf),
        ((-inf, -inf), -inf),
        ((2.0, 1.0), nan),
        ((inf, -inf), nan),
        ((inf, 0.0), nan),
        ((0.0, -inf), nan),
        ((nan, 1.0), nan),
        ((0.0, nan), nan),
    ]
    lower, upper = (torch.tensor(v, dtype=dtype, device=device) for v in zip(*(e for e, _ in table), strict=True))
    parameters = [torch.tensor(p, dtype=dtype, device=device) for p in ([0.0, 1.0], [-1.0, 1.0], [0.0, 0.5])]
    expected = torch.tensor([v for _, v in table], dtype=dtype, device=device)
    got = mixflow.discretized_log_prob(lower, upper, *parameters, family=family)
    torch.testing.assert_close(got, expected, rtol=0, atol=2 * EPSILON[dtype], equal_nan=True)
    assert got[0] <= 0
    oracle = reference.discretized_log_prob(lower, upper, *parameters, family=family)
    torch.testing.assert_close(oracle, expected, rtol=0, atol=2 * EPSILON[dtype], equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_infinite_edges_have_gradient_zero(family, dtype, device):
    ours = leaves(interval_arguments("shared", dtype, device))
    with torch.no_grad():
        ours[0][5], ours[1][5] = -math.inf, math.inf
    value = mixflow.discretized_log_prob(*ours, family=family)
    grads = torch.autograd.grad(value.sum(), ours)
    assert all(g.isfinite().all() for g in grads)
    for edge, gradient in zip(ours[:2], grads[:2], strict=True):
        assert edge.isinf().any()
        assert torch.equal(gradient == 0, edge.isinf())


def test_a_bad_parameter_touches_only_the_elements_that_use_it(device):
    ours = interval_arguments("per element", torch.float32, device)
    clean = mixflow.discretized_log_prob(*ours)
    for which in range(2, 5):
        broken = [t.clone() for t in ours]
        broken[which][7, 1, 2] = math.nan
        changed = mixflow.discretized_log_prob(*broken) != clean
        assert changed[7, 1]
        changed[7, 1] = False
        assert not changed.any()


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_a_component_of_weight_zero_changes_nothing(family, device):
    ours = interval_arguments("shared", torch.float64, device)
    extra = [
        torch.cat([p, torch.tensor([v], dtype=p.dtype, device=device)])
        for p, v in zip(ours[2:], (-math.inf, 100.0, 3.0), strict=True)
    ]
    with_extra = leaves([*ours[:2], *extra])
    value = mixflow.discretized_log_prob(*with_extra, family=family)
    torch.testing.assert_close(value, mixflow.discretized_log_prob(*ours, family=family), rtol=0, atol=0)
    grads = torch.autograd.grad(value.sum(), with_extra)
    assert all(g.isfinite().all() for g in grads)
    assert [g[-1].item() for g in grads[2:]] == [0.0, 0.0, 0.0]


# ------------------------------------------------------------------------------------------ bits, dtypes, layouts


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_bits_do_not_depend_on_batch_position_or_threads(family, dtype, device):
    lower, upper, *parameters = leaves(interval_arguments("shared, many chunks", dtype, device))

    def run(a, b, *p):
        value = mixflow.discretized_log_prob(a, b, *p, family=family)
        return [value, *torch.autograd.grad(value.sum(), [a, b, *p])]

    whole = run(lower, upper, *parameters)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert all(map(torch.equal, whole, run(lower, upper, *parameters)))
    finally:
        torch.set_num_threads(threads)
    for begin, end in ((0, 1), (3, 18), (5, 400), (19990, 20001)):
        part = run(*leaves([lower[begin:end], upper[begin:end]]), *parameters)
        assert all(torch.equal(mine[begin:end], piece) for mine, piece in zip(whole[:3], part[:3], strict=True))
    per_element = leaves([p.expand(*lower.shape, -1).contiguous() for p in parameters])
    assert all(map(torch.equal, whole[:3], run(lower, upper, *per_element)[:3]))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(half, device):
    ours = interval_arguments("per feature", half, device)
    value = mixflow.discretized_log_prob(*ours)
    assert value.dtype == half
    assert torch.equal(value, mixflow.discretized_log_prob(*(t.float() for t in ours)).to(half))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["shared", "per feature", "transposed", "strided", "scalar x", "empty", "mixed"])
def test_numpy_gives_what_torch_gives(layout, dtype):
    tensors = interval_arguments(layout, dtype)
    got = mixflow.discretized_log_prob(*(t.numpy() for t in tensors))
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, mixflow.discretized_log_prob(*tensors).numpy())


def test_edges_broadcast_against_each_other(device):
    _, *parameters = arguments("per feature", torch.float64, device)
    lower, upper = torch.rand(40, 1, device=device).double() - 2, torch.rand(3, device=device).double()
    ours = leaves([lower, upper, *parameters])
    value = mixflow.discretized_log_prob(*ours)
    assert value.shape == (40, 3)
    wide = leaves([lower.expand(40, 3), upper.expand(40, 3), *parameters])
    expected = mixflow.discretized_log_prob(*wide)
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    mine, theirs = torch.autograd.grad(value.sum(), ours), torch.autograd.grad(expected.sum(), wide)
    torch.testing.assert_close(mine[0], theirs[0].sum(1, keepdim=True))
    torch.testing.assert_close(mine[1], theirs[1].sum(0))


X, P = torch.zeros(4, 3), torch.zeros(5)
BAD_INPUT = {
    "list": (([1.0], X, P, P, P), {}, TypeError, r"lower: expected a torch tensor.*got list"),
    "upper": ((X, [1.0], P, P, P), {}, TypeError, r"upper: expected a torch tensor, like lower, got list"),
    "dtypes": ((X, X.double(), P, P, P), {}, TypeError, r"upper: expected torch.float32.*got torch.float64"),
    "edges": ((X, X[:2], P, P, P), {}, ValueError, r"upper: expected.*against \(4, 3\), got \(2, 3\)"),
    "batch": ((X, X, P, P, P.expand(2, 5)), {}, ValueError, r"log_scale: expected.*against \(4, 3\), got \(2, 5\)"),
    "family": ((X, X, P, P, P), {"family": "cauchy"}, ValueError, r"family: expected one of gaussian.*'cauchy'"),
    "numpy": ((X.numpy(), X, *[P.numpy()] * 3), {}, TypeError, r"upper: expected a numpy array.*got Tensor"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_gets_one_clear_error(case):
    args, options, error, message = BAD_INPUT[case]
    with pytest.raises(error, match=message):
        mixflow.discretized_log_prob(*args, **options)


# ----------------------------------------------------------------------------------------------------- derivatives


def small(layout, device):
    lower, upper, *parameters = interval_arguments(layout, torch.float64, device)
    keep = slice(3) if lower.dim() == 1 and parameters[0].dim() == 1 else ...
    # Finite differences need edges that stay finite and in order.
    x = torch.where(lower.isinf(), upper - 1, lower)
    return leaves([x[keep], torch.where(upper.isinf(), x + 1, upper)[keep], *parameters])


@pytest.mark.parametrize("family", mixflow.FAMILIES)
@pytest.mark.parametrize("layout", SMALL)
def test_gradcheck(layout, family, device):
    def run(*args):
        return mixflow.discretized_log_prob(*args, family=family)

    assert torch.autograd.gradcheck(run, small(layout, device), fast_mode=True)


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_second_derivatives_and_forward_mode(family, device):
    def run(*args):
        return mixflow.discretized_log_prob(*args, family=family)

    inputs = small("per feature", device)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True, check_backward_ad=False, fast_mode=True)


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_second_derivatives_with_open_bins(family, device):
    ours = leaves(interval_arguments("shared", torch.float64, device))
    value = mixflow.discretized_log_prob(*ours, family=family)
    assert (ours[0].isinf() | ours[1].isinf()).any()
    first = torch.autograd.grad(value.sum(), ours, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), ours)
    assert all(g.isfinite().all() for g in second)


def test_functional_transforms(device):
    lower, upper, *parameters = small("shared", device)

    def loss(*args):
        return mixflow.discretized_log_prob(*args, family="logistic").square().sum()

    tensors = [lower, upper, *parameters]
    expected = torch.autograd.grad(loss(*tensors), tensors)
    argnums = tuple(range(5))
    detached = [t.detach() for t in tensors]
    torch.testing.assert_close(torch.func.grad(loss, argnums)(*detached), expected)
    torch.testing.assert_close(torch.func.jacfwd(loss, argnums)(*detached), expected)
    each = torch.func.vmap(torch.func.grad(loss, argnums), (0, 0, None, None, None))(*detached)
    torch.testing.assert_close(tuple(g.sum(0) for g in each[2:]), expected[2:])
    rows = torch.func.vmap(mixflow.discretized_log_prob, (None, None, 0, 0, 0))(
        lower.detach(), upper.detach(), *(torch.stack([p, p + 0.1]).detach() for p in parameters)
    )
    torch.testing.assert_close(rows[0], mixflow.discretized_log_prob(*detached))


# torch's own tracing instantiates the Function class, which torch itself deprecates.
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'>:DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic, device):
    def loss(*args):
        return -mixflow.discretized_log_prob(*args, family="logistic").mean()

    ours = leaves(interval_arguments("per feature", torch.float64, device))
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    expected, actual = loss(*ours), compiled(*ours)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, ours), torch.autograd.grad(expected, ours))


def test_registered_ops_pass_opcheck(device):
    ours = interval_arguments("per feature", torch.float64, device)
    tests = ["test_schema", "test_faketensor"]
    torch.library.opcheck(torch.ops.mixflow.interval.default, (*ours, "gaussian"), test_utils=tests)
    g = torch.ones_like(ours[0])
    torch.library.opcheck(torch.ops.mixflow.interval_backward.default, (g, *ours, "logistic"), test_utils=tests)


@pytest.mark.parametrize("width", [1e-3, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
@pytest.mark.parametrize(("loc", "log_scale"), [(0.0, -1000.0), (math.inf, 0.0), (-math.inf, 0.0)])
def test_a_component_without_mass_in_the_bin_has_gradients_of_zero(loc, log_scale, family, dtype, width, device):
    """A point mass beside the bin, or a component at infinity: both are infinitely many scales away."""
    lower = torch.tensor([3.0], dtype=dtype, device=device)
    parameters = [
        torch.tensor(p, dtype=dtype, device=device, requires_grad=True)
        for p in ([0.0, 0.0], [loc, 1.0], [log_scale, 0.5])
    ]
    mixflow.discretized_log_prob(lower, lower + width, *parameters, family=family).sum().backward()
    for parameter in parameters:
        assert parameter.grad.isfinite().all()
    assert parameters[1].grad[0] == parameters[2].grad[0] == 0
