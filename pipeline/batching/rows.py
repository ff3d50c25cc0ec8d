"""What a worker process of the loader runs: reading and checking rows of the user's Dataset."""

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
from pipeline.data.reading.items import (
    check_same_shapes,
    isolated_reading,
    leaf_shapes,
    read_item,
    stack_rows,
    tell_slow_row,
)
from pipeline.data.splits import Split
from pipeline.data.tree import Tree
from pipeline.errors import UserCodeError, UserError, fault

RowKey = tuple[int, int]  # (epoch, row)
TRAINING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # only the training process handles these


@dataclass(frozen=True)
class ReadFailure:
    """Why the rows of a batch cannot be read; sent through the loader, which would wrap an exception."""

    faults: tuple[str, ...]
    place: str = ""  # the line of the user's code that failed, if any
    kind: type[UserCodeError] = UserCodeError  # of that failure

    def error(self) -> UserError:
        """The error that `read_item` raised in the worker."""
        return self.kind(*self.faults, place=self.place) if self.place else UserError(*self.faults)


class RowDataset(Dataset[Any]):
    """Whole batches of a split's Dataset, each row checked against the shapes and types of the split."""

    def __init__(self, train: Split, seed: int) -> None:
        assert train.dataset is not None
        self.dataset, self.seed, self.where = train.dataset, seed, f"data.{train.name}"
        self.shapes = leaf_shapes((train.X, train.y), skip=1)
        self.types = tree.map_leaves(lambda t: t[:0].numpy().dtype, (train.X, train.y))
        self.classes = not train.y.is_floating_point() and train.y.ndim == 1 and int(train.y.min()) >= 0

    def __getitem__(self, key: RowKey) -> tuple[Tree, Tensor] | ReadFailure:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[RowKey]) -> tuple[Tree, Tensor] | ReadFailure:
        """Return inputs and targets of these rows, [B, ...], or why they cannot be read; each row has its own seed."""
        with isolated_reading():
            try:
                rows = [self._read_row(epoch, index) for epoch, index in keys]
            except UserCodeError as error:
                return ReadFailure(error.faults, error.place, type(error))
            except UserError as error:
                return ReadFailure(error.faults)
        return _to_tensors(stack_rows(rows), self.types)

    def _read_row(self, epoch: int, index: int) -> tuple[Tree, NDArray[Any]]:
        where = f"{self.where}[{index}]"
        inputs, target = read_item(self.dataset, index, self.where, seed=self.seed, epoch=epoch)
        if self.classes and target.shape == (1,):
            target = target[0]
        check_same_shapes((inputs, target), self.shapes, where)
        for leaf in (*tree.leaves(inputs), target):
            if leaf.dtype.kind not in "biuf":
                raise UserError(
                    fault(where, "has values that are not numbers", got=f"dtype {leaf.dtype}", expected="numbers")
                )
        if self.classes and not (target >= 0 and target == np.round(target)):
            expected = "whole numbers from 0"
            raise UserError(fault(where, "the target is not a class id", got=target, expected=expected))
        return inputs, target


def _to_tensors(arrays: Tree, types: Tree) -> Tree:
    """Convert arrays to tensors in the structure and types of the split."""
    if isinstance(types, dict):
        return {name: _to_tensors(arrays[name], part) for name, part in types.items()}
    if isinstance(types, tuple):
        return tuple(_to_tensors(array, part) for array, part in zip(arrays, types, strict=True))
    with np.errstate(over="ignore"):
        return torch.from_numpy(arrays.astype(types, copy=False))


def init_worker(worker: int) -> None:
    """Make a worker process ignore the signals of the training process, and end when that process ends."""
    for number in TRAINING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TRAINING_SIGNALS)  # they were blocked during the fork
    parent = multiprocessing.parent_process()
    threading.Thread(target=_exit_with_parent, args=(parent.pid if parent else None,), daemon=True).start()


def _exit_with_parent(parent: int | None) -> None:
    """Watch the parent process, and name rows that take long.

    torch watches the parent too, but may then wait for a queue whose lock a dead worker holds.
    """
    while os.getppid() == parent:
        time.sleep(0.5)
        tell_slow_row()
    os._exit(0)
