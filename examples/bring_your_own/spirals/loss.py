"""A loss of one's own: a function of outputs and targets that gives a scalar."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def smoothed(outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross entropy with part of the probability spread over all classes."""
    return cross_entropy(outputs, targets, label_smoothing=smoothing)
