"""How far the splits and production data differ from train in distribution; measured here, judged by the gate.

Each distance is a share from 0 to 1 in excess of what chance shows. Its p-value is the probability of so large a
distance by chance, times the number of comparisons (Bonferroni), so that small or wide data raise no false alarm. Of
test only the class counts are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from pipeline.data.dataset import Data
from pipeline.data.source_data import Array
from pipeline.data.splits import class_counts
from pipeline.data.tree import Tree, count_rows, named_leaves
from pipeline.runtime.seeds import derive

MAX_SHOWN = 5  # columns named at most
MAX_NUMBERS = 4_000_000  # compared of one split at most; larger data are represented by samples of rows and columns
MAX_ROWS, MIN_ROWS = 4000, 100  # of one split; with many columns fewer rows are compared
BLOCK = 500_000  # numbers sorted at a time, which bounds the memory
MAX_DISCRETE = 20  # a column with at most so many distinct values is compared value by value, else as continuous
CLASSIFIER_ROWS, CLASSIFIER_COLUMNS, TREES, FOLDS = 1000, 200, 30, 3  # of the classifier two-sample test


class Shift(TypedDict):
    """A distance between two distributions in excess of chance, and its p-value."""

    distance: float
    p_value: float


class ColumnShift(Shift):
    """The shift of one column."""

    column: str


class FeatureShift(TypedDict):
    """The columns that differ most, the worst first: `compared` of `columns` were looked at."""

    columns: int
    compared: int
    worst: list[ColumnShift]


class ClassifierTest(TypedDict):
    """Area under the ROC curve of a classifier between two sets of rows, and its standard error under chance."""

    auc: float
    standard_error: float


class ProductionShift(FeatureShift, ClassifierTest):
    """How far production data differ from train."""

    rows: int


class Representativeness(TypedDict):
    """What the owner declares, and how far targets, features and production data differ from train.

    `augmented`: train rows are changed each time they are read, so their features are not compared with validation
    (`features` is None), and production data are compared with validation instead of train.
    """

    declared: str | None
    targets: dict[str, Shift] | None
    augmented: bool
    features: FeatureShift | None
    production: ProductionShift | None


def measure_representativeness(data: Data, kind: str) -> Representativeness:
    """What the owner declares about the population, and how far splits and production data differ from train."""
    classes = kind in ("classification", "binary") and data.train.y.ndim == 1
    # Augmented rows are meant to differ from the rows that the model will be used on.
    reference = data.val.X if data.train.augmented else data.train.X
    production: ProductionShift | None = None
    if data.production is not None:
        production = {
            "rows": count_rows(data.production),
            **feature_shift(reference, data.production, data.feature_names),
            **classifier_two_sample_test(reference, data.production),
        }
    return {
        "declared": data.unrepresentative_reason,
        "targets": class_shift(data) if classes else target_shift(data),
        "augmented": data.train.augmented,
        "features": None if data.train.augmented else feature_shift(data.train.X, data.val.X, data.feature_names),
        "production": production,
    }


def target_shift(data: Data) -> dict[str, Shift] | None:
    """The largest shift of the targets of validation from those of train; None for targets that are class ids."""
    if not data.train.y.is_floating_point():
        return None
    worst = feature_shift(data.train.y, data.val.y)["worst"][0]
    return {"val": {"distance": worst["distance"], "p_value": worst["p_value"]}}


def class_shift(data: Data) -> dict[str, Shift]:
    """How far the class shares of validation and test are from those of train.

    The distance is total variation; the p-value is that of the chi-square test of homogeneity, times two.
    """
    train = class_counts(data.train.y)
    shifts: dict[str, Shift] = {}
    for split, counts in (("val", class_counts(data.val.y)), ("test", data.test.counts)):
        classes = sorted(set(train) | set(counts))
        first, second = (np.array([of.get(c, 0) for c in classes], float) for of in (train, counts))
        distance, p_value = _total_variation(first, second)
        shifts[split] = {"distance": distance, "p_value": min(1.0, 2 * p_value)}
    return shifts


def _total_variation(first: Array, second: Array) -> tuple[float, float]:
    """Total variation between two rows of counts in excess of chance, and its probability under chance."""
    from scipy.special import chdtrc

    n, m, total = first.sum(), second.sum(), first + second
    pooled = total / (n + m)
    difference = first / n - second / m
    # The expected total variation of two samples of one distribution: the mean of |N(0, s²)| is s·sqrt(2/pi).
    chance = 0.5 * np.sqrt(2 / np.pi * pooled * (1 - pooled) * (1 / n + 1 / m)).sum()
    chi_square = n * m * (difference**2 / np.maximum(total, 1)).sum()
    p_value = float(chdtrc(len(first) - 1, chi_square)) if len(first) > 1 else 1.0
    return max(0.0, float(np.abs(difference).sum() / 2 - chance)), p_value


def feature_shift(train: Tree, other: Tree, names: Sequence[str] | None = None) -> FeatureShift:
    """The columns whose distribution differs most from that of train.

    The distance is total variation for columns with few distinct values, else the Kolmogorov-Smirnov distance. Missing
    values count as one value.
    """
    shifts, total = list[tuple[float, float, str, int]](), 0
    rng = np.random.default_rng(derive(0, "representative"))
    for name, tensor in named_leaves(train, "X").items():
        train_values, other_values = (t.reshape(len(t), -1) for t in (tensor, named_leaves(other, "X")[name]))
        total += train_values.shape[1]
        columns = _sample(rng, train_values.shape[1], MAX_NUMBERS // MIN_ROWS)
        # Wide data are compared on fewer rows: enough to see a large shift in one of many columns.
        rows = max(MIN_ROWS, min(MAX_ROWS, MAX_NUMBERS // len(columns)))
        first, second = (values[_sample(rng, len(values), rows)].numpy() for values in (train_values, other_values))
        width = max(1, BLOCK // (len(first) + len(second)))
        for at in range(0, len(columns), width):
            block = columns[at : at + width]
            distance, p_value = compare_columns(first[:, block], second[:, block])
            shifts += [(float(d), float(p), name, int(c)) for d, p, c in zip(distance, p_value, block, strict=True)]
    shifts.sort(key=lambda shift: (-shift[0], shift[1]))
    worst: list[ColumnShift] = [
        {"column": names[c] if names else f"{name}[{c}]", "distance": d, "p_value": min(1.0, p * len(shifts))}
        for d, p, name, c in shifts[:MAX_SHOWN]
    ]
    return {"columns": total, "compared": len(shifts), "worst": worst}


def _sample(rng: np.random.Generator, n: int, most: int) -> Array:
    return np.arange(n) if n <= most else np.sort(rng.choice(n, most, replace=False))


def compare_columns(first: Array, second: Array) -> tuple[Array, Array]:
    """Distance and p-value of every column of [N, F] and [M, F], all columns at once.

    SciPy's `ks_2samp` takes one column at a time, which is too slow for wide tables. Massey, The Kolmogorov-Smirnov
    test for goodness of fit, 1951; its limit distribution is conservative where values repeat.
    """
    from scipy.special import chdtrc, kolmogorov

    n, m = len(first), len(second)
    both = np.concatenate([first, second]).astype(np.float64)
    both[np.isnan(both)] = np.inf  # missing values become one value, sorted last
    order = np.argsort(both, axis=0, kind="stable")
    ordered = np.take_along_axis(both, order, axis=0)
    difference = np.cumsum(np.where(order < n, 1 / n, -1 / m), axis=0)  # of the two distribution functions
    last = np.ones(both.shape, bool)  # the last row of each distinct value
    last[:-1] = ordered[1:] != ordered[:-1]
    statistic = np.where(last, np.abs(difference), 0).max(axis=0)
    size = n * m / (n + m)
    # sqrt(pi/2)·log(2) is the mean of the Kolmogorov distribution: the distance that chance alone shows.
    distance = np.maximum(0, statistic - np.sqrt(np.pi / 2) * np.log(2) / np.sqrt(size))
    p_value = kolmogorov(np.sqrt(size) * statistic)
    discrete = (values := last.sum(axis=0)) <= MAX_DISCRETE
    if discrete.any():
        shares, counts = _by_value(difference[:, discrete], last[:, discrete])
        pooled = counts / (n + m)
        chance = 0.5 * np.sqrt(2 / np.pi * pooled * (1 - pooled) * (1 / n + 1 / m)).sum(axis=0)
        distance[discrete] = np.maximum(0, np.abs(shares).sum(axis=0) / 2 - chance)
        chi_square = n * m * (shares**2 / np.maximum(counts, 1)).sum(axis=0)
        degrees = np.maximum(values[discrete] - 1, 1)
        p_value[discrete] = np.where(values[discrete] > 1, chdtrc(degrees, chi_square), 1.0)
    return distance, p_value


def _by_value(difference: Array, last: Array) -> tuple[Array, Array]:
    """At the last row of each distinct value, the difference of its two shares and its number of rows; elsewhere 0."""
    row = np.arange(len(difference))[:, None]
    before = np.full(difference.shape, -1)
    before[1:] = np.maximum.accumulate(np.where(last, row, -1), axis=0)[:-1]
    at_before = np.where(before >= 0, np.take_along_axis(difference, np.maximum(before, 0), axis=0), 0.0)
    return np.where(last, difference - at_before, 0.0), np.where(last, row - before, 0)


def classifier_two_sample_test(train: Tree, production: Tree) -> ClassifierTest:
    """How well boosted trees distinguish train from production, on rows they were not trained on.

    It finds shifts that no single column shows. Lopez-Paz and Oquab, Revisiting classifier two-sample tests, 2017.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rng = np.random.default_rng(derive(0, "told_apart"))
    samples = []
    for X in (train, production):
        rows = _sample(rng, count_rows(X), CLASSIFIER_ROWS)
        leaves = named_leaves(X).values()
        samples.append(np.concatenate([leaf[rows].reshape(len(rows), -1).numpy() for leaf in leaves], axis=1))
    columns = _sample(rng, samples[0].shape[1], CLASSIFIER_COLUMNS)
    n, m = map(len, samples)
    if min(n, m) < 2 * FOLDS:
        return {"auc": 0.5, "standard_error": 0.5}
    X = np.concatenate([sample[:, columns] for sample in samples]).astype(np.float64)
    X[np.isinf(X)] = np.nan  # boosted trees accept NaN, not infinities
    y = np.repeat([0, 1], [n, m])
    trees = HistGradientBoostingClassifier(max_iter=TREES, early_stopping=False, random_state=0)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(trees, X, y, cv=folds, method="predict_proba")[:, 1]
    # The standard error of the area under the curve of scores without information (Mann and Whitney's U).
    return {"auc": float(roc_auc_score(y, scores)), "standard_error": float(np.sqrt((n + m + 1) / (12 * n * m)))}
