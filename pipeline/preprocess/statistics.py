"""What is fitted on train rows: means, deviations and medians of every place of a row, holes left out.

Computed in float64 and kept in float32, some columns at a time, so that no second copy of the rows is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import Data
from pipeline.errors import UserError, fault

AT_ONCE = 1 << 22  # numbers in float64 at a time
STILL = 1e-12  # of the mean: a constant column's deviation is rounding, not spread
LEAST = float(np.finfo(np.float32).tiny)  # a deviation whose inverse float32 still holds
Floats = NDArray[np.float64]


def column_name(data: Data, number: int) -> str:
    """A place of a row in words: its column's name where the owner gave one, else its index."""
    assert isinstance(data.train.X, Tensor)
    if data.feature_names is not None:
        return f"column '{data.feature_names[number]}'"
    place = np.unravel_index(number, tuple(data.train.X.shape[1:]))
    return f"column {', '.join(str(int(i)) for i in place)}"


def require_finite(values: Tensor, where: str, name: Callable[[int], str]) -> None:
    """Raises UserError naming the first value that is infinite: it has no mean, deviation or scale."""
    infinite = values.isinf().reshape(len(values), -1)
    if not infinite.any():
        return
    row, column = map(int, infinite.nonzero()[0])
    expected = "finite numbers where preprocessing is fitted"
    do = "mend or drop the row, or leave preprocess as it is by default"
    raise UserError(fault(f"{where}: row {row}, {name(column)}", "is infinite", expected=expected, do=do))


def _blocks(values: Tensor) -> Iterator[Floats]:
    """The rows [N, places] in float64, as many places at a time as memory is meant for."""
    flat = values.reshape(len(values), -1).numpy()
    width = max(1, AT_ONCE // len(flat))
    for start in range(0, flat.shape[1], width):
        yield flat[:, start : start + width].astype(np.float64)


def _by_place(values: Tensor, *statistics: Callable[[Floats], Any]) -> list[Floats]:
    """Each statistic of every place [places], NaN for a place without a value."""
    found: list[list[Any]] = [[] for _ in statistics]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a place without a value
        for block in _blocks(values):
            for statistic, column in zip(statistics, found, strict=True):
                column.append(statistic(block))
    return [np.concatenate(column) for column in found]


def centers(values: Tensor, kind: str) -> Floats:
    """Mean or median of every place of a row, holes left out; NaN for a place that is nothing but holes."""

    def median(block: Floats) -> Any:
        return (np.nanmedian if np.isnan(block).any() else np.median)(block, axis=0)

    def mean(block: Floats) -> Any:
        return np.nanmean(block, axis=0)

    return _by_place(values, mean if kind == "mean" else median)[0]


def spread(values: Tensor) -> tuple[Floats, Floats]:
    """Mean and standard deviation of every place of a row, holes left out; deviation 1 for what does not vary."""
    mean, std = _by_place(values, lambda block: np.nanmean(block, axis=0), lambda block: np.nanstd(block, axis=0))
    return np.nan_to_num(mean), np.where(std > np.maximum(STILL * np.abs(mean), LEAST), std, 1.0)


def float32(numbers: Floats, shape: tuple[int, ...]) -> Tensor:
    """What a buffer keeps of statistics."""
    return torch.from_numpy(numbers.astype(np.float32)).reshape(shape)
