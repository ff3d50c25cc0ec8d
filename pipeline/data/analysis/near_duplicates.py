"""Near duplicates between train and validation: rows that are closer to each other than chance explains."""

from __future__ import annotations

import math
import warnings
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.splits import Split
from pipeline.data.tree import named_leaves
from pipeline.runtime.seeds import derive

Array = NDArray[Any]

# Larger data are sampled: the cost is a product of rows and columns, and these many are enough to see a 2 % share.
TRAIN_ROWS, QUERY_ROWS, VAL_ROWS, COLUMNS = 3000, 500, 1000, 512
RADIUS_RATIO = 0.05  # two rows are near duplicates within this multiple of the median distance to the sixth neighbour
# The median number of rows inside the distance to the third and to the sixth neighbour, where rows fall by chance: the
# median of a gamma distribution of order 3 and 6. How fast the distance grows between the two gives the dimension.
ROWS_WITHIN_THIRD, ROWS_WITHIN_SIXTH = 2.67, 5.67
RARELY_VARIES = 0.05  # a column in which fewer rows than this share differ from the median
MIN_ROWS = 10
MAX_SHOWN = 10
EQUAL = 1e-6  # rows closer than this are equal up to rounding


class NearDuplicates(TypedDict):
    """`share` of the validation rows has a near duplicate in train; chance would explain `expected`."""

    share: float
    expected: float
    p_value: float
    radius: float
    dimension: float
    sampled: dict[str, int]
    pairs: list[list[int]]


def near_duplicates(train: Split, val: Split) -> NearDuplicates | None:
    """The share of validation rows that have a near duplicate in train, and the share that chance would explain.

    Distances are Euclidean, in features standardized by train. Near means within a twentieth of the median distance
    between a train row and its sixth neighbour of the same class. `expected` is the larger of two estimates: from how
    distances grow among the train rows, and from the number of rows just outside the radius. `p_value` is the
    probability of at least so many near duplicates by chance. Equal rows are not counted here: their digests show
    them. Large data are sampled, always in the same way. `pairs` are [validation row, train row]. Returns None where
    distances cannot be measured: there is no floating-point feature, there are too few rows, or all rows are equal.
    """
    from scipy.special import bdtrc  # not scipy.stats, whose import takes most of a second

    rows = {"train": _sample(len(train), TRAIN_ROWS, "train"), "val": _sample(len(val), VAL_ROWS, "val")}
    X_train, X_val = _impute(_columns(train, rows["train"]), _columns(val, rows["val"]))
    if not X_train.shape[1] or len(rows["train"]) < MIN_ROWS:
        return None
    center, scale = X_train.mean(axis=0), _scale(X_train)
    varying = scale > 0
    if not varying.any():
        return None
    X_train, X_val = ((X[:, varying] - center[varying]) / scale[varying] for X in (X_train, X_val))
    queries = _sample(len(X_train), QUERY_ROWS, "own")
    third, sixth = _neighbour_distances(X_train, _class_ids(train, rows["train"]), queries)
    if not 0 < third < sixth:
        return None
    dimension = math.log(ROWS_WITHIN_SIXTH / ROWS_WITHIN_THIRD) / math.log(sixth / third)
    radius = RADIUS_RATIO * sixth
    val_distances, val_neighbours = _neighbours(X_train, X_val, 4 * radius, EQUAL * max(sixth, 1.0))
    train_distances, _ = _neighbours(X_train, X_train[queries], 4 * radius, EQUAL)
    close = [row for row, distances in enumerate(val_distances) if len(distances) and distances[0] < radius]
    classes = _class_ids(train, rows["train"])
    by_dimension = ROWS_WITHIN_SIXTH * (1 if classes is None else len(np.unique(classes))) * RADIUS_RATIO**dimension
    by_chance = max(by_dimension, _extrapolate(val_distances, radius), _extrapolate(train_distances, radius))
    expected = 1 - math.exp(-by_chance)
    return {
        "share": len(close) / len(X_val),
        "expected": expected,
        "p_value": float(bdtrc(len(close) - 1, len(X_val), expected)),
        "radius": radius,
        "dimension": dimension,
        "sampled": {name: len(sample) for name, sample in rows.items()},
        "pairs": [[int(rows["val"][i]), int(rows["train"][val_neighbours[i][0]])] for i in close[:MAX_SHOWN]],
    }


