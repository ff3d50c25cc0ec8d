"""Surgery on what `forward` computes, whatever the model is written in: for experiments that leave one part out.

The operations add hooks and change modules in place; the names of the parameters stay. Functional calls inside
`forward`, such as `F.dropout` or `x.detach()`, are replaced while the model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from pipeline.errors import UserError, fault

DROPOUTS = frozenset(
    {
        nn.functional.dropout, nn.functional.dropout1d, nn.functional.dropout2d, nn.functional.dropout3d,
        nn.functional.alpha_dropout, nn.functional.feature_alpha_dropout, torch.dropout, torch.dropout_,
        torch.alpha_dropout, torch.feature_dropout,
    }
)  # fmt: skip
DETACHING = frozenset({torch.Tensor.detach, torch.detach})
PASS_THROUGH = (nn.Dropout, nn.Flatten, nn.Unflatten, nn.Identity, nn.AvgPool1d, nn.AvgPool2d, nn.LayerNorm, _BatchNorm)


class _Skipping(TorchFunctionMode):
    """Functions that return their first argument while the mode is on."""

    def __init__(self, skipped: frozenset[Any]) -> None:
        super().__init__()
        self.skipped = skipped

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self.skipped:
            return args[0] if args else (kwargs or {})["input"]
        return func(*args, **(kwargs or {}))


class _Skip:
    """Hooks of a module that skip functions while it runs; with `eval_only` they do so only in eval mode."""

    def __init__(self, skipped: frozenset[Any], eval_only: bool) -> None:
        self.skipped, self.eval_only = skipped, eval_only
        self.modes: list[_Skipping | None] = []

    def enter(self, module: nn.Module, args: object) -> None:
        mode = None if self.eval_only and module.training else _Skipping(self.skipped)
        if mode is not None:
            mode.__enter__()
        self.modes.append(mode)

    def leave(self, module: nn.Module, args: object, output: object) -> None:
        mode = self.modes.pop()
        if mode is not None:
            mode.__exit__(None, None, None)


def _skip(model: nn.Module, skipped: frozenset[Any], eval_only: bool = False) -> nn.Module:
    hooks = _Skip(skipped, eval_only)
    model.register_forward_pre_hook(hooks.enter)
    model.register_forward_hook(hooks.leave, always_call=True)
    return model


def skip_dropout(model: nn.Module, eval_only: bool = False) -> nn.Module:
    """Turn off every dropout, also one that `forward` calls as a function; with `eval_only` in eval mode alone."""
    return _skip(model, DROPOUTS, eval_only)


def keep_gradients(model: nn.Module) -> nn.Module:
    """Ignore every `detach` inside the model, and train every parameter."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return _skip(model, DETACHING)


def output_layers(model: nn.Module) -> list[nn.Module]:
    """Linear and convolution layers, or where there are none the modules that have parameters of their own."""
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)]
    return layers or [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]


class _Captured:
    """The output of the layer that ran last."""

    def __init__(self) -> None:
        self.output: Tensor | None = None

    def begin(self, module: nn.Module, args: object) -> None:
        self.output = None

    def keep(self, module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            self.output = output

    def give(self, module: nn.Module, args: object, output: object) -> object:
        return output if self.output is None else self.output


@contextmanager
def last_layer_output(model: nn.Module) -> Iterator[_Captured]:
    """Inside the block `.output` is what the last linear or convolution layer computed in the latest pass."""
    captured = _Captured()
    hooks = [layer.register_forward_hook(captured.keep) for layer in output_layers(model)]
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()


def raw_output(model: nn.Module) -> nn.Module:
    """Return the output of the last linear or convolution layer, without what `forward` does to it afterwards."""
    captured = _Captured()
    layers = output_layers(model)
    if not layers:
        raise UserError(fault("surgery.raw_output", "the model has no layer with parameters"))
    model.register_forward_pre_hook(captured.begin)
    for layer in layers:
        layer.register_forward_hook(captured.keep)
    model.register_forward_hook(captured.give)
    return model


def insert_activations(model: nn.Module, kind: str = "ReLU") -> nn.Module:
    """Insert an activation after every hidden linear or convolution layer that no activation module follows."""
    new = getattr(nn, kind, None)
    if not (isinstance(new, type) and issubclass(new, nn.Module)):
        raise UserError(fault("surgery.insert_activations.kind", "unknown activation", got=kind))
    leaves = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()
              if not any(True for _ in child.children())]  # fmt: skip
    layers = [i for i, (_, _, m) in enumerate(leaves) if isinstance(m, nn.Linear | _ConvNd)]
    changed = 0
    for i in layers[:-1]:
        following = next((m for _, _, m in leaves[i + 1 :] if not isinstance(m, PASS_THROUGH)), None)
        if isinstance(following, nn.Linear | _ConvNd):
            parent, name, layer = leaves[i]
            setattr(parent, name, nn.Sequential(layer, new()))
            changed += 1
    if not changed:
        raise UserError(fault("surgery.insert_activations", "an activation follows every hidden layer"))
    return model


def replace_normalization(model: nn.Module, kind: str = "group") -> nn.Module:
    """Replace every batch norm: by GroupNorm over all channels (`group`), or by a new one with defaults (`default`)."""
    if kind not in ("group", "default"):
        among = ("group", "default")
        raise UserError(fault("surgery.replace_normalization.kind", "unknown kind", got=kind, among=among))
    places = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()
             if isinstance(child, _BatchNorm)]  # fmt: skip
    if not places:
        raise UserError(fault("surgery.replace_normalization", "the model has no batch norm"))
    for parent, name, child in places:
        new = nn.GroupNorm(1, child.num_features) if kind == "group" else type(child)(child.num_features)
        setattr(parent, name, new)
    return model


def shrink_depth(model: nn.Module, keep: int = 1) -> nn.Module:
    """Leave out hidden linear layers with as many outputs as inputs, except for the first `keep` of them."""
    layers = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()
              if isinstance(child, nn.Linear)]  # fmt: skip
    square = [entry for entry in layers[1:-1] if entry[2].in_features == entry[2].out_features]
    if len(square) <= keep:
        raise UserError(fault("surgery.shrink_depth", "there is no layer to leave out", got=len(square)))
    for parent, name, _ in square[keep:]:
        setattr(parent, name, nn.Identity())
    return model


class _Mask:
    """A hook that sets features of the model's input to zero."""

    def __init__(self, features: Sequence[int]) -> None:
        self.features = list(features)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not (args and isinstance(args[0], Tensor)):
            return None
        rows = args[0].flatten(1).clone()
        rows[:, self.features] = 0
        return (rows.view_as(args[0]), *args[1:])


def mask_features(model: nn.Module, features: Sequence[int]) -> nn.Module:
    """Set these features of every row to zero, in training and in evaluation; they are counted over a flattened row."""
    model.register_forward_pre_hook(_Mask(features))
    return model


REWIRING = (
    skip_dropout, keep_gradients, raw_output, insert_activations, replace_normalization, shrink_depth, mask_features,
)  # fmt: skip
