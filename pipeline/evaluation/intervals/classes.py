"""Intervals of metrics of class ids: accuracy, and precision, recall, F1 or Jaccard index, averaged over classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.evaluation.intervals.bounded import (
    NO_INTERVAL,
    Array,
    Floats,
    Interval,
    bounded_interval,
    clustered_variance,
    exact_interval,
    sums_by,
)

Share = Literal["recall", "precision", "f1", "jaccard"]
Average = Literal["binary", "micro", "macro", "weighted", "balanced"]
NONE = -1  # the class of a label that is absent, or not predicted


@dataclass(frozen=True, eq=False)
class Decisions:
    """True and predicted class of every decision [M], which rows or groups [M] they belong to, and how many classes.

    Rows with one class make one decision each. Tokens of a row, or its labels, are several: they depend on each other,
    so that the row is one of the `clusters`, as a declared group is. None if all decisions are independent.
    """

    true: Array
    predicted: Array
    classes: int
    positive: int  # the number of class 1, NONE if no row has it
    clusters: Array | None
    declared: bool  # whether the clusters are groups that the owner of the data declared
    labels: bool = False  # whether a row has several labels: all of them count, also those that no row has


def decisions(targets: Array, predictions: Array, groups: Array | None, *, labels: bool) -> Decisions:
    """Return the decisions of class ids [N], of tokens [N, T], or of `labels` [N, L], which are 0 or 1."""
    per_row = targets[0].size if targets.ndim > 1 else 1
    rows = np.arange(len(targets)) if groups is None else groups
    clusters = None if groups is None and per_row == 1 else np.repeat(rows, per_row)
    if labels:
        label = np.broadcast_to(np.arange(targets.shape[1]), targets.shape)
        true, predicted = (np.where(values == 1, label, NONE).reshape(-1) for values in (targets, predictions))
        return Decisions(true, predicted, targets.shape[1], NONE, clusters, groups is not None, labels=True)
    known, ids = np.unique(np.concatenate([targets.reshape(-1), predictions.reshape(-1)]), return_inverse=True)
    true, predicted = ids[: targets.size], ids[targets.size :]
    positive = int(np.flatnonzero(known == 1)[0]) if (known == 1).any() else NONE
    return Decisions(true, predicted, len(known), positive, clusters, groups is not None)


def proportion_interval(hits: Array, trials: Array, groups: Array | None, *, declared: bool = True) -> Interval:
    """Return the interval of sum(hits) / sum(trials) over rows [N]: exact for independent rows of one trial each."""
    total = float(trials.sum())
    if not total:
        return Interval(0.0, 1.0)
    if groups is None:
        return exact_interval(float(hits.sum()), total)
    value = float(hits.sum()) / total
    return _clustered(value, (hits - value * trials) / total, groups, len(np.unique(groups[trials > 0])), declared)


def _clustered(value: float, contributions: Floats, groups: Array, involved: int, declared: bool) -> Interval:
    """Return the interval of a share of which each cluster contributes a part.

    One row or declared group more may be wrong as a whole. Of rows of many tokens, one more is at most twice as far
    from the mean as the farthest.
    """
    variance = clustered_variance(contributions, groups)
    if math.isnan(variance):
        return NO_INTERVAL
    unit = 1 / max(involved, 1)
    largest = 2 * float(np.abs(sums_by(groups, contributions)).max())
    return bounded_interval(value, variance, unit if declared or not variance else min(unit, largest))


def class_interval(choices: Decisions, share: Share, average: Average) -> Interval:
    """Return the interval of a share of each class, averaged over classes.

    Precision, recall and Jaccard index of a class are proportions of its rows, and F1 is a function of the last. Their
    average has the variance of a weighted sum. For F1 and Jaccard index the variance is doubled at most, since a wrong
    row counts for two classes. The shares in the variance are drawn towards the average by one row per class, since
    a class of a single row would have none.
    """
    hit = (choices.true == choices.predicted) & (choices.true != NONE)
    of_true, of_predicted = (
        np.bincount(ids[ids != NONE], minlength=choices.classes).astype(float)
        for ids in (choices.true, choices.predicted)
    )
    hits = np.bincount(choices.true[hit], minlength=choices.classes).astype(float)
    trials = {"recall": of_true, "precision": of_predicted}.get(share, of_true + of_predicted - hits)
    if average in ("binary", "micro"):
        return _one_share(choices, share, average, hit, hits, trials)
    if average == "weighted":
        weights = of_true / of_true.sum()
    else:
        present = np.ones(choices.classes) if choices.labels else of_true + (average == "macro") * of_predicted > 0
        weights = present / present.sum()
    return _average(choices, share, hit, hits, np.where(weights > 0, np.maximum(trials, 1), trials), weights)


def _one_share(
    choices: Decisions, share: Share, average: Average, hit: Array, hits: Floats, trials: Floats
) -> Interval:
    """Return the interval of the share of class 1, or of all classes together."""
    chosen = np.arange(choices.classes) == choices.positive if average == "binary" else np.ones(choices.classes) > 0
    in_true, in_predicted = (np.append(chosen, False)[ids] for ids in (choices.true, choices.predicted))
    row_trials = {"recall": in_true, "precision": in_predicted}.get(share)
    row_hits = hit & in_true
    if row_trials is None:
        both = average == "micro"  # a wrong decision between two chosen classes counts for both of them
        row_trials = in_true.astype(int) + in_predicted - row_hits if both else in_true | in_predicted
    if choices.clusters is None and not choices.labels and average == "micro":
        limits = exact_interval(float(hits.sum()), float(len(hit)))  # of one class per row, all are the accuracy
        return _transformed(limits, (lambda x: x / (2 - x)) if share == "jaccard" else (lambda x: x))
    limits = proportion_interval(
        row_hits.astype(float), row_trials.astype(float), choices.clusters, declared=choices.declared or choices.labels
    )
    return _transformed(limits, _f1 if share == "f1" else (lambda x: x))


def _f1(jaccard: float) -> float:
    return 2 * jaccard / (1 + jaccard)


def _transformed(limits: Interval, function: Callable[[float], float]) -> Interval:
    return Interval(function(limits.low), function(limits.high))


def _average(choices: Decisions, share: Share, hit: Array, hits: Floats, trials: Floats, weights: Floats) -> Interval:
    counted = trials > 0
    trials = np.where(counted, trials, 1.0)
    shares, doubled = hits / trials, 2.0 if share in ("f1", "jaccard") else 1.0
    slope = 2 / (1 + shares) ** 2 if share == "f1" else np.ones_like(shares)
    value = float((weights * (2 * shares / (1 + shares) if share == "f1" else shares)).sum())
    drawn = (hits + value) / (trials + 1)
    drawn_slope = 2 / (1 + drawn) ** 2 if share == "f1" else slope
    variance = doubled * float((weights**2 * drawn * (1 - drawn) / trials * drawn_slope**2).sum())
    if choices.clusters is None:
        return bounded_interval(value, variance, min(1.0, doubled * float((weights * slope / trials).max())))
    effect = np.append(weights * slope / trials, 0.0)  # of one decision; 0 for NONE
    missed = -effect * np.append(shares, 0.0)
    at_true, at_predicted = missed[choices.true], missed[choices.predicted]
    contributions = {
        "recall": at_true + hit * effect[choices.true],
        "precision": at_predicted + hit * effect[choices.predicted],
    }.get(share, np.where(hit, at_true + effect[choices.true], at_true + at_predicted))
    clustered = clustered_variance(contributions, choices.clusters)
    if math.isnan(clustered):
        return NO_INTERVAL
    # One cluster more may be wrong as a whole, for its part of every class that it has.
    having = _clusters_by_class(choices)
    unit = doubled * float((weights * slope / np.maximum(having, 1)).max())
    if not (choices.declared or choices.labels) and clustered:
        unit = min(unit, 2 * float(np.abs(sums_by(choices.clusters, contributions)).max()))
    return bounded_interval(value, max(variance, clustered), min(1.0, unit))


def _clusters_by_class(choices: Decisions) -> Floats:
    """Return how many clusters have a decision of each class, true or predicted."""
    assert choices.clusters is not None
    pairs = [
        np.stack([ids[ids != NONE], choices.clusters[ids != NONE]], axis=1) for ids in (choices.true, choices.predicted)
    ]
    distinct = np.unique(np.concatenate(pairs), axis=0)
    return np.bincount(distinct[:, 0].astype(int), minlength=choices.classes).astype(float)


def matthews_interval(choices: Decisions, value: float) -> Interval:
    """Return the interval of Matthews' correlation coefficient of class ids.

    Its variance is from the effect of every row: how much the coefficient changes if the row is there twice.
    """
    true, predicted = choices.true, choices.predicted
    of_true, of_predicted = (np.bincount(ids, minlength=choices.classes).astype(float) for ids in (true, predicted))
    right, rows = float((true == predicted).sum()), float(len(true))

    def with_row(i: Array, j: Array) -> Floats:
        """The coefficient with one row more of class i, predicted as j."""
        n, hits = rows + 1, right + (i == j)
        both = (of_true * of_predicted).sum() + of_predicted[i] + of_true[j] + (i == j)
        squares = [n**2 - (c**2).sum() - 2 * c[k] - 1 for c, k in ((of_true, i), (of_predicted, j))]
        product = np.sqrt(squares[0] * squares[1])
        return np.where(product > 0, (hits * n - both) / np.maximum(product, 1e-12), 0.0)

    effects = with_row(true, predicted) - value
    clusters = np.arange(len(true)) if choices.clusters is None else choices.clusters
    i, j = (ids.reshape(-1) for ids in np.meshgrid(np.flatnonzero(of_true), np.arange(choices.classes)))
    unit = float(np.abs(with_row(i, j) - value).max()) * rows / (clusters.max() + 1)
    variance = clustered_variance(effects, clusters)
    if math.isnan(variance):
        return NO_INTERVAL
    low, high, *_ = bounded_interval((value + 1) / 2, variance / 4, min(1.0, unit / 2))
    return Interval(2 * low - 1, 2 * high - 1)
