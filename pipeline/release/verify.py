"""Verify a run's records: the hash chain, every recorded file, every gate and every release."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path

from pipeline.errors import FivegateError
from pipeline.release.bundle import bundle_digest, previous_release
from pipeline.release.release import release_blocker
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import Entry, refuse_other_schema, scan_ledger
from pipeline.run_store.run import Run
from pipeline.run_store.state import fold


def faults(run: Run) -> tuple[int, list[str]]:
    """Return the number of intact ledger entries, and everything that is not as recorded. Changes nothing.

    Raises Refused for a run of another schema.
    """
    scan = scan_ledger(run.ledger_path)
    refuse_other_schema(run.ledger_path, scan.entries)
    if scan.fault:
        return len(scan.entries), [f"ledger.jsonl: {scan.fault}"]
    entries, state = scan.entries, fold(scan.entries)
    problems = [*_file_faults(run, entries), *_gate_faults(entries)]
    problems += [*_payload_faults(run, entries), *_release_faults(run, entries)]
    for revision in state.revisions:
        try:
            plans.load(run, state, revision["revision"])
        except FivegateError as error:
            problems.append(str(error))
    return len(entries), problems


def _recorded_files(value: object) -> Iterator[tuple[str, str]]:
    """Yield every (path, sha256) in an entry's data, at any depth."""
    if isinstance(value, Mapping):
        if isinstance(value.get("path"), str) and isinstance(value.get("sha256"), str):
            yield value["path"], value["sha256"]
        for part in value.values():
            yield from _recorded_files(part)
    elif isinstance(value, list):
        for part in value:
            yield from _recorded_files(part)


def _restart(entries: list[Entry], entry: Entry) -> tuple[Entry | None, bool]:
    """Return the entry that started the phase of `entry` again after it, and whether that attempt finished."""
    phase = (entry["data"].get("phase"), entry["data"].get("round"))
    later = [e for e in entries[entry["seq"] + 1 :] if (e["data"].get("phase"), e["data"].get("round")) == phase]
    started = next((e for e in later if e["kind"] == "phase.started"), None)
    finished = started is not None and any(e["kind"] == "phase.finished" and e["seq"] > started["seq"] for e in later)
    return started, finished


def _unfinished_hint(restart: Entry | None) -> str:
    """Return the likely reason for a changed file: its phase was started again and interrupted."""
    if restart is None:
        return ""
    phase = restart["data"]["phase"]
    return f" (entry {restart['seq']} started the {phase} phase again, and it did not finish: run it again)"


def _file_faults(run: Run, entries: list[Entry]) -> Iterator[str]:
    """Yield files that are not as recorded; of a phase that ran again and finished, only the newest record counts."""
    newest = {path: (sha, e) for e in entries for path, sha in _recorded_files(e["data"])}
    for path, (sha, entry) in sorted(newest.items()):
        file = run.path / path
        exists = file.is_file()
        if exists and files.sha256(file) == sha:
            continue
        restart, finished = _restart(entries, entry)
        if finished:
            continue
        seq = entry["seq"]
        what = f"is not the file that entry {seq} recorded" if exists else f"is missing, entry {seq} recorded it"
        yield f"{path}: {what}{_unfinished_hint(restart)}"


def _gate_faults(entries: list[Entry]) -> Iterator[str]:
    """Yield the gates whose recorded state does not follow from their items, waivers and sign-offs of that day."""
    for index, entry in enumerate(entries):
        if entry["kind"] == "gate.decided":
            phase, recorded = entry["data"]["phase"], entry["data"]["state"]
            # On the entry's own day: a waiver that has expired since was valid then.
            derived = fold(entries[: index + 1]).gate(phase, date.fromisoformat(entry["time"][:10]))
            if derived != recorded:
                yield f"entry {entry['seq']}: gate {phase} is recorded as {recorded}, its items give {derived}"


def _digest_of(payload: Path) -> str | None:
    """Return the digest of a payload on disk, None where there is none."""
    return bundle_digest(payload) if payload.is_dir() else None


def _payload_faults(run: Run, entries: list[Entry]) -> Iterator[str]:
    """Yield a fault when the payload is missing or is not the one that the last gate evaluated last."""
    decisions = [e for e in entries if e["kind"] == "gate.decided" and e["data"].get("subject")]
    if not decisions:
        return
    subject, on_disk = decisions[-1]["data"]["subject"], _digest_of(run.inside("bundle", "payload"))
    if on_disk == subject:
        return
    restart, _ = _restart(entries, decisions[-1])
    what = "is missing" if on_disk is None else f"has the digest {on_disk[:12]}"
    yield f"bundle/payload: {what}, entry {decisions[-1]['seq']} evaluated {subject[:12]}{_unfinished_hint(restart)}"


def _release_faults(run: Run, entries: list[Entry]) -> Iterator[str]:
    """Yield the releases that the records did not permit, or whose bundle is no longer on disk."""
    for index, entry in enumerate(entries):
        if entry["kind"] != "released":
            continue
        before, subject = fold(entries[:index]), entry["data"]["subject"]
        why = release_blocker(before, date.fromisoformat(entry["time"][:10]))
        if why or before.gates["finalization"].subject != subject:
            yield f"entry {entry['seq']}: released, although {why or 'another bundle was evaluated'}"
        payloads = (run.inside("bundle", "payload"), previous_release(run, subject) / "payload")
        if subject not in map(_digest_of, payloads):
            yield f"bundle: the payload {subject[:12]} that entry {entry['seq']} released is missing"
