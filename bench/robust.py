"""Fits with defaults, on tables of every awkward kind: what they miss of the best that is known.

python bench/robust.py [TABLE.csv ...] [--only TEXT] [--flows NAME,...] [--seeds S] [--jobs J] [--quick] [--out DIR]
    [--table FILE]

A kind is a way to draw a table: with a large offset, with outliers, with heavy tails, with repeated values, with few
rows, with columns that depend on each other. Every flow of mixflow is built and fitted with nothing but the data. It is
then scored on rows that it has not seen, by the mean log_prob in nats, in the units of the table.

Each score is compared with a reference: the truth that the rows were drawn from, where it is known, or the best of the
plain estimators. These are one Gaussian, a kernel density and scikit-learn's Gaussian mixture. A row of the table that
is printed is one kind and one flow, averaged over seeds. ``shortfall`` is the reference less the flow's score, and
``target`` is the largest shortfall that is good enough.

Three more rules hold for every row. No flow is below one Gaussian by more than a quarter of a nat a column. No mixture
is below scikit-learn's of as many components by more than 0.02 nats; on tables given by name it takes at most twice the
time. Samples of a column with an offset are as distinct as doubles allow. The last column names the rules that are
missed.

An error is a row like any other, and a row that is not reached. ``--table`` writes all rows to a file, as a table in
Markdown.

Tables given by name are split 80/10/10 by numpy's default_rng(seed).permutation, as bench/flows.py splits them. The
first nine tenths are handed to ``fit`` as they are. Their ``standardised`` score is the one in units of the standard
deviations of the first eight tenths, as bench/flows.py reports it.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats
from sklearn.datasets import load_diabetes, load_wine
from sklearn.mixture import GaussianMixture

import mixflow
from mixflow import flows
from mixflow.bench.inputs import Settings
from mixflow.bench.report import machine
from mixflow.files.atomic import replace_file
from mixflow.files.tables import read_table

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import toys
import univariate

Array = NDArray[np.float64]
Density = Callable[[Array], Array]  # rows (N, D) to their log densities (N,)
Generator = np.random.Generator
T = TypeVar("T")

PER_COLUMN = 0.25  # nats that any flow may be below one Gaussian
COMPONENTS = 8  # of scikit-learn's mixture: as many as flows.gaussian_mixture has by default
BELOW_MIXTURE = 0.02  # nats that flows.gaussian_mixture may be below scikit-learn's mixture
KERNEL_ROWS = 2000  # a kernel density of more rows takes longer than the flows
RIDGE = 1e-8  # added to the covariance of one Gaussian, times the diagonal
POINTS = 64  # at which a density is looked at in each interval or cell
CHUNK = 20_000  # rows that a flow is given at a time
ALL = ("gaussianization", "coupling", "autoregressive", "gaussian_mixture")


# -- data ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Rows to fit and rows to score, with what is known of them.

    Attributes:
        truth: the mean log density of the test rows under what they were drawn from.
        offset: a number that all columns contain, for kinds that are compared with the same data without it.
        slack: the Monte Carlo error of a shortfall, added to the target.
        log_scale: the summed log standard deviations of a real table's columns.
    """

    train: Array
    test: Array
    truth: float | None = None
    offset: float = 0.0
    slack: float = 0.0
    log_scale: float | None = None

    def score(self, density: Density) -> float:
        """The mean of a log density over the test rows."""
        return float(np.mean(density(self.test)))


@dataclass(frozen=True)
class Rounded(Data):
    """Rows that were rounded to multiples of ``width``: a density is scored by the probability of what was seen."""

    width: float = 1.0

    def score(self, density: Density) -> float:
        """The mean log probability of the test rows' intervals, or of their cells where there are several columns."""
        if self.test.shape[1] == 1:
            return self._intervals(density)
        return float(self.cells(density)[0].mean())

    def _intervals(self, density: Density) -> float:
        values, counts = np.unique(self.test, return_counts=True)
        nodes, weights = np.polynomial.legendre.leggauss(POINTS)
        # The cube moves points towards the value itself, so that a narrow spike there is seen.
        points = values[:, None] + 0.5 * self.width * nodes**3
        log_density = density(points.reshape(-1, 1)).reshape(points.shape)
        log_weights = np.log(1.5 * self.width * nodes**2 * weights)
        return float(np.average(special.logsumexp(log_density + log_weights, axis=1), weights=counts))

    def cells(self, density: Density) -> tuple[Array, Array]:
        """The log probability of each test row's cell, and its standard error, by points drawn in the cell."""
        rows, columns = self.test.shape
        # The same points for every density: a comparison then has little of the error of either.
        shifts = self.width * (np.random.default_rng(0).random((rows, POINTS, columns)) - 0.5)
        log_density = density((self.test[:, None] + shifts).reshape(-1, columns)).reshape(rows, POINTS)
        log_mean = special.logsumexp(log_density, axis=1) - math.log(POINTS)
        error = np.exp(log_density - log_mean[:, None]).std(axis=1) / math.sqrt(POINTS)
        return log_mean + columns * math.log(self.width), error


