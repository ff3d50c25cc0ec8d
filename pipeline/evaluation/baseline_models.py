"""Baseline models: what a linear model, boosted trees or a bigram model reach on the network's validation rows."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, Protocol, TypedDict

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
Predict = Callable[[Split], NDArray[Any]]  # what the model predicts for the rows of a split
Fitted = tuple[Predict, str]  # with a description of the model

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


class FittedModel(NamedTuple):
    """A baseline model that was fitted on train rows; `predict` gives what `comparable` takes."""

    name: str
    how: str
    predict: Predict


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
    fits = _fits(task, data, seed, seconds, categories, outputs)
    return [_score_model(name, task, data.val, seed, fit) for name, fit in fits.items()]


def fit_baseline_models(
    task: Task, data: Data, seed: int, seconds: float, outputs: Tensor | None = None
) -> tuple[list[FittedModel], dict[str, str]]:
    """Fit each baseline model on train rows, without predicting; and return by name why others were not fitted.

    The arguments are those of `score_baseline_models`, and the models are the same.
    """
    from threadpoolctl import threadpool_limits

    fitted, reasons = list[FittedModel](), dict[str, str]()
    for name, fit in _fits(task, data, seed, seconds, None, outputs).items():
        try:
            with warnings.catch_warnings(), threadpool_limits(1):
                warnings.simplefilter("ignore")  # the baseline phase reports them
                predict, how = fit()
            fitted.append(FittedModel(name, how, predict))
        except FIT_ERRORS as error:
            reasons[name] = _reason(error)
    return fitted, reasons


def _fits(
    task: Task, data: Data, seed: int, seconds: float, categories: Sequence[int] | None, outputs: Tensor | None
) -> dict[str, Callable[[], Fitted]]:
    """Return by name the functions that fit the models; each raises _Infeasible where it cannot."""
    vocabulary = vocabulary_size(task.kind, data)
    if vocabulary is not None:
        return {"bigram": lambda: _fit_bigram(task, data, vocabulary, seed, seconds)}
    names, reason = _model_names(task), _not_applicable(task, data, outputs)
    if reason:
        why = reason

        def refuse() -> Fitted:
            raise _Infeasible(why)

        return dict.fromkeys(names, refuse)
    columns = getattr(data, "categories", ()) if categories is None else categories
    table = _Table(task, data, seed, tuple(columns))
    return {names[0]: lambda: table.fit_linear(seconds / 4), names[1]: lambda: table.fit_trees(3 * seconds / 4)}


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


FIT_ERRORS = (_Infeasible, ValueError, ArithmeticError, np.linalg.LinAlgError, MemoryError)


def _reason(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _score_model(name: str, task: Task, val: Split, seed: int, fit: Callable[[], Fitted]) -> BaselineScore:
    """Fit a model and score its predictions by the task's deciding metric; or return why it was not fitted."""
    from threadpoolctl import threadpool_limits

    began = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught, threadpool_limits(1):
            warnings.simplefilter("always")
            predict, how = fit()
            raw = predict(val)
        value, low, high = _score_raw(task, val, raw, seed)
    except FIT_ERRORS as error:
        return {"name": name, "not_applicable": _reason(error)}
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


def comparable(task: Task, rows: Split, raw: NDArray[Any]) -> NDArray[Any]:
    """Return a baseline model's predictions in the form that the deciding metric takes.

    Where the metric needs classes or values, `raw` are these: `task.predict` is made for the network's outputs and
    means nothing here. For perplexity, `raw` are negative log-likelihoods.
    """
    if task.metric.name == "perplexity":
        return raw.reshape(len(rows), -1)
    if task.metric.needs in ("classes", "values"):
        return align_predictions(raw.astype(np.float32) if raw.dtype.kind == "f" else raw, rows.y.numpy().shape)
    return task.reference_inputs(torch.from_numpy(raw).float(), rows.y)


def _score_raw(task: Task, val: Split, raw: NDArray[Any], seed: int) -> tuple[float, float, float]:
    """Return the deciding metric and its interval."""
    targets, inputs = val.y.numpy(), comparable(task, val, raw)
    metric = PERPLEXITY if task.metric.name == "perplexity" else task.metric
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
        rows, how = _sample_rows(len(self.X), seconds / per_row, self.seed)
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
                return shares.argmax(axis=1) if of_ids else shares if of_shares else _log(shares)

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
            return shares if of_shares else _log(shares) - _log(1 - shares)

        return of_labels


def _flat(X: Tensor) -> NDArray[np.float32]:
    """Return rows as [N, numbers per row], with infinities as missing values."""
    rows: NDArray[np.float32] = X.reshape(len(X), -1).float().numpy()
    return np.where(np.isfinite(rows), rows, np.float32(math.nan))


def _log(shares: Floats) -> Floats:
    return np.log(np.clip(shares, 1e-12, None))


def _fit_bigram(task: Task, data: Data, vocabulary: int, seed: int, seconds: float) -> Fitted:
    """Fit the bigram model on train windows and their targets; it predicts what the task's metric needs."""
    per_token, name = data.train.y.ndim > 1, task.metric.name
    if per_token and name != "perplexity" and task.metric.needs != "classes":
        raise _Infeasible(f"a bigram model is not scored by {name}")
    if vocabulary**2 > MAX_CELLS:
        raise _Infeasible(f"a table of {vocabulary} x {vocabulary} tokens is too large")
    train = token_rows(data.train)
    chosen, how = _sample_rows(len(train), seconds / (TOKEN_SECONDS * train.shape[1]), seed)
    probabilities = bigram_probabilities(train[chosen], vocabulary)

    def predict(rows: Split) -> NDArray[Any]:
        tokens = token_rows(rows)
        before, following = (tokens[:, :-1], tokens[:, 1:]) if per_token else (tokens[:, -2], tokens[:, -1])
        if name == "perplexity":
            return -np.log(probabilities[before, following])
        if task.metric.needs == "classes":
            return probabilities.argmax(axis=1)[before]
        if len(before) * vocabulary > MAX_CELLS:
            raise _Infeasible(f"{len(before)} rows of {vocabulary} probabilities are too large a table")
        outputs = probabilities[before]
        return outputs if task.takes == "probabilities" else _log(outputs)

    return predict, f"bigrams, interpolated, {how}"
