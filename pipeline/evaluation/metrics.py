"""Metrics: functions of targets and predictions, the direction in which they improve, and their intervals."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.error_attribution import user_code_error
from pipeline.errors import FivegateError, UserError, fault, nearest
from pipeline.evaluation.intervals import bootstrap_interval, bootstrap_of_mean, bootstrap_of_roc_auc, wilson_interval
from pipeline.evaluation.predictions import as_column
from pipeline.results import Score, TrainSide

Needs = Literal["classes", "scores", "values", "token_losses", "step"]
Array = NDArray[Any]
RowLosses = tuple[Callable[[Array, Array], Array], Callable[[float], float]]

PROPORTIONS = ("accuracy", "top_k_accuracy")


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
        except FivegateError:
            raise
        except (Exception, SystemExit) as error:  # the user's own function may fail in any way
            raise self._error(error) from error
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            got = type(value).__name__
            raise UserError(fault(self.where, f"'{self.name}' does not return a number", got=got)) from error

    def _error(self, error: BaseException) -> UserError:
        """What the function raised: the line of a user's own function, else what a library says of the predictions."""
        if self.users_own:
            return user_code_error(self.where, error, f"'{self.name}' fails")
        reason = (str(error).splitlines() or ["no reason"])[0]
        return UserError(fault(self.where, f"'{self.name}' does not fit the predictions ({reason})"))

    def better(self, value: float, other: float) -> bool:
        """Return whether a value is strictly better than another; NaN never is, and any number is better than NaN."""
        if math.isnan(value) or math.isnan(other):
            return math.isnan(other) and not math.isnan(value)
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


def _without_warnings(targets: Array, predictions: Array, *, function: Callable[..., float], sign: int = 1) -> float:
    """Call a function of a library or a user; its warnings about undefined values repeat what NaN or 0 says already."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sign * function(targets, predictions)


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
    return Metric(name, functools.partial(_without_warnings, function=function, sign=scorer._sign), needs)


CLASS_METRICS, VALUE_METRICS = ("classes", "scores"), ("values",)
METRICS_BY_KIND: dict[str, tuple[tuple[str, ...], str]] = {  # what the metrics of a task kind need, and examples
    "classification": (CLASS_METRICS, "accuracy, balanced_accuracy or f1_macro"),
    "binary": (CLASS_METRICS, "roc_auc, accuracy or f1_macro"),
    "multilabel": (CLASS_METRICS, "f1_macro, f1_micro, roc_auc or accuracy"),
    "regression": (VALUE_METRICS, "rmse, mae or r2"),
    "autoencoder": (VALUE_METRICS, "rmse or mae"),
    "language_model": (("token_losses", "classes"), "perplexity or accuracy"),
}


def _named_metric(name: str, kind: str) -> Metric | None:
    """Return the metric of that name for this kind of task; None if there is none."""
    if name == "perplexity":
        return PERPLEXITY
    if kind == "multilabel":  # scikit-learn's metrics take [N, L] and average over labels
        return EXACT_MATCH if name == "accuracy" else _sklearn_metric(name) or BUILT_IN.get(name)
    known = BUILT_IN.get(name) or _sklearn_metric(name)
    if kind == "language_model" and known is not None and known.needs == "classes" and name not in BUILT_IN:
        return replace(known, function=functools.partial(_over_tokens, function=known.function))
    return known


def _user_metric(node: Mapping[str, Any], kind: str, trust: Sequence[str], where: str) -> Metric:
    """Return a user's `(targets, predictions) -> float` with its attributes `needs` and `greater_is_better`.

    Raises UserError for a function without `greater_is_better`: the wrong direction would choose the worst epoch.
    """
    from pipeline.config.build import build_function

    function: Any = build_function(node, 2, trust=trust, where=where)
    if not callable(function):
        got = type(function).__name__
        raise UserError(fault(where, "is not callable", got=got, expected="(targets, predictions) -> float"))
    # A partial function has the attributes of the function that it completes.
    attributes = function.func if isinstance(function, functools.partial) else function
    needs: Any = getattr(
        attributes, "needs", "values" if kind in ("regression", "autoencoder", "custom") else "classes"
    )
    if needs not in (known := [n for n in get_args(Needs) if n != "step"]):
        raise UserError(fault(where, "needs unknown predictions", got=needs, among=known))
    name = str(getattr(attributes, "name", str(node["_target_"]).rsplit(".", 1)[-1]))
    if name == "loss":
        raise UserError(fault(where, "has the loss's name", got=name, do="give the function an attribute `name`"))
    better = getattr(attributes, "greater_is_better", None)
    if not isinstance(better, bool | np.bool_):
        raise UserError(_no_direction(str(node["_target_"]), better, where))
    called = functools.partial(_without_warnings, function=function)
    return Metric(name, called, needs, bool(better), where, users_own=True)


def _no_direction(target: str, got: object, where: str) -> str:
    """The message for a metric of the user's own that does not say whether a higher value is better."""
    own = target.rpartition(".")[2]
    # A class has its attributes inside, a function below it.
    line = "greater_is_better = False" if own[:1].isupper() else f"{own}.greater_is_better = False"
    place = "in the class" if own[:1].isupper() else "below the function"
    what, expected = "does not say whether a higher value is better", "an attribute greater_is_better, True or False"
    do = f"write {place}: {line} (an error: lower is better), or True (a score: higher is better)"
    return fault(where, f"{target} {what}", got=got, expected=expected, do=do)


