"""What a process that reads has in hand: the user's Dataset, and what one row of it must look like."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.data import tree
from pipeline.data.reading.items import read_item, reading, require_alike, shapes_of, stack
from pipeline.data.splits import Split
from pipeline.data.tree import Tree
from pipeline.errors import UserError, fault

Key = tuple[int, int]  # (epoch, row)
NOT_FOR_READERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the process that trains answers them, and ends us


@dataclass(frozen=True)
class Unread:
    """What comes back instead of rows that cannot be read."""

    faults: tuple[str, ...]


class Rows(Dataset[Any]):
    """Whole batches of a split's Dataset, in the shapes and types of its rows as they were first read."""

    def __init__(self, train: Split, seed: int) -> None:
        self.items, self.seed, self.where = train.items, seed, f"data.{train.name}"
        self.shapes = shapes_of((train.X, train.y), skip=1)
        self.types = tree.each(lambda t: t[:0].numpy().dtype, (train.X, train.y))
        self.classes = not train.y.is_floating_point() and train.y.ndim == 1 and int(train.y.min()) >= 0

    def __getitem__(self, key: Key) -> tuple[Tree, Tensor] | Unread:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Key]) -> tuple[Tree, Tensor] | Unread:
        """Inputs and targets of these rows, [B, ...], or why there are none; each row under a seed of its own."""
        with reading():
            try:
                rows = [self._row(epoch, index) for epoch, index in keys]
            except UserError as error:
                return Unread(error.faults)
        return typed(stack(rows), self.types)

    def _row(self, epoch: int, index: int) -> tuple[Tree, NDArray[Any]]:
        where = f"{self.where}[{index}]"
        inputs, target = read_item(self.items, index, self.where, seed=self.seed, epoch=epoch)
        if self.classes and target.shape == (1,):
            target = target[0]
        require_alike((inputs, target), self.shapes, where)
        for leaf in (*tree.leaves(inputs), target):
            if leaf.dtype.kind not in "biuf":
                raise UserError(fault(where, "holds no numbers", got=f"dtype {leaf.dtype}", expected="numbers"))
        if self.classes and not (target >= 0 and target == np.round(target)):
            raise UserError(fault(where, "the target is no class id", got=target, expected="whole numbers from 0"))
        return inputs, target


def typed(arrays: Tree, types: Tree) -> Tree:
    """Tensors in the structure and types that the split has."""
    if isinstance(types, dict):
        return {name: typed(arrays[name], part) for name, part in types.items()}
    if isinstance(types, tuple):
        return tuple(typed(array, part) for array, part in zip(arrays, types, strict=True))
    with np.errstate(over="ignore"):
        return torch.from_numpy(arrays.astype(types, copy=False))


def begin(worker: int) -> None:
    """A worker process takes no signal that is meant for the one that trains, and does not outlive it."""
    for number in NOT_FOR_READERS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NOT_FOR_READERS)  # blocked while we were forked
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=(parent.pid if parent else None,), daemon=True).start()


def _end_with(parent: int | None) -> None:
    """torch looks, too, but then waits for a queue whose lock another worker may have died with."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)
