"""FlowDensity as scikit-learn sees it: its own checks, its tools, and what an estimator promises."""

import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
import torch

import mixflow

pytest.importorskip("sklearn", minversion="1.6")

from scipy import sparse, stats
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

import mixflow.sklearn
from mixflow.sklearn import FlowDensity

QUICK = {"layers": 1, "hidden": (8,), "components": 2, "epochs": 2}
RNG = np.random.default_rng(0)


def banana(rows):
    x, noise = RNG.normal(size=(2, rows))
    return np.stack([x, x**2 + 0.2 * noise], axis=1)


X = banana(60)
HELD_OUT = banana(50)


def quick(**options):
    return FlowDensity(**QUICK | {"random_state": 0} | options)


# -- scikit-learn's checks and tools -------------------------------------------------------------------------


@parametrize_with_checks([FlowDensity(**QUICK)])
def test_scikit_learns_own_checks_pass(estimator, check):
    check(estimator)


@pytest.mark.release
@pytest.mark.parametrize("flow", ["autoregressive", "coupling", "gaussianization", "gaussian_mixture"])
def test_scikit_learns_own_checks_pass_with_default_settings(flow):
    check_estimator(FlowDensity(flow), on_skip=None)


def test_a_pipeline_scores_and_maps_there_and_back():
    pipeline = make_pipeline(StandardScaler(), PCA(2), quick()).fit(X)
    reduced = pipeline[:-1].transform(HELD_OUT)
    assert pipeline.score(HELD_OUT) == pipeline[-1].score(reduced)
    np.testing.assert_allclose(pipeline.inverse_transform(pipeline.transform(HELD_OUT)), HELD_OUT, rtol=1e-9)


def test_a_search_in_two_processes_finds_the_number_of_components():
    two_peaks = np.concatenate([RNG.normal(-5.0, 1.0, (60, 1)), RNG.normal(5.0, 1.0, (60, 1))])
    estimator = FlowDensity("univariate", epochs=10, random_state=0)
    search = GridSearchCV(estimator, {"components": [1, 2]}, cv=3, n_jobs=2).fit(RNG.permutation(two_peaks))
    assert search.best_params_ == {"components": 2}


def test_the_score_is_the_mean_log_density():
    model = quick().fit(X)
    assert model.score(HELD_OUT) == pytest.approx(model.flow_.log_prob(torch.tensor(HELD_OUT)).mean().item(), rel=1e-12)


def test_cross_validation_scores_held_out_rows():
    scores = cross_val_score(quick(), X, cv=3)
    fold = len(X) // 3
    expected = quick().fit(X[fold:]).score(X[:fold])
    assert scores.shape == (3,)
    assert scores[0] == expected


def test_columns_with_names_keep_them():
    table = pytest.importorskip("pyarrow").table({"mass": X[:, 0], "charge": X[:, 1]})
    model = quick().fit(table)
    assert model.feature_names_in_.tolist() == model.get_feature_names_out().tolist() == ["mass", "charge"]
    assert "2 columns (mass, charge)" in str(model.history_)
    with pytest.raises(ValueError, match="feature names should match"):
        model.score_samples(table.select(["charge", "mass"]))


@pytest.mark.parametrize("through", ["pickle", "joblib"])
def test_a_copy_on_disk_gives_the_same_scores(through, tmp_path):
    model = quick().fit(X)
    if through == "pickle":
        copy = pickle.loads(pickle.dumps(model))
    else:
        joblib.dump(model, tmp_path / "model")
        copy = joblib.load(tmp_path / "model")
    np.testing.assert_array_equal(copy.score_samples(HELD_OUT), model.score_samples(HELD_OUT))


def test_a_clone_is_not_fitted_but_fits_alike():
    model = quick().fit(X)
    copy = clone(model)
    with pytest.raises(NotFittedError):
        copy.score_samples(X)
    np.testing.assert_array_equal(copy.fit(X).score_samples(HELD_OUT), model.score_samples(HELD_OUT))


# -- what is learned -----------------------------------------------------------------------------------------


