"""A GPT-2 style decoder for sequences of tokens: predicts the next token, or the class of the sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError, fault
from pipeline.models import parts
from pipeline.models.parts import TOKEN_NORMALIZATIONS, activation_class, initialize, require


class Attention(nn.Module):
    """Self-attention with `heads` heads, [B, T, width] to the same; if causal, no token attends to later ones."""

    def __init__(self, width: int, heads: int, dropout: float, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, width = x.shape
        # One matrix product for queries, keys and values of all heads, [3, B, heads, T, width / heads].
        joint = self.queries_keys_values(x).view(B, T, 3, self.heads, width // self.heads)
        q, k, v = joint.permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0  # the function does not know the mode of the module
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        return self.out(attended.transpose(1, 2).reshape(B, T, width))


class Block(nn.Module):
    """Attention, then two linear layers per token; both are pre-normalized and have a residual connection."""

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
        self.before_attention = token_norm(normalization, width)
        self.attention = Attention(width, heads, dropout, causal)
        self.before_feed = token_norm(normalization, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), activation_class(activation)(), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.before_attention(x)))
        return x + self.drop(self.feed(self.before_feed(x)))


def token_norm(kind: str, width: int) -> nn.Module:
    """Return a normalization of each token by itself, or Identity."""
    return next(iter(parts.normalization(kind, width)), nn.Identity())


def require_attention(
    sizes: Mapping[str, object],
    width: int,
    heads: int,
    *,
    dropout: object,
    normalization: object,
    initialization: object,
) -> None:
    """Raises UserError for invalid sizes and options, and if the width is not divisible by the number of heads."""
    options = {"dropout": dropout, "normalization": normalization, "initialization": initialization}
    require({**sizes, "width": width, "heads": heads}, **options, allowed=TOKEN_NORMALIZATIONS)
    if width % heads:
        raise UserError(fault("model.heads", "do not divide the width", got=heads, expected=f"a divisor of {width}"))


def initialize_gpt(model: nn.Module, depth: int) -> None:
    """Initialize as GPT-2: standard deviation 0.02, zero biases.

    The deviation is 0.02 / √(2 · depth) for layers that add to the residual stream, so that its variance does not grow
    with the depth.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            residual = name.endswith((".attention.out", ".feed.2"))
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * depth) if residual else 0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


class Transformer(nn.Module):
    """Token and position embeddings, `depth` blocks, a normalization and a linear head.

    Takes token ids [B, T] with T up to `context`, as integers or as floats. Returns [B, T, vocabulary], the logits of
    the next token at every position; with `classes` [B, classes], from the last token. Raises UserError for invalid
    sizes, and for more tokens than `context`.
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
        self.norm = token_norm(normalization, width)
        self.head = nn.Linear(width, vocabulary if classes is None else classes)
        initialize_gpt(self, depth)
        initialize(self, initialization)

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        if self.context < T:
            raise UserError(
                fault("model.context", "is too short for the data", got=self.context, expected=f"{T} or more")
            )
        embedded = self.tokens(x.long()) + self.places.weight[:T]
        states = self.norm(self.blocks(self.drop(embedded)))
        return self.head(states if self.classes is None else states[:, -1])
