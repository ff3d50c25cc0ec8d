"""Judge recorded gates and branches again: from the evidence on disk, by the checklists that the plan froze.

The ledger says what was decided, the evidence what was measured. Who rewrites the one alone is found here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.errors import FivegateError
from pipeline.release.rejudge_study import Derived, compared_again
from pipeline.results import Evidence, Score, canonical, plain
from pipeline.run_store.gate import Item, branch
from pipeline.run_store.ledger import Entry, read_recorded_json
from pipeline.run_store.plan import Plan
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError)  # of a forged file
WORDING = "why"  # the key of an item that is a sentence of the version that judged it, and decides nothing
_LATER_KEYS = {"basis": "automatic", "acceptable": "", "accepted_by": ""}  # not in runs of earlier versions
NOT_RECORDED = ("phase", "round")  # keys of `item.evaluated` that are not the item's own


@dataclass(frozen=True)
class JudgedGate:
    """One decision of a gate, the end of the phase that it is about, and the items that were recorded for it."""

    decision: Entry
    finished: Entry | None
    items: tuple[Mapping[str, Any], ...]

    @property
    def phase(self) -> str:
        return str(self.decision["data"]["phase"])

    @property
    def round(self) -> int:
        return int(self.decision["data"]["round"])


def recorded_gates(entries: list[Entry]) -> Iterator[JudgedGate]:
    """Yield every decision of a gate with what it was decided on."""
    finished: dict[tuple[str, int], Entry] = {}
    items: list[Mapping[str, Any]] = []
    for entry in entries:
        data = entry["data"]
        match entry["kind"]:
            case "phase.started":
                items = []
            case "phase.finished":
                finished[data["phase"], data["round"]] = entry
            case "item.evaluated":
                items.append({key: value for key, value in data.items() if key not in NOT_RECORDED})
            case "gate.decided":
                yield JudgedGate(entry, finished.get((data["phase"], data["round"])), tuple(items))
                items = []


def read_evidence(run: Run, finished: Entry | None) -> Evidence | None:
    """The evidence of a phase as it was recorded; None where the file is missing, damaged, or of a later attempt."""
    body = read_recorded_json(run.path, finished["data"].get("evidence") if finished else None)
    try:
        return Evidence.from_json(body) if body is not None else None
    except MALFORMED:
        return None


def gate_faults(gate: JudgedGate, evidence: Evidence, items: Iterable[Item]) -> Iterator[str]:
    """Yield the items that the ledger records otherwise than `items`: the evidence judged by the frozen checklist."""
    seq, phase = gate.decision["seq"], gate.phase
    judged = [plain(vars(item)) for item in items]
    ids, recorded = [item["id"] for item in judged], [item.get("id") for item in gate.items]
    if recorded != ids:
        missing = [name for name in ids if name not in recorded]
        what = f"without {', '.join(missing)}" if missing else "with other checks than the plan has"
        yield f"entry {seq}: gate {phase} was decided {what}"
    known = {item.get("id"): item for item in gate.items}
    pairs = [(known[item["id"]], item) for item in judged if item["id"] in known]
    for record, item in pairs:
        if canonical({**_LATER_KEYS, **record, WORDING: ""}) != canonical({**item, WORDING: ""}):
            yield f"{phase}/{item['id']} (gate of entry {seq}) is recorded {_difference(record, item)}"
    if gate.decision["data"].get("subject") != evidence.get("subject"):
        yield f"entry {seq}: gate {phase} is recorded for another bundle than its evidence names"


def reworded(gate: JudgedGate, items: Iterable[Item]) -> int:
    """The number of items whose recorded reason this version words otherwise; their outcomes are compared elsewhere."""
    reasons = {item.id: item.why for item in items}
    return sum(item.get(WORDING) != reasons.get(str(item.get("id"))) for item in gate.items)


def _difference(record: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """The first keys that differ, as recorded and as judged."""
    keys = [key for key in ("outcome", "value", "bound") if record.get(key) != item[key]]
    keys = keys or [key for key in item if record.get(key) != item[key]][:1] or ["a key that no check has"]
    return "as " + ", ".join(f"{key} {record.get(key)!r}, its evidence gives {item.get(key)!r}" for key in keys)


ReadPlan = Callable[[int], Plan]  # by revision; raises FivegateError for a plan that is not as recorded
Measured = Mapping[tuple[str, int], tuple[Entry, Evidence]]  # by phase and round: the end of the phase, its evidence
DECISIONS = ("candidate.chosen", "branch.decided")
UNDECIDED: Mapping[str, Any] = {"target": False, "trivial": False, "symptoms": []}


def decision_faults(entries: list[Entry], read_plan: ReadPlan, measured: Measured) -> Iterator[str]:
    """Yield the candidates and branches that do not follow from the evidence of their phase."""
    plan, before = None, UNDECIDED
    candidate: Mapping[str, Any] = {}
    accepted: dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}  # candidates by entry, and their branches
    for entry in entries:
        kind, data = entry["kind"], entry["data"]
        if kind == "plan.frozen":
            plan, candidate, before = _plan_of(read_plan, data["revision"]), {}, UNDECIDED
        if kind == "rolled_back":
            candidate, before = accepted.get(data.get("candidate", -1), (candidate, before))
        if kind not in DECISIONS:
            continue
        finished, evidence = measured.get((data["phase"], data["round"]), (None, None))
        # The disk has the evidence of the last attempt, which may have come after this decision.
        current = evidence if finished and finished["seq"] < entry["seq"] else None
        if kind == "candidate.chosen":
            candidate = {**data, "seq": entry["seq"]}
            expected = current.get("candidate") if current is not None else None
            if current is not None and not (isinstance(expected, dict) and not _differs(data, expected)):
                yield f"entry {entry['seq']}: the candidate is not the one of the {data['phase']} evidence"
            continue
        if current is not None:
            baseline = measured.get(("baseline", 1))
            trivial = baseline[1] if baseline and baseline[0]["seq"] < entry["seq"] else None
            try:
                yield from _branch_faults(entry, current, trivial, candidate, before, plan)
            except MALFORMED as error:
                yield f"entry {entry['seq']}: the branch cannot be derived ({type(error).__name__}: {error})"
        before, accepted[candidate.get("seq", -1)] = data, (candidate, data)


def _plan_of(read_plan: ReadPlan, revision: int) -> Plan | None:
    try:
        return read_plan(revision)
    except FivegateError:  # reported by the check of the plans
        return None


def _differs(record: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return any(canonical(record.get(key)) != canonical(value) for key, value in expected.items()) or not expected


def _branch_faults(
    entry: Entry,
    evidence: Evidence,
    baseline: Evidence | None,
    candidate: Mapping[str, Any],
    before: Mapping[str, Any],
    plan: Plan | None,
) -> Iterator[str]:
    """Yield what a recorded branch says otherwise than the evidence, the score in it, and the plan's target."""
    data, where = entry["data"], f"entry {entry['seq']}: the branch"
    inputs = dict(evidence["branch"])
    target = (plan.config.get("task") or {}).get("target") if plan else None
    if _differs(data, {**inputs, "branch": branch(**inputs)}):
        yield f"{where} is recorded as {data.get('branch')}, the {data['phase']} evidence gives {branch(**inputs)}"
    if _differs(data, {"score": candidate.get("score"), "target_value": None if target is None else float(target)}):
        yield f"{where} names another score or target than the candidate and the plan"
    if not evidence.get("candidate"):
        if data["phase"] == "optimization" and _differs({key: before.get(key) for key in inputs}, inputs):
            yield f"{where} changed although the optimization adopted nothing"
        return
    derived = _derived_inputs(evidence["candidate"].get("score"), target, baseline)
    for name, value in derived.items():
        if inputs[name] != value:
            yield f"{where} records {name}={inputs[name]}, the score and the plan give {value}"


