"""Do the sides, and the rows of the field, look like draws from one population? Measured here, judged in the gate.

Each distance is a share from 0 to 1 beyond what chance alone would show, with the probability of so large a one under
chance, times the number of things compared (Bonferroni), so that small data and wide data raise no alarm by
themselves. Of the test rows only class counts are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import Data
from pipeline.data.splits import class_counts
from pipeline.data.tree import Tree, named, rows_of
from pipeline.runtime.seeds import derive

Array = NDArray[Any]

SHOWN = 5  # columns named at most
NUMBERS = 4_000_000  # looked at of one side at most: seeded samples of rows, and of columns, stand for larger data
ROWS, FEW_ROWS = 4000, 100  # of one side at most; and at least, where columns are many
BLOCK = 500_000  # numbers sorted at a time
FEW_VALUES = 20  # with no more distinct values a column is compared value by value, else as a distribution on a line
TOLD_ROWS, TOLD_COLUMNS, TREES, PARTS = 1000, 200, 30, 3  # of the classifier that tells train from the field


def representative(data: Data, kind: str) -> dict[str, Any]:
    """The evidence on who the rows stand for: what is declared, and how far the sides and the field are from train."""
    classes = kind in ("classification", "binary") and data.train.y.ndim == 1
    field = None
    if data.production is not None:
        told = told_apart(data.train.X, data.production)
        field = {"rows": rows_of(data.production), **drift(data.train.X, data.production, data.feature_names), **told}
    return {
        "declared": data.unrepresentative,
        "targets": class_shift(data) if classes else value_shift(data),
        "features": drift(data.train.X, data.val.X, data.feature_names),
        "production": field,
    }


def value_shift(data: Data) -> dict[str, dict[str, float]] | None:
    """How far the targets of validation are from those of train, where they are values: the farthest of them."""
    if not data.train.y.is_floating_point():
        return None
    worst = drift(data.train.y, data.val.y)["worst"][0]
    return {"val": {"distance": worst["distance"], "p": worst["p"]}}


def class_shift(data: Data) -> dict[str, dict[str, float]]:
    """How far the class shares of validation and test are from those of train: `{split: {distance, p}}`.

    The distance is total variation; p is that of the chi-square test of homogeneity, times two.
    """
    train, found = class_counts(data.train.y), {}
    for split, counts in (("val", class_counts(data.val.y)), ("test", data.test.counts)):
        classes = sorted(set(train) | set(counts))
        table = np.array([[of.get(c, 0) for c in classes] for of in (train, counts)], float)
        distance, p = _shares(table[0], table[1])
        found[split] = {"distance": distance, "p": min(1.0, 2 * p)}
    return found


def _shares(one: Array, other: Array) -> tuple[float, float]:
    """Total variation between two rows of counts beyond what chance shows, and its probability under chance."""
    from scipy.special import chdtrc

    n, m, whole = one.sum(), other.sum(), one + other
    pooled = whole / (n + m)
    apart = one / n - other / m
    chance = 0.5 * np.sqrt(2 / np.pi * pooled * (1 - pooled) * (1 / n + 1 / m)).sum()
    square = n * m * (apart**2 / np.maximum(whole, 1)).sum()
    p = float(chdtrc(len(one) - 1, square)) if len(one) > 1 else 1.0
    return max(0.0, float(np.abs(apart).sum() / 2 - chance)), p


def drift(train: Tree, other: Tree, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The columns whose distribution differs most from train's: `{columns, looked_at, worst}`, the worst first.

    Each is `{column, distance, p}`: total variation where few values occur, else Kolmogorov and Smirnov's distance.
    Missing values count as one value.
    """
    found, total = list[tuple[float, float, str, int]](), 0
    rng = np.random.default_rng(derive(0, "representative"))
    for part, tensor in named(train, "X").items():
        ours, theirs = (t.reshape(len(t), -1) for t in (tensor, named(other, "X")[part]))
        total += ours.shape[1]
        chosen = _some(rng, ours.shape[1], NUMBERS // FEW_ROWS)
        rows = max(FEW_ROWS, min(ROWS, NUMBERS // len(chosen)))
        sides = [side[_some(rng, len(side), rows)].numpy() for side in (ours, theirs)]
        width = max(1, BLOCK // (len(sides[0]) + len(sides[1])))
        for at in range(0, len(chosen), width):
            block = chosen[at : at + width]
            distance, p = compared(sides[0][:, block], sides[1][:, block])
            found += [(float(d), float(q), part, int(c)) for d, q, c in zip(distance, p, block, strict=True)]
    found.sort(key=lambda one: (-one[0], one[1]))
    worst = [
        {"column": names[c] if names else f"{part}[{c}]", "distance": d, "p": min(1.0, p * len(found))}
        for d, p, part, c in found[:SHOWN]
    ]
    return {"columns": total, "looked_at": len(found), "worst": worst}


def _some(rng: np.random.Generator, n: int, most: int) -> Array:
    return np.arange(n) if n <= most else np.sort(rng.choice(n, most, replace=False))


def compared(one: Array, other: Array) -> tuple[Array, Array]:
    """Distance and probability of every column [N, F] and [M, F], all columns at once.

    Massey, The Kolmogorov-Smirnov test for goodness of fit, 1951; its limit is conservative where values repeat.
    """
    from scipy.special import chdtrc, kolmogorov

    n, m = len(one), len(other)
    both = np.concatenate([one, other]).astype(np.float64)
    both[np.isnan(both)] = np.inf
    order = np.argsort(both, axis=0, kind="stable")
    ordered = np.take_along_axis(both, order, axis=0)
    ahead = np.cumsum(np.where(order < n, 1 / n, -1 / m), axis=0)
    last = np.ones(both.shape, bool)  # the last row of each distinct value
    last[:-1] = ordered[1:] != ordered[:-1]
    line = np.where(last, np.abs(ahead), 0).max(axis=0)
    size = n * m / (n + m)
    distance, p = np.maximum(0, line - np.sqrt(np.pi / 2) * np.log(2) / np.sqrt(size)), kolmogorov(np.sqrt(size) * line)
    few = (values := last.sum(axis=0)) <= FEW_VALUES
    if few.any():
        apart, held = _by_value(ahead[:, few], last[:, few])
        pooled = held / (n + m)
        chance = 0.5 * np.sqrt(2 / np.pi * pooled * (1 - pooled) * (1 / n + 1 / m)).sum(axis=0)
        distance[few] = np.maximum(0, np.abs(apart).sum(axis=0) / 2 - chance)
        square = n * m * (apart**2 / np.maximum(held, 1)).sum(axis=0)
        p[few] = np.where(values[few] > 1, chdtrc(np.maximum(values[few] - 1, 1), square), 1.0)
    return distance, p


def _by_value(ahead: Array, last: Array) -> tuple[Array, Array]:
    """At the last row of each distinct value: by how much their shares differ, and how many rows bear it; else 0."""
    place = np.arange(len(ahead))[:, None]
    before = np.full(ahead.shape, -1)
    before[1:] = np.maximum.accumulate(np.where(last, place, -1), axis=0)[:-1]
    former = np.where(before >= 0, np.take_along_axis(ahead, np.maximum(before, 0), axis=0), 0.0)
    return np.where(last, ahead - former, 0.0), np.where(last, place - before, 0)


def told_apart(train: Tree, field: Tree) -> dict[str, float]:
    """How well boosted trees tell train from the field on rows they did not learn from: `{auc, error}`.

    The classifier two-sample test: Lopez-Paz and Oquab, 2017. `error` is the standard error of the area where nothing
    is to be told. It sees what no column shows alone.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    rng = np.random.default_rng(derive(0, "told_apart"))
    sides = []
    for X in (train, field):
        rows = _some(rng, rows_of(X), TOLD_ROWS)
        sides.append(np.concatenate([t[rows].reshape(len(rows), -1).numpy() for t in named(X).values()], axis=1))
    columns = _some(rng, sides[0].shape[1], TOLD_COLUMNS)
    sides = [side[:, columns] for side in sides]
    n, m = map(len, sides)
    if min(n, m) < 2 * PARTS:
        return {"auc": 0.5, "error": 0.5}
    X = np.concatenate(sides).astype(np.float64)
    X[np.isinf(X)] = np.nan
    y = np.repeat([0, 1], [n, m])
    trees = HistGradientBoostingClassifier(max_iter=TREES, early_stopping=False, random_state=0)
    folds = StratifiedKFold(PARTS, shuffle=True, random_state=0)
    said = cross_val_predict(trees, X, y, cv=folds, method="predict_proba")[:, 1]
    return {"auc": float(roc_auc_score(y, said)), "error": float(np.sqrt((n + m + 1) / (12 * n * m)))}
