"""What a training is fed: batches, in windows of as many as one update takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching.augment import Augmentation
from pipeline.data.tree import Tree


@dataclass(eq=False, slots=True)  # not frozen, which would triple the cost of making one: 0.2 µs
class Batch:
    """Some rows on the device: inputs and targets [B, ...], maybe nested, and their row numbers in the train split."""

    inputs: Tree
    targets: Tree
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Batching:
    """How rows become batches: `order(epoch)` are row numbers, `targets` gives what the loss needs of the targets."""

    order: Callable[[int], NDArray[np.int64]]
    seed: int
    batch: int
    accumulate: int
    device: torch.device
    augment: tuple[Augmentation, ...]
    targets: Callable[[Tree], Tree]


class BatchSource(Protocol):
    """The rows of every epoch, a pure function of (seed, epoch), wherever and by whomever they are read."""

    def windows(self, epoch: int, skip: int = 0) -> Iterator[list[Batch]]:
        """Lists of `accumulate` batches, each list the share of one update; the last list and batch may be smaller.

        `skip` leaves out that many lists at the start; the others are what they would have been, bit by bit.
        Raises UserError naming the row that cannot be read.
        """

    def start(self) -> None:
        """Worker processes, if there are any, are forked here: before any thread of ours exists."""

    def close(self) -> None:
        """No worker process is left."""
