"""From a table of text to what a run takes: features as numbers, labels as ids or values, rows on three sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sources.labels import class_ids, values
from pipeline.data.sources.split_assignment import Sides, marks_of, table_sides
from pipeline.data.sources.table import Table, numbers
from pipeline.data.splits import joined, row_digests
from pipeline.errors import UserError, fault

UNKNOWN = "<unknown>"  # code 0: a category that train never had, and a missing one
NA = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "?")
KINDS = ("classes", "values")


@dataclass(frozen=True)
class Choice:
    """Which columns of a table mean what, how rows are divided: the options that all readers share."""

    label: str | None
    features: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    categories: Sequence[str] = ()
    label_kind: str = "classes"
    class_names: Sequence[str] | None = None
    side: str | None = None
    group: str | None = None
    time: str | None = None
    val: float = 0.2
    test: float = 0.2
    seed: int = 0


def table_data(table: Table, chosen: Choice, source: str | None, licence: str | None) -> dict[str, Any]:
    """What a `data` target returns: X float32 [N, F] with codes of categories, y ids or values, and the categories.

    Columns of text are categories: 0 is `<unknown>`, a missing one too, 1 and up are those of the train rows, sorted.
    Missing values of other columns are NaN: `preprocess.impute` fills them. Raises UserError naming file, row, column.
    """
    if chosen.label_kind not in KINDS:
        raise UserError(fault("data.label_kind", "unknown kind", got=chosen.label_kind, among=KINDS))
    label = chosen.label
    if label is None:
        raise UserError(fault("data.label", "is not given", expected="the name of the column to predict"))
    table.column(label, "label")
    names = _features(table, chosen, label)
    names_of_classes: list[str] | None = None
    y: NDArray[Any]
    if chosen.label_kind == "values":
        y = values(table, label)
    else:
        y, names_of_classes = class_ids(table, label, chosen.class_names)
    sides, X, categories = _divided(table, names, y, chosen)
    return {
        **{name: (X[rows], y[rows]) for name, rows in sides.items()},
        "class_names": names_of_classes,
        "feature_names": list(names),
        "source": source or ", ".join(table.files),
        "licence": licence,
        "categories": {names[column]: words for column, words in categories.items()},
        **marks_of(table, sides, chosen.group, chosen.time),
    }


def _divided(
    table: Table, names: Sequence[str], y: NDArray[Any], chosen: Choice
) -> tuple[Sides, NDArray[np.float32], dict[int, list[str]]]:
    """Rows of each side, X coded by the train rows, and the words of each column of codes.

    Rows can become equal only when they are coded: where two categories that differ are both unknown to train. Those
    are then bound to one side, and the rows divided anew: what is bound stays so, and thus it comes to an end.
    """
    raw, categories = _numeric(table, names, chosen)
    with np.errstate(over="ignore"):
        features = raw.astype(np.float32)
    alike: NDArray[Any] | None = None
    while True:
        sides = table_sides(
            table, features, y, alike=alike, side=chosen.side, group=chosen.group, time=chosen.time, val=chosen.val,
            test=chosen.test, seed=chosen.seed,
        )  # fmt: skip
        X = features.copy()
        known = _recode(X, categories, sides["train"])
        digests = np.array(row_digests(X), dtype=str)
        given = len(table.files) > 1 or chosen.side is not None or chosen.time is not None
        if given or not _shared(digests, sides):
            return sides, X, known
        alike = digests if alike is None else joined(digests, alike)


def _shared(digests: NDArray[Any], sides: Sides) -> bool:
    """Whether equal rows stand on two sides."""
    return sum(len(np.unique(digests[rows])) for rows in sides.values()) > len(np.unique(digests))


def _features(table: Table, chosen: Choice, label: str) -> tuple[str, ...]:
    """The columns to learn from: those chosen, else all but the label, those ignored and those that divide the rows."""
    for key, listed in (
        ("features", chosen.features or ()),
        ("ignore", chosen.ignore),
        ("categories", chosen.categories),
    ):
        for name in listed:
            table.column(name, key)
    if chosen.features is not None:
        if label in chosen.features:
            raise UserError(fault("data.features", "holds the label", got=label, expected="columns known beforehand"))
        return tuple(dict.fromkeys(chosen.features))
    apart = {label, chosen.side, chosen.group, chosen.time, *chosen.ignore}
    names = tuple(name for name in table.names if name not in apart)
    if not names:
        raise UserError(fault(table.files[0], "has no column to learn from", got=", ".join(table.names)))
    return names


def _numeric(table: Table, names: Sequence[str], chosen: Choice) -> tuple[NDArray[np.float64], dict[int, list[str]]]:
    """Every feature as a number [N, F]: values, NaN where missing, and codes of all categories by their column."""
    X, categories = np.empty((len(table), len(names))), dict[int, list[str]]()
    for column, name in enumerate(names):
        found = None if name in chosen.categories else numbers(table, name, "features")
        if found is None:
            cells = table.column(name, "features")
            words = sorted({cell for cell in cells if cell is not None})
            code = {word: i for i, word in enumerate(words, start=1)}
            categories[column] = [UNKNOWN, *words]
            found = np.array([0 if cell is None else code[cell] for cell in cells], np.float64)
        X[:, column] = found
    return X, categories


def _recode(X: NDArray[np.float32], categories: dict[int, list[str]], train: NDArray[np.int64]) -> dict[int, list[str]]:
    """Codes of the categories that train has, in place, all others 0; and the names of those that are left."""
    known = {}
    for column, words in categories.items():
        codes = X[:, column].astype(np.int64)
        kept = np.unique(codes[train])
        kept = kept[kept > 0]
        lookup = np.zeros(len(words), np.int64)
        lookup[kept] = np.arange(1, len(kept) + 1)
        X[:, column] = lookup[codes]
        known[column] = [UNKNOWN, *(words[code] for code in kept)]
    return known
