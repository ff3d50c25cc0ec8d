"""The feed of a training: from a split and an order of its rows to batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching.augment import Augmentation
from pipeline.batching.batch import Batch, Batching, BatchSource
from pipeline.batching.dataset_source import DatasetSource
from pipeline.batching.in_memory_source import InMemorySource
from pipeline.data.splits import Split
from pipeline.data.tree import Tree

__all__ = ["Batch", "BatchSource", "batch_source"]


def batch_source(
    train: Split,
    order: Callable[[int], NDArray[np.int64]],
    *,
    seed: int,
    batch: int,
    accumulate: int,
    device: torch.device,
    workers: int = 0,
    augment: Sequence[Augmentation] = (),
    targets: Callable[[Tree], Tree] = lambda y: y,
) -> BatchSource:
    """Tensors are gathered once per epoch; a Dataset (`train.items`) is read anew in every epoch, by `workers`.

    `order(epoch)` gives row numbers in any number, `targets` what the loss needs of the targets; `augment` comes from
    `build_augmentations`.
    """
    by = Batching(order, seed, batch, accumulate, device, tuple(augment), targets)
    return InMemorySource(train, by) if train.items is None else DatasetSource(train, by, workers)
