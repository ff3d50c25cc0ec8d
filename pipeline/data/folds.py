"""Folds: the train rows in parts of about equal size, for cross-validation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.data.splits import Split, connected_groups
from pipeline.errors import UserError, fault


def assign_folds(train: Split, n_folds: int) -> NDArray[np.int64]:
    """The fold of every train row, 0 .. n_folds - 1: stratified by class; equal rows and equal groups share a fold.

    A pure function of rows, groups and n_folds. Raises UserError for fewer different rows, or groups, than folds.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

    digests, groups = np.array(train.row_digests, dtype=str), train.row_metadata.groups
    _, together = np.unique(digests if groups is None else connected_groups(digests, groups), return_inverse=True)
    # Equal rows count as one group: in two folds they would leak from training into the evaluation.
    sizes = np.bincount(together)
    if not 2 <= n_folds <= len(sizes):
        what = "rows" if groups is None else "groups"
        expected = f"2 to {len(sizes)}, the different {what}"
        raise UserError(fault("folds", "cannot be made", got=n_folds, expected=expected))
    labels = train.y.numpy() if not train.y.is_floating_point() and train.y.ndim == 1 else None
    splitter: GroupKFold | StratifiedGroupKFold | StratifiedKFold
    if labels is None or np.bincount(labels).max() < n_folds:
        splitter = GroupKFold(n_folds, shuffle=True, random_state=0)
    elif sizes.max() > 1:
        splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=0)
    else:
        # Without equal rows no groups are needed: the folds are the same, and found faster for many rows.
        splitter = StratifiedKFold(n_folds, shuffle=True, random_state=0)
    fold = np.empty(len(train), np.int64)
    row_groups = None if isinstance(splitter, StratifiedKFold) else together
    for number, (_, left_out) in enumerate(splitter.split(fold, labels, row_groups)):
        fold[left_out] = number
    return fold
