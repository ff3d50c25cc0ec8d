"""The batches of a training: from a split and an order of its rows to batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pipeline.batching.augment import Augmentation
from pipeline.batching.batch import Batch, BatchingOptions, BatchSource, EpochOrder
from pipeline.batching.dataset_source import DatasetSource
from pipeline.batching.in_memory_source import InMemorySource
from pipeline.data.splits import Split
from pipeline.data.tree import Tree

__all__ = ["Batch", "BatchSource", "batch_source"]


def batch_source(
    train: Split,
    order: EpochOrder,
    *,
    seed: int,
    batch: int,
    accumulate: int,
    device: torch.device,
    workers: int = 0,
    augment: Sequence[Augmentation] = (),
    targets: Callable[[Tree], Tree] = lambda y: y,
) -> BatchSource:
    """Return an `InMemorySource` for tensors, or a `DatasetSource` with `workers` processes for `train.dataset`.

    `order(epoch)` gives the row numbers of an epoch, as many as it likes. `targets` converts targets to the form that
    the loss takes. `augment` comes from `build_augmentations`.
    """
    options = BatchingOptions(order, seed, batch, accumulate, device, tuple(augment), targets)
    return InMemorySource(train, options) if train.dataset is None else DatasetSource(train, options, workers)
