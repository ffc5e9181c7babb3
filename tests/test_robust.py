"""Fits to what real tables hold: offsets, outliers, heavy tails, few rows, ties, dependent columns, bounded values."""

import copy
import itertools
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader, Dataset, IterableDataset

import mixflow
from mixflow import cli, flows, transforms
from mixflow.fitting.checkpoint import weights
from mixflow.fitting.epochs import Training
from mixflow.fitting.parallel import Group
from mixflow.fitting.sources import shuffled
from mixflow.networks.inputs import Inputs

LOG_2PI = math.log(2.0 * math.pi)
HOUR = 3600.0
NOW = 1.7e9  # seconds since 1970: float32 moves in steps of 128 there

# Small flows of each recipe, for any number of columns that it takes.
RECIPES = {
    "univariate": lambda features, **options: flows.univariate(8, **options),
    "gaussianization": lambda features, **options: flows.gaussianization(features, 3, 4, **options),
    "coupling": lambda features, **options: flows.coupling(features, 2, 4, (16,), **options),
    "autoregressive": lambda features, **options: flows.autoregressive(features, 2, 4, (16,), **options),
    "gaussian_mixture": lambda features, **options: flows.gaussian_mixture(features, 3, **options),
}
SEVERAL = [name for name in RECIPES if name != "univariate"]
# Recipes with the number of columns that a test of few columns gives them.
FEWEST = {name: 2 if name == "coupling" else 1 for name in RECIPES}


@pytest.fixture(autouse=True)
def _the_same_networks():
    torch.manual_seed(0)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(rows, seed=0):
    """Three columns of variance 1 and the log of the determinant of their covariance."""
    correlation = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, 0.3], [0.0, 0.3, 1.0]], dtype=torch.float64)
    return normal(rows, 3, seed=seed) @ torch.linalg.cholesky(correlation).mT, correlation.logdet().item()


def fit(flow, data, **options):
    return mixflow.fit(flow, data, **{"progress": False} | options)


def fitted(flow, data, **options):
    fit(flow, data, **options)
    return flow


def score(flow, x, context=None):
    with torch.no_grad():
        return flow.log_prob(x, context).double().mean().item()


def equal_weights(one, other):
    """Whether all tensors agree, bit for bit, in their dtypes as well."""
    first, second = (flow if isinstance(flow, dict) else flow.state_dict() for flow in (one, other))
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) and value.dtype == second[name].dtype for name, value in first.items()
    )


def integral(flow, low, high, points=20_001):
    x = torch.linspace(low, high, points, dtype=torch.float64)
    with torch.no_grad():
        return torch.trapezoid(flow.log_prob(x.unsqueeze(-1)).double().exp(), x).item()


# -- precision -----------------------------------------------------------------------------------------------

OFFSET_CASES = [("univariate", 1), ("gaussianization", 3), ("gaussian_mixture", 3), ("coupling", 3)]


@pytest.mark.parametrize("offset", [NOW, 1e12])
@pytest.mark.parametrize(("recipe", "features"), OFFSET_CASES)
def test_data_with_a_large_offset_are_learned_as_centred_ones(recipe, features, offset):
    data = offset + HOUR * uniform(3000, features)
    centred = data - offset  # exact
    flow, beside = (RECIPES[recipe](features) for _ in range(2))
    beside.load_state_dict(flow.state_dict())
    flow.fitted = beside.fitted = False  # the same first weights, set from the data all the same
    fit(flow, data, epochs=3)
    fit(beside, centred, epochs=3)
    test = offset + HOUR * uniform(2000, features, seed=1)
    assert score(flow, test) == pytest.approx(score(beside, test - offset), abs=0.05)
    # No worse than one Gaussian would be, which misses log(2 pi e / 12) / 2 nats of a uniform column.
    assert -score(flow, test) - features * math.log(HOUR) < features * 0.5 * math.log(2.0 * math.pi * math.e / 12.0)
    drawn, drawn_beside = flow.sample(10_000, seed=0), beside.sample(10_000, seed=0)
    assert drawn.dtype == torch.float64
    assert drawn_beside.dtype == torch.float32
    for column in range(features):
        # Of the numbers that float64 has near the offset, as many are met as centred samples, rounded to them, meet.
        can_be_met = len((drawn_beside[:, column].double() + offset).unique())
        assert len(drawn[:, column].unique()) >= 0.99 * can_be_met


def test_float32_data_give_float32_samples():
    for recipe, features in OFFSET_CASES:
        for data in (5.0 + normal(300, features), NOW + 1e4 * normal(300, features)):
            flow = fitted(RECIPES[recipe](features), data.float(), epochs=1)
            assert flow.sample(5, seed=0).dtype == torch.float32


def loaded(flow, path):
    mixflow.save(flow, path)
    return mixflow.load(path)


def with_its_state(flow):
    fresh = flows.univariate(8, context=1)
    fresh.load_state_dict(flow.state_dict())
    return fresh


KEEP = {
    "to": lambda flow, path: flow.to(torch.float32),
    "float": lambda flow, path: flow.double().float(),
    "half": lambda flow, path: flow.half(),
    "deepcopy": lambda flow, path: copy.deepcopy(flow),
    "pickle": lambda flow, path: pickle.loads(pickle.dumps(flow)),
    "save and load": loaded,
    "load_state_dict": lambda flow, path: with_its_state(flow),
}


