"""Your own model: any nn.Module from [B, ...] to [B, ...]."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Waves(nn.Module):
    """Two linear layers with a sine between them: [B, features] to logits [B, classes]."""

    def __init__(self, features: int, classes: int, width: int = 64) -> None:
        super().__init__()
        self.inner = nn.Linear(features, width)
        self.outer = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.sin(3 * self.inner(x)))
