"""A multilayer perceptron: the model to beat on rows of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pipeline.errors import UserError, fault

NORMALIZATIONS = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def activation_named(name: str) -> type[nn.Module]:
    """The activation module of torch.nn that is meant, `leaky_relu` as well as `LeakyReLU`. Raises UserError."""
    known = [n for n in nn.modules.activation.__all__ if n != "MultiheadAttention"]
    if name not in known:
        exact = {n.lower(): n for n in known}.get(str(name).lower().replace("_", ""))
        if exact is None:
            raise UserError(
                fault("model.activation", "unknown activation", got=name, among=known, expected="a module of torch.nn")
            )
        name = exact
    return getattr(nn, name)


class MLP(nn.Module):
    """`hidden` layers of linear, normalization, activation, dropout, then a linear head without activation.

    Takes [B, ...] with `in_features` numbers per row, gives [B, out_features].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (128,),
        activation: str = "relu",
        dropout: float = 0.0,
        normalization: str = "none",
    ) -> None:
        super().__init__()
        if normalization not in NORMALIZATIONS:
            raise UserError(
                fault("model.normalization", "unknown normalization", got=normalization, among=NORMALIZATIONS)
            )
        widths = [int(in_features), *map(int, hidden)]
        if min(*widths, int(out_features)) < 1 or not 0 <= dropout < 1:
            got = f"widths {[*widths, out_features]} and dropout {dropout}"
            raise UserError(fault("model", "cannot be built", got=got, expected="widths from 1, dropout in [0, 1)"))
        make, norm = activation_named(activation), NORMALIZATIONS[normalization]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers.append(nn.Linear(wide, narrow))
            if norm is not None:
                layers.append(norm(narrow))
            layers.append(make())
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], int(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))