Draw = Callable[[Generator, int], Data]  # a generator and the number of rows to fit


def rows_of(values: Any) -> Array:
    values = np.asarray(values, dtype=np.float64)
    return values.reshape(len(values), -1)


def held_out(rows: int) -> int:
    return min(5000, max(500, rows))


@dataclass(frozen=True)
class Truth:
    """What rows are drawn from, with its log density."""

    draw: Callable[[Generator, int], Any]
    log_density: Density

    def rows(self, rng: Generator, n: int) -> Array:
        return rows_of(self.draw(rng, n))

    def score(self, test: Array) -> float:
        return float(np.mean(self.log_density(test)))


def scipy_truth(distribution: Any) -> Truth:
    return Truth(lambda rng, n: distribution.rvs(size=n, random_state=rng), distribution.logpdf)


def correlated(columns: int, correlation: float) -> Truth:
    """Normal columns of variance 1, each correlated with the next."""
    index = np.arange(columns)
    covariance = correlation ** np.abs(index[:, None] - index)
    return scipy_truth(stats.multivariate_normal(np.zeros(columns), covariance))


def normals(parts: Sequence[tuple[float, float, float]]) -> Truth:
    """A mixture of normals in one column, from their (weight, mean, standard deviation)."""
    weight, mean, deviation = np.array(parts).T

    def draw(rng: Generator, n: int) -> Array:
        which = rng.choice(len(parts), n, p=weight)
        return rng.normal(mean[which], deviation[which])

    return Truth(draw, lambda x: special.logsumexp(stats.norm.logpdf(x, mean, deviation), b=weight, axis=-1))


def joined_tails(df: float, correlation: float) -> Truth:
    """Three columns of Student's t, joined by a normal copula."""
    normal, marginal = correlated(3, correlation), stats.t(df)

    def log_density(x: Array) -> Array:
        # From the nearer tail, lest a far value become a probability of 1.
        z = -np.sign(x) * stats.norm.ppf(marginal.sf(np.abs(x)))
        return normal.log_density(z) - stats.norm.logpdf(z).sum(-1) + marginal.logpdf(x).sum(-1)

    def draw(rng: Generator, n: int) -> Array:
        z = normal.rows(rng, n)
        return -np.sign(z) * marginal.ppf(stats.norm.sf(np.abs(z)))

    return Truth(draw, log_density)


def moons_log_density(x: Array) -> Array:
    """Two half circles with normal noise of 0.1, by summing over points so near each other that none shows."""
    angles = (np.arange(200) + 0.5) * (np.pi / 200)
    upper = np.stack([np.cos(angles), np.sin(angles)], 1)
    centres = np.concatenate([upper, [1.0, 0.5] - upper])
    squares = ((x[:, None] - centres) ** 2).sum(-1)
    return special.logsumexp(squares / -0.02, axis=1) - math.log(len(centres) * 2.0 * math.pi * 0.01)


def toy(name: str) -> Truth:
    draw, log_prob = toys.TOYS[name]
    known = moons_log_density if log_prob is None else lambda x: log_prob(torch.from_numpy(x).float()).double().numpy()
    return Truth(lambda rng, n: draw(n, seed=int(rng.integers(2**31))), known)


def plain(truth: Truth, offset: float = 0.0) -> Draw:
    """Rows to fit and rows to score from one truth, with a number added to all."""

    def draw(rng: Generator, n: int) -> Data:
        train, test = truth.rows(rng, n), truth.rows(rng, held_out(n))
        return Data(train + offset, test + offset, truth.score(test), offset)

    return draw


def spoiled(truth: Truth, spoil: Callable[[Generator, Array], None], clean_share: float) -> Draw:
    """Rows to fit that were spoiled in part; the rows to score are clean."""

    def draw(rng: Generator, n: int) -> Data:
        train, test = truth.rows(rng, n), truth.rows(rng, held_out(n))
        spoil(rng, train)
        rng.shuffle(train)
        return Data(train, test, truth.score(test) + math.log(clean_share))

    return draw


def first(share: float, x: Array) -> Array:
    """A view of the first rows: they are to be shuffled later."""
    return x[: max(1, round(share * len(x)))]


def far_out(top: float) -> Callable[[Generator, Array], None]:
    def spoil(rng: Generator, x: Array) -> None:
        view = first(0.001, x)
        view[:] = rng.uniform(0.0, top, view.shape)

    return spoil


def sentinels(rng: Generator, x: Array) -> None:
    first(0.005, x)[:, 0] = -9999.0


def long_rows(rng: Generator, x: Array) -> None:
    first(0.001, x)[:] *= 1e7


def long_values(rng: Generator, x: Array) -> None:
    x[rng.random(x.shape) < 0.005] *= 1e9