@pytest.mark.parametrize("way", KEEP)
def test_the_offsets_keep_their_digits(way, tmp_path):
    context = NOW + 0.1 + HOUR * uniform(500, 1, seed=1)
    data = NOW + 0.7 + HOUR * uniform(500, 1)
    flow = fitted(flows.univariate(8, context=1), data, context=context, epochs=1)
    offsets = {name: value.clone() for name, value in flow.named_buffers() if name.endswith("loc")}
    assert len(offsets) == 2  # of the data and of the context
    for value in offsets.values():
        assert value.dtype == torch.float64
        assert value.item() != value.float().item()
    expected = flow.log_prob(data, context).detach()
    kept = KEEP[way](flow, tmp_path / "model.safetensors")
    for name, value in offsets.items():
        found = dict(kept.named_buffers())[name]
        assert found.dtype == torch.float64
        assert torch.equal(found, value)
    tolerance = 0.2 if way == "half" else 1e-5
    torch.testing.assert_close(kept.log_prob(data, context).float(), expected, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("recipe", ["univariate", "gaussian_mixture"])
def test_a_spread_below_the_range_of_float32_is_learned(recipe):
    flow = fitted(RECIPES[recipe](1), 1e-40 * normal(2000, 1), epochs=2)
    truth = 40.0 * math.log(10.0) - 0.5 * (LOG_2PI + 1.0)
    test = 1e-40 * normal(4000, 1, seed=1)
    assert score(flow, test) == pytest.approx(truth, abs=0.05)
    drawn = flow.sample(4000, seed=0)
    assert drawn.dtype == torch.float64
    assert drawn.std().item() == pytest.approx(1e-40, rel=0.1)


@pytest.mark.parametrize("recipe", [*RECIPES, "by hand"])
def test_log_prob_takes_every_floating_point_dtype(recipe):
    features = 1 if recipe == "univariate" else 2
    by_hand = flows.Flow(transforms.Compose(transforms.Permutation([1, 0]), transforms.MixtureCDF(2, 3)))
    flow = by_hand if recipe == "by hand" else RECIPES[recipe](features)
    fit(flow, normal(300, features), epochs=1)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        x = normal(20, features, seed=1).to(dtype)
        found = flow.log_prob(x)
        assert found.dtype == torch.float32
        # All of them are numbers of float64.
        torch.testing.assert_close(found, flow.log_prob(x.double()), rtol=1e-5, atol=1e-5)


def test_a_context_with_a_large_offset_is_learned_as_a_centred_one():
    context = NOW + HOUR * uniform(1000, 1)
    data = (context - NOW) / HOUR + 0.01 * normal(1000, 1)
    flow = flows.univariate(2, context=1)
    beside = copy.deepcopy(flow)
    fit(flow, data, context=context, epochs=30)
    fit(beside, data, context=context - NOW, epochs=30)
    found = score(flow, data, context)
    # The two contexts differ in their last bits, from which thirty epochs make a tenth of a nat.
    assert found == pytest.approx(score(beside, data, context - NOW), abs=0.2)
    assert found > 2.0  # without the context: 0


def test_a_column_cut_out_of_a_table_is_taken_as_it_is():
    table = 5.0 + normal(300, 4)
    flow, beside = (flows.univariate(2) for _ in range(2))
    fit(flow, table[:, 1:2], epochs=1)
    fit(beside, table[:, 1].clone(), epochs=1)
    assert equal_weights(flow, beside)


# -- outliers and heavy tails --------------------------------------------------------------------------------

OUTLIERS = {"far": (0.001, lambda count: 1e9 * uniform(count, seed=2)), "sentinels": (0.005, lambda count: -9999.0)}


def with_outliers(kind, rows):
    """N(0, 1) with a share of other values in random places, and the share of the normal ones."""
    share, values = OUTLIERS[kind]
    count = round(share * rows)
    x = normal(rows)
    x[torch.from_numpy(shuffled(np.arange(count), rows, 9, 0))] = values(count)
    return x, 1.0 - share


@pytest.mark.parametrize("family", mixflow.FAMILIES)
@pytest.mark.parametrize("kind", OUTLIERS)
def test_a_few_values_far_out_cost_the_bulk_nothing(kind, family):
    data, share = with_outliers(kind, 10_000)
    test = normal(4000, seed=1)
    truth = -0.5 * (LOG_2PI + test.square().mean().item()) + math.log(share)
    flow = flows.univariate(8, family)
    flow.initialize(data.unsqueeze(-1))
    assert score(flow, test) == pytest.approx(truth, abs=0.1)
    history = fit(flow, data, epochs=10, initialize=True)
    assert score(flow, test) == pytest.approx(truth, abs=0.05)
    assert any(note.startswith("Values far out: x1") for note in history.notes)


@pytest.mark.parametrize("recipe", ["gaussianization", "gaussian_mixture"])
def test_rows_far_out_cost_correlated_columns_little(recipe):
    data, log_determinant = correlated(5000)
    data[::1000] *= 1e7
    test, _ = correlated(4000, seed=1)
    truth = -0.5 * (3.0 * (LOG_2PI + 1.0) + log_determinant)
    flow = flows.gaussianization(3) if recipe == "gaussianization" else flows.gaussian_mixture(3)
    flow.initialize(data)
    assert score(flow, test) == pytest.approx(truth, abs=0.3)
    fit(flow, data, initialize=True, **({"epochs": 5} if recipe == "gaussianization" else {}))
    assert score(flow, test) == pytest.approx(truth, abs=0.3)


@pytest.mark.parametrize(("freedom", "most"), [(1.0, 0.2), (0.5, 0.3)])
def test_heavy_tails_are_learned_beyond_the_farthest_row(freedom, most):
    law, losses = stats.t(freedom), {"logistic": [], "gaussian": []}
    for seed in range(4):
        data, test = (torch.from_numpy(law.rvs(n, random_state=s)) for n, s in ((1000, seed), (20_000, 100 + seed)))
        inside = test.abs() <= data.abs().max()
        assert not inside.all()
        for family, lost in losses.items():
            flow = fitted(flows.univariate(family=family), data, epochs=30)
            with torch.no_grad():
                found = flow.log_prob(test).double()
            assert found.isfinite().all()
            lost.append(torch.from_numpy(law.logpdf(test.numpy())) - found)
            # Up to the farthest row, for each draw of the data.
            assert lost[-1][inside].mean().item() < 0.1
    # Beyond it, the tails of a normal fall off with the square: that family has no bound there.
    assert torch.cat(losses["logistic"]).mean().item() < most


# -- few rows ------------------------------------------------------------------------------------------------


def usual_score(data, test):
    """The better of a kernel density and the Gaussian of largest likelihood."""
    kernel = stats.gaussian_kde(data.T).logpdf(test.T).mean()
    covariance = np.cov(data.T, bias=True)
    return max(kernel, stats.multivariate_normal(data.mean(0), covariance).logpdf(test).mean())


@pytest.mark.parametrize(
    ("rows", "features"),
    [(n, d) for n in (5, 10) for d in (1, 2, 5)] + [pytest.param(20, d, marks=pytest.mark.slow) for d in (1, 2, 5)],
)
def test_few_rows_are_learned_as_well_as_the_usual_densities_do(rows, features):
    test = normal(2000, features, seed=99)
    truth = -0.5 * features * (LOG_2PI + 1.0)
    for recipe in ["univariate", "gaussianization", "gaussian_mixture"] if features == 1 else SEVERAL:
        excess = []
        for seed in range(3):
            data = normal(rows, features, seed=seed)
            found = score(fitted(RECIPES[recipe](features), data, seed=seed), test)
            # Rows that span no volume give neither a kernel density nor a Gaussian.
            usual = truth if rows <= features else usual_score(data.numpy(), test.numpy())
            excess.append((found - usual) / features)
        assert np.mean(excess) > (-0.25 if rows > features else -0.6), (recipe, excess)


def component_scales(flow):
    """The standard deviations (..., K) of the components of each column, in units of the data."""
    if isinstance(flow, flows.GaussianMixture):
        factor = flow._parameters_for(None)[3].detach().double()
        own = torch.linalg.inv(factor @ factor.mT).diagonal(dim1=-2, dim2=-1).sqrt()
        return own * flow.data_to_base.log_scale.exp()
    standardise, marginals = flow.data_to_base.each()[:2]
    return marginals.log_scale.detach().exp() * standardise.log_scale.exp().unsqueeze(-1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_five_rows_give_no_spikes(recipe):
    features = FEWEST[recipe]
    for seed in range(3):
        data = normal(5, features, seed=seed)
        flow = fitted(RECIPES[recipe](features), data, seed=seed)
        assert (component_scales(flow) > 0.1 * data.std(0).min()).all()


# -- dependent columns ---------------------------------------------------------------------------------------


def dependent(kind):
    a = normal(600)
    one_hot = torch.eye(3, dtype=torch.float64)[torch.from_numpy(np.random.default_rng(0).integers(0, 3, 600))]
    return {
        "line": (torch.stack([a, 2.0 * a + 1.0], 1), "x2 = 2 x1 + 1"),
        "twice": (torch.stack([a, a], 1), "x2 = x1"),
        "one-hot": (one_hot, "x3 = -x1 - x2 + 1"),
    }[kind]


@pytest.mark.parametrize("kind", ["line", "twice", "one-hot"])
@pytest.mark.parametrize("recipe", SEVERAL)
def test_dependent_columns_are_named_and_end_with_finite_scores(recipe, kind):
    data, formula = dependent(kind)
    flow = RECIPES[recipe](data.shape[1])
    history = fit(flow, data, epochs=5)
    assert any(f"Dependent columns: {formula}." in note for note in history.notes)
    assert len(history.lr) == 5
    assert all(map(math.isfinite, [*history.monitored, *history.train_log_prob, *history.starts.values()]))
    with torch.no_grad():
        assert flow.log_prob(data).isfinite().all()
        assert flow.sample(100, seed=0).isfinite().all()


# -- going on ------------------------------------------------------------------------------------------------


def one_bump_of_two(rows, seed=0):
    return 6.0 * uniform(rows, seed=seed + 100).round() - 3.0 + normal(rows, seed=seed)


def two_bumps(rows, seed=0):
    a = one_bump_of_two(rows, seed)
    return torch.stack([a, a.sin() + 0.3 * normal(rows, seed=seed + 1)], 1)


def loaded_state(flow, path):
    fresh = flows.RECIPES[flow.recipe.name](**flow.recipe.arguments)
    fresh.load_state_dict(flow.state_dict())
    return fresh


GO_ON = {"fitted": lambda flow, path: flow, "loaded": loaded, "load_state_dict": loaded_state}


@pytest.mark.parametrize("recipe", ["gaussianization", "coupling", "gaussian_mixture"])
@pytest.mark.parametrize("way", GO_ON)
def test_a_flow_that_was_fitted_or_loaded_goes_on_from_its_weights(way, recipe, tmp_path):
    data = two_bumps(1000)
    flow = GO_ON[way](fitted(RECIPES[recipe](2), data, epochs=3), tmp_path / "model.safetensors")
    expected = flow.log_prob(data).detach()
    history = fit(flow, 100.0 + 0.01 * data[:30], epochs=1, lr=1e-9)
    torch.testing.assert_close(flow.log_prob(data).detach(), expected, rtol=0.0, atol=1e-3)
    assert any("Start: the flow's own weights" in note for note in history.notes)


def test_a_flow_goes_on_only_if_it_is_not_told_to_start_anew():
    data = two_bumps(500)
    options = {"epochs": 1, "lr": 1e-12, "initialize": True}
    flow = fitted(RECIPES["gaussianization"](2), data, epochs=2)
    fit(flow, 5.0 * data + 7.0, **options)
    assert equal_weights(flow, fitted(RECIPES["gaussianization"](2), 5.0 * data + 7.0, **options))


@pytest.mark.parametrize("recipe", RECIPES)
def test_going_on_leaves_the_standardisation_as_it_is(recipe):
    features = 1 if recipe == "univariate" else 2
    data = two_bumps(500)[:, :features].contiguous()
    flow = fitted(RECIPES[recipe](features), data, epochs=1)
    before = {name: value.clone() for name, value in flow.named_buffers()}
    fit(flow, 5.0 * data + 7.0, epochs=2, lr=0.01)
    assert equal_weights(before, dict(flow.named_buffers()))


def marginal_mixture(flow):
    return next(module for module in flow.modules() if isinstance(module, transforms.MixtureCDF))


def conditioner(flow):
    return next(module.conditioner for module in flow.modules() if getattr(module, "conditioner", None) is not None)


# What is frozen: a module as a whole, whose buffers stay with it, or one of its parameters.
FROZEN = {
    "marginals": (lambda: flows.coupling(2, 1, 4, (8,)), lambda flow: marginal_mixture(flow)),
    "marginals of a given size": (lambda: flows.coupling(2, 1, 4, (8,), marginal_components=5), marginal_mixture),
    "first layer": (lambda: flows.gaussianization(2, 2, 4), marginal_mixture),
    "last layer": (lambda: flows.gaussianization(2, 3, 4), lambda flow: flow.data_to_base.each()[-1]),
    "network": (lambda: flows.coupling(2, 2, 4, (8,)), conditioner),
    "network of an autoregressive flow": (lambda: flows.autoregressive(2, 2, 4, (8,)), conditioner),
    "one parameter": (lambda: flows.gaussianization(2, 2, 4), lambda flow: marginal_mixture(flow).loc),
    "one parameter of the mixture": (lambda: flows.gaussian_mixture(2, 3), lambda flow: flow.loc),
    "one parameter of many": (lambda: flows.coupling(2, 1, 4, (8,)), lambda flow: marginal_mixture(flow).log_scale),
}


@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_parameters_and_the_buffers_beside_them_are_never_touched(kind):
    build, choose = FROZEN[kind]
    flow = build()
    chosen = choose(flow).requires_grad_(False)
    is_module = isinstance(chosen, torch.nn.Module)
    before = copy.deepcopy(chosen.state_dict() if is_module else {"": chosen})
    others = copy.deepcopy(dict(flow.named_parameters()))
    fit(flow, 10.0 + 3.0 * two_bumps(300), epochs=2, validation=0.0)
    now = choose(flow)
    assert equal_weights(before, now.state_dict() if is_module else {"": now})
    assert not any(p.requires_grad for p in (now.parameters() if is_module else [now]))
    trained = {name: value for name, value in flow.named_parameters() if value.requires_grad}
    assert any(not torch.equal(value, others[name]) for name, value in trained.items() if name in others)


def test_the_frozen_network_of_a_context_is_never_touched():
    flow = flows.univariate(3, context=1)
    chosen = conditioner(flow).requires_grad_(False)
    assert any(isinstance(module, Inputs) for module in chosen.modules())
    before = copy.deepcopy(chosen.state_dict())
    fit(flow, normal(200, 1), context=5.0 + normal(200, 1, seed=1), epochs=2)
    assert equal_weights(before, chosen.state_dict())


def test_a_refused_fit_leaves_the_flow_as_it_was(tmp_path):
    checkpoint = tmp_path / "run.checkpoint"
    data = two_bumps(600)
    fit(flows.coupling(2, 1, 2, (4,)), data, epochs=1, checkpoint=checkpoint)
    constant = data.clone()
    constant[:, 1] = 2.5
    for bad, options, message in (
        (constant, {}, "constant 2.5 in column 1"),
        (data, {"checkpoint": checkpoint, "resume": True, "seed": 5}, "a run with seed"),
    ):
        for was_fitted in (False, True):
            flow = flows.coupling(2, 1, 2, (4,))
            flow.fitted = was_fitted
            before, recipe, sizes, notes = weights(flow), flow.recipe, flow.sizes(), copy.deepcopy(flow.notes)
            assert recipe.arguments["marginal_components"] is None
            with pytest.raises(ValueError, match=message):
                fit(flow, bad, epochs=1, initialize=True, **options)
            assert equal_weights(flow, before)
            assert (flow.recipe, flow.sizes(), flow.fitted, flow.notes) == (recipe, sizes, was_fitted, notes)


# -- the start competes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "lr"), [("gaussianization", 3.0), ("coupling", 0.5), ("autoregressive", 0.5), ("gaussian_mixture", 3.0)]
)
def test_training_that_ruins_a_flow_is_thrown_away(recipe, lr):
    data, test = two_bumps(600), two_bumps(400, seed=7)
    flow = RECIPES[recipe](2)
    history = fit(flow, data, validation=test, epochs=3, lr=lr)
    assert max(history.validation_log_prob) < max(history.starts.values())
    assert history.kept == max(history.starts, key=history.starts.get)
    assert history.best_epoch is None
    assert "the start" in history.starts
    assert ("one Gaussian" in history.starts) == (recipe != "gaussian_mixture")
    assert score(flow, test) == pytest.approx(history.starts[history.kept], abs=1e-5)
    assert f"kept {history.kept}, validation" in repr(history)


def test_one_gaussian_is_kept_if_it_is_the_best():
    data, test = correlated(600)[0], correlated(2000, seed=1)[0]
    flow = RECIPES["coupling"](3)
    # Of more than 500 rows, networks start from the marginals alone.
    history = fit(flow, data, validation=test, epochs=2, lr=1e-4)
    assert history.kept == "one Gaussian"
    assert history.starts["one Gaussian"] > history.starts["the start"] + 0.3
    assert score(flow, test) == pytest.approx(history.starts["one Gaussian"], abs=1e-5)


def judged(gains, score_gain=None, kept="the start"):
    """Whether an epoch is taken to be better whose held-out rows have these gains over the start."""
    gains = torch.as_tensor(gains, dtype=torch.float64)
    history = mixflow.History(starts={"the start": -1.0}, kept=kept)
    training = SimpleNamespace(
        run=SimpleNamespace(history=history), at_start=torch.full_like(gains, -1.0), group=Group()
    )
    mean = gains.mean().item() if score_gain is None else score_gain
    return Training._is_better(training, -1.0 + mean, gains - 1.0)


def test_an_epoch_must_beat_the_start_by_more_than_chance_on_few_held_out_rows():
    alternating = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(50)
    for gains, expected in (
        ([5.0, 5.0], False),  # two rows never suffice
        ([5.0, 7.0, 3.0], False),  # three only if they agree
        ([5.0, 5.1, 4.9], True),
        ([1.0, 1.01, 0.99, 1.0, 1.0], True),
        (0.1 + alternating, False),  # one standard error
        (0.5 + alternating, True),  # five
        ([1e6] + [-0.1] * 19, False),  # a single row does not decide, whatever it says
        ([-0.01] * 20, False),  # worse
        ([1e-4 + 1.0, 1e-4 - 1.0] * 600, True),  # more than a thousand rows: no more is asked for
        ([1e-4 + 1.0, 1e-4 - 1.0] * 400, False),
    ):
        assert judged(gains) is expected, gains[:5]


def test_a_row_s_gain_counts_20_nats_at_most():
    # Means of gains as they are and as they count have different signs.
    assert judged([1e6] + [-30.0] * 19) is False
    assert judged([-1e6] + [5.0, 5.1] * 20, score_gain=1.0) is True


# -- weights -------------------------------------------------------------------------------------------------


def test_integer_weights_are_repeated_rows():
    data = one_bump_of_two(1500)
    weight = torch.tensor([1, 2, 3]).repeat(500)
    repeated = data.repeat_interleave(weight, dim=0)
    options = {"epochs": 1, "lr": 1e-12, "validation": 0.0}
    one, other = (flows.univariate(2).double() for _ in range(2))
    histories = [
        fit(one, data, weights=weight.double(), **options),
        fit(other, repeated, **options),
    ]
    torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), rtol=1e-6, atol=1e-6)
    first, second = (history.train_log_prob for history in histories)
    assert first == pytest.approx(second, abs=1e-9)
    assert first == pytest.approx([score(one, repeated)], abs=1e-6)
    ignored = fitted(flows.univariate(2).double(), data, **options)
    assert not torch.allclose(ignored.state_dict()["data_to_base.transforms.0.loc"], one.data_to_base.transforms[0].loc)


