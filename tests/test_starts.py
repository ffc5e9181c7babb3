"""Where fits start: moments of the bulk, one Gaussian, mixtures that predict, and layers close to the identity."""

import copy
import math

import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

import mixflow
from mixflow import flows, transforms
from mixflow.flows.initialize import ONE_GAUSSIAN
from mixflow.op import cdf_transform
from mixflow.start import mixtures as start
from mixflow.start.gaussian import FLOOR, folds, gaussian
from mixflow.start.mixtures import best_counts, likely_mixture, predictive_mixture, start_from, wide_normal
from mixflow.start.robust import bulk, clipped, in_order, moments
from mixflow.transforms.compose import frozen_kept
from mixflow.transforms.elementwise import ElementwiseMap

FAMILIES = mixflow.FAMILIES


@pytest.fixture(autouse=True)
def _the_same_networks():
    torch.manual_seed(0)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def column(values):
    return torch.as_tensor(values, dtype=torch.float64).unsqueeze(-1)


def log_density(x, mixture, family):
    """The log density of ``x`` (N, D) under a mixture for each column."""
    return cdf_transform(x, *(parameter.to(x) for parameter in mixture), family=family, base="uniform")[1]


# -- location and spread of the bulk -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_columns_in_order_are_those_of_torch(dtype):
    x = normal(300, 3).round(decimals=1).to(dtype)
    x[5, 0], x[6, 1], x[7, 1], x[8, 2] = math.inf, -math.inf, math.nan, math.nan
    strided, needs_gradient = x.repeat(2, 1).mT.contiguous().mT[::2], x.clone().requires_grad_()
    for table in (x, strided, x[:1], needs_gradient):
        expected = table.detach().sort(dim=0).values
        torch.testing.assert_close(in_order(table), expected, rtol=0.0, atol=0.0, equal_nan=True)


def test_columns_are_put_in_order_where_memory_does_not_hold_their_numbers():
    x = normal(20, 2)
    view = torch.complex(x, x).conj().imag
    assert view.is_neg()
    assert torch.equal(in_order(view), (-x).sort(dim=0).values)
    assert in_order(x.to("meta")).shape == x.shape
    with FakeTensorMode() as mode:
        assert in_order(mode.from_tensor(x)).shape == x.shape


def test_moments_are_of_the_bulk_unless_other_edges_are_given():
    x = normal(100, 2)
    for mine, own in zip(moments(x, bulk(x)), moments(x), strict=True):
        assert torch.equal(mine, own)
    low, high = torch.full((2,), -0.5, dtype=torch.float64), torch.full((2,), 2.0, dtype=torch.float64)
    mean, spread = moments(x, (low, high))
    torch.testing.assert_close(mean, x.clamp(-0.5, 2.0).mean(0))
    torch.testing.assert_close(spread, x.clamp(-0.5, 2.0).std(0))


def test_moments_of_data_without_outliers_are_the_ordinary_ones():
    for x in (normal(1000, 3), 7.0 + 3.0 * uniform(500, 2), normal(2, 2)):
        mean, spread = moments(x)
        torch.testing.assert_close(mean, x.mean(0))
        torch.testing.assert_close(spread, x.std(0))


@pytest.mark.parametrize("wild", [1e3, 1e9, 1e300, -1e30])
def test_outliers_add_no_more_than_their_share_times_ten_deviations(wild):
    x = normal(10_000, 1)
    x[:20] = wild
    _, spread = moments(normal(9980, 1))
    mean, with_outliers = moments(x)
    assert abs(mean.item()) < 0.02 + 0.002 * 10.2
    assert with_outliers.item() == pytest.approx(math.sqrt(spread.item() ** 2 + 0.002 * 100.0), rel=0.03)
    low, high = bulk(x)
    assert low.item() == pytest.approx(x.min().item() if wild > 0.0 else -10.0, rel=0.05)
    assert high.item() == pytest.approx(10.0 if wild > 0.0 else x.max().item(), rel=0.05)


