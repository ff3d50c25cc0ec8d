"""Parts of the bundled models: the options that they share, checked in one place, and the layers for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from torch import nn

from pipeline.errors import UserError, fault
from pipeline.models import surgery

NORMALIZATIONS = ("none", "batch", "layer")
TOKEN_NORMALIZATIONS = ("none", "layer")  # batch norm would mix tokens, so that a token depends on later ones
INITIALIZATIONS = ("default", *surgery.SCHEMES)
NO_ACTIVATION = "none"

_BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}


def require(
    sizes: Mapping[str, object],
    *,
    dropout: object = 0.0,
    normalization: object = "none",
    initialization: object = "default",
    allowed: Sequence[str] = NORMALIZATIONS,
) -> None:
    """Raises UserError naming every invalid option of a model by its key; `sizes` are at least 1.

    The values come from a config, so that their types are checked as well. `allowed` are the normalizations.
    """
    faults = [
        fault(f"model.{key}", "is not a valid size", got=size, expected="an integer of at least 1")
        for key, size in sizes.items()
        if isinstance(size, bool) or not isinstance(size, int) or size < 1
    ]
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        faults.append(fault("model.dropout", "is not a probability", got=dropout, expected="in [0, 1)"))
    if normalization not in allowed:
        faults.append(fault("model.normalization", "unknown normalization", got=normalization, among=allowed))
    if initialization not in INITIALIZATIONS:
        faults.append(fault("model.initialization", "unknown scheme", got=initialization, among=INITIALIZATIONS))
    if faults:
        raise UserError(*faults)


def activation_class(name: str) -> Callable[[], nn.Module]:
    """Return the activation class of torch.nn for `leaky_relu` as well as `LeakyReLU`; Identity for `none`.

    Raises UserError for an unknown name.
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
    """Return the normalization after a layer: of `width` features for `dims` 1, of `width` channels of images for 2.

    For channels, `layer` is a GroupNorm with one group, so that each image is normalized by itself.
    """
    if kind == "none":
        return []
    if kind == "batch":
        return [_BATCH[dims](width)]
    return [nn.LayerNorm(width) if dims == 1 else nn.GroupNorm(1, width)]


def dropout_layers(p: float) -> list[nn.Module]:
    """Return a dropout, or nothing if `p` is 0."""
    return [nn.Dropout(p)] if p else []


def dense(widths: Sequence[int], activation: str, dropout: float, norm: str) -> list[nn.Module]:
    """Return linear, normalization, activation and dropout layers from each width to the next."""
    new_activation, layers = activation_class(activation), list[nn.Module]()
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), *normalization(norm, outputs)]
        layers += [new_activation(), *dropout_layers(dropout)]
    return layers


def initialize(model: nn.Module, scheme: str) -> None:
    """Initialize linear, convolution and recurrent layers by a scheme of surgery; `default` keeps torch's own."""
    if scheme != "default":
        for module in model.modules():
            surgery.initialize_layer(module, scheme)
