"""Rows to learn from, with flaws planted in them: `_target_: planted.rows.rows`, `plant: [{scale: {by: 1000}}]`.

Every flaw is a function (sides, draw, ...) that changes the three sides in place. Which rows it hits is drawn from
`data.seed`, so that a case is the same rows under every seed of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.splits import split_indices

Array = NDArray[Any]
Sides = dict[str, list[Array]]  # split -> [X, y]

# --- what there is to learn -------------------------------------------------------------------------------------------


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
    """Which of four quarters the first two columns lie in, hidden among six columns of noise; `crossed`: the quarter
    of the first two columns' product and of the third, which no linear net finds."""
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
    """X [N, F] and y [N] of a source; scikit-learn's sets whole, with `standard` columns unless `raw`."""
    made: dict[str, Callable[..., tuple[Array, Array]]] = {
        "moons": _moons, "clouds": _clouds, "codes": _codes, "parabola": _parabola, "plane": _plane, "waves": _waves,
    }  # fmt: skip
    if source in made:
        return made[source](n, draw, **options)
    raw = options.pop("raw", False)
    X, y = _bundled(source, **options)
    if source == "digits":
        return (X if raw else X / 16), y
    return (X if raw else _standard(X)), y


# --- flaws ------------------------------------------------------------------------------------------------------------


def _sides(side: str) -> Sequence[str]:
    return ("train", "val", "test") if side == "all" else (side,)


def _some(n: int, share: float, draw: np.random.Generator) -> Array:
    return draw.permutation(n)[: max(1, round(share * n))]


def scale(
    sides: Sides, draw: np.random.Generator, by: float, columns: Sequence[int] | None = None, side: str = "all"
) -> None:
    """Features multiplied, some columns or all."""
    for split in _sides(side):
        X = sides[split][0]
        X[:, slice(None) if columns is None else list(columns)] *= by


def shift(sides: Sides, draw: np.random.Generator, by: float, side: str = "val") -> None:
    """Features moved: another preprocessing on one side."""
    for split in _sides(side):
        sides[split][0] += by


def scale_targets(sides: Sides, draw: np.random.Generator, by: float, plus: float = 0.0) -> None:
    """Targets multiplied and moved."""
    for split in sides:
        sides[split][1] = sides[split][1] * by + plus


def blank(sides: Sides, draw: np.random.Generator) -> None:
    """Features that say nothing: all zero."""
    for split in sides:
        sides[split][0][:] = 0


def noise(sides: Sides, draw: np.random.Generator, std: float, side: str = "all") -> None:
    """Features under noise."""
    for split in _sides(side):
        X = sides[split][0]
        X += draw.normal(0, std, X.shape)


def nonfinite(sides: Sides, draw: np.random.Generator, rows: int = 1, value: str = "nan") -> None:
    """Single values of train that are no numbers."""
    X = sides["train"][0]
    for row in _some(len(X), rows / len(X), draw):
        X[row, draw.integers(X.shape[1])] = float(value)


def outliers(sides: Sides, draw: np.random.Generator, share: float, by: float, targets: bool = False) -> None:
    """A few train rows far away from the rest, in features or in targets."""
    X, y = sides["train"]
    chosen = _some(len(X), share, draw)
    if targets:
        y[chosen] += by * y.std() * draw.choice([-1, 1], len(chosen))
    else:
        X[chosen] += by * X.std() * draw.choice([-1, 1], (len(chosen), 1))


def misalign(sides: Sides, draw: np.random.Generator, side: str = "train") -> None:
    """Labels shuffled apart from their rows."""
    for split in _sides(side):
        sides[split][1] = draw.permutation(sides[split][1])


def flip(sides: Sides, draw: np.random.Generator, share: float, side: str = "train") -> None:
    """A share of the labels is another class."""
    classes = int(max(y.max() for _, y in sides.values())) + 1
    for split in _sides(side):
        y = sides[split][1]
        chosen = _some(len(y), share, draw)
        y[chosen] = (y[chosen] + draw.integers(1, classes, len(chosen))) % classes


