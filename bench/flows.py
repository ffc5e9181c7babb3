"""Flows with defaults against zuko's, on tables of measurements; and against truths that are known.

python bench/flows.py [TABLE.csv ...] [--seconds S] [--only TEXT] [--jobs J] [--out DIR]

Each table is split 80/10/10 by numpy's default_rng(0).permutation and standardised by its training part, so that
figures compare. mixflow's flows are built and fitted without any settings: ``fit`` gets the training and the validation
part, and ends by itself. zuko's flows are trained for ``--seconds`` of wall time, with the weights that score best on
the validation part kept. Both are scored on the test part. One judgement is that no flow of mixflow takes longer than
``--seconds``.

Every run has one thread. Runs go on side by side, one of zuko's beside one of mixflow's, so that a machine that
drifts does so for both.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

import mixflow
from mixflow import flows
from mixflow.bench.inputs import Settings
from mixflow.bench.report import machine, table
from mixflow.files.atomic import replace_file
from mixflow.files.tables import read_table

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import toys
import univariate

Parts = tuple[Tensor, Tensor, Tensor]

OURS = ("gaussianization", "coupling", "autoregressive")
ZUKO: dict[str, dict[str, Any]] = {
    "GF": {"transforms": 6},
    "NSF": {"transforms": 5, "hidden_features": (64, 64)},
    "MAF": {"transforms": 5, "hidden_features": (64, 64)},
}


@dataclass(frozen=True)
class Outcome:
    """One flow on one table.

    Attributes:
        validation, test: the mean log_prob of the weights that were kept.
        curve: the best validation log_prob so far over the seconds since the start.
    """

    table: str
    flow: str
    parameters: int
    seconds: float
    epochs: int
    validation: float
    test: float
    curve: list[tuple[float, float]]

    @property
    def ours(self) -> bool:
        return self.flow in OURS

    def cells(self) -> dict[str, str]:
        return {
            "case": self.table,
            "flow": self.flow if self.ours else f"zuko {self.flow}",
            "parameters": f"{self.parameters:,}",
            "seconds": f"{self.seconds:.1f}",
            "epochs": str(self.epochs),
            "validation": f"{self.validation:.4f}",
            "test log_prob": f"{self.test:.4f}",
        }


@dataclass(frozen=True)
class Judgement:
    """A figure, what is aimed at, and whether it is reached."""

    case: str
    value: float
    target: float
    at_least: bool

    @property
    def reached(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target

    def cells(self) -> dict[str, str]:
        return {
            "case": self.case,
            "value": f"{self.value:.4g}",
            "target": f"{'>=' if self.at_least else '<='} {self.target:.4g}",
            "reached": "yes" if self.reached else "no",
        }


# -- tables --------------------------------------------------------------------------------------------------


def split(values: NDArray[np.float64]) -> Parts:
    order, (most, all_but) = np.random.default_rng(0).permutation(len(values)), (np.array([8, 9]) * len(values)) // 10
    train, validation, test = np.split(values[order], [most, all_but])
    loc, scale = train.mean(0), train.std(0)
    scaled = [torch.from_numpy((part - loc) / scale).float() for part in (train, validation, test)]
    return scaled[0], scaled[1], scaled[2]


def run(name: str, path: str, flow: str, seconds: float, epochs: int | None) -> Outcome:
    """Fit one flow to one table, in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = split(read_table(path).values)
    start = time.perf_counter()
    ours = flow in OURS
    model, curve = train_ours(flow, parts, start, epochs) if ours else train_zuko(flow, parts, start, seconds)
    spent = time.perf_counter() - start
    records = curve[:1]
    for point in curve:
        if point[1] > records[-1][1]:
            records.append(point)
    validation, test = (mean_log_prob(model, part) for part in parts[1:])
    # The first point of a curve is the score before any epoch.
    return Outcome(name, flow, count(model), spent, len(curve) - 1, validation, test, records)


def train_ours(
    kind: str, parts: Parts, start: float, epochs: int | None
) -> tuple[nn.Module, list[tuple[float, float]]]:
    """A fit with defaults: it sees the clock as little as a user's does."""
    train, validation, _ = parts
    flow = flows.RECIPES[kind](features=train.shape[1])
    history = mixflow.fit(flow, train, validation=validation, epochs=epochs, progress=False)
    began = time.perf_counter() - start - sum(history.seconds)
    at = began + np.cumsum([0.0, *history.seconds])
    scores = [max(history.starts.values()), *history.validation_log_prob]
    return flow, list(zip(at.tolist(), scores, strict=True))


