"""The comparisons of optimization for the report: what was said of each arm, what was chosen, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.run_store.ledger import Entry

FIXED = "fixed"  # the id of the winner's training with the plan's seed
NOTHING_COMPARED = "nothing was compared: no untried cure was left"  # of a record without a reason


@dataclass(frozen=True)
class ArmRow:
    """One arm of a comparison: its result as recorded, and the verdict on it in words."""

    result: Mapping[str, Any]
    verdict: str
    tone: str

    @property
    def is_control(self) -> bool:
        return bool(self.result["id"] == "control")


@dataclass(frozen=True)
class StudySection:
    """One comparison; without arms nothing was compared. `retrained` is the score of the winner's last training."""

    round: int
    arms: list[ArmRow]
    winner: str | None
    why: str
    retrained: Mapping[str, Any] | None


def studies(entries: Iterable[Entry]) -> list[StudySection]:
    """Return every comparison that the ledger recorded."""
    decisions: list[tuple[dict[str, Any], dict[str, Any] | None]] = []  # each with the training of its winner
    for entry in entries:
        if entry["kind"] == "study.decided":
            decisions.append((entry["data"], None))
        elif entry["kind"] == "job.finished" and entry["data"]["id"] == FIXED and decisions:
            decisions[-1] = (decisions[-1][0], entry["data"])
    return [_section(decision, training) for decision, training in decisions]


def _section(decision: Mapping[str, Any], training: Mapping[str, Any] | None) -> StudySection:
    arms, winner = decision["arms"], decision["winner"]
    reason = "" if winner else "no arm was significantly better than the control" if arms else NOTHING_COMPARED
    return StudySection(
        round=decision["round"],
        arms=[ArmRow(arm, *_verdict(arm, winner, training)) for arm in arms],
        winner=winner,
        why=decision.get("why", reason),
        retrained=training.get("score") if training else None,
    )


def _verdict(arm: Mapping[str, Any], winner: str | None, training: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return what the comparison says of an arm, and the tone it is shown in.

    A winner is adopted only if its training with the plan's seed, which follows the comparison, did not die.
    """
    if arm["id"] == "control":
        return "no change", "plain"
    if arm["id"] == winner and training and training.get("died"):
        return "not adopted: its training with the plan's seed died", "bad"
    if arm["id"] == winner:
        return ("adopted", "good") if training else ("chosen", "plain")
    if not arm.get("wins"):
        return "not shown to be better", "plain"
    if "reaches" not in arm:
        return "better", "plain"
    return f"better, {'reaches' if arm['reaches'] else 'misses'} the target", "plain"
