"""Metrics: functions of targets and predictions, and the direction in which they improve."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.error_attribution import is_users_fault, message_of, reraise_stop, text_of, user_code_error
from pipeline.errors import UserError, fault

Needs = Literal["classes", "scores", "values", "token_losses", "step"]
Array = NDArray[Any]
RowLosses = tuple[Callable[[Array, Array], Array], Callable[[float], float]]


@dataclass(frozen=True)
class Metric:
    """A function of (targets, predictions), the predictions it needs, its direction, and the config key that names it.

    `needs` is one of
    - `classes`: class ids [N], or one id per label [N, L] or token [N, T];
    - `scores`: probabilities, [N] of class 1 for two classes, else [N, C]; [N, L] for several labels;
    - `values`: numbers in the shape of the targets;
    - `token_losses`: negative log-likelihood of every target token [N, T];
    - `step`: nothing; the metric is a scalar that `task.step` returns under this name, averaged over rows.

    `row_losses`: for a metric that is a monotone function of the mean of a loss per row, the two functions. Its
    interval is then computed from [N] numbers instead of from all predictions.
    """

    name: str
    function: Callable[[Array, Array], float]
    needs: Needs
    greater_is_better: bool = True
    where: str = "task.metric"
    row_losses: RowLosses | None = None
    users_own: bool = False  # a `_target_` of the user's, which may take what no other metric takes

    def __call__(self, targets: Array, predictions: Array) -> float:
        """Return the metric's value; NaN where it is undefined or the predictions are not finite.

        Raises UserError if the function fails on these predictions, or returns something else than a number.
        """
        if predictions.dtype.kind == "f" and not np.isfinite(predictions).all():
            return math.nan
        try:
            value = self.function(targets, predictions)
        except BaseException as error:  # the user's own function may fail in any way
            if not is_users_fault(error):
                raise
            raise self._error(error) from error
        try:
            return float(value)
        except BaseException as error:  # so may a number of the user's own, and a number may be too large
            reraise_stop(error)
            why = "" if isinstance(error, TypeError | ValueError) else f" ({text_of(error)})"
            what = f"'{self.name}' does not return a number{why}"
            raise UserError(fault(self.where, what, got=type(value).__name__)) from error

    def _error(self, error: BaseException) -> UserError:
        """What the function raised: the line of a user's own function, else what a library says of the predictions."""
        if self.users_own:
            return user_code_error(self.where, error, f"'{self.name}' fails")
        reason = (message_of(error).splitlines() or ["no reason"])[0]
        # scikit-learn's f1, precision, recall and jaccard are of one class; over several classes they are averaged.
        do = f"{self.where}={self.name}_macro" if "average='binary'" in reason else ""
        return UserError(fault(self.where, f"'{self.name}' does not fit the predictions ({reason})", do=do))

    def better(self, value: float, other: float) -> bool:
        """Return whether a value is strictly better; only a finite one is, and any is better than a non-finite one."""
        if not (math.isfinite(value) and math.isfinite(other)):
            return math.isfinite(value)
        return value > other if self.greater_is_better else value < other


def _accuracy(targets: Array, predictions: Array) -> float:
    return np.count_nonzero(targets == predictions) / targets.size if targets.size else math.nan


def _exact_match(targets: Array, predictions: Array) -> float:
    """Return the share of rows of which every label is right."""
    return float((targets == predictions).all(axis=1).mean()) if len(targets) else math.nan


def _perplexity(targets: Array, losses: Array) -> float:
    """Return exp of the mean negative log-likelihood per token."""
    return _exp(float(np.mean(losses, dtype=np.float64)))


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):  # an untrained model may reach infinity
        return float(np.exp(value))


def _flat64(targets: Array, predictions: Array) -> tuple[Array, Array]:
    # Flat, since scikit-learn averages errors column by column; float64, since it computes in the type of its input.
    return targets.astype(np.float64).reshape(-1), predictions.astype(np.float64).reshape(-1)


def _mae(targets: Array, predictions: Array) -> float:
    from sklearn.metrics import mean_absolute_error

    return float(mean_absolute_error(*_flat64(targets, predictions)))


def _rmse(targets: Array, predictions: Array) -> float:
    from sklearn.metrics import root_mean_squared_error

    return float(root_mean_squared_error(*_flat64(targets, predictions)))


