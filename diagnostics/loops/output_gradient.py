"""What a pass through the model and its gradient show: the scale of the loss before `backward`, and its targets.

A mean loss of some outputs has a gradient that outputs and targets determine; that of the cross-entropy shows the
targets itself, in its sign. So the gradient that arrives in a backward pass tells whether the loss was divided, or
multiplied by the scale of half precision, without another forward pass and without knowing the loss function. It also
tells the targets of a loop that hands over its loss alone.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from diagnostics.loops.memory import SAME, Loss, standard_losses

CLOSE = 0.01  # the part of a gradient that its explanation may leave over
LEFT_OUT = -100  # the target of a row without a gradient: torch's `ignore_index`
PASSES_THAT_TELL = 4  # which loss a loop has

Batch = tuple[object, object, object]  # inputs, targets, outputs
Kind = Literal["binary", "classes", "numbers"]  # mean losses, by their targets


@dataclass
class Pass:
    """One forward pass with gradients: the arguments of the model, its outputs, and their gradient after backward."""

    arguments: object = None
    outputs: Tensor | None = None
    gradient: Tensor | None = None

    def complete(
        self, inputs: object, targets: object, outputs: object, loss: Tensor | float, shown: ShownTargets
    ) -> Batch:
        """Return inputs, targets and outputs: what a loop has not given is what the pass shows, as far as it does."""
        if isinstance(outputs, Tensor) and self.outputs is not None and outputs.shape != self.outputs.shape:
            return inputs, targets, outputs  # the loop has changed what the model returned
        if inputs is None:
            single = isinstance(self.arguments, tuple) and len(self.arguments) == 1
            inputs = self.arguments[0] if single else self.arguments  # type: ignore[index]
        if targets is None and self.outputs is not None and self.gradient is not None:
            targets = shown.read(self.outputs, self.gradient, float(loss))
        return inputs, targets, self.outputs if outputs is None else outputs


@torch.no_grad()
def gradient_scale(outputs: Tensor, gradient: Tensor) -> Tensor | None:
    """Return `[scale, remainder]` of a gradient of the outputs [N, C], [N, T, C] or [N], as a share of that of the mean
    cross-entropy; None if the outputs have another form.

    `remainder` is the part of the gradient that no such loss explains: where it is above `CLOSE`, the scale means
    nothing. Rows without a gradient count as left out of the mean (`ignore_index`).
    """
    if outputs.ndim not in (1, 2, 3) or not outputs.numel() or outputs.shape != gradient.shape or outputs.is_complex():
        return None
    values, gradients = outputs.detach().float(), gradient.detach().float()
    if outputs.ndim == 1 or outputs.shape[-1] == 1:
        expected = (values.sigmoid() - (gradients < 0).float()) / values.numel()
    else:
        expected = _of_classes(values, gradients)
    return _compare(gradients, expected)


class ScaleOfLosses:
    """The scale of a loss as a share of that of the standard mean loss that explains its gradient best.

    All standard losses are compared for the first gradient. On the CPU the one that explained it is tried first from
    then on, and alone where it still explains: on an accelerator this would wait for the device.
    """

    def __init__(self) -> None:
        self._explained_by = ""

    def measure(self, outputs: Tensor, gradient: Tensor, targets: Tensor) -> Tensor | None:
        """Return `[scale, remainder]` of a gradient of the outputs.

        None if the outputs are a single value or have another form, or if no standard loss takes them and the targets.
        """
        if outputs.numel() < 2:
            return None
        scales: dict[str, Callable[[], Tensor | None]] = {
            "signs of the gradient": partial(gradient_scale, outputs, gradient)
        }
        for name, compute in standard_losses(targets, ("mean",)):
            scales[name] = partial(_scale_of, compute, outputs, gradient, targets)
        if self._explained_by in scales:
            pair = scales[self._explained_by]()
            if pair is not None and pair[1] < CLOSE:
                return pair
        pairs = {name: pair for name, scale in scales.items() if (pair := scale()) is not None}
        if not pairs:
            return None
        remainders = torch.stack([pair[1] for pair in pairs.values()])
        best = remainders.nan_to_num(torch.inf).argmin()
        if outputs.device.type == "cpu":
            self._explained_by = list(pairs)[int(best)]
        return torch.stack(list(pairs.values()))[best]


def _scale_of(compute: Loss, outputs: Tensor, gradient: Tensor, targets: Tensor) -> Tensor | None:
    """Return `[scale, remainder]` for one loss; None if it does not take these outputs and targets."""
    if outputs.shape != gradient.shape or not outputs.numel() or outputs.is_complex():
        return None
    try:
        with torch.enable_grad(), warnings.catch_warnings(action="ignore"):  # of shapes that broadcast
            leaf = outputs.detach().float().requires_grad_()
            (expected,) = torch.autograd.grad(compute(leaf, targets), leaf)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None
    return _compare(gradient.detach().float(), expected)


def _compare(gradients: Tensor, expected: Tensor) -> Tensor:
    scale = (gradients * expected).sum() / expected.square().sum().clamp_min(1e-30)
    remainder = (gradients - scale * expected).norm() / gradients.norm().clamp_min(1e-30)
    return torch.stack([scale, remainder])


def _of_classes(outputs: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of the mean cross-entropy; the target of a row is where its gradient is negative."""
    used = (gradient != 0).any(-1, keepdim=True)
    targets = torch.zeros_like(outputs).scatter_(-1, gradient.argmin(-1, keepdim=True), 1.0)
    return (outputs.softmax(-1) - targets) * used / used.sum().clamp_min(1)


