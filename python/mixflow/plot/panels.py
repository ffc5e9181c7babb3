"""The panels of a picture, each drawn on axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure, SubFigure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from ..flows import like
from .names import write_name
from .subject import Choice, Column, Numbers, Subject, at_rest, spread

__all__ = [
    "MODEL",
    "draw_context",
    "draw_corner",
    "draw_density",
    "draw_map",
    "draw_marginals",
    "draw_samples",
    "panels_across",
]

_DATA: dict[str, Any] = {"fill": True, "color": "0.8"}
MODEL: dict[str, Any] = {"color": "tab:blue", "linewidth": 2.0}


def draw_density(subject: Subject, ax: Axes) -> None:
    """The histogram of the data of one feature, and the density."""
    column = subject.column(0, sampled=False)
    bars = column.heights(column.data)
    low, high = column.limits
    # The density of repeated values may consist of a few spikes at these values.
    few = np.unique(column.data[spread(len(column.data), 1000)])
    grid = np.union1d(np.linspace(low, high, 1000), few[(few >= low) & (few <= high)])
    rows = spread(len(subject.values), 500)
    curve = _density(subject, column, grid, rows)
    ax.stairs(bars, column.edges, label=_data_label(column), **_DATA)
    # Beside such spikes the bars would be invisible, so the axis ends at three times the height of the bars.
    top, most = float(bars.max()), float(curve.max(initial=0.0, where=~np.isnan(curve)))
    label = "flow" if most <= 3.0 * top else "flow (peaks cut off)"
    ax.plot(grid, curve, label=label, **MODEL)
    title = "Density" if subject.context is None else f"Density: mean over {_count(len(rows), 'context')}"
    _finish(ax, column, max(top, min(most, 3.0 * top)), title)


def _density(subject: Subject, column: Column, grid: Numbers, rows: NDArray[np.intp]) -> Numbers:
    """The flow's density at ``grid`` (M,), in the column's units; with contexts, the mean over those of ``rows``."""
    x = _tensor(subject, column, grid)
    with at_rest(subject.flow):
        if subject.context is None:
            log_prob = subject.flow.log_prob(x).double()
        else:
            each = subject.flow.log_prob(x.unsqueeze(1), subject.contexts(rows)).double()
            log_prob = each.logsumexp(1) - math.log(len(rows))
    values: Numbers = (log_prob + math.log(column.unit)).exp().cpu().numpy()
    return values


def _tensor(subject: Subject, column: Column, grid: Numbers) -> torch.Tensor:
    """``grid`` (M,) in the column's units as (M, 1) in the flow's units, in float64."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(grid * column.unit).to(like(subject.flow).device).unsqueeze(-1)


def draw_map(subject: Subject, ax: Axes) -> None:
    """The map of one feature to the base; for a conditional flow, the maps at the contexts of five rows."""
    column = subject.column(0, sampled=False)
    grid = np.linspace(*column.limits, 1000)
    rows = _five(subject)
    x = _tensor(subject, column, grid)
    with at_rest(subject.flow):
        z, _ = subject.flow.transform(x if subject.context is None else x.unsqueeze(1), subject.contexts(rows))
    each = z.reshape(len(grid), -1).double().cpu().numpy().T
    colors = ["tab:blue"] if len(each) == 1 else list(mpl.colormaps["viridis"](np.linspace(0.0, 0.9, len(each))))
    for line, color in zip(each, colors, strict=True):
        ax.plot(grid, line, **MODEL | {"color": color}, label="$z = G^{-1}(F(x))$")
    data = column.data
    shown = data if len(data) <= 1000 else np.quantile(data, np.linspace(0.0, 1.0, 1000), method="nearest")
    ax.plot(shown, np.zeros_like(shown), "|", color="0.4", transform=ax.get_xaxis_transform(), label="data")
    ax.set(title="Map to the base", xlim=column.limits, ylabel=f"z ({subject.flow.base} base)")
    _write(ax.xaxis, column, _room(ax)[0])
    if subject.context is None:
        ax.legend()
    else:
        ax.set_title(f"Map to the base at {_count(len(rows), 'context')}")
        _name_contexts(subject, rows, ax)


