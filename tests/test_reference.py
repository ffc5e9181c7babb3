"""The oracle itself against mpmath: both tails, all families and bases, all derivatives."""

import math

import mpmath
import numpy as np
import pytest
import torch

import mixflow
import truth
from mixflow import reference, standard

LOGITS = [0.3, -1.0, 0.9]
LOC = [-2.0, 0.5, 3.0]
LOG_SCALE = [-0.5, 0.7, 0.1]
X = [-60.0, -37.0, -9.0, -2.5, 0.0, 0.4, 1.0, 3.3, 8.0, 21.0, 44.0, 60.0]

CASES = [(family, base) for family in truth.FAMILIES for base in truth.BASES]


def exact(x, family, base):
    """z and ladj at one x."""
    value = truth.forward(x, LOGITS, LOC, LOG_SCALE, family, base)
    return value["z"], value["ladj"]


def parameters(dtype=torch.float64):
    return [torch.tensor(values, dtype=dtype) for values in (LOGITS, LOC, LOG_SCALE)]


def test_the_oracle_has_every_family_and_base():
    assert set(standard.FAMILIES) == set(mixflow.FAMILIES) == set(truth.FAMILIES)
    assert set(standard.BASES) == set(mixflow.BASES) == set(truth.BASES)


@pytest.mark.parametrize(("family", "base"), CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_forward_agrees_with_mpmath(family, base, dtype):
    expected = [exact(x, family, base) for x in X]
    x = torch.tensor(X, dtype=torch.float64)
    z, ladj = reference.cdf_transform(x.to(dtype), *parameters(dtype), family=family, base=base)
    assert z.dtype == ladj.dtype == dtype
    # A relative error of eps in log F, which reaches 2000 here, is an absolute error in ladj. Rounding the parameters
    # to float32 adds as much again. 30 eps covers both; a saturated tail or a linear-space formula is off by orders.
    eps = 30 * torch.finfo(dtype).eps
    for index, (z_exact, ladj_exact) in enumerate(expected):
        size = float(max(1, abs(z_exact)))
        assert abs(float(mpmath.mpf(z[index].item()) - z_exact)) <= eps * size, X[index]
        terms = 1 + float(abs(ladj_exact)) + 0.5 * size**2 + (X[index] / math.exp(min(LOG_SCALE))) ** 2 / 2
        assert abs(float(mpmath.mpf(ladj[index].item()) - ladj_exact)) <= eps * terms, X[index]


@pytest.mark.parametrize("family", truth.FAMILIES)
def test_lower_tail_of_the_uniform_base_keeps_relative_accuracy(family):
    x = torch.tensor([-9.0, -20.0], dtype=torch.float64)
    z, _ = reference.cdf_transform(x, *parameters(), family=family, base="uniform")
    for value, point in zip(z.tolist(), x.tolist(), strict=True):
        expected, _ = exact(point, family, "uniform")
        assert float(abs(value / expected - 1)) < 1e-12


def test_normal_base_reaches_a_thousand_sigma_both_ways():
    zero = torch.zeros(1, dtype=torch.float64)
    x = torch.tensor([-1000.0, -300.0, 300.0, 1000.0], dtype=torch.float64)
    z, ladj = reference.cdf_transform(x, zero, zero, zero)
    torch.testing.assert_close(z, x, rtol=1e-14, atol=0.0)
    assert ladj.abs().max() < 1e-9  # differences of numbers as large as 500,000
    back, _ = reference.cdf_transform_inverse(x, zero, zero, zero)
    torch.testing.assert_close(back, x, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize(("family", "base"), CASES)
def test_inverse_undoes_forward(family, base):
    # For the uniform base the upper tail is lost in z itself.
    x = torch.tensor([v for v in X if base != "uniform" or -37.0 < v < 4.0], dtype=torch.float64)
    z, ladj = reference.cdf_transform(x, *parameters(), family=family, base=base)
    back, inverse_ladj = reference.cdf_transform_inverse(z, *parameters(), family=family, base=base)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-9, atol=1e-9)


def test_inverse_crosses_an_empty_gap_between_components():
    loc = torch.tensor([-1e6, 1e6], dtype=torch.float64)
    flat = torch.zeros(2, dtype=torch.float64)
    z = torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64)
    x, _ = reference.cdf_transform_inverse(z, flat, loc, flat)
    assert x.isfinite().all()
    assert (x[0] + 1e6).abs() < 10.0
    assert (x[2] - 1e6).abs() < 10.0


