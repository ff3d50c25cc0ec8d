"""The comparisons of optimization for the report: what was said of each arm, what was chosen, and why."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from pipeline.reporting.canvas import (
    BLUE,
    GREEN,
    GREY,
    NO_DRAWING,
    ROW_MARGINS,
    Canvas,
    drawing,
    marked_target,
    rows_height,
)
from pipeline.reporting.tables import number
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

    @property
    def name(self) -> str:
        return "control: no change" if self.is_control else f"{self.result['id']}: {self.result.get('change', '')}"

    @property
    def scores(self) -> list[float]:
        """The finite scores of its seeds."""
        values = [float(value) for value in self.result.get("values") or () if isinstance(value, int | float | str)]
        return [value for value in values if math.isfinite(value)]


@dataclass(frozen=True)
class StudySection:
    """One comparison; without arms nothing was compared. `retrained` is the score of the winner's last training."""

    round: int
    arms: list[ArmRow]
    winner: str | None
    why: str
    retrained: Mapping[str, Any] | None
    svg: Markup = NO_DRAWING


def studies(entries: Iterable[Entry], target: float | None = None) -> list[StudySection]:
    """Return every comparison that the ledger recorded, with its drawing."""
    return [replace(study, svg=_plot(study.arms, target, f"trials/{study.round}")) for study in comparisons(entries)]


def comparisons(entries: Iterable[Entry]) -> list[StudySection]:
    """Return every comparison that the ledger recorded, without a drawing."""
    decisions: list[tuple[dict[str, Any], dict[str, Any] | None]] = []  # each with the training of its winner
    unchanged = False
    for entry in entries:
        kind, data = entry["kind"], entry["data"]
        if kind == "study.decided":
            decisions.append((data, None))
            unchanged = True
        elif kind == "job.finished" and data["id"] == FIXED and decisions:
            decisions[-1] = (decisions[-1][0], data)
        elif kind == "candidate.chosen":
            unchanged = False
        elif kind == "branch.decided" and data["phase"] == "optimization" and unchanged and decisions[-1][1]:
            # The branch is decided after the candidate: without one the winner was not adopted.
            decisions[-1] = (decisions[-1][0], {**decisions[-1][1], "refused": True})
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


def _plot(rows: Sequence[ArmRow], target: float | None, salt: str) -> Markup:
    """Return a row per arm with a dot per seed and a bar at the mean; empty where nothing was compared."""
    drawn = [row for row in rows if row.scores]
    if not drawn:
        return NO_DRAWING

    def paint(canvas: Canvas) -> None:
        axes, ends = canvas.axes, [score for row in drawn for score in row.scores]
        canvas.rows([row.name for row in drawn], ends, marked_target(target))
        for at, row in enumerate(drawn):
            colour = GREY if row.is_control else GREEN if row.tone == "good" else BLUE
            for seed, score in enumerate(row.scores, 1):
                (dot,) = axes.plot([score], [at], "o", color=colour, alpha=0.45, markersize=7, markeredgewidth=0)
                canvas.hover(dot, f"{row.name}, seed {seed}: {number(score)}")
            mean = sum(row.scores) / len(row.scores)
            (bar,) = axes.plot([mean, mean], [at - 0.2, at + 0.2], color=colour, linewidth=2.4, zorder=3)
            canvas.hover(bar, f"{row.name}: mean {number(mean)} over {len(row.scores)} seeds, {row.verdict}")
            canvas.note(at, 1, "right", number(mean), colour)

    label = "score of each configuration, a dot per seed"
    return drawing(paint, label, salt, rows_height(len(drawn)), ROW_MARGINS)


def _verdict(arm: Mapping[str, Any], winner: str | None, training: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return what the comparison says of an arm, and the tone it is shown in.

    A winner is adopted only if its training with the plan's seed, which follows the comparison, did not die and does
    not show the symptom that it should remove.
    """
    if arm["id"] == "control":
        return "no change", "plain"
    if arm["id"] == winner and training and training.get("died"):
        return "not adopted: its training with the plan's seed died", "bad"
    if arm["id"] == winner and training and training.get("refused"):
        return "not adopted: its training with the plan's seed still shows the symptom", "bad"
    if arm["id"] == winner:
        return ("adopted", "good") if training else ("chosen", "plain")
    if arm.get("harms"):
        return f"better, and harms {', '.join(arm['harms'])}", "bad"
    if not arm.get("wins"):
        return "not shown to be better", "plain"
    if "reaches" not in arm:
        return "better", "plain"
    return f"better, {'reaches' if arm['reaches'] else 'misses'} the target", "plain"
