"""A transformer encoder over the features of a row, or over a sequence of token ids."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError, fault
from pipeline.models.parts import initialize, require
from pipeline.models.transformer import Block, initialize_gpt, require_attention, token_norm


class Encoder(nn.Module):
    """One token per feature and a summary token, `depth` blocks of full attention, a linear head on the summary token.

    Takes rows [B, ...] of `in_features` numbers. Each number becomes a token: its value times a learned vector, plus a
    position embedding (FT-Transformer, Gorishniy et al., 2021). With a `vocabulary` it takes token ids
    [B, in_features], as integers or as floats. Returns [B, out_features]. Raises UserError for invalid options.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        vocabulary: int | None = None,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.0,
        activation: str = "gelu",
        normalization: str = "layer",
        initialization: str = "default",
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "out_features": out_features, "depth": depth}
        options = {"dropout": dropout, "normalization": normalization, "initialization": initialization}
        require_attention(sizes, width, heads, **options)
        if vocabulary is not None:
            require({"vocabulary": vocabulary})
        self.in_features, self.reads_ids = in_features, vocabulary is not None
        self.tokens = nn.Embedding(in_features if vocabulary is None else vocabulary, width)
        self.places = nn.Embedding(in_features + 1, width)
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        blocks = (Block(width, heads, dropout, activation, normalization, causal=False) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm = token_norm(normalization, width)
        self.head = nn.Linear(width, out_features)
        initialize_gpt(self, depth)
        if vocabulary is None:
            nn.init.normal_(self.tokens.weight)  # standardized inputs then give tokens of unit scale
        initialize(self, initialization)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if x.shape[1] != self.in_features:
            expected = f"{x.shape[1]}, the numbers in a row"
            raise UserError(
                fault("model.in_features", "does not fit the data", got=self.in_features, expected=expected)
            )
        tokens = self.tokens(x.long()) if self.reads_ids else x[:, :, None] * self.tokens.weight
        tokens = F.pad(tokens, (0, 0, 1, 0)) + self.places.weight  # the summary token is its position embedding alone
        return self.head(self.norm(self.blocks(self.drop(tokens)))[:, 0])
