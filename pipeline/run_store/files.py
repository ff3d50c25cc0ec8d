"""The only module that writes files: a file is written completely or not at all, and survives a power cut.

A file is written under a temporary name in the same folder, synced and renamed, and the folder is synced. Every system
call passes a numbered fault point, so that a test can make exactly the k-th one fail or kill the process there:
`FIVEGATE_FAULT=ENOSPC@3` raises, `FIVEGATE_FAULT=kill@3` sends SIGKILL, `FIVEGATE_FAULT=short@3` writes half. A process
that the user's code forked ends there too: the files of a run belong to the process that holds its lock.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from pipeline.errors import DiskError, fault
from pipeline.results import plain
from pipeline.run_store.lock import end_forked_writer

Hook = Callable[[str, Path], bool]

_ADVICE = {
    errno.ENOSPC: "free some space and repeat the command; what was recorded is safe",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f) and repeat the command",
    errno.ENOENT: "the run may have been removed while it was running; repeat the command",
    errno.EDQUOT: "free some of the quota and repeat the command; what was recorded is safe",
    errno.EROFS: "choose a writable folder with run.root=DIR",
    errno.EACCES: "choose a writable folder with run.root=DIR",
    errno.EPERM: "choose a writable folder with run.root=DIR",
}


def _hook_from_environment() -> Hook | None:
    """The fault that `FIVEGATE_FAULT=<kill|short|ERRNO>@<k>` sets, at the k-th call of this process."""
    spec = os.environ.get("FIVEGATE_FAULT")
    if not spec:
        return None
    kind, _, k = spec.partition("@")
    calls = count(1)

    def hook(operation: str, path: Path) -> bool:
        if next(calls) != int(k):
            return False
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "short":
            return operation == "write"
        raise OSError(getattr(errno, kind), os.strerror(getattr(errno, kind)), str(path))

    return hook


_hook: Hook | None = _hook_from_environment()


@contextmanager
def fault_points(hook: Hook) -> Iterator[None]:
    """Call `hook(operation, path)` before every system call inside the block; True asks for a short write."""
    global _hook
    previous, _hook = _hook, hook
    try:
        yield
    finally:
        _hook = previous


def _point(operation: str, path: Path) -> bool:
    end_forked_writer(path)
    return _hook is not None and _hook(operation, path)


@contextmanager
def _as_disk_error(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        do = _ADVICE.get(error.errno or 0)
        raise DiskError(fault(str(path), f"cannot {doing}", got=error.strerror or str(error), do=do)) from error


def _write_and_sync(descriptor: int, data: bytes, path: Path) -> None:
    short = _point("write", path)
    written = os.write(descriptor, data[: len(data) // 2] if short else data)
    while not short and written < len(data):
        written += os.write(descriptor, data[written:])
    if short:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    _point("fsync", path)
    os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Sync a folder, so that the names inside it survive a power cut."""
    _point("fsync_folder", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def folder(path: Path) -> Path:
    """Create the folder with its parents, unless it exists. Raises DiskError where it cannot be created."""
    with _as_disk_error(path, "make the folder"):
        if not path.is_dir():
            _point("mkdir", path)
            path.mkdir(parents=True, exist_ok=True)
            sync_folder(path.parent)
    return path


def claim(path: Path) -> bool:
    """Create the folder; True for the one caller that created it, False where it exists already."""
    with _as_disk_error(path, "make the folder"):
        _point("mkdir", path)
        try:
            path.mkdir()
        except FileExistsError:
            return False
        sync_folder(path.parent)
    return True


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the content of the file, completely or not at all. Raises DiskError when the disk refuses."""
    folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _as_disk_error(path, "write"):
        try:
            _point("open", temporary)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                _write_and_sync(descriptor, data, temporary)
            finally:
                os.close(descriptor)
            _point("rename", path)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def create_private(path: Path, data: bytes) -> None:
    """Create a file that only this user can read, in a folder that only this user can change.

    A file that another process created in the meantime is left as it is. Raises OSError where the disk refuses.
    """
    _point("mkdir", path.parent)
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    _point("open", temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            _write_and_sync(descriptor, data, temporary)
        finally:
            os.close(descriptor)
        _point("link", path)
        with suppress(FileExistsError):
            os.link(temporary, path)  # unlike a rename, it never replaces a file
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write the value as indented JSON with sorted keys; non-finite numbers become strings."""
    write_text(path, json.dumps(plain(value), sort_keys=True, indent=2, allow_nan=False) + "\n")


def append_line(path: Path, line: bytes) -> None:
    """Append a line with one write and sync it. Raises DiskError when the disk refuses."""
    created = not path.exists()
    with _as_disk_error(path, "append"):
        _point("open", path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _write_and_sync(descriptor, line, path)
        finally:
            os.close(descriptor)
        if created:
            sync_folder(path.parent)


def truncate(path: Path, length: int) -> None:
    """Cut the file to `length` bytes."""
    with _as_disk_error(path, "truncate"):
        _point("truncate", path)
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, length)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False, with nothing changed, where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux; glibc 2.28, musl 1.2.6
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0


def _set_in_place(temporary: Path, final: Path) -> Path | None:
    """Rename `temporary` to `final`; returns where the folder that had the name is now, None if there was none."""
    _point("rename", final)
    if not final.exists():
        os.replace(temporary, final)
        return None
    if _exchange(temporary, final):
        return temporary
    aside = final.with_name(f".{final.name}.{os.getpid()}.old")
    os.replace(final, aside)
    try:
        _point("rename", final)
        os.replace(temporary, final)
    except OSError:
        os.replace(aside, final)
        raise
    return aside


def _clear_up_after_a_kill(final: Path, temporary: Path) -> None:
    """Give a folder that a killed commit renamed its name back, and remove the rest of that commit."""
    for old in final.parent.glob(f".{glob.escape(final.name)}.*.old"):
        if final.exists():
            remove_folder(old)
        else:
            _point("rename", final)
            os.replace(old, final)
    for stale in final.parent.glob(f".{glob.escape(final.name)}.*.tmp"):
        if stale != temporary and stale.is_dir():
            remove_folder(stale)


def commit_folder(temporary: Path, final: Path) -> None:
    """Rename the folder `temporary` to `final`, which is replaced when it exists.

    This is one step where the system can exchange two names. Where it cannot, a kill in between leaves the old folder
    as `.<name>.<pid>.old`, and the next commit gives it its name back first.
    """
    with _as_disk_error(final, "commit"):
        _clear_up_after_a_kill(final, temporary)
        for path in sorted(p for p in temporary.rglob("*") if p.is_file()):
            _point("fsync", path)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(temporary)
        replaced = _set_in_place(temporary, final)
        sync_folder(final.parent)
        if replaced:
            _point("unlink", replaced)
            shutil.rmtree(replaced, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove the file, if it exists."""
    with _as_disk_error(path, "remove"):
        _point("unlink", path)
        path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Remove the folder with its content, if it exists."""
    with _as_disk_error(path, "remove"):
        _point("unlink", path)
        if path.exists():
            shutil.rmtree(path)


def sha256(path: Path) -> str:
    """SHA-256 (hex) of the file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
