"""Batches of rows in memory: gathered once per epoch, on the device if they fit, and split into views.

The chunk boundaries do not depend on `skip`. A batch therefore has the same memory alignment in a whole epoch and in a
resumed one, and kernels give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching.augment import apply_augmentations
from pipeline.batching.batch import Batch, BatchingOptions
from pipeline.data import tree
from pipeline.data.splits import Split
from pipeline.data.tree import Tree

CHUNK_BYTES = 1 << 28  # size of the chunks in which rows are gathered: 256 MB hold an epoch of most data sets


class InMemorySource:
    """A `BatchSource` for a split whose tensors are in memory; `prepare_targets` is called once, on all targets."""

    def __init__(self, train: Split, options: BatchingOptions) -> None:
        X, y, device = train.X, options.prepare_targets(train.y), options.device
        # At most half of the device's free memory: the rest is for the model, its activations and one gathered chunk.
        if device.type != "cpu" and _bytes(X) + _bytes(y) <= _free_bytes(device) // 2:
            X, y = (tree.map_leaves(lambda t: t.to(device), part) for part in (X, y))
        self.X, self.y, self.options = X, y, options
        update = options.batch * options.accumulate
        per_row = max(1, _bytes(X) // max(1, len(train)))
        self.chunk = max(1, CHUNK_BYTES // (per_row * update)) * update  # rows; a multiple of those in one update

    def accumulation_groups(self, epoch: int, skip: int = 0) -> Iterator[list[Batch]]:
        """As `BatchSource.accumulation_groups`."""
        order, size, batch = self.options.order(epoch), self.options.accumulate, self.options.batch
        first = skip * batch * size
        for start in range(first - first % self.chunk, len(order), self.chunk):
            batches = self._batches(order[start : start + self.chunk], epoch)
            for i in range(max(0, first - start) // batch, len(batches), size):
                yield batches[i : i + size]

    def _batches(self, rows: NDArray[np.int64], epoch: int) -> list[Batch]:
        """Gather these rows, augment them, and split them into batches."""
        options, size, index = self.options, self.options.batch, torch.from_numpy(rows)
        inputs = tree.to_device(tree.take_rows(self.X, index), options.device)
        targets = tree.to_device(tree.take_rows(self.y, index), options.device)
        if options.augmentations:
            inputs = apply_augmentations(inputs, options.augmentations, options.seed, epoch, rows, options.device)
        numbers = [rows[start : start + size] for start in range(0, len(rows), size)]
        return list(map(Batch, tree.chunks(inputs, size), tree.chunks(targets, size), numbers))

    def start(self) -> None:
        """There are no worker processes."""

    def close(self) -> None:
        """There are no worker processes."""


def _bytes(part: Tree) -> int:
    return sum(t.numel() * t.element_size() for t in tree.leaves(part))


def _free_bytes(device: torch.device) -> int:
    """Free memory of a device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return 0
