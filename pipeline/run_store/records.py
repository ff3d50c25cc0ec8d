"""The items of checklists, and the data of ledger entries; `seq` is the number of the entry."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from pipeline.results import Branch

ChecklistItem = TypedDict(
    "ChecklistItem",
    {
        "id": str,
        "ask": str,
        "check": str,
        "sign_off": str,
        "not_built": str,
        "with": dict[str, Any],  # the thresholds of the check
        "waivable": bool,
        "needs": list[str],
    },
    total=False,
)


class FileRecord(TypedDict):
    """A file inside the run directory and its SHA-256."""

    path: str
    sha256: str


class PeopleRecord(TypedDict):
    """Who may sign and waive: the owner whom the plan names, and its approvers."""

    owner: str | None
    approvers: list[str]


class PlanRecord(TypedDict):
    """One revision of the plan; `changed` maps each key to its old and new value."""

    seq: int
    revision: int
    digest: str
    file: str
    changed: dict[str, list[Any]]
    overrides: NotRequired[list[str]]
    config_dirs: NotRequired[list[str]]
    questions: NotRequired[dict[str, int]]
    rounds: NotRequired[int]
    then: NotRequired[dict[str, dict[str, str | None]]]
    people: NotRequired[PeopleRecord]


class PhaseRecord(TypedDict):
    """The end of a phase that ran: its evidence and the other files it wrote."""

    seq: int
    phase: str
    round: int
    evidence: FileRecord
    artifacts: dict[str, FileRecord]


class FailureRecord(TypedDict):
    """A phase that failed or was interrupted.

    `mend` is present where the input or the user's code was wrong, so that the phase fails again until it is changed:
    the `file:line` of the user's code, or an empty string.
    """

    seq: int
    phase: str
    round: int
    why: str
    mend: NotRequired[str]


class ScoreRecord(TypedDict):
    """A score on validation rows with its 95 % interval and the number of rows."""

    split: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    greater_is_better: NotRequired[bool]


class BranchRecord(TypedDict):
    """Whether a trained model is good enough to finish, and the three facts that decide it."""

    seq: int
    phase: str
    round: int
    branch: Branch
    target: bool
    trivial: bool
    symptoms: list[str]
    score: NotRequired[ScoreRecord | None]  # on validation, of the candidate
    target_value: NotRequired[float | None]


class CandidateRecord(TypedDict):
    """The model that finalization would release: the digest of its weights, its checkpoint, job and score."""

    seq: int
    phase: str
    round: int
    weights: str
    checkpoint: str
    job: dict[str, Any]
    score: NotRequired[ScoreRecord | None]


class OpeningRecord(TypedDict):
    """One opening of the sealed test rows: for which candidate and plan, and the digest of the rows."""

    seq: int
    candidate: str
    plan: str
    digest: NotRequired[str]


class AlternativeRecord(TypedDict):
    """Something that a person can try where no repair is left: a phase with overrides, and what they change."""

    why: str
    phase: str
    overrides: list[str]


class ExhaustionRecord(TypedDict):
    """The round after which no further repair is tried, why, and what a person can try instead."""

    seq: int
    round: int
    why: str
    alternatives: NotRequired[list[AlternativeRecord]]


class ReleaseRecord(TypedDict):
    """A released bundle: the digest of its payload, and its attestation."""

    seq: int
    subject: str
    attestation: FileRecord


class GrantRecord(TypedDict):
    """A package that the user trusts: its name, and the folder that it is imported from.

    `files` are the source files that the run can import, below that folder, with the SHA-256 of each; `digest` is that
    of all of them. `others` are the other source files of the package.
    """

    package: str
    root: str
    digest: str
    files: dict[str, str]
    others: dict[str, str]
