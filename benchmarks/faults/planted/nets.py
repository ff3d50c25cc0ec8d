"""Models as lists of layers: `_target_: planted.nets.stack`, `layers: [Linear 64 32, ReLU, Linear 32 10]`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Softmax0(nn.Module):
    """Softmax over the rows of a batch instead of over the classes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(dim=0)


class AlwaysDropout(nn.Module):
    """Dropout that ignores eval mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.p, training=True)


class Detach(nn.Module):
    """Stops gradients, so that the layers before it do not train."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Residual(nn.Module):
    """A residual block: the inputs plus the outputs of the layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


OWN = {module.__name__: module for module in (Softmax0, AlwaysDropout, Detach)}


def _layer(text: str) -> nn.Module:
    """Return the layer that a text such as `BatchNorm1d 32 momentum=0.0` names: a class of torch.nn or this file."""
    name, *arguments = text.split()
    positional = [_number(word) for word in arguments if "=" not in word]
    named: dict[str, Any] = {k: _number(v) for k, _, v in (word.partition("=") for word in arguments if "=" in word)}
    return (OWN.get(name) or getattr(nn, name))(*positional, **named)


def _number(word: str) -> Any:
    if word in ("True", "False"):
        return word == "True"
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word)
    except ValueError:
        return word


def _each(layers: Sequence[str]) -> Iterator[str]:
    """Yield the layers one by one; `30 * Linear 16 16; ReLU` gives sixty."""
    for text in layers:
        times, repeated, block = text.partition(" * ")
        yield from block.split("; ") * int(times) if repeated else [text]


def stack(
    layers: Sequence[str], std: float | None = None, constant: float | None = None, bias: float | None = None,
    frozen: Sequence[int] = (),
) -> nn.Sequential:  # fmt: skip
    """Return the layers as a sequence.

    `std`: the standard deviation of the initial weights; `constant`: the value of all weights; `bias`: the value of all
    biases; `frozen`: indices of layers that do not train.
    """
    net = nn.Sequential(*(_layer(text) for text in _each(layers)))
    with torch.no_grad():
        for module in net:
            if isinstance(module, nn.Linear | nn.Conv2d):
                if std is not None:
                    module.weight.normal_(0, std)
                if constant is not None:
                    module.weight.fill_(constant)
                if bias is not None and module.bias is not None:
                    module.bias.fill_(bias)
    for number in frozen:
        net[number].requires_grad_(False)
    return net


def deep(
    features: int, width: int, depth: int, outputs: int, activation: str = "ReLU", **options: Any
) -> nn.Sequential:
    """Return a model of `depth` hidden layers of equal width."""
    layers, last = [], features
    for _ in range(depth):
        layers += [f"Linear {last} {width}", activation]
        last = width
    return stack([*layers, f"Linear {last} {outputs}"], **options)
