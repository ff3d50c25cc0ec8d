"""95 % confidence intervals: Wilson for proportions, resampling with a fixed seed for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 1000
CELLS = 2_000_000  # numbers of a bootstrap in memory at a time


def wilson_interval(successes: int, trials: int) -> Interval:
    """Return Wilson's interval of a proportion."""
    from scipy.stats import binomtest

    bounds = binomtest(successes, trials).proportion_ci(confidence_level=0.95, method="wilson")
    return (float(bounds.low) if successes else 0.0), float(bounds.high)  # without successes, rounding leaves 1e-17


def bootstrap_interval(statistic: Callable[[NDArray[np.int64]], float], n: int, seed: int) -> Interval:
    """Return the interval of a function of row numbers, under resampling of `n` rows with replacement.

    Resamples in which the statistic is NaN do not count, such as those without a row of some class.
    """
    return _percentiles((np.arange(n),), statistic, seed, vectorized=False)


def half_sample_interval(statistic: Callable[[NDArray[np.int64]], float], n: int, seed: int) -> Interval:
    """Return the interval of a function that compares rows with each other, such as the label of the nearest row.

    A bootstrap would repeat rows, and a repeated row is nearest to itself. The function of half of the rows, drawn
    without replacement, varies as a bootstrap of all rows does: its deviations are added to the value of all rows.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    values = np.array([statistic(np.sort(rng.permutation(n)[: n // 2])) for _ in range(RESAMPLES)])
    if np.isnan(values).all():
        return math.nan, math.nan
    low, high = statistic(np.arange(n)) + np.nanpercentile(values - np.nanmean(values), [2.5, 97.5])
    return float(low), float(high)


def bootstrap_of_mean(values: Floats, seed: int) -> Interval:
    """Return the interval of the mean of `values` [N]."""
    return _percentiles((values,), np.mean, seed, vectorized=True)


def bootstrap_of_roc_auc(positive: NDArray[Any], negative: NDArray[Any], seed: int) -> Interval:
    """Return the interval of the area under the ROC curve from the scores of both classes.

    The bootstrap is stratified: each class is resampled by itself, so that every resample has both. (NaN, NaN) where a
    class has fewer than two rows. The area is Mann and Whitney's U over the number of pairs, which SciPy computes for
    all resamples at once.
    """
    from scipy.stats import mannwhitneyu

    if min(len(positive), len(negative)) < 2:
        return math.nan, math.nan

    def area(x: Floats, y: Floats, axis: int = -1) -> Floats:
        u: Floats = mannwhitneyu(x, y, axis=axis, method="asymptotic").statistic
        return u / (x.shape[axis] * y.shape[axis])

    return _percentiles((positive.astype(np.float64), negative.astype(np.float64)), area, seed, vectorized=True)


def _percentiles(
    data: tuple[NDArray[Any], ...], statistic: Callable[..., Any], seed: int, vectorized: bool
) -> Interval:
    """Return the 2.5th and 97.5th percentile of SciPy's bootstrap distribution, NaN values left out."""
    from scipy.stats import bootstrap

    result = bootstrap(
        data,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, CELLS // max(len(sample) for sample in data)) if vectorized else None,
        vectorized=vectorized,
        method="percentile",
        rng=np.random.Generator(np.random.Philox(seed)),
    )
    distribution = result.bootstrap_distribution
    if np.isnan(distribution).all():
        return math.nan, math.nan
    low, high = np.nanpercentile(distribution, [2.5, 97.5])
    return float(low), float(high)
