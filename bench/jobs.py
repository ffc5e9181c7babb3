"""A job as users of other packages write it: two moons, by a training loop of their own, with each package's flow.

python bench/jobs.py [--steps N] [--rounds R] [--only TEXT] [--out DIR]

Every flow gets the same rows, batches, optimizer and number of steps. Before anything is timed, each is trained
for a few steps and its density is integrated over the plane: one that is not 1 stops the run. They then take
turns, round by round, from new weights each time. One thread; seconds are processor time, so that other work on the
machine counts little. A ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mixflow import flows
from mixflow.bench.cases import Unavailable
from mixflow.bench.inputs import Settings
from mixflow.bench.report import machine, table
from mixflow.files.atomic import replace_file

sys.path.append(str(Path(__file__).parent.parent / "examples"))
import toys
from training import LogProb, check_density, training_step, zuko_nsf

BATCH, WARM_UP, LEAST = 256, 20, -1.33


# -- the flows: each a module and its log density ---------------------------------------------------------


def mixflow_coupling() -> tuple[nn.Module, LogProb]:
    flow = flows.coupling(2, layers=4)
    return flow, flow.log_prob


def mixflow_autoregressive() -> tuple[nn.Module, LogProb]:
    flow = flows.autoregressive(2, layers=3, components=8)
    return flow, flow.log_prob


def nflows_nsf() -> tuple[nn.Module, LogProb]:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.nn.nets import ResidualNet
    from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform

    parts = [
        PiecewiseRationalQuadraticCouplingTransform(
            mask=[layer % 2, 1 - layer % 2],
            transform_net_create_fn=lambda inputs, outputs: ResidualNet(inputs, outputs, hidden_features=64),
            num_bins=8,
            tails="linear",
            tail_bound=4.0,
        )
        for layer in range(4)
    ]
    flow = Flow(CompositeTransform(parts), StandardNormal([2]))
    return flow, flow.log_prob


FLOWS: dict[str, Callable[[], tuple[nn.Module, LogProb]]] = {
    "mixflow coupling, 4": mixflow_coupling,
    "mixflow autoregressive, 3": mixflow_autoregressive,
    "zuko NSF, 3": lambda: zuko_nsf(2),
    "nflows spline couplings, 4": nflows_nsf,
}


# -- the job ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """One flow over all rounds: ``seconds`` and ``test`` have one number for each."""

    flow: str
    parameters: int
    seconds: list[float]
    test: list[float]
    ratio: float

    def cells(self) -> dict[str, str]:
        return {
            "flow": self.flow,
            "parameters": f"{self.parameters:,}",
            "seconds": f"{min(self.seconds):.2f}",
            "times mixflow coupling": f"{self.ratio:.2f}",
            "worst test log_prob": f"{min(self.test):.4f}",
            f"at least {LEAST}": "yes" if min(self.test) >= LEAST else "no",
        }


def moons(n: int, seed: int) -> Tensor:
    return torch.from_numpy(toys.moons(n, seed)).float()


def train(flow: nn.Module, log_prob: LogProb, rows: Tensor, steps: int, seed: int) -> float:
    """The loop, and the processor time that it took."""
    generator = torch.Generator().manual_seed(seed)
    batches = [rows[torch.randint(len(rows), (BATCH,), generator=generator)] for _ in range(steps)]
    step = training_step(log_prob, torch.optim.Adam(flow.parameters(), lr=1e-3))
    start = time.process_time()
    for batch in batches:
        step(batch)
    return time.process_time() - start


def check(name: str, rows: Tensor) -> None:
    """Stop unless the flow is a density after some steps: what is not one can score anything."""
    torch.manual_seed(0)
    flow, log_prob = FLOWS[name]()
    train(flow, log_prob, rows, WARM_UP, 0)
    check_density(name, log_prob, rows)


def missing(name: str) -> str | None:
    """Why a flow cannot run; None if it can."""
    try:
        FLOWS[name]()
    except Unavailable as reason:
        return str(reason)
    except ImportError as error:
        return f"{error.name} is not installed"
    return None


def run(names: Sequence[str], steps: int, rounds: int) -> list[Outcome]:
    rows, test = moons(10_000, 0), moons(10_000, 1)
    for name in names:
        check(name, rows)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    scores: dict[str, list[float]] = {name: [] for name in names}
    parameters = {}
    for seed in range(rounds):
        for name in names:
            torch.manual_seed(seed)
            flow, log_prob = FLOWS[name]()
            seconds[name].append(train(flow, log_prob, rows, steps, seed))
            with torch.no_grad():
                scores[name].append(log_prob(test).double().mean().item())
            parameters[name] = sum(parameter.numel() for parameter in flow.parameters())
    own = np.array(seconds[names[0]])
    return [
        Outcome(name, parameters[name], seconds[name], scores[name], float(np.median(np.array(seconds[name]) / own)))
        for name in names
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="of each training (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="trainings of each flow (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="besides the first, those whose name contains TEXT")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    about = machine(Settings(BATCH, 8, torch.float32, 1, torch.device("cpu"), False))
    print("\n".join(f"{key:<16} {value}" for key, value in about.items()), flush=True)

    first, *others = FLOWS
    reasons = {name: missing(name) for name in [first, *(name for name in others if arguments.only in name)]}
    outcomes = run([name for name, reason in reasons.items() if reason is None], arguments.steps, arguments.rounds)
    print(f"\n{table([outcome.cells() for outcome in outcomes], left=('flow',))}")
    print("".join(f"  {name}: {reason}\n" for name, reason in reasons.items() if reason is not None), end="")
    document = {"machine": about, "steps": arguments.steps, "two moons": [asdict(outcome) for outcome in outcomes]}
    arguments.out.mkdir(parents=True, exist_ok=True)
    with replace_file(arguments.out / "jobs.json") as temporary:
        temporary.write_text(json.dumps(document) + "\n")
    print(f"wrote {arguments.out / 'jobs.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
