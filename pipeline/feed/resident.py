"""Rows that lie in memory: gathered once per epoch, on the device where they fit, and cut into batches that are views.

Batches of views have the same memory alignment whether an epoch is trained whole or resumed, since chunks are cut
where they are for every `skip`; so kernels give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data import tree
from pipeline.data.splits import Split
from pipeline.data.tree import Tree
from pipeline.feed.augment import Augmentation, augmented
from pipeline.feed.batch import Batch

CHUNK_BYTES = 1 << 28  # rows gathered at once; all of an epoch's for most data sets


class Resident:
    """The feed of a split whose tensors are in memory; `order(epoch)` are its row numbers, in order.

    `targets` is applied once to all targets.
    """

    def __init__(
        self,
        train: Split,
        order: Callable[[int], NDArray[np.int64]],
        *,
        seed: int,
        batch: int,
        accumulate: int,
        device: torch.device,
        augment: Sequence[Augmentation] = (),
        targets: Callable[[Tree], Tree] = lambda y: y,
    ) -> None:
        X, y = train.X, targets(train.y)
        if device.type != "cpu" and _bytes(X) + _bytes(y) <= room(device) // 2:
            X, y = (tree.each(lambda t: t.to(device), part) for part in (X, y))
        self.X, self.y = X, y
        self.order, self.seed, self.device, self.augment = order, seed, device, tuple(augment)
        self.batch, self.accumulate = batch, accumulate
        update = batch * accumulate
        per_row = max(1, _bytes(X) // max(1, len(train)))
        self.chunk = max(1, CHUNK_BYTES // (per_row * update)) * update

    def windows(self, epoch: int, skip: int = 0) -> Iterator[list[Batch]]:
        """As `Feed.windows`."""
        order, size = self.order(epoch), self.accumulate
        first = skip * self.batch * size
        for at in range(first - first % self.chunk, len(order), self.chunk):
            batches = self._batches(order[at : at + self.chunk], epoch)
            for i in range(max(0, first - at) // self.batch, len(batches), size):
                yield batches[i : i + size]

    def _batches(self, rows: NDArray[np.int64], epoch: int) -> list[Batch]:
        """These rows, gathered, augmented and cut."""
        chosen = torch.from_numpy(rows)
        inputs = tree.to(tree.take(self.X, chosen), self.device)
        targets = tree.to(tree.take(self.y, chosen), self.device)
        if self.augment:
            inputs = augmented(inputs, self.augment, self.seed, epoch, rows, self.device)
        cut = [rows[at : at + self.batch] for at in range(0, len(rows), self.batch)]
        return list(map(Batch, tree.split(inputs, self.batch), tree.split(targets, self.batch), cut))

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
