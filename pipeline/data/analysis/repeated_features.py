"""Features of a table that repeat another one: the same values, or an exact affine copy, such as inches of centimetres.

A repeated feature adds nothing, and it does not make a training fail. The time grows linearly with the table. Equal
columns have equal digests. Affine copies have the same standardized values; their projections on one fixed direction
are compared first, and the values only where these agree. Images and sequences are left out: the channels of a grey
image are equal, and should be.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from pipeline.data.source_data import Array
from pipeline.runtime.seeds import derive

Table = tuple[Array, Callable[[int], str]]  # values [N, F], and what gives the name of a column by its number

MAX_NAMED = 10  # the count is of all
FEW_VARYING_ROWS = 5  # columns with so few unusual rows may agree by chance
ROUNDING = 4.0  # machine epsilons of the largest value by which a copy may differ
BLOCK = 2_000_000  # numbers that are copied at a time, which bounds the memory
FINEST = 1e-13  # relative: what sums over many float64 values lose
COARSEST = 1e-3  # standard deviations: where rounding is larger than this, nothing is exact


class RepeatedFeature(TypedDict):
    """`feature` is `scale` times `of` plus `shift` in every train row, as `equation` says; 1 and 0 for equal values."""

    feature: str
    of: str
    scale: float
    shift: float
    equation: str


class RepeatedFeatures(TypedDict):
    """How many features repeat another one, and the first of them."""

    count: int
    first: list[RepeatedFeature]


@dataclass(frozen=True, eq=False)
class _Column:
    """A column that varies, its place among all, its mean and spread, and its rounding error in standard deviations.

    `projection` is that of its standardized values, whose sign is chosen so that it is not negative.
    """

    place: int
    name: str
    of_table: Array
    number: int
    mean: float
    spread: float
    rounding: float
    projection: float
    sign: int

    def values(self) -> Array:
        return self.of_table[:, self.number].astype(np.float64)

    def standardized(self) -> Array:
        return self.sign * (self.values() - self.mean) / self.spread


def repeated_features(tables: Sequence[Table]) -> RepeatedFeatures:
    """Return the features that repeat an earlier one in all rows, of tables with the same rows.

    Constant features repeat nothing.
    """
    originals: dict[bytes, str] = {}
    repeated: list[tuple[int, RepeatedFeature]] = []
    known: list[_Column] = []
    place = 0
    for table, name_of in tables:
        for numbers, block in _blocks(table):
            columns = _measured((table, name_of), numbers, block, place)
            for number, values, column in zip(numbers, block, columns, strict=True):
                place += 1
                if values.min() == values.max() or np.isnan(values).all():
                    continue
                digest = hashlib.blake2b(values.tobytes(), digest_size=16).digest()
                if digest not in originals:
                    originals[digest] = name_of(number)
                    known += [column] if column.rounding <= COARSEST else []  # not for a spread of NaN either
                elif _unusual_rows(values) > FEW_VARYING_ROWS:
                    repeated.append((place, _entry(name_of(number), originals[digest], 1.0, 0.0)))
    repeated += _affine_copies(known)
    repeated.sort(key=lambda entry: entry[0])
    return {"count": len(repeated), "first": [entry for _, entry in repeated[:MAX_NAMED]]}


def _blocks(table: Array) -> Iterator[tuple[range, Array]]:
    """Yield the numbers of some columns, and their values with a row for each; -0.0 is 0.0, which equals it."""
    rows, columns = table.shape
    width = max(1, BLOCK // max(rows, 1))
    for at in range(0, columns if rows else 0, width):
        numbers = range(at, min(at + width, columns))
        yield numbers, np.ascontiguousarray(table[:, numbers.start : numbers.stop].T, dtype=np.float64) + 0.0


def _unusual_rows(values: Array) -> int:
    """Return how many rows do not have the most frequent value."""
    return len(values) - int(np.unique(values, return_counts=True)[1].max())


def _measured(table: Table, numbers: range, block: Array, place: int) -> list[_Column]:
    """Return what is compared of each column of a block; a column that is not finite has a rounding error of NaN."""
    of_table, name_of = table
    direction = np.random.default_rng(derive(0, "repeated features")).normal(size=block.shape[1])
    with np.errstate(all="ignore"):
        mean, spread, largest = block.mean(axis=1), block.std(axis=1), np.abs(block).max(axis=1)
        rounding = ROUNDING * max(np.finfo(of_table.dtype).eps, FINEST) * largest / spread
        projection = (block - mean[:, None]) @ direction / spread / np.sqrt(block.shape[1])
    return [
        _Column(
            place + 1 + i, name_of(number), of_table, number, float(mean[i]), float(spread[i]), float(rounding[i]),
            abs(float(projection[i])), -1 if projection[i] < 0 else 1,
        )
        for i, number in enumerate(numbers)
    ]  # fmt: skip


def _affine_copies(columns: Sequence[_Column]) -> Iterator[tuple[int, RepeatedFeature]]:
    """Yield the columns that are an affine copy of an earlier one.

    A column is compared with those whose projection is as near as rounding allows. Columns with two values are left
    out: the two columns of a category that is either one or the other are copies of each other, as they should be.
    """
    window: list[_Column] = []  # originals with nearly the same projection
    for column in sorted(columns, key=lambda column: column.projection):
        reach = np.sqrt(len(column.of_table))
        window = [o for o in window if column.projection - o.projection <= reach * (column.rounding + o.rounding)]
        original = next((other for other in window if _is_copy(column, other)), None)
        if original is None:
            window.append(column)
        elif len(np.unique(column.values())) > 2 and _unusual_rows(column.values()) > FEW_VARYING_ROWS:
            first, second = sorted((original, column), key=lambda entry: entry.place)
            yield second.place, _described(first, second)


def _is_copy(column: _Column, other: _Column) -> bool:
    apart = np.abs(column.standardized() - other.standardized()).max()
    return bool(apart <= column.rounding + other.rounding)


def _described(first: _Column, second: _Column) -> RepeatedFeature:
    scale = first.sign * second.sign * second.spread / first.spread
    shift = second.mean - scale * first.mean
    rounding = second.spread * (first.rounding + second.rounding)
    return _entry(second.name, first.name, scale, 0.0 if abs(shift) <= rounding else shift)


def _entry(feature: str, of: str, scale: float, shift: float) -> RepeatedFeature:
    scale, shift = float(f"{scale:.6g}"), float(f"{shift:.6g}")
    factor = "" if scale == 1 else "-" if scale == -1 else f"{scale:.4g} "
    offset = f" {'-' if shift < 0 else '+'} {abs(shift):.4g}" if shift else ""
    return {
        "feature": feature,
        "of": of,
        "scale": scale,
        "shift": shift,
        "equation": f"{feature} = {factor}{of}{offset}",
    }
