"""What the schedules of an optimizer have done, from their own counters: how often they moved, and what they are for.

An optimizer does not know its schedules, so that they are looked for among the objects that refer to it.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    StepLR,
)

LOOKS = 3  # after this many validations every schedule of a loop exists
TENTH = 0.1  # of its first rate: a schedule that has come down to it has all but ended a training


@dataclass
class Schedule:
    """One schedule: its counter when it was first seen and at the latest validation, and what it is made for.

    `steps_to_tenth` is the number of steps after which the rate is a tenth of the first one, `rises_for` the number
    during which it rises; None where the schedule has no such number.
    """

    name: str
    first_step: int
    steps_to_tenth: float | None
    rises_for: float | None
    last_step: int = 0
    reference: weakref.ref[LRScheduler] | None = field(default=None, repr=False)


class Schedules:
    """The schedules of one optimizer, and the counts of validations and updates that belong to their counters."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self.known: list[Schedule] = []
        self.validations, self.updates = 0, 0
        self.found_at = 0  # updates before the schedules were found

    def find(self, updates: int = 0) -> None:
        """Look for schedules, if none is known yet."""
        if not self.known:
            self.known = [_describe(schedule) for schedule in _of_optimizer(self._optimizer)]
            self.found_at = updates

    def validated(self, validations: int, updates: int) -> None:
        """Read the counters after a validation."""
        if validations == LOOKS:
            self.find(updates)
        self.validations, self.updates = validations, updates
        for entry in self.known:
            schedule = entry.reference() if entry.reference else None
            if schedule is not None:
                entry.last_step = int(schedule.last_epoch)


def _of_optimizer(optimizer: Optimizer) -> Iterator[LRScheduler]:
    """Yield the schedules of an optimizer that no other schedule contains."""
    holders = [*gc.get_referrers(optimizer)]
    holders += [owner for holder in holders if type(holder) is dict for owner in gc.get_referrers(holder)]
    schedules = {id(holder): holder for holder in holders if isinstance(holder, LRScheduler)}
    inner = {id(part) for schedule in schedules.values() for part in getattr(schedule, "_schedulers", ())}
    for identity, schedule in schedules.items():
        if schedule.optimizer is optimizer and identity not in inner:
            yield schedule


def _describe(schedule: LRScheduler) -> Schedule:
    step = int(schedule.last_epoch)
    name = type(schedule).__name__
    return Schedule(name, step, steps_to_tenth(schedule), rises_for(schedule), step, weakref.ref(schedule))


def steps_to_tenth(schedule: LRScheduler) -> float | None:
    """Return after how many steps a schedule is down to a tenth of its first rate; None if it has no such end."""
    if isinstance(schedule, CosineAnnealingLR):
        return float(schedule.T_max)
    if isinstance(schedule, PolynomialLR):
        return float(schedule.total_iters)
    if isinstance(schedule, LinearLR):
        return float(schedule.total_iters) if schedule.end_factor <= TENTH * schedule.start_factor else None
    if isinstance(schedule, ExponentialLR | StepLR | MultiStepLR) and 0 < schedule.gamma < 1:
        falls = math.log(TENTH) / math.log(schedule.gamma)
        if isinstance(schedule, MultiStepLR):
            milestones = sorted(schedule.milestones.elements())
            needed = max(1, math.ceil(falls - 1e-9))
            return float(milestones[needed - 1]) if len(milestones) >= needed else None
        return falls * schedule.step_size if isinstance(schedule, StepLR) else falls
    return None


def rises_for(schedule: LRScheduler) -> float | None:
    """Return the number of steps during which the rate rises; None if it does not, or not by a known number.

    Schedules of transformers are `LambdaLR` of a partial function that knows it by name.
    """
    if isinstance(schedule, OneCycleLR):
        return float(schedule._schedule_phases[0]["end_step"])
    if isinstance(schedule, LinearLR) and schedule.end_factor > schedule.start_factor:
        return float(schedule.total_iters)
    if isinstance(schedule, LambdaLR):
        calls = [call for call in schedule.lr_lambdas if isinstance(call, partial)]
        steps = [call.keywords["num_warmup_steps"] for call in calls if "num_warmup_steps" in call.keywords]
        return float(steps[0]) if steps else None
    return None
