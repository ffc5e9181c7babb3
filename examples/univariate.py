"""One dimension: fit a density, draw samples by inverting its CDF, and follow the way x -> u -> z.

    python examples/univariate.py --out output

The true density is known. So the program can print the Kullback-Leibler (KL) divergence from the truth to the fit,
which it integrates on a grid; a perfect fit has 0 nats. It also tests whether u is uniform, z normal, and the samples
distributed like the data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

import mixflow
from mixflow import flows, plot, transforms

# A narrow peak on the flank of a broad one, and a skewed bump far from both.
PARTS = [(0.45, stats.norm(-2.0, 1.0)), (0.15, stats.norm(-1.0, 0.1)), (0.4, stats.gamma(3.0, loc=2.0, scale=0.7))]


def draw(n: int, seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    which = generator.choice(len(PARTS), n, p=[weight for weight, _ in PARTS])
    drawn = np.stack([part.rvs(n, random_state=generator) for _, part in PARTS])
    return drawn[which, np.arange(n)]


def density(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return sum(weight * part.pdf(x) for weight, part in PARTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("output"))
    parser.add_argument("-n", type=int, default=100_000, help="number of draws to learn from")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    data = draw(arguments.n, seed=0)
    flow = flows.univariate(components=16).double()
    history = mixflow.fit(flow, data, epochs=40, batch_size=4096)
    print(history)

    grid = np.linspace(-10.0, 25.0, 200_001)
    p = density(grid)
    with torch.no_grad():
        log_q = flow.log_prob(torch.from_numpy(grid)).numpy()
    inside = p > 0.0
    terms = np.where(inside, p * (np.log(p, where=inside, out=np.zeros_like(p)) - log_q), 0.0)
    print(f"KL(truth || flow) = {np.trapezoid(terms, grid):.5f} nats")

    # Whatever the density of x, u = F(x) is uniform, and z = G^-1(u) is normal. The way back turns uniform numbers into
    # samples.
    to_uniform = transforms.Compose(flow.data_to_base, transforms.Rebase(1, "normal", "uniform"))
    x = torch.from_numpy(draw(20_000, seed=1)).unsqueeze(-1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        (u, _), (z, _) = to_uniform(x), flow.transform(x)
        drawn, _ = to_uniform.inverse(torch.rand(20_000, 1, dtype=torch.float64, generator=generator))
    for name, result in (("u uniform", stats.kstest(u[:, 0], "uniform")), ("z normal", stats.kstest(z[:, 0], "norm"))):
        print(f"Kolmogorov-Smirnov, {name}: p = {result.pvalue:.3f}")
    result = stats.ks_2samp(drawn[:, 0], x[:, 0])
    print(f"Kolmogorov-Smirnov, F^-1(uniform) against x: p = {result.pvalue:.3f}")

    figure = Figure(figsize=(13.0, 3.5), layout="constrained")
    axes = figure.subplots(1, 4)
    bins = np.linspace(-6.0, 9.0, 150)
    axes[0].hist(x[:, 0], bins=bins, density=True, color="0.8", label="x")
    axes[0].plot(grid, np.exp(log_q), label="flow")
    axes[0].plot(grid, p, "k:", label="truth")
    axes[0].set(title="x", xlim=(-6.0, 9.0), ylabel="density")
    axes[1].hist(u[:, 0], bins=50, density=True, color="0.8")
    axes[1].axhline(1.0, color="k", linestyle=":", label="uniform")
    axes[1].set(title="u = F(x)", ylim=(0.0, 1.5))
    axes[2].hist(z[:, 0], bins=80, density=True, color="0.8")
    axes[2].plot(bins, stats.norm.pdf(bins), "k:", label="normal")
    axes[2].set(title="z = G$^{-1}$(u)", xlim=(-4.5, 4.5))
    axes[3].hist(drawn[:, 0], bins=bins, density=True, color="tab:blue", alpha=0.5, label="F$^{-1}$(uniform)")
    axes[3].plot(grid, p, "k:", label="truth")
    axes[3].set(title="samples", xlim=(-6.0, 9.0))
    for ax in axes:
        ax.legend()
    plot.save_figure(figure, arguments.out / "univariate.png")
    print(f"wrote {arguments.out / 'univariate.png'}")


if __name__ == "__main__":
    main()
