"""Labels and values to predict: checked by row before anything is trained on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sources.table import Table, parse_number
from pipeline.errors import UserError, fault


def class_ids(
    table: Table, label: str, class_names: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], list[str]]:
    """Ids int64 [N] and the class names: the given ones, else all that occur, sorted, numbers by their value.

    Raises UserError for a label that is missing or not a class name, naming its cell, for a single class, for a class
    with one row, and for class names that YAML has read as true and false.
    """
    cells = table.complete_column(label, "label")
    if class_names is not None and any(isinstance(name, bool) for name in class_names):
        expected = "texts in quotes: YAML reads a bare yes, no, on, off, true and false as true or false"
        do = f"write class_names: {sorted(set(cells), key=_numbers_first)[:8]}"
        raise UserError(fault("data.class_names", "are not texts", got=list(class_names), expected=expected, do=do))
    names = sorted(set(cells), key=_numbers_first) if class_names is None else [str(name) for name in class_names]
    # Declared names fix the order of classes, so that ids stay the same if a class is absent from this table.
    ids = {name: i for i, name in enumerate(names)}
    for row, cell in enumerate(cells):
        if cell not in ids:
            raise UserError(fault(table.place(row, label), "label is out of range", got=cell, among=names))
    y = np.array([ids[cell] for cell in cells], np.int64)
    check_class_counts(y, names, f"{table.files[0]}: column '{label}'", lambda row: table.place(row, label))
    return y, names


def _numbers_first(cell: str) -> tuple[float, str]:
    """Sort key: numbers by value, so that 10 comes after 9, then text."""
    value = parse_number(cell)
    return (math.inf if value is None or math.isnan(value) else value, cell)


def check_class_counts(y: NDArray[np.int64], names: Sequence[str], where: str, place: Callable[[int], str]) -> None:
    """Raises UserError for a single class, and for a class with one row: it could be trained on or tested, not both.

    In messages `where` names the column of labels, `place` one row of it.
    """
    classes, first, counts = np.unique(y, return_index=True, return_counts=True)
    if len(classes) < 2:
        what = "has one class only, so there is nothing to classify"
        raise UserError(fault(where, what, got=names[classes[0]], expected="two classes or more"))
    for single in np.flatnonzero(counts == 1):
        what = f"class '{names[classes[single]]}' has one row"
        expected = "two rows or more per class, one to train on and one to evaluate"
        raise UserError(fault(place(int(first[single])), what, expected=expected))


def target_values(table: Table, label: str) -> NDArray[np.float64]:
    """Values to predict [N]. Raises UserError naming the first that is missing or not a finite number."""
    values = []
    for row, cell in enumerate(table.complete_column(label, "label")):
        value = parse_number(cell)
        if value is None or not math.isfinite(value):
            what = "label is not a finite number"
            do = "python -m pipeline ... data.label_kind=classes" if row == 0 else None
            raise UserError(fault(table.place(row, label), what, got=cell, expected="a value to predict", do=do))
        values.append(value)
    return np.array(values, np.float64)
