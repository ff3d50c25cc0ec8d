"""Baseline models: what a linear model, boosted trees or a bigram model reach on the network's validation rows."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import Data
from pipeline.data.splits import Split
from pipeline.evaluation.bigram import bigram_probabilities, token_rows, vocabulary_size
from pipeline.evaluation.intervals.score import confidence_interval
from pipeline.evaluation.metrics import PERPLEXITY
from pipeline.evaluation.predictions import align_predictions
from pipeline.evaluation.task import Task
from pipeline.runtime.seeds import derive

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

Floats = NDArray[np.float64]
Predictions = tuple[NDArray[Any], str]  # for the validation rows, with a description of the model

# Seconds on one slow core. Time is estimated by these rules, not measured, so that equal data are fitted on the same
# rows on every machine.
LINEAR_SECONDS = 8e-9  # per row, column, output and iteration
TREE_SECONDS, LEAF_SECONDS = 1.0e-8, 8e-5  # per row and column of a tree; per leaf of a tree
TOKEN_SECONDS = 1.5e-7  # per token
KINDS = ("classification", "binary", "multilabel", "regression")  # tasks that scikit-learn has models for
ITERATIONS, TREES, LEAVES = 100, 40, 15
MIN_ROWS = 50  # a model fitted on fewer rows says nothing about the data
MAX_CELLS = 10_000_000  # of a table of probabilities in memory


class BaselineScore(TypedDict):
    """The deciding metric of one baseline model with its 95 % interval, or the reason why it was not fitted."""

    name: str
    metric: NotRequired[str]
    value: NotRequired[float]
    low: NotRequired[float]
    high: NotRequired[float]
    n: NotRequired[int]
    seconds: NotRequired[float]
    how: NotRequired[str]
    not_applicable: NotRequired[str]


class _Classifier(Protocol):
    classes_: NDArray[Any]

    def predict_proba(self, X: NDArray[Any], /) -> Floats: ...


def score_baseline_models(
    task: Task,
    data: Data,
    seed: int,
    seconds: float,
    categories: Sequence[int] | None = None,
    outputs: Tensor | None = None,
) -> list[BaselineScore]:
    """Fit each baseline model on train rows and return its deciding metric on validation.

    All of them together take about `seconds`, estimated from rows and columns: if there are too many train rows, a
    sample of them is used, and `how` says so. `categories` are the columns that hold category codes, by default those
    that the data name. `outputs` are those of the user's model for some rows, where they are known. Equal arguments
    give equal values.
    """
    vocabulary = vocabulary_size(task.kind, data)
    if vocabulary is not None:
        return [
            _score_model("bigram", task, data.val, seed, lambda: _fit_bigram(task, data, vocabulary, seed, seconds))
        ]
    names, reason = _model_names(task), _not_applicable(task, data, outputs)
    if reason:
        return [{"name": name, "not_applicable": reason} for name in names]
    columns = getattr(data, "categories", ()) if categories is None else categories
    table = _Table(task, data, seed, tuple(columns))
    return [
        _score_model(names[0], task, data.val, seed, lambda: table.fit_linear(seconds / 4)),
        _score_model(names[1], task, data.val, seed, lambda: table.fit_trees(3 * seconds / 4)),
    ]


def _model_names(task: Task) -> tuple[str, str]:
    linear = {"regression": "ridge"}.get(task.kind, "logistic_regression" if task.kind in KINDS else "linear_model")
    return linear, "boosted_trees"


def _not_applicable(task: Task, data: Data, outputs: Tensor | None) -> str | None:
    """Return why scikit-learn cannot be fitted on rows and targets of this kind; None if it can."""
    if task.kind == "autoencoder":
        return "the targets are the inputs, which a linear model copies"
    if task.kind not in KINDS or task.step is not None:
        return f"only the step of a {task.kind} task knows what to predict"
    if data.train.dataset is not None:
        return "a Dataset reads its rows again in every epoch"
    if not isinstance(data.train.X, Tensor):
        return "the inputs are nested"
    if not task.measures_references(outputs, data.train.y):
        return f"'{task.metric.name}' measures what task.predict makes of the network's outputs, and nothing else"
    return None


class _Infeasible(Exception):
    """This model cannot be fitted here, or not in its time; the message says why."""


def _score_model(name: str, task: Task, val: Split, seed: int, fit: Callable[[], Predictions]) -> BaselineScore:
    """Fit a model and score its predictions by the task's deciding metric; or return why it was not fitted."""
    from threadpoolctl import threadpool_limits

    began = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught, threadpool_limits(1):
            warnings.simplefilter("always")
            raw, how = fit()
        value, low, high = _score_raw(task, val, raw, seed)
    except (_Infeasible, ValueError, ArithmeticError, np.linalg.LinAlgError, MemoryError) as error:
        return {"name": name, "not_applicable": (str(error).splitlines() or [type(error).__name__])[0]}
    messages = sorted({str(warning.message).splitlines()[0] for warning in caught})
    return {
        "name": name,
        "metric": task.metric.name,
        "value": value,
        "low": low,
        "high": high,
        "n": len(val),
        "seconds": time.perf_counter() - began,
        "how": "; ".join([how, *messages]),
    }


