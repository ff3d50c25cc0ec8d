"""The bundled models: shapes, options, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.models.mlp import MLP


def test_mlp_maps_rows_of_any_shape_to_outputs() -> None:
    """A row is flattened; outputs are [B, out_features]."""
    assert (3, 10) == tuple(MLP(64, 10, hidden=[16, 8])(torch.zeros(3, 8, 8)).shape)


def test_mlp_without_hidden_layers_is_linear() -> None:
    """No hidden layer leaves the head alone."""
    model = MLP(4, 2, hidden=[])
    assert 0 == len(model.body) and (5, 2) == tuple(model(torch.zeros(5, 4)).shape)


@pytest.mark.parametrize(("normalization", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
def test_mlp_normalizes_and_drops_where_asked(normalization: str, kind: type[nn.Module]) -> None:
    """Normalization stands behind every hidden linear layer, dropout behind every activation."""
    model = MLP(4, 2, hidden=[8, 8], activation="GELU", dropout=0.5, normalization=normalization)
    assert ["Linear", kind.__name__, "GELU", "Dropout"] * 2 == [type(m).__name__ for m in model.body]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "ReLUU"}, "did you mean 'ReLU'"),
        ({"normalization": "batchnorm"}, r"model\.normalization: unknown"),
        ({"hidden": [0]}, "widths from 1"),
        ({"dropout": 1.0}, "dropout in"),
    ],
)
def test_mlp_refuses_what_it_cannot_be(options: dict[str, object], message: str) -> None:
    """A wrong option is one message that names the key."""
    with pytest.raises(UserError, match=message):
        MLP(4, 2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("leaky_relu", nn.LeakyReLU), ("SiLU", nn.SiLU)])
def test_activations_go_by_torchs_names_in_any_spelling(name: str, kind: type[nn.Module]) -> None:
    """`leaky_relu` is `LeakyReLU`."""
    assert isinstance(MLP(4, 2, activation=name).body[1], kind)
