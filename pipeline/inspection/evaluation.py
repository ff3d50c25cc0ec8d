"""Evaluation: does the metric move with the quality of predictions, and does a row get the same outputs every time?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.errors import FivegateError
from pipeline.evaluation.task import Task
from pipeline.inspection.finding import Finding, contradiction
from pipeline.inspection.outputs import ideal_outputs
from pipeline.inspection.subject import Subject

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
