"""Simple models as the bar: what a linear model, trees, or n-grams reach on the rows that the network is judged on."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import Data
from pipeline.data.splits import Split
from pipeline.evaluation.metrics import OWN, interval
from pipeline.evaluation.ngrams import counted, perplexity, sequences, vocabulary, windows
from pipeline.evaluation.task import Task
from pipeline.runtime.seeds import derive

Floats = NDArray[np.float64]
Fitted = tuple[NDArray[Any], str]  # what is put out for the validation rows, and how the model was made

# Seconds, measured on one slow core: a rule, so that equal data are fitted on equal rows, whatever the machine does.
LINEAR = 8e-9  # per row, column, output and iteration
TREE, NODE = 1.0e-8, 8e-5  # per row and column of a tree; per leaf of one
GRAM = 1.5e-6  # per token
KINDS = ("classification", "binary", "multilabel", "regression")  # that scikit-learn has models for
ITERATIONS, TREES, LEAVES = 100, 40, 15
FEWEST = 50  # rows: fitted on less, a model says nothing about the data
CELLS = 10_000_000  # of a table of probabilities, a row of tokens for each row of validation


def simple_scores(
    task: Task, data: Data, seed: int, seconds: float, categories: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Each simple model's deciding metric on validation, fitted on train rows alone.

    An entry is `{name, metric, value, low, high, n, seconds, how}`, or `{name, not_applicable}` with the reason.
    All are to be done in `seconds`, as rows and columns foretell: too many train rows are thinned out, and `how` says
    so. `categories` are the columns that hold codes, by default those that the data name. Equal arguments give equal
    values.
    """
    tokens = vocabulary(task.kind, data)
    if tokens is not None:
        return [_scored("n-grams", task, data.val, seed, lambda: _ngrams(task, data, tokens, seed, seconds))]
    names, why = _names(task), _unfit(task, data)
    if why:
        return [{"name": name, "not_applicable": why} for name in names]
    coded = getattr(data, "categories", ()) if categories is None else categories
    rows = _Rows(task, data, seed, tuple(coded))
    return [
        _scored(names[0], task, data.val, seed, lambda: rows.linear(seconds / 4)),
        _scored(names[1], task, data.val, seed, lambda: rows.trees(3 * seconds / 4)),
    ]


def _names(task: Task) -> tuple[str, str]:
    linear = {"regression": "ridge"}.get(task.kind, "logistic_regression" if task.kind in KINDS else "linear_model")
    return linear, "boosted_trees"


def _unfit(task: Task, data: Data) -> str | None:
    """Why rows and targets of this kind are nothing for scikit-learn; None where they are."""
    if task.kind == "autoencoder":
        return "the targets are the inputs, which a linear model copies"
    if task.kind not in KINDS or task.step is not None:
        return f"of a {task.kind} task only its own step knows what to predict"
    if data.train.items is not None:
        return "a Dataset reads its rows anew in every epoch"
    if not isinstance(data.train.X, Tensor):
        return "the inputs are nested"
    return None


class _Impossible(Exception):
    """This model cannot be fitted here, or not in its time; the message says why."""


def _scored(name: str, task: Task, val: Split, seed: int, fit: Callable[[], Fitted]) -> dict[str, Any]:
    """What the fitted model reaches, by the task's own metric; or why it is not fitted."""
    from threadpoolctl import threadpool_limits

    began = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as heard, threadpool_limits(1):
            warnings.simplefilter("always")
            raw, how = fit()
        value, low, high = _judged(task, val, raw, seed)
    except (_Impossible, ValueError, ArithmeticError, np.linalg.LinAlgError, MemoryError) as error:
        return {"name": name, "not_applicable": (str(error).splitlines() or [type(error).__name__])[0]}
    said = sorted({str(warning.message).splitlines()[0] for warning in heard})
    found = {"name": name, "metric": task.metric.name, "value": value, "low": low, "high": high, "n": len(val)}
    return {**found, "seconds": time.perf_counter() - began, "how": "; ".join([how, *said])}


def _judged(task: Task, val: Split, raw: NDArray[Any], seed: int) -> tuple[float, float, float]:
    """The deciding metric and its interval. `raw` are class ids or values where the metric asks for these: what
    `task.predict` makes of the network's outputs means nothing here.
    """
    if raw.ndim == 1 and task.metric.name == "perplexity":  # the log probability of every token, row by row
        value, bounds = perplexity(raw.reshape(len(val), -1), seed)
        return value, *bounds
    targets = val.y.numpy()
    if task.metric.needs in ("classes", "values"):
        judged = (raw.astype(np.float32) if raw.dtype.kind == "f" else raw).reshape(targets.shape)
    else:
        judged = task.judged(torch.from_numpy(raw).float(), val.y)
    cheap = task.metric.name in OWN  # a thousand resamples of another's function take seconds
    low, high = interval(task.metric, targets, judged, seed) if cheap else (math.nan, math.nan)
    return task.metric(targets, judged), low, high


def _thinned(rows: int, affordable: float, seed: int) -> tuple[NDArray[np.int64], str]:
    """Which train rows to fit on, and what to say of them. Raises _Impossible when too few can be afforded."""
    if affordable >= rows:
        return np.arange(rows), f"on {rows} train rows"
    few = max(0, int(affordable))
    if few < FEWEST:
        raise _Impossible(f"the time allows {few} of {rows} train rows, and fewer than {FEWEST} say nothing")
    drawn = np.random.default_rng(derive(seed, "simple", "rows")).permutation(rows)[:few]
    return np.sort(drawn), f"on {few} of {rows} train rows, as many as the time allows"


