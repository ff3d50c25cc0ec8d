"""Intervals of means of losses, of ratios of two means such as 1 - R2, and of losses with a largest value."""

from __future__ import annotations

import math

import numpy as np

from pipeline.evaluation.intervals.bounded import (
    NO_INTERVAL,
    TAIL,
    Array,
    Floats,
    Interval,
    bounded_interval,
    clustered_variance,
    student,
    sums_by,
)

FEWEST_DEGREES = 2.0  # with fewer, Student's distribution has no variance


def mean_interval(losses: Floats, groups: Array | None, otherwise: float) -> Interval:
    """Return the interval of the mean of losses [N] that are not negative.

    On the logarithmic scale, since the mean of few losses misses the largest ones: each limit counts the largest, or
    smallest, of them once more. Losses of 0 alone have no scale. Then the upper limit is the mean that is possible if
    a row that was not seen has the loss `otherwise`, that of a constant prediction.
    """
    count = len(losses) if groups is None else int(groups.max()) + 1
    if count < 2:
        return NO_INTERVAL
    mean = float(losses.mean())
    if mean <= 0:
        return Interval(0.0, otherwise * unseen_share(count))
    return _around(mean, losses / mean - 1, groups)


def ratio_interval(losses: Floats, references: Floats, groups: Array | None) -> Interval:
    """Return the interval of mean(losses) / mean(references) over rows [N], such as 1 - R2; as for a mean of losses."""
    count = len(losses) if groups is None else int(groups.max()) + 1
    if count < 2 or not references.mean() > 0:
        return NO_INTERVAL
    ratio = float(losses.mean() / references.mean())
    if ratio <= 0:
        return Interval(0.0, unseen_share(count))
    return _around(ratio, losses / losses.mean() - references / references.mean(), groups, means=2)


def several_ratios_interval(losses: Floats, references: Floats, groups: Array | None) -> Interval:
    """Return the interval of the mean over columns [N, K] of the ratio of two means."""
    count = len(losses) if groups is None else int(groups.max()) + 1
    means = losses.mean(axis=0), references.mean(axis=0)
    if count < 2 or not (means[1] > 0).all():
        return NO_INTERVAL
    ratios = means[0] / means[1]
    if not ratios.sum() > 0:
        return Interval(0.0, unseen_share(count))
    effects = (losses - ratios * references) / means[1]
    return _around(float(ratios.mean()), effects.sum(axis=1) / ratios.sum(), groups, means=2)


def unseen_share(count: int) -> float:
    """Return the largest share of rows, none of `count` being such, that the exact interval allows."""
    return float(1 - TAIL ** (1 / count))


def _around(value: float, effects: Floats, groups: Array | None, means: int = 1) -> Interval:
    """Return the interval of a positive value from the relative effect of each row, whose mean is 0.

    Each of the `means` that the value is made of costs one degree of freedom.
    """
    if groups is not None:
        sums = sums_by(groups, effects)
        effects = sums * (len(sums) / len(effects))
    n, squares, degrees = len(effects), float((effects**2).sum()), effective_degrees(effects)
    reach = student(max(min(degrees, FEWEST_DEGREES), degrees - (means - 1)))

    def limit(extreme: float, sign: int) -> float:
        error = math.sqrt((squares + extreme**2) / (n * (n + 1)))
        return float(value * np.exp(min(extreme / (n + 1) + sign * reach * error, 700.0)))

    return Interval(limit(float(effects.min()), -1), limit(float(effects.max()), 1))


def effective_degrees(effects: Floats) -> float:
    """Return the degrees of freedom that a sample has for Student's distribution, at most its number less one.

    They are those of a chi-square distribution with the variance that the sample variance has (Satterthwaite), by the
    unbiased kurtosis of the sample: few losses with long tails say less about their variance than normal ones do.
    """
    n, variance = len(effects), float(effects.var())
    if n < 4 or not variance > 0:
        return n - 1
    excess = float(((effects - effects.mean()) ** 4).mean()) / variance**2 - 3
    unbiased = 3 + (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * excess + 6)
    spread = unbiased - (n - 3) / (n - 1)  # the variance of the sample variance, times n, for a variance of 1
    return float(np.clip(2 * n / spread, FEWEST_DEGREES, n - 1)) if spread > 0 else n - 1


def bounded_loss_interval(losses: Floats, largest: float, groups: Array | None) -> Interval:
    """Return the interval of the mean of losses [N] between 0 and `largest`, which one more row may have."""
    mean, n = float(losses.mean()), len(losses)
    if largest <= 0:
        return Interval(0.0, 0.0)
    clusters = np.arange(n) if groups is None else groups
    variance = clustered_variance((losses - mean) / n, clusters) / largest**2
    if math.isnan(variance):
        return NO_INTERVAL
    low, high, *_ = bounded_interval(mean / largest, variance, 1 / (int(clusters.max()) + 1))
    return Interval(low * largest, high * largest)


def wrong_class_loss(probabilities: Floats) -> float:
    """Return the log loss that a row would have on average if another class than the most probable one was true.

    It is the largest loss that a row which was not seen is taken to have.
    """
    ordered = np.sort(probabilities, axis=1)
    return float(-np.log(np.clip(ordered[:, -2], np.finfo(probabilities.dtype).eps, 1)).mean())
