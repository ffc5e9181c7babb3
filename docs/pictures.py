"""Draw the pictures of the documentation from the code that its pages show.

    python docs/pictures.py

The script runs the Python blocks of ``tutorial.md`` in order, as the tests do, and draws from the variables that they
leave. So a picture cannot show anything that the text beside it does not compute. Each function below draws one file of
``docs/pictures/``, which has the function's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rooms
import torch
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

DOCS = Path(__file__).parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PICTURES: dict[str, Callable[[dict[str, Any]], Figure]] = {}

# Okabe and Ito's colours, which colour-blind readers can tell apart.
DATA, FIRST, SECOND, THIRD = "0.82", "#0072B2", "#D55E00", "#009E73"
GRID = torch.linspace(-4.5, 7.5, 1201)
STYLE = {
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "font.size": 9,
    "grid.color": "0.92",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def picture(draw: Callable[[dict[str, Any]], Figure]) -> Callable[[dict[str, Any]], Figure]:
    """Register ``draw``, which takes the variables of the page, under the name of its file."""
    PICTURES[draw.__name__.replace("_", "-")] = draw
    return draw


def panels(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches with ``columns`` panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, columns)))
    for ax in axes:
        ax.set_axisbelow(True)
    return figure, axes


def histogram(ax: Axes, values: torch.Tensor, bins: int = 80, label: str | None = None, **style: Any) -> None:
    """The density of ``values`` in bars."""
    ax.hist(values.detach().flatten().numpy(), bins=bins, density=True, **({"color": DATA, "label": label} | style))


def data_panel(ax: Axes, page: dict[str, Any]) -> None:
    """The page's data, as every panel of one variable shows them."""
    histogram(ax, page["x"], bins=np.linspace(-4.5, 7.5, 97), label="data x")
    ax.set(xlabel="x", ylabel="density", xlim=(-4.5, 7.5))


Curve = tuple[Any, Any]


