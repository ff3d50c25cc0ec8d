"""Verdicts: which share of the shortfall a change restores, and what that says of its causes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from pipeline.experiments.arms.arm import Arm
from pipeline.experiments.result import ArmResult, Verdict
from pipeline.experiments.worker_process import Outcome

CONFIRMED = 0.5  # of the shortfall, on every seed
REFUTED = 0.1  # of the shortfall: a change that restores less on every seed does not mend the run
SEEDS = 3  # on which a confirmed change restores its share
EXPLAINED = 0.9  # of the shortfall: nothing is left to explain


@dataclass(frozen=True)
class Shortfall:
    """What a run misses: from the scores of its control to the goal, the target or else that of a reference model.

    `at_steps` is the control's score after as many steps as the short experiments have.
    """

    controls: tuple[float, ...]
    goal: float
    trivial: float
    greater_is_better: bool
    at_steps: float = math.nan

    @property
    def control(self) -> float:
        """The mean score of the control; at least the trivial baseline, which is what a diverged control is worth."""
        all_scored = bool(self.controls) and all(map(math.isfinite, self.controls))
        mean = sum(self.controls) / len(self.controls) if all_scored else self.trivial
        return max(mean, self.trivial) if self.greater_is_better else min(mean, self.trivial)

    def from_controls(self, controls: Sequence[float]) -> Self:
        """What trainings with these scores miss of the same goal."""
        return replace(self, controls=tuple(controls), at_steps=math.nan)

    @property
    def exists(self) -> bool:
        """Whether the control misses the goal."""
        gap = self.goal - self.control
        return gap > 0 if self.greater_is_better else gap < 0

    def restored(self, value: float) -> float:
        """The share of the shortfall that a score removes; 0 for a training without one."""
        if not math.isfinite(value):
            return 0.0
        return (value - self.control) / (self.goal - self.control)

    def gained(self, value: float) -> float:
        """The same share, counted from the control after equally few steps."""
        start = self.at_steps if math.isfinite(self.at_steps) else self.control
        return (value - start) / (self.goal - self.control) if math.isfinite(value) else 0.0

    def beats_controls(self, value: float) -> bool:
        """Whether a score is better than that of every control."""
        scores = [score for score in self.controls if math.isfinite(score)]
        return all(value > score if self.greater_is_better else value < score for score in scores)


def judge(arm: Arm, outcomes: Sequence[Outcome], shortfall: Shortfall, *, whole: bool, change: str = "") -> ArmResult:
    """Return the result of an arm from its trainings, one per seed; `whole` if they had the arm's full length."""
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    values = [outcome.value for outcome in outcomes]
    shares = [shortfall.restored(value) for value in values]
    finite = [value for value in values if math.isfinite(value)]
    crashed = [outcome for outcome in outcomes if outcome.died or outcome.result.get("error")]
    verdict: Verdict
    if crashed:
        verdict, why = "inconclusive", f"the change cannot be trained: {failures[0]}"
    elif arm.kind == "context":
        verdict, why = "inconclusive", f"{_format_shares(shares)} of the shortfall restored by replacing a whole group"
    elif len(shares) >= SEEDS and min(shares) >= CONFIRMED and all(map(shortfall.beats_controls, values)):
        verdict, why = "confirmed", f"{_format_shares(shares)} of the shortfall restored on {len(shares)} seeds"
    elif failures and max(shares) < REFUTED:
        verdict, why = "refuted", f"the changed training has no score: {failures[0]}"
    elif max(shares) < REFUTED and (whole or max(map(shortfall.gained, values)) < REFUTED):
        verdict, why = "refuted", f"{_format_shares(shares)} of the shortfall restored"
    else:
        needed = "" if len(shares) >= SEEDS else f" on {len(shares)} of {SEEDS} seeds"
        verdict, why = "inconclusive", f"{_format_shares(shares)} of the shortfall restored{needed}"
    return ArmResult(
        id=arm.id,
        causes=arm.causes if arm.kind == "repair" else (),
        change=change or arm.change,
        expected=arm.expected,
        control=shortfall.control,
        observed=sum(finite) / len(finite) if finite else math.nan,
        restored=None if crashed else sum(shares) / len(shares),
        verdict=verdict,
        seeds=len(outcomes),
        steps=max(int(outcome.result.get("steps", 0)) for outcome in outcomes),
        why=why,
    )


def _format_shares(shares: Sequence[float]) -> str:
    """Return shares as text: 0.82, or 0.75 to 0.91."""
    low, high = (0.0 if abs(share) < 0.005 else share for share in (min(shares), max(shares)))  # without a sign
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
