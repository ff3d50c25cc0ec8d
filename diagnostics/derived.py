"""Facts that follow from a history: jumps of the loss, scores that are stuck or lost, and what other models score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.history import History

WINDOW = 8  # losses on each side of a resume or the start of an epoch
# Scores from 0 to 1, of which more is better.
SCORES = ("accuracy", "balanced_accuracy", "f1", "auc", "map", "map50", "iou", "miou", "dice")
LOW = 0.6  # a score above it is not that of guessing
UNMOVED = 0.05  # above the first score, from which on it counts as improved
LOST = 0.03  # the least loss of a score that counts
FEWEST_POINTS = 8  # of a curve, whose shape fewer points do not show
BLOCKS = 10  # parts of a run whose medians are its levels
STANDARD_ERRORS = 3.0  # by which a loss of a score must exceed its noise
DERIVED = {  # the facts in words
    "jump_at_resume": "the training loss after a resume, divided by that before",
    "drop_at_epoch": "the share of the improvement that happens at the starts of epochs",
    "score_unmoved": "whether the validation score stays where it began (1: yes)",
    "score_lost": "what the validation score lost again after its best level",
    "score_ratio": "the best validation score, divided by the best one on train rows,",
    "loss_burst": "the largest training loss of the first tenth of the run, divided by the last one",
    "resume_break": "the factor by which the training loss changes at a resume",
    "score_follows_loss": "the correlation of the validation score with the validation loss",
    "accuracy_under_floor": "by how much the accuracy is below what the validation loss allows, which",
    "loss_left": "the last training loss, divided by that of guessing or else by the first one,",
}
RESUMES = ("resumed", "restart")  # kinds of events after which a training goes on from a checkpoint


def derived_facts(history: History) -> dict[str, float]:
    """Return `jump_at_resume`, `resume_break`, `drop_at_epoch` and `reference_score`, as far as they can be computed.

    A training that does not keep its best weights also has the facts of `_score_facts`. `jump_at_resume` is the median
    training loss after the resume that changed it most, divided by that before; `resume_break` is the same or its
    inverse, whichever is larger. `drop_at_epoch` is the share of the whole improvement that happens within the first
    steps of epochs. `reference_score` is the best score of other models that were trained on the same rows.
    """
    steps, values = history.series("train/loss")
    losses = np.asarray(values, np.float64)
    facts: dict[str, float] = {}
    jumps = list(_jumps(history, steps, losses))
    if jumps:
        jump = max(jumps, key=lambda value: max(value, 1 / value))
        facts |= {"jump_at_resume": jump, "resume_break": max(jump, 1 / jump)}
    if (drop := _drop_at_epoch(history.facts, losses)) is not None:
        facts["drop_at_epoch"] = drop
    if (score := _reference_score(history.facts)) is not None:
        facts["reference_score"] = score
    return facts if keeps_best(history) else {**facts, **_score_facts(history)}


def keeps_best(history: History) -> bool:
    """Whether a training keeps its best weights, as Fivegate's own do; of another one the last score counts."""
    return any(name.startswith("decides/") for name in history.facts)


