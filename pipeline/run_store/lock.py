"""One process per run: a kernel lock that ends with the process, also after kill -9, and that no child inherits.

A child that the user's code forks inherits everything else: the open ledger, and all frames of the pipeline above it.
If it comes back into them, it ends at once, without clean-up, because the clean-up belongs to its parent.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from pipeline.errors import UserError, fault
from pipeline.run_naming import run_argument

_owners: dict[Path, int] = {}  # the folders that one process writes alone, with the id of that process
_forked_at = ""  # in a forked child: `file:line` of the call that forked it


def _remember_fork() -> None:
    global _forked_at
    caller = sys._getframe(1)
    _forked_at = f"{caller.f_code.co_filename}:{caller.f_lineno}"


os.register_at_fork(after_in_child=_remember_fork)


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Inside the block this process writes the folder alone: a child that it forks ends before it writes there."""
    folder = folder.resolve()
    _owners[folder] = os.getpid()
    try:
        with ends_forked_children():
            yield
    finally:
        del _owners[folder]


@contextmanager
def ends_forked_children() -> Iterator[None]:
    """Let no child that is forked inside the block leave it: it ends, and what follows happens in its parent alone."""
    owner = os.getpid()
    try:
        yield
    finally:
        end_if_forked_from(owner)


def end_forked_writer(path: Path) -> None:
    """End this process if the folder around `path` belongs to the process that it was forked from."""
    for folder, owner in _owners.items():
        if owner != os.getpid() and path.absolute().is_relative_to(folder):
            _end_child()


def end_if_forked_from(owner: int) -> None:
    """End this process unless it is `owner`, by its id; any other process that gets here was forked by that one."""
    if os.getpid() != owner:
        _end_child()


def _end_child() -> NoReturn:
    """End the process without any clean-up, with the exit code that its `sys.exit` asked for, else with 1 and a reason.

    `os._exit` runs no `finally`, no exit handler, and no writing of buffers that were copied from the parent.
    """
    error, first = sys.exc_info()[1], None
    while error is not None and not isinstance(error, SystemExit | KeyboardInterrupt):
        error, first = error.__cause__ or error.__context__, error
    if isinstance(error, SystemExit):
        os._exit(error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None))
    if isinstance(error, KeyboardInterrupt):
        os._exit(130)
    what = "the child process forked here came back into the pipeline and was ended; its parent continues the run"
    raised = {"got": f"{type(first).__name__}: {str(first).partition(chr(10))[0]}"} if first else {}
    message = fault(_forked_at, what, **raised, do="end the child where its work ends: os._exit(0)")
    os.write(2, f"{message}\n".encode(errors="replace"))
    os._exit(1)


class RunLock:
    """Exclusive right to write one run directory, as a context manager.

    A POSIX record lock: the kernel releases it when the process dies, and neither `fork` nor `exec` hands it
    on, so that an orphaned worker cannot keep a run. It does not exclude this same process, hence `_owners`.
    Raises UserError when another process (or this one) holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = (run_dir / "lock").resolve()
        self._descriptor: int | None = None
        self._owner = os.getpid()

    def __enter__(self) -> RunLock:
        # The check comes before open: closing a second descriptor of the file would drop the lock we hold.
        folder = self.path.parent
        if folder in _owners:
            raise self._busy(_owners[folder])
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
        self._owner = _owners[folder] = os.getpid()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._descriptor is not None
        end_if_forked_from(self._owner)
        del _owners[self.path.parent]
        os.close(self._descriptor)
        self._descriptor = None

    def guards(self, path: Path) -> bool:
        """Whether the lock is held now, over the folder that this file lies in. Ends a forked child of the holder."""
        if self._descriptor is not None:
            end_if_forked_from(self._owner)
        return self._descriptor is not None and self.path.parent == path.parent.resolve()

    def _busy(self, holder: object) -> UserError:
        run_dir = self.path.parent
        return UserError(
            fault(
                str(run_dir),
                "another process is using this run",
                got=f"process {holder}",
                expected="one process per run",
                do=f"wait for it (python -m pipeline status {run_argument(run_dir)}), or choose another run.name=NAME",
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
