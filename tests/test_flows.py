"""Flows as distributions: densities integrate to one, samples follow them, recipes are recorded."""

import inspect
import math

import numpy as np
import pytest
import torch
from scipy import stats

import mixflow
from mixflow import flows, transforms


def shaped(family="gaussian", base="normal", context=0, device="cpu"):
    """A univariate flow in float64 that is neither standard nor symmetric."""
    torch.manual_seed(0)
    flow = flows.univariate(components=3, family=family, base=base, context=context).double()
    state = flow.state_dict()
    generator = torch.Generator().manual_seed(0)
    for value in state.values():
        value += 0.4 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    flow.load_state_dict(state)
    return flow.to(device)


CASES = [(family, base) for family in mixflow.FAMILIES for base in mixflow.BASES]


@pytest.mark.parametrize(("family", "base"), CASES)
def test_density_integrates_to_one(family, base, device):
    flow = shaped(family, base, device=device)
    t = torch.linspace(-20.0, 20.0, 60_001, dtype=torch.float64, device=device)
    x = t.sinh()  # up to 2e8, for tails that are powers
    with torch.no_grad():
        p = flow.log_prob(x).exp()
    assert abs(torch.trapezoid(p * t.cosh(), t).item() - 1.0) < 1e-6


@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_density_does_not_depend_on_the_base(family):
    x = torch.linspace(-30.0, 30.0, 101, dtype=torch.float64)
    expected = shaped(family, "normal").log_prob(x)
    for base in mixflow.BASES:
        torch.testing.assert_close(shaped(family, base).log_prob(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("family", "base"), CASES)
def test_samples_follow_the_density(family, base, device):
    flow = shaped(family, base, device=device)
    x = flow.sample(50_000, seed=3).squeeze(-1)
    grid = torch.linspace(-80.0, 80.0, 160_001, dtype=torch.float64, device=device)
    with torch.no_grad():
        cdf = torch.cumulative_trapezoid(flow.log_prob(grid).exp(), grid)
    F = np.interp(*(t.cpu().numpy() for t in (x.sort().values, grid[1:], cdf)))
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


def test_seeds_and_generators(device):
    flow = shaped(device=device)
    state = torch.get_rng_state()
    first = flow.sample(10, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (10, 1)
    assert first.dtype == torch.float64
    assert torch.equal(first, flow.sample(10, seed=1))
    assert not torch.equal(first, flow.sample(10, seed=2))
    assert torch.equal(first, flow.sample(10, generator=torch.Generator(device).manual_seed(1)))
    assert not torch.equal(flow.sample(10), flow.sample(10))
    assert flow.sample(0).shape == (0, 1)


def test_sampling_with_a_context(device):
    flow = shaped(context=2, device=device)
    one = torch.tensor([1.0, -1.0], dtype=torch.float64, device=device)
    shared = flow.sample(20, one, seed=0)
    torch.testing.assert_close(shared, flow.sample((), one.expand(20, 2), seed=0))
    assert not torch.allclose(shared, flow.sample(20, -one, seed=0))
    assert flow.log_prob(shared, one).shape == (20,)
    with pytest.raises(ValueError, match="context: expected shape"):
        flow.sample(20, one.expand(19, 2)[:, :1])


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
def test_infinite_data_have_density_zero_and_leave_the_other_gradients_alone(family, base, device):
    flow = shaped(family, base, device=device)
    finite = torch.tensor([0.5, -2.0], dtype=torch.float64, device=device, requires_grad=True)
    expected = flow.log_prob(finite)
    grads = torch.autograd.grad(expected.sum(), [finite, *flow.parameters()])
    x = torch.tensor([0.5, math.inf, -math.inf, -2.0], dtype=torch.float64, device=device, requires_grad=True)
    log_prob = flow.log_prob(x)
    assert log_prob[1:3].tolist() == [-math.inf, -math.inf]
    assert torch.equal(log_prob[[0, 3]], expected)
    own, *others = torch.autograd.grad(log_prob[[0, 3]].sum(), [x, *flow.parameters()], retain_graph=True)
    assert torch.equal(own, torch.stack([grads[0][0], *grads[0].new_zeros(2), grads[0][1]]))
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
        "univariate", {"components": 5, "family": "gaussian", "base": "logistic", "context": 0, "support": None}
    )
    assert flows.RECIPES["univariate"](**flow.recipe.arguments).recipe == flow.recipe


# -- every recipe --------------------------------------------------------------------------------------------

RECIPES = {
    "univariate": lambda **more: flows.univariate(3, **more),
    "gaussianization": lambda **more: flows.gaussianization(2, 3, 4, **more),
    "gaussianization-logistic": lambda **more: flows.gaussianization(2, 2, 4, family="logistic", **more),
    "gaussianization-one-feature": lambda **more: flows.gaussianization(1, 2, 3, **more),
    "coupling": lambda **more: flows.coupling(2, 3, 4, (8, 8), marginal_components=4, **more),
    "coupling-gaussian": lambda **more: flows.coupling(2, 2, 4, (8,), family="gaussian", marginal_components=4, **more),
    "autoregressive": lambda **more: flows.autoregressive(2, 2, 4, (8, 8), marginal_components=4, **more),
    "autoregressive-one-feature": lambda **more: flows.autoregressive(1, 2, 4, (8, 8), marginal_components=4, **more),
}
WITHOUT_BASE = {"gaussian_mixture": lambda **more: flows.gaussian_mixture(2, 3, **more)}


def bent(n, features, seed=0, device="cpu"):
    """Data that are neither standardised nor normal nor independent."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features, generator=generator, dtype=torch.float64)
    x[:, -1] = 0.5 * x[:, -1] + 0.3 * x[:, 0].square()
    return (2.0 * x + 5.0).to(device)


def build(name, device="cpu", **more):
    torch.manual_seed(0)
    flow = (WITHOUT_BASE.get(name) or RECIPES[name])(**more).double().to(device)
    x = bent(500, flow.features, device=device)
    flow.initialize(x, x[:, : flow.context] if flow.context else None)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for value in flow.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype).to(device)
    return flow


def test_every_registered_recipe_is_tested():
    tested = {(WITHOUT_BASE.get(name) or RECIPES[name])().recipe.name for name in (*RECIPES, *WITHOUT_BASE)}
    assert tested == set(flows.RECIPES)


@pytest.fixture(params=[*RECIPES, *WITHOUT_BASE])
def name(request):
    return request.param


def mass_on_a_grid(flow, context=None):
    points = {1: 70_001, 2: 701}[flow.features]
    axis = torch.linspace(-20.0, 50.0, points, dtype=torch.float64, device=next(flow.parameters()).device)
    cell = (axis[1] - axis[0]).item() ** flow.features
    x = torch.cartesian_prod(*[axis] * flow.features).reshape(-1, flow.features)
    with torch.no_grad():
        return sum(flow.log_prob(part, context).exp().sum().item() for part in x.split(200_000)) * cell


def test_every_density_integrates_to_one(name, device):
    assert mass_on_a_grid(build(name, device)) == pytest.approx(1.0, abs=2e-4)


def test_every_conditional_density_integrates_to_one(name, device):
    flow = build(name, device, context=1)
    one, other = (torch.tensor([v], dtype=torch.float64, device=device) for v in (4.0, 6.0))
    assert mass_on_a_grid(flow, context=one) == pytest.approx(1.0, abs=2e-4)
    x = bent(5, flow.features, device=device)
    assert not torch.allclose(flow.log_prob(x, one), flow.log_prob(x, other))


@pytest.mark.parametrize("name", RECIPES)
def test_the_density_of_a_recipe_does_not_depend_on_the_base(name, device):
    x = bent(20, RECIPES[name]().features, device=device)
    expected = build(name, device).log_prob(x)
    for base in mixflow.BASES:
        flow = build(name, device, base=base)
        torch.testing.assert_close(flow.log_prob(x), expected, rtol=1e-9, atol=1e-9)
        z, _ = flow.transform(x)
        torch.testing.assert_close(flow.inverse(z)[0], x, rtol=1e-9, atol=1e-9)
        if base == "uniform":
            assert ((z > 0.0) & (z < 1.0)).all()


def test_samples_of_every_recipe_follow_its_density(name, device):
    flow = build(name, device)
    x = flow.sample(40_000, seed=0)
    assert x.shape == (40_000, flow.features)
    # For any density r: the mean of r(x) / p(x) over samples of p is 1. The normal of half the samples' covariance
    # keeps the ratio bounded enough for a mean.
    normal = torch.distributions.MultivariateNormal(x.mean(0), 0.5 * x.T.cov().reshape(flow.features, flow.features))
    ratio = (normal.log_prob(x) - flow.log_prob(x)).exp().detach()
    error = ratio.std() / len(x) ** 0.5
    assert error < 0.05
    assert abs(ratio.mean() - 1.0) < 5.0 * error
    # And its moments are those of the density on a grid.
    if flow.features == 1:
        grid = torch.linspace(-40.0, 80.0, 200_001, dtype=torch.float64, device=device)
        with torch.no_grad():
            mean = torch.trapezoid(grid * flow.log_prob(grid).exp(), grid)
        assert abs(x.mean() - mean) < 5.0 * x.std() / len(x) ** 0.5


def test_every_recipe_comes_back_from_a_file(name, tmp_path, device):
    flow = build(name, device)
    mixflow.save(flow, tmp_path / "m.safetensors")
    state = torch.get_rng_state()
    loaded = mixflow.load(tmp_path / "m.safetensors").to(device)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.recipe == flow.recipe
    x = bent(10, flow.features, device=device)
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))
    assert torch.equal(loaded.sample(10, seed=0), flow.sample(10, seed=0))


def test_every_recipe_scores_infinities_and_nan(name, device):
    flow = build(name, device)
    inf, nan = math.inf, math.nan
    x = bent(5, flow.features, device=device)
    x[0, 0], x[1, -1], x[2, 0] = inf, -inf, nan
    log_prob = flow.log_prob(x)
    assert log_prob.isneginf().tolist() == [True, True, False, False, False]
    assert log_prob.isnan().tolist() == [False, False, True, False, False]
    torch.testing.assert_close(log_prob[3:], flow.log_prob(x[3:]))
    known = x.detach()[[0, 1, 3, 4]].requires_grad_()
    grads = torch.autograd.grad(flow.log_prob(known).sum(), [known, *flow.parameters()])
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_recipe_scores_far_outliers(name, dtype, device):
    flow = build(name, device).to(dtype)
    x = bent(3, flow.features, device=device).to(dtype)
    x[0, 0], x[1, -1] = 1e8, -1e6
    log_prob = flow.log_prob(x)
    assert not log_prob.isnan().any()
    assert (log_prob[:2] < -1e3).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_recipe_works_in_half_precision(name, dtype, device):
    flow = build(name, device)
    x = bent(10, flow.features, device=device)
    expected = flow.log_prob(x)
    low = flow.to(dtype).log_prob(x.to(dtype))
    assert low.dtype == dtype
    torch.testing.assert_close(low.double(), expected, rtol=0.1, atol=0.3)
    assert flow.sample(5, seed=0).dtype == dtype


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_reach_the_flow(name):
    flow = RECIPES[name]()
    arguments = dict(inspect.signature(flows.RECIPES[flow.recipe.name]).parameters)
    assert list(flow.recipe.arguments) == [name for name in arguments if name not in ("network", "embedding", "seed")]
    if "hidden" in arguments:
        assert flow.recipe.arguments["hidden"] == [8] * len(flow.recipe.arguments["hidden"])
        again = flows.RECIPES[flow.recipe.name](**flow.recipe.arguments)
        assert again.recipe == flow.recipe


# -- what the recipes can do ---------------------------------------------------------------------------------


def true_moons(n, seed):
    generator = torch.Generator().manual_seed(seed)
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1.0 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return torch.stack([x, y], dim=1) + 0.1 * torch.randn(n, 2, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", mixflow.FAMILIES)
def test_samples_of_few_layers_are_finite(family, dtype):
    """Of heavy tails, too: one layer's far draw is no quantile that overflows in the layer before it."""
    x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    flow = flows.gaussianization(features=2, layers=4, components=8, family=family, seed=0).to(dtype)
    flow.initialize(x)
    assert flow.sample(20_000, seed=0).isfinite().all()


def test_gaussianization_is_a_decent_density_before_any_training():
    train, test = true_moons(5000, 0), true_moons(5000, 1)
    scores = []
    for layers in (1, 3, 12):
        flow = flows.gaussianization(2, layers)
        flow.initialize(train)
        scores.append(flow.log_prob(test).mean().item())
    independent, few, many = scores
    normal = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov()).log_prob(test).mean().item()
    assert normal < independent < few < many
    # The entropy of the moons is about 0.95 nats, that of the normal of their covariance 1.93.
    assert many > -1.4