def _score_facts(history: History) -> dict[str, float]:
    """Return `score_unmoved`, 1 if the score stays where it began, and more facts of the score and its losses.

    Fivegate's own trainings have a target and a score of guessing; a loop or a log has only the shape of its curve.
    `score_lost` is the best level of the score minus its last one, 0 within three standard errors; levels are medians
    of tenths of the run. `score_ratio` is the best score on validation divided by the best one on train rows.
    `score_follows_loss` is its correlation with the validation loss. `accuracy_under_floor` is by how much an accuracy
    is below `1 - loss / ln 2`: a wrong prediction has a cross-entropy of ln 2 at least. `loss_burst` is the largest
    training loss of the first tenth, divided by the last level. `loss_left` is that level as a share of the loss of
    guessing, or of the first loss; only where no score of train rows is known.
    """
    facts: dict[str, float] = {}
    for name in SCORES:
        scores = history.series(f"val/{name}")[1].astype(np.float64)
        if len(scores) >= FEWEST_POINTS and np.isfinite(scores).all():
            late = float(np.median(scores[len(scores) // 2 :]))
            facts["score_unmoved"] = float(late < LOW and late <= scores[0] + UNMOVED)
            facts["score_lost"] = _lost(scores)
            on_train = history.series(f"train/{name}")[1].astype(np.float64)
            if len(on_train) and np.isfinite(on_train).all() and on_train.max() > 0:
                facts["score_ratio"] = float(scores.max() / on_train.max())
            facts |= _score_and_loss(history, name)
            break
    losses = history.series("train/loss")[1].astype(np.float64)
    if len(losses) >= FEWEST_POINTS and np.isfinite(losses).all():
        end = float(np.median(losses[-max(1, len(losses) // BLOCKS) :]))
        guessing = history.facts.get("loss_expected", float(losses[0]))
        if guessing > 0 and not any(len(history.series(f"train/{name}")[1]) for name in SCORES):
            facts["loss_left"] = end / guessing
        if end > 0:
            facts["loss_burst"] = float(losses[: max(1, len(losses) // BLOCKS)].max()) / end
    return facts


def _score_and_loss(history: History, name: str) -> dict[str, float]:
    """Return how a score on validation and the loss of the same epochs belong together."""
    epochs, losses = history.series("val/loss")
    known, values = history.series(f"val/{name}")
    _, of_loss, of_score = np.intersect1d(epochs, known, return_indices=True)
    loss, score = losses[of_loss].astype(np.float64), values[of_score].astype(np.float64)
    if len(loss) < FEWEST_POINTS or not np.isfinite(loss).all() or loss.std() == 0 or score.std() == 0:
        return {}
    facts = {"score_follows_loss": float(np.corrcoef(loss, score)[0, 1])}
    if name == "accuracy":
        late = len(loss) // 2
        facts["accuracy_under_floor"] = max(0.0, float(np.median(1 - loss[late:] / math.log(2) - score[late:])))
    return facts


def _lost(scores: NDArray[np.float64]) -> float:
    """Return what a score lost from its best level to its last one; 0 where that is within its noise."""
    blocks = np.array_split(scores, min(BLOCKS, len(scores) // 2))
    levels = [float(np.median(block)) for block in blocks]
    # 1.4826 makes a median deviation a standard deviation; the difference of two scores has twice their variance.
    noise = 1.4826 * float(np.median(np.abs(np.diff(scores)))) / np.sqrt(2)
    # A median varies sqrt(pi / 2) = 1.2533 times as much as a mean; this is the error of the difference of two medians.
    error = 1.2533 * noise * np.sqrt(2 / len(blocks[-1]))
    lost = max(levels) - levels[-1]
    return lost if lost > max(LOST, STANDARD_ERRORS * error) else 0.0


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
    """Yield the training loss after each resume, divided by that before."""
    for event in history.events:
        if event["kind"] in RESUMES:
            place = int(np.searchsorted(steps, int(event["step"]), "right"))
            before, after = losses[max(0, place - WINDOW) : place], losses[place : place + WINDOW]
            if min(len(before), len(after)) >= WINDOW // 2:
                old, new = float(np.median(before)), float(np.median(after))
                if 0 < old < np.inf and 0 < new < np.inf:
                    yield new / old


def _drop_at_epoch(facts: Mapping[str, float], losses: NDArray[np.float64]) -> float | None:
    """Return the share of the whole improvement that happens within the first steps of epochs; None if undefined."""
    length = facts.get("steps_per_epoch", 0.0)
    if not 2 * WINDOW <= length < len(losses) or not np.isfinite(losses).all():
        return None
    improvement = float(np.median(losses[:WINDOW]) - np.median(losses[-WINDOW:]))
    if improvement <= 0:
        return None
    starts = np.arange(int(length), len(losses) - WINDOW, int(length))
    drops = [float(np.median(losses[s - WINDOW : s]) - np.median(losses[s : s + WINDOW])) for s in starts]
    return float(np.clip(sum(drops) / improvement, 0.0, 1.0)) if drops else None
