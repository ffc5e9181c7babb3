"""Flows as scikit-learn estimators, for pipelines, searches and cross-validation.

Needs scikit-learn: ``pip install mixflow[sklearn]``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

try:
    from sklearn.base import BaseEstimator, DensityMixin, OneToOneFeatureMixin, TransformerMixin
    from sklearn.utils import Tags, check_array, check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("FlowDensity needs scikit-learn 1.6 or later: pip install mixflow[sklearn]") from error

from .checks import check_integer
from .fitting.fit import fit as fit_flow
from .flows import RECIPES, Flow, like

__all__ = ["FlowDensity"]

# The parameters of recipes, and those of mixflow.fit.
OF_RECIPES = ("components", "layers", "hidden", "family", "base", "marginal_components", "support")
OF_FIT = (
    "validation",
    "epochs",
    "batch_size",
    "lr",
    "weight_decay",
    "max_grad_norm",
    "patience",
    "resolution",
    "device",
)
REPEATED = 1 << 16  # whole weights with at most this sum become copies of rows
ROWS = 1 << 12  # rows that are evaluated at a time; a network's outputs take some kilobytes for each row


# scikit-learn has no type stubs: its classes are Any to mypy.
class FlowDensity(DensityMixin, TransformerMixin, OneToOneFeatureMixin, BaseEstimator):  # type: ignore[misc]
    """The density of data, learned by a normalizing flow, as a scikit-learn estimator.

    A flow is an invertible map from data to draws from a simple base distribution. ``score_samples`` and ``score`` give
    log densities, ``sample`` draws new rows, and ``transform`` maps rows to the base, which is by default the standard
    normal, with independent columns. The estimator works with ``Pipeline``, ``GridSearchCV``,
    ``cross_val_score``, ``clone`` and ``pickle``::

        search = GridSearchCV(FlowDensity(random_state=0), {"components": [4, 16]}, n_jobs=2).fit(X)
        model = make_pipeline(PCA(5, whiten=True), FlowDensity(random_state=0)).fit(X)

    A flow standardises its data itself, so it needs no ``StandardScaler``. After a scaler, ``score`` is the log density
    of the scaled rows. It differs from that of the rows themselves by the log-determinant of the scaling.

    Training runs in float32, as in :func:`mixflow.fit`. The fitted flow is evaluated in float64, so that the score of a
    row does not depend on the rows beside it. The result of ``fit`` does not depend on the order of the rows.

    Args:
        flow: the name of a recipe in :mod:`mixflow.flows`: "autoregressive", "coupling", "gaussianization",
            "gaussian_mixture", or "univariate" for a single feature. A single feature also works with all others
            except "coupling".
        components, layers, hidden, family, base, marginal_components, support: options of the recipe, which
            :mod:`mixflow.flows` describes. None takes the recipe's default.
        validation, epochs, batch_size, lr, weight_decay, max_grad_norm, patience, resolution, device: options of
            :func:`mixflow.fit`, which describes them. None takes its default.
        verbose: whether to show a progress bar on stderr.
        random_state: for the initial weights, the held-out rows and the minibatches. An integer gives the same fit each
            time. None draws from numpy's global generator, as everywhere in scikit-learn. torch's global generator is
            neither read nor changed.

    Attributes:
        flow_: the fitted :class:`mixflow.flows.Flow`, in float64, on the device it was trained on.
        history_: the :class:`mixflow.History` of the training. ``print(model.history_)`` shows what ``fit`` found in
            the data.
        n_features_in_: the number of columns of X.
        feature_names_in_: their names, if X had names.

    Example:
        >>> import numpy as np
        >>> from mixflow.sklearn import FlowDensity
        >>> rng = np.random.default_rng(0)
        >>> x, noise = rng.normal(size=(2, 500))
        >>> X = np.stack([x, x**2 + 0.2 * noise], axis=1)
        >>> model = FlowDensity(flow="gaussianization", layers=3, epochs=10, random_state=0).fit(X)
        >>> model.score_samples([[1.0, 1.0]]) > model.score_samples([[1.0, -1.0]])
        array([ True])
        >>> np.allclose(model.inverse_transform(model.transform(X)), X)
        True
        >>> model.sample(3, random_state=0).shape
        (3, 2)

    """

    def __init__(
        self,
        flow: str = "autoregressive",
        *,
        components: int | None = None,
        layers: int | None = None,
        hidden: Sequence[int] | None = None,
        family: str | None = None,
        base: str | None = None,
        marginal_components: int | None = None,
        support: str | Sequence[Any] | None = None,
        validation: float | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        max_grad_norm: float | None = None,
        patience: int | None = None,
        resolution: str | float | Sequence[float] | None = None,
        device: torch.device | str | int | None = None,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.flow = flow
        self.components = components
        self.layers = layers
        self.hidden = hidden
        self.family = family
        self.base = base
        self.marginal_components = marginal_components
        self.support = support
        self.validation = validation
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.patience = patience
        self.resolution = resolution
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: object = None, sample_weight: ArrayLike | None = None) -> FlowDensity:
        """Fit a new flow to ``X`` by maximum likelihood.

        Args:
            X: (N, D), finite real numbers. Each column must vary.
            y: ignored.
            sample_weight: (N,), at least 0. Rows of weight 0 are left out. Whole numbers stand for copies of rows. The
                fit is exactly that of up to 65,536 copies. With more copies, or other numbers, the loss is weighted.

        Returns:
            The estimator itself.

        Raises:
            ValueError: X is not a table of finite numbers, has too few rows or a constant column; an option that the
                flow does not take or that is out of range; weights that are negative or all zero.
            KeyboardInterrupt: Ctrl-C. The best weights seen so far are in ``flow_``, if the training had begun.

        """
        rows, weights = _weighted_rows(self._validated(X, reset=True, ensure_min_samples=2), sample_weight)
        seed = _draw_seed(self.random_state)
        flow = self._build(seed)
        if hasattr(self, "feature_names_in_"):
            flow.notes["columns"] = self.feature_names_in_.tolist()
        try:
            history = fit_flow(
                flow, rows, weights=weights, seed=seed, progress=bool(self.verbose), **self._given(OF_FIT)
            )
        except ValueError as error:
            # The data are called X here. A row number would be that of the sorted rows.
            message = re.sub(r"^data:", "X:", str(error))
            raise ValueError(re.sub(r" in row \d+, column", " in column", message)) from error
        if flow.fitted:
            self.flow_, self.history_ = flow.double(), history
        if history.interrupted:
            raise KeyboardInterrupt  # mixflow.fit returns early, but a search over many fits must end
        return self

    def score_samples(self, X: ArrayLike) -> NDArray[np.float64]:
        """The log density (N,) of each row of ``X`` (N, D) in nats, -inf outside the flow's support."""
        rows = self._validated(X)
        return self._evaluate(self.flow_.log_prob, rows)

    def score(self, X: ArrayLike, y: object = None) -> float:
        """The mean log density of the rows of ``X`` (N, D) in nats. Larger is better; ``y`` is ignored."""
        return float(self.score_samples(X).mean())

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Map ``X`` (N, D) to the base, by default the standard normal: (N, D), in the dtype of X.

        Rows outside the flow's support become NaN, and rows at an end of the support NaN or infinite.
        """
        rows = self._validated(X)
        return self._evaluate(lambda x: self.flow_.transform(x)[0], rows).astype(rows.dtype, copy=False)

    def inverse_transform(self, Z: ArrayLike) -> NDArray[np.float64]:
        """Map ``Z`` (N, D) from the base to the data: (N, D), in float64."""
        return self._evaluate(lambda z: self.flow_.inverse(z)[0], self._validated(Z))

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> NDArray[np.float64]:
        """Draw ``n_samples`` rows from the density: (n_samples, D), in float64.

        Args:
            n_samples: the number of rows, at least 1.
            random_state: an integer gives the same rows each time. None draws from numpy's global generator.

        """
        check_is_fitted(self)
        count = check_integer("n_samples", n_samples, 1)
        generator = torch.Generator(like(self.flow_).device).manual_seed(_draw_seed(random_state))
        sizes = (min(ROWS, count - start) for start in range(0, count, ROWS))
        return _joined(self.flow_.sample(size, generator=generator) for size in sizes)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _given(self, names: Sequence[str]) -> dict[str, Any]:
        """The parameters among ``names`` that are not None."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def _build(self, seed: int) -> Flow:
        """The flow that the parameters describe, before it is fitted."""
        if self.flow not in list(RECIPES):
            raise ValueError(f"flow: expected one of {', '.join(map(repr, RECIPES))}, got {self.flow!r}")
        features, options = self.n_features_in_, self._given(OF_RECIPES)
        if self.flow == "univariate" and features > 1:
            raise ValueError(f"flow: expected one for n_features = {features}, got 'univariate', which is for 1")
        if self.flow == "coupling" and features == 1:
            raise ValueError("flow: expected one for n_features = 1, got 'coupling', which needs 2 or more")
        taken = inspect.signature(RECIPES[self.flow]).parameters
        for name, value in options.items():
            if name not in taken:
                raise ValueError(f"{name}: expected None, as the flow {self.flow!r} has no such option, got {value!r}")
        if "features" in taken:
            options["features"] = features
        return RECIPES[self.flow](**options, seed=seed)

    def _validated(self, X: ArrayLike, reset: bool = False, **options: Any) -> NDArray[Any]:
        """``X`` as an array of floats, checked against the X of ``fit``; with ``reset``, it is recorded as that X."""
        if not reset:
            check_is_fitted(self)
        checked: NDArray[Any] = validate_data(self, X, reset=reset, dtype=[np.float64, np.float32], **options)
        return checked

    @torch.no_grad()
    def _evaluate(self, function: Callable[[Tensor], Tensor], X: NDArray[Any]) -> NDArray[np.float64]:
        """``function`` of the rows of ``X``, which are passed in parts."""
        device = like(self.flow_).device
        # The tensors are copies. torch would warn if it shared the memory of a read-only array.
        return _joined(
            function(torch.tensor(np.ascontiguousarray(X[start : start + ROWS]), device=device))
            for start in range(0, len(X), ROWS)
        )