@dataclass(frozen=True)
class Values:
    """A column of values that repeat: how they are drawn, their log probability, and the step between them."""

    draw: Callable[[Generator, int], Array]
    log_probability: Callable[[Array], Array]
    width: float

    def as_they_are(self, rng: Generator, n: int) -> Data:
        return Data(rows_of(self.draw(rng, n)), rows_of(self.draw(rng, held_out(n))))

    def as_intervals(self, rng: Generator, n: int) -> Data:
        train, test = rows_of(self.draw(rng, n)), rows_of(self.draw(rng, held_out(n)))
        return Rounded(train, test, float(self.log_probability(test).mean()), width=self.width)


def between(distribution: Any, x: Array, width: float) -> Array:
    return distribution.cdf(x + 0.5 * width) - distribution.cdf(x - 0.5 * width)


def rounded_normal(digits: int) -> Values:
    width = 10.0**-digits
    return Values(
        lambda rng, n: np.round(rng.normal(size=n), digits), lambda x: np.log(between(stats.norm, x, width)), width
    )


def zero_inflated(rng: Generator, n: int) -> Array:
    return np.where(rng.random(n) < 0.3, 0.0, rng.lognormal(size=n))


RATINGS = np.array([0.05, 0.1, 0.2, 0.4, 0.25])  # the shares of 1 to 5
REPEATED = {
    "Poisson counts of mean 2": Values(lambda rng, n: rng.poisson(2.0, n), stats.poisson(2.0).logpmf, 1.0),
    "ratings 1 to 5": Values(
        lambda rng, n: rng.choice(5, n, p=RATINGS) + 1.0, lambda x: np.log(RATINGS[x.astype(int) - 1]), 1.0
    ),
    "normal rounded to 0.1 sd": rounded_normal(1),
    "normal rounded to 1 sd": rounded_normal(0),
    "30 % zeros, lognormal, rounded to 0.1": Values(
        lambda rng, n: np.round(zero_inflated(rng, n), 1),
        lambda x: np.log(0.3 * (x == 0.0) + 0.7 * between(stats.lognorm(1.0), x, 0.1)),
        0.1,
    ),
}


def rounded_columns(rng: Generator, n: int) -> Data:
    """Three correlated normal columns, rounded to half a standard deviation."""
    truth = correlated(3, 0.9)
    train, test = (np.round(2.0 * truth.rows(rng, rows)) / 2.0 for rows in (n, min(2000, held_out(n))))
    log_probability, error = Rounded(train, test, width=0.5).cells(truth.log_density)
    slack = float(np.sqrt((error**2).sum()) / len(test))
    return Rounded(train, test, float(log_probability.mean()), slack=slack, width=0.5)


def split_table(values: Array) -> Draw:
    """A table of measurements; the tenth in the middle is for those who choose by it, and here is fitted, too."""

    def draw(rng: Generator, n: int) -> Data:
        order, kept = rng.permutation(len(values)), (np.array([8, 9]) * len(values)) // 10
        train, test = values[order[: kept[1]]], values[order[kept[1] :]]
        return Data(train, test, log_scale=float(np.log(train[: kept[0]].std(0)).sum()))

    return draw


