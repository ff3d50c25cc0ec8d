"""Near duplicates between train and validation: rows so close that chance does not put them there."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.splits import Split
from pipeline.data.tree import named
from pipeline.runtime.seeds import derive

Array = NDArray[Any]

TRAIN_ROWS, OWN_ROWS, VAL_ROWS, COLUMNS = 3000, 500, 1000, 512  # what is looked at, at most, of larger data
NEAR = 0.05  # times the usual distance to the sixth neighbour of one's own class
THIRD, SIXTH = 2.67, 5.67  # median number of rows inside the third and sixth neighbour's distance, where chance rules
STILL = 0.05  # share of the rows off the median below which a column stands still
SHOWN = 10


def near_duplicates(train: Split, val: Split) -> dict[str, Any] | None:
    """How many validation rows nearly stand in train: `{share, expected, p, ...}`.

    Near is a twentieth of the median distance between a train row and its sixth neighbour of the same class, in
    standardized features. `expected` is the share that chance alone would put so near, by how distances grow among the
    train rows, or by how many rows lie just beyond what is near, whichever is more; `p` is the probability of so many
    by chance. Equal rows do not count here. Of large data seeded samples are looked at. `pairs` are [validation
    row, train row]. None where there is nothing to measure: no floating feature, too few rows, or all alike.
    """
    from scipy.stats import binom

    rows = {"train": _some(len(train), TRAIN_ROWS, "train"), "val": _some(len(val), VAL_ROWS, "val")}
    X = _filled(_columns(train, rows["train"]), _columns(val, rows["val"]))
    if not X[0].shape[1] or len(rows["train"]) < SHOWN:
        return None
    center, spread = X[0].mean(axis=0), _spread(X[0])
    moving = spread > 0
    if not moving.any():
        return None
    ours, theirs = ((x[:, moving] - center[moving]) / spread[moving] for x in X)
    labels = _labels(train, rows["train"])
    some = _some(len(ours), OWN_ROWS, "own")
    own = _apart(_distances(ours[some], ours), 1.0)
    third, sixth = _neighbours(own, None if labels is None else labels[some][:, None] == labels[None])
    if not 0 < third < sixth:
        return None
    dimension = math.log(SIXTH / THIRD) / math.log(sixth / third)
    radius = NEAR * sixth
    away = _apart(_distances(theirs, ours), sixth)
    nearest = away.argmin(axis=1)
    close = np.flatnonzero(away[np.arange(len(away)), nearest] < radius)
    kinds = 1 if labels is None else len(np.unique(labels))
    by_chance = max(SIXTH * kinds * NEAR**dimension, _beyond(away, radius), _beyond(own, radius))
    expected = 1 - math.exp(-by_chance)
    return {
        "share": len(close) / len(theirs),
        "expected": expected,
        "p": float(binom.sf(len(close) - 1, len(theirs), expected)),
        "radius": radius,
        "dimension": dimension,
        "sampled": {name: len(chosen) for name, chosen in rows.items()},
        "pairs": [[int(rows["val"][i]), int(rows["train"][nearest[i]])] for i in close[:SHOWN]],
    }


def _some(n: int, most: int, side: str) -> Array:
    """Row or column numbers, ascending: all, or a sample that is always the same."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(derive(0, "near", side)).choice(n, most, replace=False))


def _columns(split: Split, rows: Array) -> Array:
    """Some rows of the floating features [rows, columns], float64, NaN for what is not finite."""
    parts = [t.numpy() for t in named(split.X, "X").values() if t.is_floating_point()]
    flat = [part.reshape(len(part), -1) for part in parts]
    kept, ends = [np.zeros((len(rows), 0))], np.cumsum([0, *(part.shape[1] for part in flat)])
    chosen = _some(int(ends[-1]), COLUMNS, "columns")
    for part, start, end in zip(flat, ends, ends[1:], strict=False):
        own = chosen[(chosen >= start) & (chosen < end)] - start
        kept.append(part[np.ix_(rows, own)])
    values = np.concatenate(kept, axis=1).astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _filled(ours: Array, theirs: Array) -> tuple[Array, Array]:
    """Holes of both hold the median of ours, which moves no row away from the others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a column without any value
        middle = np.nan_to_num(np.nanmedian(ours, axis=0)) if len(ours) else np.zeros(ours.shape[1])
    return np.where(np.isnan(ours), middle, ours), np.where(np.isnan(theirs), middle, theirs)


def _spread(X: Array) -> Array:
    """Standard deviation of each column [columns]; of one that hardly a row moves in, no less than its neighbours'.

    Such a column would else blow up any trifle to more than the rest of the row.
    """
    spread = X.std(axis=0)
    still = (np.median(X, axis=0) != X).mean(axis=0) < STILL
    usual = np.median(spread[~still]) if not still.all() else 0.0
    return np.where(still & (spread > 0), np.maximum(spread, usual), spread)


def _labels(train: Split, rows: Array) -> Array | None:
    y = train.y
    return y.numpy()[rows] if isinstance(y, Tensor) and not y.is_floating_point() and y.ndim == 1 else None


def _distances(a: Array, b: Array) -> Array:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def _apart(distances: Array, usual: float) -> Array:
    """Equal rows, up to rounding, are infinitely far: they are counted by their digests."""
    return np.where(distances > 1e-6 * max(usual, 1.0), distances, np.inf)


def _beyond(away: Array, radius: float) -> float:
    """Rows that chance puts within the radius of a row, by those within twice and four times it, itself left out.

    Copies do not reach so far. Where counts stand beside values, distances grow otherwise near by than among usual
    neighbours: rows of equal counts are as far apart as their values. Nothing grows slower than along a line.
    """
    within = [np.count_nonzero(away < times * radius) / len(away) for times in (1, 2, 4)]
    first, second = within[1] - within[0], within[2] - within[1]
    return first / (max(second / first, 2.0) - 1) if first else 0.0


def _neighbours(away: Array, alike: Array | None) -> tuple[float, float]:
    """Median distances to the third and to the sixth neighbour of one's own class; 0 where there are too few."""
    if away.shape[1] <= 6:
        return 0.0, 0.0
    own = away if alike is None else np.where(alike, away, np.inf)
    third, sixth = np.partition(own, (2, 5), axis=1)[:, (2, 5)].T
    whole = np.isfinite(sixth)
    return (float(np.median(third[whole])), float(np.median(sixth[whole]))) if whole.any() else (0.0, 0.0)
