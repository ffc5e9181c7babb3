"""Mixture and MixtureCDFTransform: against scipy and torch, their derivatives, and inside the code of others."""

from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys

import mpmath as mp
import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.distributions import (
    Categorical,
    Independent,
    Laplace,
    MixtureSameFamily,
    Normal,
    TransformedDistribution,
    constraints,
    transforms,
)

import mixflow
import truth
from cases import EPSILON, FAMILY_AND_BASE, arguments, to_base_range
from mixflow import Mixture, MixtureCDFTransform, standard
from mixflow.distributions import transform

DTYPES = [torch.float32, torch.float64]
VALUES = ("log_prob", "cdf", "log_cdf", "log_sf")
LOGITS, LOC, LOG_SCALE = [0.3, -1.0, 0.9], [-2.0, 0.5, 3.0], [-0.5, 0.7, 0.1]


def moderate(dtype=torch.float64, family="gaussian", requires_grad=False, device="cpu", **options):
    values = LOGITS, LOC, LOG_SCALE
    tensors = [torch.tensor(v, dtype=dtype, device=device).requires_grad_(requires_grad) for v in values]
    return Mixture(*tensors, family=family, **options)


def batched(dtype=torch.float64, family="gaussian", device="cpu"):
    """A mixture of batch shape (4, 3), which none of its parameters has."""
    g = torch.Generator().manual_seed(1)
    shapes = (5,), (4, 1, 5), (3, 5)
    return Mixture(*(torch.randn(s, generator=g, dtype=torch.float64).to(device, dtype) for s in shapes), family=family)


def scipy_mixture(family):
    components = [math.exp(s) * truth.FAMILIES[family].scipy() + m for m, s in zip(LOC, LOG_SCALE, strict=True)]
    return scipy.stats.Mixture(components, weights=scipy.special.softmax(LOGITS))


# --------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_agrees_with_scipy(family, device):
    ours, theirs = moderate(family=family, device=device), scipy_mixture(family)
    x = torch.linspace(-12, 12, 49, dtype=torch.float64, device=device)
    mine = [getattr(ours, name)(x).cpu().numpy() for name in VALUES]
    its = [getattr(theirs, name)(x.cpu().numpy()) for name in ("logpdf", "cdf", "logcdf", "logccdf")]
    for name, a, b in zip(VALUES, mine, its, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12, err_msg=name)
    u = torch.tensor([1e-9, 0.01, 0.3, 0.5, 0.9, 1 - 1e-9], dtype=torch.float64, device=device)
    np.testing.assert_allclose(ours.icdf(u).cpu().numpy(), theirs.icdf(u.cpu().numpy()), rtol=1e-6)
    np.testing.assert_allclose(ours.mean.item(), theirs.mean(), rtol=1e-12)
    np.testing.assert_allclose(ours.variance.item(), theirs.variance(), rtol=1e-12)
    np.testing.assert_allclose(ours.stddev.item(), theirs.standard_deviation(), rtol=1e-12)
    np.testing.assert_allclose(ours.entropy().item(), theirs.entropy(), rtol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_agrees_with_mixture_same_family(dtype, device):
    ours = batched(dtype, device=device)
    theirs = MixtureSameFamily(Categorical(logits=ours.logits), Normal(ours.loc, ours.log_scale.exp()))
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    x = 3 * torch.randn(50, 4, 3, dtype=dtype, device=device)
    bound = {"rtol": 64 * EPSILON[dtype], "atol": 64 * EPSILON[dtype]}
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), **bound)
    torch.testing.assert_close(ours.cdf(x), theirs.cdf(x), **bound)
    for name in ("mean", "variance", "stddev"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), **bound)


