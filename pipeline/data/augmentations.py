"""Augmentations that come with the house: `loader.augment: [{_target_: pipeline.data.augmentations.Flip}]`.

Each is a callable `(inputs, draws) -> inputs` over a whole batch; `draws` gives the random numbers of every row.
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
    """Normal noise of standard deviation `std` on every number of the inputs [B, ...]."""

    std: float

    def __post_init__(self) -> None:
        _require("std", self.std, self.std >= 0, "a number from 0")

    def __call__(self, inputs: Tree, draws: Draws) -> Tensor:
        values = _tensor(inputs, "Noise", "one tensor of floats [B, ...]", inputs_ndim=range(1, 99))
        return values + (draws.normal(*values.shape[1:]) * self.std).to(values.dtype)


@dataclass(frozen=True)
class Flip:
    """Images [B, C, H, W] or [B, H, W], each mirrored left to right with this probability."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        _require("probability", self.probability, 0 <= self.probability <= 1, "a number from 0 to 1")

    def __call__(self, inputs: Tree, draws: Draws) -> Tensor:
        images = _images(inputs, "Flip")
        chosen = draws.uniform(*(1,) * (images.ndim - 1)) < self.probability
        return torch.where(chosen, images.flip(-1), images)


@dataclass(frozen=True)
class Shift:
    """Images [B, C, H, W] or [B, H, W], each moved by up to `pixels` down or up, right or left; zeros come in."""

    pixels: int

    def __post_init__(self) -> None:
        _require("pixels", self.pixels, isinstance(self.pixels, int) and self.pixels >= 0, "a whole number from 0")

    def __call__(self, inputs: Tree, draws: Draws) -> Tensor:
        images = _images(inputs, "Shift")
        moves = (draws.uniform(2) * (2 * self.pixels + 1)).long() - self.pixels
        for axis, move in zip((-2, -1), moves.unbind(1), strict=True):
            images = _moved(images, move, axis)
        return images


def _moved(images: Tensor, move: Tensor, axis: int) -> Tensor:
    """Every image moved along one axis by its own number of pixels."""
    size = images.shape[axis]
    source = torch.arange(size, device=images.device) - move[:, None]  # [B, size]: which pixel comes here
    shape = [len(images), *(1,) * (images.ndim - 1)]
    shape[axis] = size
    source = source.view(shape)
    picked = images.gather(axis, source.clamp(0, size - 1).expand_as(images))
    return torch.where((source >= 0) & (source < size), picked, 0)


def _require(name: str, value: object, right: bool, expected: str) -> None:
    if not right:
        raise UserError(fault(f"loader.augment.{name}", "is out of range", got=value, expected=expected))


def _images(inputs: Tree, name: str) -> Tensor:
    return _tensor(inputs, name, "images [B, C, H, W] or [B, H, W]", range(3, 5))


def _tensor(inputs: Tree, name: str, expected: str, inputs_ndim: range) -> Tensor:
    """The inputs, which are one tensor of that many dimensions."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.ndim not in inputs_ndim:
        raise UserError(fault("loader.augment", f"{name} does not fit", got=describe(inputs), expected=expected))
    return inputs
