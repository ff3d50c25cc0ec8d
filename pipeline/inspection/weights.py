"""Weights: are they drawn so that the model can learn, registered, trainable, and known to the optimizer?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.inspection.finding import Finding, Measured, contradiction
from pipeline.inspection.subject import Subject

LAYERS = (nn.Linear, nn.modules.conv._ConvNd, nn.RNNBase, nn.Bilinear)
MOST, MOST_COLUMNS = 2000, 32  # units of a layer that are compared, and weights of each at first
EXAMPLES = 3  # of names that a sentence lists


def inspect_weights(subject: Subject) -> Iterator[Finding | Measured]:
    """Yield what is wrong with the initial values of weights, module by module.

    Weights that came from elsewhere, such as pretrained ones, are judged alike: their values are rarely constant.
    """
    gains: list[tuple[float, str]] = []
    alike: list[tuple[float, str]] = []
    for name, weight in _matrices(subject.model):
        if not bool(torch.isfinite(weight).all()):
            yield contradiction(
                "weight_init_bad", "weights_finite", f"Weights of {name} are not finite before training.", where=name
            )
            return
        gains.append((_gain(weight), name))
        alike.append((_share_alike(weight), name))
    if not gains:
        return
    dead = [name for gain, name in gains if gain == 0]
    last = gains[-1][1]
    hidden_zero = [name for name in dead if name != last]  # a last layer of zeros still learns
    if hidden_zero and not any(_has_gradient(subject, name) for name in dead):
        yield contradiction(
            "weight_init_bad",
            "weights_zero",
            f"All weights of {_list(hidden_zero)} are 0, so that no gradient reaches the layers before it.",
            float(len(hidden_zero)),
            "layers",
            hidden_zero[0],
        )
    share, where = max(alike)
    if share == 1.0 and where not in dead:
        sentence = f"The units of {where} start with the same weights, so that they get the same updates."
        yield contradiction("weight_init_bad", "units_alike", sentence, share, "share of units", where)
    else:
        yield Measured("units_alike", share if where not in dead else 0.0, where)
    positive = [(gain, name) for gain, name in gains if gain > 0]
    if positive:
        yield Measured("gain_high", *max(positive))
        yield Measured("gain_low", *min(positive))
    elif len(gains) > 1:  # a linear model may start at zero
        yield Measured("gain_low", 0.0, gains[0][1])
    yield from _biases(subject.model)


def _matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights [units, inputs] of layers with more than one unit, in order."""
    for name, module in model.named_modules():
        if not isinstance(module, LAYERS):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            if key.startswith("weight") and parameter.ndim >= 2 and not nn.parameter.is_lazy(parameter):
                label = name if key == "weight" else f"{name}.{key}"
                yield label.removeprefix("model."), parameter.detach().flatten(1)


def _has_gradient(subject: Subject, layer: str) -> bool:
    """Return whether weights of 0 get a gradient: then they move, and the layers before them learn from then on."""
    names = (layer, f"{layer}.weight", f"model.{layer}", f"model.{layer}.weight")
    return any(bool(subject.gradients[name].any()) for name in names if name in subject.gradients)


def _gain(weight: Tensor) -> float:
    """Return the root mean square of weights times the square root of their inputs: about 0.6 to 1.4 as usual."""
    return float(weight.double().square().mean().sqrt()) * math.sqrt(weight.shape[1])


def _share_alike(weight: Tensor) -> float:
    """Return the share of units whose weights are those of another unit."""
    if weight.shape[0] < 2:
        return 0.0
    rows = min(weight.shape[0], MOST)
    different = len(torch.unique(weight[:rows, :MOST_COLUMNS], dim=0))
    if different < rows:  # units that differ in other columns only
        different = len(torch.unique(weight[:rows], dim=0))
    return 0.0 if different == rows else 1.0 if different == 1 else (rows - different) / rows


def _biases(model: nn.Module) -> Iterator[Measured]:
    """The largest bias of a hidden layer: a bias beyond the inputs' reach makes every unit dead or saturated."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    hidden = [(float(m.bias.detach().abs().mean()), n) for n, m in layers[:-1] if m.bias is not None]
    if hidden:
        value, where = max(hidden)
        yield Measured("hidden_bias", value, where.removeprefix("model."))


def inspect_membership(model: nn.Module, optimizer: Optimizer | None) -> Iterator[Finding | Measured]:
    """Yield parameters that nothing can train: unknown to the model, to the optimizer, or frozen."""
    hidden = unregistered_parameters(model)
    if hidden:
        sentence = (
            f"{_list(list(hidden))}: parameters in a plain list, tuple or dict are unknown to the model, so that no "
            "optimizer trains them and no checkpoint has them. Use nn.ModuleList, nn.ModuleDict or nn.ParameterList."
        )
        share = _count(list(hidden.values())) / max(1, _count(list(hidden.values())) + _count(list(model.parameters())))
        yield contradiction(
            "parameters_not_trained", "unregistered", sentence, share, "share of parameters", next(iter(hidden))
        )
    parameters = dict(model.named_parameters())
    frozen = [name for name, p in parameters.items() if not p.requires_grad]
    total = max(1, _count(list(parameters.values())))
    share = _count([parameters[name] for name in frozen]) / total
    yield Measured("share_frozen", share, _list(frozen) if frozen else "")
    names = [name for name in parameters if "weight" in name.rpartition(".")[2]]
    if names and frozen:
        yield Measured("head_frozen", float(names[-1] in frozen), names[-1])
    if optimizer is None:
        return
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in parameters.items() if p.requires_grad and id(p) not in known]
    if missing:
        share = _count([parameters[name] for name in missing]) / total
        yield Measured("share_missing", share, _list(missing))
    strangers = [
        p for group in optimizer.param_groups for p in group["params"] if id(p) not in set(map(id, parameters.values()))
    ]
    if parameters and known and len(strangers) == len(known) and not hidden:
        sentence = "The optimizer has none of the model's parameters: it was made for another model, or before a copy."
        yield contradiction(
            "parameters_not_trained", "optimizer_of_another_model", sentence, 1.0, "share of parameters"
        )


def unregistered_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters that are not registered: modules keep them in plain lists, tuples or dicts."""
    known = {id(parameter) for parameter in model.parameters()}
    hidden = dict[str, nn.Parameter]()
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or not isinstance(value, list | tuple | dict):
                continue
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                where = f"{path}.{attribute}[{key!r}]".removeprefix(".")
                if isinstance(item, nn.Parameter):
                    hidden[where] = item
                elif isinstance(item, nn.Module):
                    hidden |= {f"{where}.{name}": parameter for name, parameter in item.named_parameters()}
    return {name: p for name, p in hidden.items() if p.requires_grad and id(p) not in known}


def _count(parameters: list[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters if not nn.parameter.is_lazy(p))


def _list(names: list[str]) -> str:
    more = f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else ""
    return f"{', '.join(names[:EXAMPLES])}{more}"
