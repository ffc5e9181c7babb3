"""Microbenchmark of the ops against plain PyTorch: checks the results, then times both in one run.

    python bench/ops.py [--components 8] [--size 1048576] [--threads 2] [--json FILE]

Rates are in million elements per second; the last column is the ratio, which is what carries over between machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import mixflow
from baselines import Parameters, bisection_inverse, linear_forward, log_space_forward

BASE_OF = {"gaussian": "normal", "logistic": "logistic"}


@dataclass
class Row:
    work: str
    family: str
    parameters: str
    against: str
    mixflow_rate: float
    other_rate: float

    @property
    def ratio(self) -> float:
        return self.mixflow_rate / self.other_rate


def seconds(run: Callable[[], object], budget: float = 1.5) -> float:
    """Median time of one call, after a warm-up call, over at least three calls and about `budget` seconds."""
    run()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget and len(times) < 200):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def make_parameters(shape: tuple[int, ...], generator: torch.Generator) -> Parameters:
    """Overlapping components: loc ~ N(0, 1), scale ~ exp(N(-1, 0.3))."""
    logits, loc, log_scale = (torch.randn(shape, generator=generator) for _ in range(3))
    return logits, loc, -1 + 0.3 * log_scale


def check(name: str, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        error = ((mine - other).abs() / (1 + other.abs())).max().item()
        if not error <= tolerance:
            raise SystemExit(f"{name}: results differ by {error:.2e}, more than {tolerance:.0e}; nothing was timed")


def gradients(run: Callable[[Parameters], tuple[Tensor, Tensor]], parameters: Parameters) -> tuple[Tensor, ...]:
    leaves = tuple(p.detach().requires_grad_() for p in parameters)
    z, ladj = run(leaves)
    return torch.autograd.grad(z.sum() + ladj.sum(), leaves)


def measure(family: str, shared: bool, size: int, components: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    parameters = make_parameters((components,) if shared else (size, components), generator)
    x = torch.randn(size, generator=generator)
    base = BASE_OF[family]

    def ours(p: Parameters) -> tuple[Tensor, Tensor]:
        return mixflow.cdf_transform(x, *p, family=family, base=base)

    def careful(p: Parameters) -> tuple[Tensor, Tensor]:
        return log_space_forward(x, p, family)

    def careless(p: Parameters) -> tuple[Tensor, Tensor]:
        return linear_forward(x, p, family)

    def inverse(p: Parameters) -> tuple[Tensor, Tensor]:
        return mixflow.cdf_transform_inverse(z, *p, family=family, base=base)

    def bisection(p: Parameters) -> tuple[Tensor, Tensor]:
        return bisection_inverse(z, p, family)

    z, _ = ours(parameters)
    few = slice(0, min(size, 65536))  # the baselines of the inverse are slow: check and time them on a part
    part = parameters if shared else tuple(p[few] for p in parameters)
    doubles = tuple(p.double() for p in part)
    x_double, z_double = x[few].double(), z[few].double()
    kind = "shared" if shared else "per element"

    few_of = lambda tensors: tuple(t[few].double() for t in tensors)  # noqa: E731
    check(f"forward {family}", few_of(ours(parameters)), log_space_forward(x_double, doubles, family), 2e-5)
    # An inverse is right when it solves the equation: where the density is low, x itself may differ by more.
    root, inverse_ladj = few_of(inverse(parameters))
    back, ladj = log_space_forward(root, doubles, family)
    allowed = 2e-6 * (1 + z_double.abs()) + 2**-23 * root.abs() * ladj.exp()
    check(f"inverse {family}", ((back - z_double) / allowed,), (torch.zeros_like(z_double),), 1)
    check(f"ladj of inverse {family}", (inverse_ladj,), (-ladj,), 2e-5)
    share = 1 / size if shared else 1
    sums = [tuple(g * share for g in gradients(run, parameters)) for run in (ours, careful)]
    check(f"gradients {family}", sums[0], sums[1], 1e-3)

    rows = []

    def row(work: str, against: str, fast: Callable[[], object], slow: Callable[[], object], part: float = 1) -> None:
        rate, other = size / seconds(fast) / 1e6, size * part / seconds(slow) / 1e6
        rows.append(Row(work, family, kind, against, rate, other))

    with torch.no_grad():
        row("forward", "eager log-space", lambda: ours(parameters), lambda: careful(parameters))
        row("forward", "eager linear", lambda: ours(parameters), lambda: careless(parameters))
    row(
        "forward + backward",
        "eager log-space",
        lambda: gradients(ours, parameters),
        lambda: gradients(careful, parameters),
    )
    with torch.no_grad():
        z_part = z[few]
        row(
            "inverse",
            "40 eager bisections",
            lambda: inverse(parameters),
            lambda: bisection_inverse(z_part, part, family),
            part=len(z_part) / size,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--components", type=int, default=8)
    parser.add_argument("--size", type=int, default=2**20)
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    print(mixflow.show_config())
    print(f"\nfloat32, K = {arguments.components}, N = {arguments.size}, {arguments.threads} threads\n")
    header = (
        f"{'work':<20}{'family':<10}{'parameters':<13}{'against':<21}{'mixflow M/s':>12}{'other M/s':>11}{'ratio':>8}"
    )
    print(header)
    print("-" * len(header))
    rows = []
    for shared in (True, False):
        for family in mixflow.FAMILIES:
            for row in measure(family, shared, arguments.size, arguments.components):
                rows.append({**asdict(row), "ratio": row.ratio})
                print(
                    f"{row.work:<20}{row.family:<10}{row.parameters:<13}{row.against:<21}"
                    f"{row.mixflow_rate:>12.1f}{row.other_rate:>11.2f}{row.ratio:>7.0f}x",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps({"config": mixflow.show_config(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
