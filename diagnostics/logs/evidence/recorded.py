"""What a log records besides the shape of its curves: settings and accidents that are findings in themselves.

How rare a value is comes from its distance to the range of usual values: a decade beyond it is one training in ten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from diagnostics.logs.columns import NAN_AS_ZERO, LogRun
from diagnostics.logs.evidence.curves import findings_of_curves
from pipeline.history import History
from pipeline.inspection.finding import Finding

USUAL_RATES = (1e-6, 1.0)  # of optimizers in use: AdamW for fine-tuning at one end, SGD for small models at the other
USUAL_OF_ADAM = 2e-2  # the highest of its usual rates
USUAL_DECAY, USUAL_DECAY_OF_SGD = 0.5, 1e-2  # the highest usual ones: that of SGD is part of the gradient
SQUASHING, MANY_SQUASHING = ("Sigmoid", "Tanh", "Hardtanh", "Softsign", "Hardsigmoid"), 4
RESUMED = (0.95, 1.05)  # ratio of the losses of repeated steps, second time over first; scheduling noise of kernels
LEAST_CURVE = 4  # losses of a curve
STAYED = 0.8  # of the largest recent loss: what has fallen again has not diverged
BACK = 0.6  # share of the first loss from which on a jump leads back to it
DIVERGED, RISEN = 3.0, 1.5  # the last loss over the first, and over the lowest
LEARNED, UNMOVED = 0.3, 0.05  # rise of a training metric that learns; of a validation metric that follows nothing


def findings_of(run: LogRun, view: History) -> list[Finding]:
    """Return what the log of a run records that is unusual, for `diagnose`; `view` is one of its histories."""
    return [
        *findings_of_curves(view),
        *run.accidents,
        *_rate(run),
        *_decay(run),
        *_squashing_layers(run.modules),
        *_divergence(run.history),
        *_forgotten(run),
        *_precision(run.history),
        *_resume(run),
        *_validation_that_follows_nothing(run.history),
    ]


def _rate(run: LogRun) -> Iterator[Finding]:
    _, rates = run.history.series("lr")
    rates = rates[np.isfinite(rates) & (rates > 0)]
    if not len(rates):
        return
    largest, (low, high) = float(rates.max()), USUAL_RATES
    if "adam" in (optimizer := run.header.get("optimizer", "")).lower():
        high = USUAL_OF_ADAM
    for cause, bound, beyond in (
        ("learning_rate_too_low", low, low / largest),
        ("learning_rate_too_high", high, largest / high),
    ):
        if beyond > 1:
            usual = f"usual ones{optimizer and f' of {optimizer}'} lie in {low:g} to {high:g}"
            sentence = f"the log records a learning rate of at most {largest:g}; {usual}"
            yield _finding(cause, "recorded rate", _abnormality(beyond), largest, bound, sentence)


def _abnormality(beyond: float) -> float:
    """Return how abnormal a setting beyond its usual bound is: 0.9 at the bound, 0.99 at ten times it."""
    return 1 - 0.1 / beyond


def _decay(run: LogRun) -> Iterator[Finding]:
    """A recorded weight decay above all usual ones; momentum without a named optimizer is that of SGD."""
    decay, optimizer = run.history.facts.get("weight_decay", 0.0), run.header.get("optimizer", "").lower()
    of_sgd = "sgd" in optimizer or ("momentum" in run.header and not optimizer)
    high = USUAL_DECAY_OF_SGD if of_sgd else USUAL_DECAY
    if decay > high:
        sentence = f"the log records a weight decay of {decay:g}; usual ones{' of SGD' * of_sgd} are at most {high:g}"
        yield _finding("regularization_too_strong", "recorded decay", _abnormality(decay / high), decay, high, sentence)


def _squashing_layers(modules: Mapping[str, int]) -> Iterator[Finding]:
    """A printed model with many sigmoids or tanhs in a row and nothing that normalizes between them."""
    count = sum(modules.get(name, 0) for name in SQUASHING)
    if count >= MANY_SQUASHING and not any("Norm" in name for name in modules):
        sentence = f"the printed model squashes its signal in {count} layers, and nothing normalizes between them"
        for cause in ("hidden_activation_saturating", "model_too_deep"):
            yield _finding(cause, "printed model", 0.99, count, MANY_SQUASHING, sentence)


def _divergence(history: History) -> Iterator[Finding]:
    """A training loss that ends far above where it began: no other fault makes guessing so much worse."""
    losses = history.series("train/loss")[1].astype(np.float64)
    losses = losses[np.isfinite(losses)]
    if len(losses) < LEAST_CURVE or losses[0] <= 0:
        return
    end = float(np.median(losses[-max(1, len(losses) // 10) :]))
    lowest = float(np.median(np.sort(losses)[: max(1, len(losses) // 10)]))
    grown, risen = end / float(losses[0]), end / lowest if lowest > 0 else 1.0
    if grown > DIVERGED:
        sentence = f"the training loss ends at {grown:.3g} times its first value: the steps lead away from any minimum"
        yield _finding("learning_rate_too_high", "recorded divergence", 0.99, grown, DIVERGED, sentence)
    elif risen > RISEN and end > STAYED * float(losses[-max(1, len(losses) // 3) :].max()):
        sentence = f"the training loss ends at {risen:.3g} times the lowest level that it had reached"
        yield _finding("learning_rate_too_high", "recorded rise", 0.9, risen, RISEN, sentence)


def _forgotten(run: LogRun) -> Iterator[Finding]:
    """A loss that jumps back to nearly its first value from one point to the next and falls again: other rows came."""
    losses = run.history.series("train/loss")[1].astype(np.float64)
    if run.restarts or len(losses) < 3 * LEAST_CURVE or not np.isfinite(losses).all() or losses[0] <= 0:
        return
    first = float(np.median(losses[:2]))
    places = np.arange(LEAST_CURVE, len(losses) - LEAST_CURVE)
    low, high = losses < LEARNED * first, losses > BACK * first
    for place in places[low[places - 3] & low[places - 2] & low[places - 1] & high[places]].tolist():
        before, now, after = losses[place - 3 : place], losses[place], losses[place + 1 : place + 1 + LEAST_CURVE]
        # A spike is over after a point or two; what was forgotten is learned again as slowly as the first time.
        if now > after.max() and np.median(after) > 2 * before.max():
            sentence = (
                f"the training loss jumps from {before[-1]:.3g} to {now:.3g}, nearly its first value, and falls again"
            )
            yield _finding("catastrophic_forgetting", "recorded jump", 0.99, float(now / before[-1]), BACK, sentence)
            yield _finding("data_not_shuffled", "recorded jump", 0.97, float(now / before[-1]), BACK, sentence)
            return


def _precision(history: History) -> Iterator[Finding]:
    """Half precision beside values that are not finite: they come and go, or only validation has them."""
    half = history.facts.get("precision_bits") == 16
    finite = history.series("train/loss")[1].astype(np.float64)
    finite = finite[np.isfinite(finite)]
    if hidden := history.facts.get(NAN_AS_ZERO):
        sentence = (
            f"{hidden:g} losses are NaN and were printed as 0; losses of a library's models seldom fail in float32"
        )
        yield _finding("precision_overflow", "recorded zeros", 0.9, hidden, 0.0, sentence)
    if len(finite) and finite.max() > DIVERGED * abs(float(finite[0])):
        return  # the loss ran away before: no number format holds that
    train, val = (_nonfinite(history, split) for split in ("train", "val"))
    if not train.any() and not val.any():
        return
    comes_and_goes = bool(train.any()) and not train.all() and bool((np.diff(train.astype(int)) < 0).any())
    only_validation = bool(val.any()) and len(train) > 0 and not train.any()
    if half or comes_and_goes or only_validation:
        why = "the log states half precision" if half else "training goes on with finite losses"
        where = "validation" if only_validation else "training"
        rarity = 0.999 if half else 0.99
        count = float(train.sum() + val.sum())
        sentence = f"{count:g} values of {where} are NaN or infinite, and {why}"
        yield _finding("precision_overflow", "recorded precision", rarity, count, 0.0, sentence)


def _nonfinite(history: History, split: str) -> NDArray[np.bool_]:
    return ~np.isfinite(history.series(f"{split}/loss")[1])


def _resume(run: LogRun) -> Iterator[Finding]:
    ratio = run.history.facts.get("resume_loss_ratio")
    if ratio is None or RESUMED[0] <= ratio <= RESUMED[1]:
        return
    cause, bound = ("resume_data_replayed", RESUMED[0]) if ratio < 1 else ("resume_state_lost", RESUMED[1])
    sentence = (
        f"after the restart in line {run.restarts[-1].line} the loss of the same steps is {ratio:.3g} times that of "
        "the first time, although a training that is resumed with its whole state repeats them"
    )
    yield _finding(cause, "recorded restart", 0.99, ratio, bound, sentence)


def _validation_that_follows_nothing(history: History) -> Iterator[Finding]:
    """A score that rises on train rows and never moves on validation: the two do not get the same kind of rows."""
    for name in history.names():
        split, _, metric = name.partition("/")
        if split != "val" or metric == "loss" or f"train/{metric}" not in history.names():
            continue
        train, val = (history.series(f"{s}/{metric}")[1].astype(np.float64) for s in ("train", "val"))
        if len(train) < 4 or len(val) < 4 or not (np.isfinite(train).all() and np.isfinite(val).all()):
            continue
        rise = float(train[-1] - train[0])
        if rise > LEARNED and float(np.ptp(val)) < UNMOVED and float(val.max()) < float(train[-1]) - LEARNED:
            sentence = (
                f"{metric} rises by {rise:.3g} on train rows and never by more than {float(np.ptp(val)):.2g} on "
                "validation, from the first epoch on"
            )
            yield _finding("split_shift", "recorded scores", 0.99, float(np.ptp(val)), UNMOVED, sentence)
            return


def _finding(cause: str, inspection: str, rarity: float, value: float, bound: float, sentence: str) -> Finding:
    return Finding(cause, inspection, "abnormality", min(rarity, 0.9999), value, bound, "", sentence)
