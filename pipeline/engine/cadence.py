"""Cadence: when a training looks up from its steps, to write a checkpoint or because its time is over.

Neither changes what is computed; a stop by the clock is recorded.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Cadence:
    """Checkpoints every so many seconds and every so many steps; `look_at` is when time asks for a look next."""

    seconds: float
    steps: int
    deadline: float = math.inf
    save_at: float = math.inf
    save_step: int = sys.maxsize
    look_at: float = math.inf

    @classmethod
    def of(cls, trainer: Mapping[str, Any]) -> Cadence:
        """That of a config's `trainer`."""
        every, steps = trainer.get("checkpoint_minutes"), trainer.get("checkpoint_steps")
        return cls(60 * float(every) if every else math.inf, int(steps) if steps else sys.maxsize)

    def begin(self, step: int, spent: float, max_minutes: float | None) -> None:
        """Time runs from now; `spent` seconds of `max_minutes` are used up."""
        self.deadline = time.perf_counter() - spent + 60 * float(max_minutes or math.inf)
        self.saved(step)

    def saved(self, step: int) -> None:
        """A checkpoint was written, or left out, at this step: the next is a whole interval away."""
        if self.step_due(step) or self.time_due or self.look_at == math.inf:
            self.save_at = time.perf_counter() + self.seconds
            self.save_step = step - step % self.steps + self.steps
        self.look_at = min(self.deadline, self.save_at)

    def due(self, step: int) -> bool:
        """Whether to look up after this step."""
        return step >= self.save_step or time.perf_counter() >= self.look_at

    def step_due(self, step: int) -> bool:
        """Whether so many steps were made that a checkpoint is due, waiting for the one before it if need be."""
        return step >= self.save_step

    @property
    def time_due(self) -> bool:
        """Whether so much time has passed that a checkpoint is due, unless one is being written."""
        return time.perf_counter() >= self.save_at

    @property
    def over(self) -> bool:
        """Whether the time is used up."""
        return time.perf_counter() >= self.deadline