@pytest.mark.parametrize("wild", [1e6, 1e30])
def test_rows_of_weight_zero_do_not_matter(wild):
    data = normal(300, 1)
    more = torch.cat([data, torch.full((50, 1), wild, dtype=torch.float64)])
    weight = torch.cat([torch.ones(300), torch.zeros(50)])
    options = {"epochs": 5, "validation": 0.0, "batch_size": 350, "lr": 0.05}
    for initialize in (False, True):
        flow, beside = flows.univariate(3), flows.univariate(3)
        history = fit(flow, more, weights=weight, initialize=initialize, **options)
        expected = fit(beside, data, initialize=initialize, **options)
        assert history.train_log_prob == pytest.approx(expected.train_log_prob, abs=1e-3)
    before = fitted(flows.univariate(3), data, initialize=True, **options | {"lr": 1e-12, "epochs": 1})
    after = fitted(flows.univariate(3), more, weights=weight, initialize=True, **options | {"lr": 1e-12, "epochs": 1})
    assert score(after, data) == pytest.approx(score(before, data), abs=0.02)


class Batches:
    """Batches to be iterated over; a list of them would be taken for an array."""

    def __init__(self, batches):
        self.batches = list(batches)

    def __iter__(self):
        return iter(self.batches)


def monitored_when_kept(history):
    return history.starts[history.kept] if isinstance(history.kept, str) else history.monitored[history.kept]


