"""The allowance of a round of experiments, and what of it is spent.

It is counted in slices. The slice of a short training is the whole of it; that of a longer one is its beginning, so
long that eight of them fit into the time of a round. Its steps are counted once for a plan and stated in the ledger
before any experiment, so that later rounds, on whatever machine, have the same slice.
"""

from __future__ import annotations

from dataclasses import dataclass

TRAININGS = 8.0  # slices that all experiments together may cost
SECONDS = 300.0  # and at most so long, at the measured time of a step
SHORT = 0.25  # of a slice: the length of a screening experiment
MAX_SHORT, MAX_WHOLE = 12, 3  # arms at that length, and arms at full length besides the controls
CONTROL_SEEDS = 2
REPEATS = 3.0  # slices that are kept for the repetition of the best arms on other seeds


def slice_steps(max_steps: int, step_seconds: float) -> int:
    """The steps of a slice of a training that has `max_steps` steps of `step_seconds` each.

    Experiments that run at the same time are counted one after the other, so that the allowance does not depend on
    the machine's cores and the round keeps its time also where nothing can be trained in parallel.
    """
    seconds = TRAININGS * max_steps * step_seconds
    share = min(1.0, SECONDS / seconds) if seconds > 0 else 1.0
    return max(1, round(max_steps * share))


@dataclass
class Allowance:
    """Slices that may still be spent; `slice` is the length of one, as a share of the planned training."""

    slice: float = 1.0
    trainings: float = TRAININGS
    spent: float = 0.0

    @classmethod
    def of_run(cls, max_steps: int, slice_steps: int) -> Allowance:
        """The allowance of a run whose training has `max_steps` steps, with slices of so many of them."""
        return cls(slice=min(1.0, slice_steps / max_steps) if max_steps > 0 else 1.0)

    def affords(self, cost: float) -> bool:
        """Whether an experiment of this cost fits into what is left."""
        return self.spent + cost <= self.trainings + 1e-9

    def spend(self, cost: float) -> None:
        self.spent += cost

    @property
    def left(self) -> float:
        return max(0.0, self.trainings - self.spent)
