"""What the kept batches of a loop show: their targets, what inputs say of them, and how unlike validation inputs are.

It is measured when a diagnosis asks for it, and costs the training nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diagnostics.loops.first_pass import inspect_copy
from diagnostics.loops.judgement import LIKELY, SURE
from diagnostics.loops.memory import LoopMemory
from pipeline.history import History
from pipeline.inspection.finding import Finding, Measured, contradiction, judge, unusual
from pipeline.inspection.rows import SIGNAL, cross_validated, labels_in_order, majority, table_of, told_apart

ROWS = 600  # of train and of validation that are compared
FEWEST = 24  # rows of each
OTHER_SCALE, UNUSUAL_SCALE = 4.0, 2.0  # factor between the spreads of train and validation inputs
OTHER_PLACE, UNUSUAL_PLACE = 3.0, 1.0  # standard deviations between their means
APART = 0.9  # area under the curve of a classifier that tells train rows from validation rows
WORSE = 0.02  # share of the first loss by which train rows are fitted worse than those of validation
GENERALIZED, REDUCED = 0.1, 0.3  # accuracy on validation above that on train rows; share of the signal that is missing
MOSTLY = 0.9  # of the rows are of one class: then no model can be much better than guessing
STRUCTURED = 0.6  # of the variance in a quarter of the directions: the features say something of each other
SHARED = 0.2  # of the rows of a validation batch
VARIED = 0.1  # values per row of a feature; features with fewer values have equal rows by chance
FAR, VERY_FAR = 50.0, 200.0  # robust deviations of a target from the median
FEW = 0.1  # largest share of the rows that counts as outliers
RARE, FEW_CLASSES = 0.1, 0.3  # share of the rows; of the outputs
ELEMENTWISE = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy")

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class KeptFacts:
    """What kept batches show whatever the training makes of them."""

    findings: tuple[Finding, ...]
    scale: float = 1.0  # spread of validation inputs, divided by that of training inputs
    shift: float = 0.0  # of their means, in standard deviations
    apart: float = 0.5  # area under the curve of a classifier that tells them apart
    predicted: float | None = (
        None  # share of the train rows whose class a simple model predicts, without having seen them
    )
    guessed: float = 0.0  # the same of the most frequent class
    structured: bool = False  # whether the features say something of each other


def kept_findings(model: nn.Module, memory: LoopMemory, history: History) -> Iterator[Finding]:
    """Yield the faults that kept batches show; what was measured once is kept in the memory."""
    if not memory.inputs:
        return
    extent = len(memory.batches), len(memory.unlabelled), len(memory.validation)
    if memory.facts is None or memory.facts[0] != extent:
        memory.facts = extent, _measure(model, memory)
    facts: KeptFacts = memory.facts[1]
    yield from facts.findings
    yield from _other_inputs(facts, history)
    yield from _signal(facts, history)


def _measure(model: nn.Module, memory: LoopMemory) -> KeptFacts:
    findings = [*inspect_copy(model, memory), *_shared_rows(memory)]
    scale, shift, apart = _beside_validation(memory)
    if not memory.batches:
        return KeptFacts(tuple(findings), scale, shift, apart)
    inputs, targets = (torch.cat(parts).cpu() for parts in zip(*memory.alike(), strict=True))
    findings += [*_broadcast(memory), *_order(memory, targets), *_outliers(targets), *_classes(memory, targets)]
    known = not targets.is_floating_point() and targets.ndim == 1 and inputs.is_floating_point()
    first = torch.from_numpy(_distinct(_flat(inputs))[1]) if known and bool(inputs.isfinite().all()) else None
    sample = None if first is None else table_of(inputs[first], targets[first])
    if sample is None or len(sample.y) < 4 * FEWEST or len(np.unique(sample.y)) < 2:
        return KeptFacts(tuple(findings), scale, shift, apart)
    predicted, guessed = cross_validated(sample), majority(sample.y)
    return KeptFacts(tuple(findings), scale, shift, apart, predicted, guessed, _structured(sample.X))


def _flat(inputs: Tensor) -> Rows:
    rows: Rows = inputs.reshape(len(inputs), -1).double().cpu().numpy()
    return rows


def _distinct(rows: Rows) -> tuple[Rows, NDArray[np.intp]]:
    """Return every row once, and where it is first: few rows pass through a loop many times."""
    first = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    return rows[first], first


def _table(batches: list[Tensor]) -> Rows | None:
    """Return the rows of batches [N, F]; None for tokens, rows of several lengths, and missing values."""
    if not batches or any(b.shape[1:] != batches[0].shape[1:] or not b.is_floating_point() for b in batches):
        return None
    rows = np.concatenate([_flat(batch) for batch in batches])
    return rows if rows.size and np.isfinite(rows).all() else None


# --- beside validation -----------------------------------------------------------------------------------------------


def _beside_validation(memory: LoopMemory) -> tuple[float, float, float]:
    """Return `scale`, `shift` and `apart` of the validation inputs."""
    train, val = _table(memory.inputs), _table(memory.validation)
    if train is None or val is None or train.shape[1] != val.shape[1]:
        return 1.0, 0.0, 0.5
    train, val = _distinct(train)[0][:ROWS], _distinct(val)[0][:ROWS]
    deviations, others = train.std(axis=0), val.std(axis=0)
    varied = (deviations > 0) & (others > 0)
    if min(len(train), len(val)) < FEWEST or not varied.any():
        return 1.0, 0.0, 0.5
    scale = float(np.median(others[varied] / deviations[varied]))
    shift = float(np.median(np.abs(val.mean(axis=0) - train.mean(axis=0))[varied] / deviations[varied]))
    return scale, shift, told_apart(train, val)


def _other_inputs(facts: KeptFacts, history: History) -> Iterator[Finding]:
    """Validation inputs that are on another scale than those of training, or otherwise unlike them."""
    factor = max(facts.scale, 1 / facts.scale)
    if factor > UNUSUAL_SCALE or facts.shift > UNUSUAL_PLACE:
        sentence = (
            f"The inputs of validation have {facts.scale:.2g} times the spread of those of training, and their means "
            f"are {facts.shift:.2g} standard deviations apart: they are prepared in another way."
        )
        abnormality = SURE if factor > OTHER_SCALE or facts.shift > OTHER_PLACE else LIKELY
        yield unusual("split_shift", "scale_of_validation", sentence, abnormality, factor, "times the spread")
    elif facts.apart > APART:
        at = (("train/loss", 0), ("train/loss", -1), ("val/loss", -1))
        first, train, val = (float(values[i]) if len(values := history.series(n)[1]) else math.nan for n, i in at)
        apart, unit = facts.apart, "area under the curve"
        sentence = f"A classifier tells the rows that are trained from those of validation: {unit} {apart:.2f}."
        if train - val > WORSE * abs(first):  # they fit worse, although the model is trained on them
            silent = facts.predicted is not None and facts.predicted - facts.guessed < SIGNAL
            abnormality = SURE if silent else LIKELY
            yield unusual(
                "augmentation_too_strong", "trained_rows_told_apart", sentence, abnormality, facts.apart, unit
            )
        else:
            yield unusual("split_shift", "splits_told_apart", sentence, LIKELY, apart, unit)


def _shared_rows(memory: LoopMemory) -> Iterator[Finding]:
    """Rows of numbers that are trained and evaluated alike.

    Some loops evaluate their train rows too, of which only a part is kept: a batch of other rows speaks against a leak.
    """
    train, parts = _table(memory.inputs), [_table([batch]) for batch in memory.validation]
    if train is None or any(part is None or part.shape[1] != train.shape[1] for part in parts) or train.shape[1] < 2:
        return
    if np.median([len(np.unique(column)) for column in train.T]) < VARIED * len(train):
        return
    known = {row.tobytes() for row in train}
    shares = [
        fmean(row.tobytes() in known for row in part) for part in parts if part is not None and len(part) >= FEWEST
    ]
    if shares and min(shares) > SHARED:
        sentence = f"In every batch of validation there are train rows, {fmean(shares):.0%} of its rows on average."
        yield unusual("data_leakage", "shared_rows", sentence, SURE, fmean(shares), "of the validation rows")


# --- inputs and targets ----------------------------------------------------------------------------------------------


def _broadcast(memory: LoopMemory) -> Iterator[Finding]:
    """A loss of single values that compares every row with every other one, since the shapes differ."""
    known = memory.loss()
    if known is None or memory.first_outputs is None or not known[0].startswith(ELEMENTWISE):
        return
    outputs, targets = memory.first_outputs, memory.batches[0][1]
    whole = torch.broadcast_shapes(outputs.shape, targets.shape)
    if math.prod(whole) > max(outputs.numel(), targets.numel()):
        sentence = (
            f"The loss compares outputs {list(outputs.shape)} with targets {list(targets.shape)}, which become "
            f"{list(whole)}: every row is compared with the targets of all rows. Give both the same shape."
        )
        yield contradiction("loss_mismatch", "shapes_of_loss", sentence, float(math.prod(whole)), "values")


def _order(memory: LoopMemory, targets: Tensor) -> Iterator[Finding]:
    if targets.ndim == 1 and not targets.is_floating_point():
        for measured in labels_in_order(targets.numpy(), [labels.cpu().numpy() for _, labels in memory.alike()]):
            yield from judge(measured)


def _outliers(targets: Tensor) -> Iterator[Finding]:
    """Numeric targets of a few rows that are far from those of all others."""
    if not targets.is_floating_point() or not bool(targets.isfinite().all()):
        return
    values = targets.double().flatten()
    distances = (values - values.median()).abs()
    deviation = 1.4826 * float(distances.median())  # of normal values, a standard deviation
    if deviation <= 0:
        return
    share, farthest = float((distances > FAR * deviation).double().mean()), float(distances.max()) / deviation
    if 0 < share < FEW:
        sentence = (
            f"{share:.2%} of the targets are more than {FAR:.0f} robust deviations from the median of "
            f"{float(values.median()):.3g}, such as {float(values[distances.argmax()]):.4g}."
        )
        abnormality = SURE if farthest > VERY_FAR else LIKELY
        yield unusual("outliers", "extreme_targets", sentence, abnormality, farthest, "robust deviations")


def _classes(memory: LoopMemory, targets: Tensor) -> Iterator[Finding]:
    """Few classes where the model has many outputs, and a rare class in a loss that counts all rows alike."""
    ids = targets.flatten()
    if not memory.has_cross_entropy or (ids.is_floating_point() and not bool(((ids == 0) | (ids == 1)).all())):
        return
    values, counts = np.unique(ids.numpy(), return_counts=True)
    shares, outputs = counts / len(ids), memory.first_outputs
    expected = outputs.shape[1] if outputs is not None and outputs.ndim == 2 else 2
    usual = math.exp(-float((shares * np.log(shares)).sum()))  # so many classes with equal shares vary as much
    if len(values) > 1 and expected > 2 and usual < FEW_CLASSES * expected and len(ids) > 20 * expected:
        sentence = (
            f"The labels of {len(ids)} train rows vary as those of {usual:.1f} classes, and the model has {expected} "
            f"outputs: {shares.max():.1%} of the rows are of class {values[shares.argmax()]:g}."
        )
        yield unusual("labels_misencoded", "classes_with_rows", sentence, SURE, usual, "classes")
    elif len(values) > 1 and expected <= 2 and shares.min() < RARE:
        rarest = f"{shares.min():.1%} of the train rows are of class {values[shares.argmin()]:g}"
        sentence = f"{rarest}, and the loss counts all rows alike."
        yield unusual("class_imbalance", "rarest_class", sentence, LIKELY, float(shares.min()), "share of the rows")


def _structured(features: Rows) -> bool:
    """Whether a quarter of the directions of the features have most of their variance."""
    centred = features - features.mean(axis=0)
    spread = centred.std(axis=0)
    variances: NDArray[Any] = np.linalg.svd(centred[:, spread > 0] / spread[spread > 0], compute_uv=False) ** 2
    return bool(variances[: max(1, len(variances) // 4)].sum() > STRUCTURED * variances.sum())


def _signal(facts: KeptFacts, history: History) -> Iterator[Finding]:
    """Labels of train rows that do not follow from their inputs, or follow less than those of validation rows."""
    if facts.predicted is None or facts.guessed > MOSTLY:
        return
    signal = facts.predicted - facts.guessed
    nothing = judge(Measured("signal_in_features", signal))
    yield from nothing
    if nothing and facts.structured:
        sentence = (
            f"A simple model is {signal:.3g} better than the most frequent class, although the features say much of "
            "each other: the labels are those of other rows."
        )
        yield unusual("labels_misaligned", "signal_in_labels", sentence, SURE, signal, "accuracy")
    (epochs, scores), (at, on_train) = history.series("val/accuracy"), history.series("train/accuracy")
    if not len(scores) or signal < SIGNAL or facts.apart > APART:  # augmented rows are harder than those of validation
        return
    best = int(np.argmax(scores))
    trained = on_train[at == epochs[best]]
    reduced = 1 - signal / max(float(scores[best]) - facts.guessed, 1e-9)
    if len(trained) and float(scores[best]) - float(trained[0]) > GENERALIZED and reduced > REDUCED:
        sentence = (
            f"The model is right on {scores[best]:.0%} of validation and on {trained[0]:.0%} of the train rows, of "
            f"which a simple model that has not seen them predicts {facts.predicted:.0%}: some labels are wrong."
        )
        yield unusual("label_noise", "train_labels", sentence, SURE, reduced, "share of the signal")