def _score_raw(task: Task, val: Split, raw: NDArray[Any], seed: int) -> tuple[float, float, float]:
    """Return the deciding metric and its interval.

    Where the metric needs classes or values, `raw` are these: `task.predict` is made for the network's outputs and
    means nothing here. For perplexity, `raw` are negative log-likelihoods.
    """
    targets, metric = val.y.numpy(), task.metric
    inputs: NDArray[Any]
    if metric.name == "perplexity":
        metric, inputs = PERPLEXITY, raw.reshape(len(val), -1)
    elif metric.needs in ("classes", "values"):
        values = raw.astype(np.float32) if raw.dtype.kind == "f" else raw
        inputs = align_predictions(values, targets.shape)
    else:
        inputs = task.reference_inputs(torch.from_numpy(raw).float(), val.y)
    groups = val.row_metadata.groups
    low, high, *_ = confidence_interval(metric, targets, inputs, seed, groups, resample=False)  # it would take seconds
    return metric(targets, inputs), low, high


def _sample_rows(rows: int, affordable: float, seed: int) -> tuple[NDArray[np.int64], str]:
    """Return the train rows to fit on, with a description. Raises _Infeasible if too few are affordable."""
    if affordable >= rows:
        return np.arange(rows), f"on {rows} train rows"
    count = max(0, int(affordable))
    if count < MIN_ROWS:
        raise _Infeasible(f"the time allows {count} of {rows} train rows, and fewer than {MIN_ROWS} say nothing")
    drawn = np.random.default_rng(derive(seed, "simple", "rows")).permutation(rows)[:count]
    return np.sort(drawn), f"on {count} of {rows} train rows, as many as the time allows"


