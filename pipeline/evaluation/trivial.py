"""The bar of a model that learned nothing from the inputs: it knows the targets of the train rows and no more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline.data.splits import Split
from pipeline.evaluation.task import Task


def _constant(y: Tensor, rows: int, classes: int | None, takes: str) -> tuple[Tensor, str]:
    """What such a model puts out for every row, as the loss takes it, and how it came to it."""
    if y.is_floating_point():
        return y.mean(dim=0, keepdim=True).expand(rows, *y.shape[1:]), "mean of the train targets"
    counts = torch.bincount(y, minlength=classes or 0).float()
    shares = counts / counts.sum()
    outputs = shares if takes == "probabilities" else shares.clamp_min(1e-12).log()
    return outputs.expand(rows, -1), f"majority class ({int(counts.argmax())})"


def trivial_score(task: Task, train: Split, val: Split, classes: int | None) -> dict[str, Any]:
    """The metric of the majority class (or of the mean) on validation: `{metric, value, n, how}`."""
    outputs, how = _constant(train.y, len(val), classes, task.takes)
    return {"metric": task.metric.name, "value": task.measure(outputs, val.y), "n": len(val), "how": how}
