"""A batch, the options that turn rows into batches, and the protocol of a source of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.batching.augment import Augmentation
from pipeline.data.tree import Tree

EpochOrder = Callable[[int], NDArray[np.int64]]  # epoch -> the row numbers of that epoch, in the order of training


@dataclass(eq=False, slots=True)  # not frozen: a frozen one takes three times as long to make (0.2 µs more)
class Batch:
    """Rows on the device: inputs and targets [B, ...], maybe nested, and their row numbers in the train split."""

    inputs: Tree
    targets: Tree
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class BatchingOptions:
    """How rows become batches.

    `order(epoch)` gives row numbers, `batch` is the number of rows in a batch, `accumulate` the number of batches in
    one update, and `prepare_targets` converts targets to the form that the loss takes.
    """

    order: EpochOrder
    seed: int
    batch: int
    accumulate: int
    device: torch.device
    augmentations: tuple[Augmentation, ...]
    prepare_targets: Callable[[Tree], Tree]


class BatchSource(Protocol):
    """Batches of every epoch: a pure function of (seed, epoch), whatever process reads the rows and when."""

    def accumulation_groups(self, epoch: int, skip: int = 0) -> Iterator[list[Batch]]:
        """Yield lists of `accumulate` batches, one list per update; the last list and the last batch may be smaller.

        `skip` leaves out that many lists at the start; the remaining ones do not change, bit for bit. Raises UserError
        naming the row that cannot be read.
        """

    def start(self) -> None:
        """Fork the worker processes, if there are any. Call it before this process starts threads."""

    def close(self) -> None:
        """End all worker processes."""