def _weighted_rows(X: NDArray[Any], sample_weight: ArrayLike | None) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
    """Rows to fit to and their weights, None for no weights; weighted rows and their copies give the same result.

    The rows are sorted, because copies of a row may be anywhere. :func:`mixflow.fit` shuffles them.
    """
    if sample_weight is None:
        return X[np.lexsort(X.T)], None
    weights = check_array(
        sample_weight, dtype=np.float64, ensure_2d=False, ensure_non_negative=True, input_name="sample_weight"
    )
    if weights.shape != (len(X),):
        raise ValueError(f"sample_weight: expected shape ({len(X)},), got {weights.shape}")
    if not weights.any():
        raise ValueError("sample_weight: expected at least one positive weight, got zeros alone")
    order = np.lexsort((weights, *X.T))
    order = order[weights[order] > 0.0]
    rows, weights = X[order], weights[order]
    if weights.sum() <= REPEATED and (weights == np.round(weights)).all():
        return rows.repeat(weights.astype(np.int64), axis=0), None
    return rows, weights


def _draw_seed(random_state: int | np.random.RandomState | None) -> int:
    return int(check_random_state(random_state).randint(2**31 - 1))


def _joined(parts: Iterable[Tensor]) -> NDArray[np.float64]:
    return torch.cat(list(parts)).double().cpu().numpy()