def test_fit_improves_on_the_start(device):
    train, test = (true_moons(2000, seed).to(device) for seed in (0, 1))
    flow = flows.gaussianization(2, 4).to(device)
    flow.initialize(train)
    start = flow.log_prob(test).mean().item()
    mixflow.fit(flow, train, epochs=20, progress=False)
    assert flow.log_prob(test).mean().item() > start + 0.05


@pytest.mark.parametrize(
    ("build", "sizes"),
    [
        (flows.coupling, {"layers": 2, "components": 3, "hidden": (16,)}),
        (flows.autoregressive, {"layers": 2, "components": 3, "hidden": (16,)}),
        (flows.gaussian_mixture, {"components": 2}),
    ],
)
def test_a_conditional_density_is_learned(build, sizes, device):
    # The sign of the context decides between two clusters, and its size how far apart they are.
    generator = torch.Generator().manual_seed(0)
    context = 1e3 + 10.0 * torch.randn(3000, 1, generator=generator)
    x = 0.3 * torch.randn(3000, 2, generator=generator) + (context - 1e3) / 10.0 * torch.tensor([1.0, -2.0])
    torch.manual_seed(0)
    flow = build(2, **sizes, context=1).to(device)
    history = mixflow.fit(flow, x, context=context, epochs=40, lr=0.01, progress=False)
    entropy = 2.0 * (0.5 * math.log(2.0 * math.pi * math.e) + math.log(0.3))
    assert max(history.validation_log_prob) > -entropy - 0.15
    drawn = flow.sample(4000, torch.tensor([1010.0], device=device), seed=0)
    torch.testing.assert_close(drawn.mean(0).cpu(), torch.tensor([1.0, -2.0]), rtol=0.0, atol=0.1)


