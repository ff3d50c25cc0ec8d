"""One process per run: a kernel lock held for life, gone with kill -9, never inherited by a child."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)  # for the message of whoever comes second, nothing else
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
                "another process works on this run",
                got=f"process {holder}",
                expected="one process per run",
                do=f"wait for it (python -m pipeline status {run_dir.name}), or choose another run.name=NAME",
            )
        )


def locked(path: Path, patience: float = 0.0) -> int | None:
    """A descriptor that holds the lock of this file or folder, for whoever closes it.

    None where another process still holds it after `patience` seconds, or nothing is there.
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


@contextmanager
def shares(path: Path, wanted: int, total: int) -> Iterator[None]:
    """Inside the block `wanted` of the `total` shares that processes have in the file are this one's; waits for them.

    Who waits for several does so alone, so that no two wait for each other. A process takes part once at a time.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, total)  # the byte behind the shares: whose turn it is to take some
        mine: set[int] = set()
        while len(mine) < min(wanted, total):
            free = next((byte for byte in range(total) if byte not in mine and _took(descriptor, byte)), None)
            if free is None:
                time.sleep(0.05)
            else:
                mine.add(free)
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, total)
        yield
    finally:
        os.close(descriptor)


def _took(descriptor: int, byte: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except OSError:
        return False
    return True
