"""Writing checkpoints during training: the snapshot is a copy, and a thread writes its files."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.checkpoints import generation
from pipeline.checkpoints.generation import Snapshot
from pipeline.run_store.lock import end_if_forked_from


class Writer:
    """Writes one snapshot at a time to a folder. An error is raised by the next call from the training loop.

    Ends a forked child of the process that trains: it has no such thread, and would wait for it forever.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")  # starts with its first task
        self._task: Future[Path] | None = None
        self._owner = os.getpid()

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being written."""
        return self._task is not None and not self._task.done()

    def write(self, snapshot: Snapshot) -> None:
        """Start to write the snapshot after the one before it is written. Raises the error of that one."""
        self.wait()
        self._task = self._thread.submit(generation.write, self._folder, snapshot)

    def wait(self) -> Path | None:
        """Wait until everything is written and return the last path. Raises UserError if it could not be written."""
        end_if_forked_from(self._owner)
        return self._task.result() if self._task else None

    def raise_error(self) -> None:
        """Raise the error of a finished write, if there is one; never waits."""
        end_if_forked_from(self._owner)
        if self._task and self._task.done():
            self._task.result()

    def close(self) -> None:
        """Wait for the thread to end."""
        end_if_forked_from(self._owner)
        self._thread.shutdown()
