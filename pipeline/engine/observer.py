"""The protocol of objects that observe a training; the engine does not know any implementation of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.data.tree import Tree
from pipeline.history import History


class StopTraining(Exception):
    """Raised by an observer's `validated` to end the training after this epoch; the message says why."""


class StepObserver(Protocol):
    """Observes the steps whose number is a multiple of `every`; a training without observers pays nothing for them.

    A step whose update is withheld as non-finite calls `before_update` but not `after_update`. `every` may only change
    inside a call of the observer. Subclasses override the methods that they need; the others do nothing.
    """

    every: int

    def start(self, model: nn.Module, optimizer: Optimizer, history: History, step: int) -> None:
        """Called before the first step; a resumed training has already made `step` steps.

        `model` is the user's model without preprocessing; batches are shown as that model receives them.
        """
        return

    def before_forward(self, step: int) -> None:
        """Called before the forward pass of a step that is observed."""
        return

    def before_update(self, step: int, inputs: Tree, targets: Tree, outputs: Tree, loss: Tensor) -> None:
        """Called with complete, unclipped gradients and unchanged weights; batch data are of the last micro-batch."""
        return

    def after_update(self, step: int) -> None:
        """Called when the weights have changed; the gradients still exist."""
        return

    def validated(self, epoch: int, metrics: Mapping[str, float], /) -> None:
        """Called with the `val/...` metrics of an epoch. Raises StopTraining to end the training after it."""
        return

    def flush(self) -> None:
        """Write everything measured so far to the history, which is about to be copied."""
        return

    def finish(self) -> None:
        """Called after the last step, also if training failed."""
        return


def tell_validated(observers: Sequence[StepObserver], epoch: int, metrics: Mapping[str, float]) -> StopTraining | None:
    """Tell every observer the metrics of an epoch; return the reason of one that ends the training, None without."""
    reason = None
    for observer in observers:
        try:
            observer.validated(epoch, metrics)
        except StopTraining as stop:
            reason = reason or stop
    return reason
