import math

import numpy as np
import pytest
import torch

from mixflow import flows
from mixflow.start import expectation
from mixflow.start.gaussian_mixture import gaussian_mixture


def started(x, components, dtype=torch.float32, context=None):
    """A flow initialised on the rows ``x`` in float64, and not trained."""
    flow = flows.gaussian_mixture(x.shape[-1], components, 0 if context is None else context.shape[-1]).to(dtype)
    flow.initialize(x.to(dtype), context)
    return flow


def score(flow, x):
    with torch.no_grad():
        return flow.log_prob(x.to(next(flow.parameters()).dtype)).double().mean().item()


def normal(rows, features, seed, mix=None):
    x = torch.randn(rows, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x if mix is None else x @ mix


def density(covariance):
    """The entropy's negative, in nats: the mean log density of a normal's own rows."""
    return -0.5 * torch.linalg.slogdet(2.0 * math.pi * math.e * covariance)[1].item()


def equal_correlations(features, correlation):
    return torch.full((features, features), correlation).double() + (1.0 - correlation) * torch.eye(features).double()


# -- many rows -----------------------------------------------------------------------------------------------


def clusters():
    x = normal(4000, 3, 0).view(4, 1000, 3) @ normal(3 * 4, 3, 1).view(4, 3, 3)
    return (x + 2.0 * normal(4, 3, 2).unsqueeze(1)).flatten(0, 1) * torch.tensor([1e-3, 1.0, 1e5])


def rings():
    radius, angle = 0.08 * normal(3000, 1, 0) + torch.tensor([1.0, 2.0]).repeat(1500).unsqueeze(-1), normal(3000, 1, 1)
    return radius * torch.cat([(9.0 * angle).cos(), (9.0 * angle).sin()], dim=-1)


def measured():
    """Sixteen clipped and rounded columns, of five quantities."""
    return (normal(4000, 5, 0).clamp(-1.5, 1.5) @ normal(5, 16, 1) * 10.0).mul(100.0).round() / 100.0


def clipped():
    return (normal(4000, 5, 0) @ normal(5, 8, 1) * 10.0).clamp(-20.0, 25.0).mul(10.0).round() / 10.0


@pytest.mark.parametrize("table", [clusters, rings, measured, clipped])
def test_starts_no_worse_than_scikit_learn_ends(table):
    mixture = pytest.importorskip("sklearn.mixture")
    x = table()[torch.randperm(len(table()), generator=torch.Generator().manual_seed(0))]
    cut = len(x) * 4 // 5
    centre, spread = x[:cut].mean(0), x[:cut].std(0)
    rival = mixture.GaussianMixture(8, random_state=0).fit(((x[:cut] - centre) / spread).numpy())
    theirs = rival.score(((x[cut:] - centre) / spread).numpy()) - spread.log().sum().item()
    assert score(started(x[:cut], 8), x[cut:]) > theirs - 0.02


def test_many_columns_make_do_with_fewer_starts():
    x = normal(800, 40, 0) + 3.0 * torch.tensor([[-1.0], [1.0]]).repeat(400, 1)
    flow = started(x[:600], 2)
    assert score(flow, x[600:]) > density(torch.eye(40).double()) - math.log(2.0) - 3.0


def test_one_component_of_many_rows_is_the_likeliest_normal():
    x = normal(2000, 3, 0, mix=normal(3, 3, 1)).exp()
    flow = started(x, 1, torch.float64)
    likeliest = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov(correction=0))
    torch.testing.assert_close(flow.log_prob(x), likeliest.log_prob(x), rtol=1e-6, atol=1e-6)


def test_units_of_the_columns_do_not_matter():
    x = clusters()
    other = x * torch.tensor([1e6, 3.0, 1e-7]) + torch.tensor([5.0, -1.0, 2.0])
    shift = math.log(1e6 * 3.0 * 1e-7)
    plain, scaled = score(started(x, 4, torch.float64), x), score(started(other, 4, torch.float64), other)
    assert scaled + shift == pytest.approx(plain, abs=1e-6)


