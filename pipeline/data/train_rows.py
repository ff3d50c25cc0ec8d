"""Changes of the train rows that an experiment asks for; validation and test rows never change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pipeline.data.folds import folds_of
from pipeline.data.splits import Split
from pipeline.data.tree import each
from pipeline.errors import UserError, fault
from pipeline.runtime.seeds import derive


def changed(train: Split, asked: Mapping[str, Any], seed: int) -> Split:
    """The train rows of a job, as they were read once.

    `inputs: zeroed` leaves nothing to learn from, `targets: shuffled` nothing to learn, `without_fold: [k, parts]`
    leaves out the k-th fold of `folds_of`. Raises UserError for any other change.
    """
    for name, how in asked.items():
        if name == "inputs" and how == "zeroed":
            train = Split(train.name, each(torch.zeros_like, train.X), train.y)
        elif name == "targets" and how == "shuffled":
            order = np.random.default_rng(derive(seed, "shuffled")).permutation(len(train))
            train = Split(train.name, train.X, train.y[torch.from_numpy(order)])
        elif name == "without_fold":
            fold, parts = how
            kept = folds_of(train, int(parts)) != int(fold)
            train = train.take(torch.from_numpy(np.flatnonzero(kept)))
        else:
            got, expected = f"{name}: {how}", "inputs: zeroed, targets: shuffled, or without_fold: [k, parts]"
            raise UserError(fault("job.delta.train_rows", "is no change of rows", got=got, expected=expected))
    return train
