"""Data with planted faults: `_target_: planted.rows.rows`, `plant: [{scale: {by: 1000}}]`.

Every fault is a function (splits, draw, ...) that changes the three splits in place; `side` names the split that it
changes. The affected rows are drawn from `data.seed`, so that a case has the same rows with every training seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.splits import split_indices

Array = NDArray[Any]
Splits = dict[str, list[Array]]  # split -> [X, y]

# --- sources ----------------------------------------------------------------------------------------------------------


def _bundled(name: str, **options: Any) -> tuple[Array, Array]:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")(**options)
    values = name == "diabetes"
    return np.asarray(bunch.data, np.float64), np.asarray(bunch.target, np.float64 if values else np.int64)


def _standard(X: Array) -> Array:
    return (X - X.mean(axis=0)) / (X.std(axis=0) + 1e-12)


def _moons(n: int, draw: np.random.Generator, noise: float = 0.15) -> tuple[Array, Array]:
    turn, y = draw.uniform(0, np.pi, n), np.arange(n) % 2
    X = np.stack([np.cos(turn), np.sin(turn)], 1)
    X[y == 1] = np.array([1.0, 0.5]) - X[y == 1]
    return X + draw.normal(0, noise, X.shape), y


def _clouds(
    n: int, draw: np.random.Generator, classes: int = 3, features: int = 8, apart: float = 2.0
) -> tuple[Array, Array]:
    y = np.arange(n) % classes
    return draw.normal(0, 1, (classes, features))[y] * apart + draw.normal(0, 1, (n, features)), y


def _codes(n: int, draw: np.random.Generator, crossed: bool = False) -> tuple[Array, Array]:
    """Return eight columns whose first two determine one of four classes; the others are noise.

    With `crossed` the class is given by the sign of the product of the first two columns and the sign of the third,
    which a linear model cannot learn.
    """
    X = draw.normal(0, 1, (n, 8))
    if crossed:
        return X, (X[:, 0] * X[:, 1] > 0) * 2 + (X[:, 2] > 0)
    return X, (X[:, 0] > 0) * 2 + (X[:, 1] > 0)


def _parabola(n: int, draw: np.random.Generator) -> tuple[Array, Array]:
    X = draw.uniform(0, 5, (n, 1))
    return X, 5 * X[:, 0] ** 2 + draw.normal(0, 1, n) ** 3


def _plane(n: int, draw: np.random.Generator, features: int = 3) -> tuple[Array, Array]:
    X = draw.normal(0, 1, (n, features))
    return X, X @ np.linspace(2, 0.5, features) + 2.2 + draw.normal(0, 0.1, n)


def _waves(n: int, draw: np.random.Generator) -> tuple[Array, Array]:
    X = draw.uniform(-2, 2, (n, 2))
    return X, np.sin(2 * X[:, 0]) + np.cos(X[:, 1]) + draw.normal(0, 0.05, n)


def read(source: str, n: int, draw: np.random.Generator, **options: Any) -> tuple[Array, Array]:
    """Return X [N, F] and y [N] of a source. scikit-learn's data sets are complete, and standardized unless `raw`."""
    generators: dict[str, Callable[..., tuple[Array, Array]]] = {
        "moons": _moons, "clouds": _clouds, "codes": _codes, "parabola": _parabola, "plane": _plane, "waves": _waves,
    }  # fmt: skip
    if source in generators:
        return generators[source](n, draw, **options)
    raw = options.pop("raw", False)
    X, y = _bundled(source, **options)
    if source == "digits":
        return (X if raw else X / 16), y
    return (X if raw else _standard(X)), y


# --- faults -----------------------------------------------------------------------------------------------------------


def _selected_splits(side: str) -> Sequence[str]:
    return ("train", "val", "test") if side == "all" else (side,)


def _draw_rows(n: int, share: float, draw: np.random.Generator) -> Array:
    return draw.permutation(n)[: max(1, round(share * n))]


def scale(
    splits: Splits, draw: np.random.Generator, by: float, columns: Sequence[int] | None = None, side: str = "all"
) -> None:
    """Multiply some columns of the features, or all."""
    for split in _selected_splits(side):
        X = splits[split][0]
        X[:, slice(None) if columns is None else list(columns)] *= by


def shift(splits: Splits, draw: np.random.Generator, by: float, side: str = "val") -> None:
    """Shift the features of one split, as another preprocessing would."""
    for split in _selected_splits(side):
        splits[split][0] += by


def scale_targets(splits: Splits, draw: np.random.Generator, by: float, plus: float = 0.0) -> None:
    """Scale and shift the targets."""
    for split in splits:
        splits[split][1] = splits[split][1] * by + plus


def blank(splits: Splits, draw: np.random.Generator) -> None:
    """Set all features to zero."""
    for split in splits:
        splits[split][0][:] = 0


def noise(splits: Splits, draw: np.random.Generator, std: float, side: str = "all") -> None:
    """Add noise to the features."""
    for split in _selected_splits(side):
        X = splits[split][0]
        X += draw.normal(0, std, X.shape)


def nonfinite(splits: Splits, draw: np.random.Generator, rows: int = 1, value: str = "nan") -> None:
    """Set single values of the train split to NaN or infinity."""
    X = splits["train"][0]
    for row in _draw_rows(len(X), rows / len(X), draw):
        X[row, draw.integers(X.shape[1])] = float(value)


def outliers(splits: Splits, draw: np.random.Generator, share: float, by: float, targets: bool = False) -> None:
    """Move a few train rows far away from the others, in features or in targets."""
    X, y = splits["train"]
    rows = _draw_rows(len(X), share, draw)
    if targets:
        y[rows] += by * y.std() * draw.choice([-1, 1], len(rows))
    else:
        X[rows] += by * X.std() * draw.choice([-1, 1], (len(rows), 1))


