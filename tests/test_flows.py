"""Flows as distributions: densities integrate to one, samples follow them, recipes are recorded."""

import math

import numpy as np
import pytest
import torch

import mixflow
from mixflow import flows, transforms


def shaped(family="gaussian", base="normal", context=0):
    """A univariate flow in float64 that is neither standard nor symmetric."""
    torch.manual_seed(0)
    flow = flows.univariate(components=3, family=family, base=base, context=context).double()
    state = flow.state_dict()
    generator = torch.Generator().manual_seed(0)
    for value in state.values():
        value += 0.4 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    flow.load_state_dict(state)
    return flow


CASES = [(family, base) for family in mixflow.FAMILIES for base in mixflow.BASES]


@pytest.mark.parametrize(("family", "base"), CASES)
def test_density_integrates_to_one(family, base):
    flow = shaped(family, base)
    x = torch.linspace(-60.0, 60.0, 60_001, dtype=torch.float64)
    with torch.no_grad():
        p = flow.log_prob(x).exp()
    assert abs(torch.trapezoid(p, x).item() - 1.0) < 1e-6


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_density_does_not_depend_on_the_base(family):
    x = torch.linspace(-30.0, 30.0, 101, dtype=torch.float64)
    expected = shaped(family, "normal").log_prob(x)
    for base in mixflow.BASES:
        torch.testing.assert_close(shaped(family, base).log_prob(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("family", "base"), CASES)
def test_samples_follow_the_density(family, base):
    flow = shaped(family, base)
    x = flow.sample(50_000, seed=3).squeeze(-1)
    grid = torch.linspace(-80.0, 80.0, 160_001, dtype=torch.float64)
    with torch.no_grad():
        cdf = torch.cumulative_trapezoid(flow.log_prob(grid).exp(), grid)
    F = np.interp(x.sort().values.numpy(), grid[1:].numpy(), cdf.numpy())
    # Kolmogorov-Smirnov at a chance of 10^-7; the seed is fixed.
    assert np.abs(F - np.arange(1, len(F) + 1) / len(F)).max() < 2.9 / math.sqrt(len(F))


def test_transform_and_inverse_agree():
    flow = shaped()
    x = torch.linspace(-5.0, 5.0, 50, dtype=torch.float64)
    z, ladj = flow.transform(x)
    back, inverse_ladj = flow.inverse(z)
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-9, atol=1e-9)


def test_one_dimensional_input_is_a_row_of_samples():
    flow = shaped()
    x = torch.linspace(-5.0, 5.0, 7, dtype=torch.float64)
    z, ladj = flow.transform(x)
    assert z.shape == ladj.shape == flow.log_prob(x).shape == (7,)
    column, column_ladj = flow.transform(x.unsqueeze(-1))
    assert torch.equal(column.squeeze(-1), z)
    assert torch.equal(column_ladj, ladj)
    assert torch.equal(flow.log_prob(x.unsqueeze(-1)), flow.log_prob(x))
    assert flow.log_prob(x[:1]).shape == (1,)
    assert flow.log_prob(x.reshape(7, 1, 1)).shape == (7, 1)


def test_log_prob_adds_up_over_features():
    both = flows.Flow(transforms.MixtureCDF(2, 3))
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    apart = 0.0
    for column in range(2):
        one = flows.Flow(transforms.MixtureCDF(1, 3))
        apart = apart + one.log_prob(x[:, column])
    torch.testing.assert_close(both.log_prob(x), apart)


def test_log_prob_is_in_the_units_of_the_data():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small, large = flows.univariate().double(), flows.univariate().double()
    small.initialize(x.unsqueeze(-1))
    large.initialize(1000.0 * x.unsqueeze(-1) + 5.0)
    difference = small.log_prob(x) - large.log_prob(1000.0 * x + 5.0)
    torch.testing.assert_close(difference, torch.full_like(x, math.log(1000.0)))


