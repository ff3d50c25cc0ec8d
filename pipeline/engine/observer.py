"""What may look on while a model trains. The engine knows this protocol and nobody behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.history import History


class StepObserver(Protocol):
    """Sees the steps that `every` divides; an observer that is absent costs nothing.

    A step whose update was suppressed as non-finite gets `before_update` and no `after_update`.
    """

    every: int

    def start(self, model: nn.Module, optimizer: Optimizer, history: History) -> None:
        """Before the first step."""

    def before_update(self, step: int, inputs: Tensor, targets: Tensor, outputs: Tensor, loss: Tensor) -> None:
        """Gradients are complete and unclipped, weights as the forward pass saw them; the last micro-batch is shown."""

    def after_update(self, step: int) -> None:
        """Weights have moved; gradients are still there."""

    def validated(self, epoch: int, metrics: Mapping[str, float], /) -> None:
        """The epoch's `val/...` measurements."""

    def finish(self) -> None:
        """After the last step, also when training failed."""
