"""Folds: the train rows in equal parts, each of which can be left out of a training and judged by it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.splits import Split
from pipeline.errors import UserError, fault


def folds_of(train: Split, parts: int) -> NDArray[np.int64]:
    """The fold of every train row, 0 .. parts - 1: stratified for classes, equal rows always in the same one.

    A pure function of rows and parts. Raises UserError for fewer different rows than parts.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

    alike: NDArray[np.intp] | None
    _, alike, sizes = np.unique(np.array(train.row_digests, dtype=str), return_inverse=True, return_counts=True)
    if not 2 <= parts <= len(sizes):
        raise UserError(fault("folds", "cannot be made", got=parts, expected=f"2 to {len(sizes)}, the different rows"))
    labels = train.y.numpy() if not train.y.is_floating_point() and train.y.ndim == 1 else None
    by: Any
    if labels is None or np.bincount(labels).max() < parts:
        by = GroupKFold(parts, shuffle=True, random_state=0)
    elif sizes.max() > 1:
        by = StratifiedGroupKFold(parts, shuffle=True, random_state=0)
    else:
        by, alike = StratifiedKFold(parts, shuffle=True, random_state=0), None  # the same, and fast for many rows
    fold = np.empty(len(train), np.int64)
    for number, (_, left_out) in enumerate(by.split(fold, labels, alike)):
        fold[left_out] = number
    return fold