def with_columns(metric: Metric) -> Metric:
    """Return a metric that passes targets and predictions [N] to its function as [N, 1], as the user's data are."""
    return replace(metric, function=functools.partial(_of_columns, function=metric.function))


def _of_columns(targets: Array, predictions: Array, *, function: Callable[..., float]) -> float:
    return function(as_column(targets), as_column(predictions))


def _read_from_step(targets: Array, predictions: Array) -> float:
    raise AssertionError("a scalar of task.step is read, not computed")


def metric_from_config(task: Mapping[str, Any], trust: Sequence[str] = (), where: str = "task.metric") -> Metric:
    """Return the metric that `task.metric` names: a scikit-learn scorer, `rmse`, `mae`, `perplexity`, or a `_target_`.

    With a `task.step`, also `loss`, and any other name for a scalar that the step returns; a leading `-` says that
    lower is better. Raises UserError for an unknown name, and for a metric that does not measure this kind of task.
    """
    name, kind = task["metric"], task["kind"]
    if isinstance(name, Mapping):
        return _user_metric(name, kind, trust, where)
    has_step = bool(task.get("step"))
    if has_step and (name == "loss" or name.startswith("-")):
        return Metric(name.removeprefix("-"), _read_from_step, "step", False, where)
    known = _named_metric(str(name), kind)
    if known is None and has_step:
        return Metric(name, _read_from_step, "step", True, where)
    if known is None:
        raise UserError(_unknown_metric(str(name), task, where))
    if kind != "custom" and known.needs not in METRICS_BY_KIND[kind][0]:
        expected, first = f"one like {METRICS_BY_KIND[kind][1]}", METRICS_BY_KIND[kind][1].partition(" ")[0].strip(",")
        do = _correction(task, where, first)
        raise UserError(fault(where, f"does not measure a {kind} task", got=name, expected=expected, do=do))
    return replace(known, where=where)


def _unknown_metric(name: str, task: Mapping[str, Any], where: str) -> str:
    """The message for an unknown metric: the one that other libraries call so, else the most similar one."""
    from sklearn.metrics import get_scorer_names

    from pipeline.config.override_keys import familiar_value

    names = [known for known in [*BUILT_IN, "perplexity", *get_scorer_names()] if _measures(known, task["kind"])]
    advice = familiar_value("task.metric", name)
    meant = advice.overrides[0].partition("=")[2] if advice else ""
    close = meant if meant in names else nearest(name, names)
    expected, first = "a scikit-learn scorer, rmse, mae, perplexity, or a _target_", "loss"
    if task["kind"] in METRICS_BY_KIND:
        expected += f", like {METRICS_BY_KIND[task['kind']][1]}"
        first = METRICS_BY_KIND[task["kind"]][1].partition(" ")[0].strip(",")
    return fault(
        where, "unknown metric", got=name, expected=expected, close=close, do=_correction(task, where, close or first)
    )


