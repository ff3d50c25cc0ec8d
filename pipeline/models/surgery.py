"""Surgery: named changes of any `nn.Module`, written in a config as `surgery: [{set_dropout: {p: 0.3}}]`.

Every operation takes a model and gives one back; `operate` runs a list of them on a copy. A new operation is a
function in `OPERATIONS`, whose keyword arguments are the keys that a config may give.
"""

from __future__ import annotations

import copy
import fnmatch
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from pipeline.errors import FivegateError, UserError, fault, nearest

Operation = Callable[..., nn.Module]

ACTIVATIONS = tuple(n for n in nn.modules.activation.__all__ if n != "MultiheadAttention")
OUTPUTS = ("Softmax", "LogSoftmax", "Softmax2d", "Softmin")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SEALED = (nn.MultiheadAttention, nn.RNNBase)  # read their children's weights instead of calling them


def _places(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, child) of every module, in order of registration; a shared child appears once per place."""
    for parent in list(model.modules()):
        if not isinstance(parent, _SEALED):
            for name, child in list(parent.named_children()):
                yield parent, name, child


def _layers(model: nn.Module) -> list[nn.Module]:
    """Linear and convolution layers in order of registration; the last is taken for the output layer."""
    return [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)]


def _replace(model: nn.Module, change: Callable[[nn.Module], nn.Module | None]) -> tuple[nn.Module, int]:
    """The model with every module for which `change` gives another one replaced, and how many were.

    A module that stands in several places is replaced by one and the same.
    """
    done: dict[int, nn.Module | None] = {}
    root = change(model)
    if root is not None:
        return root, 1
    for parent, name, child in list(_places(model)):
        if id(child) not in done:
            done[id(child)] = change(child)
        new = done[id(child)]
        if new is not None:
            setattr(parent, name, new)
    return model, sum(new is not None for new in done.values())


def _activation(name: str, key: str) -> type[nn.Module]:
    if name not in ACTIVATIONS:
        raise UserError(fault(key, "unknown activation", got=name, among=ACTIVATIONS, expected="a module of torch.nn"))
    return getattr(nn, name)


def _made(kind: type[nn.Module]) -> nn.Module:
    """An activation of that class; those over classes are over the last axis."""
    return kind(dim=-1) if kind.__name__ in ("Softmax", "LogSoftmax", "Softmin") else kind()


def swap_activation(model: nn.Module, source: str, to: str) -> nn.Module:
    """Every activation module of class `from` is one of class `to`. Functional calls (`F.relu`) cannot be swapped."""
    make = _activation(to, "surgery.swap_activation.to")
    old = _activation(source, "surgery.swap_activation.from")
    model, changed = _replace(model, lambda m: _made(make) if type(m) is old else None)
    if not changed:
        there = sorted({type(m).__name__ for m in model.modules()} & set(ACTIVATIONS))
        got = f"{source}, while the model has {', '.join(there) or 'no activation module'}"
        raise UserError(fault("surgery.swap_activation.from", "the model has no such module", got=got))
    return model


def replace_output_activation(model: nn.Module, to: str = "none") -> nn.Module:
    """The last activation module behind the last layer is one of class `to`, or with `none` does nothing.

    A model without any gets `to` behind its last linear or convolution layer. One that is called as a function
    (`F.softmax`) cannot be found.
    """
    key = "surgery.replace_output_activation"
    if to != "none" and to not in ACTIVATIONS:
        raise UserError(fault(f"{key}.to", "unknown activation", got=to, among=("none", *ACTIVATIONS),
                              expected="none, or a module of torch.nn"))  # fmt: skip
    order, layers = list(model.modules()), _layers(model)
    if not layers:
        raise UserError(fault(key, "the model has no linear or convolution layer to be behind"))
    new = nn.Identity() if to == "none" else _made(getattr(nn, to))
    behind = order[order.index(layers[-1]) + 1 :]
    found = [m for m in behind if type(m).__name__ in ACTIVATIONS]
    found = found or [m for m in order if type(m).__name__ in OUTPUTS]  # these stand behind layers wherever declared
    if found:
        return _replace(model, lambda m: new if m is found[-1] else None)[0]
    if to == "none":
        there = "the model has no activation module behind its last layer"
        raise UserError(fault(key, there, got=type(layers[-1]).__name__, do="remove it from forward() by hand"))
    return _replace(model, lambda m: nn.Sequential(m, new) if m is layers[-1] else None)[0]


def _norm_after(layer: nn.Module, kind: str) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.LayerNorm(layer.out_features) if kind == "layer" else nn.BatchNorm1d(layer.out_features)
    assert isinstance(layer, _ConvNd)
    if kind == "layer":
        return nn.GroupNorm(1, layer.out_channels)
    return _BATCH_NORMS[len(layer.kernel_size) - 1](layer.out_channels)


def insert_normalization(model: nn.Module, kind: str = "layer") -> nn.Module:
    """Every linear or convolution layer but the last is followed by a normalization, unless the model has some already.

    `layer`: LayerNorm, for convolutions GroupNorm over all channels. `batch`: BatchNorm, for inputs [B, features].
    """
    if kind not in ("layer", "batch"):
        raise UserError(fault("surgery.insert_normalization.kind", "unknown kind", got=kind, among=("layer", "batch")))
    if any(isinstance(m, _NormBase | nn.LayerNorm | nn.GroupNorm) for m in model.modules()):
        raise UserError(fault("surgery.insert_normalization", "the model has normalization already"))
    hidden = {id(layer) for layer in _layers(model)[:-1]}
    model, changed = _replace(model, lambda m: nn.Sequential(m, _norm_after(m, kind)) if id(m) in hidden else None)
    if not changed:
        raise UserError(fault("surgery.insert_normalization", "the model has no hidden linear or convolution layer"))
    return model


def set_dropout(model: nn.Module, p: float) -> nn.Module:
    """Every dropout drops the share `p`; a model without any gets one behind each hidden activation module."""
    if not 0 <= p < 1:
        raise UserError(fault("surgery.set_dropout.p", "is no share", got=p, expected="0 <= p < 1"))
    existing = [m for m in model.modules() if isinstance(m, _DropoutNd)]
    for module in existing:
        module.p = p
    if existing:
        return model
    order = list(model.modules())
    last = max((i for i, m in enumerate(order) if isinstance(m, nn.Linear | _ConvNd)), default=-1)
    hidden = {id(m) for m in order[: last + 1] if type(m).__name__ in ACTIVATIONS and type(m).__name__ not in OUTPUTS}
    model, changed = _replace(model, lambda m: nn.Sequential(m, nn.Dropout(p)) if id(m) in hidden else None)
    if not changed:
        expected = "a dropout module, or an activation module before the last layer"
        raise UserError(fault("surgery.set_dropout", "there is no place for it in the model", expected=expected))
    return model


SCHEMES: dict[str, Callable[[Any], Any]] = {
    "kaiming": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
}


def draw(module: nn.Module, scheme: str) -> None:
    """A linear, convolution or recurrent layer has weights by one of `SCHEMES` and zero biases; others keep theirs."""
    if isinstance(module, nn.Linear | _ConvNd | nn.RNNBase):
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("weight"):
                SCHEMES[scheme](parameter)
            else:
                nn.init.zeros_(parameter)


def reinitialize(model: nn.Module, scheme: str = "default", match: str = "*") -> nn.Module:
    """Modules whose name matches draw new weights: by torch's own rule (`default`), or a scheme and zero biases."""
    schemes = ("default", *SCHEMES)
    if scheme not in schemes:
        raise UserError(fault("surgery.reinitialize.scheme", "unknown scheme", got=scheme, among=schemes))
    names = {name: m for name, m in model.named_modules() if callable(getattr(m, "reset_parameters", None))}
    chosen = [names[name] for name in names if match == "*" or fnmatch.fnmatchcase(name, match)]
    if not chosen:
        raise UserError(fault("surgery.reinitialize.match", "matches no module with weights", got=match, among=names))
    for module in chosen:
        module.reset_parameters()
        if scheme != "default":
            draw(module, scheme)
    return model


