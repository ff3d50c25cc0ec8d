"""Scores with their 95 % intervals: which of the methods in this package belongs to which metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from pipeline.evaluation.intervals import losses as of_losses
from pipeline.evaluation.intervals.bounded import NO_INTERVAL, Array, Floats, Interval
from pipeline.evaluation.intervals.classes import (
    Decisions,
    class_interval,
    decisions,
    matthews_interval,
    proportion_interval,
)
from pipeline.evaluation.intervals.ranking import average_precision_interval, rankings, roc_auc_interval
from pipeline.evaluation.intervals.resampling import bootstrap_interval, half_sample_interval
from pipeline.evaluation.metrics import Metric
from pipeline.results import Score, TrainSide

SHARES = ("recall", "precision", "f1", "jaccard")  # of a class; with `_macro` and so on, averaged over classes


def confidence_interval(
    metric: Metric,
    targets: Array,
    predictions: Array,
    seed: int = 0,
    groups: Array | None = None,
    *,
    resample: bool = True,
) -> Interval:
    """Return the metric's 95 % interval on these rows, in the metric's own sign; NaN where it is undefined.

    Whole rows are the unit: the tokens of one window depend on each other. Where the owner of the data declared
    `groups` [N], whole groups are. A metric of the user's own, and whatever has no formula here, is resampled with
    `seed`, unless `resample` is False. A single row or group gives no interval, except of a proportion.
    """
    n = len(targets)
    value = metric(targets, predictions) if n else math.nan
    if not math.isfinite(value):
        return NO_INTERVAL
    if groups is not None:
        groups = np.unique(groups, return_inverse=True)[1].reshape(-1)
    known = None if metric.users_own else _known(metric, value, targets, predictions, groups, seed)
    if known is None and not resample:
        return NO_INTERVAL
    if known is None:
        known = _resampled(metric, value, targets, predictions, groups, seed)
    if math.isnan(known.low) or math.isnan(known.high):
        return known._replace(low=math.nan, high=math.nan)
    return known._replace(low=min(known.low, value), high=max(known.high, value))


def _known(
    metric: Metric, value: float, targets: Array, predictions: Array, groups: Array | None, seed: int
) -> Interval | None:
    """Return the interval of one of our metrics or scikit-learn's; None for one that has no formula here."""
    if metric.row_losses is not None:
        row_loss, from_mean = metric.row_losses
        of_row = row_loss(targets, predictions)
        limits = of_losses.mean_interval(of_row, groups, _constant_loss(metric, targets))
        return limits._replace(low=from_mean(limits.low), high=from_mean(limits.high))
    if metric.name == "top_k_accuracy":
        return _proportion(value, len(targets), groups, targets, predictions)
    if metric.needs == "classes":
        return _of_classes(metric.name, value, targets, predictions, groups)
    if metric.needs == "scores":
        return _of_scores(metric.name, value, targets, predictions, groups, seed)
    return _of_values(metric.name, targets, predictions, groups) if metric.needs == "values" else None


def _proportion(value: float, n: int, groups: Array | None, targets: Array, scores: Array) -> Interval:
    """Return the interval of the share of rows whose class is among the two with the highest scores."""
    if groups is None:
        return proportion_interval(np.array([round(value * n)]), np.array([n]), None)
    classes = np.unique(targets)
    of_target = np.take_along_axis(scores, np.searchsorted(classes, targets)[:, None], axis=1)
    hits = (scores > of_target).sum(axis=1) < 2
    return proportion_interval(hits.astype(float), np.ones(n), groups)


def _of_classes(name: str, value: float, targets: Array, predictions: Array, groups: Array | None) -> Interval | None:
    labels = name != "accuracy" and targets.ndim == 2 and targets.max(initial=0) <= 1 >= predictions.max(initial=0)
    if name == "accuracy":
        return _of_accuracy(value, targets, predictions, groups)
    choices: Decisions = decisions(targets, predictions, groups, labels=labels)
    if name == "balanced_accuracy":
        return class_interval(choices, "recall", "balanced")
    if name == "matthews_corrcoef":
        return matthews_interval(choices, value)
    share, _, average = name.partition("_")
    if share not in SHARES or average == "samples":
        return None
    return class_interval(choices, share, average or "binary")  # type: ignore[arg-type]


