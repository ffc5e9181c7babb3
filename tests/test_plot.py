"""Pictures: what is drawn is what was computed, and pyplot is left alone."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from mixflow import flows
from mixflow.train import History

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from mixflow import plot


@pytest.fixture
def data():
    return np.random.default_rng(0).normal(3.0, 2.0, size=400)


@pytest.fixture
def flow(data):
    flow = flows.univariate(components=2)
    flow.initialize(torch.from_numpy(data).float().unsqueeze(-1))
    return flow


@pytest.fixture
def history():
    return History([-2.0, -1.5, -1.6], [-2.1, -1.4, -1.7], [0.1, 0.05, 0.0], [1.0, 1.0, 1.0])


def area(patches):
    return sum(p.get_width() * p.get_height() for p in patches)


def test_density_draws_the_density(flow, data):
    ax = Figure().subplots()
    plot.density(flow, data, ax)
    x, y = ax.lines[0].get_data()
    expected = flow.log_prob(torch.from_numpy(np.asarray(x)).float()).exp().detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert x.min() < data.min()
    assert x.max() > data.max()
    assert area(ax.patches) == pytest.approx(1.0)


def test_cdf_map_draws_the_map(flow, data):
    ax = Figure().subplots()
    plot.cdf_map(flow, data, ax)
    x, z = ax.lines[0].get_data()
    assert np.all(np.diff(z) > 0)
    expected = flow.transform(torch.from_numpy(np.asarray(x)).float())[0].detach().numpy()
    np.testing.assert_allclose(z, expected, rtol=1e-6)
    assert "normal base" in ax.get_ylabel()


def test_training_draws_both_curves_and_marks_the_best(history):
    ax = Figure().subplots()
    plot.training(history, ax)
    train, validation, best = ax.lines
    assert list(train.get_ydata()) == history.train_log_prob
    assert list(validation.get_ydata()) == history.validation_log_prob
    assert list(best.get_xdata()) == [2]
    assert "nats" in ax.get_ylabel()
    ax = Figure().subplots()
    plot.training(History([-2.0], [], [0.1], [1.0]), ax)
    assert len(ax.lines) == 2


def test_samples_outside_the_picture_count(flow, data):
    ax = Figure().subplots()
    plot.samples(flow, data[np.abs(data - 3.0) < 1.0], ax)
    corners = ax.patches[-1].get_xy()
    drawn = np.trapezoid(corners[:, 1], corners[:, 0]) if hasattr(np, "trapezoid") else None
    inside = flow.sample(10_000, seed=0).numpy()
    shown = data[np.abs(data - 3.0) < 1.0]
    fraction = np.mean((inside >= shown.min()) & (inside <= shown.max()))
    assert fraction < 0.5
    if drawn is not None:
        assert abs(drawn) == pytest.approx(fraction, abs=1e-6)


def test_summary_has_a_panel_for_each_and_labels_all(flow, data, history):
    flow.notes["columns"] = ["length"]
    for given, titles in [
        (history, ["Density", "Map to the base", "Samples", "Training"]),
        (None, ["Density", "Map to the base", "Samples"]),
    ]:
        figure = plot.summary(flow, data, given)
        assert [ax.get_title() for ax in figure.axes] == titles
        assert all(ax.get_xlabel() and ax.get_ylabel() and ax.get_legend() for ax in figure.axes)
        assert figure.axes[0].get_xlabel() == "length"


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_figures_are_saved_whole(flow, data, tmp_path, ending, start):
    path = tmp_path / f"picture.{ending}"
    plot.save_figure(plot.summary(flow, data), path)
    assert path.read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match=r"expected an ending among .*; got 'xyz'"):
        plot.save_figure(Figure(), tmp_path / "picture.xyz")
    with pytest.raises(OSError, match="cannot write here"):
        plot.save_figure(Figure(), tmp_path / "missing" / "picture.png")


def test_bad_input_is_named(flow, data):
    ax = Figure().subplots()
    with pytest.raises(ValueError, match=r"data: expected shape \(N,\) or \(N, 1\), got \(200, 2\)"):
        plot.density(flow, data.reshape(200, 2), ax)
    with pytest.raises(ValueError, match="data: expected shape"):
        plot.samples(flow, [], ax)
    for near in (np.array([1e16, 1e16 + 2.0]), np.full(5, 1e17)):
        with pytest.raises(ValueError, match=r"data: expected a range that float64 can divide .*from 1e\+1[67] to"):
            plot.density(flow, near, ax)
    with pytest.raises(ValueError, match="data: expected finite numbers, got inf"):
        plot.density(flow, [1.0, np.inf], ax)
    with pytest.raises(ValueError, match="flow: expected one feature and no context"):
        plot.cdf_map(flows.univariate(context=2), data, ax)


def test_importing_mixflow_imports_neither_matplotlib_nor_pyarrow_and_plot_not_pyplot():
    code = (
        "import sys, mixflow; assert not {'matplotlib', 'pyarrow'} & set(sys.modules);"
        "import mixflow.plot; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
