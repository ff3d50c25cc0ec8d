"""Metrics: the number a target is set for, the direction it improves in, and how far it can be trusted."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, fault
from pipeline.results import Score, TrainSide

Needs = Literal["classes", "scores", "values", "token_losses", "step"]
Array = NDArray[Any]

PROPORTIONS = ("accuracy", "top_k_accuracy")
RESAMPLES = 1000


@dataclass(frozen=True)
class Metric:
    """A function of (targets, predictions), what predictions it needs, its direction, and the key that asked for it.

    `classes`: class ids [N], or one per label or token. `scores`: probabilities, [N] of class 1 for two classes, else
    [N, C]; of several labels [N, L]. `values`: numbers.
    `token_losses`: -ln of the probability of every target token [N, T]. `step`: none; it is a scalar that `task.step`
    returns under this name, averaged over the rows.
    """

    name: str
    function: Callable[[Array, Array], float]
    needs: Needs
    greater_is_better: bool = True
    where: str = "task.metric"

    def __call__(self, targets: Array, predictions: Array) -> float:
        """The metric's value; NaN where it is undefined or the predictions are not finite.

        Raises UserError when the function cannot take these predictions.
        """
        if predictions.dtype.kind == "f" and not np.isfinite(predictions).all():
            return math.nan
        try:
            return float(self.function(targets, predictions))
        except (ValueError, TypeError) as error:
            reason = (str(error).splitlines() or ["no reason"])[0]
            raise UserError(fault(self.where, f"'{self.name}' does not fit the predictions ({reason})")) from error

    def better(self, value: float, other: float) -> bool:
        """Whether a value is strictly better than another; NaN never is, and anything is better than NaN."""
        if math.isnan(value) or math.isnan(other):
            return math.isnan(other) and not math.isnan(value)
        return value > other if self.greater_is_better else value < other


def _accuracy(targets: Array, predictions: Array) -> float:
    return np.count_nonzero(targets == predictions) / targets.size if targets.size else math.nan


def _all_right(targets: Array, predictions: Array) -> float:
    """The share of rows whose every label is right."""
    return float((targets == predictions).all(axis=1).mean()) if len(targets) else math.nan


def _perplexity(targets: Array, losses: Array) -> float:
    """exp of the mean loss of a token: among how many equally likely tokens the model hesitates."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.mean(losses, dtype=np.float64)))


def _of_tokens(targets: Array, predictions: Array, *, function: Callable[..., float]) -> float:
    """A figure over all tokens of all rows."""
    return function(targets.reshape(-1), predictions.reshape(-1))


def _mae(targets: Array, predictions: Array) -> float:
    return float(np.mean(np.abs(targets.astype(np.float64) - predictions)))


def _rmse(targets: Array, predictions: Array) -> float:
    return float(np.sqrt(np.mean((targets.astype(np.float64) - predictions) ** 2)))


def _roc_auc(targets: Array, scores: Array) -> float:
    """The share of pairs, one row of each class, that the scores put in order; ties count half (Mann-Whitney)."""
    if scores.ndim != 1:
        raise ValueError("more than two classes; roc_auc_ovr and roc_auc_ovo take them")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    positive = targets == 1
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not (ones and zeros):
        return math.nan
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


# Those that every epoch of every example measures: the same numbers as scikit-learn's, a hundred times sooner.
OWN = {
    "accuracy": Metric("accuracy", _accuracy, "classes"),
    "roc_auc": Metric("roc_auc", _roc_auc, "scores"),
    "mae": Metric("mae", _mae, "values", greater_is_better=False),
    "rmse": Metric("rmse", _rmse, "values", greater_is_better=False),
}

EXACT = Metric("accuracy", _all_right, "classes")
PERPLEXITY = Metric("perplexity", _perplexity, "token_losses", greater_is_better=False)


def _silently(targets: Array, predictions: Array, *, function: Callable[..., float], sign: int = 1) -> float:
    """A function of others, which may warn where it answers NaN or 0: that is recorded anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sign * function(targets, predictions)


def _from_sklearn(name: str) -> Metric | None:
    """scikit-learn's scorer of that name, without the estimator it asks for; None when there is none."""
    from sklearn.metrics import get_scorer, get_scorer_names

    if name not in get_scorer_names():
        return None
    scorer = get_scorer(name)
    of_classes = scorer._response_method == "predict"
    of_values = scorer._score_func.__module__.endswith("_regression")
    needs: Needs = "values" if of_values else "classes" if of_classes else "scores"
    function = functools.partial(scorer._score_func, **scorer._kwargs)
    return Metric(name, functools.partial(_silently, function=function, sign=scorer._sign), needs)


OF_CLASSES, OF_VALUES = ("classes", "scores"), ("values",)
FITTING: dict[str, tuple[tuple[str, ...], str]] = {  # what the metrics of a kind need, and some of them
    "classification": (OF_CLASSES, "accuracy, balanced_accuracy or f1_macro"),
    "binary": (OF_CLASSES, "roc_auc, accuracy or f1_macro"),
    "multilabel": (OF_CLASSES, "f1_macro, f1_micro, roc_auc or accuracy"),
    "regression": (OF_VALUES, "rmse, mae or r2"),
    "autoencoder": (OF_VALUES, "rmse or mae"),
    "language_model": (("token_losses", "classes"), "perplexity or accuracy"),
}


def _known(name: str, kind: str) -> Metric | None:
    """The metric of that name as this kind of task understands it; None where there is none."""
    if name == "perplexity":
        return PERPLEXITY
    if kind == "multilabel":  # scikit-learn's take [N, L], and average over labels
        return EXACT if name == "accuracy" else _from_sklearn(name) or OWN.get(name)
    found = OWN.get(name) or _from_sklearn(name)
    if kind == "language_model" and found is not None and found.needs == "classes" and name not in OWN:
        return replace(found, function=functools.partial(_of_tokens, function=found.function))
    return found