def misalign(splits: Splits, draw: np.random.Generator, side: str = "train") -> None:
    """Shuffle the labels of a split, so that they do not belong to their rows."""
    for split in _selected_splits(side):
        splits[split][1] = draw.permutation(splits[split][1])


def flip(splits: Splits, draw: np.random.Generator, share: float, side: str = "train") -> None:
    """Change a share of the labels to another class."""
    classes = int(max(y.max() for _, y in splits.values())) + 1
    for split in _selected_splits(side):
        y = splits[split][1]
        rows = _draw_rows(len(y), share, draw)
        y[rows] = (y[rows] + draw.integers(1, classes, len(rows))) % classes


def contradict(splits: Splits, draw: np.random.Generator, of: int, to: int, share: float) -> None:
    """Repeat train rows of one class with another label."""
    X, y = splits["train"]
    rows = np.flatnonzero(y == of)
    repeated = rows[_draw_rows(len(rows), share, draw)]
    splits["train"] = [np.concatenate([X, X[repeated]]), np.concatenate([y, np.full(len(repeated), to, y.dtype)])]


def recode(splits: Splits, draw: np.random.Generator, times: float = 1, plus: float = 0, side: str = "all") -> None:
    """Multiply and shift class ids."""
    for split in _selected_splits(side):
        y = splits[split][1] * times + plus
        splits[split][1] = y.astype(np.int64) if float(times).is_integer() else y


def divide(splits: Splits, draw: np.random.Generator, by: int, side: str = "all") -> None:
    """Divide class ids and round down, as if they were scaled together with the features."""
    for split in _selected_splits(side):
        splits[split][1] = splits[split][1] // by


def reencode(splits: Splits, draw: np.random.Generator, side: str = "train") -> None:
    """Reorder the class ids of one split, as an encoder that is fitted on each split would."""
    classes = int(max(y.max() for _, y in splits.values())) + 1
    for split in _selected_splits(side):
        splits[split][1] = np.roll(np.arange(classes), 1)[splits[split][1]]


def rare(splits: Splits, draw: np.random.Generator, of: Sequence[int], keep: float) -> None:
    """Keep only a share of the rows of some classes, in every split."""
    for split, (X, y) in splits.items():
        keep_row = np.ones(len(y), bool)
        for name in of:
            rows = np.flatnonzero(y == name)
            keep_row[rows] = False
            keep_row[rows[_draw_rows(len(rows), keep, draw)]] = True
        splits[split] = [X[keep_row], y[keep_row]]


def few(splits: Splits, draw: np.random.Generator, rows: int, side: str = "train") -> None:
    """Keep only a number of rows of a split."""
    for split in _selected_splits(side):
        X, y = splits[split]
        remaining = np.sort(draw.permutation(len(y))[:rows])
        splits[split] = [X[remaining], y[remaining]]


def leak(splits: Splits, draw: np.random.Generator, side: str = "all") -> None:
    """Add the target as a feature; with `side: train` the column is random in the other splits."""
    for split, (X, y) in splits.items():
        target = y.astype(np.float64) if split in _selected_splits(side) else draw.permutation(y).astype(np.float64)
        splits[split][0] = np.concatenate([X, target[:, None]], axis=1)


def share_rows(splits: Splits, draw: np.random.Generator, share: float, jitter: float = 0.0) -> None:
    """Copy validation rows into the train split, with some noise."""
    (X, y), (Xv, yv) = splits["train"], splits["val"]
    shared = _draw_rows(len(yv), share, draw)
    copies = Xv[shared] + draw.normal(0, jitter, Xv[shared].shape) if jitter else Xv[shared]
    splits["train"] = [np.concatenate([X, copies]), np.concatenate([y, yv[shared]])]


def standardize(splits: Splits, draw: np.random.Generator) -> None:
    """Scale to mean 0 and standard deviation 1 with the current train rows, including planted outliers."""
    mean, std = splits["train"][0].mean(axis=0), splits["train"][0].std(axis=0) + 1e-12
    for split in splits:
        splits[split][0] = (splits[split][0] - mean) / std


def in_order(splits: Splits, draw: np.random.Generator) -> None:
    """Sort the train rows by their targets."""
    X, y = splits["train"]
    order = np.argsort(y, kind="stable")
    splits["train"] = [X[order], y[order]]


FAULTS: dict[str, Callable[..., None]] = {
    fault.__name__: fault
    for fault in (
        scale, shift, scale_targets, blank, noise, nonfinite, outliers, misalign, flip, contradict, recode, rare, few,
        leak, share_rows, in_order,
        divide, reencode, standardize,
    )
}  # fmt: skip


def rows(
    source: str,
    n: int = 600,
    plant: Sequence[Mapping[str, Mapping[str, Any]]] = (),
    shape: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Return train, val and test (60, 20, 20 %) of a source with faults planted in order; `shape` is that of a row."""
    X, y = read(source, n, np.random.default_rng([seed, 1]), **options)
    parts = split_indices(X.astype(np.float32), y, seed=seed)
    splits: Splits = {split: [X[rows].copy(), y[rows].copy()] for split, rows in parts.items()}
    for number, planted in enumerate(plant):
        ((name, arguments),) = planted.items()
        FAULTS[name](splits, np.random.default_rng([seed, 2, number]), **(arguments or {}))
    shaped = {s: (X.reshape(len(X), *shape) if shape else X, y) for s, (X, y) in splits.items()}
    return {**shaped, "source": f"{source}, for the fault benchmark", "licence": "not for release"}
