"""Converts the user's features and targets to tensors, with a message for each that cannot be converted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pipeline.data.reading.items import describe
from pipeline.data.source_data import Array
from pipeline.data.tree import Tree
from pipeline.error_attribution import message_of, place_of, reraise_stop, text_of
from pipeline.errors import fault

MOST_CLASSES = 1_000_000  # memory and time are in proportion to the highest class id
_KINDS = {  # what a NumPy dtype kind that is not numeric holds
    "O": "objects",
    "U": "text",
    "S": "bytes",
    "M": "dates",
    "m": "durations",
    "c": "complex numbers",
    "V": "records",
}


def read_features(value: object, where: str, faults: list[str]) -> Tree | None:
    """The value as a numeric array with rows, or a dict or tuple of such; None with the reasons added to `faults`."""
    if not isinstance(value, Mapping | tuple):
        return _array(value, where, faults)
    if not len(value):
        faults.append(fault(where, "is empty", got=describe(value), expected="arrays"))
        return None
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    parts = {str(name): read_features(part, f"{where}.{name}", faults) for name, part in pairs}
    if any(part is None for part in parts.values()):
        return None
    return parts if isinstance(value, Mapping) else tuple(parts.values())


def read_targets(value: object, where: str, faults: list[str]) -> Array | None:
    """The value as a numeric array with rows; None with the reason added to `faults`."""
    if isinstance(value, Mapping | tuple):
        faults.append(fault(where, "nested targets are not supported", got=type(value).__name__, expected="one array"))
        return None
    return _array(value, where, faults)


def _array(value: Any, where: str, faults: list[str]) -> Array | None:
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = value.float() if value.dtype == torch.bfloat16 else value  # NumPy has no bfloat16
        array = np.asarray(value)
    except BaseException as error:  # `__array__` may be the user's own
        reraise_stop(error)
        place, reason = place_of(error), (message_of(error).splitlines() or ["no reason"])[0]
        why = f"{text_of(error)} at {place}" if place else reason
        faults.append(fault(where, f"is not an array ({why})", got=type(value).__name__))
        return None
    if array.dtype.kind not in "biuf":
        what = f"contains {_KINDS.get(array.dtype.kind, 'no numbers')}"
        faults.append(fault(where, what, got=f"dtype {array.dtype}", expected="numbers"))
        return None
    if array.ndim == 0:
        faults.append(fault(where, "has no rows", got="a single number", expected="an array of shape [N, ...]"))
        return None
    return array


def to_float32(array: ArrayLike) -> Tensor:
    """A float32 copy, so that a later change of the user's array does not change a split."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def to_leaf(array: Array) -> Tensor:
    """A copy of one part of nested features: floats as float32, integers as int64, booleans unchanged."""
    if array.dtype.kind == "f":
        return to_float32(array)
    return torch.from_numpy(np.array(array, dtype=np.bool_ if array.dtype.kind == "b" else np.int64, order="C"))


def convert_targets(array: Array, where: str, kind: str, faults: list[str]) -> Tensor | None:
    """Targets as this kind of task needs them: values, 0 or 1 per label, token ids, or class ids; None with a fault."""
    if kind == "regression":
        return to_float32(array)
    if kind == "multilabel":
        return _multilabel_targets(array, where, faults)
    if kind == "language_model":
        return token_ids(array, where, faults)
    return to_leaf(array) if kind == "custom" else _class_ids(array, where, kind, faults)


def _multilabel_targets(array: Array, where: str, faults: list[str]) -> Tensor | None:
    """0 or 1 per label, float32 [N, L] as the loss needs it; None with the reason added to `faults`."""
    if array.ndim != 2:
        expected = "0 or 1 per label, shape [N, labels]"
        faults.append(fault(where, "is not multilabel targets", got=f"shape {array.shape}", expected=expected))
        return None
    invalid = np.argwhere((array != 0) & (array != 1))
    if len(invalid):
        row, column = invalid[0].tolist()
        what = f"a label of a multilabel task is neither 0 nor 1 (row {row}, label {column})"
        faults.append(fault(where, what, got=array[row, column], expected="0 or 1"))
        return None
    return to_float32(array)


def token_ids(array: Array, where: str, faults: list[str]) -> Tensor | None:
    """Token ids int64 [N, T]; None with the reason added to `faults`."""
    if array.ndim != 2:
        got, expected = f"shape {array.shape}", "one id per token, shape [N, T]"
        faults.append(fault(where, "is not rows of token ids", got=got, expected=expected))
        return None
    invalid = np.argwhere(~(np.isfinite(array) & (array == np.round(array)) & (array >= 0)))
    if len(invalid):
        row, position = invalid[0].tolist()
        what = f"a token of a language model is not an id (row {row}, position {position})"
        faults.append(fault(where, what, got=array[row, position], expected="whole numbers from 0"))
        return None
    return torch.from_numpy(np.array(array, dtype=np.int64, order="C"))


def _class_ids(array: Array, where: str, kind: str, faults: list[str]) -> Tensor | None:
    """Class ids int64 [N]; None with the reason added to `faults`."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        got, expected = f"shape {array.shape}", "one class id per row, shape [N]"
        faults.append(fault(where, "is not class ids", got=got, expected=expected))
        return None
    whole = np.isfinite(array) & (array == np.round(array))
    if array.dtype.kind == "f" and not whole.all():
        what, row = f"a label of a {kind} task is not a class id", int(np.flatnonzero(~whole)[0])
        faults.append(fault(f"{where}[{row}]", what, got=array[row], expected="whole numbers from 0"))
        return None
    labels = array.astype(np.int64)
    if labels.size and labels.max() >= MOST_CLASSES:
        row, distinct = int(labels.argmax()), len(np.unique(labels))
        what = f"is too high for a class id: there are {distinct} distinct ones"
        do = "number them from 0 where the data are made, such as with scikit-learn's LabelEncoder"
        faults.append(fault(f"{where}[{row}]", what, got=labels[row], expected="0 .. classes - 1", do=do))
        return None
    highest = 1 if kind == "binary" else None
    if labels.min() < 0 or (highest is not None and labels.max() > highest):
        row = int(labels.argmin() if labels.min() < 0 else labels.argmax())
        expected = "0 and 1" if kind == "binary" else "0 .. classes - 1"
        what = f"a label of a {kind} task is out of range"
        faults.append(fault(f"{where}[{row}]", what, got=labels[row], expected=expected))
        return None
    return torch.from_numpy(np.array(labels, order="C"))
