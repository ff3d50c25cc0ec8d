"""Losses with common mistakes; functions, with `_partial_: true`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def upside_down(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a loss with the wrong sign, which training maximizes."""
    if targets.is_floating_point():
        return -F.mse_loss(outputs, targets.reshape(outputs.shape))
    return -F.cross_entropy(outputs, targets)


def summed(outputs: Tensor, targets: Tensor, times: float = 1.0) -> Tensor:
    """Return the sum over the batch instead of the mean."""
    if targets.is_floating_point():
        return times * F.mse_loss(outputs, targets.reshape(outputs.shape), reduction="sum")
    return times * F.cross_entropy(outputs, targets, reduction="sum")


def across(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a cross entropy whose softmax is over the rows of the batch instead of the classes."""
    return -outputs.log_softmax(dim=0)[torch.arange(len(targets)), targets].mean()


def by_hand(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a hand-written cross entropy: the log of a softmax that can be 0."""
    shares = outputs.exp() / outputs.exp().sum(dim=1, keepdim=True)
    return -shares.log()[torch.arange(len(targets)), targets].mean()


def binary_by_hand(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a hand-written binary cross entropy: the log of a sigmoid that can be 0 or 1."""
    p, y = outputs.sigmoid().reshape(-1), targets.reshape(-1).float()
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def of_raw_outputs(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a cross entropy without a softmax: the log of outputs that can be negative."""
    return -outputs.log()[torch.arange(len(targets)), targets].mean()


def on_ids(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error between the first output and the class id."""
    return F.mse_loss(outputs[:, 0], targets.float())


def on_softmax(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a cross entropy that applies softmax twice."""
    return F.cross_entropy(outputs.softmax(dim=1), targets)


def spread(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a squared error of [B, 1] and [B], which broadcasts to [B, B]: every row and every target."""
    return ((outputs.reshape(-1, 1) - targets.reshape(1, -1)) ** 2).mean()


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the absolute error of the probability of class 1."""
    return (outputs.sigmoid().reshape(-1) - targets.reshape(-1).float()).abs().mean()


def on_columns(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the binary cross entropy of the outputs and one-hot targets with as many columns as outputs.

    A class id beyond them has no column.
    """
    columns = torch.arange(outputs.shape[1], device=outputs.device)
    return F.binary_cross_entropy_with_logits(outputs, (targets[:, None] == columns).float())


def hits(targets: Any, values: Any) -> float:
    """Metric of a binary task that is trained as a regression: the threshold is halfway between the two labels."""
    middle = (targets.min() + targets.max()) / 2
    return float(((values > middle) == (targets == targets.max())).mean())


def mean_recall(targets: Any, predictions: Any) -> float:
    """Metric: the recall of each class, averaged over the classes."""
    right = targets == predictions
    return float(np.mean([right[targets == name].mean() for name in np.unique(targets)]))


def best_column(targets: Any, values: Any) -> float:
    """Metric of a classification trained as a regression: the share of rows whose largest output is their class.

    A single output counts as class 0.
    """
    named = values.argmax(axis=1) if values.ndim > 1 else np.zeros(len(values))
    return float((named == targets).mean())


for score in (hits, mean_recall, best_column):
    score.greater_is_better = True  # type: ignore[attr-defined]
