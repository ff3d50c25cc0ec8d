"""The allowance of a round of experiments, in planned trainings, and what of it is spent."""

from __future__ import annotations

from dataclasses import dataclass

TRAININGS = 8.0  # planned trainings that all experiments together may cost
SECONDS = 300.0  # and at most so long, at the measured time of a step
SHORT = 0.25  # the length of a screening experiment
MAX_SHORT, MAX_WHOLE = 12, 3  # arms at that length, and trainings at full length besides the controls
CONTROL_SEEDS = 2
REPEATS = 3.0  # planned trainings that are kept for the repetition of the best arms on other seeds


@dataclass
class Allowance:
    """Planned trainings that may still be spent."""

    trainings: float
    spent: float = 0.0

    @classmethod
    def of_run(cls, max_steps: int, step_seconds: float, parallel: int) -> Allowance:
        """The allowance of a run whose training has `max_steps` steps of `step_seconds` each."""
        seconds = max_steps * step_seconds
        return cls(min(TRAININGS, SECONDS * parallel / seconds) if seconds > 0 else TRAININGS)

    def affords(self, cost: float) -> bool:
        """Whether an experiment of this cost fits into what is left."""
        return self.spent + cost <= self.trainings + 1e-9

    def spend(self, cost: float) -> None:
        self.spent += cost

    @property
    def left(self) -> float:
        return max(0.0, self.trainings - self.spent)
