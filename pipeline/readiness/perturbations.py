"""Corruptions that inputs meet in use, by kind of input and severity: noise, missing values, blur, typing errors.

The strengths at severities 1, 3 and 5 are those of CIFAR-10-C for images (Hendrycks and Dietterich, ICLR 2019), with
lengths as shares of the side of an image; 0.1, 0.25 and 0.5 standard deviations of a column for tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor

from pipeline.data.dataset import Data
from pipeline.data.tree import Tree, map_leaves, named_leaves, with_leaves
from pipeline.runtime.seeds import derive

SEVERITIES = (1, 3, 5)

Kind = Literal["table", "image", "tokens", "codes", "mask"]


@dataclass(frozen=True, eq=False)
class InputPart:
    """One array of the inputs as the train rows have it.

    `mean` and `std` are per column, of `codes` columns too, which no number is added to. `low` and `high` bound all
    values. `nan_allowed` means that the model's preprocessing, or the train rows, know missing values.
    """

    name: str
    kind: Kind
    train: Tensor = field(repr=False)
    mean: Tensor = field(repr=False)
    std: Tensor = field(repr=False)
    low: float = 0.0
    high: float = 1.0
    codes: Mapping[int, int] = field(default_factory=dict)
    nan_allowed: bool = False
    aligned: bool = False  # every token has a target of its own


def input_parts(data: Data, config: Mapping[str, Any]) -> dict[str, InputPart]:
    """Return every array of the inputs by its name, "X" or "X.<name>", with the kind of input that it holds."""
    nested = not isinstance(data.train.X, Tensor)
    preprocess = config.get("preprocess") or {}
    impute, images = (preprocess.get(key) not in (None, "none") for key in ("impute", "images"))
    parts = {}
    for name, train in named_leaves(data.train.X, "X").items():
        kind = _kind(train, nested, images)
        mean, std = _statistics(train) if kind in ("table", "image") else (torch.tensor(0.0), torch.tensor(0.0))
        values = train[torch.isfinite(train)] if train.is_floating_point() else train
        codes = {} if nested or kind != "table" else data.categories
        nan_allowed = kind == "table" and (impute or bool(train.isnan().any()))
        low, high = (float(values.min()), float(values.max())) if values.numel() else (0.0, 0.0)
        aligned = data.train.y.ndim == 2 and data.train.y.shape == train.shape
        parts[name] = InputPart(name, kind, train, mean, std, low, high, codes, nan_allowed, aligned)
    return parts


def _kind(train: Tensor, nested: bool, images: bool) -> Kind:
    """Floats of four dimensions are images; whole numbers alone are tokens, beside other arrays codes."""
    if train.dtype == torch.bool:
        return "mask"
    if train.is_floating_point():
        return "image" if train.ndim == 4 or (images and train.ndim == 3) else "table"
    return "codes" if nested or train.ndim != 2 or train.shape[1] == 1 else "tokens"


def _statistics(train: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each column: the last dimension, or the channel of an image; NaN left out.

    Deviations of constant columns are 0.
    """
    rows = train.double().cpu()
    if rows.ndim >= 3:  # series [N, T, F]; of an image [N, C, H, W] only the value range and the mean are used
        rows = rows.movedim(1, -1).flatten(0, -2) if rows.ndim == 4 else rows.flatten(0, -2)
    rows = torch.where(rows.isfinite(), rows, math.nan)
    mean = rows.nanmean(0)
    std = ((rows - mean) ** 2).nanmean(0).sqrt()
    std = torch.where(std > 1e-12 * mean.abs(), std, 0.0)
    shape = (-1, 1, 1) if train.ndim == 4 else (-1,) if rows.ndim > 1 else ()
    return mean.nan_to_num().float().reshape(shape), std.nan_to_num().float().reshape(shape)


# --- tables ----------------------------------------------------------------------------------------------------------


def _of_columns(part: InputPart, of_codes: bool) -> Tensor:
    """Return which columns hold codes, or which do not: a mask that broadcasts over the rows."""
    width = part.train.shape[-1] if part.train.ndim > 1 else 1
    mask = torch.tensor([(column in part.codes) == of_codes for column in range(width)])
    return mask if part.train.ndim > 1 else mask[0]


def _noise(rows: Tensor, part: InputPart, sigmas: float, draw: Generator) -> Tensor:
    shift = sigmas * part.std * torch.randn(rows.shape, generator=draw)
    return torch.where(_of_columns(part, False), rows + shift, rows)


def _missing(rows: Tensor, part: InputPart, share: float, draw: Generator) -> Tensor:
    gone = (torch.rand(rows.shape, generator=draw) < share) & _of_columns(part, False)
    fill = torch.full_like(part.mean, math.nan) if part.nan_allowed else part.mean
    return torch.where(gone, fill, rows)


