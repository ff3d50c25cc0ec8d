"""Predictions: what outputs predict by default, in one shape with the targets before any metric compares them.

Arrays of shape [N] and [N, 1] broadcast to [N, N] without an error, and a metric of them is a wrong figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.error_attribution import attributed_to
from pipeline.errors import UserError, fault

Array = NDArray[Any]
Shape = Sequence[int]
Takes = Literal["logits", "log_probabilities", "probabilities"]  # what a loss takes outputs for


def same_values(one: Shape, other: Shape) -> bool:
    """Return whether both shapes hold the same values in the same order: they differ in axes of 1, or one is flat."""
    if math.prod(one) != math.prod(other) or list(one[:1]) != list(other[:1]):
        return False
    without_ones = [[size for size in shape[1:] if size != 1] for shape in (one, other)]
    return without_ones[0] == without_ones[1] or min(map(len, without_ones)) <= 1


def align_predictions(predictions: Array, targets: Shape, *, users_metric: bool = False) -> Array:
    """Return predictions in the shape of the targets.

    Predictions of another number of values per row, such as quantiles or probabilities, stay as they are for a metric
    of the user's own, which alone knows how to compare them. Raises UserError for them with our metrics, and for
    another number of rows with any metric.
    """
    if predictions.shape == tuple(targets):
        return predictions
    if same_values(predictions.shape, targets):
        return predictions.reshape(tuple(targets))
    same_rows = predictions.shape[:1] == tuple(targets[:1])
    if users_metric and same_rows and predictions.size != math.prod(targets):
        return predictions
    what = "predictions and targets differ in shape" if same_rows else "does not predict one row for each row"
    got = f"predictions of shape {_shape(predictions.shape)} for targets of shape {_shape(targets)}"
    do = "return one prediction per target from task.predict, or change the model's last layer"
    raise UserError(fault("task.predict", what, got=got, expected=f"shape {_shape(targets)}", do=do))


def _shape(sizes: Shape) -> str:
    return f"[{', '.join(map(str, sizes))}]"


def to_array(predictions: object) -> Array:
    """Return a predictor's result as an array; it may be a tensor on any device, or an array already."""
    if not isinstance(predictions, Tensor):
        return np.asarray(predictions)
    values = predictions.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()  # NumPy has no bfloat16


def as_column(values: Any) -> Any:
    """Return an array or tensor [N] as [N, 1]; other shapes unchanged."""
    return values.reshape(-1, 1) if values.ndim == 1 else values


def identity(outputs: Tensor) -> Tensor:
    return outputs


def predicted_array(predict: Callable[[Tensor], Tensor], outputs: Tensor) -> Array:
    """Return predictions as an array of numbers. Raises UserError for a predictor that fails or returns others."""
    with attributed_to("task.predict"):
        array = to_array(predict(outputs))
    if array.dtype.kind not in "biuf":
        got, expected = f"dtype {array.dtype}", "class ids or values, as a tensor or an array"
        raise UserError(fault("task.predict", "does not return numbers", got=got, expected=expected))
    return array


def class_axis(outputs: Shape, targets: Shape) -> int | None:
    """Return the axis of outputs [N, T, C] or [N, C, H, W] that holds the classes of targets [N, T] or [N, H, W].

    None if no axis does, or if rows have one target each.
    """
    if len(outputs) != len(targets) + 1 or len(targets) < 2:
        return None
    for axis in (len(outputs) - 1, 1):
        if [*outputs[:axis], *outputs[axis + 1 :]] == list(targets):
            return axis
    return None


def default_predictor(kind: str, takes: Takes, classes: bool) -> Callable[[Tensor], Tensor]:
    """Return `task.predict: auto`: argmax over classes, a threshold for binary outputs, the outputs for values.

    A custom task predicts classes where one of its metrics needs them.
    """
    if kind in ("regression", "autoencoder"):
        return identity
    if kind in ("classification", "language_model"):
        return lambda outputs: outputs.argmax(dim=1 if kind == "classification" else -1)
    if kind == "custom" and not classes:
        return identity
    threshold = 0.5 if takes == "probabilities" else 0.0
    if kind == "multilabel":
        return lambda outputs: (outputs > threshold).long()

    def decide(outputs: Tensor) -> Tensor:
        if outputs.ndim == 2 and outputs.shape[1] > 1:
            return outputs.argmax(dim=1)
        if kind == "custom" and not outputs.is_floating_point():
            return outputs  # the step returns class ids
        return (outputs.reshape(len(outputs)) > threshold).long()

    return decide