@pytest.mark.parametrize("dtype", truth.DTYPES)
@pytest.mark.parametrize("family", truth.FAMILIES)
def test_both_tails_in_full_accuracy(family, dtype, device):
    """There, the cdf of MixtureSameFamily is 0 or 1, and its log -inf or 0."""
    m = moderate(truth.DTYPES[dtype], family, device=device)
    parameters = [p.double().tolist() for p in (m.logits, m.loc, m.log_scale)]
    x = torch.tensor([-1000.0, -30.0, -3.0, 0.0, 3.0, 30.0, 1000.0], dtype=truth.DTYPES[dtype], device=device)
    mine = {name: getattr(m, name)(x).tolist() for name in VALUES}
    for i, value in enumerate(x.tolist()):
        exact = truth.forward(value, *parameters, family, "logistic")
        for name, key in (("log_prob", "log_f"), ("log_cdf", "log_F"), ("log_sf", "log_S")):
            expected = exact[key]
            scale = 1 + abs(expected) if name == "log_prob" else abs(expected)
            # A rounding of z = log F - log S is a relative error of the smaller tail.
            allowed = 8 * truth.EPSILON[dtype] * scale * (1 + abs(exact["z"])) ** (name != "log_prob")
            got = mine[name][i]
            assert abs(got - expected) <= allowed + truth.MIN_NORMAL[dtype], (name, value, got, mp.nstr(expected, 20))


def test_ends_and_nan(device):
    m = moderate(device=device, validate_args=False)
    x = torch.tensor([-math.inf, math.inf, math.nan], dtype=torch.float64, device=device)
    expected = {
        "log_prob": [-math.inf, -math.inf, math.nan],
        "cdf": [0.0, 1.0, math.nan],
        "log_cdf": [-math.inf, 0.0, math.nan],
        "log_sf": [0.0, -math.inf, math.nan],
    }
    for name, values in expected.items():
        torch.testing.assert_close(getattr(m, name)(x), x.new_tensor(values), equal_nan=True, rtol=0, atol=0)
    u = x.new_tensor([0.0, 1.0, -0.1, 1.1, math.nan])
    expected = x.new_tensor([-math.inf, math.inf, math.nan, math.nan, math.nan])
    torch.testing.assert_close(m.icdf(u), expected, equal_nan=True)


def far_out(x, family, largest):
    """The logs at x in float64. A component that is so far away that its distance in scales overflows has no part."""
    record = standard.FAMILIES[family]
    logits, loc, log_scale = (torch.tensor(v).double() for v in (LOGITS, LOC, LOG_SCALE))
    half = (0.5 * x - 0.5 * loc) / log_scale.exp()
    log_weight = logits.log_softmax(-1).masked_fill(half.abs() > 0.5 * largest, -math.inf)
    a = (2 * half).clamp(-largest, largest)
    parts = {"log_prob": record.log_pdf(a) - log_scale, "log_cdf": record.log_cdf(a), "log_sf": record.log_cdf(-a)}
    return {name: (log_weight + part).logsumexp(-1).item() for name, part in parts.items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_values_so_far_out_that_squares_overflow(family, dtype, device):
    m = moderate(dtype, family, device=device, validate_args=False)
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).tiny
    for magnitude in (1e17, 1e18, 1e19, 1e20, 1e30, largest**0.5, 4 * largest**0.5, largest / 2, largest):
        for x in (magnitude, -magnitude):
            exact = far_out(x, family, largest)
            tail, rest = ("log_sf", "log_cdf") if x > 0 else ("log_cdf", "log_sf")
            for name in ("log_prob", tail):
                expected = -math.inf if exact[name] < -largest else pytest.approx(exact[name], rel=1e-5)
                assert getattr(m, name)(x).item() == expected, (name, x)
            beyond = math.exp(exact[tail])  # 0, except in tails that are powers
            assert getattr(m, rest)(x).item() == pytest.approx(-beyond, rel=1e-5, abs=smallest if beyond else 0)
            assert m.cdf(x).item() == (1 if x > 0 else pytest.approx(beyond, rel=1e-5, abs=smallest if beyond else 0))
    parameters = [p.clone() for p in m._parameters]
    parameters[1][0] = math.nan
    assert Mixture(*parameters, family, validate_args=False).log_prob(largest).isnan()


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_every_family_knows_its_variance(family):
    def moment(end):
        a = torch.linspace(-end, end, 2_000_001, dtype=torch.float64)
        density = standard.FAMILIES[family].log_pdf(a).exp()
        return torch.trapezoid(a * a * density, a).item()

    variance = standard.FAMILIES[family].variance
    if math.isinf(variance):  # the integral grows without a bound: by as much at least for each factor of ten
        assert moment(6e4) - moment(6e3) > 0.99 * (moment(6e3) - moment(6e2)) > 1.0
    else:
        assert moment(60) == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_a_component_of_weight_zero_has_no_part_in_the_moments(family, device):
    used = moderate(family=family, device=device, requires_grad=True)
    unused = (-math.inf, math.inf, math.inf)
    wider = [torch.cat([p, p.new_tensor([v])]) for p, v in zip(used._parameters, unused, strict=True)]
    m = Mixture(*wider, family=family, validate_args=False)
    torch.testing.assert_close(m.mean, used.mean, rtol=1e-15, atol=0)
    torch.testing.assert_close(m.variance, used.variance, rtol=1e-15, atol=0)
    moment = m.mean if used.variance.isinf() else m.mean + m.variance
    grads = torch.autograd.grad(moment, used._parameters, allow_unused=True)
    assert all(g.isfinite().all() for g in grads if g is not None)


