"""Faults of a schedule: it never moves, moves once per update instead of per epoch, or the reverse.

The counter of a schedule says how often it moved, and its settings what it is made for. A schedule of the loop's own is
judged by the learning rates alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.optim import Optimizer

from diagnostics.loops.judgement import SURE, listed, unusual
from diagnostics.loops.schedules import LOOKS, Schedule, Schedules
from pipeline.history import History
from pipeline.inspection.finding import Finding, contradiction

CAUSE = "scheduler_misstepped"
DECAYED = 0.01  # share of the highest rate below which a schedule has ended the training
FEWEST = 4  # updates per epoch from which on steps per update and steps per epoch can be told apart
NEARLY = 0.9  # share of the updates at which a schedule moves that moves at each; some skip the first
EPOCHS = 1.5  # times the epochs so far, that a schedule for epochs may be made for


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
    first = next((float(g["initial_lr"]) for g in optimizer.param_groups if "initial_lr" in g), None)
    if first is not None and not changes and not math.isclose(first, rates[0], rel_tol=1e-9):
        sentence = f"The learning rate stays at {rates[0]:.3g}, where a schedule for {first:.3g} began: it never steps."
        yield unusual(CAUSE, "rate_never_changes", sentence, SURE, float(rates[0]), "learning rate")
