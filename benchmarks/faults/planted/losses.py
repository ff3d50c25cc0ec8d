"""Losses that are wrong in a way that people write them; functions, with `_partial_: true`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def upside_down(outputs: Tensor, targets: Tensor) -> Tensor:
    """The sign is flipped: training climbs."""
    if targets.is_floating_point():
        return -F.mse_loss(outputs, targets.reshape(outputs.shape))
    return -F.cross_entropy(outputs, targets)


def summed(outputs: Tensor, targets: Tensor, times: float = 1.0) -> Tensor:
    """Summed over the batch instead of averaged."""
    if targets.is_floating_point():
        return times * F.mse_loss(outputs, targets.reshape(outputs.shape), reduction="sum")
    return times * F.cross_entropy(outputs, targets, reduction="sum")


def across(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy whose softmax runs over the rows of the batch instead of over the classes."""
    return -outputs.log_softmax(dim=0)[torch.arange(len(targets)), targets].mean()


def by_hand(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy as in the book: the log of a softmax that nobody keeps from becoming 0."""
    shares = outputs.exp() / outputs.exp().sum(dim=1, keepdim=True)
    return -shares.log()[torch.arange(len(targets)), targets].mean()


def binary_by_hand(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of a sigmoid, without care for 0 and 1."""
    p, y = outputs.sigmoid().reshape(-1), targets.reshape(-1).float()
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def of_raw_outputs(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy as in the book of outputs that nobody made probabilities: the log of what may be below 0."""
    return -outputs.log()[torch.arange(len(targets)), targets].mean()


def on_ids(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared distance between the first output and the number of the class."""
    return F.mse_loss(outputs[:, 0], targets.float())


def on_softmax(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of what is a softmax already: what a doubled softmax gives."""
    return F.cross_entropy(outputs.softmax(dim=1), targets)


def spread(outputs: Tensor, targets: Tensor) -> Tensor:
    """[B, 1] against [B] becomes [B, B]: every row is held against every target."""
    return ((outputs.reshape(-1, 1) - targets.reshape(1, -1)) ** 2).mean()


def absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    """Absolute error on the probability of class 1."""
    return (outputs.sigmoid().reshape(-1) - targets.reshape(-1).float()).abs().mean()


def on_columns(outputs: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy of each output and its column of a one-hot table that is as wide as the outputs: a class
    beyond them has no column."""
    columns = torch.arange(outputs.shape[1], device=outputs.device)
    return F.binary_cross_entropy_with_logits(outputs, (targets[:, None] == columns).float())


def hits(targets: Any, values: Any) -> float:
    """Metric of a binary task that is trained on values: rows above the middle of both labels are of the larger."""
    middle = (targets.min() + targets.max()) / 2
    return float(((values > middle) == (targets == targets.max())).mean())


def mean_recall(targets: Any, predictions: Any) -> float:
    """Metric: the share of rows that are right, of each class by itself, averaged over the classes."""
    right = targets == predictions
    return float(np.mean([right[targets == name].mean() for name in np.unique(targets)]))


def best_column(targets: Any, values: Any) -> float:
    """Metric of classes that are trained as values: rows whose largest output is that of their class. Where there is
    one output it is that of class 0."""
    named = values.argmax(axis=1) if values.ndim > 1 else np.zeros(len(values))
    return float((named == targets).mean())