@mp.workdps(20)
def integrated_entropy(m):
    """By adaptive quadrature of mpmath between points that lie around every component."""
    parameters = [p.tolist() for p in (m.logits, m.loc, m.log_scale)]
    weights, scales = scipy.special.softmax(parameters[0]), np.exp(parameters[2])
    logits = (1, 2, 4, 6, 8, 12, 20, 35, 60)
    ends = [float(standard.FAMILIES[m.family].quantile_from_logit(torch.tensor(v).double())) for v in logits]
    steps = (*(-end for end in ends), 0, *ends)
    cuts = sorted({loc + s * step for loc, s in zip(parameters[1], scales, strict=True) for step in steps})

    def integrand(x):
        parts = [
            truth.FAMILIES[m.family].at((x - loc) / s).density / s for loc, s in zip(parameters[1], scales, strict=True)
        ]
        f = mp.fdot(weights, parts)
        return -f * mp.log(f) if f else mp.mpf(0)

    return float(mp.quad(integrand, cuts, maxdegree=5))


@pytest.mark.parametrize("family", mixflow.FAMILIES)
@pytest.mark.parametrize(
    ("loc", "log_scale"),
    [
        ([-2.0, 0.5, 3.0], [-0.5, 0.7, 0.1]),
        ([0.0, 0.0, 1.0], [0.0, -6.9, 0.0]),
        ([0.0, 0.3, -1.0], [0.0, -12.0, 2.0]),
        ([-1e6, 1.0, 1e6], [0.0, 3.0, 2.0]),
    ],
    ids=["overlapping", "one inside another", "scales 1:1e6", "far apart"],
)
def test_entropy(loc, log_scale, family, device):
    m = Mixture(*(torch.tensor(v).double().to(device) for v in (LOGITS, loc, log_scale)), family)
    assert m.entropy().item() == pytest.approx(integrated_entropy(m), abs=1e-10)
    single = Mixture(*(p.float() for p in m._parameters), family)
    assert single.entropy().item() == pytest.approx(integrated_entropy(m), abs=1e-4 if loc[0] > -1e6 else 0.1)


