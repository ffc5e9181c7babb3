"""The rates of a run as one picture. Needs matplotlib: ``pip install mixflow[plot]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from .cases import Row, number

__all__ = ["rates"]

_BAR = 0.21  # inches


def rates(machine: Mapping[str, Any], rows: Sequence[Row]) -> Figure:
    """Horizontal bars of million elements per second on a logarithmic scale, for every case mixflow's first.

    Args:
        machine: as :func:`mixflow.bench.report.machine` gives it, for the title.
        rows: in the order of their cases; baselines that could not run are left out.

    Example:
        >>> from mixflow.bench.picture import rates
        >>> row = {"case": "forward", "rate": 500.0, "contender": "eager", "contender_rate": 4.0, "ratio": 125.0}
        >>> figure = rates({"threads": 2}, [row])
        >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
        [500.0, 4.0]

    """
    timed = (row for row in rows if row["ratio"] is not None)
    cases = [list(group) for _, group in groupby(timed, key=lambda row: row["case"])]
    # A case takes a line for its title, one for mixflow, one for each baseline and half a line of space.
    ends = [0.0, *accumulate(2.5 + len(case) for case in cases)]
    first = sum(end < 0.5 * ends[-1] for end in ends)  # cases of the left column
    tallest = max(ends[first], ends[-1] - ends[first])
    figure = Figure(figsize=(15.0, 1.6 + _BAR * tallest), layout="constrained")
    FigureCanvasAgg(figure)
    for column, ax in zip((cases[:first], cases[first:]), figure.subplots(1, 2, sharex=True), strict=True):
        _bars(column, ax)
        ax.set_ylim(tallest - 0.5, -1)
    title = "Rates of mixflow (blue) and of baselines (grey);\nin brackets how many times as fast mixflow is"
    figure.suptitle(title, fontsize=12)
    made_on = wrap(", ".join(f"{key} {value}" for key, value in machine.items()), 120)
    figure.supxlabel("\n".join(["million elements per second (logarithmic scale)", "", *made_on]), fontsize=9)
    return figure


def _bars(cases: Sequence[Sequence[Row]], ax: Axes) -> None:
    labels: dict[float, str] = {}  # by height
    titles, y = [], 0.0
    for rows in cases:
        titles.append(len(labels))
        labels[y] = rows[0]["case"]
        others = [(row["contender"], row["contender_rate"], f"  ({number(row['ratio'])}x)") for row in rows]
        for name, rate, ratio in [("mixflow", rows[0]["rate"], ""), *others]:
            y += 1
            labels[y] = name
            ax.barh(y, rate, color="tab:blue" if name == "mixflow" else "0.75", height=0.8)
            ax.text(rate, y, f" {number(rate)}{ratio}", va="center", fontsize=8)
        y += 1.5
    ax.set(xscale="log", yticks=list(labels), yticklabels=list(labels.values()))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.tick_params(axis="y", length=0, labelsize=8)
    for place in titles:
        ax.get_yticklabels()[place].set(fontweight="bold")
    ax.margins(x=0.15)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
