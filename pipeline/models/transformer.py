"""A decoder in the manner of GPT-2: for streams of tokens, to predict the next one or to tell what they are."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError, fault
from pipeline.models import parts
from pipeline.models.parts import PER_TOKEN, activation_named, initialize, require


class Attention(nn.Module):
    """Self-attention of `heads` heads: [B, T, width] to the same; where it is causal, no token sees a later one."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, width = x.shape
        parts = self.queries_keys_values(x).view(B, T, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(B, T, width))


class Block(nn.Module):
    """Attention, then two linear layers on every token by itself; each normalized before and added to what came in."""

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        activation: str,
        normalization: str = "layer",
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.before_attention = normalized(normalization, width)
        self.attention = Attention(width, heads, dropout, causal)
        self.before_feed = normalized(normalization, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), activation_named(activation)(), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.before_attention(x)))
        return x + self.drop(self.feed(self.before_feed(x)))


def normalized(kind: str, width: int) -> nn.Module:
    """The normalization of every token by itself, or what does nothing."""
    return next(iter(parts.normalization(kind, width)), nn.Identity())


def require_attention(sizes: dict[str, Any], width: int, heads: int, **options: Any) -> None:
    """Raises UserError for sizes and options that cannot be, and for heads that do not share the width evenly."""
    require({**sizes, "width": width, "heads": heads}, among=PER_TOKEN, **options)
    if width % heads:
        raise UserError(
            fault("model.heads", "do not share the width evenly", got=heads, expected=f"a divisor of {width}")
        )


def gpt_start(model: nn.Module, depth: int) -> None:
    """GPT-2's rule: a deviation of 0.02, less for the layers that add to the stream, no biases."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            adds = name.endswith((".attention.out", ".feed.2"))
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * depth) if adds else 0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


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
        normalization: str = "layer",
        initialization: str = "default",
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "context": context, "depth": depth}
        sizes |= {} if classes is None else {"classes": classes}
        options = {"dropout": dropout, "normalization": normalization, "initialization": initialization}
        require_attention(sizes, width, heads, **options)
        self.context, self.classes = context, classes
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, activation, normalization) for _ in range(depth)))
        self.norm = normalized(normalization, width)
        self.head = nn.Linear(width, vocabulary if classes is None else classes)
        gpt_start(self, depth)
        initialize(self, initialization)

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        if self.context < T:
            raise UserError(
                fault("model.context", "is too short for the data", got=self.context, expected=f"{T} or more")
            )
        here = self.tokens(x.long()) + self.places.weight[:T]
        seen = self.norm(self.blocks(self.drop(here)))
        return self.head(seen if self.classes is None else seen[:, -1])
