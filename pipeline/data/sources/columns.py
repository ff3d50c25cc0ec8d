"""From a table of text to what a run uses: features as numbers, labels as ids or values, rows in three splits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.reading.rounding import float32_faults
from pipeline.data.source_data import Array, SourceData, SplitIndices, take_splits
from pipeline.data.sources.labels import class_ids, target_values
from pipeline.data.sources.split_assignment import assign_splits, values_by_split
from pipeline.data.sources.table import Table, TableOptions, parse_numbers, parse_times
from pipeline.data.splits import connected_groups, row_digests
from pipeline.errors import UserError, fault

UNKNOWN = "<unknown>"  # code 0: a category that train does not have, and a missing one
NA = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None", "?")
KINDS = ("classes", "values")


def table_data(table: Table, options: TableOptions, source: str | None, licence: str | None) -> SourceData:
    """What a `data` target returns: X float32 [N, F] with codes of categories, y ids or values, and the categories.

    X is int64 where every column is categorical.

    Columns of text are categorical: code 0 is `<unknown>` and missing, 1 and up are the categories of the train rows,
    sorted. Missing values of other columns are NaN: `preprocess.impute` fills them. Raises UserError naming file, row
    and column.
    """
    if options.label_kind not in KINDS:
        raise UserError(fault("data.label_kind", "unknown kind", got=options.label_kind, among=KINDS))
    label = options.label
    if label is None:
        raise UserError(fault("data.label", "is not given", expected="the name of the column to predict"))
    table.column(label, "label")
    names = _feature_names(table, options, label)
    class_names: list[str] | None = None
    y: Array
    if options.label_kind == "values":
        y = target_values(table, label)
    else:
        y, class_names = class_ids(table, label, options.class_names)
    indices, codes, categories = _divide(table, names, y, options)
    # Columns of numbers and of codes share one array of floats; codes alone stay integers, as an embedding takes them.
    X: Array = codes.astype(np.int64) if len(categories) == len(names) else codes
    data: SourceData = {
        **take_splits(X, y, indices),
        "class_names": class_names,
        "feature_names": list(names),
        "source": source or ", ".join(table.files),
        "licence": licence,
        "categories": {names[column]: known for column, known in categories.items()},
    }
    # The planning gate checks that no group is in two splits, and that the splits follow each other in time.
    if options.group is not None:
        data["groups"] = values_by_split(np.array(table.complete_column(options.group, "group")), indices)
    if options.time is not None:
        data["times"] = values_by_split(parse_times(table, options.time), indices)
    return data


def _divide(
    table: Table, names: Sequence[str], y: Array, options: TableOptions
) -> tuple[SplitIndices, NDArray[np.float32], dict[int, list[str]]]:
    """The rows of each split, X coded by the train rows, and the categories of each column of codes.

    Coding can make rows equal: two different categories that train does not have both become unknown. Such rows are
    then bound to one split, and the rows are divided again. Rows stay bound, so the loop ends.
    """
    raw, categories = _numeric_features(table, names, options)
    if faults := float32_faults({"data": raw}, lambda column: f"column '{names[column]}'"):
        raise UserError(*faults)
    with np.errstate(over="ignore"):
        features = raw.astype(np.float32)
    declared = len(table.files) > 1 or options.split is not None or options.time is not None
    bound: Array | None = None
    while True:
        indices = assign_splits(table, features, y, options, bound)
        X = features.copy()
        known = _recode(X, categories, indices["train"])
        digests = np.array(row_digests(X), dtype=str)
        if declared or not _shares_rows(digests, indices):
            return indices, X, known
        bound = digests if bound is None else connected_groups(digests, bound)


def _shares_rows(digests: Array, indices: SplitIndices) -> bool:
    """Whether equal rows are in two splits."""
    splits = (indices["train"], indices["val"], indices["test"])
    return sum(len(np.unique(digests[rows])) for rows in splits) > len(np.unique(digests))


def _feature_names(table: Table, options: TableOptions, label: str) -> tuple[str, ...]:
    """The columns to learn from: those listed, else all but the label, the ignored, and those that divide the rows."""
    for key, columns in (
        ("features", options.features or ()),
        ("ignore", options.ignore),
        ("categories", options.categories),
    ):
        for name in columns:
            table.column(name, key)
    if options.features is not None:
        if label in options.features:
            what, expected = "contains the label", "columns that are known when predicting"
            raise UserError(fault("data.features", what, got=label, expected=expected))
        return tuple(dict.fromkeys(options.features))
    excluded = {label, options.split, options.group, options.time, *options.ignore}
    names = tuple(name for name in table.names if name not in excluded)
    if not names:
        raise UserError(fault(table.files[0], "has no column to learn from", got=", ".join(table.names)))
    return names


def _numeric_features(
    table: Table, names: Sequence[str], options: TableOptions
) -> tuple[NDArray[np.float64], dict[int, list[str]]]:
    """Every feature as a number [N, F]: values, NaN where missing, or codes; and all categories by their column."""
    # All categories of the table get codes here; which of them train has depends on the split, see `_recode`.
    X, categories = np.empty((len(table), len(names))), dict[int, list[str]]()
    for column, name in enumerate(names):
        values = None if name in options.categories else parse_numbers(table, name, "features")
        if values is None:
            cells = table.column(name, "features")
            known = sorted({cell for cell in cells if cell is not None})
            code = {category: i for i, category in enumerate(known, start=1)}
            categories[column] = [UNKNOWN, *known]
            values = np.array([0 if cell is None else code[cell] for cell in cells], np.float64)
        X[:, column] = values
    return X, categories


def _recode(X: NDArray[np.float32], categories: dict[int, list[str]], train: NDArray[np.int64]) -> dict[int, list[str]]:
    """Renumbers the categories that train has, in place, sets all others to 0, and returns those of train by column."""
    known = {}
    for column, names in categories.items():
        codes = X[:, column].astype(np.int64)
        in_train = np.unique(codes[train])
        in_train = in_train[in_train > 0]
        new_codes = np.zeros(len(names), np.int64)
        new_codes[in_train] = np.arange(1, len(in_train) + 1)
        X[:, column] = new_codes[codes]
        known[column] = [UNKNOWN, *(names[code] for code in in_train)]
    return known
