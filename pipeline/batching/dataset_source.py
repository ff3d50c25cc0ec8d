"""Rows that are read anew in every epoch: a map-style Dataset through torch's DataLoader.

A row is a pure function of (seed, epoch, row number), so that the number of worker processes, what they read ahead and
where an epoch begins change nothing. One loader serves all epochs: the workers live until `close`, and read the first
rows of an epoch while the last of the one before are trained on.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from pipeline.batching.augment import augmented
from pipeline.batching.batch import Batch, Batching
from pipeline.batching.rows import NOT_FOR_READERS, Key, Rows, Unread, begin
from pipeline.data import tree
from pipeline.data.splits import Split
from pipeline.data.tree import Tree
from pipeline.errors import FivegateError, UserError, fault

Order = Callable[[int], NDArray[np.int64]]


class Positions(Sampler[list[Key]]):
    """The batches of all epochs from a position on, without end."""

    def __init__(self, order: Order, batch: int) -> None:
        self.order, self.batch = order, batch
        self.epoch, self.first = 1, 0

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, first = self.epoch, self.first
        while True:
            rows = self.order(epoch).tolist()
            for at in range(first * self.batch, len(rows), self.batch):
                yield [(epoch, row) for row in rows[at : at + self.batch]]
            epoch, first = epoch + 1, 0


class DatasetSource:
    """The feed of a split with `items`, read by `workers` processes, or here where there are none."""

    def __init__(self, train: Split, by: Batching, workers: int = 0) -> None:
        self.by, self.workers = by, workers
        self.positions = Positions(by.order, by.batch)
        self.loader = DataLoader(
            Rows(train, by.seed),
            batch_sampler=self.positions,
            num_workers=workers,
            collate_fn=_as_it_is,
            worker_init_fn=begin,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # the loader's own draws come from no generator of ours
        )
        self._read: Iterator[Any] | None = None
        self._processes: list[Any] = []
        self._stands = (1, 0)  # the epoch and batch that come next

    def start(self) -> None:
        """As `BatchSource.start`. Raises UserError for a Dataset that no other process can be given."""
        if not self.workers or self._read is not None:
            return
        try:
            with _undisturbed():
                self._read = iter(self.loader)
        except Exception as error:  # pickling, where processes are not forked, may fail in any way
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            what = f"no process can be started that reads the data ({reason})"
            raise UserError(fault("loader.num_workers", what, got=self.workers, do="loader.num_workers=0")) from error
        self._processes, self._owner = list(getattr(self._read, "_workers", ())), os.getpid()
        atexit.register(self.close)  # else Python waits for processes that do not heed its SIGTERM

    def windows(self, epoch: int, skip: int = 0) -> Iterator[list[Batch]]:
        """As `BatchSource.windows`. Raises FivegateError when a worker process died."""
        rows, window = self.by.order(epoch), list[Batch]()
        self._go_to(epoch, skip * self.by.accumulate)
        for at in range(skip * self.by.accumulate * self.by.batch, len(rows), self.by.batch):
            last = at + self.by.batch >= len(rows)
            read = self._next((epoch + 1, 0) if last else (epoch, at // self.by.batch + 1))
            window.append(self._batch(read, epoch, rows[at : at + self.by.batch]))
            if last or len(window) == self.by.accumulate:
                yield window
                window = []

    def _go_to(self, epoch: int, batch: int) -> None:
        """The next batch that is read is this one; what was read ahead for another is forgotten."""
        self.start()
        if self._read is None or self._stands != (epoch, batch):
            self.positions.epoch, self.positions.first = epoch, batch
            with self._answering():
                self._read = iter(self.loader)
            self._stands = (epoch, batch)

    def _next(self, stands: tuple[int, int]) -> tuple[Tree, Tree]:
        """What was read for the next batch; after it the loader `stands` there."""
        assert self._read is not None
        with self._answering():
            read = next(self._read)
        self._stands = stands
        if isinstance(read, Unread):
            raise UserError(*read.faults)
        return read

    def _batch(self, read: tuple[Tree, Tree], epoch: int, rows: NDArray[np.int64]) -> Batch:
        inputs, targets = tree.to(read, self.by.device)
        inputs = augmented(inputs, self.by.augment, self.by.seed, epoch, rows, self.by.device)
        return Batch(inputs, self.by.targets(targets), rows)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """An error in the block that comes from the death of a worker process is told as what it is."""
        try:
            yield
        except Exception as error:
            wait([process.sentinel for process in self._processes], timeout=1)  # its pipe closes before it is dead
            dead = [process for process in self._processes if not process.is_alive()]
            if not dead:
                raise
            what = "a process that reads the data died"
            do = "loader.num_workers=0 (9: memory may be short; 7: /dev/shm may be too small)"
            raise FivegateError(fault("loader.num_workers", what, got=_ending(dead[0]), do=do)) from error

    def close(self) -> None:
        """As `BatchSource.close`."""
        read, self._read = self._read, None
        if not self._processes or self._owner != os.getpid():
            return
        atexit.unregister(self.close)
        getattr(read, "_shutdown_workers", lambda: None)()
        for process in self._processes:  # one that sits in a row longer than torch waits
            process.kill()
            process.join()
        self._processes = []


def _as_it_is(read: Any) -> Any:
    return read


def _ending(process: Any) -> str:
    code = process.exitcode or 0
    return f"signal {-code}" if code < 0 else f"exit code {code}"


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Inside the block processes are forked: no signal reaches them before they ignore it.

    torch also leaves a handler that raises wherever we stand when a worker dies. We take ours back: the loader finds
    out by itself, when it is asked for rows, within five seconds.
    """
    main = threading.current_thread() is threading.main_thread()
    former = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_READERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if main and former is not None:
            signal.signal(signal.SIGCHLD, former)
