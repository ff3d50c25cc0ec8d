"""Losses that are wrong in a way that people write them; functions, with `_partial_: true`."""

from __future__ import annotations

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