def _category_swap(rows: Tensor, part: InputPart, share: float, draw: Generator) -> Tensor:
    """Take the code of another train row for a share of the cells."""
    swapped = torch.rand(rows.shape, generator=draw) < share
    if part.kind == "table":
        swapped &= _of_columns(part, True)
    return torch.where(swapped, _from_train(rows, part, draw), rows)


def _from_train(rows: Tensor, part: InputPart, draw: Generator) -> Tensor:
    """Return values of train rows, every one from its own column: values that the model can have seen there."""
    source = torch.randint(len(part.train), rows.shape, generator=draw)
    return part.train.gather(0, source) if rows.ndim > 0 else rows


# --- images [N, C, H, W] or [N, H, W] --------------------------------------------------------------------------------


def _clipped(rows: Tensor, part: InputPart) -> Tensor:
    return rows.clamp(part.low, part.high)


def _per_row(rows: Tensor, draw: Generator) -> Tensor:
    """Return -1 or 1 for every row, in a shape that broadcasts over it."""
    signs = torch.randint(2, (len(rows),), generator=draw) * 2.0 - 1.0
    return signs.reshape(-1, *[1] * (rows.ndim - 1))


def _pixel_noise(rows: Tensor, part: InputPart, share: float, draw: Generator) -> Tensor:
    return _clipped(rows + share * (part.high - part.low) * torch.randn(rows.shape, generator=draw), part)


def _blur(rows: Tensor, part: InputPart, share: float, draw: Generator) -> Tensor:
    from scipy.ndimage import gaussian_filter

    sigmas = [0.0] * (rows.ndim - 2) + [share * side for side in rows.shape[-2:]]
    return torch.from_numpy(gaussian_filter(rows.numpy(), sigmas, mode="nearest"))


def _brightness(rows: Tensor, part: InputPart, share: float, draw: Generator) -> Tensor:
    return _clipped(rows + share * (part.high - part.low) * _per_row(rows, draw), part)


def _contrast(rows: Tensor, part: InputPart, share: float, draw: Generator) -> Tensor:
    mean = rows.mean(dim=(-2, -1), keepdim=True)
    return mean + share * (rows - mean)


def _occlusion(rows: Tensor, part: InputPart, share: float, draw: Generator) -> Tensor:
    """Cover a square of this share of the area, somewhere in every image, with the mean of the train rows."""
    height, width = rows.shape[-2:]
    sides = [max(1, round(math.sqrt(share) * side)) for side in (height, width)]
    first = [
        torch.randint(side - size + 1, (len(rows), 1), generator=draw)
        for side, size in zip((height, width), sides, strict=True)
    ]
    inside = [
        (torch.arange(side) >= start) & (torch.arange(side) < start + size)
        for side, start, size in zip((height, width), first, sides, strict=True)
    ]
    covered = inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(
        covered[:, None] if rows.ndim == 4 else covered, part.mean.mean() if rows.ndim == 3 else part.mean, rows
    )


def _moved(rows: Tensor, angles: Tensor, shifts: Tensor) -> Tensor:
    """Return images that are rotated by angles [N] in radians and shifted by shares [N, 2] of their sides."""
    from torch.nn.functional import affine_grid, grid_sample

    images = rows if rows.ndim == 4 else rows[:, None]
    cos, sin = angles.cos(), angles.sin()
    turn = torch.stack([torch.stack([cos, -sin, 2 * shifts[:, 0]], 1), torch.stack([sin, cos, 2 * shifts[:, 1]], 1)], 1)
    grid = affine_grid(turn, list(images.shape), align_corners=False)
    moved = grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved if rows.ndim == 4 else moved[:, 0]


def _rotation(rows: Tensor, part: InputPart, degrees: float, draw: Generator) -> Tensor:
    angles = math.radians(degrees) * _per_row(rows, draw).flatten()
    return _moved(rows, angles, torch.zeros(len(rows), 2))


def _translation(rows: Tensor, part: InputPart, share: float, draw: Generator) -> Tensor:
    signs = torch.randint(2, (len(rows), 2), generator=draw) * 2.0 - 1.0
    return _moved(rows, torch.zeros(len(rows)), share * signs)


# --- tokens [N, T] ---------------------------------------------------------------------------------------------------


def _replace(rows: Tensor, part: InputPart, share: float, draw: Generator) -> Tensor:
    replaced = torch.rand(rows.shape, generator=draw) < share
    return torch.where(replaced, _from_train(rows, part, draw), rows)