def test_gaussian_mixture_is_the_mixture_of_its_parameters(device):
    flow = build("gaussian_mixture", device)
    x = bent(20, 2, device=device)
    loc, scale = flow.data_to_base.loc, flow.data_to_base.log_scale.exp()
    factor = flow.log_diagonal.exp().diag_embed()
    factor[:, 1, 0] = flow.lower[:, 0]
    components = torch.distributions.MultivariateNormal(
        loc + scale * flow.loc, precision_matrix=(factor @ factor.mT) / (scale[:, None] * scale)
    )
    expected = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=flow.logits), components)
    torch.testing.assert_close(flow.log_prob(x), expected.log_prob(x))
    drawn = flow.sample(200_000, seed=0)
    torch.testing.assert_close(drawn.mean(0), expected.mean.detach(), rtol=0.0, atol=0.1)
    torch.testing.assert_close(drawn.var(0), expected.variance.detach(), rtol=0.03, atol=0.0)


def test_gaussian_mixture_finds_the_clusters():
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 6.0]])
    turn = torch.tensor([[0.5, 0.4], [0.0, 0.2]])
    which = torch.randint(3, (3000,), generator=generator)
    x = centre[which] + torch.randn(3000, 2, generator=generator) @ turn
    flow = flows.gaussian_mixture(2, 3)
    mixflow.fit(flow, x[:2000], epochs=60, progress=False)
    components = torch.distributions.MultivariateNormal(centre, turn.T @ turn)
    true = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(3)), components)
    assert flow.log_prob(x[2000:]).mean() > true.log_prob(x[2000:]).mean() - 0.03


