"""A transformer that reads a row as a whole: every feature is a token, or every place of a window of tokens."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import UserError, fault
from pipeline.models.parts import initialize, require
from pipeline.models.transformer import Block, gpt_start, normalized, require_attention


class Encoder(nn.Module):
    """A token per feature and one that gathers, `depth` blocks in which all see all, a head on the one that gathers.

    Takes rows [B, ...] of `in_features` numbers, each of which becomes a token: its value times a direction of its own,
    beside a place of its own (Gorishniy et al., 2021, FT-Transformer). With a `vocabulary` takes token ids
    [B, in_features], as integers or as floats. Gives [B, out_features]. Raises UserError for options that cannot be.
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
        self.norm = normalized(normalization, width)
        self.head = nn.Linear(width, out_features)
        gpt_start(self, depth)
        if vocabulary is None:
            nn.init.normal_(self.tokens.weight)  # inputs of unit scale give tokens of unit scale
        initialize(self, initialization)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if x.shape[1] != self.in_features:
            expected = f"{x.shape[1]}, the numbers of a row"
            raise UserError(
                fault("model.in_features", "does not fit the data", got=self.in_features, expected=expected)
            )
        here = self.tokens(x.long()) if self.reads_ids else x[:, :, None] * self.tokens.weight
        here = F.pad(here, (0, 0, 1, 0)) + self.places.weight  # the first is nothing but its place
        return self.head(self.norm(self.blocks(self.drop(here)))[:, 0])