def four_fifths(load: Callable[[], Any]) -> Draw:
    def draw(rng: Generator, n: int) -> Data:
        values = load().data
        order = rng.permutation(len(values))
        return Data(*np.split(values[order], [len(values) * 4 // 5]))

    return draw


def dependent(make: Callable[[Generator, int], Array]) -> Draw:
    """Rows to fit and to score of one making: constants that it draws are the same for both."""

    def draw(rng: Generator, n: int) -> Data:
        return Data(*np.split(make(rng, n + held_out(n)), [n]))

    return draw


def in_two_units(rng: Generator, n: int) -> Array:
    celsius = rng.normal(15.0, 8.0, n)
    return np.stack([celsius.round(1), (1.8 * celsius + 32.0).round(1)], 1)


def totals(rng: Generator, n: int) -> Array:
    a, b, c = rng.normal(size=(3, n))
    return np.stack([a, b, a + b, c], 1)


def line(slope: float, shift: float) -> Draw:
    def make(rng: Generator, n: int) -> Array:
        a = rng.normal(size=n)
        return np.stack([a, slope * a + shift], 1)

    return dependent(make)


def of_rank_5(rng: Generator, n: int) -> Array:
    mixing = rng.normal(size=(5, 16))
    return (rng.normal(size=(n, 5)) @ mixing).round(3)


def waves(rng: Generator, n: int) -> Array:
    a = np.where(rng.random(n) < 0.5, rng.normal(-3.0, 1.0, n), rng.normal(3.0, 0.5, n))
    return np.stack([a, 2.0 * np.sin(a) + 0.1 * rng.normal(size=n)], 1)


# -- a fit, and what is measured of it -----------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What one fit came to; ``own`` are references that belong to this flow alone."""

    log_prob: float
    seconds: float
    own: dict[str, float] = field(default_factory=dict)
    distinct: float | None = None


def log_density(flow: flows.Flow) -> Density:
    @torch.no_grad()
    def of_rows(x: Array) -> Array:
        parts = torch.from_numpy(x).split(CHUNK)
        return np.concatenate([flow.log_prob(part).double().numpy() for part in parts])

    return of_rows


def fit(kind: Kind, name: str, x: Array) -> tuple[flows.Flow, float]:
    """A flow fitted to ``x``, and the seconds that took."""
    start = time.perf_counter()
    features = {} if name == "univariate" else {"features": x.shape[1]}
    flow = flows.RECIPES[name](**features, **kind.recipe)
    mixflow.fit(flow, x, progress=False, **kind.fit)
    return flow, time.perf_counter() - start


def fitted(kind: Kind, name: str, data: Data) -> Measured:
    flow, seconds = fit(kind, name, data.train)
    return Measured(data.score(log_density(flow)), seconds)


def against_centred(kind: Kind, name: str, data: Data) -> Measured:
    """The reference is the same flow, fitted to the same data without the offset."""
    flow, seconds = fit(kind, name, data.train)
    centred, _ = fit(kind, name, data.train - data.offset)
    reference = float(log_density(centred)(data.test - data.offset).mean())
    # A double has few digits left beside a large offset: samples are asked for no more than those that it can hold.
    possible = distinct_values(centred.sample(20_000, seed=0).double().numpy() + data.offset)
    distinct = distinct_values(flow.sample(20_000, seed=0).numpy()) / possible
    return Measured(data.score(log_density(flow)), seconds, {"centred": reference}, distinct)


def distinct_values(samples: Array) -> int:
    return min(len(np.unique(column)) for column in samples.T)


def going_on(kind: Kind, name: str, data: Data) -> Measured:
    """The reference is the flow itself, before a fit of thirty of its rows that should change next to nothing."""
    flow, seconds = fit(kind, name, data.train)
    before = data.score(log_density(flow))
    mixflow.fit(flow, data.train[:30], epochs=1, lr=1e-6, progress=False)
    return Measured(data.score(log_density(flow)), seconds, {"before": before})


@dataclass(frozen=True)
class Kind:
    """A kind of data, the flows that are fitted to it, and what is good enough.

    Attributes:
        rows: to fit.
        reference: what is compared with: "truth", "best" of one Gaussian and a kernel density, or what ``measure``
            finds; one Gaussian by default.
        target: the largest shortfall, in nats, of all flows or of each; a quarter of a nat a column by default.
        recipe, fit: arguments beside the data, for kinds that are about an argument.
        measure: how a flow is fitted and scored.
        seeds: tables to draw, by default.
        timed: whether the mixture's time is compared with scikit-learn's.
    """

    draw: Draw
    rows: int
    flows: tuple[str, ...] = ("univariate",)
    reference: str = "Gaussian"
    target: float | dict[str, float] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    measure: Callable[[Kind, str, Data], Measured] = fitted
    seeds: int = 1
    timed: bool = False

    def data(self, seed: int, quick: bool) -> Data:
        rows = self.rows // 10 if quick and self.rows >= 1000 else self.rows
        return self.draw(np.random.default_rng(seed), rows)


# -- kinds ---------------------------------------------------------------------------------------------------


def offset_kinds() -> dict[str, Kind]:
    hour, common = stats.uniform(0.0, 3600.0), {"reference": "centred", "target": 0.05, "measure": against_centred}
    wide = {"recipe": {"components": 64}}
    return {
        "offset: an hour in Unix seconds": Kind(plain(scipy_truth(hour), 1.7e9), 20_000, **common),
        "offset: the hour, K = 64": Kind(plain(scipy_truth(hour), 1.7e9), 20_000, **common, **wide),
        "offset: 1e7 spreads": Kind(plain(scipy_truth(stats.norm), 1e7), 5000, **common),
        "offset: 1e12 spreads": Kind(plain(scipy_truth(stats.norm), 1e12), 5000, **common),
        "offset: three columns, 1e9": Kind(plain(correlated(3, 0.9), 1e9), 5000, ALL, **common),
    }


def outlier_kinds() -> dict[str, Kind]:
    one = {
        **{f"0.1 % to {top:.0e}".replace("e+0", "e"): (far_out(top), 0.999) for top in (1e5, 1e7, 1e9)},
        "0.5 % sentinels": (sentinels, 0.995),
    }
    three = {
        "0.1 % of rows times 1e7": (long_rows, 0.999),
        "0.5 % of values times 1e9": (long_values, 0.995**3),
        "0.5 % sentinels in a column": (sentinels, 0.995),
    }
    normal, common = scipy_truth(stats.norm), {"reference": "truth"}
    return {
        **{
            f"outliers: {name}": Kind(spoiled(normal, *how), 10_000, target=0.05, **common) for name, how in one.items()
        },
        **{
            f"outliers: {name}": Kind(spoiled(correlated(3, 0.9), *how), 5000, ALL, target=0.3, **common)
            for name, how in three.items()
        },
    }


def tail_kinds() -> dict[str, Kind]:
    lognormal, common = plain(scipy_truth(stats.lognorm(5.0))), {"reference": "truth"}
    positive = {"recipe": {"support": "positive"}}
    return {
        "tails: Cauchy": Kind(plain(scipy_truth(stats.cauchy)), 10_000, target=0.2, **common),
        "tails: t of 0.5 degrees": Kind(plain(scipy_truth(stats.t(0.5))), 10_000, target=0.3, **common),
        "tails: lognormal of sigma 5": Kind(lognormal, 10_000, target=0.5, **common),
        "tails: the lognormal, support": Kind(lognormal, 10_000, target=0.05, **common, **positive),
        "tails: t of 1.5 degrees, three columns": Kind(
            plain(joined_tails(1.5, 0.7)), 10_000, ALL, target=0.3, **common
        ),
    }


def repeated_kinds() -> dict[str, Kind]:
    resolved = {"reference": "truth", "target": 0.05, "fit": {"resolution": "auto"}}
    return {
        **{f"repeated: {name}": Kind(values.as_they_are, 20_000) for name, values in REPEATED.items()},
        "repeated: 30 % zeros, lognormal": Kind(dependent(lambda rng, n: zero_inflated(rng, n)[:, None]), 20_000),
        **{f"resolution: {name}": Kind(values.as_intervals, 20_000, **resolved) for name, values in REPEATED.items()},
        "resolution: three rounded columns": Kind(rounded_columns, 5000, ALL, **resolved),
    }


def few_kinds() -> dict[str, Kind]:
    bimodal, common = normals([(0.5, -2.0, 0.5), (0.5, 2.0, 0.5)]), {"reference": "best", "seeds": 3}
    return {
        **{
            f"few: {rows} x {columns}": Kind(
                plain(correlated(columns, 0.5)), rows, ALL if columns > 1 else ("univariate",), **common
            )
            for columns in (1, 2, 5, 13)
            for rows in (5, 10, 20, 50, 100)
        },
        **{f"few: {rows} x 1, two modes": Kind(plain(bimodal), rows, **common) for rows in (5, 10, 20, 50, 100)},
        "few: scikit-learn's wine": Kind(four_fifths(load_wine), 142, ALL, reference="best"),
        "few: scikit-learn's diabetes": Kind(four_fifths(load_diabetes), 353, ALL, reference="best"),
    }


def dependent_kinds() -> dict[str, Kind]:
    one_hot = dependent(lambda rng, n: np.eye(3)[rng.integers(0, 3, n)])
    return {
        "dependence: x, 2x + 1": Kind(line(2.0, 1.0), 2000, ALL),
        "dependence: x, -x": Kind(line(-1.0, 0.0), 2000, ALL),
        "dependence: one-hot of three": Kind(one_hot, 2000, ALL),
        "dependence: a, b, a + b, c": Kind(dependent(totals), 2000, ALL),
        "dependence: two units, rounded": Kind(dependent(in_two_units), 2000, ALL),
        "dependence: rank 5 in 16, rounded": Kind(dependent(of_rank_5), 4000, ALL),
    }


# What each flow of mixflow 0.1.0 missed of the toys with defaults, and 0.02 nats: care with awkward data is not to cost
# more than that on data that are not.
TOY_TARGETS = {
    "moons": dict(zip(ALL, (0.046, 0.040, 0.036, 0.058), strict=True)),
    "checkerboard": dict(zip(ALL, (0.133, 0.074, 0.081, 0.361), strict=True)),
    "eight Gaussians": dict(zip(ALL, (0.033, 0.051, 0.047, 0.195), strict=True)),
}


def clean_kinds() -> dict[str, Kind]:
    known = Truth(univariate_draw, lambda x: np.log(univariate.density(x[:, 0])))
    return {
        "going on: 30 rows, lr = 1e-6": Kind(
            dependent(waves), 4000, ALL, reference="before", target=0.02, measure=going_on
        ),
        "clean: one column": Kind(plain(known), 10_000, reference="truth", target=0.026),
        **{
            f"clean: {name}": Kind(plain(toy(name)), 10_000, ALL, reference="truth", target=target)
            for name, target in TOY_TARGETS.items()
        },
    }


def univariate_draw(rng: Generator, n: int) -> Array:
    return univariate.draw(n, seed=int(rng.integers(2**31)))


def table_kind(path: str) -> Kind:
    values = read_table(path).values
    several = values.shape[1] > 1
    return Kind(split_table(values), len(values), ALL if several else ("univariate",), timed=several)


KINDS = offset_kinds() | outlier_kinds() | tail_kinds() | repeated_kinds() | few_kinds() | dependent_kinds()
KINDS |= clean_kinds()


def kind_of(name: str, path: str | None) -> Kind:
    return KINDS[name] if path is None else table_kind(path)


# -- plain estimators ----------------------------------------------------------------------------------------


def one_gaussian(x: Array) -> Density:
    """The Gaussian of the rows' own mean and covariance."""
    mean, deviation = x.mean(0), x.std(0)
    correlation = np.corrcoef(x.T).reshape(x.shape[1], -1)
    # The last bits of a double are all that is left of a direction in which the columns depend exactly.
    if len(x) <= x.shape[1] or not np.linalg.eigvalsh(correlation)[0] > 1e-12:
        raise ValueError("the rows lie in fewer dimensions than there are columns")
    normal = stats.multivariate_normal(np.zeros(len(mean)), correlation + RIDGE * np.eye(len(mean)))
    return lambda rows: normal.logpdf((rows - mean) / deviation) - np.log(deviation).sum()


def kernel(x: Array) -> Density:
    if len(x) > KERNEL_ROWS:
        raise ValueError("too many rows")
    density = stats.gaussian_kde(x.T)
    return lambda rows: density.logpdf(rows.T)


def mixture(x: Array) -> Density:
    return GaussianMixture(COMPONENTS, random_state=0).fit(x).score_samples


ESTIMATORS: dict[str, Callable[[Array], Density]] = {"Gaussian": one_gaussian, "kernel": kernel, "mixture": mixture}


@dataclass(frozen=True)
class Known:
    """What a table's flows are compared with: mean log densities by name, and the mixture's seconds."""

    rows: int
    columns: int
    scores: dict[str, float]
    mixture_seconds: float | None = None
    slack: float = 0.0
    log_scale: float | None = None
    error: str = ""


def known(name: str, path: str | None, seed: int, quick: bool) -> Known:
    """The truth and the plain estimators on one table; those that cannot be fitted to it are left out."""
    torch.set_num_threads(1)
    kind = kind_of(name, path)
    data, scores, seconds = kind.data(seed, quick), {}, {}
    if data.truth is not None:
        scores["truth"] = data.truth
    for estimator, make in ESTIMATORS.items():
        start = time.perf_counter()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                density = make(data.train)
                seconds[estimator] = time.perf_counter() - start
                scores[estimator] = data.score(density)
            except (ValueError, np.linalg.LinAlgError):
                continue
    return Known(*data.train.shape, scores, seconds.get("mixture"), data.slack, data.log_scale)


# -- jobs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One fit of a flow: what was measured, or why nothing was."""

    measured: Measured | None
    error: str = ""
    warnings: tuple[str, ...] = ()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError after so many seconds, on systems that have an alarm."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"stopped after {seconds:g} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def run(name: str, path: str | None, flow: str, seed: int, quick: bool, limit: float) -> Outcome:
    """Fit one flow to one table and score it, in a process of its own; an error is an outcome, too."""
    torch.set_num_threads(1)
    kind = kind_of(name, path)
    data = kind.data(seed, quick)
    torch.manual_seed(seed)
    measured, error = None, ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with time_limit(limit):
                measured = kind.measure(kind, flow, data)
        except Exception as raised:  # whatever it is, it is what this row has to say
            error = f"{type(raised).__name__}: {raised}"
    return Outcome(measured, error, warnings=tuple(dict.fromkeys(str(warning.message) for warning in caught)))


# -- judgement -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judgement:
    """A figure, what is aimed at, and whether it is reached."""

    rule: str
    value: float
    target: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target


@dataclass(frozen=True)
class Row:
    """A kind and a flow, averaged over seeds. ``references`` are mean log densities by name."""

    kind: str
    flow: str
    rows: int
    columns: int
    log_prob: float | None
    references: dict[str, float]
    reference: str
    target: float
    seconds: float | None = None
    mixture_seconds: float | None = None
    timed: bool = False
    distinct: float | None = None
    standardised: float | None = None
    error: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def shortfall(self) -> float | None:
        if self.log_prob is None or self.reference not in self.references:
            return None
        return self.references[self.reference] - self.log_prob

    def judgements(self) -> list[Judgement]:
        """All that is asked of this row."""
        if self.log_prob is None:
            return [Judgement("ends with a model", 0.0, 1.0, at_least=True)]
        if self.shortfall is None:
            asked = [Judgement("is finite", float(math.isfinite(self.log_prob)), 1.0, at_least=True)]
        else:
            asked = [Judgement(f"below {self.reference}", self.shortfall, self.target)]
        return asked + self._for_every_kind(self.log_prob)

    def _for_every_kind(self, log_prob: float) -> list[Judgement]:
        asked, rival = [], self.references.get("mixture")
        if "Gaussian" in self.references and self.reference != "Gaussian":
            below = self.references["Gaussian"] - log_prob
            asked.append(Judgement("below Gaussian", below, PER_COLUMN * self.columns))
        if self.flow == "gaussian_mixture" and rival is not None:
            asked.append(Judgement("below mixture", rival - log_prob, BELOW_MIXTURE))
            if self.timed and self.seconds and self.mixture_seconds:
                asked.append(Judgement("times the mixture's seconds", self.seconds / self.mixture_seconds, 2.0))
        if self.distinct is not None:
            asked.append(Judgement("distinct samples", self.distinct, 0.99, at_least=True))
        return asked

    def cells(self) -> dict[str, str]:
        judgements, finite_only = self.judgements(), self.reference not in self.references
        return {
            "kind": self.kind,
            "size": f"{self.rows:,} x {self.columns}",
            "flow": self.flow,
            "log_prob": number(self.log_prob),
            "reference": self.reference if not finite_only else "-",
            "its log_prob": number(self.references.get(self.reference)),
            "shortfall": number(self.shortfall),
            "target": "finite" if finite_only else f"<= {self.target:.3g}",
            "Gaussian": number(self.references.get("Gaussian")),
            "kernel": number(self.references.get("kernel")),
            "mixture": number(self.references.get("mixture")),
            "seconds": "-" if self.seconds is None else f"{self.seconds:.1f}",
            "reached": "yes" if all(j.reached for j in judgements) else "no",
            "notes": self._notes(judgements),
        }

    def _notes(self, judgements: Sequence[Judgement]) -> str:
        """Beside the shortfall: rules that are missed, the standardised score, errors, and that there were warnings."""
        notes = [f"{j.rule} {number(j.value)}" for j in judgements[1:] if not j.reached]
        if self.standardised is not None:
            notes.append(f"standardised {self.standardised:.3f}")
        if self.error:
            notes.append(" ".join(self.error.split())[:100])
        return "; ".join(notes + ([f"{len(self.warnings)} warnings"] if self.warnings else []))

    def to_dict(self) -> dict[str, Any]:
        judgements = [asdict(judgement) | {"reached": judgement.reached} for judgement in self.judgements()]
        return asdict(self) | {"shortfall": self.shortfall, "judgements": judgements}


def markdown(about: dict[str, Any], rows: Sequence[Row]) -> str:
    """The rows as a table, with the machine that the seconds are of above it."""
    machine = f"{about['processor']}, {about['instruction set']}, one thread a fit; torch {about['torch']}"
    names = ("kind", "rows x columns", "flow", "log_prob", "reference", "shortfall", "allowed", "seconds", "reached")
    aligned = [":--" if name in ("kind", "flow", "reached") else "--:" for name in names]
    lines = [names, aligned, *(_markdown_cells(row) for row in rows)]
    return "\n".join([f"{machine}.", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def _markdown_cells(row: Row) -> list[str]:
    cells = row.cells()
    reference = "-" if row.shortfall is None else f"{cells['its log_prob']} ({row.reference})"
    # Errors, and the rules that are missed beside the shortfall.
    missed = [f"{j.rule} {number(j.value)}" for j in row.judgements()[1:] if not j.reached]
    notes = "; ".join([" ".join(row.error.split())[:100]] if row.error else missed)
    reached = cells["reached"] + (f" ({notes})" if notes else "")
    shown = [cells["kind"], cells["size"], cells["flow"], cells["log_prob"], reference, cells["shortfall"]]
    shown += [cells["target"].removeprefix("<= "), cells["seconds"], reached]
    return [cell.replace("|", "\\|") for cell in shown]


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 1e5 else f"{value:.2e}"


def mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each figure over seeds, of those that every seed has."""
    return {
        name: float(np.mean([each[name] for each in scores])) for name in scores[0] if all(name in s for s in scores)
    }


def chosen_reference(wanted: str, references: dict[str, float], columns: int) -> str:
    """The name of what a row is compared with; "best" is the better of the plain estimators that there are.

    Where there is neither, it is the truth less one nat a column, which is added to ``references``.
    """
    if wanted != "best":
        return wanted
    if there := [name for name in ("Gaussian", "kernel") if name in references]:
        return max(there, key=references.__getitem__)
    if "truth" in references:
        references["truth less 1"] = references["truth"] - columns
    return "truth less 1"


def row_of(name: str, kind: Kind, flow: str, tables: Sequence[Known], outcomes: Sequence[Outcome]) -> Row:
    """The outcomes of one flow over seeds, in one row; an error in any is the row's."""
    found = [outcome.measured for outcome in outcomes if outcome.measured is not None]
    complete, about = len(found) == len(outcomes), tables[0]
    references = mean_scores([table.scores for table in tables])
    if complete:
        references |= mean_scores([measured.own for measured in found])
    log_prob = float(np.mean([measured.log_prob for measured in found])) if complete else None
    target = kind.target[flow] if isinstance(kind.target, dict) else kind.target
    times = [table.mixture_seconds for table in tables if table.mixture_seconds is not None]
    shares = [measured.distinct for measured in found if measured.distinct is not None]
    standardised = None if log_prob is None or about.log_scale is None else log_prob + about.log_scale
    return Row(
        kind=name,
        flow=flow,
        rows=about.rows,
        columns=about.columns,
        log_prob=log_prob,
        reference=chosen_reference(kind.reference, references, about.columns),
        references=references,
        target=(PER_COLUMN * about.columns if target is None else target) + max(table.slack for table in tables),
        seconds=float(np.mean([measured.seconds for measured in found])) if found else None,
        mixture_seconds=float(np.mean(times)) if times else None,
        timed=kind.timed,
        distinct=min(shares, default=None),
        standardised=standardised,
        error=next((part.error for part in (*outcomes, *tables) if part.error), ""),
        warnings=tuple(dict.fromkeys(text for outcome in outcomes for text in outcome.warnings)),
    )


# -- the run -------------------------------------------------------------------------------------------------


WIDTHS = {"size": 11, "flow": 16, "reference": 12, "its log_prob": 12, "target": 9, "seconds": 7, "reached": 7}
LEFT = ("kind", "flow", "reference", "notes")


def text(cells: dict[str, str], kind_width: int) -> str:
    """A line of the table; widths are fixed, because rows are printed as they come."""
    widths = {"kind": kind_width, "notes": 0} | WIDTHS
    aligned = [
        cell.ljust(widths.get(name, 10)) if name in LEFT else cell.rjust(widths.get(name, 10))
        for name, cell in cells.items()
    ]
    return "  ".join(aligned).rstrip()


@dataclass(frozen=True)
class Plan:
    """A kind with its name, the path of its table if it has one, and the flows and seeds that are asked for."""

    name: str
    path: str | None
    kind: Kind
    flows: Sequence[str]
    seeds: range


def plans(arguments: argparse.Namespace) -> list[Plan]:
    named = {f"table {Path(path).stem}": path for path in arguments.tables}
    kinds = [(name, path, table_kind(path)) for name, path in named.items()]
    kinds += [(name, None, kind) for name, kind in KINDS.items()]
    wanted = arguments.flows.split(",") if arguments.flows else list(flows.RECIPES)
    every = [
        Plan(name, path, kind, [f for f in kind.flows if f in wanted], range(arguments.seeds or kind.seeds))
        for name, path, kind in kinds
        if arguments.only.lower() in name.lower()
    ]
    return [plan for plan in every if plan.flows]


def result_of(future: Future[T], failed: Callable[[str], T]) -> T:
    """What a job came to; the death of its process is an error like any other, and ends nothing."""
    try:
        return future.result()
    except Exception as raised:
        return failed(f"{type(raised).__name__}: {raised}")


def measure_all(chosen: Sequence[Plan], arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows in the order of the plans, each as soon as it and those before it are there."""
    quick, limit = arguments.quick, arguments.limit
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        pending = []
        for plan in chosen:
            tables = [pool.submit(known, plan.name, plan.path, seed, quick) for seed in plan.seeds]
            for flow in plan.flows:
                of_flow = [pool.submit(run, plan.name, plan.path, flow, seed, quick, limit) for seed in plan.seeds]
                pending.append((plan, flow, tables, of_flow))
        for plan, flow, tables, of_flow in pending:
            outcomes = [result_of(future, lambda error: Outcome(None, error)) for future in of_flow]
            references = [result_of(future, lambda error: Known(0, 0, {}, error=error)) for future in tables]
            yield row_of(plan.name, plan.kind, flow, references, outcomes)


def parser_of_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=".csv, .npy or .parquet files of numbers")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the kinds whose name contains TEXT")
    parser.add_argument("--flows", default="", metavar="NAME,...", help="only these flows")
    parser.add_argument("--seeds", type=int, default=0, metavar="S", help="tables to draw of each kind")
    parser.add_argument("--jobs", type=int, default=2, metavar="J", help="fits at a time (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of a fit (default: %(default)g)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows of large tables: to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    parser.add_argument("--table", type=Path, metavar="FILE", help="a file for the rows as a table in Markdown")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of_arguments()
    arguments = parser.parse_args(argv)
    chosen = plans(arguments)
    if not chosen:
        parser.error(f"no kind and flow match --only {arguments.only!r} and --flows {arguments.flows!r}")
    settings = Settings(0, 0, torch.float32, 1, torch.device("cpu"), False)
    about = {key: value for key, value in machine(settings).items() if key not in ("elements", "components")}
    print("\n".join(f"{key:<16} {value}" for key, value in about.items()), flush=True)

    rows: list[Row] = []
    width = max(len(plan.name) for plan in chosen)
    for row in measure_all(chosen, arguments):
        cells = row.cells()
        if not rows:
            heading = text({name: name for name in cells}, width)
            print(f"\n{heading}\n{'-' * len(heading)}")
        rows.append(row)
        print(text(cells, width), flush=True)
    judgements = [judgement for row in rows for judgement in row.judgements()]
    print(f"\n{sum(j.reached for j in judgements)} of {len(judgements)} reached, in {len(rows)} rows")
    print(f"{sum(bool(row.error) for row in rows)} errors")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with replace_file(arguments.out / "robust.json") as temporary:
        document = {"machine": about, "quick": arguments.quick, "rows": [row.to_dict() for row in rows]}
        temporary.write_text(json.dumps(document, indent=1) + "\n")
    print(f"wrote {arguments.out / 'robust.json'}")
    if arguments.table is not None:
        with replace_file(arguments.table) as temporary:
            temporary.write_text(markdown(about, rows))
        print(f"wrote {arguments.table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
