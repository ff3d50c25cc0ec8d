"""Losses: does the loss see which target belongs to which row, which class it is, and in which direction is better?

Every loss of outputs and targets can be tried on made-up outputs, whatever it is called: no weight is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.errors import FivegateError
from pipeline.inspection.finding import Finding, Measured, contradiction
from pipeline.inspection.outputs import _as_taken, ideal_outputs
from pipeline.inspection.subject import Subject

EQUAL = 1e-6  # relative: two losses that differ by less are equal
SIZES = (10.0, 30.0, 100.0, 300.0, 1000.0, 10000.0)  # of logits on which a loss is tried
MAX_CLASSES = 50  # of which neighbours are exchanged


def inspect_loss(subject: Subject) -> Iterator[Finding | Measured]:
    """Yield what the loss does not see, and how it behaves for outputs of any size."""
    task, outputs, targets = subject.task, subject.outputs, subject.targets
    if task is None or task.step is not None or outputs is None or not isinstance(targets, Tensor):
        return
    if task.kind not in ("classification", "binary", "multilabel", "regression") or len(outputs) < 4:
        return
    trial = _Trial(subject, outputs, targets)
    unread = list(_unused_outputs(trial))
    yield from unread
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        yield from _order_of_targets(trial)
        yield from _classes_told_apart(trial)
        if not unread:  # otherwise right outputs and wrong ones are the same to the loss
            yield from _direction(trial)
        yield from _growth(trial)
        yield from _largest_logits(trial)


class _Trial:
    """The loss as a function of made-up outputs, in the form that it takes."""

    def __init__(self, subject: Subject, outputs: Tensor, targets: Tensor) -> None:
        assert subject.task is not None
        self.subject, self.shape, self.targets = subject, outputs.shape, targets
        self.dtype, self.device = outputs.dtype, outputs.device
        self.task = subject.task

    def outputs(self, size: float = 1.0) -> Tensor:
        """Return random outputs of a size: for a regression around the targets, else logits in the loss's form."""
        noise = torch.randn(self.shape, dtype=torch.float64) * size
        if self.task.kind == "regression":
            spread = float(self.targets.double().std()) or 1.0
            return noise * spread + float(self.targets.double().mean())
        return _as_taken(noise, self.task.takes)

    def loss(self, outputs: Tensor, targets: Tensor | None = None) -> float:
        """Return the loss of outputs; NaN where it fails."""
        try:
            y = self.targets if targets is None else targets
            return float(self.task.loss(outputs.to(self.device, self.dtype), y))
        except (RuntimeError, IndexError, ValueError, FivegateError):
            return math.nan

    @property
    def varied(self) -> bool:
        return bool((self.targets != self.targets[:1]).any())


def _equal(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=EQUAL, abs_tol=1e-12)


def _order_of_targets(trial: _Trial) -> Iterator[Finding]:
    """A loss that stays the same when the targets of all rows are shuffled does not compare a row with its target."""
    if not trial.varied:
        return
    same = []
    for _ in range(3):
        outputs, order = trial.outputs(), torch.randperm(len(trial.targets))
        before, after = trial.loss(outputs), trial.loss(outputs, trial.targets[order.to(trial.targets.device)])
        same.append(math.isfinite(before) and _equal(before, after))
    if all(same):
        shapes = f"outputs {list(trial.shape)} and targets {list(trial.targets.shape)}"
        sentence = (
            f"The loss stays the same when the targets are shuffled over the rows ({shapes}): it compares every row "
            "with every target, or with none."
        )
        yield contradiction("loss_mismatch", "order_of_targets", sentence)


def _classes_told_apart(trial: _Trial) -> Iterator[Finding]:
    """A loss that stays the same when one class becomes another cannot teach the difference between the two."""
    targets = trial.targets
    ids = targets.unique()
    whole = bool((targets.double() == targets.double().round()).all())
    if not whole or targets.ndim > 2 or not 2 <= len(ids) <= MAX_CLASSES or trial.task.kind == "multilabel":
        return
    outputs = [trial.outputs() for _ in range(2)]
    for first, second in pairwise(ids):
        merged = torch.where(targets == second, first, targets)
        losses = [(trial.loss(each), trial.loss(each, merged)) for each in outputs]
        if all(math.isfinite(before) and _equal(before, after) for before, after in losses):
            sentence = (
                f"The loss is the same whether rows are of class {float(first):g} or of class {float(second):g}: "
                f"{trial.shape[1] if len(trial.shape) > 1 else 1} outputs do not tell {len(ids)} classes apart."
            )
            yield contradiction("output_width_mismatch", "classes_told_apart", sentence, float(len(ids)), "classes")
            return


def _direction(trial: _Trial) -> Iterator[Finding]:
    """A loss that is lower for wrong predictions than for right ones teaches the wrong ones."""
    everything = torch.ones(len(trial.targets), dtype=torch.bool)
    right = ideal_outputs(trial.subject, trial.targets)
    wrong = ideal_outputs(trial.subject, trial.targets, everything)
    if right is None or wrong is None:
        return
    best, worst = trial.loss(right), trial.loss(wrong)
    if math.isfinite(best) and math.isfinite(worst) and best > worst and not _equal(best, worst):
        sentence = f"The loss is {best:.4g} where every prediction is right and {worst:.4g} where every one is wrong."
        yield contradiction("loss_reduction_or_sign", "direction", sentence, best - worst, "loss")


def _growth(trial: _Trial) -> Iterator[Measured]:
    """The loss of twice the rows over the loss of the rows: 1 for a mean, 2 for a sum."""
    outputs = trial.outputs()
    once, twice = trial.loss(outputs), trial.loss(torch.cat([outputs] * 2), torch.cat([trial.targets] * 2))
    if math.isfinite(once) and math.isfinite(twice) and abs(once) > 1e-9:
        yield Measured("loss_growth", twice / once)


def _largest_logits(trial: _Trial) -> Iterator[Measured]:
    """The size of logits at which the loss is not finite any more; losses of torch are finite for every size."""
    if trial.task.takes != "logits" or trial.task.kind == "regression":
        return
    broken = next((size for size in SIZES if not math.isfinite(trial.loss(trial.outputs(size)))), 1e6)
    yield Measured("loss_finite_to", broken)
    outputs = trial.subject.outputs
    assert outputs is not None
    largest = float(outputs.detach().abs().max())
    if math.isfinite(largest):
        yield Measured("logits_over_finite", largest / broken)


def _unused_outputs(trial: _Trial) -> Iterator[Finding]:
    """An output without a gradient in any row, although its class occurs, is one that the loss never reads."""
    subject = trial.subject
    if not subject.class_ids or len(trial.shape) != 2 or trial.shape[1] < 3:
        return
    outputs = trial.outputs().to(trial.device, trial.dtype).requires_grad_()
    with torch.enable_grad():
        try:
            loss = trial.task.loss(outputs, trial.targets)
            (gradient,) = torch.autograd.grad(loss, outputs)
        except (RuntimeError, IndexError, ValueError, FivegateError):
            return
    unread = (gradient == 0).all(dim=0)
    present = torch.zeros_like(unread)
    present[trial.targets.unique().clamp(0, trial.shape[1] - 1)] = True
    named = (unread & present).nonzero().flatten().tolist()
    if named:
        sentence = (
            f"The loss does not read {len(named)} of {trial.shape[1]} outputs, although rows of their classes are in "
            "the batch."
        )
        yield contradiction("loss_mismatch", "unused_outputs", sentence, float(len(named)), "outputs")
