"""Schedules of the learning rate: what they have done and are made for, and the faults that follow from it.

An optimizer does not know its schedules, so that they are looked for among the objects that refer to it. The counter of
a schedule says how often it moved; a schedule of the loop's own is judged by the learning rates alone.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
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

from diagnostics.loops.judgement import SURE, listed
from pipeline.history import History
from pipeline.inspection.finding import Finding, contradiction, unusual

LOOKS = 3  # after this many validations every schedule of a loop exists
TENTH = 0.1  # of its first rate: a schedule that has come down to it has all but ended a training
CAUSE = "scheduler_misstepped"
DECAYED = 0.01  # share of the highest rate below which a schedule has ended the training
FEWEST = 4  # updates per epoch from which on steps per update and steps per epoch can be told apart
NEARLY = 0.9  # share of the updates at which a schedule moves that moves at each; some skip the first
RESTARTS = 2  # falls of the rate to its first value
EPOCHS = 1.5  # times the epochs so far, that a schedule for epochs may be made for


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


# --- faults ----------------------------------------------------------------------------------------------------------


def schedule_findings(
    schedules: Schedules, optimizer: Optimizer, history: History, epochs: Sequence[int]
) -> Iterator[Finding]:
    """Yield what is wrong with the schedules of a loop after at least three validations."""
    if len(epochs) < LOOKS:
        return
    resting = [entry.name for entry in schedules.known if not entry.last_step]
    if resting and schedules.updates:
        sentence = f"{listed(resting)} has made no step after {len(epochs)} validations: the loop never calls step()."
        yield unusual(CAUSE, "schedule_at_rest", sentence, SURE, 0.0, "steps")
    if schedules.updates < FEWEST * len(epochs):  # an update per epoch or two: no telling one from the other
        return
    known = [finding for entry in schedules.known for finding in _of_counter(entry, schedules, epochs)]
    yield from known or _of_rates(optimizer, history)


def _of_counter(entry: Schedule, schedules: Schedules, epochs: Sequence[int]) -> Iterator[Finding]:
    moves = entry.last_step - entry.first_step
    validations, updates = len(epochs), schedules.updates
    apart = epochs[1] - epochs[0]
    if moves and apart > 0 and epochs[0] > max(apart, 1) and not entry.first_step and not schedules.found_at:
        sentence = (
            f"The first epoch is {epochs[0]}, but {entry.name} began with step 0: its state was lost on resume. Load "
            "its state_dict with that of the model."
        )
        yield unusual("resume_state_lost", "state_of_schedule", sentence, SURE, float(epochs[0]), "epochs")
    tenth, rise = entry.steps_to_tenth, entry.rises_for
    if moves >= NEARLY * (updates - schedules.found_at) and tenth is not None and tenth <= EPOCHS * validations:
        sentence = (
            f"{entry.name} takes the rate down within {tenth:.0f} steps, as for the {validations} epochs, and has made "
            f"{moves} steps in {updates} updates: a schedule meant for epochs is stepped per batch."
        )
        yield unusual(CAUSE, "steps_of_schedule", sentence, SURE, float(moves), "steps")
    if 0 < moves <= validations + 1 and rise is not None and rise > FEWEST * validations:
        sentence = (
            f"{entry.name} raises the rate during {rise:.0f} steps, and has made {moves} steps in {updates} updates "
            f"and {validations} epochs: a schedule meant for updates is stepped per epoch."
        )
        yield unusual(CAUSE, "steps_of_schedule", sentence, SURE, float(moves), "steps")


def _of_rates(optimizer: Optimizer, history: History) -> Iterator[Finding]:
    """Judge the learning rates of all updates."""
    if "lr" not in history.step:
        return
    rates = np.asarray(history.series("lr")[1], dtype=float)
    changes = np.count_nonzero(np.diff(rates)) / max(1, len(rates) - 1)
    ended = float(np.mean(rates < DECAYED * rates.max())) if rates.max() > 0 else 0.0
    if changes > 0.4 and ended > 0.6:
        sentence = (
            f"The learning rate changes at {changes:.0%} of the updates and is below a hundredth of its highest value "
            f"for {ended:.0%} of them: a schedule meant for epochs is stepped per batch."
        )
        if ended > 0.9:  # no schedule is meant to spend nine tenths of a training at a hundredth of the rate
            yield contradiction(CAUSE, "rate_over_updates", sentence, ended, "share of updates")
        else:
            yield unusual(CAUSE, "rate_over_updates", sentence, SURE, ended, "share of updates")
    falls = np.flatnonzero(np.diff(rates) < 0)
    if len(falls) >= RESTARTS and np.allclose(rates[falls + 1], rates[0]) and rates[falls].min() > 2 * rates[0]:
        sentence = (
            f"The learning rate rises from {rates[0]:.3g} and falls back to it at once, {len(falls)} times, as a "
            "warm-up does that begins anew: the states of schedule and optimizer were lost on resume."
        )
        yield unusual("resume_state_lost", "rate_begins_anew", sentence, SURE, float(len(falls)), "times")
    first = next((float(g["initial_lr"]) for g in optimizer.param_groups if "initial_lr" in g), None)
    if first is not None and not changes and not math.isclose(first, rates[0], rel_tol=1e-9):
        sentence = f"The learning rate stays at {rates[0]:.3g}, where a schedule for {first:.3g} began: it never steps."
        yield unusual(CAUSE, "rate_never_changes", sentence, SURE, float(rates[0]), "learning rate")
