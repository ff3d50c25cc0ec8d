"""Loading: from whatever the user's `data` returns to checked splits, the test rows sealed at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import Data
from pipeline.data.sealed import SealedTest
from pipeline.data.splits import Split
from pipeline.errors import UserError, fault
from pipeline.evaluation.task import require_built

SPLITS = ("train", "val", "test")
NAMED = ("class_names", "feature_names", "source", "licence")
LATER = ("groups", "times", "slices", "production", "previous_tasks")
_WHAT = {
    "O": "objects",
    "U": "text",
    "S": "bytes",
    "M": "dates",
    "m": "durations",
    "c": "complex numbers",
    "V": "records",
}
PAIR = "a pair (X, y) of numeric arrays, or a map-style Dataset of such pairs"


def load(config: Mapping[str, Any], trust: Sequence[str] = ()) -> Data:
    """The data of a config, checked, with the test rows sealed.

    X becomes float32; class labels int64, values float32. Map-style Datasets are stacked into memory once.
    NaN and infinities are kept: finding them is the diagnosis' work. Raises UserError with all faults at once.
    """
    from pipeline.config.build import build

    kind = config["task"]["kind"]
    require_built(kind)
    return seal(build(config["data"], trust=trust, where="data"), kind)


def seal(source: Any, kind: str) -> Data:
    """Checked data of a mapping or object with train, val and test. Raises UserError with all faults at once."""
    parts = dict(source) if isinstance(source, Mapping) else vars(source) if hasattr(source, "__dict__") else {}
    given = {name: parts.get(name, getattr(source, name, None)) for name in (*SPLITS, *NAMED, *LATER)}
    there = ", ".join(map(str, parts)) or type(source).__name__
    faults = [
        fault("data", f"split '{name}' is missing", got=there, expected="train, val and test")
        for name in SPLITS
        if given[name] is None
    ]
    pairs = {name: _pair(given[name], f"data.{name}", kind, faults) for name in SPLITS if given[name] is not None}
    names = {name: _names(given[name], f"data.{name}", faults) for name in ("class_names", "feature_names")}
    whole = {name: pair for name, pair in pairs.items() if pair is not None}
    faults += _disagreements(whole, names)
    if faults:
        raise UserError(*faults)
    return Data(
        train=Split("train", *whole["train"]),
        val=Split("val", *whole["val"]),
        test=SealedTest(*whole["test"]),
        **names,
        source=_text(given["source"]),
        licence=_text(given["licence"]),
        ignored=tuple(name for name in LATER if given[name] is not None),
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _names(value: Any, where: str, faults: list[str]) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        faults.append(fault(where, "is no list of names", got=value))
        return None
    return tuple(str(name) for name in value)


def _pair(part: Any, where: str, kind: str, faults: list[str]) -> tuple[Tensor, Tensor] | None:
    """Features and targets of one split, or None with the reasons added to `faults`."""
    unpacked = _unpack(part, where, faults)
    if unpacked is None:
        return None
    raw_X, raw_y = (_array(value, f"{where}.{name}", faults) for name, value in zip("Xy", unpacked, strict=True))
    if raw_X is None or raw_y is None:
        return None
    if len(raw_X) == 0 or len(raw_y) == 0:
        faults.append(fault(where, "is empty", got=f"{len(raw_X)} rows of X and {len(raw_y)} of y"))
        return None
    if len(raw_X) != len(raw_y):
        faults.append(fault(where, "X and y differ in length", got=f"{len(raw_X)} rows of X and {len(raw_y)} of y"))
        return None
    y = _values(raw_y) if kind == "regression" else _labels(raw_y, f"{where}.y", kind, faults)
    return None if y is None else (_values(raw_X), y)


def _unpack(part: Any, where: str, faults: list[str]) -> tuple[Any, Any] | None:
    if isinstance(part, tuple | list) and len(part) == 2:
        return part[0], part[1]
    if isinstance(part, torch.utils.data.TensorDataset) and len(part.tensors) == 2:
        return part.tensors
    items = not isinstance(part, Tensor | np.ndarray | str | bytes | Mapping | tuple | list)
    if items and hasattr(part, "__getitem__") and hasattr(part, "__len__"):
        return _stack(part, where, faults)
    faults.append(fault(where, "is no split", got=_describe(part), expected=PAIR))
    return None


def _describe(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"one {type(value).__name__} of shape {tuple(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__


def _stack(dataset: Any, where: str, faults: list[str]) -> tuple[Any, Any] | None:
    """All items of a map-style Dataset, side by side in memory."""
    rows: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for i in range(len(dataset)):
        item = dataset[i]
        if not isinstance(item, tuple | list) or len(item) != 2:
            faults.append(fault(f"{where}[{i}]", "is no pair", got=_describe(item), expected=PAIR))
            return None
        rows.append((np.asarray(item[0]), np.asarray(item[1])))
        if [a.shape for a in rows[-1]] != [a.shape for a in rows[0]]:
            got = f"{rows[-1][0].shape} and {rows[-1][1].shape}"
            expected = f"{rows[0][0].shape} and {rows[0][1].shape} as in the first item"
            faults.append(fault(f"{where}[{i}]", "items differ in shape", got=got, expected=expected))
            return None
    return ([x for x, _ in rows], [y for _, y in rows]) if rows else (np.zeros((0, 1)), np.zeros(0))


def _array(value: Any, where: str, faults: list[str]) -> NDArray[Any] | None:
    """The value as a numeric array with rows, or None with the reason added to `faults`."""
    if isinstance(value, Mapping | tuple):
        faults.append(
            fault(where, "nested inputs are not built in this version", got=type(value).__name__, expected="one array")
        )
        return None
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


def _values(array: NDArray[Any]) -> Tensor:
    """A float32 copy of our own, so that nobody changes a split from outside."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


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


def _disagreements(
    pairs: Mapping[str, tuple[Tensor, Tensor]], names: Mapping[str, tuple[str, ...] | None]
) -> list[str]:
    """What the splits say differently from each other or from the names."""
    found = []
    reference = next(iter(pairs), None)
    for name, (X, y) in pairs.items():
        for part, tensor, first in (("X", X, pairs[reference or name][0]), ("y", y, pairs[reference or name][1])):
            if tensor.shape[1:] != first.shape[1:]:
                got, expected = tuple(tensor.shape[1:]), f"{tuple(first.shape[1:])} as in data.{reference}"
                found.append(fault(f"data.{name}.{part}", "rows differ in shape", got=got, expected=expected))
        classes = names["class_names"]
        if classes and not y.is_floating_point() and int(y.max()) >= len(classes):
            found.append(
                fault("data.class_names", f"names no class {int(y.max())} of data.{name}", got=f"{len(classes)} names")
            )
    features = names["feature_names"]
    if features and reference and pairs[reference][0][0].numel() != len(features):
        expected = f"{pairs[reference][0][0].numel()}, one per feature"
        found.append(fault("data.feature_names", "number of names", got=len(features), expected=expected))
    return found