def resize_output(model: nn.Module, out_features: int) -> nn.Module:
    """The last linear or convolution layer has `out_features` outputs and new weights."""
    layers = _layers(model)
    if not layers or out_features < 1:
        expected = "a model with a linear or convolution layer, and at least 1 output"
        raise UserError(fault("surgery.resize_output", "cannot be done", got=out_features, expected=expected))
    last = layers[-1]
    new: nn.Module
    if isinstance(last, nn.Linear):
        new = nn.Linear(last.in_features, out_features, bias=last.bias is not None)
    else:
        assert isinstance(last, _ConvNd)
        settings = {
            k: getattr(last, k) for k in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        }
        new = type(last)(last.in_channels, out_features, **settings, bias=last.bias is not None)  # type: ignore[call-arg]
    return _replace(model, lambda m: new if m is last else None)[0]


def _set_trained(model: nn.Module, match: str, trained: bool, key: str) -> nn.Module:
    named = dict(model.named_parameters())
    chosen = fnmatch.filter(named, match)
    if not chosen:
        raise UserError(fault(f"surgery.{key}.match", "matches no parameter", got=match, among=named))
    for name in chosen:
        named[name].requires_grad_(trained)
    return model


def freeze(model: nn.Module, match: str) -> nn.Module:
    """Parameters whose name matches the pattern (`body.*`) train no more."""
    return _set_trained(model, match, False, "freeze")


