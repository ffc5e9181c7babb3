"""The main job on real data: fit univariate flows to a multi-modal column, and compare with plain PyTorch.

    make demo

The column is the brightness of the 273,280 pixels of a photograph that comes with scikit-learn: a temple in front of a
bright sky. The colours of a pixel are whole numbers, so uniform noise is added to them, as is usual for models of
images. Each flow is fitted twice, with the same data, steps and settings: once with mixflow's op, and once with the
log-space formula in plain PyTorch. The program writes the column, the best model of each family, and a picture of each
to --out.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image
from torch import Tensor

import mixflow
from mixflow import flows, plot, transforms
from mixflow.bench.baselines import BASE_OF, log_space_forward
from mixflow.files import tables

COMPONENTS = (4, 8, 16)
FIT = {"epochs": 25, "batch_size": 16384, "lr": 0.03, "patience": 25, "seed": 0}


class PlainMixtureCDF(transforms.MixtureCDF):
    """The same transform in plain PyTorch, as one writes it without mixflow."""

    def _forward(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z, ladj = log_space_forward(x, self._parameters_for(context), self.family)
        return z, ladj.sum(-1)


def brightness() -> NDArray[np.float64]:
    pixels = load_sample_image("china.jpg").astype(np.float64)
    noise = np.random.default_rng(0).random(pixels.shape)
    return ((pixels + noise) @ np.array([0.299, 0.587, 0.114])).reshape(-1, 1)


def timed_fit(flow: flows.Flow, data: NDArray[np.float64]) -> tuple[mixflow.History, float]:
    start = time.perf_counter()
    history = mixflow.fit(flow, data, **FIT)
    return history, time.perf_counter() - start


def mean_log_prob(flow: flows.Flow, data: NDArray[np.float64]) -> float:
    with torch.no_grad():
        return flow.log_prob(torch.from_numpy(data).float()).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("output"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    data = np.random.default_rng(0).permutation(brightness())
    train, test = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
    tables.write_table(out / "brightness.csv", ["brightness"], train)
    print(f"brightness: {len(train):,} rows to fit, {len(test):,} to test; {torch.get_num_threads()} threads\n")

    mixflow.fit(flows.univariate(2), train[:1000], epochs=2, progress=False)  # a warm-up: torch's first steps are slow

    rows = []
    for family in mixflow.FAMILIES:
        best = None
        for components in COMPONENTS:
            base = BASE_OF[family]
            flow = flows.univariate(components, family, base)
            flow.notes["columns"] = ["brightness"]
            history, seconds = timed_fit(flow, train)
            flow.notes["history"] = history.to_dict()
            standardise = transforms.Affine(1, trainable=False)
            plain = flows.Flow(transforms.Compose(standardise, PlainMixtureCDF(1, components, family, base)), base)
            _, plain_seconds = timed_fit(plain, train)
            scores = [mean_log_prob(f, part) for f, part in ((flow, train), (flow, test), (plain, test))]
            rows.append((family, components, *scores, seconds, plain_seconds))
            if best is None or scores[1] > best[0]:
                best = (scores[1], flow, history)
        _, flow, history = best
        mixflow.save(flow, out / f"{family}.safetensors")
        plot.save_figure(plot.summary(flow, test, history), out / f"{family}.png")

    print("\nlog_prob in nats; the last column is plain PyTorch's time over mixflow's for the same steps\n")
    columns = (
        "family",
        "K",
        "train log_prob",
        "test log_prob",
        "plain test",
        "seconds",
        "plain seconds",
        "ratio",
    )
    print("{:<10}{:>4}{:>16}{:>15}{:>12}{:>10}{:>15}{:>8}".format(*columns))
    for family, components, train_score, test_score, plain_score, seconds, plain_seconds in rows:
        print(
            f"{family:<10}{components:>4}{train_score:>16.4f}{test_score:>15.4f}{plain_score:>12.4f}"
            f"{seconds:>10.2f}{plain_seconds:>15.2f}{plain_seconds / seconds:>7.1f}x"
        )
    print("\nwrote")
    for path in sorted(out.iterdir()):
        print(f"  {path}")


if __name__ == "__main__":
    main()
