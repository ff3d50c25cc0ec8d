"""The directory of a sweep, `<root>/.sweeps/<n>/`: its overrides, how each job ended, and which jobs are running.

    sweep.json      the overrides of the sweep, and whether it is finished
    <k>.json        the end of job k: its run, its exit code, its overrides
    <k>.pid         the process of job k, where it is not the sweep's own; locked while the process lives
    stop            the sweep is to stop: no further job starts

The process that runs the sweep holds a kernel lock on the directory, which ends with the process.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from pipeline.config.override_keys import key_of
from pipeline.errors import UserError, fault
from pipeline.results import digest
from pipeline.run_store import files
from pipeline.run_store.lock import locked

SETTLED = (0, 3, 4)  # exit codes of a job that is not repeated: done, gate closed, waits for a person
LOCK_WAIT = 0.2  # seconds: another process that only looks at a lock holds it for less
STOP_WAIT = 15.0  # seconds that the jobs of a killed sweep get to end


class SweepKey(TypedDict):
    """What makes two commands the same sweep."""

    words: list[str]
    config_dirs: list[str]


class JobEnd(NamedTuple):
    """How a job of a sweep ended: the name of its run, its exit code, and its overrides."""

    name: str
    exit_code: int
    overrides: list[str]


def _read(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty where it cannot be read."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _is_locked(path: Path) -> bool:
    descriptor = locked(path)
    if descriptor is None:
        return path.exists()
    os.close(descriptor)
    return False


@dataclass(frozen=True)
class SweepDirectory:
    """The directory of one sweep."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def record(self) -> dict[str, Any]:
        """`words`, `config_dirs`, `identity`, `started`, `finished`; empty for a sweep that died at its start."""
        return _read(self.path / "sweep.json")

    @property
    def running(self) -> bool:
        """Whether a process, which may be this one, runs the sweep now."""
        return _is_locked(self.path)

    @property
    def stopping(self) -> bool:
        return (self.path / "stop").exists()

    def _pid_files(self) -> list[Path]:
        return sorted(self.path.glob("[0-9]*.pid"), key=lambda path: int(path.stem))

    def ends(self) -> list[JobEnd]:
        """The jobs that ended, in the order of the sweep."""
        paths = sorted(self.path.glob("[0-9]*.json"), key=lambda path: int(path.stem))
        return [JobEnd(**_read(path)) for path in paths]

    def settled(self, job: int) -> bool:
        """Whether the job ended, and not by a fault or wrong input that may be corrected by now."""
        return _read(self.path / f"{job}.json").get("exit_code") in SETTLED

    def record_end(self, job: int, end: JobEnd) -> None:
        files.write_json(self.path / f"{job}.json", end._asdict())

    def finish(self) -> None:
        """Mark the sweep as finished: the same overrides then start another sweep."""
        files.write_json(self.path / "sweep.json", {**self.record, "finished": True})
        for path in self._pid_files():
            files.remove(path)

    @contextmanager
    def job_process(self, job: int, name: str, overrides: Sequence[str]) -> Iterator[None]:
        """Register this process as that of the job inside the block, so that stopping the sweep stops it."""
        path = self.path / f"{job}.pid"
        files.write_json(path, {"pid": os.getpid(), "name": name, "overrides": list(overrides)})
        descriptor = locked(path, LOCK_WAIT)
        try:
            yield
        finally:
            files.remove(path)
            if descriptor is not None:
                os.close(descriptor)

    def stop_jobs(self, number: signal.Signals) -> None:
        """Let no further job start, and send the signal to the process of every job."""
        files.write_text(self.path / "stop", "")
        for path in self._pid_files():
            pid = _read(path).get("pid")
            if pid and pid != os.getpid() and _is_locked(path):
                os.kill(pid, number)

    def lost_jobs(self) -> list[JobEnd]:
        """The jobs whose process ended without a record, as faults."""
        lost = [_read(path) for path in self._pid_files() if not _is_locked(path)]
        return [JobEnd(job["name"], 1, job["overrides"]) for job in lost if job]

    def wait_for_jobs(self) -> bool:
        """Wait until the processes of all jobs have ended; False when some are still alive after STOP_WAIT seconds."""
        deadline = time.monotonic() + STOP_WAIT
        while any(_is_locked(path) for path in self._pid_files()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def clear(self) -> None:
        """Remove what an earlier attempt left. Raises UserError when one of its jobs is still running."""
        if not self.wait_for_jobs():
            what = "jobs of an earlier attempt of this sweep are still running"
            raise UserError(fault(str(self.path), what, do="wait for them, then repeat the command"))
        for path in (*self._pid_files(), self.path / "stop"):
            files.remove(path)


def sweep_directories(root: Path) -> list[SweepDirectory]:
    """The sweeps under this root, newest first."""
    sweeps = [SweepDirectory(path) for path in (root / ".sweeps").glob("*") if path.name.isdigit()]
    return sorted(sweeps, key=lambda sweep: -sweep.number)


@contextmanager
def claim_sweep(
    root: Path, overrides: Sequence[str], config_dirs: Sequence[Path]
) -> Iterator[tuple[SweepDirectory, bool]]:
    """Lock the directory of the sweep with these overrides: of the interrupted one, or a new one.

    The second value says whether the sweep is continued. Overrides of Hydra's own settings do not tell sweeps apart:
    an interrupted sweep may be continued with another launcher.
    """
    job_overrides = [word for word in overrides if key_of(word).split(".", 1)[0].split("/", 1)[0] != "hydra"]
    key = SweepKey(words=job_overrides, config_dirs=[str(path) for path in config_dirs])
    unfinished = _lock_unfinished(root, key)
    directory, descriptor = unfinished or _create(root, key)
    try:
        directory.clear()
        yield directory, unfinished is not None
    finally:
        os.close(descriptor)


def _lock_unfinished(root: Path, key: SweepKey) -> tuple[SweepDirectory, int] | None:
    """The newest sweep of this key that is neither finished nor run by another process, with its lock."""
    for directory in sweep_directories(root):
        if _is_unfinished(directory, key):
            descriptor = locked(directory.path, LOCK_WAIT)
            if descriptor is not None and _is_unfinished(directory, key):  # may have been finished in between
                return directory, descriptor
            if descriptor is not None:
                os.close(descriptor)
    return None


def _is_unfinished(directory: SweepDirectory, key: SweepKey) -> bool:
    record = directory.record
    return record.get("finished") is False and all(record.get(name) == value for name, value in key.items())


def _create(root: Path, key: SweepKey) -> tuple[SweepDirectory, int]:
    """Create the directory with the smallest number that no sweep under this root has used, and lock it."""
    folder = files.folder(root / ".sweeps")
    used = {int(m[1]) for path in root.iterdir() if (m := re.fullmatch(r".+-(\d+)-\d+", path.name))}
    for number in count(1):
        path = folder / str(number)
        if number not in used and files.claim(path):
            descriptor = locked(path, 10.0)
            assert descriptor is not None
            identity = digest([*key["words"], time.time_ns(), os.getpid()])
            started = datetime.now(UTC).isoformat(timespec="seconds")
            record = {**key, "identity": identity, "started": started, "finished": False}
            files.write_json(path / "sweep.json", record)
            return SweepDirectory(path), descriptor
    raise AssertionError("count() never ends")