def unfreeze(model: nn.Module, match: str = "*") -> nn.Module:
    """Parameters whose name matches the pattern train."""
    return _set_trained(model, match, True, "unfreeze")


OPERATIONS: dict[str, Operation] = {
    f.__name__: f
    for f in (
        swap_activation, replace_output_activation, insert_normalization, set_dropout, reinitialize, resize_output,
        freeze, unfreeze,
    )
}  # fmt: skip


def _understood(i: int, step: Any) -> tuple[Operation, dict[str, Any]]:
    """The operation that a step names, and its arguments. Raises UserError when there is none or they do not fit."""
    where = f"surgery[{i}]"
    if not isinstance(step, Mapping) or len(step) != 1:
        raise UserError(
            fault(where, "is no operation", got=step, expected="one name with its arguments, {set_dropout: {p: 0.3}}")
        )
    ((name, given),) = step.items()
    if name not in OPERATIONS:
        raise UserError(fault(where, "unknown operation", got=str(name), among=OPERATIONS))
    operation = OPERATIONS[name]
    arguments = {("source" if key == "from" else str(key)): value for key, value in dict(given or {}).items()}
    parameters = dict(list(inspect.signature(operation).parameters.items())[1:])
    known = ["from" if p == "source" else p for p in parameters]
    faults = [
        fault(f"{where}.{name}.{k}", "unknown argument", got=k, among=known) for k in arguments if k not in parameters
    ]
    for p, parameter in parameters.items():
        if p not in arguments and parameter.default is parameter.empty:
            close = nearest(p, [k for k in arguments if k not in parameters])
            if close is None:
                faults.append(
                    fault(
                        f"{where}.{name}",
                        f"'{'from' if p == 'source' else p}' is missing",
                        got=", ".join(arguments) or "nothing",
                    )
                )
    if faults:
        raise UserError(*faults)
    return operation, arguments


def operate(model: nn.Module, steps: Sequence[Mapping[str, Any]]) -> nn.Module:
    """A copy of the model with all steps done in order; the model itself when there are none.

    Raises UserError for an unknown operation or argument, with the nearest right word, before anything is changed.
    """
    if not steps:
        return model
    understood: list[tuple[Operation, dict[str, Any]]] = []
    faults: list[str] = []
    for i, step in enumerate(steps):
        try:
            understood.append(_understood(i, step))
        except FivegateError as error:
            faults += error.faults
    if faults:
        raise UserError(*faults)
    patient = copy.deepcopy(model)
    for operation, arguments in understood:
        try:
            patient = operation(patient, **arguments)
        except (TypeError, ValueError) as error:
            if isinstance(error, FivegateError):
                raise
            raise UserError(fault(f"surgery.{operation.__name__}", f"fails ({error})", got=arguments)) from error
    return patient