def _five(subject: Subject) -> NDArray[np.intp]:
    """Five rows, from a low to a high value of the first context."""
    rows = spread(len(subject.values), 2000)
    if subject.table is not None:
        rows = rows[np.argsort(subject.table[rows, 0], kind="stable")]
    places = sorted({tenths * len(rows) // 10 for tenths in (1, 3, 5, 7, 9)})
    return np.asarray(rows[places], dtype=np.intp)


def _name_contexts(subject: Subject, rows: NDArray[np.intp], ax: Axes) -> None:
    """A legend for the lines of ``rows``: the names of up to three contexts, and their values."""
    names = subject.context_names[:3]
    rest = ["…"] if len(names) < len(subject.context_names) else []
    values = [f"row {row + 1}" for row in rows]
    if subject.table is not None:
        values = [", ".join([f"{value:.3g}" for value in subject.table[row, :3]] + rest) for row in rows]
    legend = ax.legend(ax.lines[: len(rows)], values, title="context", fontsize="small")
    if names:
        legend.get_title().set_fontsize("small")
        write_name(legend.get_title(), ", ".join(names + rest), "context", 0.5 * _room(ax)[0])


def draw_samples(subject: Subject, ax: Axes) -> None:
    """The histograms of the data and the samples of one feature."""
    column = subject.column(0, sampled=True)
    bars, drawn = column.heights(column.data), column.heights(column.samples)
    ax.stairs(bars, column.edges, label=_data_label(column), **_DATA)
    ax.stairs(drawn, column.edges, label=_count(len(column.samples), "sample"), **MODEL)
    _finish(ax, column, max(bars.max(), drawn.max()), "Samples")


def _data_label(column: Column) -> str:
    return f"data ({column.outside:,} outside)" if column.outside else "data"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _finish(ax: Axes, column: Column, top: float, title: str) -> None:
    """Add labels, and a legend in a strip above the curves."""
    ax.set(title=title, ylabel="density", xlim=column.limits, ylim=(0.0, 1.25 * top))
    _write(ax.xaxis, column, _room(ax)[0])
    ax.legend(loc="upper center", ncols=2, edgecolor="none")


def draw_context(subject: Subject, number: int, ax: Axes) -> None:
    """The single feature against one of the contexts."""
    x, y = subject.context_column(number), subject.column(0, sampled=True)
    _scatter(x, y, 2000, ax)
    ax.set(title="Data and samples by context")
    _write(ax.xaxis, x, _room(ax)[0])
    _write(ax.yaxis, y, _room(ax)[1])
    low, high = y.limits
    ax.set_ylim(low, high + 0.15 * (high - low))
    ax.legend(loc="upper center", ncols=2, edgecolor="none", markerscale=3.0)


def draw_corner(subject: Subject, choice: Choice, figure: Figure | SubFigure, points: int) -> GridSpec:
    """Draw the chosen features against each other and against the chosen contexts; returns the grid of the panels."""
    contexts = [subject.context_column(number) for number in choice.contexts]
    features = [subject.column(number, sampled=True, middle=0.998, bins=60) for number in choice.columns]
    across, down = len(contexts) + len(features), len(features)
    axes: NDArray[Any] = figure.subplots(down, across, squeeze=False, sharex="col")
    room = 0.85 * 72.0 * figure.bbox.width / figure.dpi / across, 0.85 * 72.0 * figure.bbox.height / figure.dpi / down
    for (row, place), ax in np.ndenumerate(axes):
        x, y = (*contexts, *features)[place], features[row]
        if place > len(contexts) + row:
            ax.axis("off")
            continue
        histogram = place == len(contexts) + row
        if histogram:
            _two_histograms(x, ax)
        else:
            _scatter(x, y, points, ax)
        ax.tick_params(labelsize="x-small", labelleft=place == 0, labelbottom=row == down - 1)
        ax.xaxis.set_major_locator(MaxNLocator(3))
        ax.yaxis.set_major_locator(NullLocator() if histogram else MaxNLocator(3))
        if row == down - 1:
            _write(ax.xaxis, x, room[0], "small")
        if place == 0:
            _write(ax.yaxis, y, room[1], "small")
            if histogram:
                ax.set_ylabel("density", fontsize="small")
        if row == 0 and place < len(contexts):
            ax.set_title("context", fontsize="small")
    free, corner = (axes[0, len(contexts) + 1], "upper left") if len(features) > 1 else (axes[0, -1], "best")
    free.legend(*axes[0, len(contexts)].get_legend_handles_labels(), fontsize="small", loc=corner)
    _title(figure, choice.title)
    return cast(GridSpec, axes[0, 0].get_gridspec())


def panels_across(width: float, count: int) -> int:
    """How many of ``count`` small panels fit side by side on a figure of ``width`` inches."""
    return max(1, min(10, count, int(width / 1.3)))


def draw_marginals(subject: Subject, chosen: Sequence[int], figure: Figure | SubFigure) -> None:
    """The histograms of the data and the samples of each of the ``chosen`` features."""
    across = panels_across(figure.bbox.width / figure.dpi, len(chosen))
    down = -(-len(chosen) // across)
    room = 0.9 * 72.0 * figure.bbox.width / figure.dpi / across
    for place, number in enumerate(chosen):
        column = subject.column(number, sampled=True, middle=0.998, bins=60)
        ax = figure.add_subplot(down, across, place + 1)
        _two_histograms(column, ax)
        ax.yaxis.set_major_locator(NullLocator())
        ax.tick_params(labelsize="x-small")
        ax.xaxis.set_major_locator(MaxNLocator(2))
        ax.xaxis.get_offset_text().set_fontsize("x-small")
        ax.title.set_fontsize("small")
        write_name(ax.title, column.name, column.number, room)
    of = "all columns" if len(chosen) == subject.features else f"{len(chosen)} of {subject.features:,} columns"
    _title(figure, f"Data (grey) and samples (blue) of {of}")


def _title(figure: Figure | SubFigure, text: str) -> None:
    if text:
        figure.suptitle(text, fontsize="medium")


def _two_histograms(column: Column, ax: Axes) -> None:
    ax.stairs(column.heights(column.data), column.edges, label="data", **_DATA)
    ax.stairs(column.heights(column.samples), column.edges, label="samples", **MODEL | {"linewidth": 1.2})
    ax.set(xlim=column.limits)


def _scatter(x: Column, y: Column, points: int, ax: Axes) -> None:
    """Draw some of the data, and as many samples."""
    few = spread(len(x.data), points)
    some = spread(len(x.samples), len(few))
    style: dict[str, Any] = {"markersize": 2.0 if len(few) > 200 else 4.0, "linestyle": "", "rasterized": True}
    ax.plot(x.data[few], y.data[few], ".", color="0.4", label="data", **style)
    ax.plot(x.samples[some], y.samples[some], ".", color="tab:blue", alpha=0.5, label="samples", **style)
    ax.set(xlim=x.limits, ylim=y.limits)


def _room(ax: Axes) -> tuple[float, float]:
    """The width and height of a panel in points."""
    box = ax.get_window_extent()
    return 72.0 * box.width / ax.figure.dpi, 72.0 * box.height / ax.figure.dpi


def _write(axis: Axis, column: Column, room: float, size: str = "medium") -> None:
    """Label an axis with a column's name; the limits of the axis must be set."""
    axis.label.set_fontsize(size)
    axis.get_offset_text().set_fontsize("x-small" if size == "small" else size)
    formatter = axis.get_major_formatter()
    formatter.format_ticks(list(axis.get_ticklocs()))
    # An offset that the tick labels leave out, such as +1e9, stands beside the name of an x axis.
    beside = isinstance(axis, XAxis) and formatter.get_offset()
    write_name(axis.label, column.name, column.number, 0.5 * room if beside else room)
