"""The density of finite numbers is a number or -inf, never NaN: NaN stands for what is missing."""

import functools
import math

import pytest
import torch

import mixflow
from mixflow import flows
from mixflow.transforms import Rotation, Whitening
from mixflow.transforms.base import infinite_where_overflowed

D, C, ROWS = 3, 2, 200
NORMAL = torch.randn(ROWS, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CONTEXT = torch.randn(ROWS, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
# Dependent columns, so that the whitening and the rotations have every sign in them.
DEPENDENT = NORMAL @ torch.tensor([[1.0, 0.8, -0.6], [0.0, 0.6, 0.5], [0.0, 0.0, 0.7]], dtype=torch.float64)
DATA = {None: 5.0 * DEPENDENT + 2.0, "positive": DEPENDENT.exp(), (0, 1): DEPENDENT.sigmoid()}

SIZES = [0.0, 5e-324, 1e-300, 1e-38, 1.0, 1e3, 1e10, 1e19, 1e20, 1e30, 1e37, 1e38, 3.4e38, 3.5e38, 1e39]
SIZES += [1e150, 1e154, 1e155, 1e200, 1e300, 1e308, 1.7e308, 1.7976931348623157e308]
EXTREME = torch.tensor([sign * size for size in SIZES for sign in (1.0, -1.0)], dtype=torch.float64)

RECIPES = {
    "univariate": lambda **more: flows.univariate(3, seed=0, **more),
    "gaussianization": lambda **more: flows.gaussianization(D, 3, 3, seed=0, **more),
    "coupling": lambda **more: flows.coupling(D, 2, 3, (8,), marginal_components=3, seed=0, **more),
    "autoregressive": lambda **more: flows.autoregressive(D, 2, 3, (8,), marginal_components=3, seed=0, **more),
    "gaussian_mixture": lambda **more: flows.gaussian_mixture(D, 3, seed=0, **more),
}
KINDS = [("gaussian", "logistic"), ("logistic", "normal"), ("logistic", "uniform")]  # family and base
CASES = [(name, (), dtype, support) for name in RECIPES for dtype in (torch.float32, torch.float64) for support in DATA]
CASES += [(name, kind, torch.float32, None) for name in RECIPES for kind in KINDS if name != "gaussian_mixture"]


@functools.cache
def fitted(name, kind=(), dtype=torch.float32, support=None, context=0):
    flow = RECIPES[name](**dict(zip(("family", "base"), kind, strict=False)), support=support, context=context)
    data, given = DATA[support][:, : flow.features], CONTEXT if context else None
    mixflow.fit(flow.to(dtype), data, context=given, epochs=2, lr=0.01, progress=False)
    return flow


def extreme_rows(features, support=None):
    """An extreme number in every column, in one beside ordinary ones, with the other sign, and at random."""
    ordinary = DATA[support][:1, :features]
    places = [torch.ones(features), torch.tensor([1.0, -1.0] * features)[:features], *torch.eye(features)]
    signs = torch.stack(places).double()
    rows = torch.where(signs == 0.0, ordinary, signs * EXTREME[:, None, None]).flatten(0, 1)
    chosen = torch.randint(len(EXTREME), (200, features), generator=torch.Generator().manual_seed(2))
    return torch.cat([rows, EXTREME[chosen]])


def extreme_contexts(rows):
    chosen = torch.randint(len(EXTREME), (rows, C), generator=torch.Generator().manual_seed(3))
    return EXTREME[chosen]


def check(log_prob):
    assert not log_prob.isnan().any()
    assert (log_prob < math.inf).all()


@pytest.mark.parametrize(("name", "kind", "dtype", "support"), CASES)
def test_the_density_of_finite_numbers_is_never_nan(name, kind, dtype, support, device):
    flow = fitted(name, kind, dtype, support).to(device)
    rows = extreme_rows(flow.features, support).to(device)
    with torch.no_grad():
        check(flow.log_prob(rows))
        check(torch.cat([flow.log_prob(row[None]) for row in rows[::20]]))
    check(flow.log_prob(rows))  # with gradients rows without a density are computed twice


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RECIPES)
def test_the_density_under_finite_contexts_is_never_nan(name, dtype, device):
    flow = fitted(name, dtype=dtype, context=C).to(device)
    ordinary, far = DATA[None][:, : flow.features].to(device), extreme_rows(flow.features).to(device)
    for rows in (ordinary, far):
        for context in (extreme_contexts(len(rows)).to(device), torch.zeros(C, device=device)):
            check(flow.log_prob(rows, context))
    assert flow.log_prob(ordinary, extreme_contexts(ROWS).to(device)).isfinite().all()


@pytest.mark.parametrize("name", RECIPES)
def test_the_image_of_finite_numbers_is_never_nan(name, device):
    flow = fitted(name).to(device)
    z, _ = flow.transform(extreme_rows(flow.features).to(device))
    assert not z.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", RECIPES)
def test_far_rows_change_neither_the_densities_nor_the_gradients_of_others(name, dtype, device):
    flow = fitted(name, dtype=dtype).to(device)
    ordinary = DATA[None][:8, : flow.features].to(device)
    far = torch.full_like(ordinary[:2], 1.7e308)
    leaf = ordinary.clone().requires_grad_()
    expected = flow.log_prob(leaf)
    log_prob = flow.log_prob(torch.cat([leaf, far]))
    assert (log_prob[8:] == -math.inf).all()
    torch.testing.assert_close(log_prob[:8], expected)
    leaves = [leaf, *flow.parameters()]
    grads = torch.autograd.grad(log_prob[:8].sum(), leaves)
    torch.testing.assert_close(grads, torch.autograd.grad(expected.sum(), leaves), rtol=1e-4, atol=1e-4)


# -- the mend itself -----------------------------------------------------------------------------------------

INF, NAN, LARGEST = math.inf, math.nan, torch.finfo(torch.float32).max
ONES = [[1.0, -1.0], [1.0, 0.0]]
PRODUCTS = {
    # x (2,), the matrix that multiplies it, the image
    "an ordinary row": ([3.0, 2.0], ONES, [1.0, 3.0]),
    "infinity minus infinity": ([INF, INF], ONES, [INF, INF]),
    "infinity times zero": ([1.0, INF], ONES, [-INF, INF]),
    "a sum that fits": ([LARGEST, LARGEST], ONES, [0.0, LARGEST]),
    "a missing value": ([NAN, 1.0], ONES, [NAN, NAN]),
    "a missing value beside infinity": ([NAN, INF], ONES, [NAN, NAN]),
    "a broken matrix": ([3.0, 2.0], [[NAN, 1.0], [1.0, 0.0]], [NAN, 3.0]),
}


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("case", PRODUCTS)
def test_a_product_is_nan_only_where_something_is_missing(case, alone, device):
    x, matrix, expected = (torch.tensor(value, device=device) for value in PRODUCTS[case])
    rows = x if alone else torch.stack([torch.ones(2, device=device), x])
    found = infinite_where_overflowed((matrix @ rows.unsqueeze(-1)).squeeze(-1), rows)
    torch.testing.assert_close(found if alone else found[1], expected, rtol=0.0, atol=0.0, equal_nan=True)


def test_partial_sums_that_overflow_are_no_missing_value():
    x = torch.tensor([LARGEST, LARGEST])
    parts = torch.tensor([[2.0, -2.0]]) * x  # inf and -inf: x itself is finite
    torch.testing.assert_close(infinite_where_overflowed(parts.sum(-1), x), torch.tensor([INF]))


def correlated():
    whitening = Whitening(2)
    whitening.set_gaussian(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    return whitening


MAPS = {
    "whitening": correlated,
    "rotation": lambda: Rotation(2, torch.tensor([[0.6, -0.8], [0.8, 0.6]])),
}


@pytest.mark.parametrize("name", MAPS)
def test_linear_maps_keep_what_overflowed_and_what_is_missing_apart(name):
    x = torch.tensor([[1.0, 2.0], [INF, INF], [INF, 1.0], [-INF, INF], [NAN, INF], [NAN, 1.0]])
    z, ladj = MAPS[name]()(x)
    assert z.isnan().any(-1).tolist() == [False] * 4 + [True] * 2
    assert z.isinf().any(-1).tolist()[:4] == [False, True, True, True]
    assert ladj.isfinite().all()


@pytest.mark.parametrize("name", MAPS)
def test_linear_maps_do_the_same_where_a_program_is_recorded(name):
    transform = MAPS[name]()
    x = torch.tensor([[1.0, 2.0], [INF, INF], [LARGEST, LARGEST]])
    recorded = torch.func.vmap(lambda row: transform(row)[0])(x)
    torch.testing.assert_close(recorded, transform(x)[0])


def test_weights_that_are_nan_show():
    flow = RECIPES["gaussianization"]()
    with torch.no_grad():
        flow.data_to_base.each()[-2].skew.fill_(math.nan)
    assert flow.log_prob(torch.zeros(4, D)).isnan().all()
