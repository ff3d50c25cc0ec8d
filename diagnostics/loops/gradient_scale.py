"""By how much a loop scales a loss before `backward`, from the outputs of the model and their gradient.

The mean cross-entropy of some outputs has a gradient that the outputs alone determine, up to the targets, whose sign
shows in it. So the gradient that arrives in a backward pass tells whether the loss was divided, or multiplied by the
scale of half precision, without another forward pass and without knowing the loss function.
"""

from __future__ import annotations

import torch
from torch import Tensor

CLOSE = 0.01  # the part of a gradient that its explanation may leave over


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
    scale = (gradients * expected).sum() / expected.square().sum().clamp_min(1e-30)
    remainder = (gradients - scale * expected).norm() / gradients.norm().clamp_min(1e-30)
    return torch.stack([scale, remainder])


def _of_classes(outputs: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient of the mean cross-entropy; the target of a row is where its gradient is negative."""
    used = (gradient != 0).any(-1, keepdim=True)
    targets = torch.zeros_like(outputs).scatter_(-1, gradient.argmin(-1, keepdim=True), 1.0)
    return (outputs.softmax(-1) - targets) * used / used.sum().clamp_min(1)
