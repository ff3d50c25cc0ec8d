"""Statistics of train rows: mean, standard deviation and median of every column, missing values left out.

They are computed in float64 and stored in float32, for a block of columns at a time, so that no second copy of the rows
is needed. A column is one number of a row: rows of any shape are flattened.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import Data
from pipeline.errors import UserError, fault

BLOCK = 1 << 22  # numbers that are converted to float64 at once, 32 MB
CONSTANT = 1e-12  # relative to the mean: a deviation below it is the rounding error of a constant column
MIN_STD = float(np.finfo(np.float32).tiny)  # the inverse of a smaller deviation overflows float32
Floats = NDArray[np.float64]


def column_name(data: Data, number: int) -> str:
    """Return the column's name for a message: the data's feature name if there is one, else its index."""
    assert isinstance(data.train.X, Tensor)
    if data.feature_names is not None:
        return f"column '{data.feature_names[number]}'"
    index = np.unravel_index(number, tuple(data.train.X.shape[1:]))
    return f"column {', '.join(str(int(i)) for i in index)}"


def require_finite(values: Tensor, where: str, name: Callable[[int], str]) -> None:
    """Raises UserError naming the first infinite value: a column with one has no mean, deviation or scale."""
    infinite = values.isinf().reshape(len(values), -1)
    if not infinite.any():
        return
    row, column = map(int, infinite.nonzero()[0])
    expected = "finite numbers, on which preprocessing is fitted"
    do = "fix or drop the row, or turn preprocess off"
    raise UserError(fault(f"{where}: row {row}, {name(column)}", "is infinite", expected=expected, do=do))


def _blocks(values: Tensor) -> Iterator[Floats]:
    """Yield blocks of columns [N, columns] in float64."""
    flat = values.reshape(len(values), -1).numpy()
    width = max(1, BLOCK // len(flat))
    for start in range(0, flat.shape[1], width):
        yield flat[:, start : start + width].astype(np.float64)


def _by_column(values: Tensor, *statistics: Callable[[Floats], Floats]) -> list[Floats]:
    """Each statistic of every column [columns]; NaN for a column without any value."""
    results: list[list[Floats]] = [[] for _ in statistics]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy warns of a column without any value
        for block in _blocks(values):
            for statistic, parts in zip(statistics, results, strict=True):
                parts.append(statistic(block))
    return [np.concatenate(parts) for parts in results]


def centers(values: Tensor, kind: str) -> Floats:
    """Return mean or median of every column, missing values left out; NaN for a column without any value."""

    def median(block: Floats) -> Floats:
        # `np.median` is much faster and gives the same result if there are no missing values.
        return (np.nanmedian if np.isnan(block).any() else np.median)(block, axis=0)

    def mean(block: Floats) -> Floats:
        return np.nanmean(block, axis=0)

    return _by_column(values, mean if kind == "mean" else median)[0]


def mean_and_std(values: Tensor) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of every column, missing values left out; 1 for a constant column."""
    mean, std = _by_column(values, lambda block: np.nanmean(block, axis=0), lambda block: np.nanstd(block, axis=0))
    return np.nan_to_num(mean), np.where(std > np.maximum(CONSTANT * np.abs(mean), MIN_STD), std, 1.0)


def float32(numbers: Floats, shape: tuple[int, ...]) -> Tensor:
    """Convert statistics to a buffer of this shape."""
    return torch.from_numpy(numbers.astype(np.float32)).reshape(shape)
