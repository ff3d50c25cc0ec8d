"""The budget of a training in optimizer steps, computed in one place for planning, training and optimization."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pipeline.config.sections import LoaderConfig, TrainerConfig

OVERFIT_STEPS = 300  # steps on the one batch of the overfit check if its job does not say how many
OVERFIT_EPOCH = 25  # steps between two measurements of that batch


@dataclass(frozen=True)
class StepBudget:
    """Optimizer steps per epoch and in all; `cut_short` if the job allows fewer steps than the plan.

    `batch_size` rows make a batch, and `accumulate` batches one step. The last batch of an epoch and the last step may
    have fewer; no row is dropped.
    """

    batch_size: int
    accumulate: int
    steps_per_epoch: int
    max_steps: int
    cut_short: bool = False

    @property
    def length(self) -> tuple[int, int]:
        """The length of the training in steps and in epochs; a partial epoch counts as one."""
        return self.max_steps, math.ceil(self.max_steps / self.steps_per_epoch)

    def limited_to(self, max_steps: int | None) -> StepBudget:
        """Return the budget of a job that allows at most `max_steps`; None is no limit."""
        if max_steps is None or max_steps >= self.max_steps:
            return self
        return replace(self, max_steps=max_steps, cut_short=True)


def planned_budget(trainer: TrainerConfig, loader: LoaderConfig, rows: int) -> StepBudget:
    """Return the plan's budget for so many train rows: its epochs, or `trainer.max_steps` if that is reached first."""
    batch_size, accumulate = min(int(loader.batch_size), rows), int(trainer.accumulate_grad_batches)
    steps_per_epoch = math.ceil(rows / (batch_size * accumulate))
    max_steps = int(trainer.max_epochs) * steps_per_epoch
    return StepBudget(batch_size, accumulate, steps_per_epoch, min(max_steps, int(trainer.max_steps or max_steps)))


def overfit_budget(rows: int, max_steps: int | None) -> StepBudget:
    """Return the budget of the overfit check, which trains on the same batch of `rows` rows in every step."""
    return StepBudget(rows, 1, OVERFIT_EPOCH, OVERFIT_STEPS if max_steps is None else max_steps)


def extended_steps(max_steps: int, planned_epochs: int, epochs: Iterable[int]) -> int:
    """Return the planned steps, scaled up to the longest of `epochs` where that is longer than planned."""
    return math.ceil(max_steps * max([1.0, *(count / planned_epochs for count in epochs)]))
