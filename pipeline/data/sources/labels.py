"""Labels and values to predict: what they must be before anything is trained on them, told by file and row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sources.table import Table, number
from pipeline.errors import UserError, fault


def class_ids(
    table: Table, label: str, class_names: Sequence[str] | None = None
) -> tuple[NDArray[np.int64], list[str]]:
    """Ids int64 [N] and the classes' names: those given, else all that occur, sorted, numbers by their value.

    Raises UserError naming a label that is missing or of no known class, for one class only and a class with one row.
    """
    cells = table.whole(label, "label")
    names = sorted(set(cells), key=_by_value) if class_names is None else [str(name) for name in class_names]
    ids = {name: i for i, name in enumerate(names)}
    for row, cell in enumerate(cells):
        if cell not in ids:
            raise UserError(fault(table.place(row, label), "label is out of range", got=cell, among=names))
    y = np.array([ids[cell] for cell in cells], np.int64)
    require_classes(y, names, f"{table.files[0]}: column '{label}'", lambda row: table.place(row, label))
    return y, names


def _by_value(cell: str) -> tuple[float, str]:
    value = number(cell)
    return (math.inf if value is None or math.isnan(value) else value, cell)


def require_classes(y: NDArray[np.int64], names: Sequence[str], whole: str, place: Callable[[int], str]) -> None:
    """Raises UserError for one class only, and for a class with a single row, which can be trained or tested, not both.

    `whole` names the column in messages, `place` one row of it.
    """
    found, first, counts = np.unique(y, return_index=True, return_counts=True)
    if len(found) < 2:
        what = "holds one class only, so that there is nothing to tell apart"
        raise UserError(fault(whole, what, got=names[found[0]], expected="two classes or more"))
    for single in np.flatnonzero(counts == 1):
        what = f"class '{names[found[single]]}' has one row"
        expected = "two rows or more of a class, one to train on and one to judge by"
        raise UserError(fault(place(int(first[single])), what, expected=expected))


def values(table: Table, label: str) -> NDArray[np.float32]:
    """Values to predict, float32 [N]. Raises UserError naming the first that is missing or no finite number."""
    found = []
    for row, cell in enumerate(table.whole(label, "label")):
        value = number(cell)
        if value is None or not math.isfinite(value):
            do = "python -m pipeline ... data.label_kind=classes" if row == 0 else None
            raise UserError(
                fault(
                    table.place(row, label), "label is no finite number", got=cell, expected="a value to predict", do=do
                )
            )
        found.append(value)
    return np.array(found, np.float32)