def _from_target(node: Mapping[str, Any], kind: str, trust: Sequence[str], where: str) -> Metric:
    """A user's function `(targets, predictions) -> float`, with its attributes `needs` and `greater_is_better`."""
    from pipeline.config.build import build

    function: Any = build(dict(node), trust=trust, where=where)
    if not callable(function):
        got = type(function).__name__
        raise UserError(fault(where, "is not callable", got=got, expected="(targets, predictions) -> float"))
    needs: Any = getattr(function, "needs", "values" if kind in ("regression", "autoencoder", "custom") else "classes")
    if needs not in (known := [n for n in get_args(Needs) if n != "step"]):
        raise UserError(fault(where, "needs unknown predictions", got=needs, among=known))
    name = str(getattr(function, "name", str(node["_target_"]).rsplit(".", 1)[-1]))
    if name == "loss":
        raise UserError(fault(where, "has the loss's name", got=name, do="give the function an attribute `name`"))
    better = bool(getattr(function, "greater_is_better", True))
    return Metric(name, functools.partial(_silently, function=function), needs, better, where)


def _of_the_step(targets: Array, predictions: Array) -> float:
    raise AssertionError("a scalar of task.step is read, not computed")


def metric(task: Mapping[str, Any], trust: Sequence[str] = (), where: str = "task.metric") -> Metric:
    """The metric that `task.metric` names: a scikit-learn scorer, `rmse`, `mae`, `perplexity`, or a `_target_`.

    With a `task.step` also `loss`, and any other word for a scalar that the step returns; a leading `-` says that
    less of it is better. Raises UserError for an unknown name, and for one that does not measure this kind of task.
    """
    asked, kind = task["metric"], task["kind"]
    if isinstance(asked, Mapping):
        return _from_target(asked, kind, trust, where)
    stepped = bool(task.get("step"))
    if stepped and (asked == "loss" or asked.startswith("-")):
        return Metric(asked.removeprefix("-"), _of_the_step, "step", False, where)
    found = _known(str(asked), kind)
    if found is None and stepped:
        return Metric(asked, _of_the_step, "step", True, where)
    if found is None:
        from sklearn.metrics import get_scorer_names

        names = [*OWN, "perplexity", *get_scorer_names()]
        expected = "a scikit-learn scorer, rmse, mae, perplexity, or a _target_"
        raise UserError(fault(where, "unknown metric", got=asked, among=names, expected=expected))
    if kind != "custom" and found.needs not in FITTING[kind][0]:
        raise UserError(
            fault(where, f"does not measure a {kind} task", got=asked, expected=f"one like {FITTING[kind][1]}")
        )
    return replace(found, where=where)


def all_metrics(task: Mapping[str, Any], trust: Sequence[str] = ()) -> tuple[Metric, ...]:
    """`task.metric`, which decides, then those of `task.metrics` that are not it again, each once.

    Raises UserError naming the key of one that does not measure this task, or bears the name of another.
    """
    found = {_identity(task["metric"]): metric(task, trust)}
    for i, asked in enumerate(task.get("metrics") or ()):
        if _identity(asked) in found:
            continue
        one = metric({**task, "metric": asked}, trust, f"task.metrics[{i}]")
        if one.name in (m.name for m in found.values()):
            raise UserError(fault(one.where, "another metric has this name already", got=one.name))
        found[_identity(asked)] = one
    return tuple(found.values())


def _identity(asked: Any) -> str:
    return repr(sorted(asked.items(), key=str)) if isinstance(asked, Mapping) else str(asked)


def interval(metric: Metric, targets: Array, predictions: Array, seed: int = 0) -> tuple[float, float]:
    """The metric's 95 % interval on these rows: Wilson for proportions, else a bootstrap of 1000 seeded resamples.

    Rows are drawn whole: the tokens of one window hang together, and a share of tokens is no proportion of rows.
    (NaN, NaN) where the metric is NaN or no resample defines it.
    """
    n = len(targets)
    value = metric(targets, predictions) if n else math.nan
    if math.isnan(value):
        return math.nan, math.nan
    if metric.name in PROPORTIONS and (targets.ndim == 1 or metric.function is _all_right):
        from scipy.stats import binomtest

        bounds = binomtest(round(value * n), n).proportion_ci(confidence_level=0.95, method="wilson")
        return float(bounds.low), float(bounds.high)
    draw = np.random.Generator(np.random.Philox(seed))
    rows = (draw.integers(0, n, n) for _ in range(RESAMPLES))
    values = np.array([metric(targets[r], predictions[r]) for r in rows])
    if np.isnan(values).all():
        return math.nan, math.nan
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def score(metric: Metric, split: str, targets: Array, predictions: Array, seed: int = 0) -> Score | TrainSide:
    """What was measured on a split, in the type that says what it may be used for."""
    value = metric(targets, predictions)
    bounds = interval(metric, targets, predictions, seed) if split in ("val", "test") else None
    return stated(metric, split, value, len(targets), bounds)


def stated(
    metric: Metric, split: str, value: float, n: int, bounds: tuple[float, float] | None = None
) -> Score | TrainSide:
    """A value over `n` rows in the type of its split; its bounds are NaN where no row by row figure could give them."""
    if split not in ("val", "test"):
        return TrainSide(metric.name, value, n)
    low, high = bounds or (math.nan, math.nan)
    side: Literal["val", "test"] = "val" if split == "val" else "test"
    return Score(side, metric.name, value, low, high, n, metric.greater_is_better)