class _Rows:
    """Train and validation as flat rows, and the two kinds of models on them."""

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

    def linear(self, seconds: float) -> Fitted:
        """Logistic or ridge regression on imputed, standardized, one-hot rows."""
        from sklearn.linear_model import LogisticRegression, Ridge
        from sklearn.pipeline import make_pipeline

        columns = self.X.shape[1]
        ridge = self.task.kind == "regression"
        per_row = LINEAR * columns * (columns + self.models if ridge else self.models * ITERATIONS)
        chosen, how = _thinned(len(self.X), seconds / per_row, self.seed)
        X, y = self.X[chosen], self.y[chosen]
        if ridge:
            model = make_pipeline(self._prepared(), Ridge(alpha=1.0)).fit(X, y.reshape(len(y), -1))
            return model.predict(self.val).reshape(self.shape), f"ridge 1, standardized, {how}"
        logistic = LogisticRegression(max_iter=ITERATIONS, class_weight=self.weights)
        whole = make_pipeline(self._prepared(), logistic)
        how = f"L2 penalty 1, standardized, {self._weighted()}{how}"
        return self._classified(lambda target: whole.fit(X, target), y), how

    def trees(self, seconds: float) -> Fitted:
        """Gradient-boosted trees on the rows as they are, missing values included."""
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        per_tree = TREE * self.X.shape[1]
        spare = seconds / (TREES * self.models) - NODE * LEAVES
        chosen, how = _thinned(len(self.X), spare / per_tree, self.seed)
        X, y = self.X[chosen], self.y[chosen]
        X = np.where(np.isnan(X).all(axis=0), np.float32(0), X)  # scikit-learn cannot bin a column without a value
        same: dict[str, Any] = {
            "max_iter": TREES,
            "max_leaf_nodes": LEAVES,
            "learning_rate": 0.2,
            "early_stopping": False,
            "random_state": derive(self.seed, "simple", "trees") % 2**32,
        }
        how = f"{TREES} rounds of {LEAVES} leaves, {how}"
        if self.task.kind == "regression":
            each = [HistGradientBoostingRegressor(**same).fit(X, one) for one in y.reshape(len(y), -1).T]
            return np.stack([model.predict(self.val) for model in each], axis=1).reshape(self.shape), how
        trees = HistGradientBoostingClassifier(**same, class_weight=self.weights)
        return self._classified(lambda target: trees.fit(X, target), y), self._weighted() + how

    def _weighted(self) -> str:
        return "classes weighted as in the loss, " if self.weights else ""

    def _prepared(self) -> Any:
        """Numbers imputed and standardized, codes as one column each; fitted with the model."""
        from sklearn.compose import make_column_transformer
        from sklearn.impute import SimpleImputer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        numbers = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler())
        if not self.categories:
            return numbers
        codes = OneHotEncoder(handle_unknown="ignore")
        return make_column_transformer((codes, self.categories), remainder=numbers, sparse_threshold=0.0)

    def _classified(self, fit: Callable[[NDArray[Any]], Any], y: NDArray[Any]) -> NDArray[Any]:
        """Class ids where the metric asks for them, else outputs as the task's loss takes them: [N, C] of classes,
        [N, L] of labels that go beside each other.
        """
        if y.ndim == 1:
            model = fit(y)
            shares = np.zeros((len(self.val), self.outputs))
            shares[:, model.classes_.astype(int)] = model.predict_proba(self.val)
            if self.task.metric.needs == "classes":
                return shares.argmax(axis=1)
            return shares if self.task.takes == "probabilities" else _log(shares)
        columns = []
        for target in y.T.astype(int):
            one = float(target[0]) if target.min() == target.max() else None
            columns.append(
                np.full(len(self.val), one) if one is not None else fit(target).predict_proba(self.val)[:, 1]
            )
        shares = np.stack(columns, axis=1)
        if self.task.metric.needs == "classes":
            return (shares > 0.5).astype(np.int64)
        return shares if self.task.takes == "probabilities" else _log(shares) - _log(1 - shares)


def _flat(X: Any) -> NDArray[np.float32]:
    """[N, numbers per row], infinities as missing."""
    rows: NDArray[np.float32] = X.reshape(len(X), -1).float().numpy()
    return np.where(np.isfinite(rows), rows, np.float32(math.nan))


def _log(shares: Floats) -> Floats:
    return np.log(np.clip(shares, 1e-12, None))


def _ngrams(task: Task, data: Data, tokens: int, seed: int, seconds: float) -> Fitted:
    """Trigrams, interpolated with shorter ones, of the train windows and their targets."""
    rows, val = sequences(data.train), sequences(data.val)
    if data.train.y.ndim > 1 and task.metric.name != "perplexity" and task.metric.needs != "classes":
        raise _Impossible(f"n-grams are not judged by {task.metric.name}")
    chosen, how = _thinned(len(rows), seconds / (GRAM * rows.shape[1]), seed)
    grams = counted(rows[chosen], tokens)
    context, following = windows(val, tokens)
    if data.val.y.ndim == 1:  # only what stands behind the window is asked
        context, following = (part.reshape(len(val), -1, *part.shape[1:])[:, -1] for part in (context, following))
    how = f"trigrams, interpolated, {how}"
    if task.metric.name == "perplexity":
        return np.log(grams.likely(context, following)), how
    if data.train.y.ndim > 1:
        return grams.commonest(context), how
    if len(context) * tokens > CELLS:
        raise _Impossible(f"{len(context)} rows of {tokens} tokens are too many to write down")
    found = grams.every(context)
    if task.metric.needs == "classes":
        return found.argmax(axis=1), how
    return found if task.takes == "probabilities" else _log(found), how
