"""Pictures of a flow: its density, the map it learned, its samples and its training.

Each function draws on an ``Axes`` that it is given (:func:`corner`, of several features, on a ``Figure``);
:func:`summary` puts all that suit a flow on a ``Figure`` of its own.
Nothing here touches pyplot, so the user's backend and current figure stay as they are. Needs matplotlib:
``pip install mixflow[plot]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

try:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure, SubFigure
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("pictures need matplotlib: pip install mixflow[plot]") from error

from .files import PathLike, replace_file
from .flows import Flow, like
from .train import History

__all__ = ["cdf_map", "check_extension", "corner", "density", "samples", "save_figure", "summary", "training"]

_DATA: dict[str, Any] = {"color": "0.8", "edgecolor": "white", "linewidth": 0.3}
_MODEL: dict[str, Any] = {"color": "tab:blue", "linewidth": 2.0}


def density(flow: Flow, data: ArrayLike, ax: Axes) -> None:
    """Histogram of ``data`` (N,) under the flow's density.

    Args:
        flow: a univariate flow without context.
        data: the numbers to compare with.
        ax: where to draw.

    Raises:
        ValueError: the flow has more than one feature or takes a context, or data are not (N,) or (N, 1), not
            finite, or too close together for a histogram in float64.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from mixflow import flows, plot
        >>> ax = Figure().subplots()
        >>> plot.density(flows.univariate(), np.linspace(-2, 2, 50), ax)
        >>> ax.get_ylabel()
        'density'

    """
    values = _column(flow, data)
    grid = _grid(values)
    with torch.no_grad():
        log_prob = flow.log_prob(_tensor(flow, grid))
    ax.hist(values, bins=_bins(values), density=True, label="data", **_DATA)
    ax.plot(grid, log_prob.exp().double().cpu().numpy(), label="flow", **_MODEL)
    ax.set(title="Density", xlabel=_name(flow), ylabel="density")
    ax.legend()


def cdf_map(flow: Flow, data: ArrayLike, ax: Axes) -> None:
    """Draw the learned map from x to z over the range of ``data`` (N,), which are marked along the x axis.

    Arguments and errors are those of :func:`density`.
    """
    values = _column(flow, data)
    grid = _grid(values)
    with torch.no_grad():
        z, _ = flow.transform(_tensor(flow, grid))
    shown = values if len(values) <= 1000 else np.quantile(values, np.linspace(0.0, 1.0, 1000))
    ax.plot(grid, z.double().cpu().numpy(), label="$z = G^{-1}(F(x))$", **_MODEL)
    ax.plot(shown, np.zeros_like(shown), "|", color="0.4", transform=ax.get_xaxis_transform(), label="data")
    ax.set(title="Map to the base", xlabel=_name(flow), ylabel=f"z ({flow.base} base)")
    ax.legend()


def training(history: History, ax: Axes) -> None:
    """The training and validation curves of ``history``, with the epoch that was kept."""
    epochs = np.arange(1, len(history.train_log_prob) + 1)
    ax.plot(epochs, history.train_log_prob, color="0.6", label="training")
    if history.validation_log_prob:
        ax.plot(epochs, history.validation_log_prob, label="validation", **_MODEL)
    if history.best_epoch is not None:
        best = history.best_epoch
        ax.plot(best + 1, history.monitored[best], "o", color="tab:red", label=f"kept (epoch {best + 1})")
    ax.set(title="Training", xlabel="epoch", ylabel="mean log_prob (nats)")
    ax.legend()


def samples(flow: Flow, data: ArrayLike, ax: Axes) -> None:
    """Histogram of samples (as many as data, but 10,000 at least) over the histogram of ``data`` (N,).

    Arguments and errors are those of :func:`density`.
    """
    values = _column(flow, data)
    drawn = flow.sample(max(len(values), 10_000), seed=0).squeeze(-1).double().cpu().numpy()
    bins = _bins(values)
    ax.hist(values, bins=bins, density=True, label="data", **_DATA)
    # Weights, not density=True: the samples outside the data's range belong to the total.
    weight = np.full(len(drawn), 1.0 / (len(drawn) * (bins[1] - bins[0])))
    ax.hist(drawn, bins=bins, weights=weight, histtype="step", label=f"{len(drawn):,} samples", **_MODEL)
    ax.set(title="Samples", xlabel=_name(flow), ylabel="density")
    ax.legend()


def corner(flow: Flow, data: ArrayLike, figure: Figure | SubFigure, points: int = 2000) -> None:
    """Every pair of features, data against samples: histograms on the diagonal, scatter plots below it.

    As many samples are drawn as there are data, but 10,000 at least, for the histograms. The axes reach over the
    middle 99.8 per cent of the data and a margin; what lies outside counts in the histograms all the same.

    Args:
        flow: a flow without context.
        data: (N, D), the numbers to compare with, or images (N, C, H, W). Of more than eight features the first eight
            are drawn.
        figure: where to draw.
        points: the number of data, and of samples, in a scatter plot at most; the data are spread evenly over the rows.

    Raises:
        ValueError: the flow takes a context, or data are not (N, D) or not finite.

    Example:
        >>> import numpy as np
        >>> from matplotlib.figure import Figure
        >>> from mixflow import flows, plot
        >>> figure = Figure()
        >>> plot.corner(flows.gaussianization(3), np.random.default_rng(0).normal(size=(50, 3)), figure)
        >>> sum(ax.axison for ax in figure.axes)
        6

    """
    values = _rows(flow, data)
    drawn = flow.sample(max(len(values), 10_000), seed=0).flatten(1).double().cpu().numpy()
    shown = min(flow.features, 8)
    axes = figure.subplots(shown, shown, squeeze=False, sharex="col")
    limits = [_limits(values[:, column]) for column in range(shown)]
    few = values[:: -(-len(values) // points)]
    some = drawn[: len(few)]
    for row in range(shown):
        for column in range(shown):
            ax: Axes = axes[row, column]
            if column > row:
                ax.axis("off")
            elif column == row:
                _two_histograms(values[:, row], drawn[:, row], limits[row], ax)
            else:
                ax.plot(few[:, column], few[:, row], ".", color="0.4", markersize=2.0, rasterized=True, label="data")
                ax.plot(
                    *some[:, [column, row]].T,
                    ".",
                    color="tab:blue",
                    markersize=2.0,
                    alpha=0.5,
                    rasterized=True,
                    label="samples",
                )
                ax.set(xlim=limits[column], ylim=limits[row])
            if row == shown - 1:
                ax.set_xlabel(_name(flow, column))
            if column == 0:
                ax.set_ylabel(_name(flow, row) if row else "density")
            ax.tick_params(labelsize="small", labelleft=column == 0 and row > 0)
    axes[0, 0].legend(fontsize="small")


def summary(flow: Flow, data: ArrayLike, history: History | None = None) -> Figure:
    """All that suits the flow on one figure, and the training, given a ``history``.

    Of one feature: density, map and samples. Of several: :func:`corner`. Arguments and errors are those of
    :func:`density` and :func:`corner`.

    Example:
        >>> import numpy as np
        >>> from mixflow import flows, plot
        >>> len(plot.summary(flows.univariate(), np.linspace(-2, 2, 50)).axes)
        3

    """
    if flow.features > 1:
        return _summary_of_several(flow, data, history)
    figure = Figure(figsize=(10.0, 7.0) if history else (13.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2).flat if history else figure.subplots(1, 3).flat
    density(flow, data, axes[0])
    cdf_map(flow, data, axes[1])
    samples(flow, data, axes[2])
    if history:
        training(history, axes[3])
    return figure


def _summary_of_several(flow: Flow, data: ArrayLike, history: History | None) -> Figure:
    side = 2.0 + 1.6 * min(flow.features, 8)
    figure = Figure(figsize=(side + (4.5 if history else 0.0), side), layout="constrained")
    FigureCanvasAgg(figure)
    if not history:
        corner(flow, data, figure)
        return figure
    left, right = cast("list[SubFigure]", figure.subfigures(1, 2, width_ratios=(side, 4.5)))
    corner(flow, data, left)
    training(history, right.subplots())
    return figure


def save_figure(figure: Figure, path: PathLike) -> None:
    """Write a figure whole or not at all; its kind (.png, .pdf, .svg, ...) follows the ending.

    Raises:
        ValueError: matplotlib cannot write this kind.
        OSError: the file cannot be written.

    """
    kind = check_extension(path)
    with replace_file(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=150)


def check_extension(path: PathLike) -> str:
    """The kind of picture that the ending of ``path`` asks for; ValueError if matplotlib cannot write it."""
    kind = Path(path).suffix.lower().removeprefix(".")
    known = FigureCanvasAgg.get_supported_filetypes()
    if kind not in known:
        raise ValueError(f"{path}: expected an ending among {', '.join(sorted(known))}; got {kind or 'none'!r}")
    return kind


def _column(flow: Flow, data: ArrayLike) -> NDArray[np.float64]:
    if flow.features != 1 or flow.context:
        raise ValueError(f"flow: expected one feature and no context, got {flow.features} and context {flow.context}")
    values = np.asarray(data, dtype=np.float64)
    if values.size == 0 or values.shape not in ((values.size,), (values.size, 1)):
        raise ValueError(f"data: expected shape (N,) or (N, 1), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"data: expected finite numbers, got {values[~np.isfinite(values)][0]}")
    return values.reshape(-1)


def _rows(flow: Flow, data: ArrayLike) -> NDArray[np.float64]:
    if flow.context:
        raise ValueError(f"flow: expected no context, got {flow.context}")
    values = np.asarray(data, dtype=np.float64)
    if values.shape[1:] == tuple(flow.event_shape):  # images are rows of pixels here
        values = values.reshape(len(values), flow.features)
    if values.ndim != 2 or values.shape[1] != flow.features or len(values) == 0:
        raise ValueError(f"data: expected shape (N, {flow.features}), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"data: expected finite numbers, got {values[~np.isfinite(values)][0]}")
    return values


def _limits(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.001, 0.999])
    margin = 0.08 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def _two_histograms(
    values: NDArray[np.float64], drawn: NDArray[np.float64], limits: tuple[float, float], ax: Axes
) -> None:
    bins = [float(edge) for edge in np.linspace(*limits, 61)]
    styles: dict[str, dict[str, Any]] = {
        "data": _DATA,
        "samples": {"histtype": "step", **_MODEL, "linewidth": 1.2},
    }
    for (label, style), column in zip(styles.items(), (values, drawn), strict=True):
        # Weights, not density=True: what lies outside the picture belongs to the total.
        weight = np.full(len(column), 1.0 / (len(column) * (bins[1] - bins[0])))
        ax.hist(column, bins=bins, weights=weight, label=label, **style)
    ax.set(xlim=limits)


def _tensor(flow: Flow, values: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(values).to(like(flow))


def _grid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    margin = 0.05 * np.ptp(values)
    return np.linspace(values.min() - margin, values.max() + margin, 1000)


def _bins(values: NDArray[np.float64]) -> list[float]:
    count = min(100, max(20, round(len(values) ** 0.5)))
    low, high = float(values.min()), float(values.max())
    # The edges of numpy.histogram_bin_edges, which before NumPy 2 also gives edges that coincide.
    half = 0.5 if low == high else 0.0
    edges = np.linspace(low - half, high + half, count + 1)
    if not (np.diff(edges) > 0.0).all():
        raise ValueError(
            f"data: expected a range that float64 can divide into {count} bins, got numbers from {low!r} to {high!r}"
        )
    return [float(edge) for edge in edges]


def _name(flow: Flow, column: int = 0) -> str:
    columns = flow.notes.get("columns")
    if columns:
        return str(columns[column])
    return f"x{column + 1}" if flow.features > 1 else "x"
