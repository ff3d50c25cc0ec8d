"""What the Monitor keeps of a loop for experiments: first weights, first batches, and how the loss was computed.

What the loop does not hand over, such as its inputs, is taken from the passes through the model. All is bounded, so
that a large model or large batches cost no more than `MAX_BYTES` each; what does not fit is not kept, and the diagnosis
says so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MAX_BYTES = 64 * 1024 * 1024
MAX_BATCHES = 64
MAX_UNLABELLED = 16  # batches whose targets are not known
PASSES, PASS_ROWS = 16, 150  # of validation
SAME = 1e-3  # relative difference of two computations of one loss

NLL = ("cross_entropy (mean)", "nll_loss (mean)")
BINARY_NLL = ("binary_cross_entropy_with_logits (mean)", "binary_cross_entropy (mean)")

Loss = Callable[[Any, Any], Tensor]


@dataclass
class LoopMemory:
    """The first weights of a model, its first batches as (inputs, targets), and one loss with its outputs.

    Of batches whose targets are not known, and of validation, only inputs are kept.
    """

    weights: Mapping[str, Tensor]
    batches: list[tuple[Tensor, Tensor]]
    full: bool = False
    unlabelled: list[Tensor] = field(default_factory=list)
    validation: list[Tensor] = field(default_factory=list)
    validation_seen: bool = False  # after the first one nothing more of it is kept
    _passes: int = 0  # of validation
    _every: int = 1  # how many of them pass for each that is kept
    first_outputs: Tensor | None = None
    first_loss: float = math.nan
    facts: tuple[tuple[int, ...], Any] | None = None  # what the batches show, and how many there were then

    @classmethod
    def of(cls, model: nn.Module) -> LoopMemory | None:
        """Return the memory of a model before its first step; None if its weights are too large to be kept."""
        state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        if _bytes(state.values()) > MAX_BYTES:
            return None
        return cls({name: value.detach().clone() for name, value in state.items()}, [])

    @property
    def inputs(self) -> list[Tensor]:
        """The inputs of all train batches that were kept."""
        return [*(inputs for inputs, _ in self.batches), *self.unlabelled]

    def alike(self) -> list[tuple[Tensor, Tensor]]:
        """Return the batches whose rows can be joined to those of the first one."""
        x, y = self.batches[0]
        return [(a, b) for a, b in self.batches if a.shape[1:] == x.shape[1:] and b.shape[1:] == y.shape[1:]]

    @torch.no_grad()
    def keep(self, inputs: object, targets: object, outputs: object, loss: Tensor | float) -> None:
        """Keep a batch, if there is room for it and its inputs are known."""
        if self.full or not isinstance(inputs, Tensor) or inputs.layout is not torch.strided:
            self.full = True
            return
        kept_bytes = _bytes([*self.unlabelled, *(value for batch in self.batches for value in batch)])
        if not isinstance(targets, Tensor):
            self.full = len(self.unlabelled) >= MAX_UNLABELLED or kept_bytes + _bytes([inputs]) > MAX_BYTES
            if not self.full:
                self.unlabelled.append(inputs.detach().clone())
            return
        if not self.batches and isinstance(outputs, Tensor):
            self.first_outputs, self.first_loss = outputs.detach().clone(), float(loss)
        self.full = len(self.batches) >= MAX_BATCHES or kept_bytes + _bytes((inputs, targets)) > MAX_BYTES
        if not self.full:
            self.batches.append((inputs.detach().clone(), targets.detach().clone()))

    @torch.no_grad()
    def keep_validation(self, inputs: object) -> None:
        """Keep the first inputs of passes through the model in validation, from its beginning to its end."""
        if not isinstance(inputs, Tensor) or not inputs.ndim or _bytes([inputs[:PASS_ROWS]]) > MAX_BYTES // PASSES:
            return
        self._passes += 1
        if self._passes % self._every == 0:
            self.validation.append(inputs.detach()[:PASS_ROWS].clone())
        if len(self.validation) > PASSES:  # every other one, and every other one of those to come
            del self.validation[::2]
            self._every *= 2

    @property
    def has_cross_entropy(self) -> bool:
        """Whether the first loss is the mean cross-entropy of rows of one class each."""
        known, outputs = self.loss(), self.first_outputs
        if known is None or outputs is None:
            return False
        of_rows = outputs.numel() == len(outputs)  # more columns are more answers per row
        return known[0] in NLL or (known[0] in BINARY_NLL and of_rows)

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
        elif outputs.ndim == 3 and outputs.shape[:-1] == targets.shape:  # classes [N, T, C] of every position
            outputs, targets = outputs.flatten(0, 1), targets.flatten()
        return function(outputs, targets, reduction=reduction)

    return compute
