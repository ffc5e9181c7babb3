"""A table of measurements: fit a density to it, list the least likely rows, draw a picture.

    python examples/table.py [TABLE.csv] --out output

Without a TABLE, the program takes some columns of the breast cancer data in scikit-learn (569 tumours). Each half of
the table is scored by a flow that was fitted to the other half. Otherwise an unusual row could seem likely because the
flow has learned it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

import mixflow
from mixflow import flows, plot
from mixflow.files.tables import read_table

COLUMNS = ["mean radius", "mean texture", "mean smoothness", "mean compactness", "mean symmetry"]


def built_in() -> tuple[list[str], NDArray[np.float64]]:
    data = load_breast_cancer()
    chosen = [list(data.feature_names).index(name) for name in COLUMNS]
    return [name.removeprefix("mean ") for name in COLUMNS], data.data[:, chosen]


def fitted(columns: list[str], values: NDArray[np.float64], layers: int) -> tuple[flows.Flow, mixflow.History]:
    flow = flows.gaussianization(len(columns), layers, components=4)
    flow.notes["columns"] = columns
    return flow, mixflow.fit(flow, values, validation=0.2, epochs=100, lr=0.005, progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", metavar="TABLE", help="a .csv, .npy or .parquet file of numbers")
    parser.add_argument("--out", type=Path, default=Path("output"))
    parser.add_argument("--layers", type=int, default=3)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    columns, values = built_in()
    if arguments.table:
        table = read_table(arguments.table)
        columns, values = table.columns, table.values

    order = np.random.default_rng(0).permutation(len(values))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    log_prob = np.empty(len(order))
    for own, other in (halves, halves[::-1]):
        flow, history = fitted(columns, values[other], arguments.layers)
        with torch.no_grad():
            log_prob[own] = flow.log_prob(torch.from_numpy(values[own]).float()).numpy()
        print(f"fitted to {len(other)} rows: {history}")
    print(f"mean log_prob of rows that the flow has not seen: {log_prob.mean():.4f} nats\n")

    print("the ten least likely rows, with each value's distance from the mean in standard deviations")
    distance = (values - values.mean(0)) / values.std(0)
    width = max(18, *map(len, columns)) + 2
    print(f"{'row':>6}{'log_prob':>12}" + "".join(f"{name:>{width}}" for name in columns))
    for row in np.argsort(log_prob)[:10]:
        cells = (f"{v:.4g} ({d:+.1f})" for v, d in zip(values[row], distance[row], strict=True))
        print(f"{row:>6}{log_prob[row]:>12.2f}" + "".join(f"{cell:>{width}}" for cell in cells))

    flow, history = fitted(columns, values, arguments.layers)
    mixflow.save(flow, arguments.out / "table.safetensors")
    plot.save_figure(plot.summary(flow, values, history), arguments.out / "table.png")
    print(f"\nwrote {arguments.out / 'table.safetensors'} and {arguments.out / 'table.png'}")


if __name__ == "__main__":
    main()
