"""Columns that look like identifiers: a model that learns from them remembers rows, and knows nothing of new ones."""

from __future__ import annotations

import re
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import Data

# Whole words of a name, in any spelling: patientId, patient_id, "Unnamed: 0".
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
NAMES = {"id", "ids", "uid", "uuid", "guid", "index", "idx", "row", "rowid", "unnamed", "identifier", "key", "serial"}
UNIQUE = 0.95  # share of different values among the rows, since a table may repeat a few rows
DENSE = 1.1  # row numbers of the three splits together are about as many as the rows
MIN_ROWS = 20  # fewer rows may be unique and sorted by chance


class IdentifierColumn(TypedDict):
    """A column that is taken for a feature and looks like an identifier, with the reason."""

    column: str
    why: str


def identifier_columns(data: Data) -> list[IdentifierColumn]:
    """Return the columns of the features [N, F] that look like identifiers.

    These are text that differs from row to row, whole numbers that differ from row to row under a name such as `id`,
    and row numbers: whole numbers in order, without large gaps. Measurements with fractions are never among them.
    """
    X = data.train.X
    if not isinstance(X, Tensor) or X.ndim != 2 or len(X) < MIN_ROWS:
        return []
    rows = len(data.train) + len(data.val) + data.test.rows
    names = data.feature_names or tuple(map(str, range(X.shape[1])))
    found: list[IdentifierColumn] = []
    for column, name in enumerate(names):
        if column in data.categories:
            why = _of_codes(data.categories[column] - 1, len(X))
        else:
            why = _of_numbers(X[:, column].numpy(), name, rows)
        if why:
            found.append({"column": name, "why": why})
    return found


def _of_codes(categories: int, rows: int) -> str:
    return f"{categories} different texts in {rows} rows" if categories >= UNIQUE * rows else ""


def _of_numbers(values: NDArray[Any], name: str, rows: int) -> str:
    """Return the reason why numbers look like an identifier; empty if they do not."""
    if not np.isfinite(values).all() or (values != np.round(values)).any():
        return ""
    steps = np.diff(values.astype(np.float64))
    if (steps > 0).all() or (steps < 0).all():
        span = abs(float(values[-1]) - float(values[0])) + 1
        if span <= DENSE * rows:
            return "numbers the rows in their order"
    if NAMES.isdisjoint(word.lower() for word in _WORDS.findall(name)):
        return ""
    different = len(np.unique(values))  # sorts the column: only where the name asks for it
    if different >= UNIQUE * len(values):
        return f"{different} different whole numbers in {len(values)} rows"
    return ""