def test_held_out_rows_are_weighted():
    data, test = normal(400, 1), 2.0 * normal(100, 1, seed=1)
    weight = 0.5 + uniform(100, seed=2)
    flow = flows.univariate(3)
    history = fit(flow, data, validation=(test, None, weight), epochs=2)
    with torch.no_grad():
        by_hand = (flow.log_prob(test).double() @ weight / weight.sum()).item()
    assert monitored_when_kept(history) == pytest.approx(by_hand, abs=1e-6)
    assert abs(by_hand - score(flow, test)) > 1e-3


def test_a_held_out_part_takes_its_weights_along():
    data, weight = normal(500, 1), 0.5 + uniform(500, seed=2)
    flow = flows.univariate(3)
    history = fit(flow, data, weights=weight, validation=0.2, epochs=2, seed=3)
    held_out = torch.from_numpy(shuffled(np.arange(100), 500, 3, 0))
    with torch.no_grad():
        by_hand = flow.log_prob(data[held_out]).double() @ weight[held_out] / weight[held_out].sum()
    assert monitored_when_kept(history) == pytest.approx(by_hand.item(), abs=1e-6)


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_loaders_bring_weights(form):
    data, weight = one_bump_of_two(3000).unsqueeze(-1), torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64).repeat(1000)
    batches = Batches(
        {"x": x, "weight": w} if form == "dict" else (x, None, w)
        for x, w in zip(data.split(1000), weight.split(1000), strict=True)
    )
    options = {"epochs": 2, "lr": 1e-12, "validation": 0.0}
    flow, beside = (flows.univariate(2).double() for _ in range(2))
    history = fit(flow, batches, **options)
    expected = fit(beside, data, weights=weight, batch_size=1000, **options)
    assert history.train_log_prob == pytest.approx(expected.train_log_prob, abs=1e-6)
    with torch.no_grad():
        by_hand = (flow.log_prob(data) @ weight / weight.sum()).item()
    assert history.train_log_prob[-1] == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize(
    ("message", "given"),
    [
        ("weights: expected.*got -1", {"weights": torch.tensor([1.0] * 99 + [-1.0])}),
        ("weights: expected 100 rows, as many as data, got 99", {"weights": torch.ones(99)}),
        ("weight, batch 0: expected.*got -1", {}),
        ("weights: expected None, as data are batches, which bring their own", {"weights": torch.ones(100)}),
    ],
)
def test_bad_weights_are_described(message, given):
    data = normal(100, 1)
    if "batch" in message:
        data = Batches([{"x": data} | ({} if given else {"weight": torch.full((100,), -1.0)})])
    with pytest.raises(ValueError, match=message):
        fit(flows.univariate(2), data, epochs=1, **given)