def test_clipping_moves_values_to_the_edges_and_leaves_the_rest_bit_for_bit():
    x = normal(1000, 2)
    x[3, 0], x[5, 1] = 1e9, -math.inf
    low, high = bulk(x)
    kept = clipped(x)
    assert kept[3, 0] == high[0]
    assert kept[5, 1] == low[1]
    same = torch.ones_like(x, dtype=torch.bool)
    same[3, 0] = same[5, 1] = False
    assert torch.equal(kept[same], x[same])


def test_an_offset_changes_no_digit_of_the_spread_or_of_the_mean_s_distance():
    # Multiples of 1/64, which 1e12 leaves exact.
    x = (64.0 * normal(1001, 1)).round() / 64.0
    mean, spread = moments(x)
    for offset in (1e12, -1e12, 1.7e9):
        far_mean, far_spread = moments(offset + x)
        assert far_spread.item() == pytest.approx(spread.item(), rel=1e-4 if abs(offset) > 1e10 else 1e-8)
        assert (far_mean - offset).item() == pytest.approx(mean.item(), abs=2.0 * abs(offset) * 2.0**-53)
        assert torch.equal(torch.stack(bulk(offset + x)) - offset, torch.stack(bulk(x)))


# Where most is zero, the widths of larger central parts are measured, up to 99.8 %.
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85, 0.92, 0.985])
def test_zero_inflated_columns_have_the_bulk_of_what_varies(share):
    x = normal(10_000, 1).abs()
    x[: round(share * len(x))] = 0.0
    without = x.std(0).item()
    x[-1] = 1e9
    low, high = bulk(x)
    assert low.item() == 0.0
    assert 1.0 < high.item() < 30.0
    assert 0.5 * without < moments(x)[1].item() < 2.0 * without


def test_a_column_of_nearly_one_value_has_all_its_values_in_the_bulk():
    x = torch.zeros(10_000, 1, dtype=torch.float64)
    x[:5] = 3.0
    x[7] = -1e3
    assert [edge.item() for edge in bulk(x)] == [-1e3, 3.0]


def test_constants_and_single_rows_have_no_spread():
    for x in (torch.full((50, 2), 3.3, dtype=torch.float64), normal(1, 2)):
        mean, spread = moments(x)
        assert torch.equal(mean, x[0])
        assert torch.equal(spread, torch.zeros(2, dtype=torch.float64))
        assert torch.equal(clipped(x), x)


# -- one Gaussian --------------------------------------------------------------------------------------------

STRONG = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, 0.4], [0.0, 0.4, 1.0]], dtype=torch.float64)


def drawn(covariance, rows, seed=0):
    return normal(rows, len(covariance), seed=seed) @ torch.linalg.cholesky(covariance).mT


def test_of_many_rows_the_gaussian_is_that_of_the_largest_likelihood():
    x = 5.0 + drawn(STRONG, 5000) * torch.tensor([1e-3, 1.0, 1e6], dtype=torch.float64)
    loc, covariance = gaussian(x)
    torch.testing.assert_close(loc, x.mean(0))
    scale = x.std(0)
    # All but none of the correlations is shrunk away: one of a grid that has 1e-7 to 0.01 for its first steps.
    torch.testing.assert_close(covariance / scale / scale[:, None], x.T.corrcoef(), rtol=0.0, atol=2e-3)


def test_one_column_has_the_variance_that_predicts_a_further_row_best():
    for rows in (3, 5, 10, 100):
        x = normal(rows, 1)
        loc, covariance = gaussian(x)
        assert loc.item() == pytest.approx(x.mean().item(), abs=1e-12)
        wider = (1.0 + 1.0 / rows) * (rows - 1) / (rows - 2)
        assert covariance.item() == pytest.approx(wider * x.var().item(), rel=1e-12)


