"""Writing checkpoints beside training: the snapshot is taken at once, its files are written by a thread."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.checkpoints import generation
from pipeline.checkpoints.generation import Snapshot


class Writer:
    """Writes one snapshot at a time to a folder. What goes wrong is raised by the next call from the training."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")  # starts with its first task
        self._task: Future[Path] | None = None

    @property
    def busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def write(self, snapshot: Snapshot) -> None:
        """The snapshot will be written; waits for the one before it. Raises what that one met."""
        self.wait()
        self._task = self._thread.submit(generation.write, self._folder, snapshot)

    def wait(self) -> Path | None:
        """Everything offered is on disk; where the last one stands. Raises UserError when the disk refused."""
        return self._task.result() if self._task else None

    def raise_error(self) -> None:
        """Raises what a finished write met; never waits."""
        if self._task and self._task.done():
            self._task.result()

    def close(self) -> None:
        """The thread has ended."""
        self._thread.shutdown()
