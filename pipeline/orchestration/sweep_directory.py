"""A sweep's folder, `<root>/.sweeps/<n>/`: what was asked, how each job ended, and who is at work in it now.

    sweep.json      the words it was asked in, and whether all of it is done
    <k>.json        the end of job k: its run, its exit code, what it was told apart by
    <k>.pid         the process that job k runs in, where that is one of its own; locked while it lives
    stop            somebody asked the sweep to stop: no job begins any more

Whoever runs the sweep holds a kernel lock on the folder, which is gone when the process is.
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
from typing import Any, NamedTuple

from pipeline.config.override_keys import key_of
from pipeline.errors import UserError, fault
from pipeline.results import digest
from pipeline.run_store import files
from pipeline.run_store.lock import locked

SETTLED = (0, 3, 4)  # exit codes of a job that need no second try: done, refused by a gate, left to a person
GLANCE = 0.2  # seconds: who only looks holds a lock for an instant
WIND_DOWN = 15.0  # seconds that jobs of a sweep that was killed have to be gone


class JobEnd(NamedTuple):
    """How a job of a sweep ended: its run's name, its exit code, and what it was told apart by."""

    name: str
    exit_code: int
    overrides: list[str]


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's content, empty where there is none that can be read."""
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
    """The folder of one sweep."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def asked(self) -> dict[str, Any]:
        """`words`, `config_dirs`, `identity`, `started`, `finished`; empty for a sweep that died while it began."""
        return _read(self.path / "sweep.json")

    @property
    def taken(self) -> bool:
        """Whether a process, this one included, runs the sweep now."""
        return _is_locked(self.path)

    @property
    def stopping(self) -> bool:
        return (self.path / "stop").exists()

    def ends(self) -> list[JobEnd]:
        """The jobs that ended, in the order of the sweep."""
        found = sorted(self.path.glob("[0-9]*.json"), key=lambda path: int(path.stem))
        return [JobEnd(**_read(path)) for path in found]

    def settled(self, job: int) -> bool:
        """Whether the job ended, and not by a fault or wrong input that may be mended by now."""
        return _read(self.path / f"{job}.json").get("exit_code") in SETTLED

    def put(self, job: int, end: JobEnd) -> None:
        files.write_json(self.path / f"{job}.json", end._asdict())

    def finish(self) -> None:
        """Every job has ended: the same words begin another sweep."""
        files.write_json(self.path / "sweep.json", {**self.asked, "finished": True})
        for path in (self.path / "cores", *self.path.glob("[0-9]*.pid")):
            files.remove(path)

    @contextmanager
    def at_work(self, job: int, name: str, overrides: Sequence[str]) -> Iterator[None]:
        """This process is known to be the job's; stopping the sweep stops it."""
        path = self.path / f"{job}.pid"
        files.write_json(path, {"pid": os.getpid(), "name": name, "overrides": list(overrides)})
        descriptor = locked(path, GLANCE)
        try:
            yield
        finally:
            files.remove(path)
            if descriptor is not None:
                os.close(descriptor)

    def tell(self, number: signal.Signals) -> None:
        """No job begins any more, and every process of one gets the signal."""
        files.write_text(self.path / "stop", "")
        for path in self.path.glob("[0-9]*.pid"):
            pid = _read(path).get("pid")
            if pid and pid != os.getpid() and _is_locked(path):
                os.kill(pid, number)

    def lost(self) -> list[JobEnd]:
        """The jobs whose process is gone without an end, as faults."""
        gone = [_read(p) for p in sorted(self.path.glob("[0-9]*.pid"), key=lambda p: int(p.stem)) if not _is_locked(p)]
        return [JobEnd(told["name"], 1, told["overrides"]) for told in gone if told]

    def wait(self) -> bool:
        """Whether the processes of all jobs are gone, for which they have a while."""
        deadline = time.monotonic() + WIND_DOWN
        while any(_is_locked(path) for path in self.path.glob("[0-9]*.pid")):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def wind_down(self) -> None:
        """Nothing is left of an earlier turn. Raises UserError when a job of it is still at work."""
        if not self.wait():
            what = "jobs of an earlier turn of this sweep are still at work"
            raise UserError(fault(str(self.path), what, do="wait for them, then repeat the command"))
        for path in (*self.path.glob("[0-9]*.pid"), self.path / "stop", self.path / "cores"):
            files.remove(path)


def shelves(root: Path) -> list[SweepDirectory]:
    """The sweeps under this root, newest first."""
    found = [SweepDirectory(path) for path in (root / ".sweeps").glob("*") if path.name.isdigit()]
    return sorted(found, key=lambda shelf: -shelf.number)


def the_words(overrides: Sequence[str]) -> list[str]:
    """What makes two commands the same sweep: all but where and how its jobs are run."""
    return [word for word in overrides if key_of(word).split(".", 1)[0].split("/", 1)[0] != "hydra"]


@contextmanager
def taken(root: Path, overrides: Sequence[str], config_dirs: Sequence[Path]) -> Iterator[tuple[SweepDirectory, bool]]:
    """The shelf of these words to ourselves, and whether it is that of a sweep that was interrupted, not a new one."""
    asked = {"words": the_words(overrides), "config_dirs": [str(path) for path in config_dirs]}
    found = _unfinished(root, asked)
    shelf, descriptor = found or _begun(root, asked)
    try:
        shelf.wind_down()
        yield shelf, found is not None
    finally:
        os.close(descriptor)


def _unfinished(root: Path, asked: dict[str, Any]) -> tuple[SweepDirectory, int] | None:
    """The newest sweep in the same words that is neither done nor run by somebody else, with its lock."""
    for shelf in shelves(root):
        if _same(shelf, asked):
            descriptor = locked(shelf.path, GLANCE)
            if descriptor is not None and _same(shelf, asked):  # it may have been finished before we had the lock
                return shelf, descriptor
            if descriptor is not None:
                os.close(descriptor)
    return None


def _same(shelf: SweepDirectory, asked: dict[str, Any]) -> bool:
    known = shelf.asked
    return known.get("finished") is False and all(known.get(key) == value for key, value in asked.items())


def _begun(root: Path, asked: dict[str, Any]) -> tuple[SweepDirectory, int]:
    """The smallest number that no sweep under this root has used, now used, with its lock."""
    folder = files.folder(root / ".sweeps")
    used = {int(m[1]) for path in root.iterdir() if (m := re.fullmatch(r".+-(\d+)-\d+", path.name))}
    for number in count(1):
        path = folder / str(number)
        if number not in used and files.claim(path):
            descriptor = locked(path, 10.0)
            assert descriptor is not None
            identity = digest([*asked["words"], time.time_ns(), os.getpid()])
            started = datetime.now(UTC).isoformat(timespec="seconds")
            about = {**asked, "identity": identity, "started": started, "finished": False}
            files.write_json(path / "sweep.json", about)
            return SweepDirectory(path), descriptor
    raise AssertionError("numbers do not end")
