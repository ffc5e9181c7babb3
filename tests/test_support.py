"""Maps between bounded intervals and the real line: accuracy, domains, and supports of several kinds at once."""

import copy
import json
import math
import pickle

import mpmath
import pytest
import torch

from mixflow import transforms
from mixflow.transforms.pointwise import Pointwise

INF = math.inf
DTYPES = [torch.float32, torch.float64]
MIXED = ["positive", (0, 1), None, (-INF, 3.0), (2.0, None), (-5.0, 15.0)]

# Intervals of every kind, in units that are small, large, and far from 0.
INTERVALS = [
    (0.0, INF),
    (0.0, 1.0),
    (-3.0, 0.5),
    (0.0, 1e-6),
    (1e6, 2e6),
    (2.5, INF),
    (-1e4, INF),
    (-INF, 0.0),
    (-INF, 7.0),
]


def column(values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype).unsqueeze(-1)


def assert_accurate(got, truth, dtype, units, floor=0.0):
    """``got`` is within ``units`` eps of the numbers ``truth``, relative to these or, if it is larger, to ``floor``.

    Numbers below the smallest normal one may be flushed to 0.
    """
    info = torch.finfo(dtype)
    for value, true in zip(got.flatten().tolist(), truth, strict=True):
        assert abs(mpmath.mpf(value) - true) <= units * info.eps * max(abs(true), floor) + info.tiny, (value, true)


@pytest.fixture(autouse=True)
def _sixty_digits():
    with mpmath.workdps(60):
        yield


# -- Exp, Log, Softplus --------------------------------------------------------------------------------------

BOTH_SIDES = [-700.0, -80.0, -20.0, -17.0, -3.0, -0.5, -1e-5, 0.0, 1e-5, 0.3, 2.0, 16.0, 20.0, 37.0, 85.0, 1e4, 1e30]
ABOVE_ZERO = [
    1e-37,
    1e-20,
    1e-9,
    1e-3,
    0.1,
    0.5,
    0.68,
    0.6931,
    0.6932,
    0.75,
    1.0,
    3.0,
    17.0,
    20.0,
    37.0,
    85.0,
    1e4,
    1e30,
]


def in_range(values, dtype):
    """The values, as numbers of the dtype, whose exponentials are normal numbers of it or overflow."""
    lowest = math.log(torch.finfo(dtype).tiny)
    return column([value for value in values if value > lowest], dtype)


def as_mpmath(x):
    return [mpmath.mpf(value) for value in x.flatten().tolist()]


