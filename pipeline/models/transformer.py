"""A decoder in the manner of GPT-2: for streams of tokens, to predict the next one or to tell what they are."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError, fault
from pipeline.models.mlp import activation_named


class Attention(nn.Module):
    """Causal self-attention of `heads` heads: [B, T, width] to the same; no token sees a later one."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, width = x.shape
        parts = self.queries_keys_values(x).view(B, T, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(B, T, width))


class Block(nn.Module):
    """Attention, then two linear layers on every token by itself; each normalized before and added to what came in."""

    def __init__(self, width: int, heads: int, dropout: float, activation: str) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.before_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), activation_named(activation)(), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.before_attention(x)))
        return x + self.drop(self.feed(self.before_feed(x)))


class Transformer(nn.Module):
    """Embeddings of tokens and places, `depth` blocks, a normalization and a linear head.

    Takes token ids [B, T] with T up to `context`, as integers or as the float32 that arrays of data become. Gives
    [B, T, vocabulary], the logits of the next token at every place; with `classes` [B, classes], read off the last
    token. Raises UserError for sizes that cannot be, and for more tokens than the context holds.
    """

    def __init__(
        self,
        vocabulary: int,
        context: int,
        classes: int | None = None,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.0,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "context": context, "width": width, "depth": depth, "heads": heads}
        if classes is not None:
            sizes["classes"] = classes
        faults = [
            fault(f"model.{n}", "is too small", got=size, expected="from 1") for n, size in sizes.items() if size < 1
        ]
        if not 0 <= dropout < 1:
            faults.append(fault("model.dropout", "is no share", got=dropout, expected="in [0, 1)"))
        if not faults and width % heads:
            faults.append(
                fault("model.heads", "do not share the width evenly", got=heads, expected=f"a divisor of {width}")
            )
        if faults:
            raise UserError(*faults)
        self.context, self.classes = int(context), classes
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, activation) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary if classes is None else classes)
        self._initialize(depth)

    def _initialize(self, depth: int) -> None:
        """GPT-2's rule: a deviation of 0.02, less for the layers that add to the stream, no biases."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                adds = name.endswith((".attention.out", ".feed.2"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * depth) if adds else 0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        if self.context < T:
            raise UserError(
                fault("model.context", "is too short for the data", got=self.context, expected=f"{T} or more")
            )
        here = self.tokens(x.long()) + self.places.weight[:T]
        seen = self.norm(self.blocks(self.drop(here)))
        return self.head(seen if self.classes is None else seen[:, -1])
