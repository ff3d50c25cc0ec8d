"""The bundled models: shapes, options, and what they refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from pipeline import surgery
from pipeline.config.build import build
from pipeline.config.compose import compose
from pipeline.errors import UserError
from pipeline.models.cnn import CNN
from pipeline.models.mlp import MLP
from pipeline.models.transformer import Transformer


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


@pytest.mark.parametrize("rows", [torch.zeros(3, 64), torch.zeros(3, 8, 8), torch.zeros(3, 1, 8, 8)])
def test_cnn_takes_images_and_rows_that_are_images_laid_flat(rows: torch.Tensor) -> None:
    """Outputs are [B, out_features], whatever shape the pixels come in."""
    assert (3, 10) == tuple(CNN([1, 8, 8], 10, width=4)(rows).shape)


def test_cnn_answers_the_same_in_either_memory_format() -> None:
    """Weights and inputs in channels_last are the same network."""
    model: Any = CNN([3, 8, 12], 5, width=4, depth=3)
    x = torch.randn(2, 3, 8, 12)
    expected = model(x)
    found = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("normalization", "kind"), [("batch", "BatchNorm2d"), ("layer", "GroupNorm")])
def test_cnn_blocks_are_modules_that_surgery_finds(normalization: str, kind: str) -> None:
    """Convolution, normalization, activation, pool and dropout stand side by side, channels doubling."""
    model = CNN([1, 8, 8], 2, width=4, activation="GELU", dropout=0.5, normalization=normalization)
    assert ["Conv2d", kind, "GELU", "MaxPool2d", "Dropout"] * 2 == [type(m).__name__ for m in model.body]
    changed = surgery.operate(model, [{"swap_activation": {"from": "GELU", "to": "ReLU"}}, {"set_dropout": {"p": 0.1}}])
    assert (2, 2) == tuple(changed(torch.zeros(2, 64)).shape) and 32 == model.head.in_features


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": [8, 8]}, r"model\.image: is no size"),
        ({"image": "8x8"}, r"model\.image: is no size"),
        ({"image": [0, 8, 8]}, r"model\.image: is no size"),
        ({"depth": 4}, r"model\.depth: leaves nothing.*at most 3"),
        ({"width": 0}, "sizes from 1"),
        ({"dropout": 1.0}, "dropout in"),
        ({"normalization": "group"}, r"model\.normalization: unknown"),
        ({"activation": "ReLUU"}, "did you mean 'ReLU'"),
    ],
)
def test_cnn_refuses_what_it_cannot_be(options: dict[str, Any], message: str) -> None:
    """A wrong option is one message that names the key."""
    with pytest.raises(UserError, match=message):
        CNN(**{"image": [1, 8, 8], "out_features": 10, **options})


def small(**options: Any) -> Transformer:
    return Transformer(**{"vocabulary": 11, "context": 6, "width": 8, "depth": 2, "heads": 2, **options})


@pytest.mark.parametrize(("classes", "shape"), [(None, (3, 5, 11)), (4, (3, 4))])
def test_transformer_gives_logits_per_token_or_per_row(classes: int | None, shape: tuple[int, ...]) -> None:
    """[B, T] token ids, also as float32, give [B, T, vocabulary], or [B, classes]."""
    assert shape == tuple(small(classes=classes)(torch.full((3, 5), 10.0)).shape)


def test_transformer_sees_no_later_token() -> None:
    """A change of one token changes the logits from its place on, and none before."""
    model, x = small().eval(), torch.arange(6).reshape(1, 6)
    other = x.clone()
    other[0, 3] = 9
    first, second = model(x), model(other)
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3], second[:, 3])


def test_transformer_starts_knowing_nothing() -> None:
    """The loss before the first step is that of guessing: ln of the vocabulary."""
    torch.manual_seed(0)
    model, x = small(width=32), torch.randint(0, 11, (16, 6))
    loss = nn.functional.cross_entropy(model(x).flatten(0, 1), torch.randint(0, 11, (96,)))
    assert abs(loss.item() - math.log(11)) < 0.05


def test_transformer_drops_only_in_training() -> None:
    """With dropout two passes differ in train mode and agree in eval mode."""
    model, x = small(dropout=0.5), torch.zeros(1, 6)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"model\.heads: do not share the width evenly.*a divisor of 8"),
        ({"depth": 0, "context": 0}, r"(?s)model\.context: is too small.*model\.depth: is too small"),
        ({"classes": 0}, r"model\.classes: is too small"),
        ({"dropout": 1.0}, r"model\.dropout: is no share"),
        ({"activation": "ReLUU"}, "did you mean 'ReLU'"),
    ],
)
def test_transformer_refuses_what_it_cannot_be(options: dict[str, Any], message: str) -> None:
    """Wrong options are named, all at once."""
    with pytest.raises(UserError, match=message):
        small(**options)


def test_transformer_says_when_its_context_is_too_short() -> None:
    """More tokens than places is a message with both numbers."""
    with pytest.raises(UserError, match=r"model\.context: is too short.*got 6.*7 or more"):
        small()(torch.zeros(1, 7))


@pytest.mark.parametrize(("name", "made"), [("cnn", CNN), ("transformer", Transformer)])
def test_the_configs_of_the_models_build_them(name: str, made: type[nn.Module]) -> None:
    """`model=cnn` and `model=transformer` need nothing else."""
    assert isinstance(build(compose([f"model={name}"])["model"], where="model"), made)