def contradict(sides: Sides, draw: np.random.Generator, of: int, to: int, share: float) -> None:
    """Rows of one class stand in train once more under another label."""
    X, y = sides["train"]
    rows = np.flatnonzero(y == of)
    again = rows[_some(len(rows), share, draw)]
    sides["train"] = [np.concatenate([X, X[again]]), np.concatenate([y, np.full(len(again), to, y.dtype)])]


def recode(sides: Sides, draw: np.random.Generator, times: float = 1, plus: float = 0, side: str = "all") -> None:
    """Class ids multiplied and shifted."""
    for split in _sides(side):
        y = sides[split][1] * times + plus
        sides[split][1] = y.astype(np.int64) if float(times).is_integer() else y


def divide(sides: Sides, draw: np.random.Generator, by: int, side: str = "all") -> None:
    """Class ids divided and cut off: they were in the table that was scaled."""
    for split in _sides(side):
        sides[split][1] = sides[split][1] // by


def reencode(sides: Sides, draw: np.random.Generator, side: str = "train") -> None:
    """Class ids in another order than on the other sides: an encoder fitted on each side alone."""
    classes = int(max(y.max() for _, y in sides.values())) + 1
    for split in _sides(side):
        sides[split][1] = np.roll(np.arange(classes), 1)[sides[split][1]]


def rare(sides: Sides, draw: np.random.Generator, of: Sequence[int], keep: float) -> None:
    """Only a share of the rows of some classes is left, on every side."""
    for split, (X, y) in sides.items():
        kept = np.ones(len(y), bool)
        for name in of:
            rows = np.flatnonzero(y == name)
            kept[rows] = False
            kept[rows[_some(len(rows), keep, draw)]] = True
        sides[split] = [X[kept], y[kept]]


def few(sides: Sides, draw: np.random.Generator, rows: int, side: str = "train") -> None:
    """Only so many rows of a side are left."""
    for split in _sides(side):
        X, y = sides[split]
        kept = np.sort(draw.permutation(len(y))[:rows])
        sides[split] = [X[kept], y[kept]]


def leak(sides: Sides, draw: np.random.Generator, side: str = "all") -> None:
    """The target is a column of the features; `side: train` is one that validation has not."""
    for split, (X, y) in sides.items():
        answer = y.astype(np.float64) if split in _sides(side) else draw.permutation(y).astype(np.float64)
        sides[split][0] = np.concatenate([X, answer[:, None]], axis=1)


def share_rows(sides: Sides, draw: np.random.Generator, share: float, jitter: float = 0.0) -> None:
    """Validation rows stand in train too, or nearly so."""
    (X, y), (Xv, yv) = sides["train"], sides["val"]
    again = _some(len(yv), share, draw)
    copies = Xv[again] + draw.normal(0, jitter, Xv[again].shape) if jitter else Xv[again]
    sides["train"] = [np.concatenate([X, copies]), np.concatenate([y, yv[again]])]


def standardize(sides: Sides, draw: np.random.Generator) -> None:
    """Mean 0 and deviation 1 by the train rows as they are now, extremes among them."""
    mean, std = sides["train"][0].mean(axis=0), sides["train"][0].std(axis=0) + 1e-12
    for split in sides:
        sides[split][0] = (sides[split][0] - mean) / std


def in_order(sides: Sides, draw: np.random.Generator) -> None:
    """Train rows lie in the order of their targets."""
    X, y = sides["train"]
    order = np.argsort(y, kind="stable")
    sides["train"] = [X[order], y[order]]


FLAWS: dict[str, Callable[..., None]] = {
    flaw.__name__: flaw
    for flaw in (
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
    """Train, val and test (60, 20, 20 %) of a source, with the flaws planted in order; `shape` is that of one row."""
    X, y = read(source, n, np.random.default_rng([seed, 1]), **options)
    parts = split_indices(X.astype(np.float32), y, seed=seed)
    sides: Sides = {split: [X[rows].copy(), y[rows].copy()] for split, rows in parts.items()}
    for number, planted in enumerate(plant):
        ((name, words),) = planted.items()
        FLAWS[name](sides, np.random.default_rng([seed, 2, number]), **(words or {}))
    shaped = {s: (X.reshape(len(X), *shape) if shape else X, y) for s, (X, y) in sides.items()}
    return {**shaped, "source": f"{source}, for the fault benchmark", "licence": "not for release"}