def _roc_auc(targets: Array, scores: Array) -> float:
    from sklearn.metrics import roc_auc_score

    if scores.ndim != 1:
        raise ValueError("more than two classes; roc_auc_ovr and roc_auc_ovo take them")
    if len(np.unique(targets)) < 2:  # scikit-learn answers NaN as well, with a warning
        return math.nan
    return float(roc_auc_score(targets, scores))


def _row_means(values: Array) -> Array:
    return values.reshape(len(values), -1).mean(axis=1, dtype=np.float64)


def _absolute_error(targets: Array, predictions: Array) -> Array:
    return _row_means(np.abs(targets.astype(np.float64) - predictions))


def _squared_error(targets: Array, predictions: Array) -> Array:
    return _row_means((targets.astype(np.float64) - predictions) ** 2)


def _token_loss(targets: Array, losses: Array) -> Array:
    return _row_means(losses)


# Metrics by names that differ from scikit-learn's scorers in sign (mae, rmse) or take no estimator.
BUILT_IN = {
    "accuracy": Metric("accuracy", _accuracy, "classes"),
    "roc_auc": Metric("roc_auc", _roc_auc, "scores"),
    "mae": Metric("mae", _mae, "values", greater_is_better=False, row_losses=(_absolute_error, float)),
    "rmse": Metric("rmse", _rmse, "values", greater_is_better=False, row_losses=(_squared_error, math.sqrt)),
}

EXACT_MATCH = Metric("accuracy", _exact_match, "classes")
PERPLEXITY = Metric(
    "perplexity", _perplexity, "token_losses", greater_is_better=False, row_losses=(_token_loss, _exp)
)  # fmt: skip


def _over_tokens(targets: Array, predictions: Array, *, function: Callable[..., float]) -> float:
    """Return a metric over all tokens of all rows."""
    return function(targets.reshape(-1), predictions.reshape(-1))


def without_warnings(targets: Array, predictions: Array, *, function: Callable[..., float], sign: int = 1) -> float:
    """Call a function of a library or a user; its warnings about undefined values repeat what NaN or 0 says already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = function(targets, predictions)
    return value if sign == 1 else sign * value  # what is no number is reported as such


def _sklearn_metric(name: str) -> Metric | None:
    """Return scikit-learn's scorer of that name as a function of predictions; None if there is none."""
    from sklearn.metrics import get_scorer, get_scorer_names

    if name not in get_scorer_names():
        return None
    scorer = get_scorer(name)
    of_classes = scorer._response_method == "predict"
    of_values = scorer._score_func.__module__.endswith("_regression")
    needs: Needs = "values" if of_values else "classes" if of_classes else "scores"
    function = functools.partial(scorer._score_func, **scorer._kwargs)
    return Metric(name, functools.partial(without_warnings, function=function, sign=scorer._sign), needs)


CLASS_METRICS, VALUE_METRICS = ("classes", "scores"), ("values",)
METRICS_BY_KIND: dict[str, tuple[tuple[str, ...], str]] = {  # what the metrics of a task kind need, and examples
    "classification": (CLASS_METRICS, "accuracy, balanced_accuracy or f1_macro"),
    "binary": (CLASS_METRICS, "roc_auc, accuracy or f1_macro"),
    "multilabel": (CLASS_METRICS, "f1_macro, f1_micro, roc_auc or accuracy"),
    "regression": (VALUE_METRICS, "rmse, mae or r2"),
    "autoencoder": (VALUE_METRICS, "rmse or mae"),
    "language_model": (("token_losses", "classes"), "perplexity or accuracy"),
}


def named_metric(name: str, kind: str) -> Metric | None:
    """Return the metric of that name for this kind of task; None if there is none."""
    if name == "perplexity":
        return PERPLEXITY
    if kind == "multilabel":  # scikit-learn's metrics take [N, L] and average over labels
        return EXACT_MATCH if name == "accuracy" else _sklearn_metric(name) or BUILT_IN.get(name)
    known = BUILT_IN.get(name) or _sklearn_metric(name)
    if kind == "language_model" and known is not None and known.needs == "classes" and name not in BUILT_IN:
        return replace(known, function=functools.partial(_over_tokens, function=known.function))
    return known
