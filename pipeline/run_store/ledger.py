"""The ledger: one canonical JSON line per fact, chained by hashes, and the files of the run that its entries record.

An entry is `{"seq","time","kind","data","prev","hash"}`; `hash` is the SHA-256 of the line without `hash`.
A tail is *torn* when it has no final newline and is the beginning of an entry: the next writer moves it to its own
file and records that. Any other deviation counts as tampering, and the first deviating entry is named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from pipeline.errors import Refused, UserError, fault
from pipeline.foreign_files import parse_json
from pipeline.results import PHASES, ROUNDED, canonical, digest, plain
from pipeline.run_naming import run_argument
from pipeline.run_store import files
from pipeline.run_store.lock import RunLock


class Entry(TypedDict):
    """One line of the ledger."""

    seq: int
    time: str
    kind: str
    data: dict[str, Any]
    prev: str
    hash: str


SCHEMA = 3  # of the ledger, the plan and the evidence files: raised when a key of any of them changes its meaning
GENESIS = "0" * 64

KINDS = frozenset(
    {
        "run.created", "ledger.torn", "trust.granted", "plan.frozen",
        "phase.started", "phase.finished", "phase.failed",
        "item.evaluated", "gate.decided", "gate.not_needed", "branch.decided",
        "hypothesis.stated", "job.started", "job.finished", "review.requested", "review.approved",
        "study.decided", "search.decided", "candidate.chosen",
        "candidate.frozen", "test.opened", "test.scored", "export.written", "waiver", "sign_off",
        "exhausted", "released", "rolled_back", "stopped", "tracking.unavailable",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """The content of a ledger file: its intact entries, a torn tail, and the first fault (None when intact)."""

    entries: list[Entry]
    torn: bytes = b""
    fault: str | None = None


def _entry_fault(line: bytes, seq: int, prev: str) -> tuple[Entry | None, str | None]:
    """The entry of one line, or what is wrong with it as the `seq`-th entry after hash `prev`."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None, "is not JSON"
    if not isinstance(entry, dict) or set(entry) != {"seq", "time", "kind", "data", "prev", "hash"}:
        return None, "does not have the six fields of an entry"
    if canonical(entry).encode() != line:
        return None, "is not in canonical form"
    if digest({k: v for k, v in entry.items() if k != "hash"}) != entry["hash"]:
        return None, "does not match its hash"
    if entry["seq"] != seq or entry["prev"] != prev:
        return None, "does not follow the entry before it"
    if not isinstance(entry["kind"], str) or entry["kind"] not in KINDS:
        return None, f"is of the unknown kind {entry['kind']!r}"
    if not isinstance(entry["data"], dict) or not _is_time(entry["time"]):
        return None, "does not have the data and the time of an entry"
    return Entry(**entry), None  # type: ignore[typeddict-item]  # the six fields were checked above


def _is_time(text: object) -> bool:
    try:
        datetime.fromisoformat(str(text))
    except ValueError:
        return False
    return True


def _is_torn(tail: bytes) -> bool:
    """Whether the tail is the beginning of an entry; a complete entry followed by other bytes is not."""
    if not tail.startswith(b'{"data":'[: len(tail)]):
        return False
    try:
        json.JSONDecoder().raw_decode(tail.decode())
    except (UnicodeDecodeError, RecursionError):
        return False
    except ValueError:
        return True
    return False


def scan_ledger(path: Path) -> Scan:
    """Read a ledger as far as it is intact, without changing it. A missing file is an empty ledger."""
    raw = path.read_bytes() if path.exists() else b""
    lines = raw.split(b"\n")
    tail = lines.pop()
    if tail and not _is_torn(tail):
        lines.append(tail)
        tail = b""
    entries: list[Entry] = []
    prev = GENESIS
    for seq, line in enumerate(lines):
        entry, what = _entry_fault(line, seq, prev)
        if entry is None:
            return Scan(entries, tail, f"entry {seq} {what}")
        entries.append(entry)
        prev = entry["hash"]
    return Scan(entries, tail)


def read_ledger(path: Path) -> list[Entry]:
    """The entries of an intact ledger without a torn tail.

    Raises Refused for a ledger of another schema, and for one that was changed, naming the first changed entry.
    """
    scan = scan_ledger(path)
    refuse_other_schema(path, scan.entries)
    if scan.fault:
        do = f"python -m pipeline verify {run_argument(path.parent)}"
        raise Refused(fault(str(path), f"the ledger was changed: {scan.fault}", do=do))
    return scan.entries


def refuse_other_schema(path: Path, entries: list[Entry]) -> None:
    """Raise Refused when the run was written by a version with another schema: its entries mean something else."""
    if entries and entries[0]["kind"] == "run.created" and entries[0]["data"].get("schema") != SCHEMA:
        schema = entries[0]["data"].get("schema")
        do = "read it with the version that wrote it, or start a new run: python -m pipeline phase=auto run.name=NAME"
        what = f"was written by schema {schema}"
        raise Refused(fault(str(path.parent), what, got=schema, expected=str(SCHEMA), do=do))


