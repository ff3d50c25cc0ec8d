"""What float32 cannot hold: values beyond its range, and columns whose differences its rounding would erase.

float32 has 24 binary digits, so that it rounds a number near 1e9 to a multiple of 64. Where the values of a column
differ by about as much, a model would be trained and scored on other values than the owner's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.data.source_data import Array
from pipeline.errors import fault

Floats = NDArray[np.float64]

EXACT = 2.0**24  # float32 holds every whole number up to here
LARGEST = float(np.finfo(np.float32).max)
NEGLIGIBLE = 1e-3  # a rounding error relative to the standard deviation of the column
CONSTANT = 1e-10  # a deviation relative to the mean; below it is the rounding error of a constant column
COLLAPSED = 0.1  # share of the distinct whole numbers of a column that float32 may merge
BLOCK = 1 << 22  # numbers that are looked at at once


def float32_faults(arrays: Mapping[str, Array], column_name: Callable[[int], str] = "column {}".format) -> list[str]:
    """Return what float32 cannot hold of a part of the data; `arrays` are its splits by their key, train first.

    Only the worst column of a part is named. What is called negligible is measured by the spread of the train rows.
    """
    flat = {where: array.reshape(len(array), -1) for where, array in arrays.items() if _may_lose(array)}
    if not flat or not all(array.size for array in flat.values()):
        return []
    if beyond := _beyond_range(flat, column_name):
        return beyond
    train = next(iter(arrays.values()))
    spread = _spread(train.reshape(len(train), -1))
    for where, array in flat.items():
        losses = _losses(array, spread)
        if losses.any():
            return [_loss_message(where, array, int(losses.argmax()), column_name)]
    return []


def _may_lose(array: Array) -> bool:
    """Whether the type, and for integers the size, of the values allows that float32 changes them."""
    if array.dtype.kind == "f":
        return array.dtype.itemsize > 4
    return array.dtype.kind in "iu" and array.dtype.itemsize > 2 and bool(array.size) and _size(array) > EXACT


def _size(array: Array) -> float:
    return max(abs(float(array.min())), abs(float(array.max())))


def _beyond_range(arrays: Mapping[str, Array], column_name: Callable[[int], str]) -> list[str]:
    """Return a fault for the first finite value that would become infinite."""
    for where, array in arrays.items():
        beyond = np.isfinite(array) & (np.abs(array) > LARGEST)
        if beyond.any():
            row, column = map(int, np.argwhere(beyond)[0])
            what, do = "is beyond the range of float32", "divide the values where the data are made"
            expected = f"at most {LARGEST:.4g} in size"
            place = f"{where}: row {row}, {column_name(column)}"
            return [fault(place, what, got=float(array[row, column]), expected=expected, do=do)]
    return []


def _spread(values: Array) -> Floats:
    """Return the standard deviation of every column, NaN left out; 0 for a column that is constant but for rounding."""
    width, parts = max(1, BLOCK // len(values)), []
    for start in range(0, values.shape[1], width):
        block = values[:, start : start + width].astype(np.float64)
        present = np.isfinite(block)
        count = np.maximum(present.sum(axis=0), 1)
        mean = np.where(present, block, 0).sum(axis=0) / count
        deviation = np.sqrt((np.where(present, block - mean, 0) ** 2).sum(axis=0) / count)
        parts.append(np.where(deviation > CONSTANT * np.abs(mean), deviation, 0.0))
    return np.concatenate(parts)


def _losses(array: Array, spread: Floats) -> Floats:
    """Return by column the largest rounding relative to the spread where it is not negligible, else 0."""
    losses = np.zeros(array.shape[1])
    width = max(1, BLOCK // len(array))
    for start in range(0, array.shape[1], width):
        block, deviation = array[:, start : start + width], spread[start : start + width]
        rounding = np.nan_to_num(_rounding(block)).max(axis=0)
        relative = np.divide(rounding, deviation, out=np.zeros_like(rounding), where=deviation > 0)
        merged = np.array([_merges(block[:, i]) for i in range(block.shape[1])]) if array.dtype.kind in "iu" else False
        losses[start : start + width] = np.where((relative > NEGLIGIBLE) | merged, np.maximum(relative, NEGLIGIBLE), 0)
    return losses


def _rounding(block: Array) -> Floats:
    exact = block.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.abs(exact - block.astype(np.float32))


def _merges(column: Array) -> bool:
    """Whether float32 merges more than a few of the whole numbers, which may be ids."""
    before, after = _distinct(column)
    return before - after > COLLAPSED * before


def _distinct(column: Array) -> tuple[int, int]:
    """Return the number of distinct values, before and after rounding."""
    return len(np.unique(column)), len(np.unique(column.astype(np.float32)))


def _loss_message(where: str, array: Array, column: int, column_name: Callable[[int], str]) -> str:
    values = array[:, column]
    before, after = _distinct(values)
    size = np.abs(np.where(values == 0, 1, values).astype(np.float64))
    rounding = _rounding(values)
    largest, relative = np.nanmax(rounding), np.nanmax(rounding / size)
    what = (
        f"{column_name(column)} cannot be held by float32: {before} distinct values become {after}, "
        f"the largest rounding is {largest:.3g} ({relative:.2g} of the value)"
    )
    offset = float(np.nanmedian(values.astype(np.float64)))
    do = f"subtract a constant where the data are made, in every split, such as {offset:.12g}"
    if where.endswith(".y"):
        do += ", and add it to the predictions in float64"
    else:
        do += "; leave the column out if it is an identifier"
        do += "; for ids of an embedding preprocess.integers=keep" if values.dtype.kind in "iu" else ""
    return fault(where, what, got=f"values near {offset:.12g}", do=do)
