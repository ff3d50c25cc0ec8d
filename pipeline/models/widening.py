"""Surgery that makes every hidden layer of a chain of layers wider."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from pipeline.errors import UserError, fault

KEY = "surgery.widen"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
OTHERS = (nn.RNNBase, nn.MultiheadAttention, nn.Embedding)  # whose widths other layers rely on


def widen(model: nn.Module, factor: int = 4) -> nn.Module:
    """Give every hidden linear or convolution layer `factor` times its units, with new weights, in place.

    The normalization behind a layer is widened with it. Raises UserError unless each layer takes
    what the one before it gives.
    """
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
        raise UserError(fault(f"{KEY}.factor", "cannot be a factor", got=factor, expected="a whole number from 2 on"))
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)]
    if len(layers) < 2:
        raise UserError(fault(KEY, "the model has no hidden linear or convolution layer"))
    plain = all(isinstance(m, nn.Linear) or (isinstance(m, CONVOLUTIONS) and m.groups == 1) for m in layers)
    if not plain or any(isinstance(m, OTHERS) for m in model.modules()):
        raise UserError(fault(KEY, "takes a chain of linear layers and convolutions", got=type(model).__name__))
    for before, after in pairwise(layers):
        if _inputs(after) % _outputs(before):
            got = f"{_outputs(before)} units before a layer of {_inputs(after)} inputs"
            raise UserError(fault(KEY, "takes layers of which each gets what the one before it gives", got=got))
    last, width = layers[-1], 0  # of the latest hidden layer, before it was widened
    for module in list(model.modules()):
        if isinstance(module, nn.Linear | _ConvNd):
            width = 0 if module is last else _outputs(module)
            _resize(module, 1 if module is layers[0] else factor, 1 if module is last else factor)
        elif isinstance(module, _BatchNorm | nn.LayerNorm | nn.GroupNorm) and width:
            _resize_norm(module, width, factor)
    return model


def _inputs(layer: nn.Module) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore[arg-type]


def _outputs(layer: nn.Module) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)  # type: ignore[arg-type]


def _resize(layer: nn.Module, of_inputs: int, of_outputs: int) -> None:
    """Build a layer anew with more inputs and outputs, in place, so that hooks and shared references stay."""
    inputs, outputs, has_bias = _inputs(layer) * of_inputs, _outputs(layer) * of_outputs, layer.bias is not None
    where = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        new: nn.Module = nn.Linear(inputs, outputs, has_bias, **where)  # type: ignore[arg-type]
        layer.in_features, layer.out_features = inputs, outputs
    else:
        assert isinstance(layer, _ConvNd)
        shape = {
            name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        }
        new = type(layer)(inputs, outputs, bias=has_bias, **shape, **where)  # type: ignore[arg-type]
        layer.in_channels, layer.out_channels = inputs, outputs
    for name, parameter in new.named_parameters():
        setattr(layer, name, parameter)


def _resize_norm(norm: nn.Module, width: int, factor: int) -> None:
    """Build a normalization over `width` units anew, in place."""
    if isinstance(norm, nn.LayerNorm):
        if norm.normalized_shape != (width,):
            got = list(norm.normalized_shape)
            raise UserError(fault(KEY, "takes normalization over the units of a layer", got=got, expected=f"[{width}]"))
        new: nn.Module = nn.LayerNorm(width * factor, norm.eps, norm.elementwise_affine, norm.bias is not None)
        norm.normalized_shape = (width * factor,)
    elif isinstance(norm, nn.GroupNorm):
        new = nn.GroupNorm(norm.num_groups, width * factor, norm.eps, norm.affine)
        norm.num_channels = width * factor
    else:
        assert isinstance(norm, _BatchNorm)
        new = type(norm)(width * factor, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        norm.num_features = width * factor
    for name, tensor in (*new.named_parameters(), *new.named_buffers()):
        setattr(norm, name, tensor)
