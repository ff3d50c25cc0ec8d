"""The budget of a training in optimizer steps, computed in one place for planning, training and optimization."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from pipeline.config.sections import LoaderConfig, TrainerConfig
from pipeline.errors import UserError, fault

OVERFIT_STEPS = 300  # steps on the one batch of the overfit check if its job does not say how many
OVERFIT_EPOCH = 25  # steps between two measurements of that batch


@dataclass(frozen=True)
class StepBudget:
    """Optimizer steps per epoch and in all; `cut_short` if the job allows fewer steps than the plan.

    `batch_size` rows make a batch, and `accumulate` batches one step. The last batch of an epoch and the last step may
    have fewer; no row is dropped. `epoch_rows` are the train rows of an epoch where `trainer.limit_train_batches` takes
    some of them only; `check_every` are the steps between two validations inside an epoch; None without either.
    """

    batch_size: int
    accumulate: int
    steps_per_epoch: int
    max_steps: int
    cut_short: bool = False
    epoch_rows: int | None = None
    check_every: int | None = None

    @property
    def length(self) -> tuple[int, int]:
        """The length of the training in steps and in epochs; a partial epoch counts as one."""
        return self.max_steps, math.ceil(self.max_steps / self.steps_per_epoch)

    def next_check(self, step: int, last_step: int) -> int:
        """Return the step after which validation comes next: inside the epoch, or at its last step."""
        if self.check_every is None:
            return last_step
        since_start = step % self.steps_per_epoch
        return min(step - since_start % self.check_every + self.check_every, last_step)

    def limited_to(self, max_steps: int | None) -> StepBudget:
        """Return the budget of a job that allows at most `max_steps`; None is no limit."""
        if max_steps is None or max_steps >= self.max_steps:
            return self
        return replace(self, max_steps=max_steps, cut_short=True)


def planned_budget(trainer: TrainerConfig, loader: LoaderConfig, rows: int) -> StepBudget:
    """Return the plan's budget for so many train rows: its epochs, or `trainer.max_steps` if that is reached first.

    Raises UserError for a `trainer.val_check_interval` of more batches than an epoch has.
    """
    batch_size, accumulate = min(int(loader.batch_size), rows), int(trainer.accumulate_grad_batches)
    epoch_rows = limited_rows(trainer.limit_train_batches, batch_size, rows)
    steps_per_epoch = math.ceil(epoch_rows / (batch_size * accumulate))
    max_steps = int(trainer.max_epochs) * steps_per_epoch
    return StepBudget(
        batch_size,
        accumulate,
        steps_per_epoch,
        min(max_steps, int(trainer.max_steps or max_steps)),
        epoch_rows=epoch_rows if epoch_rows < rows else None,
        check_every=_check_every(trainer.val_check_interval, math.ceil(epoch_rows / batch_size), accumulate),
    )


def limited_rows(limit: int | float | None, batch_size: int, rows: int) -> int:
    """Return how many rows are in so many batches, or in this share of all batches, which is at least one batch."""
    if limit is None:
        return rows
    batches = limit if isinstance(limit, int) else max(1, int(limit * math.ceil(rows / batch_size)))
    return min(rows, batches * batch_size)


def stated_limits(trainer: TrainerConfig, budget: StepBudget, rows: int) -> Iterator[str]:
    """Yield what the limits of batches mean for this training, a sentence each."""
    if budget.epoch_rows is not None:
        share = f"{budget.epoch_rows:,} of {rows:,} train rows"
        yield f"trainer.limit_train_batches: an epoch has {share}, and other ones each time"
    if trainer.limit_val_batches is not None:
        chosen = "the best epoch is chosen by a part of the validation rows; the score is of all"
        yield f"trainer.limit_val_batches: {chosen}"


def _check_every(interval: int | float | None, batches: int, accumulate: int) -> int | None:
    """Return the optimizer steps between two validations inside an epoch of so many batches; None for none inside."""
    if interval is None or (interval == 1.0 and isinstance(interval, float)):
        return None
    if isinstance(interval, int) and interval > batches:
        expected = f"at most {batches}, the batches of an epoch, whose end is always validated"
        do = "python -m pipeline ... trainer.val_check_interval=0.5"
        what = "is longer than an epoch"
        raise UserError(fault("trainer.val_check_interval", what, got=interval, expected=expected, do=do))
    in_batches = interval if isinstance(interval, int) else int(interval * batches)
    return max(1, in_batches // accumulate)


def overfit_budget(rows: int, max_steps: int | None) -> StepBudget:
    """Return the budget of the overfit check, which trains on the same batch of `rows` rows in every step."""
    return StepBudget(rows, 1, OVERFIT_EPOCH, OVERFIT_STEPS if max_steps is None else max_steps)


def extended_steps(max_steps: int, planned_epochs: int, epochs: Iterable[int]) -> int:
    """Return the planned steps, scaled up to the longest of `epochs` where that is longer than planned."""
    return math.ceil(max_steps * max([1.0, *(count / planned_epochs for count in epochs)]))