def draw_map(density: Curve, z: torch.Tensor, base: Curve, steps: Curve, label: str) -> Figure:
    """A map with the ``density`` of x below it and that of the ``base`` to its left, joined at some ``steps``."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 3.5), height_ratios=(2.4, 1))
    main = figure.add_subplot(grid[0, 1])
    left = figure.add_subplot(grid[0, 0], sharey=main)
    below = figure.add_subplot(grid[1, 1], sharex=main)
    lowest = float(base[0].min())
    main.plot(density[0], z, color=FIRST, label=label)
    left.fill_betweenx(base[0], base[1], color=DATA)
    below.fill_between(density[0], density[1], color=DATA)
    for x, level in zip(*steps, strict=True):
        main.plot([density[0].min(), x, x], [level, level, lowest], color=SECOND, linewidth=0.8)
    left.invert_xaxis()
    left.set(xlabel="density of z", ylabel="z", ylim=(lowest, float(base[0].max())))
    below.set(
        xlabel="x", ylabel="density of x", xlim=(float(density[0].min()), float(density[0].max())), ylim=(0.0, None)
    )
    main.legend(loc="lower right")
    main.tick_params(labelbottom=False, labelleft=False)
    return figure


@picture
def likelihood(page: dict[str, Any]) -> Figure:
    figure, (ax,) = panels(1, 6.4, 2.7)
    data_panel(ax, page)
    mean, std = page["mean"].item(), page["log_std"].exp().item()
    for at, scale, color, style in ((mean, std, FIRST, "-"), (-2.0, 0.5, SECOND, "--"), (1.0, 1.5, THIRD, ":")):
        normal = torch.distributions.Normal(at, scale)
        score = normal.log_prob(page["x"]).mean().item()
        label = f"mean {at:.1f}, standard deviation {scale:.1f}: {score:.2f} nats"
        ax.plot(GRID, normal.log_prob(GRID).exp(), style, color=color, label=label)
    ax.legend()
    return figure


@picture
def mixture(page: dict[str, Any]) -> Figure:
    figure, (ax,) = panels(1, 6.4, 2.7)
    data_panel(ax, page)
    weights, loc, scale = (page[name].detach() for name in ("logits", "loc", "log_scale"))
    for weight, at, log_scale in zip(weights.softmax(0), loc, scale, strict=True):
        part = weight * torch.distributions.Normal(at, log_scale.exp()).log_prob(GRID).exp()
        ax.plot(GRID, part, color=SECOND, linewidth=1.0)
    ax.plot([], [], color=SECOND, linewidth=1.0, label="weighted components")
    ax.plot(GRID, page["mixture"](GRID).detach().exp(), color=FIRST, label=f"mixture: {page['score_mixture']:.2f} nats")
    ax.legend()
    return figure


@picture
def change_of_variables(page: dict[str, Any]) -> Figure:
    x = page["positive"]
    z = torch.linspace(-2.6, 1.6, 300)
    base = z, torch.distributions.Normal(0.0, 1.0).log_prob(z).exp()
    steps = np.arange(-2.0, 1.01, 0.5)
    return draw_map((x, page["log_p_lognormal"].exp()), x.log(), base, (np.exp(steps), steps), "z = log x")


@picture
def idea(page: dict[str, Any]) -> Figure:
    parameters = [page[name].detach() for name in ("logits", "loc", "log_scale")]
    z, _ = page["mixflow"].cdf_transform(GRID, *parameters)
    base = torch.linspace(-3.0, 3.0, 300)
    steps = torch.arange(-2.0, 2.01, 0.25)
    at, _ = page["mixflow"].cdf_transform_inverse(steps, *parameters)
    density = GRID, page["mixture"](GRID).detach().exp()
    normal = base, torch.distributions.Normal(0.0, 1.0).log_prob(base).exp()
    return draw_map(density, z, normal, (at, steps), "z = $G^{-1}$(F(x))")


@picture
def affine_flow(page: dict[str, Any]) -> Figure:
    figure, axes = panels(2, 6.4, 2.3)
    mean, std = page["mean"].item(), page["log_std"].exp().item()
    axes[0].plot(GRID, (GRID - mean) / std, color=FIRST)
    axes[0].set(xlabel="x", ylabel="z", title="the map z = (x - mean) / std")
    data_panel(axes[1], page)
    bins = np.linspace(-7.5, 7.5, 76)
    histogram(axes[1], page["samples"], bins=bins, histtype="step", color=FIRST, label="samples", linewidth=1.4)
    axes[1].set(title="data and samples", xlim=(-7.5, 7.5))
    axes[1].legend()
    return figure


@picture
def cdf_layer(page: dict[str, Any]) -> Figure:
    figure, axes = panels(3, 7.2, 2.3)
    data_panel(axes[0], page)
    axes[0].plot(GRID, page["mixture"](GRID).detach().exp(), color=FIRST)
    parameters = [page[name].detach() for name in ("logits", "loc", "log_scale")]
    u, _ = page["mixflow"].cdf_transform(page["x"], *parameters, base="uniform")
    z, _ = page["mixflow"].cdf_transform(page["x"], *parameters, base="normal")
    histogram(axes[1], u, bins=40)
    axes[1].axhline(1.0, color=FIRST)
    histogram(axes[2], z, bins=60)
    axes[2].plot(GRID, torch.distributions.Normal(0.0, 1.0).log_prob(GRID).exp(), color=FIRST)
    axes[0].set(title="x")
    axes[1].set(title="u = F(x), uniform", xlabel="u")
    axes[2].set(title="z = $G^{-1}$(u), normal", xlabel="z", xlim=(-4.0, 4.0))
    return figure


@picture
def sigmoidal(page: dict[str, Any]) -> Figure:
    figure, axes = panels(2, 6.8, 2.6)
    relu = torch.relu(GRID)
    axes[0].plot(GRID, relu, "--", color=SECOND, label="ReLU")
    log_slope = torch.where(GRID > 0, 0.0, torch.nan)
    axes[1].plot(GRID, log_slope, "--", color=SECOND, label="ReLU: $-\\infty$ for x < 0")
    for name, color, label in (("one_layer", THIRD, "one sigmoidal layer"), ("three_layers", FIRST, "three layers")):
        with torch.no_grad():
            z, ladj = page[name].transform(GRID)
        axes[0].plot(GRID, z, color=color, label=label)
        axes[1].plot(GRID, ladj, color=color, label=label)
    axes[0].set(xlabel="x", ylabel="z", title="the map")
    axes[1].set(xlabel="x", ylabel="log dz/dx", title="its log-slope")
    axes[0].legend()
    axes[1].legend()
    return figure


@picture
def inverse_cdf(page: dict[str, Any]) -> Figure:
    figure, (ax,) = panels(1, 6.4, 3.0)
    parameters = [page[name].detach() for name in ("logits", "loc", "log_scale")]
    cdf, _ = page["mixflow"].cdf_transform(GRID, *parameters, base="uniform")
    ax.plot(GRID, cdf, color=FIRST, label="u = F(x)")
    u = (torch.arange(25) + 0.5) / 25
    x, _ = page["mixflow"].cdf_transform_inverse(u, *parameters, base="uniform")
    for level, at in zip(u.tolist(), x.tolist(), strict=True):
        ax.plot([-4.5, at, at], [level, level, 0.0], color=SECOND, linewidth=0.7)
    ax.plot(x, torch.zeros_like(x), "|", color=SECOND, markersize=14, clip_on=False, label="x with F(x) = u")
    ax.set(xlabel="x", ylabel="u", xlim=(-4.5, 7.5), ylim=(0.0, 1.0))
    ax.legend(loc="lower right")
    return figure


@picture
def transport(page: dict[str, Any]) -> Figure:
    figure, axes = panels(3, 7.2, 2.3)
    data_panel(axes[0], page)
    to_uniform = page["transforms"].Rebase(1, "normal", "uniform")
    with torch.no_grad():
        u, _ = to_uniform(page["source"].transform(page["x"].unsqueeze(-1))[0])
    histogram(axes[1], u, bins=40)
    bins = np.linspace(2.5, 7.5, 101)
    histogram(axes[2], page["y"], bins=bins, label="data y")
    histogram(axes[2], page["carried"], bins=bins, histtype="step", color=FIRST, label="x, carried", linewidth=1.2)
    axes[0].set(title="source x")
    axes[1].set(title="u = $F_{source}$(x)", xlabel="u")
    axes[2].set(title="target y = $F_{target}^{-1}$(u)", xlabel="y", xlim=(2.5, 7.5), ylim=(0.0, 1.0))
    axes[2].legend(ncols=2, loc="upper center")
    return figure


@picture
def jacobians(page: dict[str, Any]) -> Figure:
    figure, axes = panels(2, 5.2, 2.6)
    for ax, (name, slopes) in zip(axes, page["jacobians"].items(), strict=True):
        ax.imshow(slopes != 0.0, cmap="Blues", vmin=0.0, vmax=1.4)
        ax.grid(visible=False)
        ticks = range(len(slopes))
        ax.set(title=name, xlabel="column j of x", ylabel="column i of z", xticks=ticks, yticks=ticks)
        ax.set(xticklabels=[str(tick + 1) for tick in ticks], yticklabels=[str(tick + 1) for tick in ticks])
    return figure


@picture
def checkerboard(page: dict[str, Any]) -> Figure:
    figure, axes = panels(5, 9.0, 2.2)
    shown = {"data": page["board"][:1500]}
    shown |= {name: flow.sample(1500, seed=0) for name, flow in page["recipes"].items()}
    for ax, (name, rows) in zip(axes, shown.items(), strict=True):
        ax.plot(*rows.T, ".", color="0.45" if name == "data" else FIRST, markersize=1.5)
        score = f"\n{page['scores'][name]:.2f} nats" if name in page["scores"] else "\n"
        ax.set(title=name + score, xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal", xlabel="column 1")
        ax.grid(visible=False)
    axes[0].set(ylabel="column 2")
    return figure


@picture
def house(page: dict[str, Any]) -> Figure:
    return rooms.draw()


def variables_of(page: Path) -> dict[str, Any]:
    """Run the Python blocks of ``page`` in order, and return the variables that they leave."""
    names: dict[str, Any] = {}
    text = page.read_text()
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], str(page), "exec"), names)
    return names


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` as a PNG of at most 64 colours, which takes a third of the bytes and looks the same."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    rcParams.update(STYLE)
    page = variables_of(DOCS / "tutorial.md")
    for name, draw in PICTURES.items():
        path = DOCS / "pictures" / f"{name}.png"
        save(draw(page), path)
        print(f"wrote {path.relative_to(DOCS.parent)}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
