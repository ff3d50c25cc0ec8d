"""Shifts that a monitor has to find: another mean, missing values, another unit, other classes, by kind of input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.drift.features import Array, columns_of

if TYPE_CHECKING:
    from pipeline.serving.schema_file import Schema

SHARE = 0.2  # of numbers, pixels or tokens that are missing or replaced
RECODED = 0.5  # of categories that have another code, as of an encoder that was fitted anew
FACTOR = 10  # of a column in another unit, such as mm for cm
CONTRAST = 0.5  # that is left of an image

Tensors = dict[str, Array]
Change = Callable[[Tensors, np.random.Generator], Tensors]


class Shift(NamedTuple):
    """A shift of the inputs: its name, what it does, and the function that applies it to rows."""

    name: str
    what: str
    change: Change


class _Cells(NamedTuple):
    """A column of numbers or codes: element `at` of each row of a tensor, None where the row is one number."""

    tensor: str
    at: int | None
    deviation: float
    typical: float  # median of the sizes of its values; 0 for a column that is mostly 0
    rarest: float

    def of(self, tensors: Mapping[str, Array]) -> Array:
        values = tensors[self.tensor]
        return values if self.at is None else values[:, self.at]


def shifts_of(schema: Schema, train: Mapping[str, Array]) -> list[Shift]:
    """Return the shifts that mean something for these inputs; statistics are those of train rows."""
    numbers, codes = _columns(schema, train, category=False), _columns(schema, train, category=True)
    shifts = [*_of_numbers(numbers), *_of_codes(codes)]
    for column in schema["inputs"]:
        values = train[column["tensor"]]
        if not column["shape"] or shifts:
            continue
        if column["kind"] == "tokens":
            shifts.append(_replaced_tokens(column["tensor"], values))
        elif values.dtype.kind == "f":
            shifts += _of_arrays(column["tensor"], values, "pixels" if column["kind"] == "image" else "elements")
    return shifts


def _columns(schema: Schema, train: Mapping[str, Array], category: bool) -> list[_Cells]:
    """Return the columns that vary."""
    shifts = []
    for tensor in schema["tensors"]:
        for number, column in enumerate(columns_of(schema, tensor["name"])):
            if column["shape"] or (column["kind"] == "category") != category:
                continue
            values = train[tensor["name"]] if tensor["whole"] else train[tensor["name"]][:, number]
            known = values[np.isfinite(values)].astype(np.float64)
            if len(np.unique(known)) > 1:
                ids, counts = np.unique(known, return_counts=True)
                rarest, place = float(ids[counts.argmin()]), None if tensor["whole"] else number
                cells = _Cells(tensor["name"], place, float(known.std()), float(np.median(np.abs(known))), rarest)
                shifts.append(cells)
    return shifts


def _quarter(columns: list[_Cells], rng: np.random.Generator) -> list[_Cells]:
    count = -(-len(columns) // 4)
    return [columns[at] for at in rng.choice(len(columns), count, replace=False)]


def _copied(tensors: Tensors) -> Tensors:
    return {
        name: values.astype(np.float64 if values.dtype.kind in "iu" else values.dtype)
        for name, values in tensors.items()
    }


def _of_numbers(columns: list[_Cells]) -> list[Shift]:
    if not columns:
        return []

    def mean(tensors: Tensors, rng: np.random.Generator) -> Tensors:
        moved = _copied(tensors)
        for column in _quarter(columns, rng):
            cells = column.of(moved)
            whole = tensors[column.tensor].dtype.kind in "iu"
            cells += max(1, round(column.deviation)) if whole else column.deviation
        return moved

    def missing(tensors: Tensors, rng: np.random.Generator) -> Tensors:
        holes = _copied(tensors)
        for column in _quarter(columns, rng):
            cells = column.of(holes)
            cells[rng.random(len(cells)) < SHARE] = np.nan
        return holes

    shifts = [
        Shift("mean", "one standard deviation more in a quarter of the columns", mean),
        Shift("missing", f"{SHARE:.0%} of the values of a quarter of the columns are missing", missing),
    ]
    scalable = [column for column in columns if column.typical > 0]
    if scalable:

        def scaled(tensors: Tensors, rng: np.random.Generator) -> Tensors:
            other = _copied(tensors)
            cells = scalable[rng.integers(len(scalable))].of(other)
            cells *= FACTOR
            return other

        shifts.append(Shift("unit", f"one column is {FACTOR} times as large", scaled))
    return shifts


def _of_codes(columns: list[_Cells]) -> list[Shift]:
    if not columns:
        return []

    def recoded(tensors: Tensors, rng: np.random.Generator) -> Tensors:
        other = _copied(tensors)
        for column in _quarter(columns, rng):
            cells = column.of(other)
            cells[rng.random(len(cells)) < RECODED] = column.rarest
        return other

    what = f"{RECODED:.0%} of the values of a quarter of the categorical columns are the rarest category"
    return [Shift("categories", what, recoded)]


def _replaced_tokens(tensor: str, train: Array) -> Shift:
    ids, counts = np.unique(train, return_counts=True)
    rarest = ids[counts.argmin()]

    def replaced(tensors: Tensors, rng: np.random.Generator) -> Tensors:
        rows = tensors[tensor]
        return {**tensors, tensor: np.where(rng.random(rows.shape) < SHARE, rarest, rows)}

    return Shift("tokens", f"{SHARE:.0%} of the tokens are the rarest one", replaced)


def _of_arrays(tensor: str, train: Array, elements: str) -> list[Shift]:
    """Shifts of images and of other arrays [N, ...]."""
    of_rows = float(train.reshape(len(train), -1).mean(1).std())

    def brighter(tensors: Tensors, rng: np.random.Generator) -> Tensors:
        return {**tensors, tensor: tensors[tensor] + np.float32(of_rows)}

    def zeros(tensors: Tensors, rng: np.random.Generator) -> Tensors:
        values = tensors[tensor]
        return {**tensors, tensor: np.where(rng.random(values.shape) < SHARE, np.float32(0), values)}

    def paler(tensors: Tensors, rng: np.random.Generator) -> Tensors:
        values = tensors[tensor]
        means = values.mean(tuple(range(1, values.ndim)), keepdims=True)
        return {**tensors, tensor: means + np.float32(CONTRAST) * (values - means)}

    return [
        Shift("mean", f"all {elements} are larger by one standard deviation of the means of rows", brighter),
        Shift("missing", f"{SHARE:.0%} of the {elements} are zero", zeros),
        Shift("contrast", f"{elements} differ half as much from the mean of their row", paler),
    ]


def prior_rows(targets: Array, classes: bool, count: int, rng: np.random.Generator) -> Array:
    """Return rows of half of the classes, or with the upper half of the values: a shift of the targets alone.

    Of the two halves the one with fewer rows arrives, so that at least half of the rows are of classes that are gone:
    the loss of a rare class alone is hardly a shift. Rows are drawn with replacement where there are too few.
    """
    if classes:
        ids, counts = np.unique(targets, return_counts=True)
        order = rng.permutation(len(ids))
        halves = np.split(order, [-(-len(ids) // 2)])
        remaining = ids[min(halves, key=lambda half: int(counts[half].sum()))]
        possible = np.flatnonzero(np.isin(targets, remaining))
    else:
        possible = np.flatnonzero(targets > np.median(targets))
    return rng.choice(possible, count, replace=len(possible) < count)
