"""Pictures of a flow: its density, the map it learned, its samples and its training.

Each function draws on an ``Axes`` that the caller gives; :func:`corner` and :func:`marginals` take a ``Figure``.
:func:`summary` makes a ``Figure`` with all pictures that suit a flow. pyplot is not used, so the user's backend and
current figure stay as they are. The pictures need matplotlib: ``pip install mixflow[plot]``.

Data are arrays or tensors of finite numbers. A conditional flow is drawn under the contexts of the data: each sample is
drawn at the context of one row, so samples and data agree if the flow is right.

The names of columns are those in ``flow.notes["columns"]``, otherwise x1, x2, .... The names of contexts are those in
``flow.notes["context"]``, otherwise c1, c2, .... Names are drawn letter by letter, and never as mathematics. A name
that is too long for its place loses its middle. If matplotlib's font lacks a character, it comes from another installed
font. If no font has it, a box □ stands in its place, and the column's number, such as x3, before the name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import ArrayLike

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("pictures need matplotlib: pip install mixflow[plot]") from error

from ..files.atomic import PathLike, replace_file
from ..fitting.history import History
from ..flows import Flow
from .panels import (
    MODEL,
    draw_context,
    draw_corner,
    draw_density,
    draw_map,
    draw_marginals,
    draw_samples,
    panels_across,
)
from .subject import COLUMNS, Choice, Subject, subject_of, subject_of_one

__all__ = [
    "cdf_map",
    "check_extension",
    "corner",
    "density",
    "marginals",
    "samples",
    "save_figure",
    "summary",
    "training",
]

_CELL = 1.6  # inches, the side of a panel of a corner plot


def density(flow: Flow, data: ArrayLike, ax: Axes, context: ArrayLike | None = None) -> None:
    """Histogram of ``data`` (N,), with the flow's density over it.

    For a conditional flow, the curve is the mean of p(x | c) over the contexts of up to 500 rows. Rows that lie more
    than five interquartile ranges beyond the quartiles are left out of the picture, up to one per cent on each side.
    The legend then gives their number.

    Args:
        flow: a flow of one feature.
        data: the numbers to compare with, (N,) or (N, 1).
        ax: where to draw.
        context: (N, C), the context of each row; (N, anything) for a flow with an embedding; None for a flow without a
            context.

    Raises:
        ValueError: the flow has several features, a shape is wrong, a number is not finite, or the flow takes a
            context and there is none.
        TypeError: data or context is a masked array.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from mixflow import flows, plot
        >>> ax = Figure().subplots()
        >>> plot.density(flows.univariate(), np.linspace(-2, 2, 50), ax)
        >>> ax.get_ylabel()
        'density'

    """
    draw_density(subject_of_one(flow, data, context), ax)


def cdf_map(flow: Flow, data: ArrayLike, ax: Axes, context: ArrayLike | None = None) -> None:
    """The learned map from x to z over the range of ``data`` (N,), which are marked along the x axis.

    A conditional flow has one map for each context. The maps of five rows are drawn, from a low to a high value of the
    first context. Arguments and errors are those of :func:`density`.
    """
    draw_map(subject_of_one(flow, data, context), ax)


def samples(flow: Flow, data: ArrayLike, ax: Axes, context: ArrayLike | None = None) -> None:
    """Histogram of 20,000 samples, over the histogram of ``data`` (N,).

    Arguments and errors are those of :func:`density`.
    """
    draw_samples(subject_of_one(flow, data, context), ax)


def training(history: History, ax: Axes) -> None:
    """The training and validation curves of ``history``, with the epoch or the start that was kept."""
    epochs = np.arange(1, len(history.train_log_prob) + 1)
    mark = "o" if len(epochs) == 1 else None  # a line of one point would be invisible
    ax.plot(epochs, history.train_log_prob, color="0.6", label="training", marker=mark)
    if history.validation_log_prob:
        ax.plot(epochs, history.validation_log_prob, label="validation", marker=mark, **MODEL)
    if isinstance(history.kept, str) and history.kept in history.starts:
        ax.axhline(history.starts[history.kept], linestyle="--", color="tab:red", label=f"kept ({history.kept})")
    elif history.best_epoch is not None:
        best = history.best_epoch
        ax.plot(best + 1, history.monitored[best], "o", color="tab:red", label=f"kept (epoch {best + 1})")
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    ax.set(title="Training", xlim=(0.5, max(1, len(epochs)) + 0.5), xlabel="epoch", ylabel="mean log_prob (nats)")
    ax.legend()


def corner(
    flow: Flow,
    data: ArrayLike,
    figure: Figure | SubFigure,
    points: int = 2000,
    context: ArrayLike | None = None,
    columns: Sequence[str | int] | None = None,
) -> None:
    """Every pair of features, data against samples: histograms on the diagonal, scatter plots below it.

    The histograms are those of all data and of 20,000 samples, or fewer if there are more than 100 features. The axes
    cover the middle 99.8 per cent of the data and a margin. Values outside still count in the total of the histograms.
    For a conditional flow, panels on the left show each feature against the contexts.

    Args:
        flow: a flow.
        data: (N, D), the numbers to compare with, or images (N, C, H, W).
        figure: where to draw.
        points: the most data, and the most samples, in a scatter plot; they are spread evenly over the rows.
        context: (N, C), the context of each row; (N, anything) for a flow with an embedding; None for a flow without a
            context. If there are more than four contexts, the four on which the features depend most are drawn.
        columns: names of the features to draw, or their numbers from 0, at most 16. By default all features are drawn.
            If there are more than eight, these are the eight that depend most on another one, by the rank correlations
            of 2,000 rows of data.

    Raises:
        ValueError: a shape is wrong, a number is not finite, a column is unknown, or the flow takes a context and
            there is none.
        TypeError: data or context is a masked array.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from mixflow import flows, plot
        >>> figure = Figure()
        >>> data = np.random.default_rng(0).normal(size=(50, 3))
        >>> plot.corner(flows.gaussianization(3), data, figure, columns=["x1", "x3"])
        >>> sum(ax.axison for ax in figure.axes)
        3

    """
    subject = subject_of(flow, data, context)
    draw_corner(subject, subject.choice(columns), figure, points)


def marginals(
    flow: Flow,
    data: ArrayLike,
    figure: Figure | SubFigure,
    context: ArrayLike | None = None,
    columns: Sequence[str | int] | None = None,
) -> None:
    """A small histogram of each feature, data against samples; at most 40 features, which are spread evenly.

    Arguments and errors are those of :func:`corner`.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from mixflow import flows, plot
        >>> figure = Figure()
        >>> plot.marginals(flows.gaussianization(12), np.random.default_rng(0).normal(size=(50, 12)), figure)
        >>> len(figure.axes)
        12

    """
    subject = subject_of(flow, data, context)
    draw_marginals(subject, subject.all_columns() if columns is None else subject.choice(columns).columns, figure)


def summary(
    flow: Flow,
    data: ArrayLike,
    history: History | None = None,
    context: ArrayLike | None = None,
    columns: Sequence[str | int] | None = None,
) -> Figure:
    """A figure with all pictures that suit the flow, and with the training if there is a ``history``.

    For one feature these are the density, the map and the samples, and the feature against each context. For several
    features they are :func:`corner`, and below it :func:`marginals` if there are more features than :func:`corner`
    draws by default. Arguments and errors are those of :func:`density` and :func:`corner`.

    Example:
        >>> import numpy as np
        >>> from mixflow import flows, plot
        >>> len(plot.summary(flows.univariate(), np.linspace(-2, 2, 50)).axes)
        3

    """
    subject = subject_of(flow, data, context)
    choice = subject.choice(columns)
    if flow.features == 1:
        return _summary_of_one(subject, choice, history)
    # If the caller chooses columns, the others are not drawn.
    rest = subject.all_columns() if columns is None and flow.features > len(choice.columns) else []
    return _summary_of_several(subject, choice, rest, history)


def _summary_of_one(subject: Subject, choice: Choice, history: History | None) -> Figure:
    count = 3 + bool(history) + len(choice.contexts)
    across = 2 if count == 4 else 3
    down = -(-count // across)
    figure = _figure(13.0 if across == 3 else 10.0, 4.0 if down == 1 else 3.5 * down)
    axes = [figure.add_subplot(down, across, place + 1) for place in range(count)]
    draw_density(subject, axes[0])
    draw_map(subject, axes[1])
    draw_samples(subject, axes[2])
    if history:
        training(history, axes[3])
    for number, ax in zip(choice.contexts, axes[count - len(choice.contexts) :], strict=True):
        draw_context(subject, number, ax)
    return figure


def _summary_of_several(subject: Subject, choice: Choice, single: list[int], history: History | None) -> Figure:
    shown = len(choice.columns)
    cell = _CELL * min(1.0, COLUMNS / shown)
    height, width = 2.0 + cell * shown, 2.0 + cell * (shown + len(choice.contexts))
    inside = _training_panels(shown, cell)
    beside = 4.5 if history and not inside else 0.0
    rest = 0.6 + 1.3 * -(-len(single) // panels_across(width + beside, len(single))) if single else 0.0
    figure = _figure(width + beside, height + rest)
    top, right, bottom = _divided(figure, (width, beside), (height, rest))
    grid = draw_corner(subject, choice, top, 2000)
    if history:
        training(history, (right or top.add_subfigure(grid[:inside, -inside:])).subplots())
    if bottom:
        draw_marginals(subject, single, bottom)
    return figure


def _divided(
    figure: Figure, widths: tuple[float, float], heights: tuple[float, float]
) -> tuple[Figure | SubFigure, SubFigure | None, SubFigure | None]:
    """The upper left part of a figure, the part beside it and the part below it; None for a part of size 0."""
    top: Figure | SubFigure = figure
    right: SubFigure | None = None
    bottom: SubFigure | None = None
    if heights[1]:
        top, bottom = cast("list[SubFigure]", figure.subfigures(2, 1, height_ratios=heights))
    if widths[1]:
        top, right = cast("list[SubFigure]", top.subfigures(1, 2, width_ratios=widths))
    return top, right, bottom


def _training_panels(shown: int, cell: float) -> int:
    """The side, in panels, of the square for the training in the empty upper right of a corner plot; 0 without room.

    Three inches are enough. The panel beside the first histogram stays free for the legend.
    """
    needed = math.ceil(3.0 / cell)
    return needed if needed <= shown // 2 else 0


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: PathLike) -> None:
    """Write a figure. The file appears whole or not at all, and its ending decides on its kind (.png, .pdf, .svg, ...).

    Raises:
        ValueError: matplotlib cannot write this kind.
        OSError: the file cannot be written.

    """
    kind = check_extension(path)
    with replace_file(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=150)


def check_extension(path: PathLike) -> str:
    """The kind of picture by the ending of ``path``; ValueError if matplotlib cannot write it."""
    kind = Path(path).suffix.lower().removeprefix(".")
    known = FigureCanvasAgg.get_supported_filetypes()
    if kind not in known:
        raise ValueError(f"{path}: expected an ending among {', '.join(sorted(known))}, got {kind or 'none'!r}")
    return kind