def test_few_rows_of_many_columns_keep_less_of_their_correlations():
    """Independent columns: what correlation there is, is chance, and hardly any of it is kept."""
    x = normal(12, 8)
    _, covariance = gaussian(x)
    off_diagonal = covariance / covariance.diagonal().sqrt() / covariance.diagonal().sqrt()[:, None]
    kept = (off_diagonal.tril(-1).norm() / x.T.corrcoef().tril(-1).norm()).item()
    assert kept < 0.3
    # True correlation is kept although the rows are few.
    close = torch.tensor([[1.0, 0.999], [0.999, 1.0]], dtype=torch.float64)
    _, covariance = gaussian(drawn(close, 12))
    assert covariance[0, 1] / covariance.diagonal().prod().sqrt() > 0.98


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 1000])
def test_dependent_and_constant_columns_have_a_floor(rows):
    a = normal(rows, 1)
    x = torch.cat([1e6 * a, 2e-3 * a, torch.full_like(a, 7.0)], 1)
    loc, covariance = gaussian(x)
    assert loc[2].item() == 7.0
    torch.linalg.cholesky(covariance)  # positive definite
    scale = x.std(0) if rows > 1 else x[0].abs()
    scale[2] = 7.0  # a constant's own size
    least = torch.linalg.eigvalsh(covariance / scale / scale[:, None])[0].item()
    assert least >= 0.99 * FLOOR
    if rows == 1000:
        assert least == pytest.approx(FLOOR, rel=0.01)


def test_rows_with_outliers_are_left_out_if_they_are_few():
    x = drawn(STRONG, 1000)
    far = x.clone()
    far[::100] *= 1e8
    kept = torch.ones(1000, dtype=torch.bool)
    kept[::100] = False
    for found, expected in zip(gaussian(far), gaussian(x[kept]), strict=True):
        torch.testing.assert_close(found, expected)


def test_of_many_rows_with_outliers_the_values_are_moved_to_the_edges():
    x = drawn(STRONG, 1000)
    far = x.clone()
    far[::5] *= 1e8  # a fifth of the rows
    loc, covariance = gaussian(far)
    reach = torch.stack(bulk(far)).abs().amax(0)
    assert (loc.abs() < reach).all()
    assert (covariance.diagonal() < reach.square()).all()
    # They are still there: a fifth of the rows at ten deviations.
    assert (covariance.diagonal() > 5.0 * x[torch.arange(1000) % 5 != 0].var(0)).all()


def test_a_gaussian_of_a_large_offset_is_that_of_centred_rows():
    # Multiples of 2^-10 are exact beside the offset; folds depend on the numbers, one column has none.
    x = (1024.0 * normal(200, 1)).round() / 1024.0
    loc, covariance = gaussian(1e12 + x)
    centred_loc, expected = gaussian(x)
    assert covariance.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (loc - 1e12).item() == pytest.approx(centred_loc.item(), abs=2.0**-12)


def test_equal_rows_share_a_fold_and_the_order_does_not_matter():
    x = normal(30, 2)
    x[:, 0] = x[:, 0].round()
    both = torch.cat([x, x])
    fold = folds(both, 5)
    assert torch.equal(fold[:30], fold[30:])
    assert fold.min() >= 0
    assert fold.max() < 5
    assert len(fold.unique()) == 5
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(folds(both[order], 5), fold[order])
    assert torch.equal(folds(torch.zeros(2, 1).double(), 5), folds(column([0.0, -0.0]), 5))


@pytest.mark.parametrize("shape", [(5,), (0, 3), (2, 3, 4)])
def test_rows_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"x: expected shape \(N, D\) with at least one row, got"):
        gaussian(torch.zeros(shape))


# -- how many components -------------------------------------------------------------------------------------


