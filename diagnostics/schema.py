"""The records of diagnosis.json (schema 1), as `Diagnosis.to_json` returns them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

SCHEMA = 1


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
    status: str
    confidence: float
    basis: str
    evidence: Sequence[str]
    fix: str


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


class DiagnosisRecord(TypedDict):
    """The whole document."""

    symptoms: list[SymptomRecord]
    root_causes: list[RootCauseRecord]
    quick_wins: Sequence[str]
    recommended_fixes: list[FixRecord]
    experiments: list[str]
    not_checked: Sequence[GapRecord]
    would_decide: Sequence[str]
    confidence_statement: str
    schema: int