@pytest.mark.parametrize(("base", "ends"), [("normal", (-math.inf, math.inf)), ("uniform", (0.0, 1.0))])
def test_ends_of_the_base_map_to_infinity(base, ends):
    z = torch.tensor([*ends, 0.5, math.nan], dtype=torch.float64)
    x, _ = reference.cdf_transform_inverse(z, *parameters(), base=base)
    assert x[:2].tolist() == [-math.inf, math.inf]
    assert x[2].isfinite()
    assert x[3].isnan()
    there, _ = reference.cdf_transform(x[:2], *parameters(), base=base)
    assert there.tolist() == list(ends)


@pytest.mark.parametrize("end", [-math.inf, math.inf, math.nan])
def test_an_element_without_a_solution_leaves_the_others_gradients_alone(end):
    logits, loc, log_scale = (p.requires_grad_() for p in parameters())
    x, _ = reference.cdf_transform_inverse(torch.tensor([end, 0.3], dtype=torch.float64), logits, loc, log_scale)
    together = torch.autograd.grad(x[1], (logits, loc, log_scale))
    x, _ = reference.cdf_transform_inverse(torch.tensor([0.3], dtype=torch.float64), logits, loc, log_scale)
    alone = torch.autograd.grad(x[0], (logits, loc, log_scale))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "direction", [reference.cdf_transform, pytest.param(reference.cdf_transform_inverse, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(("family", "base"), CASES)
def test_gradients_of_both_orders(direction, family, base):
    start = [0.2, 0.7] if direction is reference.cdf_transform_inverse else [-4.0, 1.1]
    arguments = [torch.tensor(start, dtype=torch.float64), *parameters()]
    for argument in arguments:
        argument.requires_grad_()

    def call(*args):
        return direction(*args, family=family, base=base)

    assert torch.autograd.gradcheck(call, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)


@pytest.mark.parametrize("family", truth.FAMILIES)
def test_gradients_in_the_far_tails_agree_with_mpmath(family):
    x = torch.tensor([-60.0, -20.0, 20.0, 60.0], dtype=torch.float64, requires_grad=True)
    z, ladj = reference.cdf_transform(x, *parameters(), family=family)
    (first,) = torch.autograd.grad(z.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(first, ladj.exp(), rtol=1e-11, atol=0.0)
    with mpmath.workdps(50):
        expected = [float(mpmath.diff(lambda t: exact(t, family, "normal")[0], mpmath.mpf(v), 2)) for v in x.tolist()]
    torch.testing.assert_close(second, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_parameters_broadcast():
    x = torch.linspace(-3.0, 3.0, 10, dtype=torch.float64).reshape(5, 2)
    logits, loc, log_scale = parameters()
    shared, _ = reference.cdf_transform(x, logits, loc, log_scale)
    for batch in [(2, 3), (5, 2, 3), (5, 1, 3)]:
        z, _ = reference.cdf_transform(x, logits.expand(batch), loc, log_scale.expand(batch))
        torch.testing.assert_close(z, shared)
        back, _ = reference.cdf_transform_inverse(z, logits.expand(batch), loc, log_scale)
        torch.testing.assert_close(back, x)
    wide, _ = reference.cdf_transform_inverse(
        torch.tensor(0.1, dtype=torch.float64), logits.expand(4, 3), loc, log_scale
    )
    assert wide.shape == (4,)


@pytest.mark.parametrize("base", truth.BASES)
def test_base_samples_follow_the_base(base):
    # Kolmogorov-Smirnov: at this bound a right sampler fails once in 10^7 seeds; this seed is fixed.
    generator = torch.Generator().manual_seed(1)
    z = standard.BASES[base].sample((100_000,), generator=generator, dtype=torch.float64)
    G = torch.sigmoid(standard.BASES[base].to_logit(z.sort().values)).numpy()
    steps = np.arange(1, len(G) + 1) / len(G)
    assert np.abs(G - steps).max() < 2.9 / math.sqrt(len(G))
    again = standard.BASES[base].sample((5,), generator=generator.manual_seed(1), dtype=torch.float32)
    assert again.dtype == torch.float32


@pytest.mark.parametrize("base", truth.BASES)
def test_base_density_integrates_to_one_and_is_nothing_outside(base):
    z = torch.linspace(-40.0, 40.0, 2_000_001, dtype=torch.float64)
    p = standard.BASES[base].log_prob(z).exp()
    assert abs(torch.trapezoid(p, z).item() - 1.0) < 1e-4
    assert standard.BASES["uniform"].log_prob(torch.tensor([-0.1, 1.1])).tolist() == [-math.inf, -math.inf]
