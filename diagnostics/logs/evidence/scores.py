"""What a score does over a run: it never improves, or it is lost again while the training goes on.

A log or a loop of one's own has no target and no score of guessing, so that only the shape of the curve can tell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.history import History

SCORES = (
    "accuracy",
    "balanced_accuracy",
    "f1",
    "auc",
    "map",
    "map50",
    "iou",
    "miou",
    "dice",
)  # higher is better, 0 to 1
LOW = 0.6  # a score above it is not that of guessing
UNMOVED = 0.05  # above the first score, from which on it counts as improved
LOST = 0.03  # the least loss of a score that counts
LEAST = 8  # scores of a curve
BLOCKS = 10
STANDARD_ERRORS = 3.0


def score_facts(history: History) -> dict[str, float]:
    """Return `score_unmoved`, 1 if the score stays where it began, `score_lost`, what it lost again, and `loss_burst`.

    `score_lost` is the best level of the score minus its last one, 0 within three standard errors; levels are medians
    of tenths of the run. `loss_burst` is the largest training loss of the first tenth, divided by the last level.
    """
    facts: dict[str, float] = {}
    for name in SCORES:
        scores = history.series(f"val/{name}")[1].astype(np.float64)
        if len(scores) >= LEAST and np.isfinite(scores).all():
            late = float(np.median(scores[len(scores) // 2 :]))
            facts["score_unmoved"] = float(late < LOW and late <= scores[0] + UNMOVED)
            facts["score_lost"] = _lost(scores)
            break
    losses = history.series("train/loss")[1].astype(np.float64)
    if len(losses) >= LEAST and np.isfinite(losses).all():
        end = float(np.median(losses[-max(1, len(losses) // BLOCKS) :]))
        if end > 0:
            facts["loss_burst"] = float(losses[: max(1, len(losses) // BLOCKS)].max()) / end
    return facts


def with_scores(history: History) -> History:
    """Return a copy of a history that has these facts too, unless it has measured them."""
    copy = history.copy()
    for name, value in score_facts(history).items():
        copy.facts.setdefault(name, value)
    return copy


def _lost(scores: NDArray[np.float64]) -> float:
    blocks = np.array_split(scores, min(BLOCKS, len(scores) // 2))
    levels = [float(np.median(block)) for block in blocks]
    noise = 1.4826 * float(np.median(np.abs(np.diff(scores)))) / np.sqrt(2)
    error = 1.2533 * noise * np.sqrt(2 / len(blocks[-1]))  # of the difference of two medians
    lost = max(levels) - levels[-1]
    return lost if lost > max(LOST, STANDARD_ERRORS * error) else 0.0
