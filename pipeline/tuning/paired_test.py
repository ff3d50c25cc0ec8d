"""The exact paired test of two arms, and the interval of the mean difference that agrees with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.evaluation.intervals.bounded import student
from pipeline.trials.stats import sign_flip_p_value

ALPHA = 0.05
MOST_EXACT = 20  # pairs; of more, the mean is normal enough for Student's test, and 2**n choices of signs are too many
FEWEST_PAIRS = 6  # of five, the smallest p-value is 2 / 2**5 = 0.0625
NORMAL_POWER = 1.96 + 0.84  # quantiles of the normal distribution for the level 5 % and the power 80 %
SAME = 1e-12  # relative to the size of the scores; smaller differences are rounding


class PairedTest(NamedTuple):
    """Mean of the differences, its 95 % interval, and the two-sided p-value; the interval excludes 0 where p < 5 %."""

    effect: float
    low: float
    high: float
    p: float


def paired_test(differences: Sequence[float]) -> PairedTest:
    """Return the mean of paired differences [n] with its test.

    Up to 20 pairs the sign-flip test counts all choices of signs, and the interval consists of the values that it does
    not reject; it is unbounded for fewer than 6 pairs. More pairs get Student's test and interval.
    """
    values = np.asarray(differences, dtype=np.float64)
    count, effect = len(values), float(np.mean(values))
    if count <= MOST_EXACT:
        low, high = subset_mean_interval(values)
        return PairedTest(effect, low, high, sign_flip_p_value([*map(float, values)]))
    return student_test(effect, float(values.std(ddof=1)) / math.sqrt(count), count)


def student_test(effect: float, standard_error: float, count: int) -> PairedTest:
    """Return Student's two-sided test and interval of an effect that was estimated from `count` independent values."""
    from scipy.special import stdtr

    if not standard_error:
        return PairedTest(effect, effect, effect, 0.0 if effect else 1.0)
    half_width = student(count - 1) * standard_error
    p = 2 * float(stdtr(count - 1, -abs(effect) / standard_error))
    return PairedTest(effect, effect - half_width, effect + half_width, p)


def subset_mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the means [low, high] that the sign-flip test of `values` [n] does not reject at 5 %.

    The means of all 2**n - 1 subsets of the values part the line into 2**n pieces, each of which contains the true mean
    with the same probability (Hartigan, Journal of the American Statistical Association 64, 1969). Of fewer than 6
    values no piece can be left out.
    """
    count = len(values)
    outside = math.ceil(ALPHA * 2**count / 2) - 1  # pieces beyond each limit: the most with 2 * pieces / 2**n < 5 %
    if outside < 1:
        return -math.inf, math.inf
    sums, sizes = np.zeros(1), np.zeros(1)
    for value in values:
        sums, sizes = np.concatenate([sums, sums + value]), np.concatenate([sizes, sizes + 1])
    means = np.sort(sums[1:] / sizes[1:])
    return float(means[outside - 1]), float(means[-outside])


def noise_floor(arms: Sequence[Sequence[float]]) -> float:
    """Return the difference that two trainings of one config, on other seeds, exceed in 1 of 20 cases.

    It is from the spread of the scores within each arm; NaN where no arm has two.
    """
    degrees = sum(len(scores) - 1 for scores in arms if len(scores) > 1)
    if not degrees:
        return math.nan
    squares = sum(float(np.square(np.asarray(scores) - np.mean(scores)).sum()) for scores in arms)
    return student(degrees) * math.sqrt(2 * squares / degrees)


def pairs_needed(differences: Sequence[float]) -> int | None:
    """Return about how many pairs show an effect of this size with a probability of 80 %; None for no effect."""
    values = np.asarray(differences, dtype=np.float64)
    effect = abs(float(values.mean()))
    if len(values) < 2 or effect <= SAME * float(np.abs(values).max()):
        return None
    ratio = float(values.std(ddof=1)) / effect
    # Two more than for a normal test: Student's takes about 1.96²/2 more (Guenther, American Statistician 35, 1981).
    return max(FEWEST_PAIRS, math.ceil((NORMAL_POWER * ratio) ** 2) + 2)


def all_equal(scores: Sequence[float]) -> bool:
    """Return whether all scores are the same up to rounding."""
    return max(scores) - min(scores) <= SAME * max(abs(max(scores)), abs(min(scores)))
