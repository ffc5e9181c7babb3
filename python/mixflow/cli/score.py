"""``mixflow score``: log_prob of the rows of a table."""

from __future__ import annotations

import argparse
import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..files.atomic import check_writable
from ..files.model_file import load
from ..files.tables import check_extension, count_rows, table_writer
from ..flows import Flow
from .passes import array_of, in_parallel, progress_bar
from .reading import TABLE, add_table, reading_of
from .source import Part, Source
from .sums import Sum

__all__ = ["DETAILS", "EXAMPLE", "HELP", "USAGE", "add_options", "run"]

USAGE = "mixflow score MODEL DATA [options]"
HELP = "log_prob of the rows of a table under a model, in nats"
DETAILS = "The last line is their mean."
EXAMPLE = "mixflow score weather.safetensors new.csv --out scores.csv"


def add_options(command: argparse.ArgumentParser) -> None:
    """Give ``command`` the options of :func:`run`."""
    group = add_table(command, [("model", "MODEL", "a model file")])
    group.add_argument(
        "--weight", metavar="NAME", help="a column of weights for the mean (default: all rows count alike)"
    )
    group = command.add_argument_group("output")
    group.add_argument("--out", metavar="FILE", help=f"write each row's log_prob to {TABLE}")


def run(arguments: argparse.Namespace) -> int:
    """Score all rows, chunk by chunk, write the scores to ``--out`` if it is given, and print the mean; returns 0."""
    if arguments.out:
        check_extension(arguments.out)
        check_writable(arguments.out)
    flow = load(arguments.model)
    source = Source(arguments.data, flow, reading_of(arguments, in_place=True), arguments.weight)
    scores = _Scores(source.names, arguments.weight)
    writer = table_writer(arguments.out, ["log_prob"]) if arguments.out else nullcontext()
    with progress_bar(count_rows(arguments.data)) as bar, writer as write:
        for part, log_prob in in_parallel(flow, partial(_scored, flow), source):
            scores.add(log_prob, part)
            if write:
                write(log_prob[:, None])
            bar.update(len(log_prob))
        scores.check(arguments.data)
    source.finish(arguments.out)
    if arguments.out:
        print(f"saved {scores.rows} values to {arguments.out}")
    print(scores.told())
    return 0


def _scored(flow: Flow, part: Part) -> tuple[Part, NDArray[Any]]:
    """A part and the log_prob (n,) of its rows, which is NaN for a row that lacks a value."""
    with torch.no_grad():
        log_prob = array_of(flow.log_prob(part.x, part.context))
    log_prob[part.missing] = math.nan
    return part, log_prob


@dataclass
class _Odd:
    """Odd rows of one kind: their number, and the first of them."""

    count: int = 0
    first: int = 0
    values: NDArray[Any] | None = None

    def add(self, which: NDArray[np.bool_], before: int, values: NDArray[Any]) -> None:
        found = np.flatnonzero(which)
        if len(found) and not self.count:
            self.first, self.values = before + int(found[0]) + 1, values[found[0]]
        self.count += len(found)

    def described(self, names: list[str], rows: int) -> str:
        assert self.values is not None
        shown = ", ".join(f"{name}={value:g}" for name, value in list(zip(names, self.values, strict=True))[:6])
        return f"in {self.count} of {rows} rows, first in row {self.first}: {shown}" + ", ..." * (len(names) > 6)


@dataclass
class _Scores:
    """The mean of the scores of rows, which come in chunks, and what to report about odd rows.

    Attributes:
        names: the names of the columns and contexts.
        weight: the name of the column of weights; None if all rows count the same.
        rows: the number of rows.
        dropped: the number of rows that lack a value.

    """

    names: list[str]
    weight: str | None
    rows: int = 0
    dropped: int = 0
    total: Sum = field(default_factory=Sum)  # the weighted sum of the finite scores
    weights: Sum = field(default_factory=Sum)  # the weights of these rows
    others: Sum = field(default_factory=Sum)  # the weights of the rows whose score is -inf
    unknown: _Odd = field(default_factory=_Odd)
    outside: _Odd = field(default_factory=_Odd)

    def add(self, log_prob: NDArray[Any], part: Part) -> None:
        """Count the scores (n,) of the rows ``part``."""
        weight = np.ones(len(log_prob)) if part.weight is None else part.weight
        negative = np.flatnonzero(weight < 0.0)
        if len(negative):
            row = self.rows + negative[0] + 1
            raise ValueError(f"--weight: expected weights of at least 0, got {weight[negative[0]]:g} in row {row}")
        nothing, seen = np.isneginf(log_prob), ~part.missing
        self.unknown.add(np.isnan(log_prob) & seen, self.rows, part.values)
        self.outside.add(nothing, self.rows, part.values)
        counts = seen & ~nothing & (weight > 0.0)
        self.total.add(log_prob[counts].astype(np.float64) * weight[counts])
        self.weights.add(weight[counts])
        self.others.add(weight[nothing])
        self.rows += len(log_prob)
        self.dropped += int(part.missing.sum())

    def check(self, path: str) -> None:
        """ValueError if there is no mean, because a score is NaN or all weights are 0."""
        if self.unknown.count:
            raise ValueError(f"{path}: log_prob is nan {self.unknown.described(self.names, self.rows)}")
        if self.dropped == self.rows:
            raise ValueError(f"{path}: expected a row without a missing value, got none")
        if self.weights.value() + self.others.value() == 0.0:
            raise ValueError(f"--weight: expected a positive weight in {self.weight!r}, got zeros alone")

    def told(self) -> str:
        """The mean as text, with a line before it about rows of density zero."""
        known = self.weights.value()
        mean = self.total.value() / known if known else -math.inf
        if not self.outside.count:
            return f"mean log_prob: {mean:.6f}"
        said = f"log_prob is -inf {self.outside.described(self.names, self.rows)}"
        if known:
            said += f"; mean of the others: {mean:.6f}"
        return f"{said}\nmean log_prob: {-math.inf if self.others.value() else mean:.6f}"
