"""The items of checklists, and the data of ledger entries (`seq` is the number of the entry)."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict

from pipeline.errors import Refused, fault
from pipeline.json_types import mismatch
from pipeline.results import Branch, Outcome
from pipeline.run_store.ledger import Entry

Phase = Literal["planning", "baseline", "diagnostics", "optimization", "finalization"]
ChecklistItem = TypedDict(
    "ChecklistItem",
    {
        "id": str,
        "ask": str,
        "section": str,  # of the readiness score
        "check": str,
        "sign_off": str,
        "not_built": str,
        "with": dict[str, Any],  # the thresholds of the check
        "waivable": bool,
        "needs": list[str],
        "accepted": dict[str, dict[str, str]],  # by the plan: for each kind of inconclusive outcome, who and why
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
    env: NotRequired[list[str]]
    goal: NotRequired[str]  # of optimization, where it is another one than quality


class PhaseRecord(TypedDict):
    """The end of a phase that ran: its evidence and the other files it wrote."""

    seq: int
    phase: str
    round: int
    evidence: FileRecord
    artifacts: NotRequired[dict[str, FileRecord]]


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
    """A score on validation rows with its 95 % interval, and the rows, groups and resamples that it is from."""

    split: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    greater_is_better: NotRequired[bool]
    undefined: NotRequired[int]  # of the resamples
    resamples: NotRequired[int]
    groups: NotRequired[int | None]  # that the owner of the data declared


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
    checkpoint: NotRequired[str]
    job: NotRequired[dict[str, Any]]
    score: NotRequired[ScoreRecord | None]
    file: NotRequired[FileRecord]  # its weights
    stability: NotRequired[dict[str, Any]]  # of the frozen one: the table of the trainings on all seeds


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
    of all of them. `others` are the other source files of the package. `loaded` are files next to the package that
    planning imported although no `import` statement names them. `signature` is by the key of the user who trusts.
    """

    package: str
    root: str
    digest: str
    files: dict[str, str]
    others: dict[str, str]
    loaded: NotRequired[dict[str, str]]
    signature: NotRequired[str]


class TrustRecord(TypedDict):
    """The packages that the user trusts from then on."""

    packages: list[GrantRecord]


class ItemRecord(TypedDict):
    """One item of a gate with its outcome."""

    phase: Phase
    round: NotRequired[int]
    id: str
    ask: str
    outcome: Outcome
    value: NotRequired[Any]
    bound: NotRequired[Any]
    unit: NotRequired[str]
    why: NotRequired[str]
    cause: NotRequired[str | None]
    waivable: NotRequired[bool]
    sign_off: NotRequired[str | None]
    evidence: NotRequired[list[str]]
    relation: NotRequired[str]
    basis: NotRequired[str]
    acceptable: NotRequired[str]
    accepted_by: NotRequired[str]


class GateRecord(TypedDict):
    """The decision of a gate: the plan's revision, what the phase was built on, and the digest of its bundle."""

    phase: Phase
    round: int
    revision: int
    basis: int
    subject: NotRequired[str | None]


class WaiverRecord(TypedDict):
    """A person accepts an item until a day."""

    phase: str
    item: str
    who: str
    why: str
    expires: str


class SignOffRecord(TypedDict):
    """A person's signature of a bundle, with the outcomes and waivers that it covers."""

    phase: str
    item: str
    who: str
    digest: str
    note: NotRequired[str]
    outcomes: NotRequired[dict[str, dict[str, str]]]
    waivers: NotRequired[list[dict[str, str]]]
    binding: NotRequired[str]


class TestScoreRecord(TypedDict):
    """The score of a candidate on the test rows; `files` are all other measurements on them, and the predictions."""

    candidate: str
    score: ScoreRecord | None
    files: NotRequired[dict[str, FileRecord]]


class JobRecord(TypedDict):
    """A trial that started or ended."""

    round: int
    id: str
    score: NotRequired[ScoreRecord | None]
    died: NotRequired[str | None]


class ArmRecord(TypedDict):
    id: str
    values: NotRequired[list[Any]]


class StudyRecord(TypedDict):
    """The comparison of a round."""

    round: int
    arms: list[ArmRecord]
    winner: str | None
    why: NotRequired[str]


class ReviewRecord(TypedDict):
    """A plan of a study that waits for a person, or the person who accepted it; `digest` is that of the plan."""

    round: int
    digest: str
    who: NotRequired[str]
    file: NotRequired[FileRecord]


class RollbackRecord(TypedDict):
    """A person returned to the candidate of an earlier entry, or withdrew a release, `subject`."""

    who: str
    why: str
    candidate: NotRequired[int]
    subject: NotRequired[str]


class NotNeededRecord(TypedDict):
    phase: Phase


RECORDS: dict[str, type] = {
    "plan.frozen": PlanRecord, "trust.granted": TrustRecord, "phase.finished": PhaseRecord,
    "phase.failed": FailureRecord, "stopped": FailureRecord, "item.evaluated": ItemRecord, "gate.decided": GateRecord,
    "gate.not_needed": NotNeededRecord, "branch.decided": BranchRecord, "candidate.chosen": CandidateRecord,
    "candidate.frozen": CandidateRecord,
    "job.started": JobRecord, "job.finished": JobRecord, "study.decided": StudyRecord,
    "review.requested": ReviewRecord, "review.approved": ReviewRecord, "test.opened": OpeningRecord,
    "test.scored": TestScoreRecord, "waiver": WaiverRecord, "sign_off": SignOffRecord,
    "exhausted": ExhaustionRecord, "released": ReleaseRecord, "rolled_back": RollbackRecord,
}  # fmt: skip
CLOSED = frozenset({ItemRecord, WaiverRecord})  # objects are made of these, which have no other keys


def checked(entry: Entry) -> Entry:
    """Return the entry. Raises Refused if its data are not a record of its kind, which no command of ours writes."""
    record = RECORDS.get(entry["kind"])
    what = None if record is None else mismatch(entry["data"], record, entry["kind"], CLOSED)
    if what is not None:
        expected = "an entry that this version wrote"
        raise Refused(fault(f"ledger.jsonl, entry {entry['seq']}", f"cannot be read: {what}", expected=expected))
    return entry
