"""Precision: in which numbers a forward pass computes; weights, gradients and updates are always float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
START = 2.0**16
PATIENCE = 2000  # finite steps after which the scale is doubled


def autocast(precision: int | str, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """Makes the block in which a forward pass and its loss run: nothing for 32, half precision for the mixed ones."""
    if str(precision) == "32":
        return nullcontext
    dtype = HALF[str(precision)]
    return lambda: torch.autocast(device.type, dtype=dtype)


class LossScale:
    """Keeps the small gradients of float16 above zero: the loss is multiplied by `value`, the gradients divided by it.

    `value` is a power of two, so that dividing is exact. It is halved by a step whose gradients are not finite, which
    makes no update, and doubled after 2000 finite steps. At 1 it cannot be to blame for them any more.
    """

    def __init__(self, value: float = START, good: int = 0) -> None:
        self.value, self.good = value, good

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to go backward from; in float32, whose range the product stays in."""
        return loss.float() * self.value

    def unscale_(self, gradients: Sequence[Tensor]) -> None:
        """The gradients as those of the loss itself, in place."""
        torch._foreach_mul_(list(gradients), 1.0 / self.value)

    @property
    def to_blame(self) -> bool:
        """Whether gradients that are not finite may be this scale's doing: it is above its least."""
        return self.value > 1.0

    def update(self, finite: bool) -> None:
        """After every step: whether its gradients were finite."""
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self.good == PATIENCE:
            self.value, self.good = min(self.value * 2, 2.0**24), 0

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps of it."""
        return {"value": self.value, "good": self.good}

    def restore(self, state: Mapping[str, float]) -> None:
        """Goes on from a checkpoint's state."""
        self.value, self.good = float(state["value"]), int(state["good"])
