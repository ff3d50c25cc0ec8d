"""Evaluation: does the metric move with the quality of predictions, and does batch norm work in the right mode?

Batch norm works on the batch in training, and on its running statistics in validation. The model is put in both modes
as the training does it, so that a model whose `train` or `eval` leaves a module out, or whose `forward` sets a mode, is
seen as it will be: the mode counts in which a module is called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.errors import FivegateError
from pipeline.evaluation.evaluate import call_in_eval_mode, eval_mode
from pipeline.evaluation.task import Task
from pipeline.inspection.finding import Finding, contradiction
from pipeline.inspection.outputs import ideal_outputs
from pipeline.inspection.subject import Call, Subject, recording, untouched

if TYPE_CHECKING:
    from pipeline.engine.setup import TrainingComponents

BatchNorm = nn.modules.batchnorm._BatchNorm
NOISE = (0.001, 0.01, 0.05)  # of the targets' spread: predictions with such errors are good ones
RIGHT = 0.99  # of the rows
FEW_VALUES = 20


def inspect_metric(subject: Subject) -> Iterator[Finding]:
    """Yield whether the deciding metric prefers right predictions to wrong ones.

    Outputs that predict every target of the batch are made up, and become worse step by step.
    """
    task, targets = subject.task, subject.targets
    if task is None or not isinstance(targets, Tensor) or task.metric.needs == "step":
        return
    right = ideal_outputs(subject, targets)
    if right is None or len(targets) < 8 or len(targets.unique()) < 2:
        return
    if task.kind == "regression" and bool((targets == targets.round()).all()) and len(targets.unique()) < FEW_VALUES:
        return  # class ids, which a metric of the user's own may compare in another way than as values
    yield from _regression(subject, task, right) if task.kind == "regression" else _classes(subject, task, right)


def _value(task: Task, outputs: Tensor, subject: Subject) -> float:
    """Return the metric of outputs; NaN where it fails."""
    assert subject.outputs is not None and isinstance(subject.targets, Tensor)
    try:
        return task.deciding_value(outputs.to(subject.outputs.dtype), subject.targets)
    except (RuntimeError, IndexError, ValueError, FivegateError):
        return math.nan


def _classes(subject: Subject, task: Task, right: Tensor) -> Iterator[Finding]:
    targets = subject.targets
    count = len(targets)
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(count, generator=draw)
    values = []
    for share in (0.0, 0.5, 1.0):
        wrong = torch.zeros(count, dtype=torch.bool)
        wrong[order[: round(share * count)]] = True
        outputs = ideal_outputs(subject, targets, wrong)
        values.append(_value(task, outputs, subject) if outputs is not None else math.nan)
    if not all(map(math.isfinite, values)):
        return
    if not task.metric.better(values[0], values[1]) or not task.metric.better(values[0], values[2]):
        sentence = (
            f"'{task.metric.name}' is {values[0]:.4g} where every prediction is right, {values[1]:.4g} where half of "
            f"them are, and {values[2]:.4g} where none is: it does not measure how many are right."
        )
        yield contradiction("metric_wrong", "metric_moves", sentence, values[0], task.metric.name)
        return
    if task.metric.needs == "classes" and subject.class_ids:
        predicted = torch.as_tensor(task.predictions(right.to(subject.outputs.dtype), targets))  # type: ignore[union-attr]
        if predicted.shape == targets.shape:
            share_right = float((predicted == targets.cpu()).double().mean())
            if share_right < RIGHT and not task.metric.users_own:
                sentence = (
                    f"Outputs that name the right class of every row with certainty are turned into predictions of "
                    f"which {share_right:.0%} are right."
                )
                yield contradiction("metric_wrong", "predictions_follow", sentence, share_right, "share of rows")


def _regression(subject: Subject, task: Task, right: Tensor) -> Iterator[Finding]:
    draw = torch.Generator().manual_seed(0)
    spread = float(right.std()) or 1.0
    noise = torch.randn(right.shape, generator=draw, dtype=right.dtype) * spread
    perfect = _value(task, right, subject)
    near = [_value(task, right + size * noise, subject) for size in NOISE]
    far = [_value(task, right[torch.randperm(len(right), generator=draw)] + 0.3 * noise, subject) for _ in range(3)]
    if not all(map(math.isfinite, (perfect, *near, *far))):
        return
    best_far = max(far) if task.metric.greater_is_better else min(far)
    if not task.metric.better(perfect, best_far) or not any(task.metric.better(value, best_far) for value in near):
        sentence = (
            f"'{task.metric.name}' is {near[0]:.4g} for predictions within a thousandth of the targets' spread and "
            f"{best_far:.4g} for those of other rows: it does not measure how near predictions are."
        )
        yield contradiction("metric_wrong", "metric_moves", sentence, near[0], task.metric.name)


def inspect_modes(subject: Subject, setup: TrainingComponents) -> Iterator[Finding]:
    """Yield the batch norms that work in the wrong mode in training or in validation.

    Running statistics that were estimated before, such as those of a pretrained model, may be kept in training.
    """
    if not any(isinstance(module, BatchNorm) for module in setup.model.modules()):
        return
    yield from _in_training(_norms(subject.calls))
    calls: list[Call] = []
    with untouched(setup.model), eval_mode(setup.model), recording(setup.model, calls), setup.autocast():
        call_in_eval_mode(setup.task.forward, setup.model, subject.inputs, subject.targets)
    yield from _in_validation(_norms(calls))


def _norms(calls: Sequence[Call]) -> dict[str, list[Call]]:
    """Return the calls of each batch norm by its name; one with a `forward` of its own may heed no mode."""
    norms: dict[str, list[Call]] = {}
    for call in calls:
        if type(call.module).forward in (BatchNorm.forward, nn.SyncBatchNorm.forward):
            norms.setdefault(call.name.removeprefix("model."), []).append(call)
    return norms


def _in_training(norms: dict[str, list[Call]]) -> Iterator[Finding]:
    """A batch norm in eval mode whose running statistics are those that it was made with."""
    idle = [name for name, calls in norms.items() if not any(c.training for c in calls) and _is_new(calls[0].module)]
    if idle:
        sentence = (
            f"{_listed(idle)} in eval mode while the model trains, with initial running statistics (mean 0, "
            "variance 1): nothing is normalized, and no step changes them."
        )
        yield _contradiction("normalization_misused", "norm_idle", sentence, idle)


def _is_new(module: nn.Module) -> bool:
    """Return whether the running statistics of a batch norm are those that it was made with."""
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if mean is None or var is None:
        return False
    tracked = getattr(module, "num_batches_tracked", None)
    return not (mean.any() or (var != 1).any() or (tracked is not None and tracked.item()))


def _in_validation(norms: dict[str, list[Call]]) -> Iterator[Finding]:
    """A batch norm that normalizes validation rows by the statistics of their batch."""
    training = [name for name, calls in norms.items() if any(call.training for call in calls)]
    if training:
        sentence = (
            f"{_listed(training)} in training mode while the model validates: a row's outputs depend on the other rows "
            "of its batch, and validation rows change the running statistics. Look at `train` and `eval` of the model."
        )
        yield _contradiction("eval_mode_missing", "norm_in_training_mode", sentence, training)
    bare = [name for name, calls in norms.items() if name not in training and not _has_statistics(calls[0].module)]
    if bare:
        sentence = (
            f"{bare[0]} has no running statistics (track_running_stats=False): validation normalizes a row by the "
            "other rows of its batch, on which its outputs depend."
        )
        yield _contradiction("normalization_misused", "norm_without_statistics", sentence, bare)


def _contradiction(cause: str, inspection: str, sentence: str, names: Sequence[str]) -> Finding:
    """Return the finding about the batch norms of these names; its place is the first of them."""
    return contradiction(cause, inspection, sentence, float(len(names)), "batch norms", names[0])


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), torch.Tensor)


def _listed(names: Sequence[str]) -> str:
    """Return the first names and the verb that follows them."""
    more = f" and {len(names) - 1} more batch norms" if len(names) > 1 else ""
    return f"{names[0]}{more} {'are' if more else 'is'}"
