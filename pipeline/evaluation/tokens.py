"""Language models: outputs [N, T, V] beside targets [N, T], one loss and one figure over all tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

AT_ONCE = 1 << 24  # logits in memory at a time while the tokens' losses are measured


class TokenLoss(nn.Module):
    """A loss of classes over all tokens of a batch, as if each were a row.

    Flat rows have deterministic kernels everywhere; torch's loss of [N, V, T] has none on a CUDA card.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    @property
    def reduction(self) -> str:
        """As the loss itself has it."""
        return getattr(self.inner, "reduction", "mean")

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.inner(outputs.flatten(0, -2), targets.flatten())


def token_losses(outputs: Tensor, y: Tensor, takes: str) -> Tensor:
    """-ln of the probability that the outputs [N, T, V] give to each target [N, T]; nats."""
    per_row = max(1, outputs[:1].numel())
    rows = max(1, AT_ONCE // per_row)
    parts = []
    for out, targets in zip(outputs.split(rows), y.to(outputs.device).split(rows), strict=True):
        flat = out.flatten(0, -2).float()
        if takes == "logits":
            flat = flat.log_softmax(dim=-1)
        elif takes == "probabilities":
            flat = flat.clamp_min(torch.finfo(flat.dtype).tiny).log()
        parts.append(F.nll_loss(flat, targets.flatten(), reduction="none").reshape(targets.shape))
    return torch.cat(parts)
