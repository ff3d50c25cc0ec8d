"""Intervals of metrics of ranks: the area under the ROC curve, and average precision."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.evaluation.intervals.bounded import (
    NO_INTERVAL,
    Array,
    Floats,
    Interval,
    bounded_interval,
    clustered_variance,
)

# Of the weight of a row of the smaller class. 1 would allow that one more row is ranked behind all others, which makes
# intervals of rankings that overlap smoothly too wide by half.
ONE_MORE = 0.75
RESAMPLES, FEWEST = 200, 50  # of average precision, for its variance alone; of many rows and classes
CELLS = 2_000_000  # numbers in memory at a time, and about half of those of all resamples


class Ranking(NamedTuple):
    """Scores [N] that rank positive rows above negative ones, and the weight of their area in an average."""

    scores: Array
    positive: Array
    negative: Array
    weight: float


def rankings(targets: Array, scores: Array, average: str) -> Sequence[Ranking]:
    """Return what `average` compares: `binary`, `labels`, or classes with the others (`ovr`) or in pairs (`ovo`)."""
    if average == "binary":
        return [Ranking(scores, targets == 1, targets != 1, 1.0)]
    if average == "labels":
        return [Ranking(s, t == 1, t != 1, 1 / scores.shape[1]) for s, t in zip(scores.T, targets.T, strict=True)]
    inside = [targets == k for k in range(scores.shape[1])]
    shares = [float(rows.mean()) for rows in inside]
    weighted = average.endswith("weighted")
    if average.startswith("ovr"):
        chosen = [(k, rows, ~rows, shares[k]) for k, rows in enumerate(inside)]
    else:
        classes = range(len(inside))
        chosen = [(k, inside[k], inside[j], shares[k] + shares[j]) for k in classes for j in classes if j != k]
    weights = np.array([share if weighted else 1.0 for *_, share in chosen])
    weights /= weights.sum()
    return [Ranking(scores[:, k], p, n, float(w)) for (k, p, n, _), w in zip(chosen, weights, strict=True)]


def roc_auc_interval(ranked: Sequence[Ranking], groups: Array | None) -> Interval:
    """Return the interval of an average of areas under the ROC curve.

    The variance is from the effect of every row (DeLong et al., Biometrics 44, 1988), with one value at the end of each
    class, and at least that of Hanley and McNeil (Radiology 143, 1982), which no perfect ranking makes 0.
    """
    effects, smooth, least, value, unit = np.zeros(len(ranked[0].scores)), 0.0, 0.0, 0.0, 0.0
    for scores, positive, negative, weight in ranked:
        m, n = int(positive.sum()), int(negative.sum())
        if min(m, n) < 2:
            return NO_INTERVAL
        above = _shares_below(scores[negative], scores[positive])
        below = 1 - _shares_below(scores[positive], scores[negative])
        area = float(above.mean())
        effects[positive] += weight * (above - area) / m
        effects[negative] += weight * (below - area) / n
        smooth += weight**2 * area * (1 - area) * (1 / m**2 + 1 / n**2)
        least += weight**2 * _hanley_mcneil(area, m, n)
        value += weight * area
        unit = max(unit, weight * ONE_MORE / _fewest(positive, negative, groups))
    variance = float((effects**2).sum()) if groups is None else clustered_variance(effects, groups)
    if math.isnan(variance):
        return NO_INTERVAL
    return bounded_interval(value, max(variance + smooth, least), unit)


def _fewest(positive: Array, negative: Array, groups: Array | None) -> int:
    """Return the rows, or groups, of the class that has fewer."""
    if groups is None:
        return int(min(positive.sum(), negative.sum()))
    return min(len(np.unique(groups[inside])) for inside in (positive, negative))


def _shares_below(others: Array, scores: Array) -> Floats:
    """Return for each score the share of the others below it; equal ones count one half."""
    ordered = np.sort(others)
    counts = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    shares: Floats = counts / (2 * len(others))
    return shares


def _hanley_mcneil(area: float, m: int, n: int) -> float:
    """Return the variance of an area, with equal class sizes in the place of different ones (Newcombe, 2006)."""
    half = (m + n) / 2 - 1
    return area * (1 - area) * (1 + half * (1 - area) / (2 - area) + half * area / (1 + area)) / (m * n)


def average_precision_interval(ranked: Sequence[Ranking], value: float, groups: Array | None, seed: int) -> Interval:
    """Return the interval of average precision, or of its mean over classes or labels.

    Its variance is that of resamples of rows or groups. Resamples without a positive row of some class are undefined.
    """
    count = len(ranked[0].scores)
    clusters = np.arange(count) if groups is None else groups
    number = int(clusters.max()) + 1
    if number < 2:
        return NO_INTERVAL
    rng = np.random.Generator(np.random.Philox(seed))
    resamples = max(FEWEST, min(RESAMPLES, 2 * CELLS // (count * len(ranked))))
    parts = [_resampled(ranked, w, clusters) for w in _weights(rng, number, resamples, max(1, CELLS // count))]
    values = np.concatenate(parts)
    undefined = int(np.isnan(values).sum())
    if undefined > resamples - 2:
        return NO_INTERVAL._replace(undefined=undefined, resamples=resamples)
    fewest = [int(r.positive.sum()) if groups is None else len(np.unique(groups[r.positive])) for r in ranked]
    units = [r.weight * ONE_MORE / max(rows, 1) for r, rows in zip(ranked, fewest, strict=True)]
    smooth = sum(r.weight**2 * value * (1 - value) / max(rows, 1) ** 2 for r, rows in zip(ranked, fewest, strict=True))
    low, high, *_ = bounded_interval(value, float(np.nanvar(values, ddof=1)) + smooth, max(units))
    return Interval(low, high, undefined, resamples)


def _weights(rng: np.random.Generator, number: int, resamples: int, batch: int) -> Iterator[Floats]:
    """Yield how often each cluster is drawn, for a batch of resamples at a time."""
    for start in range(0, resamples, batch):
        yield rng.multinomial(number, np.full(number, 1 / number), min(batch, resamples - start)).astype(float)


def _resampled(ranked: Sequence[Ranking], weights: Floats, clusters: Array) -> Floats:
    """Return the average precision of each resample; NaN for one without a positive row."""
    total = np.zeros(len(weights))
    for scores, positive, _, weight in ranked:
        order = np.argsort(-scores, kind="stable")
        drawn = weights[:, clusters[order]]
        hits = np.cumsum(drawn * positive[order], axis=1)
        seen = np.cumsum(drawn, axis=1)
        last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of the rows with equal scores
        hits, seen = hits[:, last], seen[:, last]
        with np.errstate(invalid="ignore", divide="ignore"):
            gains = np.diff(hits, axis=1, prepend=0.0) * np.where(seen > 0, hits / seen, 0.0)
            total += weight * gains.sum(axis=1) / hits[:, -1]
    return total