def test_the_number_of_components_is_what_the_rows_support():
    many = torch.cat([6.0 * torch.arange(5.0, dtype=torch.float64) + normal(400, 5, seed=1) * 0.3]).reshape(-1, 1)
    for x, most, least_expected, most_expected in (
        (normal(300, 1), 32, 1, 1),  # a normal
        (many[:2000], 32, 4, 32),  # five bumps
        (normal(9, 1), 32, 1, 1),  # too few rows for two
        (many[:19], 32, 1, 1),
        (many[:40], 32, 1, 4),  # a tenth of the rows at most
    ):
        (count,) = best_counts(x, most, "gaussian").tolist()
        assert least_expected <= count <= most_expected, (len(x), count)


def test_a_thousand_rows_for_each_component_need_no_choosing():
    x = normal(4001, 2)
    assert best_counts(x, 4, "gaussian").tolist() == [4, 4]
    assert best_counts(x[:3000], 4, "gaussian").tolist() == [1, 1]


def test_each_column_has_a_number_of_its_own():
    two = normal(300).sign() * 4.0 + 0.5 * normal(300, seed=1)
    x = torch.stack([normal(300, seed=2), two, 1e6 + 1e-3 * two], 1)
    counts = best_counts(x, 16, "gaussian").tolist()
    assert counts[0] == 1
    assert counts[1] >= 2
    assert counts[2] == counts[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("counts", "components"), [([3], 8), ([8], 8), ([2], 7), ([1], 5)])
def test_copies_of_components_leave_the_density_of_the_fewer(counts, components, family):
    x = column(torch.cat([normal(100) - 4.0, 0.5 * normal(100, seed=1) + 4.0]))
    points = torch.linspace(-10.0, 10.0, 201, dtype=torch.float64).unsqueeze(-1)
    mixture = predictive_mixture(x, components, family, torch.tensor(counts))
    assert all(parameter.shape == (1, components) for parameter in mixture)
    few = likely_mixture(x, counts[0], family) if counts[0] > 1 else wide_normal(x, components, family)
    torch.testing.assert_close(log_density(points, mixture, family), log_density(points, few, family))


def test_columns_of_different_numbers_are_each_as_they_are_alone():
    x = torch.stack([normal(200), normal(200, seed=1).sign() * 4.0 + normal(200, seed=2)], 1)
    both = predictive_mixture(x, 8, "gaussian", torch.tensor([1, 2]))
    for index, count in enumerate((1, 2)):
        alone = predictive_mixture(x[:, [index]], 8, "gaussian", torch.tensor([count]))
        for parameter, expected in zip(both, alone, strict=True):
            torch.testing.assert_close(parameter[[index]], expected)


@pytest.mark.parametrize("rows", [5, 30, 1000])
def test_a_wide_normal_has_the_variance_of_the_predictive_distribution(rows):
    x = 3.0 + 2.0 * normal(rows, 2)
    wider = (1.0 + 1.0 / rows) * (rows - 1) / (rows - 3)
    law = torch.distributions.Normal(x.mean(0), x.std(0) * wider**0.5)
    points = law.mean + torch.linspace(-4.0, 4.0, 41, dtype=torch.float64).unsqueeze(-1) * law.stddev
    exact = log_density(points, wide_normal(x, 16, "gaussian", exact=True), "gaussian")
    torch.testing.assert_close(exact, law.log_prob(points), rtol=1e-10, atol=1e-10)
    for family, error in (("gaussian", 1e-3), ("logistic", 0.05)):
        mixture = wide_normal(x, 16, family)
        z = torch.linspace(-6.0, 6.0, 601, dtype=torch.float64).unsqueeze(-1)
        x_z = law.mean + law.stddev * z
        p = law.log_prob(x_z)
        divergence = torch.trapezoid(p.exp() * (p - log_density(x_z, mixture, family)), x_z, dim=0)
        assert (divergence.abs() < error).all()


