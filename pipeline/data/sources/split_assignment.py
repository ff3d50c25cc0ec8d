"""Which rows of a table are for training, validation and test: as declared, by time, by group, or by chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.data.source_data import SPLITS, Array, RowValues, SplitIndices
from pipeline.data.sources.table import Table, TableOptions, parse_times
from pipeline.data.splits import check_split_shares, connected_groups, split_indices
from pipeline.errors import UserError, fault


def assign_splits(table: Table, X: Array, y: Array, options: TableOptions, bound: Array | None) -> SplitIndices:
    """Row numbers (ascending) of each split.

    With three files, or a `split` column with the words train, val and test: as declared. With a `time` column the
    oldest rows are for training and the newest for test. Otherwise rows are divided by chance, stratified by class; a
    `group` column keeps all rows of a group in one split. By chance, rows with equal features X [N, F] are in one
    split, and so are rows with equal numbers in `bound`, if given. Files, words and times may separate equal rows: the
    planning gate reports that. Raises UserError for two of these options at once, and for a split without rows.
    """
    columns = {"split": options.split, "group": options.group, "time": options.time}
    methods = [name for name, column in columns.items() if column is not None]
    if len(table.files) > 1:
        methods.insert(0, "val_path")
    if len(methods) > 1:
        do = f"keep one of {', '.join(f'data.{name}' for name in methods)}"
        raise UserError(fault("data", "rows can be divided in one way only", got=" and ".join(methods), do=do))
    if len(table.files) > 1:
        return _indices(table.file_of)
    if options.split is not None:
        return _by_column(table, options.split)
    if options.time is not None:
        return time_indices(parse_times(table, options.time), val=options.val, test=options.test)
    groups = None if options.group is None else np.array(table.complete_column(options.group, "group"))
    if bound is not None:
        groups = bound if groups is None else connected_groups(bound, groups)
    return split_indices(X, y, val=options.val, test=options.test, seed=options.seed, groups=groups)


def values_by_split(values: Array, indices: SplitIndices) -> RowValues:
    """A value per row, such as the group, divided as the rows are."""
    return {"train": values[indices["train"]], "val": values[indices["val"]], "test": values[indices["test"]]}


def _indices(split_of_row: Array) -> SplitIndices:
    """Row numbers by split: 0 is train, 1 val and 2 test."""
    train, val, test = (np.flatnonzero(split_of_row == k).astype(np.int64) for k in range(len(SPLITS)))
    return {"train": train, "val": val, "test": test}


def _by_column(table: Table, column: str) -> SplitIndices:
    split_names = np.array(table.complete_column(column, "split"))
    unknown = np.flatnonzero(~np.isin(split_names, SPLITS))
    if len(unknown):
        place = table.place(int(unknown[0]), column)
        raise UserError(fault(place, "is not the name of a split", got=str(split_names[unknown[0]]), among=SPLITS))
    if empty := [name for name in SPLITS if name not in split_names]:
        raise UserError(fault(f"{table.files[0]}: column '{column}'", f"gives no row to {', '.join(empty)}"))
    return _indices(np.array([SPLITS.index(word) for word in split_names]))


def time_indices(times: NDArray[np.float64], *, val: float = 0.2, test: float = 0.2) -> SplitIndices:
    """Row numbers (ascending) of each split: every train row is older than any of val, and those than any of test.

    Rows with equal times are in one split, so that shares are met only to within one time. Raises UserError for shares,
    or too few different times, that leave a split without rows.
    """
    check_split_shares(val, test)
    moments, moment_of_row, counts = np.unique(times, return_inverse=True, return_counts=True)
    if len(moments) < 3:
        raise UserError(fault("data.time", "too few different times to split", got=len(moments), expected="at least 3"))
    rows_before = np.cumsum(counts) - counts  # rows older than each time
    # The boundaries are the times nearest to the shares that leave at least one time to every split.
    first_val = np.argmin(np.abs(rows_before - (1 - val - test) * len(times))).clip(1, len(moments) - 2)
    first_test = np.argmin(np.abs(rows_before - (1 - test) * len(times))).clip(first_val + 1, len(moments) - 1)
    return _indices((moment_of_row >= first_val).astype(np.int8) + (moment_of_row >= first_test))