def _derived_inputs(record: Mapping[str, Any] | None, target: Any, baseline: Evidence | None) -> dict[str, bool]:
    """What the score of the candidate gives for the branch, where its two comparisons are on record."""
    score = Score(**record) if record else None
    derived = {}
    if target is not None:
        derived["target"] = score is not None and score.reaches(float(target))
    trivial = baseline.get("trivial_baseline") if baseline is not None else None
    if trivial is not None:
        derived["trivial"] = score is not None and score.beats(float(trivial["value"]))
    return derived


def evidence_faults(
    run: Run, entries: list[Entry], state: RunState, read_plan: ReadPlan, measured: Measured
) -> Iterator[str]:
    """Yield the evidence of current gates that does not agree with the plan, the ledger and the files it was made from.

    Only what follows from other records without torch is derived; outputs of models are not computed again.
    """
    for phase, gate in state.gates.items():
        plan = _plan_of(read_plan, gate.revision)
        finished, evidence = measured.get((phase, gate.round), (None, None))
        if plan is None or finished is None or evidence is None:
            continue
        path, compare = finished["data"]["evidence"]["path"], partial(_DERIVED[phase], run, entries, finished)
        try:
            derived = [(what, canonical(value) == canonical(other)) for what, value, other in compare(evidence, plan)]
        except MALFORMED as error:
            yield f"{path}: does not have the form that this version writes ({type(error).__name__}: {error})"
            continue
        yield from (f"{path}: {what} is not that of the other records" for what, same in derived if not same)


def _file_of(run: Run, finished: Entry, name: str) -> Any:
    """The content of a JSON file that a phase recorded by this name; None without it."""
    return read_recorded_json(run.path, finished["data"].get("artifacts", {}).get(name))


def _has_file(finished: Entry, name: str) -> Derived:
    """Whether the phase recorded the file: a record without it would leave nothing to compare the evidence with."""
    yield f"the list of files, without {name},", name in finished["data"].get("artifacts", {}), True


