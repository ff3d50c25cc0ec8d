"""What orders the rows of a log: steps, also where each epoch counts anew, restarts, and rows that belong nowhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diagnostics.logs.row import Notes

Numbers = NDArray[np.float64]
IRREGULAR = 0.1  # share of its length by which one epoch may differ from another


@dataclass
class Restart:
    """An index that steps back: the training was resumed there, or another one begins in the same log."""

    line: int
    index: str
    before: float
    after: float

    def sentence(self) -> str:
        return f"line {self.line}: {self.index} goes back from {self.before:g} to {self.after:g}"


def over_epochs(steps: Numbers, epochs: Numbers) -> tuple[Numbers, float]:
    """Return steps that count on over epochs where the log counts them within each epoch, and the steps of an epoch."""
    both = np.flatnonzero(np.isfinite(steps) & np.isfinite(epochs))
    if len(both) < 2:
        return steps, 0
    step, epoch = steps[both], epochs[both]
    if (epoch != np.floor(epoch)).mean() > 0.5:  # each step is a fraction of an epoch
        return steps, _length_of_epochs(step, epoch)
    new_epoch, falls = np.diff(epoch) > 0, np.diff(step) < 0
    if not falls.any() or (falls & ~new_epoch).sum() > 0.2 * falls.sum() or (epoch != np.floor(epoch)).any():
        whole = epoch == np.floor(epoch)
        numbers, places = np.unique(epoch[whole], return_inverse=True)
        ends = np.full(len(numbers), -math.inf)
        np.maximum.at(ends, places, step[whole])
        gaps = np.diff(ends[:1000]) if len(ends) > 2 else np.zeros(0)
        return steps, float(gaps[0]) if len(gaps) and gaps[0] > 0 and (gaps == gaps[0]).all() else 0
    length = float(step.max()) + (1.0 if step.min() == 0 else 0.0)
    counted = steps.copy()
    counted[both] = (epoch - epoch.min()) * length + step
    return counted, length


def rows_per_epoch(steps: Numbers, epochs: Numbers) -> float:
    """Return how many rows an epoch has in a log that counts no steps, 0 if it has no regular number of them."""
    with_epoch = np.flatnonzero(np.isfinite(epochs))
    if np.isfinite(steps).any() or len(with_epoch) < 2:
        return 0.0
    return _length_of_epochs(with_epoch.astype(np.float64), epochs[with_epoch])


def _length_of_epochs(places: Numbers, epochs: Numbers) -> float:
    """Return the distance from one begin of an epoch to the next; 0 if it is not the same for each."""
    _, begins = np.unique(np.floor(epochs), return_index=True)
    gaps = np.diff(places[np.sort(begins)])[1:]  # the first may be shorter, as where a step counts from 20
    regular = len(gaps) >= 2 and np.ptp(gaps) <= max(1.0, IRREGULAR * float(np.median(gaps)))
    return float(gaps.mean()) if regular and gaps.min() > 0 else 0.0


def epochs_as_steps(steps: Numbers, epochs: Numbers, validation: NDArray[np.bool_]) -> bool:
    """Move the steps of validation rows to their epochs where these rows count epochs; return whether they do.

    They do if they have no epoch of their own, count 1, 2, 3, ... and fall behind the steps of the other rows.
    """
    own = np.flatnonzero(validation & np.isfinite(steps))
    others = steps[~validation & np.isfinite(steps)]
    if len(own) < 2 or not len(others) or np.isfinite(epochs[own]).any():
        return False
    counts = bool((np.diff(steps[own]) >= 1).all()) and float(np.median(np.diff(steps[own]))) == 1
    before = own[own > 0]
    falls = [steps[place] < np.nanmax(steps[:place]) for place in before if np.isfinite(steps[:place]).any()]
    if not counts or not falls or np.mean(falls) < 0.5:
        return False
    epochs[own], steps[own] = steps[own], np.nan
    return True


def order_of(steps: Numbers, epochs: Numbers, count: int) -> tuple[Numbers, str]:
    """Return what orders the rows: the step where most rows have one, else the epoch, else nothing but the line."""
    for values, name in ((steps, "step"), (epochs, "epoch")):
        if count and np.isfinite(values).sum() >= 0.5 * count:
            return values, name
    return np.full(count, np.nan), "line"


def segments(
    order: Numbers, lines: NDArray[np.int64], index: str, notes: Notes
) -> tuple[NDArray[np.bool_], list[Restart]]:
    """Return which rows count, and the restarts.

    A single row whose index steps back and that the next row does not follow is set aside. From a resumed training on,
    the rows that it repeats are those that count; of a training that begins anew, only the last one counts.
    """
    kept = np.ones(len(order), bool)
    known = np.flatnonzero(np.isfinite(order))
    if (np.diff(order[known]) >= 0).all():
        return kept, []
    restarts: list[Restart] = []
    last = -math.inf
    for turn, place in enumerate(known.tolist()):
        value = float(order[place])
        if value >= last:
            last = value
            continue
        following = float(order[known[turn + 1]]) if turn + 1 < len(known) else math.inf
        if following >= last or turn + 1 == len(known):
            kept[place] = False
            notes.skip(int(lines[place]), f"its {index} {value:g} is below that of the row before it ({last:g})")
            continue
        restarts.append(Restart(int(lines[place]), index, last, value))
        earlier = known[:turn]
        kept[earlier[order[earlier] >= value]] = False
        begins_anew = value <= float(order[known[0]])
        kept[:place] &= not begins_anew
        # Rows without an index of their own belong to the row before them.
        last = value
    for place in np.flatnonzero(~np.isfinite(order)).tolist():
        if place and not kept[place - 1] and np.isfinite(order).any():
            kept[place] = False
    return kept, restarts


def filled(index: Numbers, kept: NDArray[np.bool_]) -> Numbers:
    """Return an index in which rows without one have that of the row before them, if only few rows lack it."""
    known = np.isfinite(index)
    if known.all() or known.sum() < 0.5 * len(index):
        return index
    places = np.maximum.accumulate(np.where(known, np.arange(len(index)), -1))
    return np.where(places >= 0, index[np.maximum(places, 0)], np.nan)
