"""Verify a run's records: the hash chain, every recorded file, every gate, judged again, and every release.

No torch and no Hydra: anybody who has the folder can verify it quickly.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import FivegateError, Refused
from pipeline.release import attestation, rejudge
from pipeline.release.bundle import bundle_digest, previous_release
from pipeline.results import Evidence, canonical, counted
from pipeline.run_store import plan as plans
from pipeline.run_store.checklist import Judge
from pipeline.run_store.gate import NOT_BUILT
from pipeline.run_store.ledger import (
    Entry,
    changed_files,
    is_intact,
    rank,
    read_ledger,
    recorded_files,
    refuse_other_schema,
    restart,
    scan_ledger,
)
from pipeline.run_store.next_step import release_blocker
from pipeline.run_store.permits import damaged_file
from pipeline.run_store.records import PlanRecord
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState, fold

WRITING = timedelta(minutes=1)  # that lies between a decision and its entry at most


class Verification(NamedTuple):
    """The number of intact ledger entries, all that is not as recorded, and what could not be judged again."""

    entries: int
    faults: list[str]
    notes: list[str]


def faults(run: Run) -> tuple[int, list[str]]:
    """Return the number of intact ledger entries, and every record that does not agree with the others.

    The gates are computed again from their recorded items; `verify` also judges the items again. Changes nothing.
    Raises Refused for a run of another schema.
    """
    scan = scan_ledger(run.ledger_path)
    refuse_other_schema(run.ledger_path, scan.entries)
    if scan.fault:
        return len(scan.entries), [f"ledger.jsonl: {scan.fault}"]
    entries, state = scan.entries, fold(scan.entries)
    problems = [*_file_faults(run, entries), *_gate_faults(entries), *_people_faults(state)]
    problems += _rollback_faults(entries)
    problems += [*_payload_faults(run, entries), *_release_faults(run, entries), *attestation.faults(run, entries)]
    for revision in state.revisions:
        try:
            plan = plans.load(run, state, revision["revision"])
        except FivegateError as error:
            problems += error.faults
        else:
            problems += _plan_faults(revision, plan)
    return len(entries), problems


def verify(run: Run, judge: Judge, before: tuple[str, int] | None = None) -> Verification:
    """Check all records of a run, and judge every item and branch again from the evidence on disk. Changes nothing.

    With `before`, a phase and its round, only what this phase may be built on is checked: its own files and those of
    later phases are being replaced. Raises Refused for a run of another schema.
    """
    entries, problems = faults(run) if before is None else _faults_before(run, before)
    scan = scan_ledger(run.ledger_path)
    if scan.fault:
        return Verification(entries, problems, [])
    judged, notes = _judged_again(run, scan.entries, judge, before)
    return Verification(entries, [*problems, *judged], notes)


def refuse_unless_clean(run: Run, judge: Judge, before: tuple[str, int] | None = None) -> None:
    """Raise Refused when `verify` finds a fault, with a message per fault: on such records nothing more is built."""
    problems = verify(run, judge, before).faults
    if not problems:
        return
    entries = read_ledger(run.ledger_path)
    state, damaged = fold(entries), dict(changed_files(run.path, entries, before))
    messages = []
    for found in problems:
        path, _, what = found.partition(": ")
        if path in damaged:
            if not (run.path / path).exists():
                what = "is not the file that the ledger recorded: it is missing"
            messages.append(damaged_file(run, state, path, what, damaged[path]))
        else:
            messages.append(f"{found}  Do: python -m pipeline verify {run.argument}")
    raise Refused(*messages)


def _faults_before(run: Run, before: tuple[str, int]) -> tuple[int, list[str]]:
    entries = read_ledger(run.ledger_path)
    return len(entries), list(_file_faults(run, entries, before))


def _judged_again(
    run: Run, entries: list[Entry], judge: Judge, before: tuple[str, int] | None
) -> tuple[list[str], list[str]]:
    """Return the faults of gates, branches and evidence that are judged again, and what could not be."""
    state, problems, replaced, not_built, reworded = fold(entries), list[str](), 0, 0, 0
    read_plan = cache(partial(plans.load, run, state))
    gates = [g for g in rejudge.recorded_gates(entries) if before is None or rank(g.phase, g.round) < rank(*before)]
    measured: dict[tuple[str, int], tuple[Entry, Evidence]] = {}
    last = {(gate.phase, gate.round): gate.finished for gate in gates}
    for gate in gates:
        if gate.finished is None:
            problems.append(f"entry {gate.decision['seq']}: gate {gate.phase} was decided without evidence")
            continue
        if gate.finished is not last[gate.phase, gate.round]:
            replaced += 1
            continue
        evidence = rejudge.read_evidence(run, gate.finished)
        if evidence is None:
            known = next(recorded_files(gate.finished["data"].get("evidence")), None)
            if known is None or is_intact(run.path, *known):  # a damaged file is a fault of its own
                problems.append(f"entry {gate.finished['seq']}: the evidence of {gate.phase} cannot be read")
            continue
        measured[gate.phase, gate.round] = (gate.finished, evidence)
        try:
            items = judge(read_plan(gate.decision["data"]["revision"]).checklists[gate.phase], evidence)
        except FivegateError as error:  # a plan that is not as recorded, or a check that this version does not have
            where = f"entry {gate.decision['seq']}: gate {gate.phase} cannot be judged again"
            problems += [f"{where}: {why}" for why in error.faults]
            continue
        problems += rejudge.gate_faults(gate, evidence, items)
        reworded += rejudge.reworded(gate, items)
        not_built += sum(str(item.get("why", "")).startswith(NOT_BUILT) for item in gate.items)
    problems += rejudge.decision_faults(entries, read_plan, measured)
    problems += rejudge.evidence_faults(run, entries, state, read_plan, measured)
    notes = [f"{counted(not_built, 'check')} not implemented in this version"] if not_built else []
    if replaced:
        notes.append(f"{counted(replaced, 'earlier gate')} whose evidence a later attempt replaced")
    if reworded:
        notes.append(f"the reason of {counted(reworded, 'check')}, which this version words otherwise than the record")
    return problems, notes


def _plan_faults(record: PlanRecord, plan: plans.Plan) -> Iterator[str]:
    """Yield what the entry of a plan says otherwise than the plan: its people, its rounds, what comes next."""
    for key, value in {"env": None, **plans.recorded_facts(plan)}.items():
        if canonical(record.get(key)) != canonical(value):
            yield f"entry {record['seq']}: {key} is not as in revision {plan.revision} of the plan"


def _people_faults(state: RunState) -> Iterator[str]:
    """Yield the waivers and signatures that no command would have recorded, and that count for nothing."""
    for waiver in state.waivers:
        if waiver.refusal:
            yield f"entry {waiver.seq}: the waiver of {waiver.item} does not count: {waiver.refusal}"
    for sign_off in state.sign_offs:
        if sign_off.refusal:
            yield f"entry {sign_off.seq}: the signature of {sign_off.who} does not count: {sign_off.refusal}"


def _unfinished_hint(restart: Entry | None) -> str:
    """Return the likely reason for a changed file: its phase was started again and interrupted."""
    if restart is None:
        return ""
    phase = restart["data"]["phase"]
    return f" (entry {restart['seq']} started the {phase} phase again, and it did not finish: run it again)"


def _file_faults(run: Run, entries: list[Entry], before: tuple[str, int] | None = None) -> Iterator[str]:
    """Yield files that are not as recorded."""
    for path, entry in changed_files(run.path, entries, before):
        seq, exists = entry["seq"], (run.path / path).is_file()
        what = f"is not the file that entry {seq} recorded" if exists else f"is missing, entry {seq} recorded it"
        yield f"{path}: {what}{_unfinished_hint(restart(entries, entry)[0])}"


def _gate_faults(entries: list[Entry]) -> Iterator[str]:
    """Yield the gates whose recorded state does not follow from their items, waivers and sign-offs of that day."""
    for index, entry in enumerate(entries):
        if entry["kind"] == "gate.decided":
            phase, recorded = entry["data"]["phase"], entry["data"]["state"]
            state = fold(entries[: index + 1])
            derived = [state.gate(phase, day) for day in _days_of(entry)]
            if recorded not in derived:
                yield f"entry {entry['seq']}: gate {phase} is recorded as {recorded}, its items give {derived[0]}"


def _rollback_faults(entries: list[Entry]) -> Iterator[str]:
    """Yield the rollbacks to something that was no earlier candidate of the run, which change nothing."""
    for index, entry in enumerate(entries):
        earlier = entry["data"].get("candidate") if entry["kind"] == "rolled_back" else None
        if earlier is not None and earlier not in fold(entries[:index]).accepted[:-1]:
            what = f"rolled back to entry {earlier}, which is not an earlier candidate of this plan"
            yield f"entry {entry['seq']}: {what}"


def _days_of(entry: Entry) -> list[date]:
    """Return the days on which an entry's decision may have been made: a waiver that has expired since was valid then.

    That is the entry's own day, and the day before where it was written in the first minute after midnight.
    """
    written = datetime.fromisoformat(entry["time"])
    return list(dict.fromkeys([written.date(), (written - WRITING).date()]))


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
    again, _ = restart(entries, decisions[-1])
    what = "is missing" if on_disk is None else f"has the digest {on_disk[:12]}"
    yield f"bundle/payload: {what}, entry {decisions[-1]['seq']} evaluated {subject[:12]}{_unfinished_hint(again)}"


def _release_faults(run: Run, entries: list[Entry]) -> Iterator[str]:
    """Yield the releases that the records did not permit, or whose bundle is no longer on disk."""
    for index, entry in enumerate(entries):
        if entry["kind"] != "released":
            continue
        before, subject = fold(entries[:index]), entry["data"]["subject"]
        blockers = [release_blocker(before, day) for day in _days_of(entry)]
        why = blockers[0] if all(blockers) else None
        if why or before.gates["finalization"].subject != subject:
            yield f"entry {entry['seq']}: released, although {why or 'another bundle was evaluated'}"
        payloads = (run.inside("bundle", "payload"), previous_release(run, subject) / "payload")
        if subject not in map(_digest_of, payloads):
            yield f"bundle: the payload {subject[:12]} that entry {entry['seq']} released is missing"
