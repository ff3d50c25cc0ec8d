"""Folds: the train rows in parts of about equal size, each of which can be left out of a training and judged by it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.data.splits import Split
from pipeline.errors import UserError, fault


def folds_of(train: Split, parts: int, groups: ArrayLike | None = None) -> NDArray[np.int64]:
    """The fold of every train row, 0 .. parts - 1: stratified for classes; equal rows and equal groups share theirs.

    A pure function of rows, parts and groups, which are those marked on the rows where none are given. Raises UserError
    for fewer different rows, or groups, than parts.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

    groups = getattr(getattr(train, "marks", None), "groups", None) if groups is None else groups
    together = _together(train, groups)
    sizes = np.bincount(together)
    if not 2 <= parts <= len(sizes):
        what = "rows" if groups is None else "groups"
        expected = f"2 to {len(sizes)}, the different {what}"
        raise UserError(fault("folds", "cannot be made", got=parts, expected=expected))
    labels = train.y.numpy() if not train.y.is_floating_point() and train.y.ndim == 1 else None
    by: Any
    if labels is None or np.bincount(labels).max() < parts:
        by = GroupKFold(parts, shuffle=True, random_state=0)
    elif sizes.max() > 1:
        by = StratifiedGroupKFold(parts, shuffle=True, random_state=0)
    else:
        by = StratifiedKFold(parts, shuffle=True, random_state=0)  # the same, and fast for many rows
    fold = np.empty(len(train), np.int64)
    alike = None if isinstance(by, StratifiedKFold) else together
    for number, (_, left_out) in enumerate(by.split(fold, labels, alike)):
        fold[left_out] = number
    return fold


def _together(train: Split, groups: ArrayLike | None) -> NDArray[np.intp]:
    """A number per row, the same for rows that are equal or of one group, through however many others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, alike = np.unique(np.array(train.row_digests, dtype=str), return_inverse=True)
    if groups is None:
        return alike
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    nodes = int(alike.max()) + int(group.max()) + 2  # each different row is one, and each group
    ends = (alike, group + int(alike.max()) + 1)
    _, part = connected_components(coo_array((np.ones(len(train)), ends), shape=(nodes, nodes)), directed=False)
    _, together = np.unique(part[alike], return_inverse=True)
    return together