# -- loaders -------------------------------------------------------------------------------------------------


class Rows(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


class Endless(IterableDataset):
    """Batches of 100 draws of N(3, 0.5^2), without an end."""

    def __iter__(self):
        return (3.0 + 0.5 * normal(100, 1, seed=number) for number in itertools.count())


class Interrupted:
    """Batches of 2000 draws of N(3, 0.5^2), without an end; Ctrl-C at the given step of the training.

    The first pass is the one that the start is set from.
    """

    def __init__(self, step):
        self.step, self.passes = step, 0

    def __iter__(self):
        self.passes += 1
        for number in itertools.count():
            if self.passes == 2 and number == self.step:
                raise KeyboardInterrupt
            yield 3.0 + 0.5 * normal(2000, 1, seed=number)


TRUTH_OF_BATCHES = -0.5 * (LOG_2PI + 1.0) - math.log(0.5)


def test_a_loader_is_fitted_as_it_stands():
    data = (3.0 + 0.5 * normal(2000, 1)).float()
    loader = DataLoader(Rows(data), 200, shuffle=True, generator=torch.Generator().manual_seed(0))
    flow = flows.univariate(3)
    history = fit(flow, loader, epochs=3)
    assert len(history.train_log_prob) == 3
    assert history.validation_log_prob == []
    assert score(flow, 3.0 + 0.5 * normal(4000, 1, seed=1)) == pytest.approx(TRUTH_OF_BATCHES, abs=0.05)


def test_a_loader_without_an_end_has_epochs_of_so_many_steps():
    flow = flows.univariate(3)
    history = fit(flow, DataLoader(Endless(), batch_size=None), steps_per_epoch=7, epochs=4)
    assert len(history.lr) == 4
    assert score(flow, 3.0 + 0.5 * normal(4000, 1, seed=1)) == pytest.approx(TRUTH_OF_BATCHES, abs=0.05)


def test_ctrl_c_in_the_first_epoch_keeps_what_was_learned():
    flow = flows.univariate(3)
    test = 3.0 + 0.5 * normal(4000, 1, seed=10**6)
    at_start = score(flow, test)  # knows nothing of the data
    history = fit(flow, Interrupted(40), epochs=3, lr=0.3, initialize=False, steps_per_epoch=60)
    assert history.interrupted
    assert history.lr == []
    assert history.kept == "the weights of 40 steps"
    assert score(flow, test) > at_start + 1.0


def test_ctrl_c_in_the_first_epoch_keeps_the_start_if_that_is_better():
    test = 3.0 + 0.5 * normal(4000, 1, seed=10**6)
    flow = flows.univariate(3)
    flow.initialize(3.0 + 0.5 * normal(1000, 1))
    before = weights(flow)
    history = fit(flow, Interrupted(40), validation=test, epochs=1, lr=10.0, steps_per_epoch=60)
    assert history.interrupted
    assert history.kept == "the start"
    assert equal_weights(flow, before)


# -- nothing is lost -----------------------------------------------------------------------------------------


def nan_after(monkeypatch, calls):
    """Let mixture CDFs turn NaN after so many calls."""
    log_density, left = transforms.MixtureCDF._log_density, [calls]

    def breaking(self, x, context, base):
        left[0] -= 1
        return log_density(self, x, context, base) + (math.nan if left[0] < 0 else 0.0)

    monkeypatch.setattr(transforms.MixtureCDF, "_log_density", breaking)


def test_a_training_that_turns_nan_ends_with_the_best_weights_and_the_likely_cause(monkeypatch):
    # One scoring of the start, then three steps and a scoring in each epoch.
    data = torch.cat([normal(990).round(), torch.full((10,), 1e9, dtype=torch.float64)])
    flow = flows.univariate(3)
    flow.initialize(normal(100, 1))
    nan_after(monkeypatch, 11)
    cause = r'repeated values in x1 \(resolution="auto" is made for them\); values far out in x1'
    with pytest.warns(RuntimeWarning, match=rf"the loss is nan at step 9 \(epoch 3\).*Likely cause: {cause}\."):
        history = fit(flow, data, epochs=9, batch_size=300)
    assert len(history.lr) == 2
    assert not history.interrupted
    assert "the loss is nan" in history.notes[-1]
    assert all(value.isfinite().all() for value in flow.state_dict().values())
    monkeypatch.undo()
    assert flow.log_prob(data).isfinite().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_command_line_saves_a_model_though_the_training_turned_nan(monkeypatch, tmp_path):
    nan_after(monkeypatch, 40)
    np.save(tmp_path / "data.npy", normal(1000).numpy())
    model = tmp_path / "model.safetensors"
    assert cli.main(["fit", str(tmp_path / "data.npy"), "--quiet", "--out", str(model)]) == 0
    monkeypatch.undo()
    assert mixflow.load(model).log_prob(normal(100)).isfinite().all()


# -- repeated values -----------------------------------------------------------------------------------------


def counts(rows=20_000):
    return np.random.default_rng(0).poisson(2, rows).astype(float)


def interval_probabilities(flow, values, width):
    """The probability that ``flow`` gives to intervals around ``values``, by Gauss-Legendre in 8 parts each."""
    nodes, node_weights = np.polynomial.legendre.leggauss(10)
    parts = (np.arange(8) + 0.5) / 8 - 0.5
    inside = (parts[:, None] + nodes / 16).ravel()
    x = torch.as_tensor(values[:, None] + width * inside)
    with torch.no_grad():
        density = flow.log_prob(x.reshape(-1, 1)).double().exp().reshape(x.shape).numpy()
    return density @ np.tile(node_weights, 8) * width / 16


def test_counts_are_learned_to_the_end_and_named(tmp_path):
    flow = flows.univariate()
    history = fit(flow, counts(), epochs=5)
    assert len(history.lr) == 5
    note = next(note for note in history.notes if note.startswith("Repeated values: x1"))
    assert "in steps of 1" in note
    mixflow.save(flow, tmp_path / "model.safetensors")
    assert mixflow.load(tmp_path / "model.safetensors").log_prob(torch.arange(5.0)).isfinite().all()


def test_the_resolution_gives_intervals_their_probability():
    flow, beside = flows.univariate(), flows.univariate()
    data = counts()
    histories = [fit(flow, data, epochs=5, resolution="auto"), fit(beside, data, epochs=5, resolution=1.0)]
    assert equal_weights(flow, beside)
    assert histories[0].validation_log_prob == histories[1].validation_log_prob
    assert flow.notes["resolution"] == [1.0]
    assert any(note.startswith("Rounding: ") and "x1 1." in note for note in histories[0].notes)
    values = np.arange(13.0)
    truth = stats.poisson(2).pmf(values)
    found = interval_probabilities(flow, values, 1.0)
    assert 0.0 <= truth @ np.log(truth / found) < 0.05
    assert integral(flow, -8.0, 30.0) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("recipe", SEVERAL)
def test_each_column_has_a_resolution_of_its_own(recipe):
    data = torch.stack([(10.0 * normal(800)).round() / 10.0, normal(800, seed=1)], 1)
    flow, beside = RECIPES[recipe](2), RECIPES[recipe](2)
    beside.load_state_dict(flow.state_dict())
    beside.fitted = False
    history = fit(flow, data, epochs=2, resolution="auto")
    assert flow.notes["resolution"] == [0.1, 0.0]
    rounding = next(note for note in history.notes if note.startswith("Rounding"))
    assert "x1 0.1" in rounding
    assert "x2" not in rounding
    fit(beside, data, epochs=2, resolution=[0.1, 0.0])
    assert equal_weights(flow, beside)


def test_resolutions_of_zero_are_none():
    data = normal(300, 2)
    flow, beside = (RECIPES["gaussianization"](2) for _ in range(2))
    fit(flow, data, epochs=1, resolution=[0.0, 0.0])
    fit(beside, data, epochs=1)
    assert equal_weights(flow, beside)
    assert "resolution" not in flow.notes


def test_held_out_rows_are_drawn_from_the_same_places_in_their_intervals_each_time():
    history = fit(flows.univariate(3), counts(500), epochs=4, lr=1e-12, resolution=1.0)
    assert history.validation_log_prob == pytest.approx([history.starts["the start"]] * 4, abs=1e-7)
    assert len(set(history.train_log_prob)) == 4  # learned from in other places each time


def test_with_a_resolution_the_same_seed_gives_the_same_weights():
    data = counts(500)
    flow, again, other = (
        fitted(flows.univariate(3), data, epochs=3, resolution="auto", seed=seed) for seed in (0, 0, 1)
    )
    assert equal_weights(flow, again)
    assert not equal_weights(flow, other)


def test_a_run_with_a_resolution_is_resumed_bit_for_bit(monkeypatch, tmp_path):
    data, options = counts(500), {"epochs": 6, "resolution": "auto", "batch_size": 100}
    whole = flows.univariate(3)
    expected = fit(whole, data, **options)
    epoch, calls = Training.epoch, []

    def interrupted(self):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        epoch(self)

    monkeypatch.setattr(Training, "epoch", interrupted)
    halves = {"checkpoint": tmp_path / "run.checkpoint", "resume": True}
    assert len(fit(flows.univariate(3), data, **options, **halves).lr) == 3
    monkeypatch.undo()
    resumed = flows.univariate(3)
    history = fit(resumed, data, **options, **halves)
    assert equal_weights(resumed, whole)
    assert history.validation_log_prob == expected.validation_log_prob
    assert history.train_log_prob == expected.train_log_prob
    with pytest.raises(ValueError, match="a run with resolution"):
        fit(flows.univariate(3), data, **options | {"resolution": 0.5}, **halves)


# -- bounded values ------------------------------------------------------------------------------------------

SUPPORTS = {
    "positive": (lambda *shape, seed=0: (0.5 * normal(*shape, seed=seed)).exp(), [0.0, -1.0, -math.inf, math.inf]),
    (0.0, 1.0): (lambda *shape, seed=0: uniform(*shape, seed=seed), [0.0, 1.0, -1.0, 1.5, math.inf]),
}
BOUNDED = [(recipe, support) for recipe in RECIPES for support in SUPPORTS]


def fitted_to_bounded(recipe, support, features=None, rows=600, **options):
    draw, _ = SUPPORTS[support]
    features = features or FEWEST[recipe]
    return fitted(RECIPES[recipe](features, support=support), draw(rows, features), epochs=2, **options)


@pytest.mark.parametrize(("recipe", "support"), BOUNDED)
def test_the_density_is_zero_outside_the_support_and_has_finite_gradients(recipe, support):
    features = 1 if recipe == "univariate" else 2
    draw, outside = SUPPORTS[support]
    flow = fitted_to_bounded(recipe, support, features)
    x = draw(len(outside) + 3, features, seed=1)
    inside = flow.log_prob(x).detach()
    x[torch.arange(len(outside)), torch.arange(len(outside)) % features] = torch.tensor(outside, dtype=torch.float64)
    x.requires_grad_()
    log_prob = flow.log_prob(x)
    assert (log_prob[: len(outside)] == -math.inf).all()
    torch.testing.assert_close(log_prob[len(outside) :].detach(), inside[len(outside) :])
    assert flow.supports(x).tolist() == [False] * len(outside) + [True] * 3
    loss = log_prob.masked_fill(log_prob.isinf(), 0.0).sum()
    for gradient in torch.autograd.grad(loss, [x, *flow.parameters()], allow_unused=True):
        assert gradient is None or gradient.isfinite().all()
    # NaN stays visible.
    assert flow.log_prob(torch.full((1, features), math.nan)).isnan().all()


@pytest.mark.parametrize(("recipe", "support"), [pair for pair in BOUNDED if FEWEST[pair[0]] == 1])
def test_a_density_on_a_support_integrates_to_1(recipe, support):
    flow = fitted_to_bounded(recipe, support).double()
    # On the real line, where neither end is near, dx = exp(-ladj) dz.
    z = torch.linspace(-30.0, 30.0, 60_001, dtype=torch.float64)
    x, ladj = transforms.Support(1, support).inverse(z.unsqueeze(-1))
    with torch.no_grad():
        total = torch.trapezoid((flow.log_prob(x) + ladj).exp(), z).item()
    assert total == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(("recipe", "support"), BOUNDED)
def test_samples_lie_inside_the_support(recipe, support):
    flow = fitted_to_bounded(recipe, support)
    drawn = flow.sample(5000, seed=0)
    assert (drawn > 0.0).all()
    assert support == "positive" or (drawn < 1.0).all()
    assert flow.log_prob(drawn).isfinite().all()


@pytest.mark.parametrize(("recipe", "support"), BOUNDED)
def test_exact_ends_in_the_data_do_no_harm(recipe, support):
    features, (draw, ends) = FEWEST[recipe], SUPPORTS[support]
    data, test = draw(1000, features), draw(1000, features, seed=1)
    with_ends = torch.cat([data, test[:2]])
    with_ends[-2, 0] = ends[0]
    with_ends[-1, -1] = ends[1] if support == (0.0, 1.0) else ends[0]
    flow, beside = (RECIPES[recipe](features, support=support) for _ in range(2))
    beside.load_state_dict(flow.state_dict())
    beside.fitted = False
    history = fit(flow, with_ends, epochs=2, validation=0.0)
    fit(beside, data, epochs=2, validation=0.0)
    assert any(note.startswith("Ends of the support: 2 rows have a value there") for note in history.notes)
    assert all(map(math.isfinite, history.train_log_prob))
    assert score(flow, test) == pytest.approx(score(beside, test), abs=0.02)


def test_rows_at_an_end_do_not_count_in_the_mean():
    data = torch.cat([uniform(150, 1), torch.zeros(50, 1, dtype=torch.float64)])
    flow = flows.univariate(3, support=(0, 1))
    history = fit(flow, data, validation=0.0, epochs=1, lr=1e-12)
    assert history.train_log_prob == pytest.approx([score(flow, data[:150])], abs=1e-5)


def test_held_out_rows_at_an_end_are_left_out_of_the_score():
    data = uniform(200, 1)
    test = torch.cat([uniform(50, 1, seed=1), torch.tensor([[0.0], [1.0]])])
    flow = flows.univariate(3, support=(0, 1))
    history = fit(flow, data, validation=test, epochs=2)
    assert monitored_when_kept(history) == pytest.approx(score(flow, test[:50]), abs=1e-6)


def test_a_value_beyond_the_support_is_named():
    data = uniform(100, 2)
    data[37, 1] = -0.25
    for columns, named in ((None, r"1 \(counted from 0\)"), (["share", "rate"], "'rate'")):
        flow = RECIPES["gaussianization"](2, support=[None, (0, 1)])
        flow.notes |= {"columns": columns} if columns else {}
        with pytest.raises(ValueError, match=rf"inside the support of the flow, got -0.25 in row 37, column {named}"):
            fit(flow, data, epochs=1)
    with pytest.raises(ValueError, match="got all of them at its ends"):
        fit(flows.univariate(2, support=(0, 1)), torch.tensor([0.0, 1.0]).repeat(20), epochs=1)


@pytest.mark.parametrize("support", ["positive", [0, None], [None, 0.5], [-math.inf, 2.0], (0.0, math.inf), [0.25, 8]])
def test_model_files_keep_the_support(support, tmp_path):
    for recipe in RECIPES:
        features = 1 if recipe == "univariate" else 3
        each = support if features == 1 else [support, None, "positive"]
        flow = RECIPES[recipe](features, support=each)
        again = loaded(flow, tmp_path / "model.safetensors")
        x = torch.linspace(-1.0, 9.0, 41).unsqueeze(-1).repeat(1, features)
        assert flow.supports(x).any()
        assert not flow.supports(x).all()
        assert torch.equal(flow.supports(x), again.supports(x))
        assert torch.equal(flow.log_prob(x), again.log_prob(x))


def test_a_flow_put_together_by_hand_has_its_first_transform_s_domain():
    flow = flows.Flow(
        transforms.Compose(transforms.Logit(1), transforms.Affine(1, trainable=False), transforms.MixtureCDF(1, 8))
    )
    fit(flow, torch.cat([uniform(2000, 1), torch.tensor([[0.0], [1.0]])]).float(), epochs=5)
    found = flow.log_prob(torch.tensor([[0.5], [0.0], [1.0], [1.5], [-1.0]]))
    assert found[0].item() == pytest.approx(0.0, abs=0.1)
    assert (found[1:] == -math.inf).all()


def test_a_domain_behind_an_affine_map_is_taken_back_to_the_data():
    # (0, 1) behind (x - 10) / 4, which stays as it is: the support is (10, 14).
    unit = transforms.Affine(1, loc=10.0, scale=4.0).requires_grad_(False)
    flow = flows.Flow(transforms.Compose(unit, transforms.Logit(1), transforms.MixtureCDF(1, 4)))
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([[9.0], [10.0], [12.0], [14.0], [15.0]], dtype=dtype, requires_grad=True)
        assert flow.supports(x).tolist() == [False, False, True, False, False]
        log_prob = flow.log_prob(x)
        assert log_prob.isinf().tolist() == [True, True, False, True, True]
        (gradient,) = torch.autograd.grad(log_prob[2], x)
        assert gradient.isfinite().all()
        fit(flow, (10.0 + 4.0 * uniform(1000, 1)).to(dtype), epochs=3)
        assert flow.log_prob(torch.tensor([[12.0]])).item() == pytest.approx(-math.log(4.0), abs=0.15)
    drawn = flow.sample(2000, seed=0)
    assert ((drawn > 10.0) & (drawn < 14.0)).all()


def test_transport_between_positive_flows_stays_positive_and_is_the_power_law():
    # From log x ~ N(0, 0.5^2) to log y ~ N(1, 1): y = e x^2.
    source, target = (
        fitted(flows.univariate(1, support="positive").double(), data.exp(), epochs=1, lr=1e-12, validation=0.0)
        for data in (0.5 * normal(20_000, 1), 1.0 + normal(20_000, 1, seed=1))
    )
    x = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    with torch.no_grad():
        y, ladj = flows.transport(source, target)(x)
    torch.testing.assert_close(y.log(), 1.0 + 2.0 * x.log(), rtol=0.0, atol=0.05)
    torch.testing.assert_close(ladj, (2.0 * math.e * x[:, 0]).log(), rtol=0.0, atol=0.05)
