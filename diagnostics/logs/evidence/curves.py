"""What the curves of a log show that no healthy training does: epochs alike, floors of a loss, a class never found.

Each is specific to one cause; what many faults look like is left to the playbooks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.history import History
from pipeline.inspection.finding import Finding, contradiction, unusual

SURE = 0.999  # abnormality of what healthy trainings do not show
LEAST_EPOCHS, LEAST_POINTS, MOST_POINTS = 3, 8, 64  # of a curve whose epochs are compared
ALIKE = 0.5  # mean correlation of the losses of two epochs, by the place in the epoch
WAVES, HIGH_WAVES = 0.08, 0.3  # standard deviation of the loss within an epoch, as a share of the first loss
MASTERED = 0.9  # accuracy on the training rows of a model that has learned them
FLOOR_ABOVE, GUESS_WITHIN = 0.05, 0.1  # the loss over its floor, and the first loss beside that of guessing
MOST_CLASSES = 1000
NEVER = 1e-6  # a recall that is 0
RARE_ACCURACY = 0.7  # from which on a model that finds no positive still looks good
LONGEST_WARM_UP, DECAYED = 0.25, 0.5  # share of a schedule that warms up; rate over its peak when it has decayed
SAME, LEAST_SAME = 1e-3, 3  # relative difference of equal rates; values of a curve that are compared


def findings_of_curves(history: History) -> Iterator[Finding]:
    """Yield what only one cause makes of a curve."""
    yield from _epochs_alike(history)
    yield from _two_softmaxes(history)
    yield from _class_never_found(history)
    yield from _second_warm_up(history)


def _epochs_alike(history: History) -> Iterator[Finding]:
    """Losses that rise and fall at the same places of every epoch: the batches come in an order that is not random."""
    steps, losses = history.series("train/loss")
    length = history.facts.get("steps_per_epoch", 0.0)
    if length <= 0 or len(losses) < LEAST_EPOCHS * LEAST_POINTS or not np.isfinite(losses).all():
        return
    waves = _waves(steps - steps[0], losses.astype(np.float64), length)
    if len(waves) < LEAST_EPOCHS:
        return
    spread = float(np.median(waves.std(1))) / max(float(np.median(losses[:3])), 1e-12)
    if spread < WAVES:
        return
    alike = float(np.array(np.corrcoef(waves))[np.triu_indices(len(waves), 1)].mean())
    if alike >= ALIKE:
        sentence = (
            f"the training loss rises and falls at the same places of each of {len(waves)} epochs (mean correlation "
            f"{alike:.2f}), by {spread:.0%} of its first value: the batches come in the same order, and one has other "
            "rows than the next"
        )
        if spread >= HIGH_WAVES:
            yield contradiction("data_not_shuffled", "epochs_alike", sentence, alike, "correlation")
        else:
            yield unusual("data_not_shuffled", "epochs_alike", sentence, SURE, alike, "correlation")


def _waves(steps: NDArray[np.int64], losses: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """Return the losses of each complete epoch [epochs, points], without its quadratic trend.

    A loss that is averaged since the begin of the epoch has such a trend in a healthy training too.
    """
    epochs = (steps / length).astype(np.int64)
    counts = np.bincount(epochs)
    points = min(int(np.median(counts[counts > 0])), MOST_POINTS)
    if points < LEAST_POINTS:
        return np.empty((0, 0))
    places = (np.arange(points) + 0.5) / points
    waves = []
    for epoch in np.flatnonzero(counts >= LEAST_POINTS):
        rows = epochs == epoch
        curve = np.interp(places, steps[rows] / length - epoch, losses[rows])
        waves.append(curve - np.polyval(np.polyfit(places, curve, 2), places))
    return np.array(waves)


def _two_softmaxes(history: History) -> Iterator[Finding]:
    """A cross-entropy that ends at the least value that it has for probabilities in place of logits.

    Of C classes with probability 1 for the right one, that is log(e + C - 1) - 1.
    """
    losses = history.series("train/loss")[1].astype(np.float64)
    accuracies = history.series("train/accuracy")[1]
    if not len(accuracies) or len(losses) < 2 or not np.isfinite(losses).all() or accuracies[-1] < MASTERED:
        return
    classes = np.arange(3, MOST_CLASSES + 1)
    floors, guesses = np.log(math.e + classes - 1) - 1, np.log(classes)
    above = losses[-1] / floors - 1
    fits = (np.abs(above) <= FLOOR_ABOVE) & (above > -0.005) & (np.abs(losses[0] / guesses - 1) <= GUESS_WITHIN)
    if fits.any():
        count = int(classes[fits][np.abs(above[fits]).argmin()])
        sentence = (
            f"the training loss stays at {losses[-1]:.3f} while {accuracies[-1]:.1%} of the training rows are right: "
            f"that is the least cross-entropy of {count} classes, {floors[count - 3]:.3f}, when it gets probabilities "
            "in place of logits"
        )
        yield contradiction("redundant_softmax", "floor_of_loss", sentence, float(losses[-1]), "loss")


def _class_never_found(history: History) -> Iterator[Finding]:
    """A recall that stays 0 beside a high accuracy: the rare class is never predicted."""
    accuracies = history.series("val/accuracy")[1]
    for split in ("val", "train"):
        recalls = history.series(f"{split}/recall")[1]
        recalls = recalls if len(recalls) else history.series(f"{split}/f1")[1]
        if len(recalls) >= 2 and len(accuracies) and np.nanmax(recalls[len(recalls) // 2 :]) <= NEVER:
            if accuracies[-1] < RARE_ACCURACY:
                return
            sentence = (
                f"an accuracy of {accuracies[-1]:.3g} on validation, and a recall of 0 on {split} rows in the last "
                f"{len(recalls) - len(recalls) // 2} epochs: the rare class is never predicted"
            )
            yield contradiction("class_imbalance", "recall_zero", sentence, 0.0, "recall")
            return


def _second_warm_up(history: History) -> Iterator[Finding]:
    """A rate that has decayed and then warms up once more from its very first values, as after a lost schedule.

    Restarts of a cosine schedule begin at the peak, and the loss of a cyclical one is lower in the second cycle.
    """
    steps, rates = history.series("lr")
    if len(rates) < 8 or not np.isfinite(rates).all():
        return
    begins = [place for place in range(1, len(rates)) if math.isclose(rates[place], rates[0], rel_tol=SAME)]
    begins = [place for place in begins if rates[place] != rates[place - 1]]
    if not begins:
        return
    first, second = rates[: begins[-1]], rates[begins[-1] :]
    peak, shared = int(first.argmax()), min(len(first), len(second))
    same = shared >= LEAST_SAME and np.allclose(first[:shared], second[:shared], rtol=SAME)
    warms_up = 0 < peak < min(shared, LONGEST_WARM_UP * len(first)) and first[-1] < DECAYED * first[peak]
    at, losses = history.series("train/loss")
    before, after = (losses[rows][-LEAST_SAME:] for rows in (at < steps[begins[-1]], at >= steps[begins[-1]]))
    if same and warms_up and len(before) and len(after) and float(after.mean()) > float(before.mean()):
        sentence = (
            f"the learning rate had decayed to {first[-1]:.3g} and warms up once more from {second[0]:.3g}, as in the "
            f"first steps, and the training loss rises from {before.mean():.3g} to {after.mean():.3g}: the state of "
            "the schedule was lost when the training was resumed"
        )
        yield contradiction("resume_state_lost", "second_warm_up", sentence, float(second[0]), "learning rate")