def test_five_rows_start_at_one_normal():
    x = normal(5, 1)
    transform = transforms.MixtureCDF(1, 8)
    transform.initialize(x.float())
    assert (transform.log_scale.exp() > 0.5 * x.std()).all()
    torch.testing.assert_close(transform.loc.mean().item(), x.mean().item(), rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_by_the_parameters_are_those_of_autograd_bit_for_bit(dtype, family):
    x = normal(50, 2).to(dtype)
    mixture = [normal(2, 3, seed=seed).to(dtype).requires_grad_() for seed in (1, 2, 3)]
    by_autograd = torch.autograd.grad(log_density(x, mixture, family).sum(), mixture)
    with torch.no_grad():
        at_once = start._by_parameters(x, tuple(mixture), family)
    for own, expected in zip(at_once, by_autograd, strict=True):
        assert own.dtype == dtype
        assert torch.equal(own, expected)


# -- heavy tails ---------------------------------------------------------------------------------------------

TAILS = {
    "cauchy": (stats.cauchy(), 0.05),
    "student": (stats.t(0.5), 0.05),
    "lognormal": (stats.lognorm(3.0), 0.1),  # from its lower end
}
# What 16 Student components leave at best, after 200 steps of EM: their own tails reach beyond the lower end.
LEFT_AT_BEST = {("lognormal", "student"): 0.107}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", TAILS)
def test_mixtures_over_scales_start_close_to_heavy_tails(kind, family):
    law, error = TAILS[kind]
    error = max(error, 1.05 * LEFT_AT_BEST.get((kind, family), 0.0))
    x, test = (column(law.rvs(n, random_state=seed)) for n, seed in ((2000, 0), (20_000, 1)))
    mixture = likely_mixture(x, 16, family)
    # Up to the farthest row; beyond it there is no knowing.
    seen = ((test >= x.min()) & (test <= x.max())).squeeze(-1)
    truth = torch.from_numpy(law.logpdf(test.numpy()))
    assert (truth - log_density(test, mixture, family))[seen].mean().item() < error
    # From the upper end, the same.
    mirrored = likely_mixture(-x, 16, family)
    assert (truth - log_density(-test, mirrored, family))[seen].mean().item() < error


@pytest.mark.parametrize("family", FAMILIES)
def test_starts_that_are_improved_together_end_as_alone(family):
    x = torch.from_numpy(stats.cauchy().rvs((500, 2), random_state=0))
    alone = [start.improved(x, *one, family, 2 * start._STEPS) for one in start._widening(x, 5)]
    together = start._widened(x, 5, family)
    assert len(together) == len(alone) == 3
    for mixture, expected in zip(together, alone, strict=True):
        for parameter, own in zip(mixture, expected, strict=True):
            torch.testing.assert_close(parameter, own, rtol=1e-10, atol=1e-10)


def test_wide_components_are_tried_only_where_they_are_wanted():
    x = torch.from_numpy(stats.cauchy().rvs((500, 1), random_state=0))
    narrow = start.improved(x, *start_from(x, 5, "gaussian"), "gaussian")
    for widen in (False, True):
        same = map(torch.equal, likely_mixture(x, 5, "gaussian", widen), narrow)
        assert all(same) is not widen


def test_wide_components_that_are_not_tried_would_not_have_been_chosen(monkeypatch):
    x = torch.cat([torch.from_numpy(stats.t(0.5).rvs((400, 3), random_state=0)), normal(400, 1)], 1)
    counts, tried = best_counts(x, 32, "gaussian"), []

    def always(x, components, family, widen=True):
        tried.append(widen)
        return likely_mixture(x, components, family)

    monkeypatch.setattr(start, "likely_mixture", always)
    assert torch.equal(best_counts(x, 32, "gaussian"), counts)
    assert tried == [False, False, True, True, True]  # 2, 4, 8, 16 and 32 components
    assert (counts[:3] >= 8).all()


def test_the_widest_component_reaches_beyond_the_farthest_value():
    x = column(stats.cauchy().rvs(2000, random_state=0))
    _, _, log_scale = likely_mixture(x, 16, "gaussian")
    assert log_scale.exp().max().item() > x.abs().max().item()


def test_a_few_values_far_out_leave_the_components_of_the_bulk_where_they_are():
    x = normal(5000, 1)
    x[:5] = 1e9 * uniform(5, 1)
    mixture = predictive_mixture(x, 8, "gaussian")
    loc, _ = start_from(x, 8, "gaussian")
    assert loc.abs().max().item() < 3.0  # an eighth of the rows each
    test = normal(5000, 1, seed=1)
    truth = -0.5 * (math.log(2.0 * math.pi) + test.square()).mean().item() + math.log1p(-0.001)
    assert log_density(test, mixture, "gaussian").mean().item() == pytest.approx(truth, abs=0.02)


# -- whitening -----------------------------------------------------------------------------------------------


def test_whitening_is_the_dense_formula():
    x = drawn(STRONG, 400) @ torch.diag(torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)) + 3.0
    whiten = transforms.Whitening(3).double()
    whiten.initialize(x)
    loc, covariance = gaussian(x)
    lower = torch.linalg.cholesky(covariance)
    z, ladj = whiten(x)
    torch.testing.assert_close(z, torch.linalg.solve(lower, (x - loc).mT).mT)
    torch.testing.assert_close(ladj, (-0.5 * covariance.logdet()).expand(400))
    torch.testing.assert_close(z.T.cov(), torch.eye(3, dtype=torch.float64), rtol=0.0, atol=0.02)
    back, inverse_ladj = whiten.inverse(z)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_ladj, -ladj)
    # Triangular: a feature sees those before it alone.
    jacobian = torch.autograd.functional.jacobian(lambda row: whiten(row)[0], x[0])
    assert torch.equal(jacobian.triu(1), torch.zeros(3, 3, dtype=torch.float64))
    torch.testing.assert_close(jacobian, torch.linalg.inv(lower))


