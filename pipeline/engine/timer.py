"""When a training looks up from its steps: to write a checkpoint, or because its time is used up.

Checkpoints do not change what is computed. A stop by the clock does, and is recorded as an event.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

from pipeline.config.sections import TrainerConfig


@dataclass
class TrainingTimer:
    """Checkpoint intervals in seconds and in steps, and the time limit in seconds; without arguments nothing is due.

    The hot loop only compares with `next_poll`, the earliest time at which anything is due.
    """

    checkpoint_seconds: float = math.inf
    checkpoint_steps: int = sys.maxsize
    max_seconds: float = math.inf
    deadline: float = math.inf
    checkpoint_time: float = math.inf
    checkpoint_step: int = sys.maxsize
    next_poll: float = math.inf

    @classmethod
    def from_config(cls, trainer: TrainerConfig) -> TrainingTimer:
        """Return the timer of a config's `trainer` section."""
        minutes, steps, limit = trainer.checkpoint_minutes, trainer.checkpoint_steps, trainer.max_minutes
        return cls(60 * minutes if minutes else math.inf, steps or sys.maxsize, 60 * limit if limit else math.inf)

    def start(self, step: int, seconds_spent: float) -> None:
        """Start the clock at this step; `seconds_spent` of the limit are already used up."""
        self.deadline = time.perf_counter() - seconds_spent + self.max_seconds
        self.checkpoint_done(step)

    def checkpoint_done(self, step: int) -> None:
        """Schedule the next checkpoint, a whole interval after this step, which wrote or skipped one."""
        if self.step_checkpoint_due(step) or self.timed_checkpoint_due or self.next_poll == math.inf:
            self.checkpoint_time = time.perf_counter() + self.checkpoint_seconds
            self.checkpoint_step = step - step % self.checkpoint_steps + self.checkpoint_steps
        self.next_poll = min(self.deadline, self.checkpoint_time)

    def poll_due(self, step: int) -> bool:
        """Whether a checkpoint is due or the time is used up after this step."""
        return step >= self.checkpoint_step or time.perf_counter() >= self.next_poll

    def step_checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is due by the number of steps; it waits for an unfinished one."""
        return step >= self.checkpoint_step

    @property
    def timed_checkpoint_due(self) -> bool:
        """Whether a checkpoint is due by time; it is skipped while another one is being written."""
        return time.perf_counter() >= self.checkpoint_time

    @property
    def time_over(self) -> bool:
        """Whether the time limit is reached."""
        return time.perf_counter() >= self.deadline
