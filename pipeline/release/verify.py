"""Whether a run's records still say what they said: the chain, every recorded file, every gate, every release."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from pipeline.errors import FivegateError
from pipeline.release.bundle import bundle_digest, kept
from pipeline.release.release import hindrance
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import Entry, refuse_other_schema, scan_ledger
from pipeline.run_store.run import Run
from pipeline.run_store.state import fold


def _recorded_files(data: Any) -> Iterator[tuple[str, str]]:
    """Every (path, sha256) that an entry's data vouches for, however deep."""
    if isinstance(data, dict):
        if isinstance(data.get("path"), str) and isinstance(data.get("sha256"), str):
            yield data["path"], data["sha256"]
        for value in data.values():
            yield from _recorded_files(value)
    elif isinstance(data, list):
        for value in data:
            yield from _recorded_files(value)


def _begun_again(entries: list[Entry], entry: Entry) -> tuple[Entry | None, bool]:
    """The entry that began the phase of `entry` once more after it, and whether that came to an end."""
    phase = (entry["data"].get("phase"), entry["data"].get("round"))
    later = [e for e in entries[entry["seq"] + 1 :] if (e["data"].get("phase"), e["data"].get("round")) == phase]
    begun = next((e for e in later if e["kind"] == "phase.started"), None)
    ended = begun is not None and any(e["kind"] == "phase.finished" and e["seq"] > begun["seq"] for e in later)
    return begun, ended


def _file_faults(run: Run, entries: list[Entry]) -> Iterator[str]:
    """Files that are not as recorded; where a phase ran again to its end, only its newest record counts."""
    newest = {path: (sha, e) for e in entries for path, sha in _recorded_files(e["data"])}
    for path, (sha, entry) in sorted(newest.items()):
        file = run.path / path
        there = file.is_file()
        if there and files.sha256(file) == sha:
            continue
        begun, ended = _begun_again(entries, entry)
        if ended:
            continue
        seq = entry["seq"]
        what = f"is not the file that entry {seq} recorded" if there else f"recorded by entry {seq}, and not there"
        yield f"{path}: {what}{_unfinished(begun)}"


def _unfinished(begun: Entry | None) -> str:
    """The likely reason for a file that is not as recorded, where a phase was cut short."""
    if begun is None:
        return ""
    return f" (entry {begun['seq']} began the {begun['data']['phase']} phase again, and it did not end: run it again)"


def _gate_faults(entries: list[Entry]) -> Iterator[str]:
    """Gates whose recorded state does not follow from their items, waivers and sign-offs on that day."""
    for index, entry in enumerate(entries):
        if entry["kind"] == "gate.decided":
            state = fold(entries[: index + 1])
            told = state.gate(entry["data"]["phase"], date.fromisoformat(entry["time"][:10]))
            if told != entry["data"]["state"]:
                said = f"gate {entry['data']['phase']} is recorded as {entry['data']['state']}"
                yield f"entry {entry['seq']}: {said}, its items say {told}"


def _digest_of(payload: Path) -> str | None:
    """The digest of a payload as it lies there; None where there is none."""
    return bundle_digest(payload) if payload.is_dir() else None


def _payload_faults(run: Run, entries: list[Entry]) -> Iterator[str]:
    """A payload that is gone, or another than the one that the last gate judged last."""
    decided = [e for e in entries if e["kind"] == "gate.decided" and e["data"].get("subject")]
    if not decided:
        return
    subject, found = decided[-1]["data"]["subject"], _digest_of(run.inside("bundle", "payload"))
    if found == subject:
        return
    begun, _ = _begun_again(entries, decided[-1])
    what = "is not there" if found is None else f"has the digest {found[:12]}"
    yield f"bundle/payload: {what}, entry {decided[-1]['seq']} judged {subject[:12]}{_unfinished(begun)}"


def _release_faults(run: Run, entries: list[Entry]) -> Iterator[str]:
    """Releases that the records did not let happen, or whose bundle is found nowhere any more."""
    for index, entry in enumerate(entries):
        if entry["kind"] != "released":
            continue
        before, subject = fold(entries[:index]), entry["data"]["subject"]
        why = hindrance(before, date.fromisoformat(entry["time"][:10]))
        if why or before.gates["finalization"].subject != subject:
            yield f"entry {entry['seq']}: released, although {why or 'another bundle was judged'}"
        places = (run.inside("bundle", "payload"), kept(run, subject) / "payload")
        if subject not in map(_digest_of, places):
            yield f"bundle: the payload {subject[:12]} that entry {entry['seq']} released is not there"


def faults(run: Run) -> tuple[int, list[str]]:
    """The number of intact ledger entries, and everything about the run that is not as recorded. Changes nothing."""
    found = scan_ledger(run.ledger_path)
    refuse_other_schema(run.ledger_path, found.entries)
    if found.fault:
        return len(found.entries), [f"ledger.jsonl: {found.fault}"]
    state = fold(found.entries)
    problems = [*_file_faults(run, found.entries), *_gate_faults(found.entries)]
    problems += [*_payload_faults(run, found.entries), *_release_faults(run, found.entries)]
    for revision in state.revisions:
        try:
            plans.load(run, state, revision["revision"])
        except FivegateError as error:
            problems.append(str(error))
    return len(found.entries), problems
