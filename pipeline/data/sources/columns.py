"""From a table of text to what a run takes: features as numbers, labels as ids or values, rows on three sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sources.labels import class_ids, values
from pipeline.data.sources.preparing import prepared, require_missing
from pipeline.data.sources.sides import Sides, marks_of, table_sides
from pipeline.data.sources.table import Table, numbers
from pipeline.data.splits import joined, row_digests
from pipeline.errors import UserError, fault

UNKNOWN = "<unknown>"  # code 0: a category that train never had, and a missing one
NA = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "?")
KINDS = ("classes", "values")


@dataclass(frozen=True)
class Choice:
    """Which columns of a table mean what, how rows are divided and prepared: the options that all readers share."""

    label: str | None
    features: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    categories: Sequence[str] = ()
    label_kind: str = "classes"
    class_names: Sequence[str] | None = None
    missing: str = "refuse"
    standardize: bool = False
    side: str | None = None
    group: str | None = None
    time: str | None = None
    val: float = 0.2
    test: float = 0.2
    seed: int = 0


def table_data(table: Table, chosen: Choice, source: str | None, licence: str | None) -> dict[str, Any]:
    """What a `data` target returns: X float32 [N, F] with codes of categories, y ids or values, and what was fitted.

    Columns of text are categories: 0 is `<unknown>`, 1 and up are those of the train rows, sorted. Missing values of
    other columns and scales are fitted on train alone. Raises UserError naming file, row and column.
    """
    require_missing(chosen.missing)
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
    sides, ready, fitted = _divided(table, names, y, chosen)
    return {
        **{name: (ready[rows], y[rows]) for name, rows in sides.items()},
        "class_names": names_of_classes,
        "feature_names": list(names),
        "source": source or ", ".join(table.files),
        "licence": licence,
        "fitted": fitted,
        **marks_of(table, sides, chosen.group, chosen.time),
    }


def _divided(
    table: Table, names: Sequence[str], y: NDArray[Any], chosen: Choice
) -> tuple[Sides, NDArray[np.float32], dict[str, Any]]:
    """Rows of each side, X as it is prepared by the train rows, and what was fitted.

    Rows can become equal only when they are prepared: where a filled value or an unknown category hits another row's.
    Those are then bound to one side, and the rows divided anew: what is bound stays so, and thus it comes to an end.
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
        X = raw.copy()
        known = _recode(X, categories, sides["train"])
        ready, fitted = prepared(
            X,
            sides["train"],
            names=names,
            place=lambda row, column: table.place(row, names[column]),
            missing=chosen.missing,
            standardize=chosen.standardize,
            codes=list(categories),
        )
        fitted["categories"] = {names[column]: found for column, found in known.items()}
        digests = np.array(row_digests(ready), dtype=str)
        given = len(table.files) > 1 or chosen.side is not None or chosen.time is not None
        if given or not _shared(digests, sides):
            return sides, ready, fitted
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
            if chosen.missing == "refuse" and None in cells:
                _refuse(table, name, cells)
            words = sorted({cell for cell in cells if cell is not None})
            code = {word: i for i, word in enumerate(words, start=1)}
            categories[column] = [UNKNOWN, *words]
            found = np.array([0 if cell is None else code[cell] for cell in cells], np.float64)
        X[:, column] = found
    return X, categories


def _refuse(table: Table, name: str, cells: Sequence[str | None]) -> None:
    expected = f"a value in every cell; with another data.missing it counts as {UNKNOWN}"
    do = "python -m pipeline ... data.missing=median"
    raise UserError(fault(table.place(cells.index(None), name), "value is missing", expected=expected, do=do))


def _recode(X: NDArray[np.float64], categories: dict[int, list[str]], train: NDArray[np.int64]) -> dict[int, list[str]]:
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