@pytest.mark.parametrize("batch", [(), (0,), (4, 2)])
def test_whitening_keeps_any_batch_shape(batch):
    whiten = transforms.Whitening(3).double()
    whiten.initialize(drawn(STRONG, 100))
    x = normal(*batch, 3)
    z, ladj = whiten(x)
    assert z.shape == x.shape
    assert ladj.shape == torch.Size(batch)
    torch.testing.assert_close(whiten.inverse(z)[0], x)


def test_whitening_is_the_identity_before_any_data():
    whiten, x = transforms.Whitening(3), normal(5, 3, dtype=torch.float32)
    for direction in (whiten, whiten.inverse):
        z, ladj = direction(x)
        assert torch.equal(z, x)
        assert torch.equal(ladj, torch.zeros(5))
    # A state of that kind makes it one again, another state none.
    other = transforms.Whitening(3)
    other.initialize(drawn(STRONG, 100))
    state = copy.deepcopy(other.state_dict())
    other.load_state_dict(whiten.state_dict())
    assert torch.equal(other(x)[0], x)
    other.load_state_dict(state)
    assert not torch.equal(other(x)[0], x)


def test_whitening_subtracts_offsets_in_float64():
    # Multiples of 1/64 beside 1e12.
    x = (64.0 * drawn(STRONG, 300)).round() / 64.0
    whiten, centred = transforms.Whitening(3), transforms.Whitening(3)
    whiten.initialize(1e12 + x)
    loc, covariance = gaussian(1e12 + x)
    centred.set_gaussian(loc - 1e12, covariance)
    z, _ = whiten(1e12 + x)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, centred(x)[0], rtol=1e-4, atol=1e-4)
    for moved in (whiten.half().float(), copy.deepcopy(whiten)):
        assert torch.equal(moved.loc, loc)
        assert moved.loc.dtype == torch.float64