class Ledger:
    """A ledger opened for writing, which only the holder of the run's lock can do.

    Opening moves a torn tail to `ledger.torn-<seq>` and records it. Raises Refused when the ledger was changed.
    """

    def __init__(self, path: Path, lock: RunLock) -> None:
        self.path = path
        self._lock = lock
        self._need_lock()
        self.entries = list[Entry]()
        self._dirty = True
        self._heal()

    @property
    def head(self) -> str:
        """Hash of the last entry."""
        return self.entries[-1]["hash"] if self.entries else GENESIS

    def _need_lock(self) -> None:
        if not self._lock.guards(self.path):
            raise TypeError(f"{self.path} is written only while the lock of its run is held; use `opened(run)`")

    def _heal(self) -> None:
        """Repair what an incomplete write has left. An entry that is complete counts, also one that was not synced."""
        self.entries = read_ledger(self.path)
        raw = self.path.read_bytes() if self.path.exists() else b""
        whole = not raw or raw.endswith(b"\n")
        torn = b"" if whole else scan_ledger(self.path).torn
        aside = self.path.with_name(f"ledger.torn-{len(self.entries)}")
        if torn:
            files.write_bytes(aside, torn)
            files.truncate(self.path, len(raw) - len(torn))
        elif not whole:  # a complete entry without its newline
            files.append_line(self.path, b"\n")
        self._dirty = False
        if torn:
            self.append("ledger.torn", {"file": aside.name, "bytes": len(torn)})

    def append(self, kind: str, data: dict[str, Any]) -> Entry:
        """Append one fact and return its entry. It is on disk when this returns: one line, one write, one fsync."""
        assert kind in KINDS, kind
        self._need_lock()
        if self._dirty:
            self._heal()
        entry = Entry(
            seq=len(self.entries),
            time=datetime.now(UTC).isoformat(timespec="microseconds"),
            kind=kind,
            data=plain(data),
            prev=self.head,
            hash="",
        )
        entry["hash"] = digest({name: value for name, value in entry.items() if name != "hash"})
        self._dirty = True  # a write that fails may leave a part of the entry or all of it; the next append looks
        files.append_line(self.path, canonical(entry).encode() + b"\n")
        self._dirty = False
        self.entries.append(entry)
        return entry


# --- the files of a run that its ledger records ----------------------------------------------------------------------


def recorded_files(value: object) -> Iterator[tuple[str, str]]:
    """Yield every (path, sha256) in an entry's data, at any depth."""
    if isinstance(value, Mapping):
        if isinstance(value.get("path"), str) and isinstance(value.get("sha256"), str):
            yield value["path"], value["sha256"]
        for part in value.values():
            yield from recorded_files(part)
    elif isinstance(value, list):
        for part in value:
            yield from recorded_files(part)


def is_intact(folder: Path, path: str, sha256: str) -> bool:
    """Whether a recorded file of the run in this folder is inside it and has the recorded bytes."""
    file = folder / path
    return file.resolve().is_relative_to(folder.resolve()) and file.is_file() and files.sha256(file) == sha256


def read_recorded_json(folder: Path, record: object) -> Any:
    """The content of a recorded JSON file; None where it is not as recorded."""
    known = next(recorded_files(record), None)
    if known is None or not is_intact(folder, *known):
        return None
    try:
        return parse_json((folder / known[0]).read_bytes(), known[0])
    except (OSError, UserError):
        return None


def rank(phase: str, round_: int) -> tuple[int, int]:
    """The place of a phase on the way to a release: a later one may have been built on it."""
    index = PHASES.index(phase)
    return (round_ if phase in ROUNDED else 0 if index < PHASES.index(ROUNDED[0]) else len(PHASES) * 1000, index)


def restart(entries: list[Entry], entry: Entry) -> tuple[Entry | None, bool]:
    """Return the entry that started the phase of `entry` again after it, and whether that attempt finished."""
    phase = (entry["data"].get("phase"), entry["data"].get("round"))
    later = [e for e in entries[entry["seq"] + 1 :] if (e["data"].get("phase"), e["data"].get("round")) == phase]
    started = next((e for e in later if e["kind"] == "phase.started"), None)
    finished = started is not None and any(e["kind"] == "phase.finished" and e["seq"] > started["seq"] for e in later)
    return started, finished


def changed_files(folder: Path, entries: list[Entry], before: tuple[str, int] | None = None) -> list[tuple[str, Entry]]:
    """Every recorded file that is not as recorded, with its entry, by path.

    Of a phase that ran again and finished, only the newest record counts. With `before`, a phase and its round, only
    the files that this phase may be built on count: not its own, which it is writing again, and no later ones.
    """
    newest = {path: (sha256, e) for e in entries for path, sha256 in recorded_files(e["data"])}
    changed = [(path, e) for path, (sha256, e) in sorted(newest.items()) if _counts(e, before)
               and not is_intact(folder, path, sha256)]  # fmt: skip
    return [(path, entry) for path, entry in changed if not restart(entries, entry)[1]]


def _counts(entry: Entry, before: tuple[str, int] | None) -> bool:
    phase, round_ = entry["data"].get("phase"), entry["data"].get("round", 1)
    return before is None or (phase in PHASES and rank(phase, round_) < rank(*before))