def test_the_start_is_always_the_same_and_leaves_the_global_generator_alone():
    x = clusters()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = started(x, 5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    second = started(x, 5).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rows_whose_features_are_not_kept_give_the_same_sums(monkeypatch):
    white = normal(5000, 3, 0)  # in two parts
    coefficients = 0.3 * normal(2 * 4, 10, 1).view(2, 4, 10)
    member = torch.softmax(normal(5000, 4, 2), dim=-1)
    kept = expectation._Rows(white)
    monkeypatch.setattr(expectation, "_CACHE", 0)
    rows = expectation._Rows(white)
    assert kept.kept is not None
    assert rows.kept is None
    torch.testing.assert_close(rows.expect(coefficients), kept.expect(coefficients))
    torch.testing.assert_close(rows.sums(member), kept.sums(member))


# -- few rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "features", "expected"),
    [(5, 1, -1.9), (20, 1, -1.6), (100, 1, -1.45), (5, 5, -9.5), (20, 5, -7.7), (20, 13, -20.5), (100, 13, -19.0)],
)
def test_few_rows_of_a_normal_are_one_gaussian(rows, features, expected):
    scores = []
    for seed in range(5):
        flow = started(normal(rows, features, seed), 8)
        assert torch.equal(flow.loc, flow.loc[:1].expand_as(flow.loc))
        scores.append(score(flow, normal(2000, features, 100 + seed)))
    assert np.mean(scores) > expected


def test_components_to_spare_share_the_weight_of_used_ones():
    x = normal(50, 2, 0)
    one, eight = started(x, 1, torch.float64), started(x, 8, torch.float64)
    torch.testing.assert_close(one.log_prob(x), eight.log_prob(x))
    torch.testing.assert_close(torch.softmax(eight.logits, 0), torch.full((8,), 0.125).double())


def test_few_rows_in_clusters_get_a_component_each():
    centre = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]]).double()
    x, further = (normal(3 * rows, 2, rows) + centre.repeat(rows, 1) for rows in (20, 500))
    assert score(started(x, 8), further) > density(torch.eye(2).double()) - math.log(3.0) - 0.25
    fitted = gaussian_mixture(x, 8)
    weight = [fitted.log_weight[(fitted.loc - one).norm(dim=-1) < 2.0].exp().sum().item() for one in centre]
    assert weight == pytest.approx([1.0 / 3.0] * 3, abs=0.01)


def test_copies_of_rows_are_no_evidence_for_components():
    x = normal(12, 2, 0).repeat(15, 1)
    flow = started(x, 8)
    assert torch.equal(flow.loc, flow.loc[:1].expand_as(flow.loc))


@pytest.mark.parametrize("rows", [2, 3, 4, 8])
def test_a_handful_of_rows_is_enough(rows):
    flow = started(normal(rows, 3, 1), 8)
    assert flow.log_prob(normal(10, 3, 2).float()).isfinite().all()
    assert flow.sample(10, seed=0).isfinite().all()


# -- columns that depend on each other, and values that repeat -----------------------------------------------


def line(rows):
    x = normal(rows, 1, rows)
    return torch.cat([x, 2.0 * x + 1.0], dim=-1)


def one_hot(rows):
    which = torch.randint(4, (rows,), generator=torch.Generator().manual_seed(rows))
    return torch.cat([torch.nn.functional.one_hot(which, 4).double(), normal(rows, 2, rows)], dim=-1)


def totals(rows):
    part = normal(rows, 3, rows).exp()
    return torch.cat([part, part.sum(1, keepdim=True)], dim=-1)


@pytest.mark.parametrize("rows", [40, 1000])
@pytest.mark.parametrize("table", [line, one_hot, totals])
def test_columns_may_depend_on_each_other(table, rows):
    seen, further = table(rows), table(rows + 1)
    flow = started(seen, 8)
    assert flow.sample(100, seed=0).isfinite().all()
    # A direction without variance is worth some nats, on rows that were not seen as well.
    assert score(flow, further) > density(seen.T.cov().diagonal().diag()) + 3.0


