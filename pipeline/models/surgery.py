"""Surgery: named changes of any `nn.Module`, written in a config as `surgery: [{set_dropout: {p: 0.3}}]`.

Every operation takes a model and returns one; `apply_surgery` runs a list of them on a copy. To add an operation, write
a function and list it in `OPERATIONS`: its keyword arguments are the keys of the config. Those that change what
`forward` computes are in `rewiring.py`, and `widening.py` has the one that changes every hidden layer.
"""

from __future__ import annotations

import copy
import fnmatch
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from pipeline.errors import FivegateError, UserError, fault, nearest
from pipeline.models.rewiring import REWIRING
from pipeline.models.widening import widen

Operation = Callable[..., nn.Module]

ACTIVATIONS = tuple(n for n in nn.modules.activation.__all__ if n != "MultiheadAttention")
OUTPUTS = ("Softmax", "LogSoftmax", "Softmax2d", "Softmin")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CLOSED = (nn.MultiheadAttention, nn.RNNBase)  # use the weights of their children without calling them


def _children(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield (parent, name, child) in order of registration; a shared child is yielded once per parent and name."""
    for parent in list(model.modules()):
        if not isinstance(parent, _CLOSED):
            for name, child in list(parent.named_children()):
                yield parent, name, child


def _layers(model: nn.Module) -> list[nn.Module]:
    """Linear and convolution layers in order of registration; the last one counts as the output layer."""
    return [m for m in model.modules() if isinstance(m, nn.Linear | _ConvNd)]


def _replace(model: nn.Module, change: Callable[[nn.Module], nn.Module | None]) -> tuple[nn.Module, int]:
    """Replace every module for which `change` returns a new one; return the model and the number of replaced modules.

    A shared module is replaced by one new module everywhere.
    """
    replacements: dict[int, nn.Module | None] = {}
    root = change(model)
    if root is not None:
        return root, 1
    for parent, name, child in list(_children(model)):
        if id(child) not in replacements:
            replacements[id(child)] = change(child)
        new = replacements[id(child)]
        if new is not None:
            setattr(parent, name, new)
    return model, sum(new is not None for new in replacements.values())


def _activation_class(name: str, key: str) -> type[nn.Module]:
    if name not in ACTIVATIONS:
        raise UserError(fault(key, "unknown activation", got=name, among=ACTIVATIONS, expected="a module of torch.nn"))
    return getattr(nn, name)


def _new_activation(kind: type[nn.Module]) -> nn.Module:
    """Return an activation of this class; a softmax is over the last axis."""
    return kind(dim=-1) if kind.__name__ in ("Softmax", "LogSoftmax", "Softmin") else kind()


def swap_activation(model: nn.Module, source: str, to: str) -> nn.Module:
    """Replace activation modules of class `from` by class `to`; functional calls (`F.relu`) cannot be replaced."""
    new = _activation_class(to, "surgery.swap_activation.to")
    old = _activation_class(source, "surgery.swap_activation.from")
    model, changed = _replace(model, lambda m: _new_activation(new) if type(m) is old else None)
    if not changed:
        present = sorted({type(m).__name__ for m in model.modules()} & set(ACTIVATIONS))
        got = f"{source}, while the model has {', '.join(present) or 'no activation module'}"
        raise UserError(fault("surgery.swap_activation.from", "the model has no such module", got=got))
    return model


def replace_output_activation(model: nn.Module, to: str = "none") -> nn.Module:
    """Replace the activation module after the last layer by one of class `to`, or remove it with `none`.

    If the model has none, `to` is inserted after its last linear or convolution layer. Functional calls (`F.softmax`)
    cannot be replaced.
    """
    key = "surgery.replace_output_activation"
    if to != "none" and to not in ACTIVATIONS:
        raise UserError(fault(f"{key}.to", "unknown activation", got=to, among=("none", *ACTIVATIONS),
                              expected="none, or a module of torch.nn"))  # fmt: skip
    order, layers = list(model.modules()), _layers(model)
    if not layers:
        raise UserError(fault(key, "the model has no linear or convolution layer"))
    new = nn.Identity() if to == "none" else _new_activation(getattr(nn, to))
    after_last = order[order.index(layers[-1]) + 1 :]
    activations = [m for m in after_last if type(m).__name__ in ACTIVATIONS]
    # Modules may be registered in another order than forward() calls them; a softmax is at the output anyway.
    activations = activations or [m for m in order if type(m).__name__ in OUTPUTS]
    if activations:
        return _replace(model, lambda m: new if m is activations[-1] else None)[0]
    if to == "none":
        what = "the model has no activation module after its last layer"
        raise UserError(fault(key, what, got=type(layers[-1]).__name__, do="remove it from forward() by hand"))
    return _replace(model, lambda m: nn.Sequential(m, new) if m is layers[-1] else None)[0]


def _norm_after(layer: nn.Module, kind: str) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return nn.LayerNorm(layer.out_features) if kind == "layer" else nn.BatchNorm1d(layer.out_features)
    assert isinstance(layer, _ConvNd)
    if kind == "layer":
        return nn.GroupNorm(1, layer.out_channels)
    return _BATCH_NORMS[len(layer.kernel_size) - 1](layer.out_channels)


def insert_normalization(model: nn.Module, kind: str = "layer") -> nn.Module:
    """Insert a normalization after every linear or convolution layer but the last.

    `layer`: LayerNorm, for convolutions GroupNorm over all channels. `batch`: BatchNorm, for inputs [B, features].
    """
    if kind not in ("layer", "batch"):
        raise UserError(fault("surgery.insert_normalization.kind", "unknown kind", got=kind, among=("layer", "batch")))
    if any(isinstance(m, _NormBase | nn.LayerNorm | nn.GroupNorm) for m in model.modules()):
        raise UserError(fault("surgery.insert_normalization", "the model already has normalization"))
    hidden = {id(layer) for layer in _layers(model)[:-1]}
    model, changed = _replace(model, lambda m: nn.Sequential(m, _norm_after(m, kind)) if id(m) in hidden else None)
    if not changed:
        raise UserError(fault("surgery.insert_normalization", "the model has no hidden linear or convolution layer"))
    return model


def set_dropout(model: nn.Module, p: float) -> nn.Module:
    """Set every dropout to probability `p`; a model without dropout gets one after each hidden activation module."""
    if not 0 <= p < 1:
        raise UserError(fault("surgery.set_dropout.p", "is not a probability", got=p, expected="0 <= p < 1"))
    existing = [m for m in model.modules() if isinstance(m, _DropoutNd)]
    for module in existing:
        module.p = p
    if existing:
        return model
    order = list(model.modules())
    last = max((i for i, m in enumerate(order) if isinstance(m, nn.Linear | _ConvNd)), default=-1)
    # Not after the last layer: dropout of outputs would distort the loss.
    hidden = {id(m) for m in order[: last + 1] if type(m).__name__ in ACTIVATIONS and type(m).__name__ not in OUTPUTS}
    model, changed = _replace(model, lambda m: nn.Sequential(m, nn.Dropout(p)) if id(m) in hidden else None)
    if not changed:
        expected = "a dropout module, or an activation module before the last layer"
        raise UserError(fault("surgery.set_dropout", "the model has no place for a dropout", expected=expected))
    return model


SCHEMES: dict[str, Callable[[Tensor], Tensor]] = {
    "kaiming": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
}


def initialize_layer(module: nn.Module, scheme: str) -> None:
    """Initialize a linear, convolution or recurrent layer: weights by one of `SCHEMES`, zero biases.

    Other modules are left as they are.
    """
    if isinstance(module, nn.Linear | _ConvNd | nn.RNNBase):
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("weight"):
                SCHEMES[scheme](parameter)
            else:
                nn.init.zeros_(parameter)


def reinitialize(model: nn.Module, scheme: str = "default", match: str = "*") -> nn.Module:
    """Give modules whose name matches new weights: by torch's own rule (`default`), or by a scheme and zero biases."""
    schemes = ("default", *SCHEMES)
    if scheme not in schemes:
        raise UserError(fault("surgery.reinitialize.scheme", "unknown scheme", got=scheme, among=schemes))
    modules = {name: m for name, m in model.named_modules() if callable(getattr(m, "reset_parameters", None))}
    matching = [modules[name] for name in modules if match == "*" or fnmatch.fnmatchcase(name, match)]
    if not matching:
        raise UserError(fault("surgery.reinitialize.match", "matches no module with weights", got=match, among=modules))
    for module in matching:
        module.reset_parameters()
        if scheme != "default":
            initialize_layer(module, scheme)
    return model


def resize_output(model: nn.Module, out_features: int) -> nn.Module:
    """Replace the last linear or convolution layer by one with `out_features` outputs and new weights."""
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


def _set_requires_grad(model: nn.Module, match: str, requires_grad: bool, key: str) -> nn.Module:
    parameters = dict(model.named_parameters())
    names = fnmatch.filter(parameters, match)
    if not names:
        raise UserError(fault(f"surgery.{key}.match", "matches no parameter", got=match, among=parameters))
    for name in names:
        parameters[name].requires_grad_(requires_grad)
    return model


def freeze(model: nn.Module, match: str) -> nn.Module:
    """Stop training the parameters whose name matches the pattern (`body.*`)."""
    return _set_requires_grad(model, match, False, "freeze")


def unfreeze(model: nn.Module, match: str = "*") -> nn.Module:
    """Train the parameters whose name matches the pattern."""
    return _set_requires_grad(model, match, True, "unfreeze")


OPERATIONS: dict[str, Operation] = {
    f.__name__: f
    for f in (
        swap_activation, replace_output_activation, insert_normalization, set_dropout, reinitialize, resize_output,
        freeze, unfreeze, widen, *REWIRING,
    )
}  # fmt: skip


def _parse_step(i: int, step: object) -> tuple[Operation, dict[str, Any]]:
    """Return the operation of a step and its arguments. Raises UserError if they are unknown or do not fit."""
    where = f"surgery[{i}]"
    if not isinstance(step, Mapping) or len(step) != 1:
        expected = "one name with its arguments, {set_dropout: {p: 0.3}}"
        raise UserError(fault(where, "is not an operation", got=step, expected=expected))
    ((name, values),) = step.items()
    if name not in OPERATIONS:
        raise UserError(fault(where, "unknown operation", got=str(name), among=OPERATIONS))
    operation = OPERATIONS[name]
    # `from` is a keyword of Python: in the functions the argument is called `source`.
    arguments = {("source" if key == "from" else str(key)): value for key, value in dict(values or {}).items()}
    parameters = dict(list(inspect.signature(operation).parameters.items())[1:])
    keys = {parameter: "from" if parameter == "source" else parameter for parameter in parameters}
    unknown = [key for key in arguments if key not in parameters]
    faults = [fault(f"{where}.{name}.{key}", "unknown argument", got=key, among=keys.values()) for key in unknown]
    for parameter, key in keys.items():
        required = parameters[parameter].default is inspect.Parameter.empty
        # An unknown argument that is close to the missing one is its misspelling: one message is enough.
        if required and parameter not in arguments and nearest(parameter, unknown) is None:
            got = ", ".join(arguments) or "nothing"
            faults.append(fault(f"{where}.{name}", f"'{key}' is missing", got=got))
    if faults:
        raise UserError(*faults)
    return operation, arguments


def apply_surgery(model: nn.Module, steps: object) -> nn.Module:
    """Apply all steps in order to a copy of the model; return the model itself if there are none.

    `steps` is the list of the config. Raises UserError naming every unknown operation and argument before anything is
    changed.
    """
    if not steps:
        return model
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        raise UserError(fault("surgery", "is not a list of operations", got=steps))
    operations: list[tuple[Operation, dict[str, Any]]] = []
    faults: list[str] = []
    for i, step in enumerate(steps):
        try:
            operations.append(_parse_step(i, step))
        except FivegateError as error:
            faults += error.faults
    if faults:
        raise UserError(*faults)
    changed = copy.deepcopy(model)  # the caller's model stays as it is if a step fails
    for operation, arguments in operations:
        try:
            changed = operation(changed, **arguments)
        except (TypeError, ValueError) as error:
            if isinstance(error, FivegateError):
                raise
            raise UserError(fault(f"surgery.{operation.__name__}", f"fails ({error})", got=arguments)) from error
    return changed
