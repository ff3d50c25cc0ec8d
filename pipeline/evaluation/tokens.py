"""Language models: outputs [N, T, V] and targets [N, T], one loss and one metric over all tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_LOGITS = 1 << 24  # logits in memory at a time while the tokens' losses are computed


class TokenLoss(nn.Module):
    """Apply a classification loss to all tokens of a batch, as if each were a row.

    Flat rows have deterministic kernels on every device; torch's loss of [N, V, T] has none on CUDA.
    """

    def __init__(self, inner: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = inner

    @property
    def reduction(self) -> str:
        """The reduction of the inner loss; `mean` where it names none."""
        return getattr(self.inner, "reduction", "mean")

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.inner(outputs.flatten(0, -2), targets.flatten())


def token_losses(outputs: Tensor, y: Tensor, takes: str) -> Tensor:
    """Return the negative log-likelihood [N, T] (nats) of the targets under outputs [N, T, V]."""
    per_row = max(1, outputs[:1].numel())
    rows = max(1, MAX_LOGITS // per_row)
    parts = []
    for out, targets in zip(outputs.split(rows), y.to(outputs.device).split(rows), strict=True):
        flat = out.flatten(0, -2).float()
        if takes == "logits":
            flat = flat.log_softmax(dim=-1)
        elif takes == "probabilities":
            flat = flat.clamp_min(torch.finfo(flat.dtype).tiny).log()
        parts.append(F.nll_loss(flat, targets.flatten(), reduction="none").reshape(targets.shape))
    return torch.cat(parts)