def _drop(rows: Tensor, part: InputPart, share: float, draw: Generator) -> Tensor:
    """Leave out a share of the tokens; those behind move up, and the last one is repeated."""
    remaining = torch.rand(rows.shape, generator=draw) >= share
    remaining[:, 0] = True
    order = (~remaining).to(torch.int8).argsort(dim=1, stable=True)
    last = remaining.sum(1, keepdim=True) - 1
    position = torch.arange(rows.shape[1]).expand(rows.shape).minimum(last)
    return rows.gather(1, order.gather(1, position))


def _swap(rows: Tensor, part: InputPart, share: float, draw: Generator) -> Tensor:
    """Exchange a share of the tokens with the next one."""
    swapped, pairs = rows.clone(), rows.shape[1] // 2
    chosen = torch.rand((len(rows), pairs), generator=draw) < share
    first, second = rows[:, : 2 * pairs : 2], rows[:, 1 : 2 * pairs : 2]
    swapped[:, : 2 * pairs : 2] = torch.where(chosen, second, first)
    swapped[:, 1 : 2 * pairs : 2] = torch.where(chosen, first, second)
    return swapped


# --- by name ---------------------------------------------------------------------------------------------------------


class Corruption(NamedTuple):
    """A change of the rows of one kind of input, its strength at each severity, and the unit of the strength."""

    change: Callable[[Tensor, InputPart, float, Generator], Tensor]
    strengths: tuple[float, float, float]
    unit: str


_CELLS = "of the cells"
_TOKENS = "of the tokens"
_SWAP = Corruption(_category_swap, (0.05, 0.1, 0.2), _CELLS)
CORRUPTIONS: dict[Kind, dict[str, Corruption]] = {
    "table": {
        "noise": Corruption(_noise, (0.1, 0.25, 0.5), "standard deviations of the column"),
        "missing": Corruption(_missing, (0.05, 0.1, 0.2), _CELLS),
        "category_swap": _SWAP,
    },
    "codes": {"category_swap": _SWAP},
    "image": {
        "noise": Corruption(_pixel_noise, (0.04, 0.08, 0.1), "of the value range"),
        "blur": Corruption(_blur, (0.0125, 0.022, 0.031), "of the side, standard deviation"),
        "brightness": Corruption(_brightness, (0.05, 0.15, 0.3), "of the value range"),
        "contrast": Corruption(_contrast, (0.75, 0.4, 0.15), "of the contrast kept"),
        "occlusion": Corruption(_occlusion, (0.05, 0.1, 0.2), "of the area"),
        "rotation": Corruption(_rotation, (5.0, 10.0, 15.0), "degrees"),
        "translation": Corruption(_translation, (0.025, 0.05, 0.1), "of the side"),
    },
    "tokens": {
        "replace": Corruption(_replace, (0.02, 0.05, 0.1), _TOKENS),
        "drop": Corruption(_drop, (0.02, 0.05, 0.1), _TOKENS),
        "swap": Corruption(_swap, (0.02, 0.05, 0.1), _TOKENS),
    },
    "mask": {},
}  # fmt: skip


def corruptions_of(part: InputPart) -> dict[str, Corruption]:
    """Return the corruptions that mean something for a part of the inputs, by name."""
    possible = dict(CORRUPTIONS[part.kind])
    if part.kind == "table":
        columns = part.train.shape[-1] if part.train.ndim > 1 else 1
        if not part.codes:
            del possible["category_swap"]
        if len(part.codes) == columns or not bool(part.std.any()):
            possible.pop("noise")
            possible.pop("missing")
    if part.kind == "tokens" and part.aligned:
        del possible["drop"]  # the tokens after a dropped one would be compared with the wrong targets
    return possible


def corrupted(X: Tree, parts: Mapping[str, InputPart], name: str, severity: int, seed: int) -> Tree:
    """Return the inputs with a corruption of this severity in every part that it means something for.

    The draws depend on the seed, the corruption and the part, so that a higher severity is more of the same change.
    """
    changed = {}
    for key, rows in named_leaves(X, "X").items():
        corruption = corruptions_of(parts[key]).get(name)
        changed[key] = rows
        if corruption is not None:
            draw = Generator().manual_seed(derive(seed, "corruption", name, key))
            strength = corruption.strengths[SEVERITIES.index(severity)]
            changed[key] = corruption.change(rows.cpu(), parts[key], strength, draw).to(rows.dtype)
    names = iter(_names_in_order(X))
    return with_leaves(map_leaves(lambda leaf: leaf, X), (changed[name] for name in names))


def _names_in_order(X: Tree, name: str = "X") -> list[str]:
    """Return the names of the arrays in the order of the structure."""
    if not isinstance(X, dict | tuple):
        return [name]
    parts = X.items() if isinstance(X, dict) else enumerate(X)
    return [found for key, part in parts for found in _names_in_order(part, f"{name}.{key}")]
