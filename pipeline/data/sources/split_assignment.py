"""Which rows of a table are for training, validation and test: as given, by group, by time or by chance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sources.table import Table, instants
from pipeline.data.splits import joined, require_shares, split_indices
from pipeline.errors import UserError, fault

SIDES = ("train", "val", "test")
Sides = dict[str, NDArray[np.int64]]


def table_sides(
    table: Table,
    X: NDArray[Any],
    y: NDArray[Any],
    *,
    alike: NDArray[Any] | None,
    side: str | None,
    group: str | None,
    time: str | None,
    val: float,
    test: float,
    seed: int,
) -> Sides:
    """Row numbers (ascending) of each side.

    Three files, or a column `side` of the words train, val and test: as given. A column `time`: the oldest rows train,
    the newest test. Otherwise by chance, stratified by class; with a column `group` all its rows on one side. By chance
    rows with equal features (of X, numbers) stay on one side; where files, words or times say otherwise they stand
    where these put them, and the planning gate tells. Raises UserError for two of these at once, and for a side
    without rows. Rows of one number in `alike`, where given, are parted by chance no more than equal ones.
    """
    ways = {"side": side, "group": group, "time": time}
    asked = [name for name, column in ways.items() if column is not None]
    if len(table.files) > 1:
        asked.insert(0, "val_path")
    if len(asked) > 1:
        do = f"keep one of {', '.join(f'data.{name}' for name in asked)}"
        raise UserError(fault("data", "rows can be divided in one way only", got=" and ".join(asked), do=do))
    if len(table.files) > 1:
        return {name: np.flatnonzero(table.file_of == k).astype(np.int64) for k, name in enumerate(SIDES)}
    if side is not None:
        return _by_word(table, side)
    if time is not None:
        return time_indices(instants(table, time), val=val, test=test)
    groups = None if group is None else np.array(table.whole(group, "group"))
    if alike is not None:
        groups = alike if groups is None else joined(alike, groups)
    return split_indices(X, y, val=val, test=test, seed=seed, groups=groups)


def marks_of(table: Table, sides: Sides, group: str | None, time: str | None) -> dict[str, Any]:
    """The column that divided the rows, by side, so that the planning gate can see that it did."""
    groups = None if group is None else np.array(table.whole(group, "group"))
    times = None if time is None else instants(table, time)
    given = {"groups": groups, "times": times}
    return {k: {side: v[rows] for side, rows in sides.items()} for k, v in given.items() if v is not None}


def _by_word(table: Table, column: str) -> Sides:
    words = np.array(table.whole(column, "side"))
    odd = np.flatnonzero(~np.isin(words, SIDES))
    if len(odd):
        place = table.place(int(odd[0]), column)
        raise UserError(fault(place, "names no side", got=str(words[odd[0]]), among=SIDES))
    found = {name: np.flatnonzero(words == name).astype(np.int64) for name in SIDES}
    if empty := [name for name, rows in found.items() if not len(rows)]:
        raise UserError(fault(f"{table.files[0]}: column '{column}'", f"gives no row to {', '.join(empty)}"))
    return found


def time_indices(times: NDArray[np.float64], *, val: float = 0.2, test: float = 0.2) -> Sides:
    """Row numbers (ascending) of train, val and test: every row of train is older than any of val, and val than test.

    Rows of one instant stay on one side, so that shares are met to within an instant. Raises UserError for shares, or
    too few instants, that leave a side without rows.
    """
    require_shares(val, test)
    moments, place, counts = np.unique(times, return_inverse=True, return_counts=True)
    if len(moments) < 3:
        raise UserError(fault("data.time", "too few instants to split", got=len(moments), expected="at least 3"))
    before = np.cumsum(counts) - counts  # rows older than each instant
    rows = len(times)
    first_val = np.argmin(np.abs(before - (1 - val - test) * rows)).clip(1, len(moments) - 2)
    first_test = np.argmin(np.abs(before - (1 - test) * rows)).clip(first_val + 1, len(moments) - 1)
    side = (place >= first_val).astype(np.int8) + (place >= first_test)
    return {name: np.flatnonzero(side == k).astype(np.int64) for k, name in enumerate(SIDES)}
