"""A recurrent network for series of values or sequences of tokens."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.models import parts
from pipeline.models.parts import TOKEN_NORMALIZATIONS, activation_class, dropout_layers, initialize, require


class GRU(nn.Module):
    """`depth` recurrent layers, each followed by normalization and dropout, an activation and a linear head.

    Takes series [B, T, in_features], or flattened series of T · in_features numbers; with a `vocabulary` token ids
    [B, T], as integers or as floats. Returns [B, out_features] from the last step, or with `every_step`
    [B, T, out_features]. Raises UserError for invalid options.
    """

    def __init__(
        self,
        out_features: int,
        in_features: int = 1,
        vocabulary: int | None = None,
        every_step: bool = False,
        width: int = 64,
        depth: int = 1,
        activation: str = "none",
        dropout: float = 0.0,
        normalization: str = "none",
        initialization: str = "default",
    ) -> None:
        super().__init__()
        sizes = {"out_features": out_features, "in_features": in_features, "width": width, "depth": depth}
        sizes |= {} if vocabulary is None else {"vocabulary": vocabulary}
        options = {"dropout": dropout, "normalization": normalization, "initialization": initialization}
        require(sizes, **options, allowed=TOKEN_NORMALIZATIONS)
        self.in_features, self.every_step = in_features, every_step
        self.tokens = None if vocabulary is None else nn.Embedding(vocabulary, width)
        first = in_features if vocabulary is None else width
        self.layers = nn.ModuleList(nn.GRU(first if i == 0 else width, width, batch_first=True) for i in range(depth))
        self.behind = nn.ModuleList(
            nn.Sequential(*parts.normalization(normalization, width), *dropout_layers(dropout)) for _ in range(depth)
        )
        self.activation = activation_class(activation)()
        self.head = nn.Linear(width, out_features)
        initialize(self, initialization)

    def forward(self, x: Tensor) -> Tensor:
        if self.tokens is None:
            x = x.flatten(1).unflatten(1, (-1, self.in_features))
        else:
            x = self.tokens(x.long())
        for layer, norm_and_dropout in zip(self.layers, self.behind, strict=True):
            x = norm_and_dropout(layer(x)[0])
        return self.head(self.activation(x if self.every_step else x[:, -1]))
