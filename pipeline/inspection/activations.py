"""Activations: what happens to the differences between rows on their way through the model, and to the gradient back.

Everything is measured in one forward and backward pass of a model whose weights are those before the first step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.inspection import graph
from pipeline.inspection.finding import Finding, Measured, contradiction
from pipeline.inspection.subject import Call, Subject
from pipeline.inspection.weights import unregistered_parameters
from pipeline.preprocess.modules import PreprocessedModel

SATURATING = (nn.Sigmoid, nn.Tanh)
LINEAR = (nn.Linear, nn.modules.conv._ConvNd)
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
TINY = 1e-30


def inspect_activations(subject: Subject) -> Iterator[Finding | Measured]:
    """Yield how many units are dead or saturated, how deep the model is, and what arrives at both of its ends."""
    yield from _inputs_of_first_layer(subject)
    yield from _units(subject)
    yield from _affine(subject)
    yield from _depth(subject)


def _layers(subject: Subject) -> list[Call]:
    """Return the calls of linear and convolutional layers, each layer once."""
    first = {call.name: call for call in subject.calls if isinstance(call.module, LINEAR)}
    return list(first.values())


def _inputs_of_first_layer(subject: Subject) -> Iterator[Finding | Measured]:
    """The scale of what the first layer gets, behind any preprocessing inside the model."""
    values = _first_inputs(subject)
    if values is None or len(values) < 2 or not bool(torch.isfinite(values).all()):
        return
    yield Measured("first_layer_rms", float(values.square().mean().sqrt()))
    spreads = values.flatten(1).std(dim=0)
    if len(values) >= 8 and bool((spreads <= TINY).all()):
        sentence = f"All features are the same in each of {len(values)} rows: nothing can be learned from them."
        yield contradiction("inputs_uninformative", "all_constant", sentence, float(len(values)), "rows")
    if values.ndim == 2 and values.shape[1] > 1:
        varied = spreads[spreads > TINY]
        if len(varied) > 1:
            median = float(varied.median())
            where = f"feature {int(spreads.argmax())}"
            yield Measured("feature_spread_ratio", float(varied.max()) / max(median, TINY), where)
            yield Measured("features_median_spread", median)
        yield Measured("share_constant", float((spreads <= TINY).double().mean()))
    elif values.ndim > 2:
        yield Measured("features_median_spread", float(spreads.mean()))


def _first_inputs(subject: Subject) -> Tensor | None:
    """Return what the first layer gets [B, ...]; without calls, the inputs of a model that begins with a layer."""
    if any(isinstance(module, nn.Embedding) for module in subject.model.modules()):
        return None
    first = next((c for c in subject.calls if isinstance(c.module, LINEAR) and c.inputs.is_floating_point()), None)
    if first is not None:
        return first.inputs.double() if _shows_the_rows(subject, first) else None
    leaf = next((module for module in subject.model.modules() if not any(module.children())), None)
    inputs = subject.inputs
    usable = isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.ndim >= 2
    return inputs.detach().double() if usable and isinstance(leaf, LINEAR) and not subject.calls else None


def _shows_the_rows(subject: Subject, first: Call) -> bool:
    """Return whether a call got the rows themselves, maybe scaled, and not what other weights made of them."""
    if unregistered_parameters(subject.model):
        return False
    before = subject.calls[: subject.calls.index(first)]
    if any(isinstance(call.module, nn.RNNBase | nn.MultiheadAttention) for call in before):
        return False
    if isinstance(subject.model, PreprocessedModel) or any(isinstance(call.module, NORMS) for call in before):
        return True
    rows, values = subject.inputs, first.inputs
    if not isinstance(rows, Tensor) or rows.numel() != values.numel():
        return False
    pair = torch.stack([rows.detach().flatten().double(), values.flatten().double()])
    return bool(torch.equal(pair[0], pair[1])) or float(torch.corrcoef(pair)[0, 1].abs()) > 0.99


def _units(subject: Subject) -> Iterator[Measured]:
    """Dead units give 0 for every row; saturated ones are within 2 % of the ends of their range for nearly all rows.

    Dead units are seen in the inputs of the next layer, where functional activations show as well.
    """
    dead, saturated = [], []
    for call in _layers(subject)[1:]:
        units = _by_unit(call.inputs)
        if units is not None:
            dead.append((float((units == 0).all(dim=1).double().mean()), call.name))
    for call in subject.calls:
        units = _by_unit(call.outputs) if isinstance(call.module, SATURATING) else None
        if units is not None:
            low = 0.0 if isinstance(call.module, nn.Sigmoid) else -1.0
            ends = ((units - low) < 0.02 * (1 - low)) | ((1 - units) < 0.02 * (1 - low))
            saturated.append((float(ends.double().mean()), call.name))
    if dead:
        yield Measured("dead_at_start", *max(dead))
    if saturated:
        yield Measured("saturated_at_start", *max(saturated))


def _by_unit(values: Tensor) -> Tensor | None:
    """Return values [units, ...] of activations [B, units], [B, T, units] or [B, channels, H, W]; None for few rows."""
    if values.ndim < 2 or len(values) < 8 or not values.is_floating_point():
        return None
    return values.double().movedim(2 if values.ndim == 3 else 1, 0).flatten(1)


def _affine(subject: Subject) -> Iterator[Measured]:
    """Two layers with weights and nothing nonlinear between them or behind them are one layer.

    The model is tried: for an affine one, the outputs of `a + b - c` are those of `a` plus `b` minus `c`.
    """
    layers = _layers(subject)
    if len(layers) < 2 or subject.outputs is None:
        return
    hidden = 0
    for before, after in itertools.pairwise(layers):
        if before.outputs.numel() == after.inputs.numel() and _is_affine_image(before.outputs, after.inputs):
            hidden += 1
    yield Measured("layers_without_activation", hidden / (len(layers) - 1), layers[0].name)
    inputs = subject.inputs
    if isinstance(inputs, Tensor) and inputs.is_floating_point() and len(inputs) >= 6:
        yield Measured("affine_model", float(_model_is_affine(subject, inputs)))


def _is_affine_image(before: Tensor, after: Tensor) -> bool:
    """Return whether the second tensor has the values of the first, in whatever shape."""
    return bool(torch.equal(before.flatten(), after.flatten()))


def _model_is_affine(subject: Subject, inputs: Tensor) -> bool:
    from pipeline.evaluation.evaluate import eval_mode

    large = 10 * inputs / max(float(inputs.abs().max()), TINY)  # so that a kink anywhere near is passed
    a, b, c = large[:2], large[2:4], large[4:6]
    with eval_mode(subject.model):
        try:
            values = [subject.model(rows).double() for rows in (a, b, c, a + b - c)]
        except (RuntimeError, IndexError, ValueError, AttributeError):
            return False
    of_model = graph.operations_before_weights(subject.outputs.grad_fn) if subject.outputs is not None else []
    if any(operation.name in graph.RANGES for operation in of_model):
        return False  # the last activation bends the outputs; the layers before it are counted one by one
    difference = float((values[0] + values[1] - values[2] - values[3]).abs().max())
    size = max(float((v - values[2]).abs().max()) for v in values)
    return size > 0 and difference < 1e-4 * size


def _depth(subject: Subject) -> Iterator[Measured]:
    """The gradient of the first layer beside the last, and how far the rows of a batch are still apart at the end.

    Neither is measured past weights that are all 0: they block gradients and rows at any depth.
    """
    layers = [c for c in _layers(subject) if f"{c.name}.weight" in subject.gradients]
    blocked = any(bool((_weight(call) == 0).all()) for call in layers)
    if len(layers) >= 2 and not blocked:
        sizes = [_relative_gradient(subject, call) for call in layers]
        if sizes[-1] > 0:
            yield Measured(f"first_over_last_gradient{_kind(subject)}", max(sizes[0], TINY) / sizes[-1], layers[0].name)
    if len(_layers(subject)) >= 2 and not blocked:
        last = _layers(subject)[-1].inputs.double().flatten(1)
        if len(last) >= 8 and bool(torch.isfinite(last).all()):
            spread = float((last - last.mean(dim=0)).square().mean().sqrt())
            yield Measured(
                f"rows_apart{_kind(subject)}",
                spread / max(float(last.square().mean().sqrt()), TINY),
                layers[-1].name if layers else "",
            )
    widths = [call.outputs.shape[1] for call in _layers(subject)[:-1] if call.outputs.ndim >= 2]
    if widths and subject.outputs is not None and subject.outputs.ndim == 2 and subject.kind != "autoencoder":
        yield Measured("narrowest_width", float(min(widths)))
        yield Measured("narrowest_over_outputs", min(widths) / subject.outputs.shape[1])
    yield Measured("layers_without_norm", float(_longest_run(subject)))


def _kind(subject: Subject) -> str:
    """Return the part of a quantity's name that tells nets with saturating activations from others."""
    return "_saturating" if any(isinstance(call.module, SATURATING) for call in subject.calls) else ""


def _relative_gradient(subject: Subject, call: Call) -> float:
    """Return the size of a layer's gradient over that of its weights."""
    gradient = subject.gradients[f"{call.name}.weight"].double()
    return float(gradient.norm()) / max(float(_weight(call).double().norm()), TINY)


def _weight(call: Call) -> Tensor:
    return dict(call.module.named_parameters(recurse=False))["weight"].detach()


def _longest_run(subject: Subject) -> int:
    """Return the most layers in a row without a normalization between them."""
    longest = run = 0
    for call in subject.calls:
        run = 0 if isinstance(call.module, NORMS) else run + isinstance(call.module, LINEAR)
        longest = max(longest, run)
    return longest
