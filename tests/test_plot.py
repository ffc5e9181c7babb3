"""Pictures: what is drawn is what was computed, names are drawn as they are, and pyplot is left alone."""

import io
import math
import subprocess
import sys
import tracemalloc
import warnings
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch

from mixflow import flows
from mixflow.fitting.fit import History
from mixflow.transforms import Affine, Compose, Dequantize, Logit, Reshape, Transform

pytest.importorskip("matplotlib")

import matplotlib as mpl
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


class Shift(Transform):
    """``x = z + 10 c`` for each feature and the first context c, so that p(x | c) is known."""

    def _forward(self, x, context):
        return x - 10.0 * context[..., :1], torch.zeros_like((x - context[..., :1])[..., 0])

    def _inverse(self, z, context):
        return z + 10.0 * context[..., :1], torch.zeros_like((z + context[..., :1])[..., 0])


def bars(ax):
    """The heights and edges of the histograms on ``ax``, data first."""
    return [(patch.get_data().values, patch.get_data().edges) for patch in ax.patches]


def area(ax, which=0):
    heights, edges = bars(ax)[which]
    return float(np.sum(heights * np.diff(edges)))


def drawn_quietly(figure):
    """Draw the figure, in which nothing may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.draw_without_rendering()


def texts_of(figure):
    """The lines of text on a figure, from an SVG file that keeps letters as letters."""
    file = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(file, format="svg")
    elements = ElementTree.fromstring(file.getvalue()).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()).strip() for element in elements]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# -- one feature ---------------------------------------------------------------------------------------------


def test_density_draws_the_density(flow, data):
    ax = Figure().subplots()
    plot.density(flow, data, ax)
    x, y = ax.lines[0].get_data()
    expected = flow.log_prob(torch.from_numpy(np.asarray(x))).exp().detach().numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    assert x.min() < data.min()
    assert x.max() > data.max()
    assert area(ax) == pytest.approx(1.0)


def test_cdf_map_draws_the_map(flow, data):
    ax = Figure().subplots()
    plot.cdf_map(flow, data, ax)
    x, z = ax.lines[0].get_data()
    assert np.all(np.diff(z) > 0)
    expected = flow.transform(torch.from_numpy(np.asarray(x)))[0].detach().numpy()
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
    assert [line.get_marker() for line in ax.lines] == ["o", "o"]  # one epoch can be seen, too
    low, high = ax.get_xlim()
    assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [1.0]
    plot.training(History(), ax := Figure().subplots())
    drawn_quietly(ax.figure)


def test_training_marks_the_start_if_it_was_kept(history):
    history.starts, history.kept = {"the start": -1.3}, "the start"
    ax = Figure().subplots()
    plot.training(history, ax)
    assert list(ax.lines[-1].get_ydata()) == [-1.3, -1.3]
    assert legend(ax)[-1] == "kept (the start)"


def test_samples_outside_the_picture_count(flow, data):
    ax = Figure().subplots()
    plot.samples(flow, data[np.abs(data - 3.0) < 1.0], ax)
    low, high = bars(ax)[1][1][[0, -1]]
    drawn = flow.sample(20_000, seed=0).numpy()
    inside = np.mean((drawn >= low) & (drawn <= high))
    assert 0.3 < inside < 0.6
    assert area(ax, 1) == pytest.approx(inside, abs=1e-9)


def test_data_far_outside_are_left_out_of_the_picture_and_counted(flow, data):
    far = np.append(data, [-9999.0, 1e6, 1e7])
    ax = Figure().subplots()
    plot.density(flow, far, ax)
    low, high = ax.get_xlim()
    assert data.min() - 2.0 < low < data.min()
    assert data.max() < high < data.max() + 2.0
    assert legend(ax) == ["data (3 outside)", "flow"]
    assert area(ax) == pytest.approx(400 / 403)
    # A second mode is no outlier, however far it is.
    plot.density(flow, np.append(data, np.full(20, -9999.0)), ax := Figure().subplots())
    assert ax.get_xlim()[0] < -9999.0
    assert legend(ax)[0] == "data"


def test_bars_of_rounded_data_hold_as_many_steps_each(flow):
    counts = np.random.default_rng(0).poisson(5.0, 1000)
    for values, step in ((counts, 1.0), (counts / 10, 0.1), (counts * 37.0, 37.0)):
        ax = Figure().subplots()
        plot.density(flow, values, ax)
        heights, edges = bars(ax)[0]
        np.testing.assert_allclose(edges, values.min() + step * (np.arange(len(edges)) - 0.5), atol=1e-9)
        np.testing.assert_allclose(heights * step, np.bincount(counts - counts.min()) / 1000)
    plot.density(flow, np.append(counts, 1e15), ax := Figure().subplots())
    np.testing.assert_allclose(bars(ax)[0][0], np.bincount(counts - counts.min()) / 1001)


def test_peaks_at_repeated_values_do_not_hide_the_bars(data):
    flow = flows.univariate(components=2)
    flow.initialize(torch.tensor([0.0, 1.0] * 50))
    ax = Figure().subplots()
    plot.density(flow, [0.0, 1.0] * 50, ax)
    x, y = ax.lines[0].get_data()
    assert {0.0, 1.0} <= set(x)
    assert y.max() > 10.0
    assert ax.get_ylim()[1] < 4.0 * bars(ax)[0][0].max()
    assert legend(ax) == ["data", "flow (peaks cut off)"]


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


ODD = {
    "one row": [5.0],
    "two rows": [1.0, 2.0],
    "a constant": np.full(100, 3.7),
    "a constant 0": np.zeros(3),
    "a huge constant": np.full(5, 1e17),
    "two neighbours of float64": [1e16, 1e16 + 2.0],
    "an offset": 1e9 + np.linspace(-1.0, 1.0, 50),
    "tiny": 1e-300 * np.linspace(1.0, 2.0, 50),
    "subnormal": [0.0, 5e-324],
    "large": 1e200 * np.linspace(-1.0, 2.0, 50),
    "huge": 1e300 * np.linspace(-1.0, 2.0, 50),
    "all of float64": [-1.7e308, 0.0, 1.7e308],
    "tiny and huge": [*np.linspace(1e-300, 9e-300, 500), 1e300],
    "integers": np.arange(7),
    "booleans": np.array([True, False, True]),
    "float16": np.linspace(0.0, 1.0, 9).astype(np.float16),
    "big-endian": np.linspace(0.0, 1.0, 9).astype(">f8"),
}


@pytest.mark.parametrize("values", ODD.values(), ids=ODD)
def test_odd_data_are_drawn_without_a_warning(values):
    figure, flow = Figure(), flows.univariate(components=2).double()
    density, samples, mapped = figure.subplots(3)
    plot.density(flow, values, density)
    plot.samples(flow, values, samples)
    plot.cdf_map(flow, values, mapped)
    drawn_quietly(figure)
    for ax in (density, samples):
        heights, edges = bars(ax)[0]
        assert np.isfinite(heights).all()
        assert np.all(np.diff(edges) > 0.0)
        assert 1e-3 < (edges[-1] - edges[0]) * heights.max() < 1e3  # some bar can be seen
        assert ax.get_xlim() == (edges[0], edges[-1])  # and matplotlib has not put another range in its place


def test_odd_columns_are_drawn_side_by_side_without_a_warning():
    several = np.stack([np.resize(ODD[name], 60) for name in ODD if name != "big-endian"][::3], axis=1)
    assert several.shape == (60, 6)
    figure = plot.summary(flows.gaussianization(6, 1).double(), several)
    drawn_quietly(figure)
    for place, ax in enumerate(grid(figure).diagonal()):
        _, edges = bars(ax)[0]
        assert ax.get_xlim() == grid(figure)[-1, place].get_xlim() == (edges[0], edges[-1])


def test_units_of_extreme_numbers_are_in_the_label():
    figure = plot.summary(flows.univariate(), 1e-300 * np.linspace(1.0, 2.0, 50))
    assert figure.axes[0].get_xlabel() == "x / 1e-300"
    low, high = figure.axes[0].get_xlim()
    assert 0.9 < low < 1.0
    assert 2.0 < high < 2.1


# -- several features ----------------------------------------------------------------------------------------


@pytest.fixture
def pair(data):
    return np.stack([data, data**2, np.ones_like(data) + 1e-3 * data], axis=1)


@pytest.fixture
def several(pair):
    flow = flows.gaussianization(3, 2)
    flow.initialize(torch.from_numpy(pair).float())
    flow.notes["columns"] = ["length", "area", "height"]
    return flow


def grid(figure):
    side = math.isqrt(len(figure.axes))
    return np.array(figure.axes).reshape(side, -1)


def test_corner_draws_data_against_samples(several, pair):
    figure = Figure()
    pair = np.tile(pair, (5, 1))
    pair[0] = 1e6  # far outside the picture
    plot.corner(several, pair, figure, points=100)
    axes = grid(figure)
    assert [[ax.axison for ax in row] for row in axes] == [[True, False, False], [True, True, False], [True] * 3]
    scattered, sampled = axes[2, 1].lines
    rows = {tuple(row) for row in pair[:, 1:]}
    drawn = {tuple(row) for row in several.sample(20_000, seed=0).double().numpy()[:, 1:]}
    for line, source in ((scattered, rows), (sampled, drawn)):
        points = list(zip(*line.get_data(), strict=True))
        assert len(points) == 100
        assert set(points) <= source
    assert axes[2, 1].get_xlim() == axes[1, 1].get_xlim()
    assert axes[2, 1].get_ylim() == axes[2, 0].get_ylim() == axes[2, 2].get_xlim()
    assert axes[1, 0].get_xlim()[1] < 1e5
    edges = bars(axes[0, 0])[0][1]
    inside = np.mean((pair[:, 0] >= edges[0]) & (pair[:, 0] <= edges[-1]))
    assert inside < 1.0
    assert area(axes[0, 0]) == pytest.approx(inside, abs=1e-9)
    assert [ax.get_xlabel() for ax in axes[2]] == ["length", "area", "height"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["density", "area", "height"]
    assert [text.get_text() for text in axes[0, 1].get_legend().get_texts()] == ["data", "samples"]


@pytest.fixture
def wide():
    """Twelve columns, of which eight depend on one another; two are constant, one holds few values."""
    x = np.random.default_rng(0).normal(size=(3000, 12))
    for first, second in ((1, 10), (2, 5), (3, 11), (6, 9)):
        x[:, second] = np.exp(x[:, first] + 0.5 * x[:, second])
    x[:, [4, 8]] = 7.0
    x[:, 7] = x[:, 7] > 1.0
    return x


def test_corner_of_many_features_draws_those_that_depend_on_one_another(wide):
    figure = plot.summary(flows.gaussianization(12, 1), wide)
    assert [ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()] == [
        f"x{d + 1}" for d in (1, 2, 3, 5, 6, 9, 10, 11)
    ]
    assert "8 of 12 columns: those with the strongest rank correlations" in {
        t._suptitle.get_text() for t in figure.subfigs
    }
    assert [ax.get_title() for ax in figure.axes[-12:]] == [f"x{d}" for d in range(1, 13)]  # of each a histogram
    drawn_quietly(figure)


def test_the_caller_chooses_columns_by_name_or_number(wide):
    flow = flows.gaussianization(12, 1)
    flow.notes["columns"] = [*"abcdefghijk", "twelve"]
    for columns in (["twelve", "b"], [11, np.int64(1)], ["twelve", 1, "b"]):
        figure = Figure()
        plot.corner(flow, wide, figure, columns=columns)
        assert [ax.get_xlabel() for ax in grid(figure)[1]] == ["twelve", "b"]
        assert figure._suptitle.get_text() == "2 of 12 columns"
        x, y = (set(values) for values in grid(figure)[1, 0].lines[0].get_data())
        assert x <= set(wide[:, 11])
        assert y <= set(wide[:, 1])
    figure = plot.summary(flow, wide, columns=["twelve", "b"])
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "twelve", "b"]
    figure = Figure()
    plot.marginals(flow, wide, figure, columns="twelve")
    assert [ax.get_title() for ax in figure.axes] == ["twelve"]
    plot.corner(flows.gaussianization(9, 1), wide[:, :9], figure := Figure(), columns=range(9))
    assert figure._suptitle is None
    assert len(figure.axes) == 81


def test_marginals_of_very_many_features_are_of_some_that_are_spread_evenly():
    figure = Figure()
    plot.marginals(flows.gaussianization(100, 1), np.random.default_rng(0).normal(size=(30, 100)), figure)
    titles = [int(ax.get_title()[1:]) for ax in figure.axes]
    assert titles[0] == 1
    assert set(np.diff(titles)) == {2, 3}
    assert figure._suptitle.get_text() == "Data (grey) and samples (blue) of 40 of 100 columns"
    assert len(titles) == 40


def test_rows_are_drawn_from_everywhere_whatever_their_period():
    hours = np.arange(48_000) % 24
    figure = Figure()
    plot.corner(flows.gaussianization(2, 1), np.stack([hours, np.arange(48_000)], axis=1), figure)
    hour, row = grid(figure)[1, 0].lines[0].get_data()
    assert set(hour) == set(range(24))
    assert np.all(np.diff(row) > 0)
    assert np.diff(row).max() < 48


def test_corner_of_images_draws_their_pixels():
    shape = 1, 4, 4
    flow = flows.Flow(Compose(Dequantize(shape, levels=3), Reshape(shape, 16), Logit(16), Reshape(16, shape)))
    images = np.random.default_rng(0).integers(0, 3, size=(30, *shape))
    for given in (images, images.reshape(30, 16).astype(float)):
        figure = Figure()
        plot.corner(flow, given, figure, columns=[3, 10])
        x, y = grid(figure)[1, 0].lines[0].get_data()
        np.testing.assert_array_equal(x, images.reshape(30, 16)[:, 3])
        np.testing.assert_array_equal(y, images.reshape(30, 16)[:, 10])
    plot.corner(flow, images, figure := Figure())
    assert sum(ax.axison for ax in figure.axes) == 8 * 9 // 2


def test_summary_of_several_features_is_a_corner_and_the_training(several, pair, history):
    assert len(plot.summary(several, pair).axes) == 9
    axes = plot.summary(several, pair, history).axes
    assert len(axes) == 10
    assert axes[-1].get_title() == "Training"


@pytest.mark.parametrize("features", [2, 4, 7])
def test_the_training_covers_no_panel(history, features):
    x = np.random.default_rng(0).normal(size=(40, features))
    figure = plot.summary(flows.gaussianization(features, 1), x, history)
    drawn_quietly(figure)
    *panels, training = figure.axes
    assert training.get_title() == "Training"
    box = training.get_tightbbox()
    assert not any(box.overlaps(ax.get_tightbbox()) for ax in panels if ax.axison or ax.get_legend())
    assert box.width > 1.8 * 72


# -- names ---------------------------------------------------------------------------------------------------

NAMES = (
    "$",
    "cost $ per $",
    r"$\foo{$",
    "A$ (US$ / AU$)",
    r"\alpha_{1}^2 %d {} #&~",
    r"\$5 and \$6",
    "_hidden",
    "two\nlines",
    "Größe in µm ≤ 3",
    "   ",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_drawn_as_they_are(name, flow, data):
    flow.notes["columns"] = [name]
    figure = Figure(figsize=(12.0, 8.0))
    left, right = figure.subfigures(1, 2)
    several = flows.gaussianization(2, 1, context=1)
    several.notes |= {"columns": ["first", name], "context": [name]}
    x = np.stack([data, data], axis=1)
    plot.corner(several, x, left, context=x[:, :1])
    conditional = flows.univariate(context=1)
    conditional.notes["context"] = [name]
    top, bottom = right.subplots(2)
    plot.density(flow, data, top)
    plot.cdf_map(conditional, data, bottom, context=data[:, None])
    drawn = texts_of(figure)
    unnamed = {"x2": 2, "c1": 1, "x1": 1, "context": 2}  # as "context" stands above the panel of the context
    for line, times in dict.fromkeys(name.split("\n"), 5).items() if name.strip() else unnamed.items():
        assert drawn.count(line.strip()) == times
    if name.strip():
        assert top.get_xlabel() == bottom.get_legend().get_title().get_text() == name
        assert name in [ax.get_xlabel() for ax in left.axes]


def test_names_are_drawn_as_they_are_even_where_the_user_has_latex(flow, data):
    flow.notes["columns"] = ["a_b$"]
    with mpl.rc_context({"text.usetex": True}):
        ax = Figure().subplots()
        plot.density(flow, data, ax)
    assert not ax.xaxis.label.get_usetex()


@pytest.mark.parametrize(("features", "letter"), [(2, "W"), (5, "m "), (9, "_i")])
def test_long_names_lose_their_middle_and_overlap_nothing(features, letter, history):
    x = np.random.default_rng(0).normal(size=(40, features)) + 1e9
    flow = flows.gaussianization(features, 1, context=1)
    flow.notes["columns"] = [f"{d}<{letter * 100}>{d}" for d in range(features)]
    flow.notes["context"] = [f"c<{letter * 100}>c"]
    figure = plot.summary(flow, x, history, context=x[:, :1])
    drawn_quietly(figure)
    labels = [
        text for ax in figure.axes for text in (ax.xaxis.label, ax.yaxis.label, ax.title) if "<" in text.get_text()
    ]
    assert len(labels) == 2 * min(features, 8) + 1 + (features if features > 8 else 0)
    assert all("…" in text.get_text() for text in labels)
    assert len({text.get_text() for text in labels}) >= features + 1
    boxes = [text.get_window_extent() for text in labels]
    offsets = [ax.xaxis.get_offset_text() for ax in figure.axes if "<" in ax.get_xlabel()]
    assert {text.get_text() for text in offsets} == {"+1e9"}
    boxes += [text.get_window_extent() for text in offsets]
    for first, box in enumerate(boxes):
        assert 0.0 <= box.x0 < box.x1 <= figure.bbox.width
        assert 0.0 <= box.y0 < box.y1 <= figure.bbox.height
        assert not any(box.overlaps(other) for other in boxes[first + 1 :])
    assert all(ax.get_window_extent().width > 0.5 * 72 for ax in figure.axes)


def test_a_long_name_is_broken_between_words_before_it_loses_any():
    flow = flows.gaussianization(8, 1)
    flow.notes["columns"] = [f"mean fractal dimension of cell {d}" for d in range(8)]
    figure = plot.summary(flow, np.random.default_rng(0).normal(size=(40, 8)))
    labels = [ax.get_xlabel() for ax in figure.axes[-8:]]
    assert all("\n" in label for label in labels)
    assert [label.replace("\n", " ") for label in labels] == flow.notes["columns"]


UNKNOWN = {
    "two Chinese signs": ("\u6e29\u5ea6 (°C)", "x1 □□ (°C)"),
    "a control character": ("a\x07b", "x1 a□b"),
    "half a surrogate pair": ("a\udcff", "x1 a□"),
    "a tab": ("a\tb", "a b"),
    "other line breaks": ("a\r\nb", "a\nb"),
    "nothing": ("", "x1"),
}


@pytest.mark.parametrize(("name", "shown"), UNKNOWN.values(), ids=UNKNOWN)
def test_letters_that_no_font_has_become_boxes_behind_the_number_of_the_column(name, shown, flow, data, monkeypatch):
    monkeypatch.setattr("mixflow.plot.names.fontManager", NoFonts())
    flow.notes["columns"] = [name]
    figure = Figure()
    plot.density(flow, data, figure.subplots())
    drawn_quietly(figure)
    assert figure.axes[0].get_xlabel() == shown


class NoFonts:
    """A font manager on a computer with the fonts of matplotlib alone."""

    ttflist: tuple = ()


def test_letters_are_drawn_in_an_installed_font_that_has_them(flow, data, tmp_path):
    build = pytest.importorskip("fontTools.fontBuilder").FontBuilder
    pen = pytest.importorskip("fontTools.pens.ttGlyphPen").TTGlyphPen(None)
    for point in ((0, 0), (0, 900), (900, 900), (900, 0)):
        (pen.lineTo if point != (0, 0) else pen.moveTo)(point)
    pen.closePath()
    glyph = pen.glyph()
    font = build(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "sign"])
    font.setupCharacterMap({0xE123: "sign"})  # for private use, which no other font here has
    font.setupGlyf({".notdef": glyph, "sign": glyph})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "sign": (1000, 0)})
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "Mixflow Test", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "test.ttf")
    manager = mpl.font_manager.fontManager
    flow.notes["columns"] = ["\ue123 (°C)"]
    before = list(manager.ttflist)
    try:
        manager.addfont(tmp_path / "test.ttf")
        figure = plot.summary(flow, data)
        drawn_quietly(figure)
    finally:
        manager.ttflist[:] = before
    assert figure.axes[0].get_xlabel() == "\ue123 (°C)"
    assert "Mixflow Test" in figure.axes[0].xaxis.label.get_fontfamily()


# -- contexts ------------------------------------------------------------------------------------------------


@pytest.fixture
def conditional():
    """Two thousand rows of x = z + 10 c for the contexts c = 0 and 1, a quarter and three quarters of the rows."""
    rng = np.random.default_rng(0)
    context = np.stack([np.arange(2000) % 4 > 0, rng.normal(size=2000)], axis=1)
    x = rng.normal(size=2000) + 10.0 * context[:, 0]
    return flows.Flow(Shift(1, context=2)), x, context


def test_density_given_contexts_is_the_mean_over_the_rows(conditional):
    flow, x, context = conditional
    ax = Figure().subplots()
    plot.density(flow, x[:400], ax, context=context[:400])
    grid, y = ax.lines[0].get_data()
    normal = [np.exp(-0.5 * (grid - loc) ** 2) / np.sqrt(2.0 * np.pi) for loc in (0.0, 10.0)]
    np.testing.assert_allclose(y, 0.25 * normal[0] + 0.75 * normal[1], rtol=1e-9, atol=1e-300)
    assert ax.get_title() == "Density: mean over 400 contexts"
    plot.density(flow, x, ax := Figure().subplots(), context=context)
    assert ax.get_title() == "Density: mean over 500 contexts"


@pytest.mark.parametrize("rows", [400, 2000, 100_000])
def test_samples_given_contexts_follow_the_contexts_of_the_data(conditional, rows):
    flow, x, context = conditional
    repeats = -(-rows // 2000)
    x, context = np.tile(x, repeats)[:rows], np.tile(context, (repeats, 1))[:rows]
    ax = Figure().subplots()
    plot.samples(flow, x, ax, context=context)
    (data, edges), (samples, _) = bars(ax)
    width, above = edges[1] - edges[0], edges[:-1] > 5.0
    share = np.mean(context[:, 0])
    assert np.sum(data[above]) * width == pytest.approx(share, abs=0.01)
    assert np.sum(samples[above]) * width == pytest.approx(share, abs=0.02)


def test_each_sample_is_drawn_at_the_context_of_its_row(conditional):
    flow, x, context = conditional
    figure = Figure()
    plot.corner(flow, x, figure, context=context)
    first, second, histogram = figure.axes
    assert [ax.get_xlabel() for ax in figure.axes] == ["c1", "c2", "x"]
    assert first.get_title() == second.get_title() == "context"
    assert len(bars(histogram)) == 2
    for line in first.lines:  # data, and samples
        c, y = line.get_data()
        assert set(c) == {0.0, 1.0}
        assert np.abs(y - 10.0 * c).max() < 6.0
    rows = {tuple(row) for row in context}
    drawn = zip(first.lines[1].get_xdata(), second.lines[1].get_xdata(), strict=True)
    assert set(drawn) <= rows


def test_map_given_contexts_is_drawn_at_five_of_them(conditional):
    flow, x, context = conditional
    context[:, 0] = np.random.default_rng(1).permutation(2000) / 2000
    flow.notes["context"] = ["_day", "$"]
    ax = Figure().subplots()
    plot.cdf_map(flow, x, ax, context=context)
    found = []
    for line in ax.lines[:-1]:
        grid, z = line.get_data()
        np.testing.assert_allclose(np.ptp(grid - z), 0.0, atol=1e-9)  # z = x - 10 c
        found.append((grid - z)[0] / 10.0)
    np.testing.assert_allclose(found, [0.1, 0.3, 0.5, 0.7, 0.9], atol=1e-9)
    assert [float(label.split(",")[0]) for label in legend(ax)] == [0.1, 0.3, 0.5, 0.7, 0.9]
    assert ax.get_legend().get_title().get_text() == "_day, $"
    assert ax.get_title() == "Map to the base at 5 contexts"


def test_summary_given_contexts_draws_the_feature_against_each(conditional, history):
    flow, x, context = conditional
    flow.notes |= {"columns": ["price"], "context": ["weekend", "rain"]}
    figure = plot.summary(flow, x, history, context)
    assert [ax.get_xlabel() for ax in figure.axes] == ["price", "price", "price", "epoch", "weekend", "rain"]
    assert [ax.get_ylabel() for ax in figure.axes[4:]] == ["price", "price"]
    drawn_quietly(figure)


def test_of_many_contexts_those_that_matter_are_drawn():
    rng = np.random.default_rng(0)
    context = rng.normal(size=(1000, 9))
    x = context[:, [2, 8]] + context[:, [4, 6]] + 0.1 * rng.normal(size=(1000, 2))
    figure = plot.summary(flows.gaussianization(2, 1, context=9), x, context=context)
    assert [ax.get_xlabel() for ax in figure.axes[6:]] == ["c3", "c5", "c7", "c9", "x1", "x2"]
    assert figure._suptitle.get_text() == "4 of 9 contexts"


RECIPES = (flows.univariate, flows.gaussianization, flows.coupling, flows.autoregressive, flows.gaussian_mixture)


@pytest.mark.parametrize("build", RECIPES, ids=lambda build: build.__name__)
def test_every_recipe_is_drawn_with_a_context_and_without(build):
    rng = np.random.default_rng(0)
    size = {} if build is flows.univariate else {"features": 2}
    x, context = rng.normal(size=(60, 2 if size else 1)), rng.normal(size=(60, 1))
    for given, dtype in ((None, torch.float32), (context, torch.bfloat16)):
        flow = build(**size, seed=0, context=0 if given is None else 1)
        flow.initialize(torch.from_numpy(x).float(), None if given is None else torch.from_numpy(given).float())
        figure = plot.summary(flow.to(dtype), x, context=given)
        figure.draw_without_rendering()
        histograms = [ax for ax in figure.axes if ax.patches]
        assert all(np.isfinite(heights).all() and heights.max() > 0.0 for ax in histograms for heights, _ in bars(ax))


def test_contexts_of_an_embedding_may_be_labels_or_images():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 2))
    labels = rng.integers(0, 4, size=50)
    flow = flows.gaussianization(2, 1, context=3, embedding=torch.nn.Embedding(4, 3))
    figure = plot.summary(flow, x, context=labels)
    assert figure.axes[3].get_xlabel() == "c1"
    assert set(figure.axes[0].lines[1].get_xdata()) <= set(labels)
    images = torch.nn.Sequential(torch.nn.Flatten(-2), torch.nn.Linear(16, 3))
    flow = flows.univariate(context=3, embedding=images)
    figure = plot.summary(flow, x[:, 0], context=rng.normal(size=(50, 4, 4)))
    assert len(figure.axes) == 3
    assert legend(figure.axes[1])[0].startswith("row ")


# -- size ----------------------------------------------------------------------------------------------------


def test_of_many_rows_few_samples_are_drawn_and_no_copy_is_made():
    flow = flows.gaussianization(40, 1)
    data = np.random.default_rng(0).normal(size=(100_000, 40)).astype(np.float32)
    plot.corner(flow, data[:10], Figure(), columns=[0, 39])  # for what matplotlib keeps
    tracemalloc.start()
    try:
        plot.corner(flow, data, figure := Figure(), columns=[0, 39])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < data.nbytes  # half of a copy in float64
    lines = [line for ax in figure.axes for line in ax.lines]
    assert max(len(line.get_xdata()) for line in lines) == 2000
    ax = Figure().subplots()
    plot.samples(flows.univariate(), data[:, 0], ax)
    assert legend(ax)[1] == "20,000 samples"


def test_of_images_fewer_samples_are_drawn():
    drawn = []

    class Counted(flows.Flow):
        def sample(self, n=(), *args, **kwargs):
            drawn.append(n)
            return super().sample(n, *args, **kwargs)

    for pixels in (28, 784):
        plot.corner(Counted(Logit(pixels)), np.full((10, pixels), 0.5), Figure())
    assert drawn == [20_000, 2551]


# -- the flow, and what is refused ---------------------------------------------------------------------------


def test_a_picture_leaves_the_flow_and_the_random_numbers_as_they_were(data):
    def network(inputs, outputs):
        return torch.nn.Sequential(torch.nn.Linear(inputs, outputs), torch.nn.Dropout(0.5))

    flow = flows.univariate(context=1, network=network)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.fill_(0.3)
    dropout = next(module for module in flow.modules() if isinstance(module, torch.nn.Dropout))
    flow.train()
    affine = next(module for module in flow.modules() if isinstance(module, Affine)).eval()
    modes = [module.training for module in flow.modules()]
    state = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        plot.density(flow, data, ax := Figure().subplots(), context=data[:, None])
        drawn.append(ax.lines[0].get_ydata())
    np.testing.assert_array_equal(*drawn)
    assert [module.training for module in flow.modules()] == modes
    assert dropout.training
    assert not affine.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_tensors_are_drawn_as_arrays_are(several, pair):
    drawn = []
    for given in (pair, torch.from_numpy(pair).requires_grad_(), pair.tolist()):
        plot.corner(several, given, figure := Figure())
        drawn.append(grid(figure)[2, 1].lines[0].get_xdata().tolist())
    assert drawn[0] == drawn[1] == drawn[2]
    plot.corner(several, torch.from_numpy(pair).bfloat16(), Figure())


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_figures_are_saved_whole(flow, data, tmp_path, ending, start):
    path = tmp_path / f"picture.{ending}"
    plot.save_figure(plot.summary(flow, data), path)
    assert path.read_bytes().startswith(start)
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match=r"expected an ending among .*, got 'xyz'"):
        plot.save_figure(Figure(), tmp_path / "picture.xyz")
    with pytest.raises(OSError, match="cannot write here"):
        plot.save_figure(Figure(), tmp_path / "missing" / "picture.png")


def one(**options):
    return flows.univariate(**options)


def two(**options):
    return flows.gaussianization(2, 1, **options)


ZEROS = np.zeros((5, 2))
BAD = {
    "a table for one feature": (
        one(),
        np.zeros((200, 2)),
        {},
        r"data: expected shape \(N,\) or \(N, 1\), got \(200, 2\)",
    ),
    "no rows": (one(), [], {}, r"data: expected shape \(N,\) or \(N, 1\), got \(0,\)"),
    "infinity": (one(), [1.0, np.inf], {}, "data: expected finite numbers, got inf"),
    "a column for two features": (two(), np.zeros(400), {}, r"data: expected shape \(N, 2\), got \(400,\)"),
    "no rows of two": (two(), np.empty((0, 2)), {}, r"data: expected shape \(N, 2\), got \(0, 2\)"),
    "NaN": (two(), [[1.0, np.nan]], {}, "data: expected finite numbers, got nan"),
    "NaN far down": (
        two(),
        np.pad(ZEROS, ((2**20, 0), (0, 0))) / [1.0] + ([[0.0, 0.0]] * 2**20 + [[0.0, np.nan]] * 5),
        {},
        "got nan",
    ),
    "a number": (one(), 3.0, {}, r"data: expected shape \(N,\) or \(N, 1\), got \(\)"),
    "no context": (
        two(context=3),
        ZEROS,
        {},
        r"context: expected shape \(5, 3\), a row for each row of data, got None",
    ),
    "another context": (
        two(context=3),
        ZEROS,
        {"context": ZEROS},
        r"context: expected shape \(5, 3\), a row for each row of data, got \(5, 2\)",
    ),
    "fewer contexts": (
        two(context=2),
        ZEROS,
        {"context": ZEROS[:4]},
        r"context: expected shape \(5, 2\), .* got \(4, 2\)",
    ),
    "one context for all": (
        two(context=2),
        ZEROS,
        {"context": [0.0, 0.0]},
        r"context: expected shape \(5, 2\), .* got \(2,\)",
    ),
    "NaN in a context": (
        two(context=2),
        ZEROS,
        {"context": ZEROS + np.nan},
        "context: expected finite numbers, got nan",
    ),
    "a needless context": (two(), ZEROS, {"context": ZEROS}, r"context: expected None, .* got shape \(5, 2\)"),
    "an unknown column": (
        two(),
        ZEROS,
        {"columns": ["x3"]},
        r"columns: expected numbers from 0 to 1, or names among x1, x2, got 'x3'",
    ),
    "a number too large": (two(), ZEROS, {"columns": [2]}, r"columns: expected numbers from 0 to 1, .*, got 2"),
    "no columns": (two(), ZEROS, {"columns": []}, r"columns: expected 1 to 16 columns, got 0"),
}


@pytest.mark.parametrize(("flow", "data", "given", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(flow, data, given, message):
    with pytest.raises(ValueError, match=message):
        plot.summary(flow, data, **given)
    if flow.features > 1:
        with pytest.raises(ValueError, match=message):
            plot.corner(flow, data, Figure(), **given)


def test_input_that_is_no_numbers_is_named(flow):
    with pytest.raises(TypeError, match="data: expected an array without a mask, got MaskedArray"):
        plot.summary(flow, np.ma.masked_equal([1.0, -1.0], -1.0))
    with pytest.raises(TypeError, match="data: expected real numbers, got <U1"):
        plot.summary(flow, ["a", "b"])
    with pytest.raises(TypeError, match="data: expected real numbers, got complex128"):
        plot.summary(flow, [1.0 + 1.0j])
    for draw in (plot.density, plot.cdf_map, plot.samples):
        with pytest.raises(ValueError, match="flow: expected one feature, got 2"):
            draw(two(), ZEROS, Figure().subplots())
    with pytest.raises(ValueError, match="columns: expected 1 to 16 columns, got 17"):
        plot.corner(flows.gaussianization(20, 1), np.zeros((5, 20)), Figure(), columns=range(17))


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
