"""Linear models and boosted trees on rows as flat tables: what the baseline models of such tasks are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import Data
from pipeline.data.splits import Split
from pipeline.evaluation.task import Task
from pipeline.runtime.seeds import derive

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

Floats = NDArray[np.float64]
Predict = Callable[[Split], NDArray[Any]]  # what the model predicts for the rows of a split
Fitted = tuple[Predict, str]  # with a description of the model

# Seconds on one slow core. Time is estimated by these rules, not measured, so that equal data are fitted on the same
# rows on every machine.
LINEAR_SECONDS = 8e-9  # per row, column, output and iteration
TREE_SECONDS, LEAF_SECONDS = 1.0e-8, 8e-5  # per row and column of a tree; per leaf of a tree
ITERATIONS, TREES, LEAVES = 100, 40, 15
MIN_ROWS = 50  # a model fitted on fewer rows says nothing about the data


class _Classifier(Protocol):
    classes_: NDArray[Any]

    def predict_proba(self, X: NDArray[Any], /) -> Floats: ...


class Infeasible(Exception):
    """This model cannot be fitted here, or not in its time; the message says why."""


def sample_rows(rows: int, affordable: float, seed: int) -> tuple[NDArray[np.int64], str]:
    """Return the train rows to fit on, with a description. Raises Infeasible if too few are affordable."""
    if affordable >= rows:
        return np.arange(rows), f"on {rows} train rows"
    count = max(0, int(affordable))
    if count < MIN_ROWS:
        raise Infeasible(f"the time allows {count} of {rows} train rows, and fewer than {MIN_ROWS} say nothing")
    drawn = np.random.default_rng(derive(seed, "simple", "rows")).permutation(rows)[:count]
    return np.sort(drawn), f"on {count} of {rows} train rows, as many as the time allows"


class Table:
    """Train rows as a flat table, and the two scikit-learn models fitted on them."""

    def __init__(self, task: Task, data: Data, seed: int, categories: tuple[int, ...]) -> None:
        self.task, self.seed = task, seed
        self.X, self.y = _flat(data.train.X), data.train.y.numpy()
        self.shape = tuple(data.train.y.shape[1:])
        weighted = any(getattr(task.loss, name, None) is not None for name in ("weight", "pos_weight"))
        self.weights = "balanced" if weighted and self.y.ndim == 1 else None
        self.categories = [column for column in categories if column < self.X.shape[1]]
        self.outputs = (data.classes or 2) if self.y.ndim == 1 and task.kind != "regression" else self.y[0].size
        self.models = self.outputs if self.outputs != 2 or self.y.ndim > 1 else 1

    def fit_linear(self, seconds: float) -> Fitted:
        """Fit logistic or ridge regression on imputed, standardized, one-hot encoded rows."""
        from sklearn.base import clone
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline

        columns = self.X.shape[1]
        ridge = self.task.kind == "regression"
        per_row = LINEAR_SECONDS * columns * (columns + self.models if ridge else self.models * ITERATIONS)
        rows, how = sample_rows(len(self.X), seconds / per_row, self.seed)
        X, y = self.X[rows], self.y[rows]
        if ridge:
            model = make_pipeline(self._preprocessing(), Ridge(alpha=1.0)).fit(X, y.reshape(len(y), -1))
            how = f"ridge 1, standardized, {how}"
            return lambda rows: model.predict(_flat(rows.X)).reshape(len(rows), *self.shape), how
        logistic = LogisticRegression(max_iter=ITERATIONS, class_weight=self.weights)
        pipeline = make_pipeline(self._preprocessing(), logistic)
        how = f"L2 penalty 1, standardized, {self._weighting()}{how}"
        return self._class_predictions(lambda target: clone(pipeline).fit(X, target), y), how

    def fit_trees(self, seconds: float) -> Fitted:
        """Fit gradient-boosted trees on the rows as they are, with missing values."""
        from sklearn.base import clone
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        per_tree = TREE_SECONDS * self.X.shape[1]
        budget = seconds / (TREES * self.models) - LEAF_SECONDS * LEAVES
        rows, how = sample_rows(len(self.X), budget / per_tree, self.seed)
        X, y = self.X[rows], self.y[rows]
        X = np.where(np.isnan(X).all(axis=0), np.float32(0), X)  # scikit-learn cannot bin an empty column
        options: dict[str, Any] = {
            "max_iter": TREES,
            "max_leaf_nodes": LEAVES,
            "learning_rate": 0.2,
            "early_stopping": False,
            "random_state": derive(self.seed, "simple", "trees") % 2**32,
        }
        how = f"{TREES} rounds of {LEAVES} leaves, {how}"
        if self.task.kind == "regression":
            models = [HistGradientBoostingRegressor(**options).fit(X, column) for column in y.reshape(len(y), -1).T]

            def predict(rows: Split) -> NDArray[Any]:
                table = _flat(rows.X)
                return np.stack([model.predict(table) for model in models], axis=1).reshape(len(rows), *self.shape)

            return predict, how
        trees = HistGradientBoostingClassifier(**options, class_weight=self.weights)
        return self._class_predictions(lambda target: clone(trees).fit(X, target), y), self._weighting() + how

    def _weighting(self) -> str:
        return "classes weighted as in the loss, " if self.weights else ""

    def _preprocessing(self) -> BaseEstimator:
        """Return a transformer that imputes and standardizes numbers and one-hot encodes categories."""
        from sklearn.compose import make_column_transformer
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        numbers = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
        if not self.categories:
            return numbers
        codes = OneHotEncoder(handle_unknown="ignore")
        return make_column_transformer((codes, self.categories), remainder=numbers, sparse_threshold=0.0)

    def _class_predictions(self, fit: Callable[[NDArray[Any]], _Classifier], y: NDArray[Any]) -> Predict:
        """Return what predicts class ids where the metric needs them, else outputs in the form that the loss takes.

        Outputs are [N, C] for classes and [N, L] for several labels, one model per label.
        """
        of_ids, of_shares = self.task.metric.needs in ("classes", "values"), self.task.takes == "probabilities"
        if y.ndim == 1:
            model = fit(y)

            def of_classes(rows: Split) -> NDArray[Any]:
                shares = np.zeros((len(rows), self.outputs))
                shares[:, model.classes_.astype(int)] = model.predict_proba(_flat(rows.X))
                return shares.argmax(axis=1) if of_ids else shares if of_shares else log_shares(shares)

            return of_classes
        # A classifier needs both values of a label; one that never changes is answered as it is.
        models = [fit(t) if t.min() < t.max() else float(t[0]) for t in y.T.astype(int)]

        def of_labels(rows: Split) -> NDArray[Any]:
            table = _flat(rows.X)
            columns = [
                np.full(len(rows), model) if isinstance(model, float) else model.predict_proba(table)[:, 1]
                for model in models
            ]
            shares = np.stack(columns, axis=1)
            if of_ids:
                return (shares > 0.5).astype(np.int64)
            return shares if of_shares else log_shares(shares) - log_shares(1 - shares)

        return of_labels


def _flat(X: Tensor) -> NDArray[np.float32]:
    """Return rows as [N, numbers per row], with infinities as missing values."""
    rows: NDArray[np.float32] = X.reshape(len(X), -1).float().numpy()
    return np.where(np.isfinite(rows), rows, np.float32(math.nan))


def log_shares(shares: Floats) -> Floats:
    return np.log(np.clip(shares, 1e-12, None))
