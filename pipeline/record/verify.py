"""Whether a run's records still say what they said: the chain, every recorded file, every gate's verdict."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

from pipeline.errors import FivegateError
from pipeline.record import files, ledger
from pipeline.record import plan as plans
from pipeline.record.ledger import Entry
from pipeline.record.run import Run
from pipeline.record.state import fold


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


def _file_faults(run: Run, entries: list[Entry]) -> Iterator[str]:
    """Files that are not as recorded; where a phase ran again, its newest record counts."""
    newest = {path: (sha, e["seq"]) for e in entries for path, sha in _recorded_files(e["data"])}
    for path, (sha, seq) in sorted(newest.items()):
        file = run.path / path
        if not file.is_file():
            yield f"{path}: recorded by entry {seq}, and not there"
        elif files.sha256(file) != sha:
            yield f"{path}: is not the file that entry {seq} recorded"


def _gate_faults(entries: list[Entry]) -> Iterator[str]:
    """Gates whose recorded state does not follow from their items, waivers and sign-offs on that day."""
    for index, entry in enumerate(entries):
        if entry["kind"] == "gate.decided":
            state = fold(entries[: index + 1])
            told = state.gate(entry["data"]["phase"], date.fromisoformat(entry["time"][:10]))
            if told != entry["data"]["state"]:
                said = f"gate {entry['data']['phase']} is recorded as {entry['data']['state']}"
                yield f"entry {entry['seq']}: {said}, its items say {told}"


def faults(run: Run) -> tuple[int, list[str]]:
    """The number of intact ledger entries, and everything about the run that is not as recorded. Changes nothing."""
    found = ledger.scan(run.ledger_path)
    if found.fault:
        return len(found.entries), [f"ledger.jsonl: {found.fault}"]
    state = fold(found.entries)
    problems = [*_file_faults(run, found.entries), *_gate_faults(found.entries)]
    for revision in state.revisions:
        try:
            plans.load(run, state, revision["revision"])
        except FivegateError as error:
            problems.append(str(error))
    return len(found.entries), problems