def test_held_out_rows_become_independent_and_normal():
    model = FlowDensity(epochs=20, random_state=0).fit(banana(1000))

    def is_normal(z):
        with_squares = np.corrcoef(np.concatenate([z, z**2], axis=1).T)
        independent = abs(with_squares[:2, 2:][~np.eye(2, dtype=bool)]).max() < 4.0 / np.sqrt(len(z))
        return independent and all(stats.kstest(column, "norm").pvalue > 0.001 for column in z.T)

    held_out = banana(500)
    assert is_normal(model.transform(held_out))
    assert not is_normal(StandardScaler().fit_transform(held_out))


def test_the_density_of_one_feature_integrates_to_one():
    model = quick().fit(X[:, :1])
    grid, step = np.linspace(-30.0, 30.0, 6001, retstep=True)
    assert np.exp(model.score_samples(grid[:, None])).sum() * step == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("flow", ["autoregressive", "gaussianization", "gaussian_mixture", "univariate"])
def test_one_feature_is_enough_for_flows_other_than_couplings(flow):
    model = FlowDensity(flow, epochs=2, random_state=0).fit(X[:, :1])
    assert model.sample(5).shape == (5, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_mapped_there_and_back(dtype):
    rows = HELD_OUT.astype(dtype)
    model = quick().fit(X.astype(dtype))
    z = model.transform(rows)
    assert z.dtype == dtype
    assert model.score_samples(rows).dtype == model.sample(3).dtype == np.float64
    # The map stretches by less than 100 here.
    tolerance = 100.0 * np.finfo(dtype).eps
    np.testing.assert_allclose(model.inverse_transform(z), rows, rtol=tolerance, atol=tolerance)


def test_large_offsets_cost_no_precision():
    times = 1.7e9 + X
    model = quick().fit(times)
    np.testing.assert_allclose(model.inverse_transform(model.transform(times)), times, rtol=1e-15)
    # The steps of float64 at 1.7e9 are 2.4e-7.
    assert model.score(times) == pytest.approx(quick().fit(X).score(X), abs=1e-5)


def test_rows_outside_the_support_have_density_zero_and_no_image():
    model = quick(support="positive").fit(np.exp(X))
    rows = [[1.0, 1.0], [-1.0, 1.0]]
    assert np.isfinite(model.score_samples(rows)).tolist() == [True, False]
    assert np.isnan(model.transform(rows)).all(axis=1).tolist() == [False, True]


def test_the_flow_and_the_history_are_mixflows_own(tmp_path):
    model = quick().fit(X)
    assert len(model.history_.lr) == QUICK["epochs"]
    mixflow.save(model.flow_, tmp_path / "model.safetensors")
    loaded = mixflow.load(tmp_path / "model.safetensors")
    np.testing.assert_allclose(loaded.log_prob(torch.tensor(X)).detach(), model.score_samples(X), rtol=1e-12)


def test_many_rows_are_evaluated_in_parts(monkeypatch):
    model = quick().fit(X)
    whole = [model.score_samples(X), model.transform(X), model.inverse_transform(X), model.sample(60, random_state=1)]
    monkeypatch.setattr(mixflow.sklearn, "ROWS", 7)
    parts = [model.score_samples(X), model.transform(X), model.inverse_transform(X), model.sample(60, random_state=1)]
    for expected, found in zip(whole[:3], parts[:3], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert parts[3].shape == whole[3].shape
    assert len(np.unique(parts[3], axis=0)) == 60


# -- weights -------------------------------------------------------------------------------------------------

WHOLE = RNG.integers(0, 4, len(X))


@pytest.mark.parametrize(
    ("weights", "rows"),
    [(WHOLE, X.repeat(WHOLE, axis=0)), (np.ones(len(X)), X), ((X[:, 0] > 0) * 1.0, X[X[:, 0] > 0])],
    ids=["copies", "ones", "zeros"],
)
def test_whole_weights_are_copies_in_any_order(weights, rows):
    weighted = quick().fit(X, sample_weight=weights)
    copied = quick().fit(RNG.permutation(rows))
    np.testing.assert_array_equal(weighted.score_samples(HELD_OUT), copied.score_samples(HELD_OUT))


def test_rows_of_weight_zero_are_left_out_where_others_are_fractions():
    kept = X[:, 0] > 0
    weights = RNG.uniform(0.5, 1.5, len(X))
    with_zeros = quick().fit(X, sample_weight=weights * kept)
    without = quick().fit(X[kept], sample_weight=weights[kept])
    np.testing.assert_array_equal(with_zeros.score_samples(HELD_OUT), without.score_samples(HELD_OUT))


@pytest.mark.parametrize("unit", [0.5, 1e9], ids=["fractions", "more copies than memory holds"])
def test_other_weights_weight_the_loss(unit):
    below, above = RNG.normal(-3.0, 0.5, (200, 1)), RNG.normal(3.0, 0.5, (200, 1))
    model = FlowDensity("univariate", epochs=20, random_state=0)
    model.fit(np.concatenate([below, above]), sample_weight=unit * np.repeat([1.0, 3.0], 200))
    grid, step = np.linspace(0.0, 12.0, 1201, retstep=True)
    mass_above = np.exp(model.score_samples(grid[:, None])).sum() * step
    assert mass_above == pytest.approx(0.75, abs=0.05)  # a few of 400 rows are held out; without weights it is 0.5


# -- randomness ----------------------------------------------------------------------------------------------


def scores_and_samples(random_state):
    model = quick(random_state=random_state).fit(X)
    drawn = model.sample(3, random_state=random_state)
    return np.concatenate([model.score_samples(HELD_OUT), drawn.ravel()])


def test_the_same_random_state_gives_the_same_result_and_leaves_global_generators_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = scores_and_samples(0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    torch.rand(1)
    np.random.rand()  # noqa: NPY002
    np.testing.assert_array_equal(scores_and_samples(0), first)
    assert not np.array_equal(scores_and_samples(1), first)


def test_the_random_state_also_chooses_the_rows_held_out():
    rows = RNG.normal(size=(200, 1))
    first, second = (FlowDensity("univariate", epochs=1, random_state=state).fit(rows) for state in (0, 1))
    assert first.score(rows) != second.score(rows)


def test_a_random_state_object_goes_on_from_fit_to_fit():
    state = np.random.RandomState(0)
    first, second = scores_and_samples(state), scores_and_samples(state)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(scores_and_samples(np.random.RandomState(0)), first)


def test_no_random_state_draws_from_numpys_global_generator():
    state = np.random.get_state()  # noqa: NPY002
    first, second = scores_and_samples(None), scores_and_samples(None)
    np.random.set_state(state)  # noqa: NPY002
    np.testing.assert_array_equal(scores_and_samples(None), first)
    assert not np.array_equal(first, second)


# -- options and errors --------------------------------------------------------------------------------------


def test_options_reach_the_recipe():
    options = {"layers": 2, "components": 3, "hidden": [8, 4], "family": "gaussian", "base": "logistic"}
    options |= {"marginal_components": 4, "support": [[-9.0, 99.0], [-9.0, 99.0]]}
    model = FlowDensity("coupling", epochs=1, **options).fit(X)
    assert model.flow_.recipe.name == "coupling"
    assert options.items() <= model.flow_.recipe.arguments.items()


def test_options_reach_fit(monkeypatch):
    options = {"validation": 0.2, "epochs": 3, "batch_size": 16, "lr": 0.01, "weight_decay": 0.1, "patience": 2}
    options |= {"max_grad_norm": 2.0, "resolution": 0.1, "device": "cpu"}
    given = {}

    def fit(flow, data, **settings):
        given.update(settings)
        return mixflow.fit(flow, data, **settings)

    monkeypatch.setattr(mixflow.sklearn, "fit_flow", fit)
    quick(**options, verbose=True).fit(X)
    assert (options | {"progress": True}).items() <= given.items()


@pytest.mark.parametrize("verbose", [False, True])
def test_the_progress_bar_is_shown_on_request_alone(verbose, capsys):
    quick(verbose=verbose).fit(X)
    assert ("epoch 2/2" in capsys.readouterr().err) == verbose


def with_one(value):
    rows = X.copy()
    rows[3, 1] = value
    return rows


ERRORS = {
    "one row": (lambda: quick().fit(X[:1]), "1 sample"),
    "two rows": (lambda: quick().fit(X[:2]), "X: expected at least 2 rows to learn from beside 1 held out, got 2"),
    "a constant column": (lambda: quick().fit(np.c_[X, X[:, 0] * 0 + 5]), "X: expected columns that vary.* 5 in col"),
    "one dimension": (lambda: quick().fit(X[:, 0]), "Expected 2D array, got 1D array"),
    "NaN": (lambda: quick().fit(with_one(np.nan)), "X contains NaN"),
    "infinity": (lambda: quick().fit(with_one(np.inf)), "X contains infinity"),
    "another width": (lambda: quick().fit(X).transform(X[:, :1]), "1 features, but FlowDensity is expecting 2"),
    "another width back": (lambda: quick().fit(X).inverse_transform(X[:, :1]), "1 features, but .* is expecting 2"),
    "outside the support": (
        lambda: quick(support="positive").fit(X - [0.0, 10.0]),
        "X: expected numbers inside the support of the flow, got .* in column",
    ),
    "no such flow": (lambda: quick(flow="glow").fit(X), "flow: expected one of 'univariate', .*, got 'glow'"),
    "no flow": (lambda: quick(flow=["coupling"]).fit(X), r"flow: expected one of .*, got \['coupling'\]"),
    "univariate": (lambda: FlowDensity("univariate").fit(X), "flow: expected one for n_features = 2, got 'univariate'"),
    "coupling": (
        lambda: FlowDensity("coupling").fit(X[:, :1]),
        "flow: expected one for n_features = 1, got 'coupling'",
    ),
    "another flow's option": (
        lambda: FlowDensity("gaussian_mixture", layers=3).fit(X),
        "layers: expected None, as the flow 'gaussian_mixture' has no such option, got 3",
    ),
    "an option out of range": (lambda: quick(components=0).fit(X), "components: expected an integer of at least 1"),
    "a setting out of range": (lambda: quick(lr=-1.0).fit(X), "lr: expected a positive number, got -1.0"),
    "weights of another length": (
        lambda: quick().fit(X, sample_weight=np.ones(3)),
        r"sample_weight: expected shape \(60,\), got \(3,\)",
    ),
    "negative weights": (lambda: quick().fit(X, sample_weight=X[:, 0]), "Negative values .* sample_weight"),
    "weights of zero": (lambda: quick().fit(X, sample_weight=np.zeros(60)), "sample_weight: .* got zeros alone"),
    "weights that are NaN": (lambda: quick().fit(X, sample_weight=X[:, 0] * np.nan), "sample_weight contains NaN"),
    "no samples": (lambda: quick().fit(X).sample(0), "n_samples: expected an integer of at least 1, got 0"),
    "no random state": (lambda: quick(random_state="x").fit(X), "'x' cannot be used to seed"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_sparse_matrices_are_refused():
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        quick().fit(sparse.csr_array(X))


@pytest.mark.parametrize("method", ["score_samples", "score", "transform", "inverse_transform", "sample"])
def test_an_estimator_that_is_not_fitted_is_refused(method):
    with pytest.raises(NotFittedError):
        getattr(quick(), method)(*[] if method == "sample" else [X])


def test_an_interruption_ends_the_search_too_but_keeps_what_was_learned(monkeypatch):
    def fit(*arguments, **settings):
        history = mixflow.fit(*arguments, **settings)
        history.interrupted = True
        return history

    monkeypatch.setattr(mixflow.sklearn, "fit_flow", fit)
    model = quick()
    with pytest.raises(KeyboardInterrupt):
        model.fit(X)
    assert np.isfinite(model.score(X))


def test_without_scikit_learn_the_import_says_how_to_get_it():
    code = "import sys; sys.modules['sklearn'] = None; import mixflow; import mixflow.sklearn"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last == "ImportError: FlowDensity needs scikit-learn 1.6 or later: pip install mixflow[sklearn]"