def kind_of_loss(outputs: Tensor, gradient: Tensor, loss: float) -> Kind | None:
    """Return the mean loss that a gradient [N, C], [N, T, C] or [N] of these outputs shows; None if it shows none."""
    pair = gradient_scale(outputs, gradient)
    if pair is None:
        return None
    single, explained = outputs.ndim == 1 or outputs.shape[-1] == 1, bool(pair[1] < CLOSE)
    if single and explained:  # a few rows of another loss may have such a gradient by chance
        entropy = float(binary_cross_entropy_with_logits(outputs.float(), (gradient < 0).float()))
        known = (entropy, entropy * float(pair[0]))  # the loop may give its loss divided, as its gradient is
        if any(math.isclose(value, loss, rel_tol=CLOSE) for value in known):
            return "binary"
    used = gradient != 0
    of_log_probabilities = not single and bool((gradient <= 0).all() and (used.sum(-1) <= 1).all() and used.any())
    if not single and (explained or of_log_probabilities):
        return "classes"
    squared_error = float((outputs.detach().float() - _targets_of("numbers", outputs, gradient)).square().mean())
    return "numbers" if math.isclose(squared_error, loss, rel_tol=SAME) else None


class ShownTargets:
    """The targets that the gradients of a loop show.

    Class ids of a cross-entropy of logits or log-probabilities, 0 and 1 of a binary one, numbers of a mean squared
    error. A row without a gradient has the target -100, which the cross-entropy of torch leaves out. Some passes tell
    which loss it is; from the first ones that agree on, it stays the same, as the code of a loop does not change.
    """

    def __init__(self) -> None:
        self._kinds = deque[Kind | None](maxlen=PASSES_THAT_TELL)

    @torch.no_grad()
    def read(self, outputs: Tensor, gradient: Tensor, loss: float) -> Tensor | None:
        """Return the targets of a loss and its gradient [N, C], [N, T, C] or [N]; None where they show none."""
        if not math.isfinite(loss):
            return None
        if len(self._kinds) < PASSES_THAT_TELL or len(set(self._kinds)) > 1:  # the last ones, each recognized
            self._kinds.append(kind_of_loss(outputs, gradient, loss))
        kind = self._kinds[-1]
        return None if kind is None or outputs.shape != gradient.shape else _targets_of(kind, outputs, gradient)


def _targets_of(kind: Kind, outputs: Tensor, gradient: Tensor) -> Tensor:
    if kind == "binary":
        return (gradient < 0).to(outputs.dtype)
    if kind == "classes":
        return torch.where((gradient != 0).any(-1), gradient.argmin(-1), LEFT_OUT)
    return outputs.detach().float() - gradient.float() * outputs.numel() / 2
