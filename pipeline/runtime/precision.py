"""Precision: the number format of a forward pass; weights, gradients and updates are always float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

HALF = {"bf16": torch.bfloat16, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
INITIAL_SCALE = 2.0**16
GROWTH_INTERVAL = 2000  # finite steps after which the scale is doubled


def autocast(precision: int | str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that makes the context of a forward pass and its loss: half precision, or no change for 32."""
    if str(precision) == "32":
        return nullcontext
    dtype = HALF[str(precision)]
    return lambda: torch.autocast(device.type, dtype=dtype)


class LossScale:
    """Keeps small float16 gradients from becoming zero: the loss is multiplied by `value`, the gradients divided by it.

    `value` is a power of two, so that the division is exact. A step whose gradients are not finite makes no update and
    halves the scale; 2000 finite steps double it. At a scale of 1, non-finite gradients have another cause.
    """

    def __init__(self, value: float = INITIAL_SCALE, finite_steps: int = 0) -> None:
        self.value, self.finite_steps = value, finite_steps

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the scaled loss, in float32, because the product can exceed the range of float16."""
        return loss.float() * self.value

    def unscale_(self, gradients: Sequence[Tensor]) -> None:
        """Divide the gradients by the scale, in place."""
        torch._foreach_mul_(list(gradients), 1.0 / self.value)

    @property
    def can_decrease(self) -> bool:
        """Whether the scale can be halved, so that non-finite gradients may only mean that it is too large."""
        return self.value > 1.0

    def update(self, finite: bool) -> None:
        """Adapt the scale after a step whose gradients were finite or not."""
        self.finite_steps = self.finite_steps + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self.finite_steps == GROWTH_INTERVAL:
            self.value, self.finite_steps = min(self.value * 2, 2.0**24), 0

    def state(self) -> dict[str, float]:
        """Return the state for a checkpoint."""
        return {"value": self.value, "finite_steps": self.finite_steps}

    def restore(self, state: Mapping[str, float]) -> None:
        """Continue from the state of a checkpoint."""
        self.value, self.finite_steps = float(state["value"]), int(state["finite_steps"])
