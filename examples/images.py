"""A small Flow++ on images: bits per dimension against plain densities, and samples beside the data.

    python examples/images.py --out output [--data digits|photograph] [--quick]

The digits are 1,797 images from scikit-learn, of 8 x 8 pixels with 17 levels. The photograph, a temple, comes with
scikit-learn, too. It is turned to grey and cut into patches of 8 x 8 pixels with 256 levels, and vertical bands of it
are held out.

The images are integers. All results are in bits per dimension, -log2 P / 64, where P is the probability of the 64
integers of a held-out image. For the histograms and the mixtures of single pixels, P is exact. The Gaussian and the
flow are densities, and their P is an integral without a closed form. The program prints two figures for them. The
*bound* is the mean of the log density with one draw of the noise in Dequantize; on average it is never better than the
truth. The *estimate* is the logarithm of a mean over many draws, and lies between the bound and the truth.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor

import mixflow
from mixflow import networks, plot
from mixflow.flows import Flow
from mixflow.transforms import Affine, Compose, Dequantize, ImageCoupling, MixtureCDF, Reshape, Whitening

SIDE = 8
SHAPE = (1, SIDE, SIDE)
PIXELS = SIDE * SIDE


@dataclass
class Images:
    """Images (N, 1, 8, 8) of integers from 0 to ``levels`` - 1, as float32.

    ``train`` is for the fit, ``validation`` for choosing its best epoch, and ``test`` for the results. Neighbouring
    pixels of the photograph are nearly equal, and couplings learn faster if a whitening comes before them. Digits have
    edges everywhere, and there couplings do better without a whitening.
    """

    levels: int
    whiten: bool
    train: Tensor
    validation: Tensor
    test: Tensor


def digits() -> Images:
    images = torch.from_numpy(load_digits().images).float().unsqueeze(1)
    images = images[np.random.default_rng(0).permutation(len(images))]
    return Images(17, False, images[:1297], images[1297:1497], images[1497:])


def photograph() -> Images:
    grey = torch.from_numpy(load_sample_image("china.jpg") @ np.array([0.299, 0.587, 0.114])).round().float()
    tiles = grey.unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE)  # (rows, columns, 8, 8): patches that do not overlap
    column = torch.arange(tiles.shape[1]) % 8
    held_out = {"validation": column == 3, "test": column == 7}
    bands = held_out | {"train": ~(held_out["validation"] | held_out["test"])}
    parts = {name: tiles[:, band].reshape(-1, *SHAPE) for name, band in bands.items()}
    # Without this, the picture would show patches of sky only: they come first.
    parts["test"] = parts["test"][np.random.default_rng(0).permutation(len(parts["test"]))]
    return Images(256, True, **parts)


def bits(log_prob: Tensor) -> float:
    return -log_prob.double().mean().item() / PIXELS / math.log(2.0)


# -- densities ----------------------------------------------------------------------------------------------------


def histograms(images: Images) -> float:
    """Bits of a histogram for each pixel, exact. A third is added to each count, so that no probability is zero."""
    counts = torch.nn.functional.one_hot(images.train.flatten(1).long(), images.levels).double().sum(0) + 1.0 / 3.0
    log_prob = (counts / counts.sum(-1, keepdim=True)).log()
    return bits(log_prob.gather(1, images.test.flatten(1).long().T).sum(0))


def mixtures(images: Images) -> float:
    """Bits of a mixture for each pixel, exact: an integer has the probability of the interval around it."""
    marginals = MixtureCDF(PIXELS, components=16)
    standardise = Affine(PIXELS, trainable=False)
    flow = Flow(Compose(Reshape(SHAPE, PIXELS), standardise, marginals))
    mixflow.fit(flow, images.train, validation=images.validation, resolution=1.0, progress=False)
    x = images.test.flatten(1)
    with torch.no_grad():
        lower, _ = standardise(torch.where(x > 0.0, x - 0.5, -torch.inf))
        upper, _ = standardise(torch.where(x < images.levels - 1.0, x + 0.5, torch.inf))
        parameters = marginals.logits, marginals.loc, marginals.log_scale
        return bits(mixflow.discretized_log_prob(lower, upper, *parameters).sum(-1))


def one_gaussian(images: Images) -> Flow:
    """A Gaussian with a full covariance. Rows left out decide by how much its correlations are reduced."""
    flow = Flow(Compose(Dequantize(SHAPE, images.levels), Reshape(SHAPE, PIXELS), Whitening(PIXELS)))
    flow.initialize(images.train)
    return flow


def flow_plus_plus(images: Images, couplings: int, network: networks.ConvNet) -> Flow:
    """Learned noise, a mixture for each pixel, then couplings whose networks look at every other pixel."""
    noise = Compose(
        *(
            ImageCoupling(SHAPE, 2, swap=swap, context=SHAPE, network=networks.ConvNet(channels=16, blocks=1))
            for swap in (False, True)
        )
    )
    vectors = [Affine(PIXELS, trainable=False), MixtureCDF(PIXELS, components=24)]
    vectors += [Whitening(PIXELS)] if images.whiten else []
    chain = [ImageCoupling(SHAPE, 4, swap=layer % 2 == 1, network=network) for layer in range(couplings)]
    dequantize = Dequantize(SHAPE, images.levels, noise=noise)
    return Flow(Compose(dequantize, Reshape(SHAPE, PIXELS), *vectors, Reshape(PIXELS, SHAPE), *chain))


@torch.no_grad()
def bound_and_estimate(flow: Flow, images: Tensor, draws: int) -> tuple[float, float]:
    torch.manual_seed(0)
    log_prob = torch.stack([flow.log_prob(images) for _ in range(draws)])
    return bits(log_prob[0]), bits(log_prob.logsumexp(0) - math.log(draws))


# -- the picture --------------------------------------------------------------------------------------------------


def sheet(images: Tensor, side: int = 10) -> Tensor:
    """The first ``side``^2 images in a square, one pixel apart."""
    padded = torch.nn.functional.pad(images[: side * side, 0], (0, 1, 0, 1), value=math.nan)
    return padded.reshape(side, side, SIDE + 1, SIDE + 1).transpose(1, 2).flatten(2).flatten(0, 1)


def draw(images: Images, flow: Flow, gaussian: Flow, path: Path) -> None:
    figure = Figure(figsize=(12.0, 4.4), layout="constrained")
    panels = {
        "held-out images": images.test,
        "samples of the flow": flow.sample(100, seed=0),
        "samples of one Gaussian": gaussian.sample(100, seed=0),
    }
    for ax, (title, shown) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        ax.imshow(sheet(shown), cmap="gray", vmin=0, vmax=images.levels - 1, interpolation="nearest")
        ax.set(title=title, xticks=[], yticks=[])
    plot.save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("output"))
    parser.add_argument("--data", choices=["digits", "photograph"], default="digits")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="a tiny network for two epochs, to check that it runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    images = {"digits": digits, "photograph": photograph}[arguments.data]()
    counts = ", ".join(f"{len(part):,} {name}" for name, part in vars(images).items() if isinstance(part, Tensor))
    print(f"{arguments.data}: {counts} images of 8 x 8 pixels with {images.levels} levels\n")

    couplings, network, epochs, draws = 6, networks.ConvNet(channels=48, dropout=0.2), arguments.epochs, 100
    if arguments.quick:
        couplings, network, epochs, draws = 2, networks.ConvNet(channels=4, blocks=1), 2, 3
    start = time.perf_counter()
    torch.manual_seed(0)
    flow = flow_plus_plus(images, couplings, network)
    history = mixflow.fit(
        flow,
        images.train,
        validation=images.validation,
        epochs=epochs,
        batch_size=len(images.train) // 20,
        lr=0.003,
        progress=not arguments.quick,
    )
    print(f"{history}\nfitted in {time.perf_counter() - start:.0f} s\n")

    torch.manual_seed(0)
    gaussian = one_gaussian(images)
    print(f"{'bits per dimension, held-out images':<44}{'exact':>10}{'bound':>10}{f'{draws} draws':>12}")
    for name, exact in (("a histogram for each pixel", histograms), ("a mixture for each pixel", mixtures)):
        print(f"{name:<44}{exact(images):>10.3f}")
    for name, density in (("one Gaussian", gaussian), (f"Flow++, {couplings} couplings", flow)):
        bound, estimate = bound_and_estimate(density, images.test, draws)
        print(f"{name:<44}{'':>10}{bound:>10.3f}{estimate:>12.3f}")

    name = f"images-{arguments.data}"
    mixflow.save(flow, arguments.out / f"{name}.safetensors")
    draw(images, flow, gaussian, arguments.out / f"{name}.png")
    print(f"\nwrote {arguments.out / name}.safetensors and {arguments.out / name}.png")


if __name__ == "__main__":
    main()
