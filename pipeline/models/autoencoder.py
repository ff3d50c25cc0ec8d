"""A dense autoencoder: compresses a row to a few numbers and reconstructs the row from them."""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.models.parts import dense, initialize, require


class Autoencoder(nn.Module):
    """`depth` hidden layers, a code of `bottleneck` numbers, `depth` hidden layers, and the reconstructed row.

    Code and output have no activation. Takes [B, ...] with `in_features` numbers per row and returns the same shape;
    `encode` returns [B, bottleneck]. Raises UserError for invalid options.
    """

    def __init__(
        self,
        in_features: int,
        bottleneck: int = 16,
        width: int = 128,
        depth: int = 1,
        activation: str = "relu",
        dropout: float = 0.0,
        normalization: str = "none",
        initialization: str = "default",
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "bottleneck": bottleneck, "width": width, "depth": depth}
        require(sizes, dropout=dropout, normalization=normalization, initialization=initialization)
        down = dense([in_features, *[width] * depth], activation, dropout, normalization)
        up = dense([bottleneck, *[width] * depth], activation, dropout, normalization)
        self.encoder = nn.Sequential(*down, nn.Linear(width, bottleneck))
        self.decoder = nn.Sequential(*up, nn.Linear(width, in_features))
        initialize(self, initialization)

    def encode(self, x: Tensor) -> Tensor:
        """Return the code of each row [B, bottleneck]."""
        return self.encoder(x.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x)).reshape(x.shape)
