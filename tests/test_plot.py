"""Pictures: what is drawn is what was computed, and pyplot is left alone."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from mixflow import flows
from mixflow.train import History
from mixflow.transforms import Compose, Dequantize, Logit, Reshape

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


@pytest.fixture
def pair(data):
    return np.stack([data, data**2, np.ones_like(data) + 1e-3 * data], axis=1)


@pytest.fixture
def several(pair):
    flow = flows.gaussianization(3, 2)
    flow.initialize(torch.from_numpy(pair).float())
    flow.notes["columns"] = ["length", "area", "height"]
    return flow


def test_corner_draws_data_against_samples(several, pair):
    figure = Figure()
    pair = np.tile(pair, (5, 1))
    pair[0] = 1e6  # far outside the picture
    plot.corner(several, pair, figure, points=100)
    axes = np.array(figure.axes).reshape(3, 3)
    assert [[ax.axison for ax in row] for row in axes] == [[True, False, False], [True, True, False], [True] * 3]
    scattered, sampled = axes[2, 1].lines
    step = -(-len(pair) // 100)
    np.testing.assert_array_equal(scattered.get_xdata(), pair[::step, 1])
    np.testing.assert_array_equal(scattered.get_ydata(), pair[::step, 2])
    drawn = several.sample(10_000, seed=0).double().numpy()
    np.testing.assert_array_equal(np.stack(sampled.get_data(), 1), drawn[: len(pair[::step]), 1:])
    assert axes[2, 1].get_xlim() == axes[1, 1].get_xlim()
    assert axes[1, 0].get_xlim()[1] < 1e5
    bars = axes[0, 0].patches[:60]
    inside = np.mean((pair[:, 0] >= bars[0].get_x()) & (pair[:, 0] <= bars[-1].get_x() + bars[-1].get_width()))
    assert inside < 1.0
    assert area(bars) == pytest.approx(inside, abs=1e-9)
    assert [ax.get_xlabel() for ax in axes[2]] == ["length", "area", "height"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["density", "area", "height"]
    assert axes[0, 0].get_legend()


def test_corner_of_many_features_draws_the_first_eight():
    figure = Figure()
    plot.corner(flows.gaussianization(9, 1), np.random.default_rng(0).normal(size=(30, 9)), figure)
    assert len(figure.axes) == 64
    assert figure.axes[-1].get_xlabel() == "x8"


def test_corner_of_images_draws_their_first_pixels():
    shape = 1, 4, 4
    flow = flows.Flow(Compose(Dequantize(shape, levels=3), Reshape(shape, 16), Logit(16), Reshape(16, shape)))
    drawn = []
    for given in (np.ones((30, *shape)), np.ones((30, 16))):
        figure = Figure()
        plot.corner(flow, given, figure)
        drawn.append([len(ax.collections) for ax in figure.axes])
    assert drawn[0] == drawn[1]
    assert sum(ax.axison for ax in figure.axes) == 8 * 9 // 2


def test_summary_of_several_features_is_a_corner_and_the_training(several, pair, history):
    assert len(plot.summary(several, pair).axes) == 9
    axes = plot.summary(several, pair, history).axes
    assert len(axes) == 10
    assert axes[-1].get_title() == "Training"


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
    with pytest.raises(ValueError, match=r"data: expected shape \(N, 2\), got \(400,\)"):
        plot.summary(flows.gaussianization(2), data)
    with pytest.raises(ValueError, match=r"data: expected shape \(N, 2\), got \(0, 2\)"):
        plot.corner(flows.gaussianization(2), np.empty((0, 2)), Figure())
    with pytest.raises(ValueError, match="data: expected finite numbers, got nan"):
        plot.corner(flows.gaussianization(2), [[1.0, np.nan]], Figure())
    with pytest.raises(ValueError, match="flow: expected no context, got 1"):
        plot.corner(flows.gaussianization(2, context=1), np.zeros((5, 2)), Figure())
    with pytest.raises(ValueError, match="flow: expected one feature and no context"):
        plot.cdf_map(flows.univariate(context=2), data, ax)


def test_importing_mixflow_imports_neither_matplotlib_nor_pyarrow_and_plot_not_pyplot():
    code = (
        "import sys, mixflow; assert not {'matplotlib', 'pyarrow'} & set(sys.modules);"
        "import mixflow.plot; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_the_message_says_what_to_install():
    code = "import sys; sys.modules['matplotlib'] = None; sys.modules['matplotlib.axes'] = None; import mixflow.plot"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: pictures need matplotlib: pip install mixflow[plot]"
