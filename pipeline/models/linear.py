"""The linear model: logistic regression with a classification loss, linear regression with a regression loss."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.models import parts
from pipeline.models.parts import dropout_layers, initialize, require


class Linear(nn.Module):
    """One linear layer, after optional normalization and dropout of its inputs.

    Takes [B, ...] with `in_features` numbers per row, returns [B, out_features]. Raises UserError for invalid options.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        dropout: float = 0.0,
        normalization: str = "none",
        initialization: str = "default",
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "out_features": out_features}
        require(sizes, dropout=dropout, normalization=normalization, initialization=initialization)
        self.body = nn.Sequential(*parts.normalization(normalization, in_features), *dropout_layers(dropout))
        self.head = nn.Linear(in_features, out_features)
        initialize(self, initialization)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))