def train_zuko(kind: str, parts: Parts, start: float, seconds: float) -> tuple[nn.Module, list[tuple[float, float]]]:
    """Adam with gradients clipped and the learning rate falling along a half cosine of the clock, from zuko's 1e-3."""
    import zuko

    train, validation, _ = parts
    flow = getattr(zuko.flows, kind)(train.shape[1], **ZUKO[kind])
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    best, best_score = copy.deepcopy(flow.state_dict()), mean_log_prob(flow, validation)
    curve = [(time.perf_counter() - start, best_score)]
    while (spent := time.perf_counter() - start) < seconds:
        for rows in torch.randperm(len(train)).split(256):
            for group in optimizer.param_groups:
                group["lr"] = 0.5e-3 * (1.0 + math.cos(math.pi * min(1.0, spent / seconds)))
            optimizer.zero_grad()
            loss = -flow().log_prob(train[rows]).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
            optimizer.step()
            if (spent := time.perf_counter() - start) >= seconds:
                break
        score = mean_log_prob(flow, validation)
        if not math.isfinite(score):  # NaN for good: what was best until then counts
            break
        if score > best_score:
            best, best_score = copy.deepcopy(flow.state_dict()), score
        curve.append((time.perf_counter() - start, score))
    flow.load_state_dict(best)
    return flow, curve


@torch.no_grad()
def mean_log_prob(model: nn.Module, x: Tensor) -> float:
    log_prob = model.log_prob(x) if isinstance(model, flows.Flow) else model().log_prob(x)
    return log_prob.double().mean().item()


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def judge(outcomes: Sequence[Outcome], seconds: float) -> list[Judgement]:
    judgements = []
    for name in dict.fromkeys(outcome.table for outcome in outcomes):
        of = {outcome.flow: outcome for outcome in outcomes if outcome.table == name}
        best = max(of[flow].test for flow in ZUKO)
        judgements.append(
            Judgement(f"{name}: best test log_prob, best of zuko as target", max(of[f].test for f in OURS), best, True)
        )
        own, theirs = of["gaussianization"], of["GF"]
        judgements.append(
            Judgement(f"{name}: gaussianization, test log_prob, zuko GF as target", own.test, theirs.test, True)
        )
        reached = [at for at, score in own.curve if score >= theirs.validation]
        when, _ = theirs.curve[-1]
        judgements.append(
            Judgement(
                f"{name}: times sooner at zuko GF's validation score", when / min(reached, default=math.inf), 10, True
            )
        )
        slowest = max(OURS, key=lambda flow: of[flow].seconds)
        judgements.append(
            Judgement(f"{name}: seconds of {slowest}, the slowest of mixflow", of[slowest].seconds, seconds, False)
        )
    return judgements


# -- truths that are known -----------------------------------------------------------------------------------


def known_densities(seconds: float) -> list[Judgement]:
    judgements = []
    for name, (draw, log_prob) in toys.TOYS.items():
        if log_prob is None:
            continue
        data, test = draw(100_000, seed=0), torch.from_numpy(draw(20_000, seed=1)).float()
        for kind in ("autoregressive", "coupling"):
            torch.manual_seed(0)
            flow = flows.RECIPES[kind](features=2)
            mixflow.fit(flow, data, progress=sys.stderr.isatty())
            missed = log_prob(test).double().mean().item() - mean_log_prob(flow, test)
            judgements.append(Judgement(f"{name}, {kind}: KL, nats", missed, 0.02, False))
    data, test = univariate.draw(100_000, seed=0), univariate.draw(1_000_000, seed=1)
    flow = flows.univariate().double()
    mixflow.fit(flow, data, progress=sys.stderr.isatty())
    missed = float(np.log(univariate.density(test)).mean()) - mean_log_prob(flow, torch.from_numpy(test))
    judgements.append(Judgement("one dimension: KL, nats", missed, 0.002, False))
    return judgements


