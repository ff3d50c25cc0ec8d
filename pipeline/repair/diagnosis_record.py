"""The records of diagnosis.json (schema 1), as `Diagnosis.to_json` returns them, and their reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from pipeline.errors import UserError, fault
from pipeline.foreign_files import parse_json, read_bytes
from pipeline.json_types import mismatch

SCHEMA = 1
EXPECTED = "the diagnosis.json that a run wrote"
MAX_BYTES = 2**24

Status = Literal["candidate", "confirmed", "refuted"]
Verdict = Literal["confirmed", "refuted", "inconclusive"]
Decision = Literal["decided", "not_decided"]


class TimeRecord(TypedDict):
    """A position in a training; None where it cannot be computed."""

    step: int | None
    epoch: int | None


class ObservationRecord(TypedDict):
    """A measured signal, the bound it was compared with, and the time since when the bound has held."""

    signal: str
    value: float
    bound: str
    since: TimeRecord


class SymptomRecord(TypedDict):
    """A playbook whose conditions all hold."""

    id: str
    severity: str
    observations: list[ObservationRecord]


class RootCauseRecord(TypedDict):
    """A cause from causes.yaml, with its confidence and the evidence for it."""

    issue: str
    status: Status
    confidence: float
    basis: str
    evidence: Sequence[str]
    fix: str


class ConsideredRecord(TypedDict):
    """A cause that was looked at and is not named, and why not."""

    issue: str
    status: Status
    confidence: float
    evidence: Sequence[str]
    why_not: str


class ImplementationRecord(TypedDict):
    """How to apply a fix: config overrides, named model changes, or a line of code."""

    overrides: Mapping[str, Any]
    surgery: Sequence[Mapping[str, Any]]
    code: str | None


class FixRecord(TypedDict):
    """A recommended change, in the order in which to try it (priority 1 first)."""

    priority: int
    cause: str
    cure: str
    kind: str
    implementation: ImplementationRecord
    expected_impact: str
    verified: None  # only optimization verifies a fix; it writes implementation.json


class GapRecord(TypedDict):
    """Something that the diagnosis did not check, and why."""

    what: str
    why: str


class ExperimentRecord(TypedDict):
    """A controlled experiment on a hypothesis, and its verdict.

    `restored` is the share of what was missing that the change brought back: 1 is all of it, 0 none, below 0 is worse
    than without the change; None where the change cannot be judged so. `steps` is the length of one training.
    """

    hypothesis: str
    change: str
    expected: str
    observed: str
    verdict: Verdict
    restored: float | None
    seeds: int
    steps: int


class DiagnosisRecord(TypedDict):
    """The whole document; `decision` is `decided` where at least one root cause is named."""

    symptoms: list[SymptomRecord]
    root_causes: list[RootCauseRecord]
    considered: list[ConsideredRecord]
    quick_wins: Sequence[str]
    recommended_fixes: list[FixRecord]
    experiments: list[ExperimentRecord]
    decision: Decision
    not_checked: Sequence[GapRecord]
    would_decide: Sequence[str]
    confidence_statement: str
    schema: int


def read_diagnosis(path: Path, where: str = "") -> DiagnosisRecord:
    """Return a diagnosis.json, which messages name `where`; lists that a file of an earlier version lacks are empty.

    Raises UserError, naming the file, for anything that is not a diagnosis.
    """
    where = where or str(path)
    body = parse_json(read_bytes(path, EXPECTED, MAX_BYTES), where, EXPECTED)
    lists = ("quick_wins", "considered", "experiments", "not_checked", "would_decide")
    named = isinstance(body, dict) and bool(body.get("root_causes"))
    decision = "decided" if named else "not_decided"
    empty = {**{name: [] for name in lists}, "decision": decision, "confidence_statement": ""}
    record: Any = {**empty, **body} if isinstance(body, dict) else body
    if (what := mismatch(record, DiagnosisRecord, "the diagnosis")) is not None:
        raise UserError(fault(where, f"cannot be read: {what}", expected=EXPECTED))
    checked: DiagnosisRecord = record
    return checked