def _sample(n: int, most: int, purpose: str) -> Array:
    """Row or column numbers, ascending: all of them, or a sample that is the same in every run."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(derive(0, "near", purpose)).choice(n, most, replace=False))


def _columns(split: Split, rows: Array) -> Array:
    """These rows of the floating-point features [rows, columns], float64, NaN for values that are not finite."""
    tensors = [t.numpy() for t in named_leaves(split.X, "X").values() if t.is_floating_point()]
    flat = [tensor.reshape(len(tensor), -1) for tensor in tensors]
    blocks, ends = [np.zeros((len(rows), 0))], np.cumsum([0, *(part.shape[1] for part in flat)])
    columns = _sample(int(ends[-1]), COLUMNS, "columns")
    for part, start, end in zip(flat, ends, ends[1:], strict=False):
        inside = columns[(columns >= start) & (columns < end)] - start
        blocks.append(part[np.ix_(rows, inside)])
    values = np.concatenate(blocks, axis=1).astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _impute(X_train: Array, X_val: Array) -> tuple[Array, Array]:
    """Missing values of both replaced by the train median, which moves no row away from the others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a column without any value
        median = np.nan_to_num(np.nanmedian(X_train, axis=0)) if len(X_train) else np.zeros(X_train.shape[1])
    return np.where(np.isnan(X_train), median, X_train), np.where(np.isnan(X_val), median, X_val)


def _scale(X: Array) -> Array:
    """Standard deviation of each column [columns]; for one that rarely varies, at least the median of the others.

    Divided by its own tiny deviation, such a column would make a small difference larger than the rest of the row.
    """
    deviation = X.std(axis=0)
    rarely = (np.median(X, axis=0) != X).mean(axis=0) < RARELY_VARIES
    usual = np.median(deviation[~rarely]) if not rarely.all() else 0.0
    return np.where(rarely & (deviation > 0), np.maximum(deviation, usual), deviation)


def _class_ids(train: Split, rows: Array) -> Array | None:
    """The class ids of these rows; None for a task without classes."""
    y = train.y
    return y.numpy()[rows] if isinstance(y, Tensor) and not y.is_floating_point() and y.ndim == 1 else None


def _neighbour_distances(X: Array, classes: Array | None, queries: Array) -> tuple[float, float]:
    """Median distances of the query rows to their third and sixth neighbour of the same class.

    Rows equal to the query, itself among them, are not neighbours. Both are 0 where no class has enough rows.
    """
    from sklearn.neighbors import NearestNeighbors

    classes = np.zeros(len(X), np.int64) if classes is None else classes
    third, sixth = [np.zeros(0)], [np.zeros(0)]
    for label in np.unique(classes[queries]):
        members, own = X[classes == label], X[queries[classes[queries] == label]]
        copies = int(np.unique(members, axis=0, return_counts=True)[1].max())
        if len(members) < 6:
            continue
        # With as many more neighbours as a row has copies, six remain when the copies are taken out.
        index = NearestNeighbors(n_neighbors=min(len(members), 6 + copies), algorithm="brute").fit(members)
        distances, _ = index.kneighbors(own)
        ordered = np.sort(np.where(distances > EQUAL, distances, np.inf), axis=1)
        enough = np.isfinite(ordered[:, 5])
        third.append(ordered[enough, 2])
        sixth.append(ordered[enough, 5])
    if not sum(map(len, sixth)):
        return 0.0, 0.0
    return float(np.median(np.concatenate(third))), float(np.median(np.concatenate(sixth)))


def _neighbours(X: Array, queries: Array, radius: float, equal: float) -> tuple[list[Array], list[Array]]:
    """Of each query row, the distances to the rows of X within the radius, ascending, and their row numbers.

    Rows at most `equal` apart are left out.
    """
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(radius=radius, algorithm="brute").fit(X)
    distances, neighbours = index.radius_neighbors(queries, sort_results=True)
    different = [d > equal for d in distances]
    return (
        [d[keep] for d, keep in zip(distances, different, strict=True)],
        [n[keep] for n, keep in zip(neighbours, different, strict=True)],
    )


def _extrapolate(distances: list[Array], radius: float) -> float:
    """The mean number of rows within the radius that chance explains, from those within twice and four times it.

    Copies are closer than that, so they do not raise the estimate. It is needed where counts are mixed with continuous
    values: rows with equal counts are as close as their values, and the dimension of usual neighbours misses that. The
    number of rows at least doubles with the radius, as along a line.
    """
    within = [sum(np.count_nonzero(d < times * radius) for d in distances) / len(distances) for times in (1, 2, 4)]
    first, second = within[1] - within[0], within[2] - within[1]
    return first / (max(second / first, 2.0) - 1) if first else 0.0
