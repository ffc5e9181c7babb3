"""The rates of a run as one picture. Needs matplotlib: ``pip install mixflow[plot]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from .cases import LIMITS, MIXFLOW, RateRow, number

__all__ = ["rates"]

_COLUMNS = 2
_BAR = 0.21  # inches
_COLORS = {MIXFLOW: "tab:blue", **dict.fromkeys(LIMITS, "wheat")}


def rates(machine: Mapping[str, Any], rows: Sequence[RateRow]) -> Figure:
    """Horizontal bars of million elements per second on a logarithmic scale, for every case mixflow's first.

    Args:
        machine: as :func:`mixflow.bench.report.machine` gives it, for the title.
        rows: in the order of their cases; what is absent is left out.

    Example:
        >>> from mixflow.bench.cases import RateRow
        >>> from mixflow.bench.picture import rates
        >>> figure = rates({"threads": 2}, [RateRow("forward", 500.0, "eager", 4.0, 125.0)])
        >>> [float(bar.get_width()) for bar in figure.axes[0].patches]
        [500.0, 4.0]

    """
    cases = [list(group) for _, group in groupby((r for r in rows if r.ratio is not None), key=lambda r: r.case)]
    # A case takes a line for its title, one for mixflow, one for each rival and half a line of space.
    heights = [2.5 + len(case) for case in cases]
    columns: list[list[list[RateRow]]] = [[] for _ in range(_COLUMNS)]
    filled = 0.0
    for case, height in zip(cases, heights, strict=True):
        columns[min(_COLUMNS - 1, int(_COLUMNS * filled / sum(heights)))].append(case)
        filled += height
    tallest = max(sum(2.5 + len(case) for case in column) for column in columns)
    figure = Figure(figsize=(15.0, 1.6 + _BAR * tallest), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, _COLUMNS, sharex=True)
    for column, ax in zip(columns, axes, strict=True):
        _bars(column, ax)
        ax.set_ylim(tallest - 0.5, -1)
    figure.suptitle(
        "Rates of mixflow (blue), of plain code (grey) and of a limit of the machine (yellow);\n"
        "in brackets how many times faster mixflow is",
        fontsize=12,
    )
    made_on = [f"{key} {value}" for key, value in machine.items()]
    half = len(made_on) // 2
    lines = ["million elements per second (logarithmic scale)", "", *map(", ".join, (made_on[:half], made_on[half:]))]
    figure.supxlabel("\n".join(lines), fontsize=9)
    return figure


def _bars(cases: Sequence[Sequence[RateRow]], ax: Axes) -> None:
    ticks: list[float] = []
    labels: list[str] = []
    titles = []
    y = 0.0
    for rows in cases:
        titles.append(len(ticks))
        ticks.append(y)
        labels.append(rows[0].case)
        others = [(row.contender, row.contender_rate, f"  ({number(row.ratio)}x)") for row in rows]
        bars = [(MIXFLOW, rows[0].rate, ""), *others]
        for name, rate, ratio in bars:
            y += 1
            ticks.append(y)
            labels.append(name)
            ax.barh(y, rate or 0.0, color=_COLORS.get(name, "0.75"), height=0.8)
            ax.text(rate or 0.0, y, f" {number(rate)}{ratio}", va="center", fontsize=8)
        y += 1.5
    ax.set(xscale="log", yticks=ticks, yticklabels=labels)
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.tick_params(axis="y", length=0, labelsize=8)
    for place in titles:
        ax.get_yticklabels()[place].set(fontweight="bold")
    ax.margins(x=0.15)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