class _Table:
    """Train and validation rows as flat tables, and the two scikit-learn models fitted on them."""

    def __init__(self, task: Task, data: Data, seed: int, categories: tuple[int, ...]) -> None:
        self.task, self.seed = task, seed
        self.X, self.val = _flat(data.train.X), _flat(data.val.X)
        self.y = data.train.y.numpy()
        self.shape = tuple(data.val.y.shape)
        weighted = any(getattr(task.loss, name, None) is not None for name in ("weight", "pos_weight"))
        self.weights = "balanced" if weighted and self.y.ndim == 1 else None
        self.categories = [column for column in categories if column < self.X.shape[1]]
        self.outputs = (data.classes or 2) if self.y.ndim == 1 and task.kind != "regression" else self.y[0].size
        self.models = self.outputs if self.outputs != 2 or self.y.ndim > 1 else 1

    def fit_linear(self, seconds: float) -> Predictions:
        """Fit logistic or ridge regression on imputed, standardized, one-hot encoded rows."""
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline

        columns = self.X.shape[1]
        ridge = self.task.kind == "regression"
        per_row = LINEAR_SECONDS * columns * (columns + self.models if ridge else self.models * ITERATIONS)
        rows, how = _sample_rows(len(self.X), seconds / per_row, self.seed)
        X, y = self.X[rows], self.y[rows]
        if ridge:
            model = make_pipeline(self._preprocessing(), Ridge(alpha=1.0)).fit(X, y.reshape(len(y), -1))
            return model.predict(self.val).reshape(self.shape), f"ridge 1, standardized, {how}"
        logistic = LogisticRegression(max_iter=ITERATIONS, class_weight=self.weights)
        pipeline = make_pipeline(self._preprocessing(), logistic)
        how = f"L2 penalty 1, standardized, {self._weighting()}{how}"
        return self._class_predictions(lambda target: pipeline.fit(X, target), y), how

    def fit_trees(self, seconds: float) -> Predictions:
        """Fit gradient-boosted trees on the rows as they are, with missing values."""
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        per_tree = TREE_SECONDS * self.X.shape[1]
        budget = seconds / (TREES * self.models) - LEAF_SECONDS * LEAVES
        rows, how = _sample_rows(len(self.X), budget / per_tree, self.seed)
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
            return np.stack([model.predict(self.val) for model in models], axis=1).reshape(self.shape), how
        trees = HistGradientBoostingClassifier(**options, class_weight=self.weights)
        return self._class_predictions(lambda target: trees.fit(X, target), y), self._weighting() + how

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

    def _class_predictions(self, fit: Callable[[NDArray[Any]], _Classifier], y: NDArray[Any]) -> NDArray[Any]:
        """Return class ids where the metric needs predictions, else outputs in the form that the task's loss takes.

        Outputs are [N, C] for classes and [N, L] for several labels, one model per label.
        """
        if y.ndim == 1:
            model = fit(y)
            shares = np.zeros((len(self.val), self.outputs))
            shares[:, model.classes_.astype(int)] = model.predict_proba(self.val)
            if self.task.metric.needs in ("classes", "values"):
                return shares.argmax(axis=1)
            return shares if self.task.takes == "probabilities" else _log(shares)
        columns = []
        for target in y.T.astype(int):
            if target.min() == target.max():  # a classifier needs both values of a label
                columns.append(np.full(len(self.val), float(target[0])))
            else:
                columns.append(fit(target).predict_proba(self.val)[:, 1])
        shares = np.stack(columns, axis=1)
        if self.task.metric.needs in ("classes", "values"):
            return (shares > 0.5).astype(np.int64)
        return shares if self.task.takes == "probabilities" else _log(shares) - _log(1 - shares)


def _flat(X: Tensor) -> NDArray[np.float32]:
    """Return rows as [N, numbers per row], with infinities as missing values."""
    rows: NDArray[np.float32] = X.reshape(len(X), -1).float().numpy()
    return np.where(np.isfinite(rows), rows, np.float32(math.nan))


def _log(shares: Floats) -> Floats:
    return np.log(np.clip(shares, 1e-12, None))


def _fit_bigram(task: Task, data: Data, vocabulary: int, seed: int, seconds: float) -> Predictions:
    """Fit the bigram model on train windows and their targets, and return what the task's metric needs."""
    per_token, name = data.train.y.ndim > 1, task.metric.name
    if per_token and name != "perplexity" and task.metric.needs != "classes":
        raise _Infeasible(f"a bigram model is not scored by {name}")
    if vocabulary**2 > MAX_CELLS:
        raise _Infeasible(f"a table of {vocabulary} x {vocabulary} tokens is too large")
    rows, val = token_rows(data.train), token_rows(data.val)
    chosen, how = _sample_rows(len(rows), seconds / (TOKEN_SECONDS * rows.shape[1]), seed)
    probabilities = bigram_probabilities(rows[chosen], vocabulary)
    how = f"bigrams, interpolated, {how}"
    before, following = (val[:, :-1], val[:, 1:]) if per_token else (val[:, -2], val[:, -1])
    if name == "perplexity":
        return -np.log(probabilities[before, following]), how
    if task.metric.needs == "classes":
        return probabilities.argmax(axis=1)[before], how
    if len(before) * vocabulary > MAX_CELLS:
        raise _Infeasible(f"{len(before)} rows of {vocabulary} probabilities are too large a table")
    outputs = probabilities[before]
    return outputs if task.takes == "probabilities" else _log(outputs), how