def test_gaussian_mixture_starts_on_rows_that_repeat_each_other():
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(50, 1)
    flow = flows.gaussian_mixture(2, 5)
    flow.initialize(x)
    assert flow.log_prob(x).isfinite().all()
    assert flow.sample(10, seed=0).isfinite().all()


def test_a_million_samples_of_five_features_follow_the_density():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 5, generator=generator) @ torch.randn(5, 5, generator=generator)
    x[:, 0] = x[:, 0].exp()
    flow = flows.gaussianization(5)
    flow.initialize(x)
    drawn = flow.sample(1_000_000, seed=0)
    assert drawn.shape == (1_000_000, 5)
    assert drawn.isfinite().all()
    z, _ = flow.transform(drawn[:100_000])
    torch.testing.assert_close(z.T.cov(), torch.eye(5), rtol=0.0, atol=0.02)


# -- transport -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"), [(s, t) for s in RECIPES for t in ("univariate", "gaussianization", "coupling")]
)
@pytest.mark.parametrize(
    "bases",
    [
        ("normal", "normal"),
        pytest.param(("normal", "logistic"), marks=pytest.mark.slow),
        pytest.param(("logistic", "uniform"), marks=pytest.mark.slow),
    ],
)
def test_transport_carries_one_density_to_the_other(source, target, bases, device):
    start, end = build(source, device, base=bases[0]), build(target, device, base=bases[1])
    if start.features != end.features:
        with pytest.raises(ValueError, match=f"target: expected {start.features} features"):
            flows.transport(start, end)
        return
    transform = flows.transport(start, end)
    x = bent(20, start.features, device=device)
    y, ladj = transform(x)
    # The change of variables, exactly: log p(x) = log q(y) + log |det dy/dx|.
    torch.testing.assert_close(start.log_prob(x), end.log_prob(y) + ladj, rtol=1e-8, atol=1e-8)
    back, inverse_ladj = transform.inverse(y)
    torch.testing.assert_close(back, x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(inverse_ladj, -ladj, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("bases", [("normal", "normal"), ("normal", "logistic")])
def test_transport_keeps_the_tails(bases):
    start, end = shaped(base=bases[0]), shaped("logistic", base=bases[1])
    x = torch.tensor([[-200.0], [-50.0], [50.0], [200.0]], dtype=torch.float64)
    transform = flows.transport(start, end)
    y, ladj = transform(x)
    assert y.isfinite().all()
    torch.testing.assert_close(start.log_prob(x), end.log_prob(y) + ladj, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(transform.inverse(y)[0], x, rtol=1e-9, atol=1e-9)


def test_transport_between_equal_bases_has_nothing_in_between():
    same = flows.transport(shaped(), shaped("logistic"))
    other = flows.transport(shaped(), shaped(base="uniform"))
    assert [type(part).__name__ for part in same.transforms] == ["Compose", "Inverse"]
    assert [type(part).__name__ for part in other.transforms] == ["Compose", "Rebase", "Inverse"]


def two_clusters(n, seed):
    generator = np.random.default_rng(seed)
    return np.where(generator.random(n) < 0.3, generator.normal(-4.0, 0.7, n), generator.normal(3.0, 1.5, n))


def skewed(n, seed):
    generator = np.random.default_rng(seed)
    return np.where(generator.random(n) < 0.5, 10.0 + generator.gumbel(0.0, 2.0, n), generator.normal(0.0, 1.0, n))


def test_transport_between_fitted_flows_passes_kolmogorov_smirnov():
    pairs = []
    for draw, base in ((two_clusters, "normal"), (skewed, "logistic")):
        flow = flows.univariate(12, base=base).double()
        mixflow.fit(flow, draw(200_000, 0), epochs=16, progress=False)
        pairs.append((flow, draw(100_000, 1)))
    for (source, x), (target, _) in (pairs, pairs[::-1]):
        transform = flows.transport(source, target)
        x = torch.from_numpy(x).unsqueeze(-1)
        with torch.no_grad():
            y, _ = transform(x)
            assert (transform.inverse(y)[0] - x).abs().max() < 1e-5
            # Of the carried sample against the target flow itself.
            u = flows.transport(target, UNIFORM)(y)[0]
        assert stats.kstest(u.squeeze(-1).numpy(), "uniform").pvalue > 0.01


UNIFORM = flows.Flow(transforms.Affine(1, trainable=False), "uniform").double()


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
        (
            TypeError,
            "x: expected a torch.Tensor or a numpy array, got list",
            lambda: flows.univariate().log_prob([1.0]),
        ),
        (ValueError, "layers: .*at least 1, got 0", lambda: flows.gaussianization(2, 0)),
        (ValueError, "layers: .*at most 1000, got 1001", lambda: flows.coupling(2, 1001)),
        (ValueError, "features: .*at least 2, got 1", lambda: flows.coupling(1)),
        (ValueError, "features: .*at least 1, got 0", lambda: flows.autoregressive(0)),
        (ValueError, "hidden: .*got 2.5", lambda: flows.autoregressive(2, hidden=(2.5,))),
        (ValueError, "base: expected one of", lambda: flows.coupling(2, base="round")),
        (ValueError, "base: expected one of", lambda: flows.gaussianization(2, base="round")),
        (ValueError, "components: .*got 0", lambda: flows.gaussian_mixture(2, 0)),
        (TypeError, "source: expected a Flow, got Affine", lambda: flows.transport(transforms.Affine(1), UNIFORM)),
        (
            ValueError,
            "target: expected a flow with a map to one of .*GaussianMixture, whose base is a distribution of its own",
            lambda: flows.transport(flows.gaussianization(2), flows.gaussian_mixture(2)),
        ),
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
