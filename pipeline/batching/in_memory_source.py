"""Rows that lie in memory: gathered once per epoch, on the device where they fit, and cut into batches that are views.

Batches of views have the same memory alignment whether an epoch is trained whole or resumed, since chunks are cut
where they are for every `skip`; so kernels give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching.augment import augmented
from pipeline.batching.batch import Batch, Batching
from pipeline.data import tree
from pipeline.data.splits import Split
from pipeline.data.tree import Tree

CHUNK_BYTES = 1 << 28  # rows gathered at once; all of an epoch's for most data sets


class InMemorySource:
    """The feed of a split whose tensors are in memory; `by.targets` is applied once to all targets."""

    def __init__(self, train: Split, by: Batching) -> None:
        X, y, device = train.X, by.targets(train.y), by.device
        if device.type != "cpu" and _bytes(X) + _bytes(y) <= room(device) // 2:
            X, y = (tree.each(lambda t: t.to(device), part) for part in (X, y))
        self.X, self.y, self.by = X, y, by
        update = by.batch * by.accumulate
        per_row = max(1, _bytes(X) // max(1, len(train)))
        self.chunk = max(1, CHUNK_BYTES // (per_row * update)) * update

    def windows(self, epoch: int, skip: int = 0) -> Iterator[list[Batch]]:
        """As `BatchSource.windows`."""
        order, size, batch = self.by.order(epoch), self.by.accumulate, self.by.batch
        first = skip * batch * size
        for at in range(first - first % self.chunk, len(order), self.chunk):
            batches = self._batches(order[at : at + self.chunk], epoch)
            for i in range(max(0, first - at) // batch, len(batches), size):
                yield batches[i : i + size]

    def _batches(self, rows: NDArray[np.int64], epoch: int) -> list[Batch]:
        """These rows, gathered, augmented and cut."""
        by, size, chosen = self.by, self.by.batch, torch.from_numpy(rows)
        inputs = tree.to(tree.take(self.X, chosen), by.device)
        targets = tree.to(tree.take(self.y, chosen), by.device)
        if by.augment:
            inputs = augmented(inputs, by.augment, by.seed, epoch, rows, by.device)
        numbers = [rows[at : at + size] for at in range(0, len(rows), size)]
        return list(map(Batch, tree.split(inputs, size), tree.split(targets, size), numbers))

    def start(self) -> None:
        """There is nothing to start."""

    def close(self) -> None:
        """There is nothing to end."""


def _bytes(part: Tree) -> int:
    return sum(t.numel() * t.element_size() for t in tree.leaves(part))


def room(device: torch.device) -> int:
    """Free bytes of a device's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return 0
