"""Stress test of the inverse: counts evaluations and failures over random and adversarial mixtures.

    python bench/inverse.py [--random 10000000] [--adversarial 100000]

A result x is right if |z(x) - z| <= 16 eps max(1, |z|) + |dz/dx| ulp(x). Where F bends sharply within one spacing of
x (a component narrower than that, far from zero), no number need satisfy this with the slope at x itself; there x is
right if the root lies between its two neighbours, which the column "1 ulp" counts. Everything else is wrong, and so is
a result that took more than 40 evaluations. z(x) is taken from the op itself in float64; where x is float64, whose
forward errs by up to 4 eps itself, only 12 eps are allowed. Exit status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

import mixflow
from mixflow.op import inverse_diagnostics

Draw = Callable[..., Tensor]
Parameters = tuple[Tensor, Tensor, Tensor]
BATCH = 250_000


@dataclass
class Case:
    """How to draw parameters of shape (count, components), and how far out z goes, in base scales."""

    components: int
    draw: Callable[[Draw, int, int], Parameters]
    reach: float = 1.0
    mean_bound: float = math.inf


def ordinary(spread: float, mean: float = -1.0, width: float = 0.3) -> Callable[[Draw, int, int], Parameters]:
    return lambda normal, n, k: (normal(n, k), spread * normal(n, k), mean + width * normal(n, k))


def extreme(normal: Draw, n: int, k: int) -> Parameters:
    """Weights down to e^-60, locations over six decades on both sides, scales from 1e-6 to 1e6."""
    uniform = torch.special.ndtr(normal(n, k))
    loc = 10 ** (6 * uniform) * normal(n, k).sign()
    return 20 * normal(n, k), loc, 13.8 * (2 * torch.special.ndtr(normal(n, k)) - 1)


def gap(normal: Draw, n: int, k: int) -> Parameters:
    return normal(n, k), 1e6 * normal(n, k), torch.full((n, k), -13.8, dtype=torch.float64)


def spike(normal: Draw, n: int, k: int) -> Parameters:
    log_scale = torch.full((n, k), 3.0, dtype=torch.float64)
    log_scale[:, 1:] = -10
    loc = normal(n, k)
    loc[:, 0] = 0
    return normal(n, k), loc, log_scale


def equal(normal: Draw, n: int, k: int) -> Parameters:
    return torch.zeros(n, k).double(), normal(n, 1).expand(n, k), normal(n, 1).expand(n, k)


def tiny_weights(normal: Draw, n: int, k: int) -> Parameters:
    return 69 * torch.special.ndtr(normal(n, k)), 10 * normal(n, k), normal(n, k)


RANDOM = {
    "overlapping": Case(8, ordinary(1), mean_bound=4.5),
    "spread 10": Case(8, ordinary(10), mean_bound=8),
    "spread 1000, scales e^+-3": Case(8, ordinary(1000, 0, 3)),
    "extreme": Case(8, extreme, reach=10),
    "two components": Case(2, ordinary(5, 0, 2), reach=3),
}
ADVERSARIAL = {
    "gap between far components": Case(2, gap),
    "gaps between eight": Case(8, gap, reach=3),
    "spike in a bump": Case(2, spike),
    "seven spikes in a bump": Case(8, spike, reach=3),
    "equal components": Case(4, equal, reach=5),
    "one component": Case(1, ordinary(10, 0, 5), reach=30),
    "128 components": Case(128, ordinary(10)),
    "128 extreme components": Case(128, extreme, reach=10),
    "tiny weights": Case(8, tiny_weights, reach=8),
    "far tails": Case(8, ordinary(1), reach=300),
}


def base_values(normal: Draw, base: str, reach: float, n: int, dtype: torch.dtype) -> Tensor:
    z = reach * normal(n)
    if base == "uniform":  # down to the smallest normal numbers, and both end points
        z = torch.exp(torch.where(z < 0, 10 * z, -z.abs() * 1e-3)).to(dtype).double()
        z[:2] = torch.tensor([0.0, 1.0])
    return z


def judge(x: Tensor, z: Tensor, parameters: list[Tensor], family: str, base: str) -> tuple[Tensor, Tensor]:
    """Which results are right by the slope at x, and which at least by the neighbours of x."""
    eps = torch.finfo(x.dtype).eps
    doubles = [p.double() for p in parameters]

    def image(x: Tensor) -> tuple[Tensor, Tensor]:
        return mixflow.cdf_transform(x.double(), *doubles, family=family, base=base)

    back, ladj = image(x)
    spacing = (torch.nextafter(x.abs(), torch.full_like(x, math.inf)) - x.abs()).double()
    factor = 12 if x.dtype == torch.float64 else 16
    z = z.double()
    rounding = factor * eps * z.abs().clamp(min=1)
    by_slope = ((back - z).abs() <= rounding + ladj.exp() * spacing) | (z == back)
    below, above = (image(torch.nextafter(x, torch.full_like(x, end)))[0] for end in (-math.inf, math.inf))
    return by_slope, by_slope | ((below - rounding <= z) & (z <= above + rounding))


def run(title: str, cases: dict[str, Case], total: int) -> int:
    settings = [
        (family, base, dtype)
        for dtype in (torch.float32, torch.float64)
        for family in mixflow.FAMILIES
        for base in mixflow.BASES
    ]
    share = math.ceil(total / (len(cases) * len(settings)))
    header = (
        f"{title:<28}{'dtype':<9}{'elements':>10}{'mean':>7}{'99.9 %':>8}{'max':>5}{'1 ulp':>7}{'wrong':>7}{'> 40':>6}"
    )
    print(f"\n{header}\n{'-' * len(header)}")
    bad = counted = 0
    for name, case in cases.items():
        for dtype in (torch.float32, torch.float64):
            counts = torch.zeros(0)
            wrong = nearly = 0
            for number, (family, base, _) in enumerate(
                tqdm([s for s in settings if s[2] == dtype], desc=name, leave=False)
            ):
                generator = torch.Generator().manual_seed(number)

                def normal(*shape: int, generator: torch.Generator = generator) -> Tensor:
                    return torch.randn(shape, generator=generator, dtype=torch.float64)

                batch = max(1000, BATCH * 8 // max(case.components, 8))
                for start in range(0, share, batch):
                    n = min(batch, share - start)
                    parameters = [p.to(dtype) for p in case.draw(normal, n, case.components)]
                    z = base_values(normal, base, case.reach, n, dtype).to(dtype)
                    x, evaluations, _ = inverse_diagnostics(z, *parameters, family=family, base=base)
                    by_slope, right = judge(x, z, parameters, family, base)
                    nearly += int((right & ~by_slope).sum())
                    wrong += int((~right).sum())
                    counts = torch.cat([counts, evaluations.float()])
            slow = int((counts > 40).sum())
            mean = counts.mean().item()
            tail = counts.sort().values[int(0.999 * (len(counts) - 1))].item()
            print(
                f"{name:<28}{str(dtype)[6:]:<9}{len(counts):>10,}{mean:>7.2f}{tail:>8.0f}{counts.max().item():>5.0f}"
                f"{nearly:>7}{wrong:>7}{slow:>6}",
                flush=True,
            )
            bad += wrong + slow + (mean > case.mean_bound)
            counted += len(counts)
    print(f"{counted:,} elements, {bad} failures")
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=10_000_000, help="elements of random mixtures")
    parser.add_argument("--adversarial", type=int, default=1_000_000, help="elements of adversarial mixtures")
    arguments = parser.parse_args()
    bad = run("random", RANDOM, arguments.random) + run("adversarial", ADVERSARIAL, arguments.adversarial)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
