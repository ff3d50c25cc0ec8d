"""One process per run: a kernel lock that ends with the process, also after kill -9, and that no child inherits."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from pipeline.errors import UserError, fault

_held: set[Path] = set()


class RunLock:
    """Exclusive right to write one run directory, as a context manager.

    A POSIX record lock: the kernel releases it when the process dies, and neither `fork` nor `exec` hands it
    on, so that an orphaned worker cannot keep a run. It does not exclude this same process, hence `_held`.
    Raises UserError when another process (or this one) holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = (run_dir / "lock").resolve()
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        # The check comes before open: closing a second descriptor of the file would drop the lock we hold.
        if self.path in _held:
            raise self._busy(os.getpid())
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                fault(str(self.path), "cannot lock the run", got=error.strerror, do="choose a writable run.root=DIR")
            ) from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise self._busy(holder) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)  # only for the error message of a second process
        self._descriptor = descriptor
        _held.add(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._descriptor is not None
        _held.discard(self.path)
        os.close(self._descriptor)
        self._descriptor = None

    def guards(self, path: Path) -> bool:
        """Whether the lock is held now, over the folder that this file lies in."""
        return self._descriptor is not None and self.path.parent == path.parent.resolve()

    def _busy(self, holder: object) -> UserError:
        run_dir = self.path.parent
        return UserError(
            fault(
                str(run_dir),
                "another process is using this run",
                got=f"process {holder}",
                expected="one process per run",
                do=f"wait for it (python -m pipeline status {run_dir.name}), or choose another run.name=NAME",
            )
        )


def locked(path: Path, patience: float = 0.0) -> int | None:
    """A descriptor that holds the lock of this file or folder until it is closed.

    None where another process still holds the lock after `patience` seconds, or the path does not exist.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.01)