def test_no_component_collapses_on_a_few_rows():
    x = normal(3000, 2, 0)
    x[:6] = torch.tensor([6.0, -6.0]).double() + 1e-6 * x[:6]
    space = expectation.Whitened(x)
    space.priors = [1e-5]  # the weakest, which many rows that share a value ask for
    assert torch.linalg.eigvalsh(space.mixture(8).covariance).min() > 0.01


# -- outliers ------------------------------------------------------------------------------------------------


def rows_far_out(x, which, seed):
    x[which] = 1e9 * normal(len(which), 3, seed)


def values_of_all_sizes(x, which, seed):
    generator = torch.Generator().manual_seed(seed)
    x[which, which % 3] = 10.0 ** (1.0 + 8.0 * torch.rand(len(which), generator=generator, dtype=torch.float64))


def sentinels(x, which, seed):
    x[which, 0] = -9999.0


def near(x, which, seed):
    x[which] = 50.0 * normal(len(which), 3, seed)


@pytest.mark.parametrize("components", [2, 8])
@pytest.mark.parametrize("rows", [200, 3000])
@pytest.mark.parametrize("spoil", [rows_far_out, values_of_all_sizes, sentinels, near])
def test_outliers_leave_the_bulk_its_density(spoil, rows, components):
    covariance = equal_correlations(3, 0.9)
    mix = torch.linalg.cholesky(covariance).mT
    x = normal(rows, 3, 0, mix)
    which = torch.randperm(rows, generator=torch.Generator().manual_seed(1))[: rows // 200]
    spoil(x, which, 2)
    flow = started(x, components)
    assert score(flow, normal(3000, 3, 3, mix)) > density(covariance) - 0.3
    # They have a density as well: a component of their own holds them.
    assert flow.log_prob(x[which].float()).min() > -200.0


def test_one_component_leaves_outliers_alone():
    covariance = equal_correlations(3, 0.9)
    mix = torch.linalg.cholesky(covariance).mT
    x = normal(3000, 3, 0, mix)
    rows_far_out(x, torch.arange(10), 2)
    assert score(started(x, 1), normal(3000, 3, 3, mix)) > density(covariance) - 0.1


def test_heavy_tails_are_no_outliers():
    x = torch.distributions.Cauchy(0.0, 1.0).icdf(torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0)))
    assert score(started(x[:10_000].double(), 8), x[10_000:]) > -math.log(4.0 * math.pi) - 0.1


# -- with a context, and the parts -----------------------------------------------------------------------------


def test_with_a_context_the_start_is_the_same():
    x, context = clusters(), normal(4000, 2, 7).float()
    plain, conditioned = started(x, 4), started(x, 4, context=context)
    torch.testing.assert_close(conditioned.log_prob(x.float(), context), plain.log_prob(x.float()))


def test_what_is_frozen_stays():
    flow = flows.gaussian_mixture(3, 4)
    flow.loc.requires_grad_(False)
    flow.initialize(clusters())
    assert (flow.loc == 0.0).all()
    assert (flow.log_diagonal != 0.0).all()


@pytest.mark.parametrize("shape", [(0, 2), (5,)])
def test_rows_are_asked_for(shape):
    with pytest.raises(ValueError, match="x: expected shape"):
        gaussian_mixture(torch.zeros(shape), 2)


def test_a_covariance_spoilt_by_rounding_has_a_factor():
    good = torch.eye(2).double()
    bad = torch.tensor([[1.0, 1.0 + 1e-12], [1.0 + 1e-12, 1.0]]).double()
    root = expectation.cholesky(torch.stack([good, bad]))
    assert (root.diagonal(dim1=-2, dim2=-1) > 0.0).all()
    torch.testing.assert_close(root @ root.mT, torch.stack([good, bad]))