def test_entropy_of_one_component_and_of_a_batch():
    loc, log_scale = torch.randn(4, 3, 1).double(), torch.randn(4, 1, 1).double().requires_grad_()
    m = Mixture(torch.zeros(1).double(), loc, log_scale)
    expected = (0.5 + 0.5 * math.log(2 * math.pi) + log_scale.squeeze(-1)).expand(4, 3)
    torch.testing.assert_close(m.entropy(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(m.entropy().sum(), log_scale)[0], torch.full_like(log_scale, 3.0))
    each = [Mixture(*(p[i, j] for p in (m.logits, m.loc, m.log_scale))).entropy() for i in range(4) for j in range(3)]
    torch.testing.assert_close(m.entropy().flatten(), torch.stack(each))


# -------------------------------------------------------------------------------------------------------- samples


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_samples_follow_the_mixture(family, dtype, device):
    # Kolmogorov-Smirnov: at this bound a right sampler fails once in 10^7 seeds; this seed is fixed.
    torch.manual_seed(3)
    m = moderate(dtype, family, device=device)
    u = m.cdf(m.sample((100_000,))).double().sort().values.cpu()
    steps = torch.arange(1, len(u) + 1, dtype=torch.float64) / len(u)
    assert (u - steps).abs().max() < 2.9 / math.sqrt(len(u))


def test_samples_reach_both_tails_alike(device):
    """The largest float32 below 1 is 1 - 2^-24, through which logistic samples would end before 17.3."""
    torch.manual_seed(0)
    zero = torch.zeros(1, device=device)
    x = Mixture(zero, zero, zero, "logistic").sample((1 << 22,))
    fine = x[x > 10]  # e^-10 2^22 = 190 are expected here
    assert 120 < len(fine) < 280
    assert len(fine.unique()) == len(fine)  # by an icdf of float32 probabilities they would share 760 values
    assert x.isfinite().all()


def test_rsample_differentiates_implicitly(device):
    torch.manual_seed(0)
    m = moderate(requires_grad=True, device=device)
    leaves = list(m._parameters)
    x = m.rsample((200,))
    weights = torch.randn(200, dtype=torch.float64, device=device)
    grads = torch.autograd.grad((x * weights).sum(), leaves, retain_graph=True)
    # F(x; theta) stays as it was drawn: dx/dtheta = -(dF/dtheta) / f
    fixed = x.detach()
    f = m.log_prob(fixed).exp().detach()
    expected = torch.autograd.grad(-(m.cdf(fixed) * weights / f).sum(), leaves)
    torch.testing.assert_close(grads, expected)
    assert not m.sample((3,)).requires_grad


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_rsample_is_twice_differentiable(family, device):
    def run(*parameters):
        torch.manual_seed(5)
        return Mixture(*parameters, family=family).rsample((3,))

    leaves = moderate(requires_grad=True, device=device)._parameters
    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("name", [*VALUES, "icdf", "mean", "variance", "entropy"])
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_everything_is_differentiable(family, name, device):
    if name == "variance" and math.isinf(standard.FAMILIES[family].variance):
        pytest.skip("an infinite variance is a constant")
    value = torch.tensor([0.1, 0.7], dtype=torch.float64, device=device, requires_grad=True)

    def run(value, *parameters):
        attribute = getattr(Mixture(*parameters, family=family), name)
        if name in ("mean", "variance"):
            return attribute
        return attribute() if name == "entropy" else attribute(value)

    leaves = (value, *moderate(requires_grad=True, device=device)._parameters)
    assert torch.autograd.gradcheck(run, leaves, atol=1e-5)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(half, device):
    m = moderate(half, device=device)
    x = m.rsample((5,))
    assert x.dtype == m.log_prob(x).dtype == m.mean.dtype == half


# ------------------------------------------------------------------------------------------ torch's conventions


def test_shapes():
    m = batched()
    assert (m.batch_shape, m.event_shape, m.components) == ((4, 3), (), 5)
    for name in m.arg_constraints:
        assert getattr(m, name).shape == (4, 3, 5)
    assert m.sample().shape == (4, 3)
    assert m.rsample((7, 2)).shape == (7, 2, 4, 3)
    assert m.log_prob(torch.zeros(9, 1, 3).double()).shape == (9, 4, 3)
    assert m.log_prob(torch.tensor(0.0).double()).shape == m.entropy().shape == m.mean.shape == (4, 3)


def test_expand_is_a_view():
    m = moderate()
    wide = m.expand((6, 2))
    assert wide.batch_shape == (6, 2)
    assert wide.mean.shape == wide.variance.shape == wide.entropy().shape == (6, 2)
    assert wide.loc.data_ptr() == m.loc.data_ptr()
    assert wide.sample((3,)).shape == (3, 6, 2)
    x = torch.randn(6, 2).double()
    torch.testing.assert_close(wide.log_prob(x), m.log_prob(x))
    assert wide.log_prob(torch.tensor(0.0).double()).shape == (6, 2)
    assert wide.cdf(torch.zeros(2).double()).shape == wide.icdf(torch.full((2,), 0.5).double()).shape == (6, 2)
    assert wide.discretized_log_prob(torch.tensor(0.0).double(), -1.0, 1.0).shape == (6, 2)
    assert wide.expand((5, 6, 2)).batch_shape == (5, 6, 2)
    with pytest.raises(ValueError, match=r"batch_shape: expected one to which \(6, 2\) expands, got \(3,\)"):
        wide.expand((3,))


@pytest.mark.parametrize(
    ("index", "bad", "error", "message"),
    [
        (0, [0.0], TypeError, "logits: expected a torch tensor.*got list"),
        (1, torch.zeros(3, dtype=torch.float64), TypeError, "loc: expected torch.float32.*got torch.float64"),
        (2, torch.zeros(2), ValueError, r"log_scale: expected shape \(\.\.\., 3\), like logits, got \(2,\)"),
        (1, torch.tensor([0.0, math.nan, 0.0]), ValueError, "loc"),
    ],
    ids=["type", "dtype", "shape", "value"],
)
def test_bad_parameters_get_one_clear_error(index, bad, error, message):
    parameters = [torch.zeros(3)] * 3
    parameters[index] = bad
    with pytest.raises(error, match=message):
        Mixture(*parameters, validate_args=True)


def test_bad_values_get_one_clear_error():
    m = moderate(validate_args=True)
    with pytest.raises(ValueError, match="family: expected one of gaussian"):
        Mixture(*m._parameters, family="cauchy")
    with pytest.raises(ValueError, match="support"):
        m.log_prob(torch.tensor(math.nan).double())
    with pytest.raises(ValueError, match=r"value: expected probabilities in \[0, 1\]"):
        m.icdf(torch.tensor(1.5).double())
    with pytest.raises(ValueError, match="value: expected values between lower and upper"):
        m.discretized_log_prob(torch.tensor(2.0).double(), 0.0, 1.0)
    quiet = moderate(validate_args=False)
    assert quiet.discretized_log_prob(torch.tensor(2.0).double(), 0.0, 1.0).isfinite()


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_discretized_log_prob(family, device):
    m = batched(family=family, device=device)
    x = torch.linspace(-1, 1, 9, dtype=torch.float64, device=device).reshape(9, 1, 1)
    lower = torch.where(x == -1, -math.inf, x - 0.125)
    upper = torch.where(x == 1, math.inf, x + 0.125)
    got = m.discretized_log_prob(x, lower, upper)
    assert got.shape == (9, 4, 3)
    torch.testing.assert_close(got.logsumexp(0), x.new_zeros(4, 3), rtol=0, atol=1e-14)
    torch.testing.assert_close(got.exp(), m.cdf(upper) - m.cdf(lower))
    torch.testing.assert_close(m.discretized_log_prob(x[3:4], -0.375, -0.125), got[3:4])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number", [0.5, 1, np.float64(0.25), np.float32(0.75), np.int64(1)], ids=repr)
def test_numbers_are_tensors_of_the_parameters_dtype(number, dtype, device):
    m = moderate(dtype, device=device)
    tensor = torch.tensor(float(number), dtype=dtype, device=device)
    for name in (*VALUES, "icdf"):
        got = getattr(m, name)(number)
        assert torch.equal(got, getattr(m, name)(tensor))
        assert (got.dtype, got.shape) == (dtype, ())
    expected = m.discretized_log_prob(tensor, tensor - 1, tensor + 1)
    assert torch.equal(m.discretized_log_prob(number, number - 1, number + 1), expected)
    torch.testing.assert_close(m.discretized_log_prob(tensor, -math.inf, number + 1), m.log_cdf(tensor + 1))
    wide = batched(dtype, device=device)
    assert torch.equal(wide.cdf(number), wide.cdf(tensor))
    assert wide.cdf(number).shape == (4, 3)


@pytest.mark.parametrize("wrong", [True, np.bool_(False), "0.5", None, [0.5], 1j, np.zeros(2)], ids=repr)
def test_what_is_neither_tensor_nor_number_gets_one_clear_error(wrong):
    m = moderate()
    calls = {name: (getattr(m, name), "value") for name in (*VALUES, "icdf")}
    calls["discretized value"] = lambda v: m.discretized_log_prob(v, 0.0, 1.0), "value"
    calls["lower"] = lambda v: m.discretized_log_prob(0.5, v, 1.0), "lower"
    calls["upper"] = lambda v: m.discretized_log_prob(0.5, 0.0, v), "upper"
    for call, name in calls.values():
        with pytest.raises(
            TypeError, match=f"^{name}: expected a torch tensor or a number, got {type(wrong).__name__}$"
        ):
            call(wrong)


def test_copies():
    m = batched()
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        x = torch.randn(4, 3).double()
        assert torch.equal(other.log_prob(x), m.log_prob(x))
    assert repr(m) == "Mixture(family: 'gaussian', components: 5, batch: (4, 3))"


def test_independent_and_transformed():
    m = batched()
    joint = Independent(m, 1)
    x = torch.randn(6, 4, 3).double()
    assert joint.event_shape == (3,)
    torch.testing.assert_close(joint.log_prob(x), m.log_prob(x).sum(-1))
    assert joint.rsample((2,)).shape == (2, 4, 3)
    positive = TransformedDistribution(m, [transforms.ExpTransform()])
    y = x.exp()
    torch.testing.assert_close(positive.log_prob(y), m.log_prob(x) - x)
    torch.testing.assert_close(positive.cdf(y), m.cdf(x))
    u = torch.rand(4, 3).double()
    torch.testing.assert_close(positive.icdf(u), m.icdf(u).exp())


def test_divergence_by_samples():
    """KL(m | q) by Monte Carlo; its gradient flows through the samples."""
    torch.manual_seed(1)
    m, q = moderate(requires_grad=True), Laplace(torch.tensor(1.0).double(), torch.tensor(2.0).double())
    x = m.rsample((200_000,))
    estimate = (m.log_prob(x) - q.log_prob(x)).mean()
    grid = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    exact = torch.trapezoid(m.log_prob(grid).exp() * (m.log_prob(grid) - q.log_prob(grid)), grid)
    assert abs(estimate - exact) < 0.01
    mine, theirs = (torch.autograd.grad(v, m._parameters) for v in (estimate, exact))
    for a, b in zip(mine, theirs, strict=True):
        assert (a - b).abs().max() < 0.02


# In a process of its own, since Pyro changes torch.distributions when it is imported: validation, copies of transforms.
PYRO = """
import pyro, torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from mixflow import Mixture

class PyroMixture(Mixture, TorchDistributionMixin):
    pass

def model(data=None):
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("rows", 5):
        return pyro.sample("x", PyroMixture(torch.zeros(2), loc, torch.zeros(2)), obs=data)

data = torch.linspace(-2, 2, 5)
expected = Mixture(torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.zeros(2)).log_prob(data).sum()
torch.testing.assert_close(pyro.poutine.trace(model).get_trace(data).log_prob_sum(), expected)
assert pyro.poutine.trace(model).get_trace().nodes["x"]["value"].shape == (5,)
m = PyroMixture(torch.zeros(4, 2), torch.zeros(2), torch.zeros(2))
assert m((3,)).shape == (3, 4)
assert m.to_event(1).event_shape == (4,)
assert m.expand_by([2]).batch_shape == (2, 4)
assert type(m.expand((2, 4))) is PyroMixture
assert m.mask(torch.tensor([True, False, True, False])).log_prob(torch.zeros(4)).count_nonzero() == 2
"""


def test_pyro():
    """Pyro expands a distribution in plates, calls it to draw, and needs events, masks and traced log-densities."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", PYRO], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------------ transform


def transform_of(family="gaussian", base="normal", layout="shared", dtype=torch.float64, device="cpu", **options):
    x, *parameters = arguments(layout, dtype, device)
    return MixtureCDFTransform(*parameters, family=family, base=base, **options), x


@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_transform_is_what_a_transform_should_be(family, base, device):
    t, x = transform_of(family, base, device=device)
    y = t(x)
    assert t.bijective
    assert t.sign == t.inv.sign == 1
    assert t.inv.inv is t
    assert (t.domain, t.inv.codomain) == (constraints.real, constraints.real)
    assert t.codomain is t.inv.domain is (constraints.unit_interval if base == "uniform" else constraints.real)
    assert t.domain.event_dim == t.codomain.event_dim == t.event_dim == 0
    assert t.codomain.check(y).all()
    assert t.domain.check(t.inv(y)).all()
    torch.testing.assert_close(t.inv(y), x)
    torch.testing.assert_close(t(t.inv(y)), y)
    assert (y.argsort() == x.argsort()).all()


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize(("family", "base"), FAMILY_AND_BASE)
def test_jacobian_agrees_with_autograd(family, base, direction, device):
    t, x = transform_of(family, base, device=device)
    if direction == "inverse":
        t, x = t.inv, to_base_range(x, base)
    x = x.requires_grad_()
    y = t(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(t.log_abs_det_jacobian(x, y), slope.abs().log())


@pytest.mark.parametrize("layout", ["shared", "per feature", "mixed", "scalar x, batch of parameters"])
def test_transform_shapes(layout):
    t, x = transform_of(layout=layout)
    y = t(x)
    assert t.forward_shape(x.shape) == t.inverse_shape(x.shape) == t.inv.inverse_shape(x.shape) == y.shape
    assert t.log_abs_det_jacobian(x, y).shape == y.shape


def test_cache():
    plain, x = transform_of()
    t = plain.with_cache()
    assert (plain._cache_size, t._cache_size) == (0, 1)
    assert plain.with_cache(0) is plain
    y = t(x)
    assert t(x) is y
    assert t.inv(y) is x
    ladj = t.log_abs_det_jacobian(x, y)
    assert ladj is t.log_abs_det_jacobian(x, y)
    torch.testing.assert_close(ladj, plain.log_abs_det_jacobian(x, y))
    z = y.clone()
    back = t.inv(z)
    assert t(back) is z
    torch.testing.assert_close(t.log_abs_det_jacobian(back, z), plain.log_abs_det_jacobian(back, z))
    # Another x with the same numbers is not the cached one; nor is a pair of the last x with another y.
    assert t.log_abs_det_jacobian(x.clone(), y) is not ladj
    assert plain.inv(y) is not x
    with pytest.raises(ValueError, match="cache_size"):
        plain.with_cache(2)


class Calls:
    """Counts the calls of one op."""

    def __init__(self, monkeypatch, name):
        self.count, self.op = 0, getattr(transform, name)
        monkeypatch.setattr(transform, name, self)

    def __call__(self, *args, **kwargs):
        self.count += 1
        return self.op(*args, **kwargs)


@pytest.mark.parametrize("cache_size", [0, 1])
def test_the_inverse_and_its_ladj_take_one_solve(cache_size, monkeypatch):
    t, x = transform_of(cache_size=cache_size)
    z = t(x).clone()
    forward, solve = (Calls(monkeypatch, name) for name in ("cdf_transform", "cdf_transform_inverse"))
    back, ladj = t.inv.call_and_ladj(z)
    assert (forward.count, solve.count) == (0, 1)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(ladj, t.inv.log_abs_det_jacobian(z, back))
    if cache_size:
        again = t.inv.call_and_ladj(z)
        assert again[0] is back
        assert t(back) is z
        assert t.log_abs_det_jacobian(back, z) is t.log_abs_det_jacobian(back, z)
        assert (forward.count, solve.count) == (0, 1)
    torch.testing.assert_close(t.call_and_ladj(back), (z, -ladj))


def test_the_inverse_is_one_of_torchs():
    t, _ = transform_of()
    assert t.inv is t.inv
    assert t.inv.inv is t
    assert isinstance(t.inv, transforms.Transform)
    assert t.inv == transform_of()[0].inv
    assert t.inv == transforms._InverseTransform(t)
    assert transforms._InverseTransform(t) == t.inv
    assert t.inv != t
    assert t.inv != transform_of("logistic")[0].inv
    assert t.inv.with_cache().inv == t
    assert t.inv.with_cache()._cache_size == 1
    assert "MixtureCDFTransform(family: 'gaussian'" in repr(t.inv)


def test_zuko_samples_with_one_solve_for_each_map(monkeypatch):
    import zuko

    flow = zuko.flows.MAF(
        features=1, transforms=2, hidden_features=(4,), univariate=MixtureCDFTransform, shapes=[(4,)] * 3
    )
    forward, solve = (Calls(monkeypatch, name) for name in ("cdf_transform", "cdf_transform_inverse"))
    sample, log_prob = flow().rsample_and_log_prob((5,))
    assert (forward.count, solve.count) == (0, 2)
    torch.testing.assert_close(log_prob, flow().log_prob(sample), rtol=1e-3, atol=1e-3)


def test_gradients_through_the_cache():
    _, *parameters = arguments("shared", torch.float64)
    results = []
    for cache_size in (0, 1):
        leaves = [p.clone().requires_grad_() for p in parameters]
        t = MixtureCDFTransform(*leaves, cache_size=cache_size)
        z = torch.linspace(-2, 2, 7, dtype=torch.float64)
        x = t.inv(z)
        results.append(torch.autograd.grad((x + t.log_abs_det_jacobian(x, z).square()).sum(), leaves))
    torch.testing.assert_close(*results)


def test_equality_and_copies():
    t, x = transform_of()
    same, _ = transform_of()
    assert t == same
    assert t == t.with_cache()
    assert t != transform_of("logistic")[0]
    assert t != transform_of(base="logistic")[0]
    assert t != MixtureCDFTransform(t.logits, t.loc + 1, t.log_scale)
    assert t != transforms.ExpTransform()
    for other in (copy.deepcopy(t), pickle.loads(pickle.dumps(t.with_cache()))):
        assert other == t
        assert torch.equal(other(x), t(x))
    assert repr(t) == "MixtureCDFTransform(family: 'gaussian', base: 'normal', components: 8)"


def test_transform_refuses_what_the_op_refuses():
    zero = torch.zeros(2)
    with pytest.raises(ValueError, match="base: expected one of normal"):
        MixtureCDFTransform(zero, zero, zero, base="beta")
    with pytest.raises(TypeError, match="loc: expected a torch tensor"):
        MixtureCDFTransform(zero, 1.0, zero)


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_a_transformed_base_is_the_mixture(family, device):
    m = batched(family=family, device=device)
    t = MixtureCDFTransform(*m._parameters, family=family)
    standard = Normal(torch.zeros_like(m.mean), torch.ones_like(m.mean))
    for cache_size in (0, 1):
        flow = TransformedDistribution(standard, [t.with_cache(cache_size).inv])
        x = flow.rsample((5,))
        torch.testing.assert_close(flow.log_prob(x), m.log_prob(x))
        torch.testing.assert_close(flow.cdf(x), m.cdf(x))
    chain = transforms.ComposeTransform([t, transforms.SigmoidTransform()])
    torch.testing.assert_close(chain.inv(chain(x)), x)
    stacked = transforms.IndependentTransform(t, 1)
    assert stacked.log_abs_det_jacobian(x, stacked(x)).shape == (5, 4)


def test_drops_into_zuko():
    """As the elementwise map of an autoregressive flow, with parameters from zuko's network, and trained."""
    import zuko

    torch.manual_seed(0)
    flow = zuko.flows.MAF(
        features=3, context=2, transforms=2, hidden_features=(16,), univariate=MixtureCDFTransform, shapes=[(4,)] * 3
    )
    x, context = torch.randn(64, 3).exp(), torch.randn(64, 2)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = -flow(context).log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    with torch.no_grad():
        d = flow(context)
        sample, log_prob = d.rsample_and_log_prob()
        torch.testing.assert_close(log_prob, d.log_prob(sample), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(d.transform.inv(d.transform(x)), x, rtol=1e-3, atol=1e-3)


class ForwardAndInverse(nn.Module):
    """The contract of nflows: forward(inputs, context) and inverse, each with the log-determinant of the whole row."""

    def __init__(self, features, context, components):
        super().__init__()
        self.shape = 3, features, components
        self.network = nn.Linear(context, math.prod(self.shape))

    def transform(self, context):
        return MixtureCDFTransform(*self.network(context).reshape(-1, *self.shape).unbind(1), base="logistic")

    def forward(self, inputs, context):
        z, ladj = self.transform(context).call_and_ladj(inputs)
        return z, ladj.sum(-1)

    def inverse(self, inputs, context):
        t = self.transform(context).with_cache()
        x = t.inv(inputs)
        return x, -t.log_abs_det_jacobian(x, inputs).sum(-1)


def test_drops_into_code_in_the_style_of_nflows():
    torch.manual_seed(0)
    layer = ForwardAndInverse(features=3, context=2, components=4).double()
    x, context = torch.randn(16, 3).double(), torch.randn(16, 2).double()
    z, logabsdet = layer(x, context)
    back, inverse_logabsdet = layer.inverse(z, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_logabsdet, -logabsdet)
    assert logabsdet.shape == (16,)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x, c: layer(x[None], c[None])[0][0]))(x, context)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, logabsdet)
