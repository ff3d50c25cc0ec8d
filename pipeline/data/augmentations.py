"""Bundled augmentations: `loader.augment: [{_target_: pipeline.data.augmentations.Flip}]`.

Each is a callable `(inputs, draws) -> inputs` over a whole batch; `draws` returns the random numbers of every row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.data.reading.items import describe
from pipeline.errors import UserError, fault

if TYPE_CHECKING:
    from pipeline.data.draws import Draws
    from pipeline.data.tree import Tree


@dataclass(frozen=True)
class Noise:
    """Adds normal noise of standard deviation `std` to the inputs [B, ...]."""

    std: float

    def __post_init__(self) -> None:
        _require("std", self.std, self.std >= 0, "a number from 0")

    def __call__(self, inputs: Tree, draws: Draws) -> Tensor:
        values = _tensor(inputs, "Noise", "one tensor of floats [B, ...]", inputs_ndim=range(1, 99))
        return values + (draws.normal(*values.shape[1:]) * self.std).to(values.dtype)


@dataclass(frozen=True)
class Flip:
    """Mirrors images [B, C, H, W] or [B, H, W] left to right, each with this probability."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        _require("probability", self.probability, 0 <= self.probability <= 1, "a number from 0 to 1")

    def __call__(self, inputs: Tree, draws: Draws) -> Tensor:
        images = _images(inputs, "Flip")
        chosen = draws.uniform(*(1,) * (images.ndim - 1)) < self.probability
        return torch.where(chosen, images.flip(-1), images)


@dataclass(frozen=True)
class Shift:
    """Moves images [B, C, H, W] or [B, H, W] by up to `pixels` in both directions; the gap is filled with zeros."""

    pixels: int

    def __post_init__(self) -> None:
        _require("pixels", self.pixels, isinstance(self.pixels, int) and self.pixels >= 0, "a whole number from 0")

    def __call__(self, inputs: Tree, draws: Draws) -> Tensor:
        images = _images(inputs, "Shift")
        moves = (draws.uniform(2) * (2 * self.pixels + 1)).long() - self.pixels
        for axis, move in zip((-2, -1), moves.unbind(1), strict=True):
            images = _move(images, move, axis)
        return images


def _move(images: Tensor, move: Tensor, axis: int) -> Tensor:
    """The images, each moved along one axis by its own number of pixels."""
    size = images.shape[axis]
    source = torch.arange(size, device=images.device) - move[:, None]  # [B, size]: the pixel that moves to each place
    shape = [len(images), *(1,) * (images.ndim - 1)]
    shape[axis] = size
    source = source.view(shape)
    moved = images.gather(axis, source.clamp(0, size - 1).expand_as(images))
    return torch.where((source >= 0) & (source < size), moved, 0)


def _require(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise UserError(fault(f"loader.augment.{name}", "is out of range", got=value, expected=expected))


def _images(inputs: Tree, name: str) -> Tensor:
    return _tensor(inputs, name, "images [B, C, H, W] or [B, H, W]", range(3, 5))


def _tensor(inputs: Tree, name: str, expected: str, inputs_ndim: range) -> Tensor:
    """The inputs if they are one floating-point tensor with a number of dimensions in this range; else UserError."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.ndim not in inputs_ndim:
        raise UserError(fault("loader.augment", f"{name} does not fit", got=describe(inputs), expected=expected))
    return inputs