def test_whitening_s_state_is_loaded_with_its_digits(tmp_path):
    whiten, fresh = transforms.Whitening(2), transforms.Whitening(2)
    whiten.initialize(1.7e9 + drawn(STRONG[:2, :2], 100))
    torch.save(whiten.state_dict(), tmp_path / "state")
    fresh.load_state_dict(torch.load(tmp_path / "state"))
    assert fresh.loc.dtype == torch.float64
    x = 1.7e9 + drawn(STRONG[:2, :2], 10, seed=1)
    for found, expected in zip(fresh(x), whiten(x), strict=True):
        assert torch.equal(found, expected)


# -- layers close to the identity ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("components", [1, 2, 3, 4, 8, 16, 32])
def test_elementwise_maps_start_within_a_thousandth_of_a_nat_of_the_identity(components, family):
    elementwise = ElementwiseMap(components, family)
    x = torch.linspace(-8.0, 8.0, 16_001)
    z, ladj = elementwise.forward(x, elementwise.start())
    p = torch.distributions.Normal(0.0, 1.0).log_prob(x)
    found = torch.distributions.Normal(0.0, 1.0).log_prob(z) + ladj
    # The divergence of what a flow of this one map and a normal base has from the standard normal.
    divergence = torch.trapezoid(p.exp() * (p - found), x).item()
    assert -1e-5 < divergence < 1e-3
    torch.testing.assert_close(elementwise.inverse(z, elementwise.start())[0], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("build", [flows.coupling, flows.autoregressive])
def test_six_layers_over_thirteen_columns_start_close_to_the_identity(build, family):
    flow = build(13, layers=6, family=family, marginal_components=1)
    layers = [part for part in flow.data_to_base.each() if hasattr(part, "elementwise")]
    assert len(layers) == 6
    x = normal(4000, 13, dtype=torch.float32)
    with torch.no_grad():
        z, total = x, torch.zeros(len(x))
        for layer in layers:
            layer.initialize(z)
            z, ladj = layer(z)
            total = total + ladj
    lost = 0.5 * (z.square() - x.square()).sum(-1) - total
    assert lost.mean().item() < 0.3


LIKE_A_NORMAL = {
    "one layer": lambda: flows.gaussianization(3, 2),
    "gaussianization": lambda: flows.gaussianization(3),
    "coupling": lambda: flows.coupling(3, family="gaussian"),
    "autoregressive": lambda: flows.autoregressive(3, family="gaussian"),
}


@pytest.mark.parametrize("kind", LIKE_A_NORMAL)
def test_one_gaussian_is_the_gaussian_that_predicts_best(kind):
    unit = torch.tensor([1.0, 100.0, 1e-3], dtype=torch.float64)
    x = 10.0 + drawn(STRONG, 3000) * unit
    flow = LIKE_A_NORMAL[kind]().double()
    plain = flow.starts(x)
    assert list(plain) == [ONE_GAUSSIAN]
    flow.load_state_dict(plain[ONE_GAUSSIAN])
    law = torch.distributions.MultivariateNormal(*gaussian(x))
    test = 10.0 + drawn(STRONG, 20_000, seed=1) * unit
    with torch.no_grad():
        difference = flow.log_prob(test) - law.log_prob(test)
    assert difference.mean().item() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("name", ["gaussianization", "coupling", "autoregressive"])
def test_a_start_is_independent_whitened_or_one_gaussian_as_rows_left_out_ask(name):
    rows = 400
    side = normal(rows, 2).sign()
    tables = {
        # (the table, whether directions are whitened, whether the marginals are normal)
        "independent bumps": (4.0 * side + 0.5 * normal(rows, 2, seed=1), False, False),
        "one Gaussian": (drawn(STRONG[:2, :2], rows), True, True),
        "a copula": (drawn(STRONG[:2, :2], rows).exp(), True, False),
    }
    for kind, (x, whitened, is_normal) in tables.items():
        flow = flows.RECIPES[name](2, layers=2)
        flow.initialize(x)
        whitening = next(part for part in flow.data_to_base.each() if isinstance(part, transforms.Whitening))
        marginals = next(part for part in flow.data_to_base.each() if isinstance(part, transforms.MixtureCDF))
        # Of independent columns little correlation is kept, or none.
        assert (whitening.factor.tril(-1).abs().max().item() > 0.3) is whitened, kind
        # The components of what stands for a normal are equally wide.
        assert (len(marginals.log_scale[0].unique()) == 1) is is_normal, kind


# -- what is frozen ------------------------------------------------------------------------------------------


def test_frozen_parts_are_put_back_and_others_are_not():
    module = transforms.Compose(
        transforms.Affine(1), transforms.MixtureCDF(1, 2), transforms.MixtureCDF(1, 2, context=1), transforms.Affine(1)
    )
    one, two, three, four = module.each()
    one.requires_grad_(False)  # a whole module
    two.loc.requires_grad_(False)  # one parameter of it
    three.conditioner.requires_grad_(False)  # a network, with the buffers of its inputs
    before = copy.deepcopy(module.state_dict())
    with frozen_kept(module), torch.no_grad():
        for value in module.state_dict().values():
            value.add_(1.0)
    after = module.state_dict()
    kept = {name for name, value in before.items() if torch.equal(value, after[name])}
    expected = {f"transforms.0.{name}" for name, _ in one.named_parameters()} | {"transforms.1.loc"}
    expected |= {f"transforms.2.conditioner.{name}" for name in three.conditioner.state_dict()}
    assert any("scale" in name for name in expected if "conditioner" in name)
    assert kept == expected
    assert [parameter.requires_grad for parameter in four.parameters()] == [True, True]


def test_a_standardisation_beside_frozen_mixtures_is_set_all_the_same():
    flow = flows.Flow(
        transforms.Compose(
            transforms.Affine(1, trainable=False), transforms.MixtureCDF(1, 2), transforms.MixtureCDF(1, 2)
        )
    )
    standardise, frozen, _ = flow.data_to_base.each()
    frozen.requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    flow.initialize(5.0 + normal(500, 1))
    assert standardise.loc.item() == pytest.approx(5.0, abs=0.2)
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_the_last_layer_is_set_from_the_image_of_the_one_before():
    before = transforms.Affine(2, loc=3.0, scale=2.0).requires_grad_(requires_grad=False)
    last = transforms.Affine(2)
    parts = transforms.Affine(2), transforms.MixtureCDF(2, 4), transforms.Whitening(2), before, last
    flows.Flow(transforms.Compose(*parts)).initialize(normal(2000, 2).float())
    torch.testing.assert_close(last.loc, torch.full((2,), -1.5, dtype=last.loc.dtype), atol=0.05, rtol=0.0)
    torch.testing.assert_close(last.log_scale.exp(), torch.full((2,), 0.5), atol=0.05, rtol=0.0)


def test_initialize_leaves_frozen_parts_and_gives_the_data_on_through_them():
    flow = flows.Flow(
        transforms.Compose(transforms.Affine(1, loc=100.0, scale=10.0), transforms.MixtureCDF(1, 1, "gaussian"))
    )
    frozen, mixture = flow.data_to_base.each()
    frozen.requires_grad_(False)
    flow.initialize(5.0 + normal(2000, 1).float())
    assert (frozen.loc.item(), frozen.log_scale.exp().item()) == pytest.approx((100.0, 10.0))
    # The mixture is one of (x - 100) / 10.
    assert mixture.loc.item() == pytest.approx(-9.5, abs=0.01)
    assert mixture.log_scale.exp().item() == pytest.approx(0.1, abs=0.01)


def test_mixflow_s_families_are_those_that_the_starts_are_tried_on():
    assert set(mixflow.FAMILIES) == set(FAMILIES)
