"""Distances and tests between two samples of one feature, and a classifier that tells two tables apart.

Numbers are compared by the two-sample Kolmogorov-Smirnov test, categories by the chi-square test of homogeneity. Their
effect sizes are shares of rows: the largest difference of the two distribution functions, and half the summed
difference of the shares (total variation). Missing values count as one value, above all others.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np

from pipeline.drift.features import Array

BLOCK = 1 << 20  # values that are sorted at a time
BINS = 10  # of numbers, for their population stability index
MIN_EXPECTED = 5  # rows of a category in the smaller sample, for the chi-square distribution to hold
MAX_PRODUCTS = 15  # features of which the classifier gets all products; of more it gets the squares alone
MAX_CODES = 20  # of a category that the classifier gets as columns
MAX_INPUTS = 200  # columns that the classifier gets
PENALTY = 10.0  # of the classifier, whose columns have unit variance
CLIP = 10.0  # standard deviations: a value without a unit must not decide alone


class Separation(NamedTuple):
    """How well a classifier tells two samples apart on rows that it was not fitted on: 0.5 is not at all."""

    auc: float
    p_value: float
    rows: int


def one_thread() -> AbstractContextManager[object]:
    """Return a block in which linear algebra has one thread: the systems are so small that others only wait."""
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[object] = threadpool_limits(1)
    return limits


def compare_numbers(reference: Array, live: Array) -> tuple[Array, Array]:
    """Return effect and p-value [F] of every column of two tables of numbers [N, F] and [M, F].

    `scipy.stats.ks_2samp` takes one column at a time, which is too slow for hundreds of comparisons. The p-value is
    that of the limit distribution, which is conservative for small samples and for repeated values.
    """
    from scipy.special import kolmogorov

    n, m = len(reference), len(live)
    size, effects = n * m / (n + m), np.empty(reference.shape[1])
    width = max(1, BLOCK // (n + m))
    for start in range(0, reference.shape[1], width):
        block = slice(start, start + width)
        effects[block] = _largest_gap(reference[:, block], live[:, block])
    return effects, kolmogorov(np.sqrt(size) * effects)


def _largest_gap(first: Array, second: Array) -> Array:
    """Return the largest difference of two distribution functions for each column."""
    n, m = len(first), len(second)
    both = np.concatenate([first.T, second.T], axis=1)
    both[np.isnan(both)] = np.inf  # missing values become one value, sorted last
    order = np.argsort(both, axis=1)
    ordered = np.take_along_axis(both, order, axis=1)
    gaps = np.abs(np.cumsum(np.where(order < n, 1 / n, -1 / m), axis=1))
    gaps[:, :-1][ordered[:, 1:] == ordered[:, :-1]] = 0  # inside of equal values there is no gap
    largest: Array = gaps.max(1)
    return largest


def wasserstein(reference: Array, live: Array) -> float | None:
    """Return the distance of two samples of a number, in standard deviations of the reference, missing values left out.

    None where a sample has no value, or where the values of the reference are all the same.
    """
    from scipy.stats import wasserstein_distance

    first, second = (values[~np.isnan(values)].astype(np.float64) for values in (reference, live))
    deviation = float(first.std()) if len(first) else 0.0
    return float(wasserstein_distance(first, second)) / deviation if deviation and len(second) else None


def stability_index(reference: Array, live: Array, category: bool) -> float:
    """Return the population stability index: over categories, or over the deciles of the reference.

    Missing values are a category, or a bin of their own.
    """
    if category:
        codes = np.unique(np.concatenate([reference, live]))
        return _psi(_counts(reference, codes), _counts(live, codes))
    known = reference[~np.isnan(reference)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)[1:-1])) if len(known) else np.zeros(0)
    bins = [np.where(np.isnan(v), len(edges) + 1, np.searchsorted(edges, v)) for v in (reference, live)]
    first, second = (np.bincount(of, minlength=len(edges) + 2) for of in bins)
    return _psi(first, second)


def _psi(first: Array, second: Array) -> float:
    """Return the index of two tables of counts; half a row is added to each cell, so that an empty one is finite."""
    used = (first + second) > 0
    p, q = ((counts[used] + 0.5) / (counts[used] + 0.5).sum() for counts in (first, second))
    return float(((q - p) * np.log(q / p)).sum())


def compare_categories(reference: Array, live: Array) -> tuple[float, float]:
    """Return effect and p-value of two samples of the code of a category; missing values are one code."""
    codes = np.unique(np.concatenate([reference, live]))
    counts = np.array([_counts(values, codes) for values in (reference, live)])
    shares = counts / counts.sum(1, keepdims=True)
    return float(np.abs(shares[0] - shares[1]).sum() / 2), _homogeneity(counts)


def _counts(values: Array, codes: Array) -> Array:
    distinct, counts = np.unique(values, return_counts=True)
    result = np.zeros(len(codes), np.int64)
    result[np.searchsorted(codes, distinct)] = counts
    return result


def _homogeneity(counts: Array) -> float:
    """Return the p-value of two rows of counts having the same shares.

    Frequent categories have the chi-square test, all rare ones together Fisher's exact test; where there are both, the
    smaller p-value counts twice (Bonferroni), so that a new category is noticed however rare it was.
    """
    from scipy.stats import chi2_contingency, fisher_exact

    expected = counts.sum(0) * counts.sum(1).min() / counts.sum()
    rare = expected < MIN_EXPECTED
    p_values = []
    if (~rare).sum() > 1:
        frequent = counts[:, ~rare]
        if frequent.sum(1).all():
            p_values.append(float(chi2_contingency(frequent, correction=False).pvalue))
    if rare.any() and not rare.all():
        table = np.stack([counts[:, rare].sum(1), counts[:, ~rare].sum(1)], 1)
        p_values.append(float(fisher_exact(table).pvalue))
    return min(1.0, len(p_values) * min(p_values)) if p_values else 1.0


def separate(reference: Array, live: Array, categories: Array, rng: np.random.Generator) -> Separation:
    """Tell two tables [N, F] and [M, F] apart by a ridge regression; `categories` [F] marks the columns of codes.

    Each half of the rows is scored by a classifier that was fitted on the other half. Scores of rows that it was not
    fitted on carry no information under the null hypothesis, so that Mann and Whitney's test is exact for each half;
    the smaller p-value counts twice. Finds what no single feature shows, such as another correlation of two. Lopez-Paz
    and Oquab, Revisiting classifier two-sample tests, 2017.
    """
    from sklearn.linear_model import Ridge

    n, m = len(reference), len(live)
    if min(n, m) < 4:
        return Separation(0.5, 1.0, min(n, m))
    X = _classifier_inputs(np.concatenate([reference, live]), categories)
    is_live = np.repeat([False, True], [n, m])
    half = np.zeros(n + m, bool)
    for start, count in ((0, n), (n, m)):
        half[start + rng.permutation(count)[: count // 2]] = True
    areas, p_values = [], []
    for fitted in (half, ~half):
        # Both samples weigh the same, whichever has more rows.
        weights = np.where(is_live[fitted], 0.5 / is_live[fitted].mean(), 0.5 / (~is_live[fitted]).mean())
        model = Ridge(PENALTY).fit(X[fitted], np.where(is_live[fitted], 1.0, -1.0), sample_weight=weights)
        scores = model.predict(X[~fitted])
        area, p_value = rank_test(scores[is_live[~fitted]], scores[~is_live[~fitted]])
        areas.append(area)
        p_values.append(p_value)
    return Separation(float(np.mean(areas)), min(1.0, 2 * min(p_values)), min(n, m))


def rank_test(larger: Array, smaller: Array) -> tuple[float, float]:
    """Return the area under the ROC curve of scores, and the one-sided p-value of Mann and Whitney's test.

    As `scipy.stats.mannwhitneyu(larger, smaller, alternative="greater", method="asymptotic")`, at a tenth of the time.
    """
    from scipy.special import ndtr
    from scipy.stats import rankdata

    n, m = len(larger), len(smaller)
    ranks = rankdata(np.concatenate([larger, smaller]))
    wins = float(ranks[:n].sum()) - n * (n + 1) / 2
    _, ties = np.unique(ranks, return_counts=True)
    variance = n * m / 12 * ((n + m + 1) - float((ties**3 - ties).sum()) / ((n + m) * (n + m - 1)))
    p_value = 1.0 if variance <= 0 else float(ndtr((n * m / 2 + 0.5 - wins) / np.sqrt(variance)))
    return wins / (n * m), p_value


def _classifier_inputs(rows: Array, categories: Array) -> Array:
    """Return standardized numbers with their products, and categories as columns of zeros and ones; float64 [N, K]."""
    numbers = rows[:, ~categories][:, :MAX_INPUTS].astype(np.float64)
    missing = np.isnan(numbers)
    means = np.where(missing, 0.0, numbers).sum(0) / np.maximum(1, (~missing).sum(0))
    centred = np.where(missing, 0.0, numbers - means)
    spread = centred.std(0)
    scaled = np.clip(centred / np.where(spread > 0, spread, 1.0), -CLIP, CLIP)
    parts = [scaled, *_products(scaled), missing[:, missing.any(0)].astype(np.float64)]
    for column in np.flatnonzero(categories)[:MAX_INPUTS]:
        codes, counts = np.unique(rows[:, column], return_counts=True)
        frequent = codes[np.argsort(-counts, kind="stable")[:MAX_CODES]]
        parts.append((rows[:, [column]] == frequent[None, :]).astype(np.float64))
    return np.concatenate(parts, axis=1)


def _products(scaled: Array) -> list[Array]:
    width = scaled.shape[1]
    if width > MAX_PRODUCTS:
        return [scaled**2]
    pairs = [(i, j) for i in range(width) for j in range(i, width)]
    return [np.stack([scaled[:, i] * scaled[:, j] for i, j in pairs], 1)] if pairs else []