def _of_accuracy(value: float, targets: Array, predictions: Array, groups: Array | None) -> Interval:
    """Return the interval of the share of right rows, of right tokens, or of rows of which every label is right."""
    n, right = len(targets), (targets == predictions).reshape(len(targets), -1)
    several = right.shape[1] > 1
    if several and math.isclose(value, float(right.all(axis=1).mean())):
        right, several = right.all(axis=1, keepdims=True), False
    rows = np.arange(n) if groups is None and several else groups
    hits, trials = right.sum(axis=1).astype(float), np.full(n, float(right.shape[1]))
    return proportion_interval(hits, trials, rows, declared=groups is not None or not several)


def _of_scores(
    name: str, value: float, targets: Array, scores: Array, groups: Array | None, seed: int
) -> Interval | None:
    several = targets.ndim == 2
    binary = scores.ndim == 1
    if name.startswith("roc_auc") and (binary or several or name != "roc_auc"):
        average = "binary" if binary else "labels" if several else name.removeprefix("roc_auc_")
        return roc_auc_interval(rankings(targets, scores, average), groups)
    if name == "average_precision":
        ranked = rankings(targets, scores, "binary" if binary else "labels" if several else "ovr")
        return average_precision_interval(ranked, value, groups, seed)
    if several or name not in ("neg_log_loss", "neg_brier_score"):
        return None
    shares: Floats = np.stack([1 - scores, scores], axis=1) if binary else scores
    if name == "neg_log_loss":
        eps = float(np.finfo(shares.dtype).eps)
        of_row = -np.log(np.clip(shares[np.arange(len(targets)), targets.astype(int)], eps, 1 - eps)).astype(float)
        largest = max(float(of_row.max()), of_losses.wrong_class_loss(shares))
    else:
        squares = (shares - np.eye(shares.shape[1])[targets.astype(int)]) ** 2
        of_row = squares.sum(axis=1).astype(float) / (2 if shares.shape[1] == 2 else 1)
        largest = 1.0 if shares.shape[1] == 2 else 2.0
    if not math.isclose(float(of_row.mean()), -value, rel_tol=1e-3, abs_tol=1e-6):
        return None  # the metric is computed otherwise, as for probabilities that do not sum to one
    return _negative(of_losses.bounded_loss_interval(of_row, largest, groups))


def _negative(limits: Interval) -> Interval:
    return limits._replace(low=-limits.high, high=-limits.low)


# Losses per value of scikit-learn's scorers that are means of them, and what makes the score of the mean.
VALUE_LOSSES: dict[str, tuple[Callable[[Floats, Floats], Floats], Callable[[float], float]]] = {
    "neg_mean_absolute_error": (lambda y, p: np.abs(y - p), float),
    "neg_mean_squared_error": (lambda y, p: (y - p) ** 2, float),
    "neg_root_mean_squared_error": (lambda y, p: (y - p) ** 2, math.sqrt),
    "neg_mean_absolute_percentage_error": (
        lambda y, p: np.abs(y - p) / np.maximum(np.abs(y), np.finfo(np.float64).eps),
        float,
    ),
    "neg_mean_squared_log_error": (lambda y, p: (np.log1p(y) - np.log1p(p)) ** 2, float),
    "neg_root_mean_squared_log_error": (lambda y, p: (np.log1p(y) - np.log1p(p)) ** 2, math.sqrt),
    "neg_mean_poisson_deviance": (
        lambda y, p: 2 * (np.where(y > 0, y * np.log(np.where(y > 0, y, 1) / p), 0) - y + p),
        float,
    ),
    "neg_mean_gamma_deviance": (lambda y, p: 2 * (np.log(p / y) + y / p - 1), float),
}


