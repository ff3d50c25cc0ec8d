"""Changes of the train rows for an experiment; validation and test rows never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from pipeline.data.analysis.label_agreement import label_agreement
from pipeline.data.folds import assign_folds
from pipeline.data.splits import Split
from pipeline.data.tree import map_leaves
from pipeline.errors import UserError, fault
from pipeline.runtime.seeds import derive

SPREADS = 5.0  # robust deviations from the median of a column at which `clipped` ends: normal values stay


def apply_row_changes(train: Split, changes: Mapping[str, object], seed: int, val: Split | None = None) -> Split:
    """The train rows of a job with these changes, as they were read into memory.

    `inputs: zeroed` removes what could be learned from, `targets: shuffled` what could be learned, and
    `without_fold: [k, n_folds]` leaves out fold k of `assign_folds`. `inputs: clipped` and `targets: clipped` limit
    each column to 5 robust deviations around its median, `without: shared` leaves out the rows that validation has as
    well, and `without: [row, ...]` those rows. `labels: agreeing` keeps the rows whose targets a simple model fitted on
    other rows expects, and `labels: as_many` a random part of the same size. `read: memory` changes no row. Raises
    UserError for any other change.
    """
    for name, how in changes.items():
        if name == "inputs" and how == "zeroed":
            train = Split(train.name, map_leaves(torch.zeros_like, train.X), train.y)
        elif name == "targets" and how == "shuffled":
            # A permutation keeps the class counts: only the relation to the features is lost.
            order = np.random.default_rng(derive(seed, "shuffled")).permutation(len(train))
            train = Split(train.name, train.X, train.y[torch.from_numpy(order)])
        elif name == "inputs" and how == "clipped":
            train = Split(train.name, map_leaves(_clipped, train.X), train.y, row_metadata=train.row_metadata)
        elif name == "targets" and how == "clipped" and train.y.is_floating_point():
            train = Split(train.name, train.X, _clipped(train.y), row_metadata=train.row_metadata)
        elif name == "without" and how == "shared" and val is not None:
            known = set(val.row_digests)
            own = [i for i, row in enumerate(train.row_digests) if row not in known]
            train = train.take(torch.tensor(own, dtype=torch.int64))
        elif name == "without" and isinstance(how, Sequence) and not isinstance(how, str):
            remaining = np.setdiff1d(np.arange(len(train)), np.array(how, np.int64))
            train = train.take(torch.from_numpy(remaining))
        elif name == "labels" and how in ("agreeing", "as_many"):
            train = train.take(_chosen_by_labels(train, str(how), seed))
        elif name == "read" and how == "memory":
            train = Split(train.name, train.X, train.y, row_metadata=train.row_metadata)
        elif name == "without_fold" and isinstance(how, Sequence):
            fold, n_folds = how
            outside = assign_folds(train, int(n_folds)) != int(fold)
            train = train.take(torch.from_numpy(np.flatnonzero(outside)))
        else:
            got = f"{name}: {how}"
            expected = "inputs: zeroed or clipped, targets: shuffled or clipped, without_fold: [k, n_folds], "
            expected += "without: shared or [row, ...], labels: agreeing or as_many, or read: memory"
            raise UserError(fault("job.delta.train_rows", "is not a change of rows", got=got, expected=expected))
    return train


def _chosen_by_labels(train: Split, how: str, seed: int) -> torch.Tensor:
    """The numbers of the rows whose targets agree with a simple model, or of as many rows by chance."""
    agreeing = np.flatnonzero(label_agreement(train).agrees)
    if how == "as_many":
        agreeing = np.sort(np.random.default_rng(derive(seed, "as_many")).permutation(len(train))[: len(agreeing)])
    return torch.from_numpy(agreeing)


def _clipped(values: torch.Tensor) -> torch.Tensor:
    """The values [N, ...] with each column limited around its median; columns without a spread stay as they are."""
    if not values.is_floating_point():
        return values
    rows = values.reshape(len(values), -1)
    center = rows.nanmedian(0).values
    spread = 1.4826 * (rows - center).abs().nanmedian(0).values  # equals the deviation of a normal distribution
    reach = torch.where(spread > 0, SPREADS * spread, torch.full_like(spread, torch.inf))
    return rows.clamp(center - reach, center + reach).reshape(values.shape)
