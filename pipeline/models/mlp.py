"""A multilayer perceptron: the model to beat on rows of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from pipeline.errors import UserError, fault
from pipeline.models.parts import dense, initialize, require


class MLP(nn.Module):
    """`hidden` layers of linear, normalization, activation, dropout, then a linear head without activation.

    `width` and `depth` say the hidden layers in short: `depth` of them, each `width` wide; what is None is as `hidden`
    has it. Takes [B, ...] with `in_features` numbers per row, gives [B, out_features]. Raises UserError for options
    that cannot be.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (128,),
        activation: str = "relu",
        dropout: float = 0.0,
        normalization: str = "none",
        width: int | None = None,
        depth: int | None = None,
        initialization: str = "default",
    ) -> None:
        super().__init__()
        widths = _hidden(hidden, width, depth)
        sizes = {"in_features": in_features, **{f"hidden[{i}]": size for i, size in enumerate(widths)}}
        sizes["out_features"] = out_features
        require(sizes, dropout=dropout, normalization=normalization, initialization=initialization)
        self.body = nn.Sequential(*dense([in_features, *widths], activation, dropout, normalization))
        self.head = nn.Linear([in_features, *widths][-1], out_features)
        initialize(self, initialization)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))


def _hidden(hidden: Any, width: int | None, depth: int | None) -> list[int]:
    """The widths of the hidden layers. Raises UserError for what says none."""
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise UserError(fault("model.hidden", "is no list of widths", got=hidden, expected="one like [128, 64]"))
    if width is None and depth is None:
        return list(hidden)
    require({key: size for key, size in (("width", width), ("depth", depth)) if size is not None})
    if width is None and not hidden:
        raise UserError(fault("model.width", "is not given", expected="a width, since model.hidden names none"))
    return [hidden[0] if width is None else width] * (len(hidden) if depth is None else depth)
