"""The options of ``mixflow fit``."""

from __future__ import annotations

import argparse

import mixflow

from ..fitting.split import HELD_OUT
from ..flows import RECIPES
from .fit_flow import BEST, BEST_OF_FEW, FEW
from .reading import add_table

__all__ = ["add_options"]


def add_options(command: argparse.ArgumentParser) -> None:
    """Give ``command`` the options of ``mixflow fit``. Recipes and :func:`mixflow.fit` decide on those left out."""
    _add_data(command)
    _add_flow(command.add_argument_group("flow"))
    _add_training(command.add_argument_group("training"))
    group = command.add_argument_group("output")
    group.add_argument("--out", required=True, metavar="MODEL", help="the model file to write (.safetensors)")
    group.add_argument("--quiet", action="store_true", help="no progress bar and no summary")


def _add_data(command: argparse.ArgumentParser) -> None:
    group = add_table(command)
    group.add_argument(
        "--column",
        action="append",
        metavar="NAME",
        help="a column to fit; may be repeated (default: all that are neither context nor weight)",
    )
    group.add_argument(
        "--context",
        action="append",
        metavar="NAME",
        help="a column that the density of the others depends on; may be repeated (default: none)",
    )
    group.add_argument(
        "--weight", metavar="NAME", help="a column of weights: a row of weight 2 counts as two rows (default: none)"
    )
    group.add_argument(
        "--support",
        action="append",
        metavar="NAME=S",
        help="where values of column NAME lie: positive, or LOW:HIGH with an end left out for none; may be repeated "
        "(default: all numbers)",
    )
    group.add_argument(
        "--resolution",
        metavar="W",
        help="the step that values were rounded to: a number, or auto to find it in the data (default: not rounded)",
    )


def _add_flow(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--flow",
        choices=RECIPES,
        help=f"kind of flow (default: univariate for one column, {BEST_OF_FEW} for fewer than {FEW} rows without a "
        f"context, otherwise {BEST})",
    )
    group.add_argument("--init", metavar="MODEL", help="go on from this model: its flow, weights and columns")
    group.add_argument(
        "--family", choices=mixflow.FAMILIES, help="distribution of the components (default: the flow's)"
    )
    group.add_argument(
        "--base", choices=mixflow.BASES, help="distribution that the data are mapped to (default: normal)"
    )
    group.add_argument("--components", type=int, metavar="K", help="number of mixture components (default: the flow's)")
    group.add_argument(
        "--marginal-components",
        type=int,
        metavar="K",
        help="number of components of each column's own mixture (default: as many as the rows support)",
    )
    group.add_argument("--layers", type=int, metavar="L", help="number of layers (default: the flow's)")
    group.add_argument(
        "--hidden", type=int, nargs="+", metavar="W", help="widths of a network's hidden layers (default: 64 64)"
    )
    group.add_argument(
        "--dtype", choices=("float32", "float64"), help="precision (default: float32, with --init the model's)"
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--epochs", type=int, metavar="E", help="passes over the rows at most (default: by their number)"
    )
    group.add_argument("--batch-size", type=int, metavar="B", help="rows per step (default: by their number)")
    group.add_argument("--lr", type=float, help="the highest learning rate (default: the flow's)")
    group.add_argument("--weight-decay", type=float, metavar="W", help="decoupled weight decay (default: the flow's)")
    group.add_argument(
        "--max-grad-norm", type=float, metavar="G", help="norm that gradients are clipped to (default: 1)"
    )
    group.add_argument(
        "--validation", type=float, metavar="FRACTION", help=f"part of the rows to hold out (default: {HELD_OUT})"
    )
    group.add_argument(
        "--patience", type=int, metavar="E", help="epochs without improvement before stopping (default: all)"
    )
    group.add_argument(
        "--seed", type=int, help="of the held-out rows, the minibatches and the networks' weights (default: 0)"
    )
    group.add_argument("--device", help="where to train: cpu, cuda, cuda:1, ... (default: cpu)")
    group.add_argument("--checkpoint", metavar="FILE", help="keep all that is needed to go on after a crash here")
    group.add_argument("--resume", action="store_true", help="go on from the checkpoint if there is one")