def test_seeds_and_generators():
    flow = shaped()
    state = torch.get_rng_state()
    first = flow.sample(10, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (10, 1)
    assert first.dtype == torch.float64
    assert torch.equal(first, flow.sample(10, seed=1))
    assert not torch.equal(first, flow.sample(10, seed=2))
    assert torch.equal(first, flow.sample(10, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(flow.sample(10), flow.sample(10))
    assert flow.sample(0).shape == (0, 1)


def test_sampling_with_a_context():
    flow = shaped(context=2)
    one = torch.tensor([1.0, -1.0], dtype=torch.float64)
    shared = flow.sample(20, one, seed=0)
    torch.testing.assert_close(shared, flow.sample(20, one.expand(20, 2), seed=0))
    assert not torch.allclose(shared, flow.sample(20, -one, seed=0))
    assert flow.log_prob(shared, one).shape == (20,)
    with pytest.raises(ValueError, match="context: "):
        flow.sample(20, one.expand(19, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sampling_a_flow_without_parameters(dtype):
    class Flip(transforms.Transform):
        def _inverse(self, z, context):
            return -z, torch.zeros_like(z[..., 0])

    x = flows.Flow(transforms.Affine(1, trainable=False)).to(dtype).sample(3)
    assert (x.shape, x.dtype) == ((3, 1), dtype)
    assert flows.Flow(Flip(2)).sample(3).shape == (3, 2)
    assert flows.univariate().sample(np.int64(3), seed=np.int64(2**62)).shape == (3, 1)
    for seed in (-(2**63), 2**64 - 1):
        assert flows.univariate().sample(3, seed=seed).shape == (3, 1)


@pytest.mark.parametrize(("family", "base"), CASES)
def test_infinite_data_have_density_zero_and_leave_the_other_gradients_alone(family, base):
    flow = shaped(family, base)
    finite = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    expected = flow.log_prob(finite)
    grads = torch.autograd.grad(expected.sum(), [finite, *flow.parameters()])
    x = torch.tensor([0.5, math.inf, -math.inf, -2.0], dtype=torch.float64, requires_grad=True)
    log_prob = flow.log_prob(x)
    assert log_prob[1:3].tolist() == [-math.inf, -math.inf]
    assert torch.equal(log_prob[[0, 3]], expected)
    own, *others = torch.autograd.grad(log_prob[[0, 3]].sum(), [x, *flow.parameters()], retain_graph=True)
    assert torch.equal(own, torch.stack([grads[0][0], *torch.zeros(2).double(), grads[0][1]]))
    for grad, other in zip(grads[1:], others, strict=True):
        torch.testing.assert_close(other, grad)
    assert all(g.isfinite().all() for g in torch.autograd.grad(log_prob.sum(), [x, *flow.parameters()]))


def test_nan_stays_nan_beside_infinite_data():
    flow = flows.Flow(transforms.MixtureCDF(2, 3))
    inf, nan = math.inf, math.nan
    log_prob = flow.log_prob(torch.tensor([[inf, 0.0], [nan, 0.0], [inf, nan], [-inf, inf], [0.0, 0.0]]))
    assert log_prob.isneginf().tolist() == [True, False, False, True, False]
    assert log_prob.isnan().tolist() == [False, True, True, False, False]
    assert flows.univariate().log_prob(torch.tensor([nan])).isnan().all()


def test_recipes_record_the_whole_call():
    flow = flows.univariate(5, base="logistic")
    assert flow.recipe == flows.Recipe(
        "univariate", {"components": 5, "family": "gaussian", "base": "logistic", "context": 0}
    )
    assert flows.RECIPES["univariate"](**flow.recipe.arguments).recipe == flow.recipe


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "n: expected an integer of at least 0, got -1", lambda: flows.univariate().sample(-1)),
        (ValueError, "n: expected an integer of at least 0, got 1.5", lambda: flows.univariate().sample(1.5)),
        (ValueError, "n: expected an integer .*got True", lambda: flows.univariate().sample(True)),
        (ValueError, f"n: expected an integer .*got {10**22}", lambda: flows.univariate().sample(10**22)),
        (ValueError, "seed: expected an integer .*got 1.5", lambda: flows.univariate().sample(1, seed=1.5)),
        (ValueError, f"seed: expected .*got {2**64}", lambda: flows.univariate().sample(1, seed=2**64)),
        (ValueError, "components: .*got True", lambda: flows.univariate(True)),
        (
            ValueError,
            "seed: expected a seed or a generator, got both",
            lambda: flows.univariate().sample(1, seed=0, generator=torch.Generator()),
        ),
        (ValueError, "base: expected one of", lambda: flows.Flow(transforms.Affine(1), base="round")),
        (TypeError, "transform: expected a Transform, .*got int", lambda: flows.Flow(3)),
        (ValueError, "components: ", lambda: flows.univariate(components=-1)),
        (TypeError, "x: expected a torch.Tensor, got list", lambda: flows.univariate().log_prob([1.0])),
        (
            ValueError,
            r"x: expected shape \(\.\.\., 1\)",
            lambda: flows.univariate().log_prob(torch.zeros(3, 2)),
        ),
    ],
)
def test_bad_arguments_are_named(error, message, call):
    with pytest.raises(error, match=message):
        call()