def _planning(run: Run, entries: list[Entry], finished: Entry, evidence: Evidence, plan: Plan) -> Derived:
    if digests := evidence.get("digests"):
        yield "digests", digests, {name: split["digest"] for name, split in plan.facts["splits"].items()}
    if evidence.get("rows"):
        yield from _has_file(finished, "manifest")
    if manifest := _file_of(run, finished, "manifest"):
        yield "rows", evidence.get("rows"), {name: split["rows"] for name, split in manifest["splits"].items()}


def _baseline(run: Run, entries: list[Entry], finished: Entry, evidence: Evidence, plan: Plan) -> Derived:
    for name, planned in (("plan", plan.digest), ("seed", plan.config.get("seed"))):
        if name in evidence.values:
            yield name, evidence[name], planned
    if evidence.get("per_class"):
        yield from _has_file(finished, "confusion_matrix.json")
    report, score = _file_of(run, finished, "confusion_matrix.json"), evidence.get("score")
    if report is None:
        return
    yield "per_class", evidence.get("per_class"), report["per_class"]
    matrix = report.get("matrix")
    if matrix and score and score["metric"] == "accuracy":
        right, rows = sum(row[i] for i, row in enumerate(matrix)), sum(map(sum, matrix))
        yield "score", round(float(score["value"]), 6), round(right / rows, 6)


def _diagnostics(run: Run, entries: list[Entry], finished: Entry, evidence: Evidence, plan: Plan) -> Derived:
    if "diagnosis" in evidence.values:
        yield from _has_file(finished, "diagnosis")
    document = _file_of(run, finished, "diagnosis")
    if document is not None:  # a lost file is a fault of its own
        yield "diagnosis", evidence.get("diagnosis"), document


def _finalization(run: Run, entries: list[Entry], finished: Entry, evidence: Evidence, plan: Plan) -> Derived:
    """The test score and its openings, as the ledger has them, and where the model comes from."""
    lineage = evidence.get("lineage")
    if not lineage:
        return
    planned = {name: split["digest"] for name, split in plan.facts["splits"].items()}
    yield "lineage", [lineage[key] for key in ("plan", "seed", "data")], [plan.digest, plan.seed, planned]
    yield "planned_digests", evidence["planned_digests"], planned
    before = entries[: finished["seq"]]
    frozen: Mapping[str, Any] = next((e["data"] for e in reversed(before) if e["kind"] == "candidate.frozen"), {})
    for key, value in {**evidence["candidate"], "stability": evidence["seed_stability"]}.items():
        yield f"the frozen candidate's {key}", value, frozen.get(key)
    about = {"candidate": lineage["weights"], "digest": planned["test"]}
    scored = [e["data"] for e in before if e["kind"] == "test.scored" and about.items() <= e["data"].items()]
    yield "test_score", evidence["test_score"], scored[-1]["score"] if scored else None
    yield from _test_measurements(run, scored[-1] if scored else {}, evidence)
    opened = [e["data"] for e in before if e["kind"] == "test.opened"]
    own = [data for data in opened if about.items() <= data.items()]
    yield "openings_for_candidate", evidence["openings_for_candidate"], len(own)
    yield "candidates_that_opened", evidence["candidates_that_opened"], len({data["candidate"] for data in opened})
    yield from _documents(run, entries, finished, evidence, plan)


def _documents(run: Run, entries: list[Entry], finished: Entry, evidence: Evidence, plan: Plan) -> Derived:
    """The documents of the payload, which are a function of the evidence and the items that were judged on it."""
    from pipeline.documents.write import recorded_texts

    payload = run.inside("bundle", "payload")
    recorded = [gate for gate in recorded_gates(entries) if gate.finished is finished][-1].items
    # The reasons are sentences of the version that wrote the documents: theirs are in the report.
    report = payload / "report.json"
    worded = (
        {item["id"]: item[WORDING] for item in json.loads(report.read_bytes())["items"]} if report.is_file() else {}
    )
    items = (Item(**{**item, WORDING: worded.get(item["id"], item[WORDING])}) for item in recorded)
    for name, text in recorded_texts(plan, evidence, tuple(items)).items():
        path = payload / name
        yield f"bundle/payload/{name}", path.read_text(encoding="utf-8") if path.is_file() else None, text


def _test_measurements(run: Run, scored: Mapping[str, Any], evidence: Evidence) -> Derived:
    """What was measured on the test rows, as its recorded file has it; a changed file is a fault of its own."""
    if (content := read_recorded_json(run.path, scored.get("files", {}).get("measurements"))) is None:
        return
    measured, covered = Evidence.from_json(content).values, evidence.get("population_covered") or {}
    yield "the distances of test rows", plain(covered.get("test")), plain(measured.get("shift"))
    for key in ("beats_baseline", "calibration", "slices"):
        yield key, plain(evidence.get(key)), plain(measured.get(key))


_DERIVED: Mapping[str, Callable[[Run, list[Entry], Entry, Evidence, Plan], Derived]] = {
    "planning": _planning,
    "baseline": _baseline,
    "diagnostics": _diagnostics,
    "optimization": compared_again,
    "finalization": _finalization,
}
