"""Intervals of scores between 0 and 1: exact for proportions, and from a beta distribution for weighted sums of rows.

Both count one row more than there are, on the side that the limit is for: a score of 1 on 20 rows has the lower limit
that one more row, wrongly predicted, still allows.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]

TAIL = 0.025  # of the probability, beyond each limit
Z = 1.959963984540054  # quantile of the normal distribution for TAIL
TINY = 1e-12


class Interval(NamedTuple):
    """Both limits of a 95 % interval, NaN where there is none, and how many of the `resamples` were undefined."""

    low: float
    high: float
    undefined: int = 0
    resamples: int = 0


NO_INTERVAL = Interval(math.nan, math.nan)


def exact_limits(successes: Array, trials: Array) -> tuple[Floats, Floats]:
    """Return the limits of each proportion (Clopper and Pearson, Biometrika 26, 1934): 0 and 1 without trials."""
    from scipy.special import betaincinv

    hits, misses = (np.asarray(counts, dtype=np.float64) for counts in (successes, trials - successes))
    low = np.where(hits > 0, betaincinv(np.maximum(hits, TINY), misses + 1, TAIL), 0.0)
    high = np.where(misses > 0, betaincinv(hits + 1, np.maximum(misses, TINY), 1 - TAIL), 1.0)
    return low, high


def exact_interval(successes: float, trials: float) -> Interval:
    """Return the exact interval of one proportion."""
    low, high = exact_limits(np.array([successes]), np.array([trials]))
    return Interval(float(low[0]), float(high[0]))


def bounded_interval(value: float, variance: float, unit: float) -> Interval:
    """Return the interval of a score between 0 and 1 that is a weighted sum over independent rows or groups.

    `variance` is that of the score, `unit` the most that one row more can change it. Each limit is a quantile of the
    beta distribution with the mean and variance that the sum has with one row more of the largest weight (Fay and
    Feuer, Statistics in Medicine 16, 1997, for sums of Poisson counts). For equal weights it is nearly the exact one.
    """
    return Interval(1 - _upper_limit(1 - value, variance, unit), _upper_limit(value, variance, unit))


def _upper_limit(share: float, variance: float, unit: float) -> float:
    from scipy.special import betaincinv

    share = min(max(share, 0.0), 1.0)  # rounding errors
    mean = (share + unit) / (1 + unit)
    spread = (variance + unit**2 * (1 - mean)) / (1 + unit) ** 2
    concentration = max(mean * (1 - mean) / max(spread, TINY**2) - 1, 1e-6)
    misses = (1 - mean) * concentration
    return float(betaincinv(mean * concentration, misses, 1 - TAIL)) if misses > TINY else 1.0


def student(degrees: float) -> float:
    """Return the quantile of Student's t distribution that takes the place of the normal one."""
    from scipy.special import stdtrit

    return -float(stdtrit(degrees, TAIL))


def sums_by(groups: Array, values: Floats) -> Floats:
    """Return the sum of `values` [N] in each group; `groups` [N] are numbers from 0."""
    return np.bincount(groups, values).astype(np.float64)


def clustered_variance(contributions: Floats, groups: Array) -> float:
    """Return the variance of a sum of `contributions` [N] of rows, if only groups are independent of each other.

    It is larger by the ratio of Student's to the normal quantile, since few groups say little about it.
    """
    sums = sums_by(groups, contributions)
    if len(sums) < 2:
        return math.nan
    return float((sums**2).sum() * len(sums) / (len(sums) - 1) * (student(len(sums) - 1) / Z) ** 2)
