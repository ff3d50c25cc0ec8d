"""Folds: the train rows in parts of about equal size, each of which can be left out of a training and judged by it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.splits import Split, joined
from pipeline.errors import UserError, fault


def folds_of(train: Split, parts: int) -> NDArray[np.int64]:
    """The fold of every train row, 0 .. parts - 1: stratified for classes; equal rows and equal groups share theirs.

    A pure function of rows, groups and parts. Raises UserError for fewer different rows, or groups, than parts.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

    digests, groups = np.array(train.row_digests, dtype=str), train.marks.groups
    _, together = np.unique(digests if groups is None else joined(digests, groups), return_inverse=True)
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