def transport(seconds: float) -> list[Judgement]:
    """From one fitted density to another and back, judged by flows' own samples and by the round trip."""
    source, target = (flows.univariate(base=base).double() for base in ("normal", "logistic"))
    mixflow.fit(source, univariate.draw(100_000, seed=0), progress=sys.stderr.isatty())
    mixflow.fit(target, np.random.default_rng(0).gumbel(size=100_000), progress=sys.stderr.isatty())
    judgements = []
    for there, here, seed in ((source, target, 1), (target, source, 2)):
        carry = flows.transport(there, here)
        with torch.no_grad():
            x = there.sample(100_000, seed=seed)
            y, _ = carry(x)
            u = mixflow.transforms.Rebase(1, here.base, "uniform")(here.transform(y)[0])[0]
            back = (carry.inverse(y)[0] - x).abs().max().item()
        way = "there" if there is source else "and back"
        p = float(stats.kstest(u[:, 0].numpy(), "uniform").pvalue)
        judgements.append(Judgement(f"transport {way}: Kolmogorov-Smirnov p of 100,000 points", p, 0.01, True))
        judgements.append(Judgement(f"transport {way}: round trip, largest error", back, 1e-5, False))
    return judgements


def sampling(seconds: float) -> list[Judgement]:
    """A million samples in five dimensions, from flows of as many transforms that both were shown the same data."""
    import zuko

    n = 1_000_000 if seconds >= 60.0 else 10_000
    x = torch.randn(4096, 5).cumsum(-1).sinh()
    x = (x - x.mean(0)) / x.std(0)
    own = flows.gaussianization(5, layers=6, components=8, family="logistic")
    mixflow.fit(own, x, progress=False)
    other = zuko.flows.GF(5, transforms=6)
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-3)
    for rows in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        (-other().log_prob(x[rows]).mean()).backward()
        optimizer.step()

    def ours() -> Tensor:
        return torch.cat([own.sample(n // 10, seed=seed) for seed in range(10)])

    @torch.no_grad()
    def theirs() -> Tensor:
        return torch.cat([other().sample((n // 10,)) for _ in range(10)])

    def seconds_of(draw: Callable[[], Tensor]) -> float:
        start = time.perf_counter()
        if draw().shape != (n, 5):
            raise RuntimeError("sampling: wrong shape; nothing was timed")
        return time.perf_counter() - start

    ratios = [seconds_of(theirs) / seconds_of(ours) for _ in range(3)]
    return [Judgement(f"{n:,} samples, five dimensions: times faster than zuko GF", float(np.median(ratios)), 20, True)]


# -- the run -------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=".csv, .npy or .parquet files of numbers")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run (default: %(default)g)")
    parser.add_argument("--epochs", type=int, help="of mixflow's flows at most, for a quick trial (default: their own)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a core each (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the sections whose name contains TEXT")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args(argv)
    settings = Settings(0, 0, torch.float32, 1, torch.device("cpu"), False)
    about = {key: value for key, value in machine(settings).items() if key not in ("elements", "components")}
    print("\n".join(f"{key:<16} {value}" for key, value in about.items()), flush=True)

    judgements: list[Judgement] = []
    outcomes: list[Outcome] = []
    if arguments.only in "tables" and arguments.tables:
        named = {Path(path).stem: path for path in arguments.tables}
        order = [f for pair in zip(ZUKO, OURS, strict=True) for f in pair]
        with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
            pending = [
                pool.submit(run, *item, flow, arguments.seconds, arguments.epochs)
                for item in named.items()
                for flow in order
            ]
            for future in pending:
                outcomes.append(future.result())
                if len(outcomes) % len(order) == 0:
                    print(
                        f"\n{table([outcome.cells() for outcome in outcomes[-len(order) :]], left=('case', 'flow'))}",
                        flush=True,
                    )
        judgements += judge(outcomes, arguments.seconds)
    for section in (known_densities, transport, sampling):
        if arguments.only in section.__name__:
            judgements += section(arguments.seconds)
    print(f"\n{table([judgement.cells() for judgement in judgements])}\n")
    print(f"{sum(j.reached for j in judgements)} of {len(judgements)} reached.")
    document = {
        "machine": about,
        "seconds": arguments.seconds,
        "flows": [asdict(outcome) for outcome in outcomes],
        "judgements": [asdict(judgement) | {"reached": judgement.reached} for judgement in judgements],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    with replace_file(arguments.out / "flows.json") as temporary:
        temporary.write_text(json.dumps(document) + "\n")
    print(f"wrote {arguments.out / 'flows.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