def _measures(name: str, kind: str) -> bool:
    known = _named_metric(name, kind)
    return known is not None and (kind == "custom" or known.needs in METRICS_BY_KIND[kind][0])


def _correction(task: Mapping[str, Any], where: str, name: str) -> str:
    """The command that puts a metric in this place; an override replaces the whole list of further metrics."""
    if where == "task.metric":
        return f"python -m pipeline ... task.metric={name}"
    place = int(where.partition("[")[2].rstrip("]"))
    metrics = [name if i == place else m for i, m in enumerate(task.get("metrics") or ())]
    if not all(isinstance(m, str) for m in metrics):
        return f"write {name} in its place in task.metrics"
    return f"python -m pipeline ... 'task.metrics=[{','.join(metrics)}]'"


def metrics_from_config(task: Mapping[str, Any], trust: Sequence[str] = ()) -> tuple[Metric, ...]:
    """Return the deciding metric (`task.metric`), then those of `task.metrics`, each once.

    Raises UserError naming the key of a metric that does not measure this task, or whose name is taken.
    """
    metrics = {_identity(task["metric"]): metric_from_config(task, trust)}
    for i, name in enumerate(task.get("metrics") or ()):
        if _identity(name) in metrics:
            continue
        metric = metric_from_config({**task, "metric": name}, trust, f"task.metrics[{i}]")
        if metric.name in (m.name for m in metrics.values()):
            raise UserError(fault(metric.where, "another metric has this name already", got=metric.name))
        metrics[_identity(name)] = metric
    return tuple(metrics.values())


def _identity(name: str | Mapping[str, Any]) -> str:
    return repr(sorted(name.items(), key=str)) if isinstance(name, Mapping) else str(name)


def confidence_interval(metric: Metric, targets: Array, predictions: Array, seed: int = 0) -> tuple[float, float]:
    """Return the metric's 95 % interval on these rows: Wilson for proportions, else a percentile bootstrap.

    Whole rows are resampled: the tokens of one window depend on each other, so a share of tokens is not a proportion
    of independent rows. (NaN, NaN) where the metric is NaN or undefined in every resample.
    """
    n = len(targets)
    value = metric(targets, predictions) if n else math.nan
    if math.isnan(value):
        return math.nan, math.nan
    if metric.name in PROPORTIONS and (targets.ndim == 1 or metric.function is _exact_match):
        return wilson_interval(round(value * n), n)
    if n < 2:  # every resample is the row itself
        return value, value
    if metric.row_losses is not None:
        row_loss, from_mean = metric.row_losses
        low, high = bootstrap_of_mean(row_loss(targets, predictions), seed)
        return from_mean(low), from_mean(high)
    if metric.function is _roc_auc:
        return bootstrap_of_roc_auc(predictions[targets == 1], predictions[targets != 1], seed)
    return bootstrap_interval(lambda rows: metric(targets[rows], predictions[rows]), n, seed)


def score_predictions(
    metric: Metric, split: str, targets: Array, predictions: Array, seed: int = 0
) -> Score | TrainSide:
    """Return the metric on a split: a Score with its interval for val and test, a TrainSide for train rows."""
    value = metric(targets, predictions)
    bounds = confidence_interval(metric, targets, predictions, seed) if split in ("val", "test") else None
    return make_score(metric, split, value, len(targets), bounds)


def make_score(
    metric: Metric, split: str, value: float, n: int, bounds: tuple[float, float] | None = None
) -> Score | TrainSide:
    """Return a value over `n` rows in the type of its split; without `bounds` its interval is NaN."""
    if split not in ("val", "test"):
        return TrainSide(metric.name, value, n)
    low, high = bounds or (math.nan, math.nan)
    name: Literal["val", "test"] = "val" if split == "val" else "test"
    return Score(name, metric.name, value, low, high, n, metric.greater_is_better)
