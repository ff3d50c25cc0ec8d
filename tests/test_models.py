"""The bundled models: shapes, options, and what they refuse."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.config.build import build
from pipeline.config.compose import compose
from pipeline.errors import UserError
from pipeline.models import surgery
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.cnn import CNN
from pipeline.models.encoder import Encoder
from pipeline.models.gru import GRU
from pipeline.models.linear import Linear
from pipeline.models.mlp import MLP
from pipeline.models.transformer import Transformer


def test_mlp_takes_rows_of_any_shape() -> None:
    """A row is flattened; outputs are [B, out_features]."""
    assert (3, 10) == tuple(MLP(64, 10, hidden=[16, 8])(torch.zeros(3, 8, 8)).shape)


def test_mlp_without_hidden_layers_is_linear() -> None:
    """Without hidden layers only the head remains."""
    model = MLP(4, 2, hidden=[])
    assert 0 == len(model.body) and (5, 2) == tuple(model(torch.zeros(5, 4)).shape)


@pytest.mark.parametrize(("normalization", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
def test_mlp_inserts_normalization_and_dropout(normalization: str, kind: type[nn.Module]) -> None:
    """Normalization follows every hidden linear layer, dropout every activation."""
    model = MLP(4, 2, hidden=[8, 8], activation="GELU", dropout=0.5, normalization=normalization)
    assert ["Linear", kind.__name__, "GELU", "Dropout"] * 2 == [type(m).__name__ for m in model.body]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "ReLUU"}, "did you mean 'ReLU'"),
        ({"normalization": "batchnorm"}, r"model\.normalization: unknown"),
        ({"hidden": [8, 0]}, r"model\.hidden\[1\]: is not a valid size, got 0"),
        ({"hidden": 8}, r"model\.hidden: is not a list of widths"),
        ({"hidden": [], "depth": 2}, r"model\.width: is not given"),
        ({"width": 0, "depth": 1.5}, r"(?s)model\.width: is not a valid size.*model\.depth: is not a valid size"),
        ({"dropout": 1.0}, r"model\.dropout: is not a probability"),
        ({"initialization": "xavir"}, r"model\.initialization: unknown scheme.*did you mean 'xavier'"),
    ],
)
def test_mlp_refuses_invalid_options(options: dict[str, object], message: str) -> None:
    """An invalid option is one message that names the key."""
    with pytest.raises(UserError, match=message):
        MLP(4, 2, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("leaky_relu", nn.LeakyReLU), ("SiLU", nn.SiLU)])
def test_activation_class_takes_any_spelling(name: str, kind: type[nn.Module]) -> None:
    """`leaky_relu` is `LeakyReLU`."""
    assert isinstance(MLP(4, 2, activation=name).body[1], kind)


@pytest.mark.parametrize("rows", [torch.zeros(3, 64), torch.zeros(3, 8, 8), torch.zeros(3, 1, 8, 8)])
def test_cnn_takes_images_and_flattened_images(rows: torch.Tensor) -> None:
    """Outputs are [B, out_features] for both."""
    assert (3, 10) == tuple(CNN([1, 8, 8], 10, width=4)(rows).shape)


def test_cnn_gives_the_same_outputs_in_either_memory_format() -> None:
    """Weights and inputs in channels_last give the same outputs."""
    model: Any = CNN([3, 8, 12], 5, width=4, depth=3)
    x = torch.randn(2, 3, 8, 12)
    expected = model(x)
    outputs = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(outputs, expected)


@pytest.mark.parametrize(("normalization", "kind"), [("batch", "BatchNorm2d"), ("layer", "GroupNorm")])
def test_cnn_blocks_are_modules_that_surgery_finds(normalization: str, kind: str) -> None:
    """Convolution, normalization, activation, pooling and dropout are adjacent modules; channels double."""
    model = CNN([1, 8, 8], 2, width=4, activation="GELU", dropout=0.5, normalization=normalization)
    assert ["Conv2d", kind, "GELU", "MaxPool2d", "Dropout"] * 2 == [type(m).__name__ for m in model.body]
    changed = surgery.apply_surgery(
        model, [{"swap_activation": {"from": "GELU", "to": "ReLU"}}, {"set_dropout": {"p": 0.1}}]
    )
    assert (2, 2) == tuple(changed(torch.zeros(2, 64)).shape) and 32 == model.head.in_features


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": [8, 8]}, r"model\.image: is not an image size"),
        ({"image": "8x8"}, r"model\.image: is not an image size"),
        ({"image": [0, 8, 8]}, r"model\.image: is not an image size"),
        ({"depth": 4}, r"model\.depth: leaves nothing.*at most 3"),
        ({"width": 0}, r"model\.width: is not a valid size"),
        ({"dropout": 1.0}, r"model\.dropout: is not a probability"),
        ({"normalization": "group"}, r"model\.normalization: unknown"),
        ({"activation": "ReLUU"}, "did you mean 'ReLU'"),
    ],
)
def test_cnn_refuses_invalid_options(options: dict[str, Any], message: str) -> None:
    """An invalid option is one message that names the key."""
    with pytest.raises(UserError, match=message):
        CNN(**{"image": [1, 8, 8], "out_features": 10, **options})


def small(**options: Any) -> Transformer:
    return Transformer(**{"vocabulary": 11, "context": 6, "width": 8, "depth": 2, "heads": 2, **options})


@pytest.mark.parametrize(("classes", "shape"), [(None, (3, 5, 11)), (4, (3, 4))])
def test_transformer_returns_logits_per_token_or_per_row(classes: int | None, shape: tuple[int, ...]) -> None:
    """[B, T] token ids, also as float32, give [B, T, vocabulary] or [B, classes]."""
    assert shape == tuple(small(classes=classes)(torch.full((3, 5), 10.0)).shape)


def test_transformer_is_causal() -> None:
    """Changing a token changes the logits from its position on, and none before."""
    model, x = small().eval(), torch.arange(6).reshape(1, 6)
    other = x.clone()
    other[0, 3] = 9
    first, second = model(x), model(other)
    torch.testing.assert_close(first[:, :3], second[:, :3])
    assert not torch.allclose(first[:, 3], second[:, 3])


def test_transformer_starts_at_the_loss_of_guessing() -> None:
    """The loss before the first step is the logarithm of the vocabulary size."""
    torch.manual_seed(0)
    model, x = small(width=32), torch.randint(0, 11, (16, 6))
    loss = nn.functional.cross_entropy(model(x).flatten(0, 1), torch.randint(0, 11, (96,)))
    assert abs(loss.item() - math.log(11)) < 0.05


def test_transformer_uses_dropout_only_in_training() -> None:
    """With dropout two passes differ in train mode and agree in eval mode."""
    model, x = small(dropout=0.5), torch.zeros(1, 6)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, r"model\.heads: do not divide the width.*a divisor of 8"),
        ({"depth": 0, "context": 0}, r"(?s)model\.context: is not a valid size.*model\.depth: is not a valid size"),
        ({"classes": 0}, r"model\.classes: is not a valid size"),
        ({"normalization": "batch"}, r"model\.normalization: unknown normalization.*one of layer, none"),
        ({"dropout": 1.0}, r"model\.dropout: is not a probability"),
        ({"activation": "ReLUU"}, "did you mean 'ReLU'"),
    ],
)
def test_transformer_refuses_invalid_options(options: dict[str, Any], message: str) -> None:
    """Invalid options are named, all at once."""
    with pytest.raises(UserError, match=message):
        small(**options)


def test_transformer_refuses_more_tokens_than_its_context() -> None:
    """The message holds both numbers."""
    with pytest.raises(UserError, match=r"model\.context: is too short.*got 6.*7 or more"):
        small()(torch.zeros(1, 7))


@pytest.mark.parametrize(
    ("options", "widths"),
    [
        ({"hidden": [8, 6], "width": 5}, [5, 5]),
        ({"hidden": [8], "depth": 3}, [8, 8, 8]),
        ({"width": 7, "depth": 2}, [7, 7]),
        ({"hidden": [8, 6]}, [8, 6]),
        ({"hidden": [], "width": 3}, []),
    ],
)
def test_mlp_takes_width_and_depth_instead_of_hidden(options: dict[str, Any], widths: list[int]) -> None:
    """The one that is not given is taken from `hidden`."""
    assert widths == [m.out_features for m in MLP(4, 2, **options).body if isinstance(m, nn.Linear)]


IDS = torch.arange(12).reshape(2, 6) % 11
ROWS = torch.randn(5, 64)
MADE: dict[str, tuple[nn.Module, torch.Tensor, tuple[int, ...]]] = {
    "linear": (Linear(64, 3, dropout=0.2, normalization="batch"), ROWS, (5, 3)),
    "gru of rows": (GRU(3, 8, width=6, depth=2, dropout=0.2, normalization="layer"), ROWS, (5, 3)),
    "gru of series": (GRU(3, 8, width=6, activation="tanh"), ROWS.reshape(5, 8, 8), (5, 3)),
    "gru of tokens": (GRU(11, vocabulary=11, every_step=True, width=6), IDS, (2, 6, 11)),
    "encoder of rows": (Encoder(64, 3, width=8, depth=1, heads=2), ROWS.reshape(5, 1, 8, 8), (5, 3)),
    "encoder of tokens": (Encoder(6, 3, vocabulary=11, width=8, depth=1, heads=2), IDS.float(), (2, 3)),
    "autoencoder": (Autoencoder(64, 2, width=6, depth=2, dropout=0.2), ROWS.reshape(5, 1, 8, 8), (5, 1, 8, 8)),
}


@pytest.mark.parametrize("name", MADE)
def test_models_have_the_documented_shapes_and_train(name: str) -> None:
    """Outputs have the documented shape, and every parameter gets a gradient."""
    model, x, shape = MADE[name]
    outputs = model.train()(x)
    assert shape == tuple(outputs.shape)
    outputs.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["cnn", "gru of rows", "encoder of rows"])
def test_models_are_exported_for_any_number_of_rows(name: str) -> None:
    """A graph traced with two rows agrees with the model on five."""
    model, x, _ = MADE.get(name) or (CNN([1, 8, 8], 10, width=2), ROWS, ())
    model.eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (x[:2].repeat(2, *[1] * (x.ndim - 1)),), dynamic_shapes=({0: batch},))
    many = torch.cat([x, x[:1]])
    torch.testing.assert_close(program.module()(many), model(many), rtol=1e-4, atol=1e-5)


def test_autoencoder_passes_everything_through_the_bottleneck() -> None:
    """Rows with the same code are reconstructed alike."""
    model = Autoencoder(64, 2, width=6).eval()
    code = model.encode(ROWS)
    assert (5, 2) == tuple(code.shape)
    torch.testing.assert_close(model.decoder(code), model(ROWS))


def test_encoder_distinguishes_positions() -> None:
    """Every feature affects the outputs, and equal values at different positions affect them differently."""
    model, x = Encoder(4, 2, width=8, depth=1, heads=2, initialization="xavier").eval(), torch.zeros(4, 4)
    x[torch.arange(4), torch.arange(4)] = 1.0
    outputs = model(torch.cat([x, torch.zeros(1, 4)]))
    assert 5 == len({tuple(row) for row in outputs.tolist()})
    with pytest.raises(UserError, match=r"model\.in_features: does not fit the data, got 4; expected 5"):
        model(torch.zeros(1, 5))


def with_widths(node: dict[str, Any]) -> dict[str, Any]:
    """The section of a model with widths where planning finds them in the data."""
    return {key: 64 if value == "auto" else value for key, value in node.items()}


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "gru", "transformer", "encoder", "autoencoder"])
def test_models_take_every_initialization_scheme(name: str) -> None:
    """Each scheme gives other weights, and zero biases."""
    node = with_widths(compose([f"model={name}"])["model"])
    last, drawn = "decoder.0.weight" if name == "autoencoder" else "head.weight", []
    for scheme in ("default", "kaiming", "xavier", "orthogonal"):
        torch.manual_seed(0)
        state = build({**node, "initialization": scheme}, where="model").state_dict()
        drawn.append(tuple(state[last].flatten().tolist()))
        biases = [t for key, t in state.items() if "bias" in key and "norm" not in key]
        assert scheme == "default" or (biases and not any(t.any() for t in biases))
    assert 4 == len(set(drawn))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("linear", Linear), ("mlp", MLP), ("cnn", CNN), ("gru", GRU), ("transformer", Transformer),
        ("encoder", Encoder), ("autoencoder", Autoencoder),
    ],
)  # fmt: skip
def test_model_configs_build_the_models(name: str, kind: type[nn.Module]) -> None:
    """`model=<name>` needs no other key, and has every option of the model."""
    node = compose([f"model={name}"])["model"]
    assert isinstance(build(with_widths(node), where="model"), kind)
    assert set(inspect.signature(kind).parameters) == set(node) - {"_target_"}
