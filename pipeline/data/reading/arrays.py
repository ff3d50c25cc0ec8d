"""What anybody hands in as features or targets, as tensors of our own: a message for each that cannot be one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.reading.items import describe
from pipeline.data.tree import Tree
from pipeline.errors import fault

_WHAT = {
    "O": "objects",
    "U": "text",
    "S": "bytes",
    "M": "dates",
    "m": "durations",
    "c": "complex numbers",
    "V": "records",
}


def nested(value: Any, where: str, faults: list[str]) -> Tree | None:
    """The value as a numeric array with rows, or a dict or tuple of such, or None with the reasons in `faults`."""
    if not isinstance(value, Mapping | tuple):
        return _array(value, where, faults)
    if not len(value):
        faults.append(fault(where, "holds nothing", got=describe(value), expected="arrays"))
        return None
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    parts = {str(name): nested(part, f"{where}.{name}", faults) for name, part in pairs}
    if any(part is None for part in parts.values()):
        return None
    return parts if isinstance(value, Mapping) else tuple(parts.values())


def targets_of(value: Any, where: str, faults: list[str]) -> NDArray[Any] | None:
    if isinstance(value, Mapping | tuple):
        what = "nested targets are not built in this version"
        faults.append(fault(where, what, got=type(value).__name__, expected="one array"))
        return None
    return _array(value, where, faults)


def _array(value: Any, where: str, faults: list[str]) -> NDArray[Any] | None:
    """The value as a numeric array with rows, or None with the reason added to `faults`."""
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = value.float() if value.dtype == torch.bfloat16 else value
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        faults.append(fault(where, f"is no array ({str(error).splitlines()[0]})", got=type(value).__name__))
        return None
    if array.dtype.kind not in "biuf":
        faults.append(
            fault(
                where,
                f"holds {_WHAT.get(array.dtype.kind, 'no numbers')}",
                got=f"dtype {array.dtype}",
                expected="numbers",
            )
        )
        return None
    if array.ndim == 0:
        faults.append(fault(where, "has no rows", got="a single number", expected="an array of shape [N, ...]"))
        return None
    return array


def values(array: NDArray[Any]) -> Tensor:
    """A float32 copy of our own, so that nobody changes a split from outside."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def nested_part(array: NDArray[Any]) -> Tensor:
    """A copy of one part of nested features: float32 of floats, int64 of integers, truth values as they are."""
    if array.dtype.kind == "f":
        return values(array)
    return torch.from_numpy(np.array(array, dtype=np.bool_ if array.dtype.kind == "b" else np.int64, order="C"))


def aims(array: NDArray[Any], where: str, kind: str, faults: list[str]) -> Tensor | None:
    """Targets as the kind of task has them: values, labels, tokens, whatever a step of one's own takes, class ids."""
    if kind == "regression":
        return values(array)
    if kind == "multilabel":
        return _several(array, where, faults)
    if kind == "language_model":
        return token_ids(array, where, faults)
    return nested_part(array) if kind == "custom" else _labels(array, where, kind, faults)


def _several(array: NDArray[Any], where: str, faults: list[str]) -> Tensor | None:
    """0 or 1 per label, float32 [N, L] as the loss takes them, or None with the reason added to `faults`."""
    if array.ndim != 2:
        expected = "0 or 1 per label, shape [N, labels]"
        faults.append(fault(where, "holds no labels of several", got=f"shape {array.shape}", expected=expected))
        return None
    odd = np.argwhere((array != 0) & (array != 1))
    if len(odd):
        row, column = odd[0].tolist()
        what = f"a label of a multilabel task is neither 0 nor 1 (row {row}, label {column})"
        faults.append(fault(where, what, got=array[row, column], expected="0 or 1"))
        return None
    return values(array)


def token_ids(array: NDArray[Any], where: str, faults: list[str]) -> Tensor | None:
    """Token ids int64 [N, T], or None with the reason added to `faults`."""
    if array.ndim != 2:
        got, expected = f"shape {array.shape}", "one id per token, shape [N, T]"
        faults.append(fault(where, "holds no rows of tokens", got=got, expected=expected))
        return None
    odd = np.argwhere(~(np.isfinite(array) & (array == np.round(array)) & (array >= 0)))
    if len(odd):
        row, place = odd[0].tolist()
        what = f"a token of a language model is no id (row {row}, place {place})"
        faults.append(fault(where, what, got=array[row, place], expected="whole numbers from 0"))
        return None
    return torch.from_numpy(np.array(array, dtype=np.int64, order="C"))


def _labels(array: NDArray[Any], where: str, kind: str, faults: list[str]) -> Tensor | None:
    """Class ids int64 [N], or None with the reason added to `faults`."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        faults.append(
            fault(where, "holds no class ids", got=f"shape {array.shape}", expected="one class id per row, shape [N]")
        )
        return None
    if array.dtype.kind == "f" and not (np.isfinite(array) & (array == np.round(array))).all():
        odd = array[~(array == np.round(array)) | ~np.isfinite(array)][0]
        faults.append(
            fault(where, f"a label of a {kind} task is no class id", got=odd, expected="whole numbers from 0")
        )
        return None
    labels = array.astype(np.int64)
    top = 1 if kind == "binary" else None
    if labels.min() < 0 or (top is not None and labels.max() > top):
        odd = labels.min() if labels.min() < 0 else labels.max()
        expected = "0 and 1" if kind == "binary" else "0 .. classes - 1"
        faults.append(fault(where, f"a label of a {kind} task is out of range", got=odd, expected=expected))
        return None
    return torch.from_numpy(np.array(labels, order="C"))
