"""The trivial baseline: a constant prediction from the targets of the train rows, without looking at any input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor, nn

from pipeline.data.splits import Split
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import loss_and_metrics
from pipeline.evaluation.task import Task

SMALLEST_SHARE = 1e-12  # so that a class without train rows has a finite logarithm


class TrivialBaseline(TypedDict):
    """The deciding metric of the constant prediction on `n` validation rows; `how` says what is predicted."""

    metric: str
    n: int
    value: float
    how: str


def _constant(
    y: Tensor, rows: int, classes: int | None, takes: str, kind: str, class_names: Sequence[str]
) -> tuple[Tensor, str]:
    """Return the constant outputs for `rows` rows, in the form that the loss takes, and a description of them."""
    if kind == "multilabel":
        shares = y.mean(dim=0, keepdim=True)
        outputs = shares if takes == "probabilities" else shares.clamp(1e-6, 1 - 1e-6).logit()
        return outputs.expand(rows, -1), "frequency of each label in the train rows"
    if kind == "language_model":
        counts = torch.bincount(y.flatten(), minlength=classes or 0).double() + 1
        shares = (counts / counts.sum()).float()
        outputs = shares if takes == "probabilities" else shares.log()
        return outputs.expand(rows, y.shape[1], -1), "frequency of each token in the train rows, add-one"
    if y.is_floating_point():
        return y.mean(dim=0, keepdim=True).expand(rows, *y.shape[1:]), "mean of the train targets"
    counts = torch.bincount(y, minlength=classes or 0).float()
    shares = counts / counts.sum()
    outputs = shares if takes == "probabilities" else shares.clamp_min(SMALLEST_SHARE).log()
    majority = int(counts.argmax())
    return outputs.expand(rows, -1), f"majority class {class_names[majority] if class_names else majority}"


def score_trivial_baseline(
    task: Task,
    train: Split,
    val: Split,
    classes: int | None,
    model: nn.Module | None = None,
    class_names: Sequence[str] = (),
    outputs: Tensor | None = None,
) -> TrivialBaseline:
    """Return the deciding metric of the majority class (the mean, the token frequencies) on validation.

    Where only code of the user's own can interpret outputs, no constant output is known: the baseline is `model` before
    its first step, NaN without a model. `outputs` are the model's for some rows: a metric of the user's own gets
    predictions in their shape, or none of ours.
    """
    name, n = task.metric.name, len(val)
    measured, why = task.kind != "custom" and task.metric.needs != "step" and isinstance(train.y, Tensor), ""
    if measured and task.measures_references(outputs, train.y):
        if classes and outputs is not None and outputs.ndim == 2 and task.kind == "classification":
            classes = max(classes, outputs.shape[1]) if task.metric.users_own else classes
        constant, how = _constant(train.y, n, classes, task.takes, task.kind, class_names)
        try:
            value = task.metric(val.y.numpy(), task.reference_inputs(constant, val.y))
            return {"metric": name, "n": n, "value": value, "how": how}
        except UserError:
            if not task.metric.users_own:
                raise
            why = f", since {task.metric.where} does not take a constant prediction"
    if model is None:
        return {"metric": name, "n": n, "value": math.nan, "how": "no untrained model to measure"}
    value = loss_and_metrics(model, val.X, val.y, task).metrics[name]
    return {"metric": name, "n": n, "value": value, "how": f"the model before its first step{why}"}
