"""Preparing rows of numbers: missing values filled and columns standardized by what the train rows say, and no other.

This happens on the side of the data, before a model sees a row: the figures are in `fitted` of what a reader returns,
and a released model expects rows that were prepared with them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, fault

MISSING = ("refuse", "mean", "median", "keep")
Rows = NDArray[np.intp] | NDArray[np.int64]
Place = Callable[[int, int], str]  # row and column to the words that name them


def require_missing(missing: str) -> None:
    """Raises UserError for a word that says no way to treat missing values."""
    if missing not in MISSING:
        raise UserError(fault("data.missing", "unknown treatment", got=missing, among=MISSING))


def prepared(
    X: NDArray[np.float64],
    train: Rows,
    *,
    names: Sequence[str],
    place: Place,
    missing: str = "refuse",
    standardize: bool = False,
    codes: Sequence[int] = (),
) -> tuple[NDArray[np.float32], dict[str, Any]]:
    """X float32 [N, F] and what was fitted on the train rows: `{"missing": {name: value}, "mean": ..., "std": ...}`.

    NaN is a missing value. `refuse` raises UserError naming the first, `keep` leaves them NaN, `mean` and `median` fill
    them. Columns in `codes` hold codes of categories and are left as they are; a column that is constant in train is
    centred and not scaled.
    """
    require_missing(missing)
    absent = np.isnan(X)
    if missing == "refuse" and absent.any():
        raise UserError(_refusal(absent, place))
    values = np.setdiff1d(np.arange(X.shape[1]), np.asarray(codes, np.intp))
    fitted: dict[str, Any] = {}
    X = X.copy()
    if missing in ("mean", "median") or standardize:
        _require_finite(X[:, values], values, place)
    if missing in ("mean", "median"):
        fill = _fill(X, train, values, missing, names)
        X = np.where(absent, fill, X)
        fitted["missing"] = {names[c]: float(fill[c]) for c in np.flatnonzero(absent.any(axis=0)).tolist()}
    if standardize and len(values):
        mean, std = _spread(X[np.ix_(train, values)])
        X[:, values] = (X[:, values] - mean) / std
        kept = [names[c] for c in values.tolist()]
        fitted["mean"] = dict(zip(kept, mean.tolist(), strict=True))
        fitted["std"] = dict(zip(kept, std.tolist(), strict=True))
    with np.errstate(over="ignore"):
        return X.astype(np.float32), fitted


def _refusal(absent: NDArray[np.bool_], place: Place) -> str:
    row, column = map(int, np.argwhere(absent)[0])
    count = int(absent.sum())
    what = "value is missing" if count == 1 else f"value is missing, the first of {count}"
    return fault(
        place(row, column), what, expected="a value in every cell", do="python -m pipeline ... data.missing=median"
    )


def _require_finite(X: NDArray[np.float64], columns: NDArray[np.intp], place: Place) -> None:
    """Infinity has no mean; it passes only where nothing is fitted."""
    found = np.argwhere(np.isinf(X))
    if len(found):
        row, column = int(found[0][0]), int(columns[found[0][1]])
        expected = "finite numbers where missing values are filled or columns standardized"
        raise UserError(fault(place(row, column), "is infinite", expected=expected))


def _fill(
    X: NDArray[np.float64], train: Rows, values: NDArray[np.intp], missing: str, names: Sequence[str]
) -> NDArray[np.float64]:
    """What stands for a missing value, per column: mean or median of train."""
    fill = np.zeros(X.shape[1])
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of a column without any value, which is told below
        fill[values] = (np.nanmean if missing == "mean" else np.nanmedian)(X[np.ix_(train, values)], axis=0)
    if np.isnan(fill).any():
        empty = [names[c] for c in np.flatnonzero(np.isnan(fill)).tolist()]
        what = f"has no value in any train row, so that there is no {missing}"
        raise UserError(*(fault(f"data.features.{name}", what, do="leave it out: data.ignore") for name in empty))
    return fill


def _spread(train: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column, missing values left out; 1 for what does not vary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean, std = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
    rounding = 1e-12 * np.maximum(np.abs(mean), 1e-300)  # a constant column's std is rounding, not spread
    return np.nan_to_num(mean), np.where(std > rounding, std, 1.0)
