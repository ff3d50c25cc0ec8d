"""Changes of the train rows for an experiment; validation and test rows never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pipeline.data.folds import assign_folds
from pipeline.data.splits import Split
from pipeline.data.tree import map_leaves
from pipeline.errors import UserError, fault
from pipeline.runtime.seeds import derive


def apply_row_changes(train: Split, changes: Mapping[str, object], seed: int) -> Split:
    """The train rows of a job with these changes, as they were read into memory.

    `inputs: zeroed` removes what could be learned from, `targets: shuffled` what could be learned, and
    `without_fold: [k, n_folds]` leaves out fold k of `assign_folds`. Raises UserError for any other change.
    """
    for name, how in changes.items():
        if name == "inputs" and how == "zeroed":
            train = Split(train.name, map_leaves(torch.zeros_like, train.X), train.y)
        elif name == "targets" and how == "shuffled":
            # A permutation keeps the class counts: only the relation to the features is lost.
            order = np.random.default_rng(derive(seed, "shuffled")).permutation(len(train))
            train = Split(train.name, train.X, train.y[torch.from_numpy(order)])
        elif name == "without_fold" and isinstance(how, Sequence):
            fold, n_folds = how
            outside = assign_folds(train, int(n_folds)) != int(fold)
            train = train.take(torch.from_numpy(np.flatnonzero(outside)))
        else:
            got, expected = f"{name}: {how}", "inputs: zeroed, targets: shuffled, or without_fold: [k, n_folds]"
            raise UserError(fault("job.delta.train_rows", "is not a change of rows", got=got, expected=expected))
    return train
