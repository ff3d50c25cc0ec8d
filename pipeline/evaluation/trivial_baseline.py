"""The bar of a model that learned nothing from the inputs: it knows the targets of the train rows and no more."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.data.splits import Split
from pipeline.evaluation.evaluate import measured
from pipeline.evaluation.task import Task


def _constant(y: Tensor, rows: int, classes: int | None, takes: str, kind: str) -> tuple[Tensor, str]:
    """What such a model puts out for every row, as the loss takes it, and how it came to it."""
    if kind == "multilabel":
        shares = y.mean(dim=0, keepdim=True)
        outputs = shares if takes == "probabilities" else shares.clamp(1e-6, 1 - 1e-6).logit()
        return outputs.expand(rows, -1), "how often the train rows bear each label"
    if kind == "language_model":
        counts = torch.bincount(y.flatten(), minlength=classes or 0).double() + 1
        shares = (counts / counts.sum()).float()
        outputs = shares if takes == "probabilities" else shares.log()
        return outputs.expand(rows, y.shape[1], -1), "how often the train text has each token, add-one"
    if y.is_floating_point():
        return y.mean(dim=0, keepdim=True).expand(rows, *y.shape[1:]), "mean of the train targets"
    counts = torch.bincount(y, minlength=classes or 0).float()
    shares = counts / counts.sum()
    outputs = shares if takes == "probabilities" else shares.clamp_min(1e-12).log()
    return outputs.expand(rows, -1), f"majority class ({int(counts.argmax())})"


def trivial_score(
    task: Task, train: Split, val: Split, classes: int | None, model: nn.Module | None = None
) -> dict[str, Any]:
    """The metric of the majority class (the mean, the commonest token) on validation: `{metric, value, n, how}`.

    Where a step alone knows what the outputs mean, the bar is that of `model`, untrained; NaN without one.
    """
    named = {"metric": task.metric.name, "n": len(val)}
    if task.kind != "custom" and task.metric.needs != "step" and isinstance(train.y, Tensor):
        outputs, how = _constant(train.y, len(val), classes, task.takes, task.kind)
        return {**named, "value": task.measure(outputs, val.y), "how": how}
    if model is None:
        return {**named, "value": math.nan, "how": "no untrained model to measure"}
    value = measured(model, val.X, val.y, task).values[task.metric.name]
    return {**named, "value": value, "how": "the model before its first step"}
