"""Three toy problems in two dimensions: moons, a checkerboard, eight Gaussians, each with the fitted density below it.

    python examples/toys.py --out output

The true densities of the last two are known. For these the program prints the Kullback-Leibler (KL) divergence from the
truth to the fit, in nats: a mean over new draws, zero for a perfect fit.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.datasets import make_moons
from torch import Tensor

import mixflow
from mixflow import flows, plot

ANGLES = torch.arange(8) * (math.pi / 4.0)
CENTRES = 2.0 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
EIGHT = torch.distributions.MixtureSameFamily(
    torch.distributions.Categorical(torch.ones(8)),
    torch.distributions.Independent(torch.distributions.Normal(CENTRES, 0.2), 1),
)


def moons(n: int, seed: int) -> NDArray[np.float64]:
    return make_moons(n, noise=0.1, random_state=seed)[0]


def checkerboard(n: int, seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    column, row = generator.integers(4, size=n), 2 * generator.integers(2, size=n)
    return np.stack([column, row + column % 2], axis=1) + generator.random((n, 2)) - 2.0


def eight_gaussians(n: int, seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    return CENTRES.numpy()[generator.integers(8, size=n)] + 0.2 * generator.normal(size=(n, 2))


def checkerboard_log_prob(x: Tensor) -> Tensor:
    return torch.full((len(x),), -math.log(8.0))  # eight squares of side 1


TOYS = {
    "moons": (moons, None),
    "checkerboard": (checkerboard, checkerboard_log_prob),
    "eight Gaussians": (eight_gaussians, EIGHT.log_prob),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("output"))
    parser.add_argument("-n", type=int, default=100_000, help="number of draws to learn from")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    axes = figure.subplots(2, 3)
    for (name, (draw, log_prob)), (above, below) in zip(TOYS.items(), axes.T, strict=True):
        start = time.perf_counter()
        data, test = draw(arguments.n, seed=0), torch.from_numpy(draw(20_000, seed=1)).float()
        torch.manual_seed(0)
        flow = flows.autoregressive(2, layers=1, components=32, family="gaussian")
        mixflow.fit(flow, data, epochs=25, batch_size=1024, lr=0.02)
        with torch.no_grad():
            scores = flow.log_prob(test)
        known = "" if log_prob is None else f", KL to the truth {(log_prob(test) - scores).mean().item():.4f}"
        print(f"{name}: log_prob {scores.mean().item():.4f} nats{known}, {time.perf_counter() - start:.0f} s")

        (left, bottom), (right, top) = data.min(0) - 0.3, data.max(0) + 0.3
        across, up = torch.linspace(left, right, 300), torch.linspace(bottom, top, 300)
        with torch.no_grad():
            density = flow.log_prob(torch.cartesian_prod(across, up)).exp().reshape(300, 300).T
        box = (left, right, bottom, top)
        above.hist2d(*data.T, bins=150, range=(box[:2], box[2:]), density=True, cmap="magma")
        below.imshow(density, extent=box, origin="lower", aspect="auto", cmap="magma", vmax=density.quantile(0.995))
        above.set_title(name)
        for ax in (above, below):
            ax.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("data")
    axes[1, 0].set_ylabel("fitted density")
    plot.save_figure(figure, arguments.out / "toys.png")
    print(f"wrote {arguments.out / 'toys.png'}")


if __name__ == "__main__":
    main()
