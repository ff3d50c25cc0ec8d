"""The bar of a model that learned nothing from the inputs: it knows the targets of the train rows and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.data.splits import Data
from pipeline.engine.builder import build_loss
from pipeline.engine.task import build_task


def _constant(data: Data, takes: str) -> tuple[Tensor, str]:
    """What such a model puts out for every row, as the loss takes it, and how it came to it."""
    y = data.train.y
    if y.is_floating_point():
        return y.mean(dim=0, keepdim=True).expand(len(data.val), *y.shape[1:]), "mean of the train targets"
    counts = torch.bincount(y, minlength=data.classes or 0).float()
    shares = counts / counts.sum()
    outputs = shares if takes == "probabilities" else shares.clamp_min(1e-12).log()
    return outputs.expand(len(data.val), -1), f"majority class ({int(counts.argmax())})"


def trivial_score(config: Mapping[str, Any], data: Data, trust: Sequence[str] = ()) -> dict[str, Any]:
    """The metric of the majority class (or of the mean) on validation: `{metric, value, n, how}`."""
    task = build_task(config, build_loss(config, trust), trust=trust)
    outputs, how = _constant(data, task.takes)
    return {
        "metric": task.metric.name,
        "value": task.measure(outputs, data.val.y),
        "n": len(data.val),
        "how": how,
    }
