"""What the Monitor keeps of a loop for experiments: first weights, first batches, and how the loss was computed.

Both are bounded, so that a large model or large batches cost no more than `MAX_BYTES` each; what does not fit is not
kept, and the diagnosis says so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_BYTES = 64 * 1024 * 1024
MAX_BATCHES = 64
SAME = 1e-3  # relative difference of two computations of one loss

Loss = Callable[[Any, Any], Tensor]


@dataclass
class LoopMemory:
    """The first weights of a model, its first batches as (inputs, targets), and one loss with its outputs."""

    weights: Mapping[str, Tensor]
    batches: list[tuple[Any, Any]]
    full: bool = False
    first_outputs: Tensor | None = None
    first_loss: float = math.nan

    @classmethod
    def of(cls, model: nn.Module) -> LoopMemory | None:
        """Return the memory of a model before its first step; None if its weights are too large to be kept."""
        state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        if _bytes(state.values()) > MAX_BYTES:
            return None
        return cls({name: value.detach().clone() for name, value in state.items()}, [])

    @torch.no_grad()
    def keep(self, inputs: object, targets: object, outputs: object, loss: Tensor | float) -> None:
        """Keep a batch, if there is room for it and the loop has given inputs and targets."""
        if self.full or not (isinstance(inputs, Tensor) and isinstance(targets, Tensor)):
            self.full = True
            return
        if not self.batches and isinstance(outputs, Tensor):
            self.first_outputs, self.first_loss = outputs.detach().clone(), float(loss)
        kept_bytes = _bytes(value for batch in self.batches for value in batch)
        self.full = len(self.batches) >= MAX_BATCHES or kept_bytes + _bytes((inputs, targets)) > MAX_BYTES
        if not self.full:
            self.batches.append((inputs.detach().clone(), targets.detach().clone()))

    def loss(self) -> tuple[str, Loss] | None:
        """Return name and function of the standard loss that gives the first loss of the loop; None if none does."""
        if self.first_outputs is None or not self.batches:
            return None
        outputs, targets = self.first_outputs, self.batches[0][1]
        for name, compute in standard_losses(targets):
            try:
                with warnings.catch_warnings(action="ignore"):  # of shapes that broadcast
                    value = float(compute(outputs, targets))
            except (RuntimeError, ValueError, IndexError, TypeError):
                continue  # shapes or types that this loss does not take
            if math.isclose(value, self.first_loss, rel_tol=SAME):
                return name, compute
        return None


def _bytes(values: Iterable[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values)


def standard_losses(targets: Tensor, reductions: Sequence[str] = ("mean", "sum")) -> Iterator[tuple[str, Loss]]:
    """Yield the losses that fit the type of the targets, with each reduction."""
    for reduction in reductions:
        if not targets.is_floating_point():
            yield f"cross_entropy ({reduction})", _loss(functional.cross_entropy, reduction)
            yield f"nll_loss ({reduction})", _loss(functional.nll_loss, reduction)
        for function in (
            functional.mse_loss,
            functional.l1_loss,
            functional.smooth_l1_loss,
            functional.huber_loss,
            functional.binary_cross_entropy_with_logits,
            functional.binary_cross_entropy,
        ):
            yield f"{function.__name__} ({reduction})", _loss(function, reduction, like_outputs=True)


def _loss(function: Callable[..., Tensor], reduction: str, like_outputs: bool = False) -> Loss:
    def compute(outputs: Tensor, targets: Tensor) -> Tensor:
        if like_outputs:
            # As the loop computed it: [B] against [B, 1] broadcasts in both.
            targets = targets.to(outputs.dtype)
        return function(outputs, targets, reduction=reduction)

    return compute
