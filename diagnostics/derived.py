"""Facts that follow from a history: what happens at resumes and starts of epochs, and what other models score."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.history import History

WINDOW = 8  # losses on each side of a resume or the start of an epoch
RESUMES = ("resumed", "restart")  # kinds of events after which a training goes on from a checkpoint


def derived_facts(history: History) -> dict[str, float]:
    """Return `jump_at_resume`, `resume_break`, `drop_at_epoch` and `reference_score`, as far as they can be computed.

    `jump_at_resume` is the median training loss after the resume that changed it most, divided by that before;
    `resume_break` is the same or its inverse, whichever is larger. `drop_at_epoch` is the share of the whole
    improvement that happens within the first steps of epochs. `reference_score` is the best score of other models
    that were trained on the same rows.
    """
    steps, values = history.series("train/loss")
    losses = np.asarray(values, np.float64)
    facts: dict[str, float] = {}
    jumps = list(_jumps(history, steps, losses))
    if jumps:
        jump = max(jumps, key=lambda value: max(value, 1 / value))
        facts |= {"jump_at_resume": jump, "resume_break": max(jump, 1 / jump)}
    if (drop := _drop_at_epoch(history.facts, steps, losses)) is not None:
        facts["drop_at_epoch"] = drop
    if (score := _reference_score(history.facts)) is not None:
        facts["reference_score"] = score
    return facts


def score_spread(ends: Sequence[float]) -> float | None:
    """Return the range of the final losses of several runs, divided by their mean; None if that says nothing."""
    mean = float(np.mean(ends)) if len(ends) > 1 else 0.0
    return (max(ends) - min(ends)) / mean if np.isfinite(ends).all() and mean > 0 else None


def _reference_score(facts: Mapping[str, float]) -> float | None:
    """Return the best score of the baseline models, by the direction in which the target lies."""
    scores = [value for name, value in facts.items() if name.startswith("baseline_model/") and np.isfinite(value)]
    if not scores or not {"target", "trivial"} <= facts.keys():
        return None
    return max(scores) if facts["target"] > facts["trivial"] else min(scores)


def _jumps(history: History, steps: NDArray[np.int64], losses: NDArray[np.float64]) -> Iterator[float]:
    for event in history.events:
        if event["kind"] in RESUMES:
            place = int(np.searchsorted(steps, int(event["step"]), "right"))
            before, after = losses[max(0, place - WINDOW) : place], losses[place : place + WINDOW]
            if min(len(before), len(after)) >= WINDOW // 2:
                old, new = float(np.median(before)), float(np.median(after))
                if 0 < old < np.inf and 0 < new < np.inf:
                    yield new / old


def _drop_at_epoch(facts: Mapping[str, float], steps: NDArray[np.int64], losses: NDArray[np.float64]) -> float | None:
    length = facts.get("steps_per_epoch", 0.0)
    if not 2 * WINDOW <= length < len(losses) or not np.isfinite(losses).all():
        return None
    improvement = float(np.median(losses[:WINDOW]) - np.median(losses[-WINDOW:]))
    if improvement <= 0:
        return None
    starts = np.arange(int(length), len(losses) - WINDOW, int(length))
    drops = [float(np.median(losses[s - WINDOW : s]) - np.median(losses[s : s + WINDOW])) for s in starts]
    return float(np.clip(sum(drops) / improvement, 0.0, 1.0)) if drops else None
