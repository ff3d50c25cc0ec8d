"""Batches from a map-style Dataset, which torch's DataLoader reads anew in every epoch.

A row is a pure function of (seed, epoch, row number). The number of worker processes, prefetching and the position at
which an epoch starts therefore change nothing. One loader serves all epochs: its workers live until `close`, and they
read the first rows of an epoch while the last batches of the previous epoch are trained on.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from pipeline.batching.augment import apply_augmentations
from pipeline.batching.batch import Batch, BatchingOptions, EpochOrder
from pipeline.batching.rows import TRAINING_SIGNALS, ReadFailure, RowDataset, RowKey, init_worker
from pipeline.data import tree
from pipeline.data.reading.items import slow_rows_told
from pipeline.data.splits import Split
from pipeline.data.tree import Tree
from pipeline.error_attribution import reraise_stop, text_of
from pipeline.errors import FivegateError, UserError, fault

RawBatch = tuple[Tree, Tree] | ReadFailure  # inputs and targets of a batch on the CPU, or why they cannot be read


class EpochBatchSampler(Sampler[list[RowKey]]):
    """The keys of all batches from (`epoch`, batch `first`) on, over all later epochs, without end."""

    def __init__(self, order: EpochOrder, batch: int) -> None:
        self.order, self.batch = order, batch
        self.epoch, self.first = 1, 0

    def __iter__(self) -> Iterator[list[RowKey]]:
        epoch, first = self.epoch, self.first
        while True:
            rows = self.order(epoch).tolist()
            for start in range(first * self.batch, len(rows), self.batch):
                yield [(epoch, row) for row in rows[start : start + self.batch]]
            epoch, first = epoch + 1, 0


class DatasetSource:
    """A `BatchSource` for a split with `items`, read by `workers` processes, or by this process if there are none."""

    def __init__(self, train: Split, options: BatchingOptions, workers: int = 0) -> None:
        self.options, self.workers = options, workers
        self.sampler = EpochBatchSampler(options.order, options.batch)
        self.loader = DataLoader(
            RowDataset(train, options.seed),
            batch_sampler=self.sampler,
            num_workers=workers,
            collate_fn=_identity,
            worker_init_fn=init_worker,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # without it the loader would draw from torch's global generator
        )
        self._batches: Iterator[RawBatch] | None = None
        self._workers: list[BaseProcess] = []
        self._position = (1, 0)  # epoch and batch number that the loader gives next
        self._is_waiting = False  # for rows; still True after an exception that cut the waiting off
        self._own_reading = ExitStack()  # of rows in this process

    def start(self) -> None:
        """As `BatchSource.start`. Raises UserError for a Dataset that cannot be sent to another process."""
        if self._batches is not None:
            return
        if not self.workers:
            self._own_reading.close()
            self._own_reading.enter_context(slow_rows_told())
            return
        try:
            with _signals_blocked():
                self._batches = iter(self.loader)
        except BaseException as error:  # pickling, where processes are not forked, may fail in any way
            reraise_stop(error)
            what = f"no process can be started that reads the data ({text_of(error)})"
            raise UserError(fault("loader.num_workers", what, got=self.workers, do="loader.num_workers=0")) from error
        self._workers, self._owner = list(getattr(self._batches, "_workers", ())), os.getpid()
        atexit.register(self.close)  # else Python waits at exit for processes that ignore its SIGTERM

    def accumulation_groups(self, epoch: int, skip: int = 0) -> Iterator[list[Batch]]:
        """As `BatchSource.accumulation_groups`. Raises FivegateError when a worker process died."""
        size, rows, group = self.options.batch, self.options.order(epoch), list[Batch]()
        self._seek(epoch, skip * self.options.accumulate)
        for start in range(skip * self.options.accumulate * size, len(rows), size):
            last = start + size >= len(rows)
            raw = self._read((epoch + 1, 0) if last else (epoch, start // size + 1))
            group.append(self._to_batch(raw, epoch, rows[start : start + size]))
            if last or len(group) == self.options.accumulate:
                yield group
                group = []

    def _seek(self, epoch: int, batch: int) -> None:
        """Make this batch the next one. Batches that the workers prefetched for another position are dropped."""
        self.start()
        if self._batches is None or self._position != (epoch, batch):
            self.sampler.epoch, self.sampler.first = epoch, batch
            with self._attribute_worker_death():
                self._batches = iter(self.loader)
            self._position = (epoch, batch)

    def _read(self, next_position: tuple[int, int]) -> tuple[Tree, Tree]:
        """Return inputs and targets of the next batch; the loader is at `next_position` afterwards."""
        assert self._batches is not None
        self._is_waiting = True
        with self._attribute_worker_death():
            raw = next(self._batches)
        self._is_waiting = False
        self._position = next_position
        if isinstance(raw, ReadFailure):
            raise raw.error()
        return raw

    def _to_batch(self, raw: tuple[Tree, Tree], epoch: int, rows: NDArray[np.int64]) -> Batch:
        options = self.options
        inputs, targets = tree.to_device(raw, options.device)
        inputs = apply_augmentations(inputs, options.augmentations, options.seed, epoch, rows, options.device)
        return Batch(inputs, options.prepare_targets(targets), rows)

    @contextmanager
    def _attribute_worker_death(self) -> Iterator[None]:
        """Turn an error inside the block into a FivegateError if a worker process died; other errors pass."""
        try:
            yield
        except Exception as error:
            # The pipe of a worker closes before the worker counts as dead: wait for it.
            wait([process.sentinel for process in self._workers], timeout=1)
            dead = [process for process in self._workers if not process.is_alive()]
            if not dead:
                raise
            what = "a process that reads the data died"
            do = "loader.num_workers=0 (9: memory may be short; 7: /dev/shm may be too small)"
            do = do if dead[0].exitcode else "take os._exit out of the Dataset: it ends the process that reads a row"
            raise FivegateError(fault("loader.num_workers", what, got=_format_exit(dead[0]), do=do)) from error

    def close(self) -> None:
        """As `BatchSource.close`."""
        batches, self._batches = self._batches, None
        self._own_reading.close()
        if not self._workers or self._owner != os.getpid():
            return
        try:
            if self._is_waiting:  # a worker may be stuck in reading a row, and torch waits five seconds for each
                self._kill_workers()
            getattr(batches, "_shutdown_workers", lambda: None)()
        finally:  # also when a signal interrupts it: Python would wait at exit for a worker that lives
            self._kill_workers()
            for process in self._workers:
                process.join()
            self._workers = []
            atexit.unregister(self.close)

    def _kill_workers(self) -> None:
        for process in self._workers:
            process.kill()


def _identity(raw: object) -> object:
    """`collate_fn` of the loader: RowDataset returns whole batches already."""
    return raw


def _format_exit(process: BaseProcess) -> str:
    code = process.exitcode or 0
    return f"signal {-code}" if code < 0 else f"exit code {code}"


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals while worker processes are forked, so that none arrives before a worker ignores it.

    torch also installs a SIGCHLD handler that raises at any point of this process when a worker dies. It is removed
    again: the loader notices a dead worker by itself within five seconds of being asked for rows.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, TRAINING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if main and handler is not None:
            signal.signal(signal.SIGCHLD, handler)
