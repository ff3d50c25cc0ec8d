"""The readiness score of a release: how much of its weakest section was answered by measurements.

The rule is that of the ML Test Score (Breck et al., 2017): points per item, and the weakest section counts, because a
model that is excellent in five sections and was never examined in the sixth is not ready.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from pipeline.run_store.gate import Item
from pipeline.run_store.records import ChecklistItem
from pipeline.run_store.state import RunState

OTHER = "other"  # the section of an item that the checklist assigns to none


@dataclass(frozen=True)
class SectionScore:
    """The mean points of the items of a section that apply, from 0 to 1; None where none of them applies."""

    name: str
    score: float | None
    items: int


@dataclass(frozen=True)
class Readiness:
    """The score of the weakest section, the sections that have it, and the score of each.

    The score is None where no item has a section or none applies.
    """

    score: float | None
    weakest: tuple[str, ...]
    sections: tuple[SectionScore, ...]


def sections_of(checklist: Iterable[ChecklistItem]) -> dict[str, str]:
    """Return the section of each item of a checklist, by id; empty for a checklist without sections."""
    named = {item["id"]: item.get("section", "") for item in checklist}
    return {name: section or OTHER for name, section in named.items()} if any(named.values()) else {}


def answer(item: Item, waived: Container[str] = ()) -> str:
    """Return how an item was satisfied: automatic, attested, small sample, not audited, waived, not applicable.

    Returns `pending` for a signature that is not given yet, and `no` for an item that keeps the gate closed.
    """
    if item.sign_off:
        return "pending" if item.outcome == "pending" else "attested"
    if item.outcome == "not_applicable":
        return "not applicable"
    if item.outcome == "passed":
        return "attested" if item.basis == "attested" else "automatic"
    if item.accepted_by:
        return item.acceptable.replace("_", " ")
    return "waived" if item.id in waived else "no"


POINTS = {"automatic": 1.0, "attested": 0.5, "small sample": 0.5, "not audited": 0.5, "waived": 0.0, "no": 0.0}


def readiness(items: Iterable[Item], sections: Mapping[str, str], waived: Container[str] = ()) -> Readiness:
    """Return the score of a gate's items; `waived` are the ids of the items with a valid waiver.

    An item counts 1 where it passed by a measurement, 0.5 where it rests on the owner's statement, and 0 where it was
    waived or is not satisfied. Items that do not apply are left out, and so is the approval: it is the decision that
    the score informs, and a score that it changed would not be the one that the approver saw.
    """
    points: dict[str, list[float]] = {}
    for item in items:
        if item.id not in sections or item.sign_off:
            continue
        of_section = points.setdefault(sections[item.id], [])
        if (how := answer(item, waived)) in POINTS:
            of_section.append(POINTS[how])
    scores = [SectionScore(name, sum(p) / len(p) if p else None, len(p)) for name, p in points.items()]
    score = min((section.score for section in scores if section.score is not None), default=None)
    weakest = tuple(section.name for section in scores if section.score is not None and section.score == score)
    return Readiness(score, weakest, tuple(scores))


def gate_readiness(
    state: RunState, checklist: Iterable[ChecklistItem], phase: str = "finalization"
) -> Readiness | None:
    """Return the score of a gate today, with the waivers in force; None where it was not evaluated for this plan."""
    gate = state.gates.get(phase)
    if gate is None or state.stale(phase):
        return None
    waived = {waiver.item for waiver in state.valid_waivers(phase)}
    result = readiness(gate.items, sections_of(checklist), waived)
    return result if result.score is not None else None
