"""A small convolutional network for images or flattened images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.errors import UserError, fault
from pipeline.models import parts
from pipeline.models.parts import activation_class, dropout_layers, initialize, require


class CNN(nn.Module):
    """`depth` blocks of convolution 3×3, normalization, activation, max-pool 2×2, dropout, then a linear head.

    Channels are `width` in the first block and double with every further one, while height and width halve. Takes
    images [B, C, H, W] of the size `image`, or any [B, ...] with as many numbers per row; returns [B, out_features].
    Raises UserError for invalid sizes and options.
    """

    def __init__(
        self,
        image: Sequence[int],
        out_features: int,
        width: int = 32,
        depth: int = 2,
        activation: str = "relu",
        dropout: float = 0.0,
        normalization: str = "none",
        initialization: str = "default",
    ) -> None:
        super().__init__()
        sizes = {"width": width, "depth": depth, "out_features": out_features}
        require(sizes, dropout=dropout, normalization=normalization, initialization=initialization)
        channels, height, columns = _image_size(image)
        if min(height, columns) < 2**depth:
            expected = (
                f"at most {min(height, columns).bit_length() - 1}: every block halves the image {height}×{columns}"
            )
            raise UserError(fault("model.depth", "leaves nothing of the image", got=depth, expected=expected))
        new_activation = activation_class(activation)
        self.image = (channels, height, columns)
        layers: list[nn.Module] = []
        for block in range(depth):
            out = width * 2**block
            layers += [nn.Conv2d(channels, out, 3, padding=1), *parts.normalization(normalization, out, dims=2)]
            layers += [new_activation(), nn.MaxPool2d(2), *dropout_layers(dropout)]
            channels, height, columns = out, height // 2, columns // 2
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels * height * columns, out_features)
        initialize(self, initialization)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.image:
            x = x.flatten(1).unflatten(1, self.image)  # only if needed: an image keeps its memory format
        return self.head(self.body(x).flatten(1))


def _image_size(image: Sequence[int]) -> tuple[int, int, int]:
    """Return channels, height and width. Raises UserError if they are not three positive integers."""
    sizes = list(image) if isinstance(image, Sequence) else [image]
    if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise UserError(fault("model.image", "is not an image size", got=image, expected="[channels, height, width]"))
    channels, height, width = sizes
    return channels, height, width
