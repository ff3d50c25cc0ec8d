"""A multilayer perceptron for rows of numbers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pipeline.errors import UserError, fault
from pipeline.models.parts import dense, initialize, require


class MLP(nn.Module):
    """`hidden` layers of linear, normalization, activation, dropout, then a linear head without activation.

    `width` and `depth` are a short form of `hidden`: `depth` layers of `width` units each; one that is None is taken
    from `hidden`. Takes [B, ...] with `in_features` numbers per row, returns [B, out_features]. Raises UserError for
    invalid options.
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
        widths = _hidden_widths(hidden, width, depth)
        sizes = {"in_features": in_features, **{f"hidden[{i}]": size for i, size in enumerate(widths)}}
        sizes["out_features"] = out_features
        require(sizes, dropout=dropout, normalization=normalization, initialization=initialization)
        self.body = nn.Sequential(*dense([in_features, *widths], activation, dropout, normalization))
        self.head = nn.Linear([in_features, *widths][-1], out_features)
        initialize(self, initialization)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))


def _hidden_widths(hidden: object, width: int | None, depth: int | None) -> list[int]:
    """Return the widths of the hidden layers. Raises UserError if they are not given."""
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise UserError(fault("model.hidden", "is not a list of widths", got=hidden, expected="a list like [128, 64]"))
    if width is None and depth is None:
        return list(hidden)
    require({key: size for key, size in (("width", width), ("depth", depth)) if size is not None})
    if width is None and not hidden:
        raise UserError(fault("model.width", "is not given", expected="a width, since model.hidden is empty"))
    return [hidden[0] if width is None else width] * (len(hidden) if depth is None else depth)
