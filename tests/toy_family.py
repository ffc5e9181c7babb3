"""The records of a toy family, Laplace's distribution. tests/test_recipe.py adds it by the recipe of CONTRIBUTING.md.

As a plugin, ``pytest -p toy_family``, it adds the record of the tests, and the tests that draw a family at random draw
this one. It has a test of its own, which a run collects only if it names this file.
"""

import numpy as np
import pytest
import scipy.stats
from mpmath import mp, mpf

import cases
import mixflow
import truth

NAME = "laplace"

# Appended to python/mixflow/standard/families.py.
RECORD_OF_THE_PACKAGE = """

def _laplace_log_cdf(a: Tensor) -> Tensor:
    lower = a < 0.0
    tail, rest = torch.where(lower, a, 0.0), torch.where(lower, 0.0, a)
    return torch.where(lower, tail - math.log(2.0), torch.log1p(-0.5 * torch.exp(-rest)))


FAMILIES["laplace"] = Family(
    log_cdf=_laplace_log_cdf,
    log_pdf=lambda a: -a.abs() - math.log(2.0),
    quantile_from_logit=lambda logit: logit + logit.sign() * torch.log1p(0.5 * torch.expm1(-logit.abs())),
    variance=2.0,
    plain_cdf=lambda a: torch.where(a < 0.0, 0.5 * torch.exp(a), 1.0 - 0.5 * torch.exp(-a)),
    plain_log_cdf=lambda a: torch.where(a < 0.0, 0.5 * torch.exp(a), 1.0 - 0.5 * torch.exp(-a)).log(),
    plain_pdf=lambda a, C: 0.5 * torch.exp(-a.abs()),
    plain_log_pdf=lambda a, log_S: -a.abs() - math.log(2.0),
    smooth=False,
)
"""


def _at(a: truth.Number) -> truth.At:
    tail = mp.exp(-abs(a)) / 2
    lower, upper = (tail, 1 - tail) if a < 0 else (1 - tail, tail)
    return truth.At(lower, upper, tail, -mp.sign(a), mpf(1))


RECORD_OF_THE_TESTS = truth.Family(
    at=_at,
    largest_score=lambda a, b: mpf(1),
    log_cdf=lambda a: np.where(np.asarray(a) < 0, a - np.log(2), np.log1p(-0.5 * np.exp(-np.abs(a)))),
    half_width=lambda h: h,
    quantile=lambda logit: logit + 1,
    far=5e5,
    gap=2000,
    scipy=scipy.stats.make_distribution(scipy.stats.laplace),
)


def pytest_configure(config: pytest.Config) -> None:
    truth.FAMILIES[NAME] = RECORD_OF_THE_TESTS
    cases.FAMILY_AND_BASE[:] = [(NAME, base) for base in truth.BASES]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", truth.DTYPES)
def test_bounds_of_laplace(dtype, seed):
    ops = {"forward": mixflow.cdf_transform, "inverse": mixflow.cdf_transform_inverse}
    table = truth.measure(truth.sample(dtype, NAME, 192, seed), {"mixflow": ops}, seed=seed)
    assert table
    assert not truth.broken(table)
