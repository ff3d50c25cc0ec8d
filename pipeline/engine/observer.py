"""What may look on while a model trains. The engine knows this protocol and nobody behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.history import History


class StepObserver(Protocol):
    """Sees the steps that `every` divides; an observer that is absent costs nothing.

    A step whose update was suppressed as non-finite gets `before_update` and no `after_update`. `every` may change
    while the observer is called, and at no other time. Who inherits from it says only what it looks at; the rest is
    silence.
    """

    every: int

    def start(self, model: nn.Module, optimizer: Optimizer, history: History, step: int) -> None:
        """Before the first step; `step` updates were made earlier, by the training that is taken up.

        `model` is the user's own; what a batch shows is as that model meets it, behind its preprocessing.
        """
        return

    def before_update(self, step: int, inputs: Any, targets: Any, outputs: Any, loss: Tensor) -> None:
        """Gradients are complete and unclipped, weights as the forward pass saw them; the last micro-batch is shown."""
        return

    def after_update(self, step: int) -> None:
        """Weights have moved; gradients are still there."""
        return

    def validated(self, epoch: int, metrics: Mapping[str, float], /) -> None:
        """The epoch's `val/...` measurements."""
        return

    def settle(self) -> None:
        """The history is about to be copied: everything measured is in it."""
        return

    def finish(self) -> None:
        """After the last step, also when training failed."""
        return
