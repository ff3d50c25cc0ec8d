"""What the bundled models are made of: the words of their options, checked in one place, and the layers behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from pipeline.errors import UserError, fault
from pipeline.models import surgery

NORMALIZATIONS = ("none", "batch", "layer")
PER_TOKEN = ("none", "layer")  # a batch norm over places would let a token see later ones
INITIALIZATIONS = ("default", *surgery.SCHEMES)
NO_ACTIVATION = "none"

_BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


def require(
    sizes: dict[str, Any],
    *,
    dropout: Any = 0.0,
    normalization: str = "none",
    initialization: str = "default",
    among: Sequence[str] = NORMALIZATIONS,
) -> None:
    """Raises UserError naming every option of a model that cannot be, each by its key; `sizes` count from 1."""
    faults = [
        fault(f"model.{key}", "is no size", got=size, expected="a whole number from 1")
        for key, size in sizes.items()
        if isinstance(size, bool) or not isinstance(size, int) or size < 1
    ]
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        faults.append(fault("model.dropout", "is no share", got=dropout, expected="in [0, 1)"))
    if normalization not in among:
        faults.append(fault("model.normalization", "unknown normalization", got=normalization, among=among))
    if initialization not in INITIALIZATIONS:
        faults.append(fault("model.initialization", "unknown scheme", got=initialization, among=INITIALIZATIONS))
    if faults:
        raise UserError(*faults)


def activation_named(name: str) -> Callable[[], nn.Module]:
    """The activation module of torch.nn that is meant, `leaky_relu` as well as `LeakyReLU`; `none` does nothing.

    Raises UserError.
    """
    if name == NO_ACTIVATION:
        return nn.Identity
    known = surgery.ACTIVATIONS
    exact = {n.lower(): n for n in known}.get(str(name).lower().replace("_", ""))
    if exact is None:
        raise UserError(
            fault("model.activation", "unknown activation", got=name, among=known, expected="a module of torch.nn")
        )
    return getattr(nn, exact)


def normalization(kind: str, width: int, dims: int = 1) -> list[nn.Module]:
    """The normalization behind a layer of `width` features, or of channels of `dims` - 1 dimensional pictures.

    `layer` of channels is one group over all of them, so that an image is normalized by itself.
    """
    if kind == "none":
        return []
    if kind == "batch":
        return [_BATCH[dims](width)]
    return [nn.LayerNorm(width) if dims == 1 else nn.GroupNorm(1, width)]


def dropped(share: float) -> list[nn.Module]:
    """A dropout where anything is to be dropped."""
    return [nn.Dropout(share)] if share else []


def dense(widths: Sequence[int], activation: str, dropout: float, norm: str) -> list[nn.Module]:
    """From each width to the next: linear, normalization, activation, dropout."""
    make, layers = activation_named(activation), list[nn.Module]()
    for before, behind in pairwise(widths):
        layers += [nn.Linear(before, behind), *normalization(norm, behind), make(), *dropped(dropout)]
    return layers


def initialize(model: nn.Module, scheme: str) -> None:
    """Linear, convolution and recurrent layers have weights by a scheme of surgery; `default` leaves them."""
    if scheme != "default":
        for module in model.modules():
            surgery.draw(module, scheme)