def sigmoid(x):
    return 1 / (1 + mpmath.exp(-x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_softplus_is_accurate_in_both_tails(dtype):
    x = in_range(BOTH_SIDES, dtype)
    z, ladj = transforms.Softplus(1)(x)
    assert_accurate(z, [mpmath.log1p(mpmath.exp(v)) for v in as_mpmath(x)], dtype, 3.0)
    assert_accurate(ladj, [-mpmath.log1p(mpmath.exp(-v)) for v in as_mpmath(x)], dtype, 3.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_of_softplus_is_accurate_for_tiny_and_huge_numbers(dtype):
    z = column(ABOVE_ZERO, dtype)
    x, ladj = transforms.Softplus(1).inverse(z)
    # x passes through 0 at z = log 2, where the rounding of z alone moves it by eps.
    assert_accurate(x, [mpmath.log(mpmath.expm1(v)) for v in as_mpmath(z)], dtype, 3.0, floor=1.0)
    assert_accurate(ladj, [-mpmath.log1p(-mpmath.exp(-v)) for v in as_mpmath(z)], dtype, 3.0)


def derivatives(function, x):
    """The first and second derivatives of an elementwise ``function`` at ``x``."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return first.detach(), second


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_of_softplus_are_accurate_in_both_tails(dtype):
    softplus, x = transforms.Softplus(1), in_range([v for v in BOTH_SIDES if v < 86.0], dtype)
    first, second = derivatives(lambda t: softplus(t)[0], x)
    assert_accurate(first, [sigmoid(v) for v in as_mpmath(x)], dtype, 4.0)
    assert_accurate(second, [sigmoid(v) * sigmoid(-v) for v in as_mpmath(x)], dtype, 6.0)
    first, second = derivatives(lambda t: softplus(t)[1], x)
    assert_accurate(first, [sigmoid(-v) for v in as_mpmath(x)], dtype, 4.0)
    assert_accurate(second, [-sigmoid(v) * sigmoid(-v) for v in as_mpmath(x)], dtype, 6.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives_of_the_inverse_of_softplus_are_accurate(dtype):
    softplus, z = transforms.Softplus(1), column([v for v in ABOVE_ZERO if 1e-10 < v < 80.0], dtype)
    first, second = derivatives(lambda t: softplus.inverse(t)[0], z)
    assert_accurate(first, [-1 / mpmath.expm1(-v) for v in as_mpmath(z)], dtype, 4.0)
    # Where exp(-z) is about 1/2, its rounding is as large as that of exp(-z) / (1 - exp(-z))^2.
    assert_accurate(second, [-mpmath.exp(-v) / mpmath.expm1(-v) ** 2 for v in as_mpmath(z)], dtype, 8.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["Exp", "Softplus"])
def test_gradients_are_finite_in_all_of_the_domain(name, dtype):
    info, transform = torch.finfo(dtype), getattr(transforms, name)(1)
    x = column([-info.max, -1e4, -90.0, 0.0, 80.0], dtype)
    z = column([info.tiny, 1e-3, 1.0, 1e4, info.max], dtype)
    # The exponential itself overflows beyond log(max).
    x = torch.cat([x, column([1e4, info.max], dtype)]) if name == "Softplus" else x
    for direction, values in ((transform, x), (transform.inverse, z)):
        values.requires_grad_()
        for output in (0, 1):
            (gradient,) = torch.autograd.grad(direction(values)[output].sum(), values)
            assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_is_the_inverse_of_exp(dtype):
    x = in_range([-700.0, -80.0, -1.0, 0.0, 1e-3, 5.0, 80.0], dtype)
    z, ladj = transforms.Exp(1)(x)
    assert_accurate(z, [mpmath.exp(v) for v in as_mpmath(x)], dtype, 2.0)
    assert torch.equal(ladj, x[:, 0])
    back, inverse_ladj = transforms.Log(1)(z)
    assert_accurate(back, [mpmath.log(v) for v in as_mpmath(z)], dtype, 2.0)
    assert torch.equal(inverse_ladj, -back[:, 0])
    assert all(map(torch.equal, transforms.Exp(1).inverse(z), transforms.Log(1)(z)))
    assert all(map(torch.equal, transforms.Log(1).inverse(x), transforms.Exp(1)(x)))


@pytest.mark.parametrize("direction", [transforms.Log(2), transforms.Exp(2).inverse, transforms.Softplus(2).inverse])
def test_zero_goes_to_minus_infinity_and_a_negative_number_to_nan_alone(direction):
    z, ladj = direction(torch.tensor([[0.0, 1.0], [-1.0, 1.0], [-INF, 1.0], [math.nan, 1.0]]))
    one = direction(torch.ones(2))[0][1].item()
    assert z[:, 1].tolist() == [one] * 4
    assert z[0, 0].item() == -INF
    assert z[1:, 0].isnan().all()
    assert ladj.isnan().tolist() == [False, True, True, True]


# -- domains -------------------------------------------------------------------------------------------------

ENDS = [-1.0, 0.0, 1e-30, 0.5, 1.0, 1.5, math.nan, -INF, INF]
OUTSIDE_POSITIVE = [True, True, False, False, False, False, False, True, True]
OUTSIDE_UNIT = [True, True, False, False, True, True, False, True, True]
DOMAINS = {
    "log": (transforms.Log(1), OUTSIDE_POSITIVE, None),
    "exp": (transforms.Exp(1), None, OUTSIDE_POSITIVE),
    "softplus": (transforms.Softplus(1), None, OUTSIDE_POSITIVE),
    "logit": (transforms.Logit(1), OUTSIDE_UNIT, None),
    "sigmoid": (transforms.Sigmoid(1), None, OUTSIDE_UNIT),
    "rebase": (transforms.Rebase(1, "normal", "logistic"), None, None),
    "rebase-to-uniform": (transforms.Rebase(1, "normal", "uniform"), None, OUTSIDE_UNIT),
    "rebase-from-uniform": (transforms.Rebase(1, "uniform", "logistic"), OUTSIDE_UNIT, None),
}


@pytest.mark.parametrize("name", DOMAINS)
def test_outside_marks_what_is_not_in_the_open_domain(name):
    transform, outside, outside_image = DOMAINS[name]
    for found, expected in (
        (transform.outside(column(ENDS)), outside),
        (transform.outside_image(column(ENDS)), outside_image),
    ):
        if expected is None:
            assert found is None
        else:
            assert found.dtype == torch.bool
            assert found.tolist() == [[value] for value in expected]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", DOMAINS)
def test_points_inside_map_to_finite_numbers(name, dtype):
    transform, x = DOMAINS[name][0], column(ENDS, dtype)
    for direction, point in ((transform, transform.inside(x)), (transform.inverse, transform.inside_image(x))):
        assert point.shape == (1,)
        assert point.dtype == dtype
        assert all(value.isfinite().all() for value in direction(point))


def test_domains_in_words():
    assert transforms.Log(1).describe(0) == "positive"
    assert transforms.Logit(1).describe(0) == "between 0 and 1"
    assert transforms.Exp(1).describe(0) == "any number"


# -- Support -------------------------------------------------------------------------------------------------


def near_ends(low, high, dtype):
    """Numbers of the dtype across the interval, as close to its ends as they get."""
    least, greatest = (torch.tensor(end, dtype=dtype) for end in (low, high))
    unit = high - low if math.isfinite(high - low) else 1.0
    steps = torch.tensor([1e-30, 1e-9, 1e-4, 0.1, 0.3, 0.5, 0.7, 0.9], dtype=dtype) * unit
    far = torch.tensor([3.0, 1e3, 1e10], dtype=dtype)
    values = []
    if math.isfinite(low):
        values += [least + steps, torch.nextafter(least, torch.ones_like(least) * INF).reshape(1).clamp_min(1e-37)]
        values += [] if math.isfinite(high) else [least + far]
    if math.isfinite(high):
        values += [greatest - steps, torch.nextafter(greatest, -torch.ones_like(least) * INF).reshape(1)]
        values += [] if math.isfinite(low) else [greatest - far]
    x = torch.cat(values).unsqueeze(-1)
    x = x.clamp(max=-1e-37) if high == 0.0 else x
    return x[(x[:, 0] > least) & (x[:, 0] < greatest)]


def true_map(x, low, high):
    """The image and ladj, and the sum of the magnitudes of the terms of both."""
    from_low = mpmath.log(x - low) if math.isfinite(low) else mpmath.mpf(0)
    to_high = mpmath.log(high - x) if math.isfinite(high) else mpmath.mpf(0)
    width = mpmath.log(mpmath.mpf(high) - low) if math.isfinite(high - low) else mpmath.mpf(0)
    return from_low - to_high, width - from_low - to_high, abs(from_low) + abs(to_high) + abs(width)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interval", INTERVALS)
def test_support_is_accurate_up_to_both_ends(interval, dtype):
    # The ends are those that the dtype can hold.
    low, high = (torch.tensor(end, dtype=dtype).item() for end in interval)
    x = near_ends(low, high, dtype)
    assert len(x) >= 8
    z, ladj = transforms.Support(1, interval)(x)
    eps = torch.finfo(dtype).eps
    for value, own_z, own_ladj in zip(as_mpmath(x), z[:, 0].tolist(), ladj.tolist(), strict=True):
        true_z, true_ladj, terms = true_map(value, low, high)
        assert abs(own_z - true_z) <= 2.0 * eps * max(terms, 1)
        assert abs(own_ladj - true_ladj) <= 2.0 * eps * max(terms, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interval", INTERVALS)
def test_inverse_of_support_is_accurate_and_its_ladj_the_negative(interval, dtype):
    low, high = (torch.tensor(end, dtype=dtype).item() for end in interval)
    z = column([-80.0, -30.0, -8.0, -1.0, -1e-3, 0.0, 0.5, 2.0, 16.0, 40.0, 80.0], dtype)
    to_line = transforms.Support(1, interval)
    x, ladj = to_line.inverse(z)
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    for value, own_x, own_ladj in zip(as_mpmath(z), x[:, 0].tolist(), ladj.tolist(), strict=True):
        if math.isinf(high):
            true, true_ladj = low + mpmath.exp(value), value
        elif math.isinf(low):
            true, true_ladj = high - mpmath.exp(-value), -value
        else:
            share, width = sigmoid(value), mpmath.mpf(high) - low
            true = low + width * share
            true_ladj = mpmath.log(width) + mpmath.log(share) + mpmath.log(sigmoid(-value))
        assert abs(own_x - true) <= 3.0 * eps * abs(true) + 2.0 * tiny
        assert abs(own_ladj - true_ladj) <= 4.0 * eps * max(abs(true_ladj), 1, abs(value))


def random_on_the_line(*shape):
    return 2.0 * torch.randn(*shape, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_support_keeps_shapes_and_dtypes_and_inverts(batch, dtype):
    to_line, z = transforms.Support(6, MIXED), random_on_the_line(*batch).to(dtype)
    x, inverse_ladj = to_line.inverse(z)
    back, ladj = to_line(x)
    assert x.shape == back.shape == z.shape
    assert ladj.shape == inverse_ladj.shape == torch.Size(batch)
    assert {x.dtype, back.dtype, ladj.dtype, inverse_ladj.dtype} == {dtype}
    # Adding the end 2.0 or 15.0 to a small step loses digits of the step.
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-12}.get(dtype, 0.5)
    torch.testing.assert_close(back, z, rtol=tolerance, atol=tolerance)
    if dtype in DTYPES:
        torch.testing.assert_close(ladj, -inverse_ladj, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes_are_computed_in_float32(dtype):
    x = torch.tensor([3.0, 0.2, 1.7, 2.9, 2.1, 14.9], dtype=dtype)
    for narrow, wide in zip(transforms.Support(6, MIXED)(x), transforms.Support(6, MIXED)(x.float()), strict=True):
        assert torch.equal(narrow, wide.to(dtype))


@pytest.mark.parametrize("support", ["positive", (0.0, 2.0), (1.0, None), (None, 1.0), None, MIXED])
def test_ladj_is_the_log_determinant_by_autograd(support):
    to_line, z = transforms.Support(6, support), random_on_the_line()
    x, _ = to_line.inverse(z)
    for direction, values in ((to_line, x), (to_line.inverse, z)):
        jacobian = torch.autograd.functional.jacobian(lambda t, d=direction: d(t)[0], values)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, direction(values)[1])


def test_features_of_several_kinds_are_those_of_each_kind_alone():
    to_line, z = transforms.Support(6, MIXED), random_on_the_line(7)
    alone = [transforms.Support(1, entry) for entry in MIXED]
    x, ladj = to_line.inverse(z)
    images, ladjs = zip(*(own.inverse(z[:, [i]]) for i, own in enumerate(alone)), strict=True)
    torch.testing.assert_close(x, torch.cat(images, 1), rtol=1e-15, atol=0.0)
    torch.testing.assert_close(ladj, sum(ladjs))
    back, ladj = to_line(x)
    images, ladjs = zip(*(own(x[:, [i]]) for i, own in enumerate(alone)), strict=True)
    torch.testing.assert_close(back, torch.cat(images, 1), rtol=1e-15, atol=0.0)
    torch.testing.assert_close(ladj, sum(ladjs))
    assert torch.equal(x[:, 2], z[:, 2])
    everything = torch.tensor([0.0, 0.0, INF, 0.0, 0.0, 0.0])
    assert torch.equal(to_line.inverse(everything)[0][2], everything[2])


def test_derivatives_up_to_the_second_are_those_of_finite_differences():
    to_line, z = transforms.Support(6, MIXED), random_on_the_line(2)
    x, _ = to_line.inverse(z)
    for direction, values in ((to_line, x), (to_line.inverse, z)):
        assert torch.autograd.gradcheck(direction, values.clone().requires_grad_(), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(direction, values.clone().requires_grad_())


def test_the_slope_in_the_middle_has_no_kink():
    z = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    x, ladj = transforms.Support(1, (0.0, 8.0)).inverse(z)
    assert torch.autograd.grad(x.sum(), z, retain_graph=True)[0].item() == 2.0
    assert torch.autograd.grad(ladj, z)[0].item() == 0.0


def test_float64_data_keep_their_digits_in_a_module_of_float32():
    interval = (1.7e9 + 0.1, 1.7e9 + 1000.3)
    x = column([interval[0] + 1e-3, interval[1] - 1e-3])
    expected = transforms.Support(1, interval)(x)
    module = transforms.Compose(transforms.Support(1, interval)).to(torch.float32).double().half()
    found = module.transforms[0](x)
    assert all(map(torch.equal, found, expected))
    assert found[0].dtype == found[1].dtype == torch.float64
    torch.testing.assert_close(module.transforms[0].inverse(found[0])[0], x, rtol=1e-15, atol=0.0)


def test_a_dtype_without_numbers_in_the_interval_is_refused():
    to_line = transforms.Support(2, [(1.7e9, 1.7e9 + 1000.0), None])
    with pytest.raises(
        ValueError, match=r"support: expected ends that differ by more than 1.9e-06 .*torch\.float32 .*5.9e-07"
    ):
        to_line(torch.zeros(2))
    with pytest.raises(ValueError, match=r"support: expected ends of at most 16376 for torch\.float16, got 1e\+06"):
        transforms.Support(1, (0.0, 1e6)).inverse(torch.zeros(1, dtype=torch.float16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "interval", [*INTERVALS[:3], (-7.3, INF), (-INF, 7.3), (0.1, 0.7), (-0.7, -0.1), (100.1, 130.3)]
)
def test_inverse_never_leaves_the_open_interval(interval, dtype):
    to_line = transforms.Support(1, interval)
    z = column([0.0, 5.0, 11.0, 16.0, 20.0, 36.0, 40.0, 87.0, 90.0, 100.0, 700.0, 710.0, 1e4, INF], dtype)
    z = torch.cat([z, -z]).requires_grad_()
    x, _ = to_line.inverse(z)
    # In the exact numbers that were given, not in those that the dtype made of them.
    assert all(interval[0] < value < interval[1] for value in x.flatten().tolist())
    assert not to_line.outside(x.detach()).any()
    assert to_line(x.detach())[0].isfinite().all()
    assert to_line(x.detach())[1].isfinite().all()
    assert torch.autograd.grad(x.sum(), z)[0].isfinite().all()
    assert to_line.inverse(torch.full_like(x, math.nan))[0].isnan().all()


def test_ends_go_to_infinity_and_what_is_beyond_them_to_nan():
    x = torch.tensor([0.0, 2.0, -1.0, 3.0, math.nan, 1.0])
    z, _ = transforms.Support(6, (0.0, 2.0))(x)
    assert z[:2].tolist() == [-INF, INF]
    assert z[2:5].isnan().all()
    assert z[5].item() == 0.0
    z, _ = transforms.Support(6, (None, 2.0))(x)
    assert z[1].item() == INF
    assert z[[3, 4]].isnan().all()


def test_outside_marks_elements_feature_by_feature():
    to_line = transforms.Support(6, MIXED)
    low, high = [0.0, 0.0, -INF, -INF, 2.0, -5.0], [INF, 1.0, INF, 3.0, INF, 15.0]
    for ends in (low, high):
        assert to_line.outside(torch.tensor(ends)).all()
    assert to_line.outside(torch.tensor([[-1.0, 2.0, 0.0, 4.0, 1.0, -6.0]])).tolist() == [
        [True, True, False, True, True, True]
    ]
    assert not to_line.outside(torch.full((2, 6), math.nan)).any()
    assert not to_line.outside(to_line.inside(torch.zeros(6))).any()
    assert transforms.Support(2, None).outside(torch.zeros(2)) is None
    assert transforms.Support(2, [None, (None, None)]).outside(torch.zeros(2)) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interval", [*INTERVALS, (1e10, INF), (-INF, -1e10), (1e10, 2e10)])
def test_the_point_inside_is_inside_in_any_dtype(interval, dtype):
    to_line, x = transforms.Support(1, interval), torch.zeros(3, 1, dtype=dtype)
    point = to_line.inside(x)
    assert point.dtype == dtype
    assert interval[0] < point.item() < interval[1]
    assert all(value.isfinite().all() for value in to_line(point))


def test_points_inside_in_place_of_what_is_outside_keep_gradients_finite():
    to_line = transforms.Support(6, MIXED)
    scattered = 3.0 * random_on_the_line(50)
    x = torch.cat([to_line.inverse(scattered[:5])[0], scattered]).requires_grad_()
    scale = torch.ones(6, dtype=torch.float64, requires_grad=True)
    outside = to_line.outside(x)
    assert outside.any(0).tolist() == [True, True, False, True, True, True]
    z, ladj = to_line(torch.where(outside, to_line.inside(x), x))
    log_prob = (ladj - 0.5 * (scale * z).square().sum(-1)).masked_fill(outside.any(-1), -INF)
    kept = torch.where(log_prob.isfinite(), log_prob, 0.0).sum()
    for gradient in torch.autograd.grad(kept, (x, scale)):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0.0


@pytest.mark.parametrize(
    ("support", "simplest"),
    [
        ((0, INF), "'positive'"),
        ([0, None], "'positive'"),
        ((-INF, INF), "None"),
        ([None, None], "None"),
        ([None, None, None], "None"),
        ((0, 1), "(0.0, 1.0)"),
        ([[0, 1]] * 3, "(0.0, 1.0)"),
        ([None, 2], "(-inf, 2.0)"),
        ((None, "positive", [0, 2]), "[None, 'positive', (0.0, 2.0)]"),
        (([None, None], (0.0, None), "positive"), "[None, 'positive', 'positive']"),
    ],
)
def test_supports_have_several_spellings(support, simplest):
    assert repr(transforms.Support(3, support)) == f"Support(features=3, support={simplest})"
    same = transforms.Support(3, transforms.Support(3, support).support)
    assert repr(same) == f"Support(features=3, support={simplest})"


def test_supports_survive_json():
    support = ["positive", [0, 1], None, [None, 3.0], [2.0, None], [0.1, 0.7]]
    again = json.loads(json.dumps(support, allow_nan=False))
    x = torch.tensor([3.0, 0.2, 1.7, 2.9, 2.1, 0.4])
    assert all(map(torch.equal, transforms.Support(6, support)(x), transforms.Support(6, again)(x)))


def test_supports_in_words():
    to_line = transforms.Support(6, [*MIXED[:5], (0.1, 1e6)])
    assert [to_line.describe(feature) for feature in range(6)] == [
        "positive",
        "between 0 and 1",
        "any number",
        "below 3",
        "above 2",
        "between 0.1 and 1000000",
    ]


def test_copies_are_the_same_and_files_hold_nothing():
    to_line, x = transforms.Support(6, MIXED), torch.tensor([3.0, 0.2, 1.7, 2.9, 2.1, 14.9])
    for copied in (copy.deepcopy(to_line), pickle.loads(pickle.dumps(to_line))):
        assert all(map(torch.equal, copied(x), to_line(x)))
        assert repr(copied) == repr(to_line)
    assert not to_line.state_dict()
    with torch.device("meta"):
        assert transforms.Support(6, MIXED)(torch.zeros(2, 6))[0].shape == (2, 6)


@pytest.mark.parametrize(
    "transform",
    [transforms.Support(6, MIXED), transforms.Support(6, (0, 1)), transforms.Log(6), transforms.Softplus(6)],
)
def test_compiled_and_mapped_calls_give_the_same(transform):
    x = torch.tensor([[3.0, 0.2, 1.7, 2.9, 2.1, 14.9], [0.1, 0.9, -4.0, -2.0, 7.0, 0.0]]).abs()
    compiled = torch.compile(transform, fullgraph=True, backend="aot_eager")
    mapped = torch.func.vmap(transform)
    for found in (compiled(x), mapped(x)):
        torch.testing.assert_close(found, transform(x), equal_nan=True)
    jacobian = torch.func.jacrev(lambda value: transform(value)[0])(x[0].clamp(max=0.9))
    assert jacobian.diagonal().abs().min() > 0.0


EXPECTED = r"support: expected None, 'positive' or a pair \(low, high\) with low < high"
BAD_SUPPORTS = {
    "unknown": ("negative", "got 'negative'"),
    "unknown in a list": (["positive", "unit", None], "got 'unit' for feature 1"),
    "count": (["positive", None], "or 3 of these, one a feature, got 2"),
    "count of nothing": ([], "or 3 of these, one a feature, got 0"),
    "not in order": ((1, 0), r"got \(1, 0\)"),
    "empty": ((1.0, 1.0), r"got \(1.0, 1.0\)"),
    "nan": ((0.0, math.nan), r"got \(0.0, nan\)"),
    "only infinity": ((INF, None), r"got \(inf, None\)"),
    "pair in a list": ([None, [2, 1], None], r"got \[2, 1\] for feature 1"),
    "number": (3.0, "or a sequence of these, got 3.0"),
    "number in a list": ([0.0, 1.0, 2.0], "got 0.0 for feature 0"),
    "triple": ([None, None, (0, 1, 2)], r"got \(0, 1, 2\) for feature 2"),
    "booleans": ([False, True], "or 3 of these, one a feature, got 2"),
    "too large": ((0, 10**400), "got "),
}


@pytest.mark.parametrize("bad", BAD_SUPPORTS)
def test_a_bad_support_is_refused_by_name(bad):
    support, message = BAD_SUPPORTS[bad]
    with pytest.raises(ValueError, match=f"{EXPECTED}.*{message}"):
        transforms.Support(3, support)


@pytest.mark.parametrize("kind", [transforms.Exp, transforms.Log, transforms.Softplus, Pointwise])
def test_features_and_dtypes_are_checked(kind):
    with pytest.raises(ValueError, match=r"features: .*at least 1, got 0"):
        kind(0)
    with pytest.raises(TypeError, match=r"x: expected floating-point numbers, got torch\.int64"):
        kind(1)(torch.zeros(1, dtype=torch.int64))
    assert repr(kind(2)) == f"{kind.__name__}(features=2)"