def _of_values(name: str, targets: Array, predictions: Array, groups: Array | None) -> Interval | None:
    y, p = (values.astype(np.float64).reshape(len(values), -1) for values in (targets, predictions))
    if name in VALUE_LOSSES and (y.shape[1] == 1 or "root" not in name):
        loss, from_mean = VALUE_LOSSES[name]
        constant = np.broadcast_to(np.median(y, axis=0) if "absolute" in name else y.mean(axis=0), y.shape)
        limits = of_losses.mean_interval(loss(y, p).mean(axis=1), groups, float(loss(y, constant).mean()))
        return _negative(limits._replace(low=from_mean(limits.low), high=from_mean(limits.high)))
    errors, center = y - p, y.mean(axis=0)
    if name == "explained_variance":
        errors = errors - errors.mean(axis=0)
    if name in ("r2", "explained_variance"):
        ratios = of_losses.several_ratios_interval(errors**2, (y - center) ** 2, groups)
    elif name == "d2_absolute_error_score":
        ratios = of_losses.several_ratios_interval(np.abs(errors), np.abs(y - np.median(y, axis=0)), groups)
    else:
        return None
    return ratios._replace(low=1 - ratios.high, high=1 - ratios.low)


def _constant_loss(metric: Metric, targets: Array) -> float:
    """Return the mean loss of a constant prediction on these targets: their mean, or the frequency of each token."""
    if metric.needs == "token_losses":
        _, counts = np.unique(targets, return_counts=True)
        shares = counts / counts.sum()
        return float(-(shares * np.log(shares)).sum())
    assert metric.row_losses is not None
    y = targets.astype(np.float64)
    constant = np.broadcast_to(np.median(y) if metric.name == "mae" else y.mean(axis=0), y.shape)
    return float(metric.row_losses[0](y, constant).mean())


def _resampled(
    metric: Metric, value: float, targets: Array, predictions: Array, groups: Array | None, seed: int
) -> Interval:
    """Return the interval of a function of which nothing is known but its values.

    A metric that neither stays the same (a mean) nor doubles (a sum) if every row is there twice compares rows with
    each other: its interval is from half samples.
    """

    def of_rows(of_targets: Array, of_predictions: Array) -> float:
        result = metric(targets[of_targets], predictions[of_predictions])
        return result if math.isfinite(result) else math.nan

    n = len(targets)
    if n < 2:
        return NO_INTERVAL
    everything = np.repeat(np.arange(n), 2)
    twice = of_rows(everything, everything)
    # A mean stays as it is and a sum doubles; any other metric compares rows with each other.
    if any(math.isclose(twice, times * value, rel_tol=1e-6, abs_tol=1e-9) for times in (1, 2)):
        return bootstrap_interval(of_rows, targets, groups, seed)
    return half_sample_interval(of_rows, n, groups, seed)


def score_predictions(
    metric: Metric, split: str, targets: Array, predictions: Array, seed: int = 0, groups: Array | None = None
) -> Score | TrainSide:
    """Return the metric on a split: a Score with its interval for val and test, a TrainSide for train rows."""
    value = metric(targets, predictions)
    if split not in ("val", "test"):
        return make_score(metric, split, value, len(targets))
    return make_score(
        metric, split, value, len(targets), confidence_interval(metric, targets, predictions, seed, groups), groups
    )


def make_score(
    metric: Metric, split: str, value: float, n: int, interval: Interval = NO_INTERVAL, groups: Array | None = None
) -> Score | TrainSide:
    """Return a value over `n` rows in the type of its split; without `interval` its limits are NaN."""
    if split not in ("val", "test"):
        return TrainSide(metric.name, value, n)
    name: Literal["val", "test"] = "val" if split == "val" else "test"
    return Score(
        name,
        metric.name,
        value,
        interval.low,
        interval.high,
        n,
        metric.greater_is_better,
        undefined=interval.undefined,
        resamples=interval.resamples,
        groups=None if groups is None else len(np.unique(groups)),
    )
