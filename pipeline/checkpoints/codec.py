"""Nested state of optimizers and schedulers as JSON and named tensors, without pickle.

JSON has no tuples, no infinite numbers and no keys that are numbers: those are written as `{"!": kind, "of": ...}`.
Floats are restored bit for bit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.errors import UserError, fault

TAG = "!"


def pack(value: object, where: str, tensors: dict[str, Tensor]) -> Any:
    """Return the JSON form of a value; its tensors are added to `tensors`, under their path in the value.

    Raises UserError with the path of anything else, such as an object or a function.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {TAG: "float", "of": str(value)}
    if isinstance(value, Tensor):
        tensors[where] = value
        return {TAG: "tensor", "of": where}
    if isinstance(value, np.generic):
        return pack(value.item(), where, tensors)
    if isinstance(value, list | tuple):
        parts = [pack(part, f"{where}.{i}", tensors) for i, part in enumerate(value)]
        return parts if isinstance(value, list) else {TAG: "tuple", "of": parts}
    if isinstance(value, Mapping):
        pairs = [[key, pack(part, f"{where}.{key}", tensors)] for key, part in value.items()]
        if isinstance(value, Counter):
            return {TAG: "counter", "of": pairs}
        plain = all(isinstance(key, str) and key != TAG for key, _ in pairs)
        return dict(pairs) if plain else {TAG: "dict", "of": pairs}
    raise UserError(
        fault(where, "cannot be stored in a checkpoint", got=type(value).__name__, expected="tensors, numbers and text")
    )


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value that was packed.

    Raises KeyError if one of its tensors is missing, and UserError for a value that `pack` does not return.
    """
    try:
        return _unpack(packed, tensors)
    except (TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(fault("checkpoint", f"holds a state that cannot be read ({error})")) from None


def _unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(packed, list):
        return [_unpack(part, tensors) for part in packed]
    if not isinstance(packed, dict):
        return packed
    if TAG not in packed:
        return {key: _unpack(part, tensors) for key, part in packed.items()}
    kind, of = packed[TAG], packed["of"]
    if kind == "tensor":
        return tensors[of]
    if kind == "float":
        return float(of)
    if kind == "tuple":
        return tuple(_unpack(part, tensors) for part in of)
    pairs = {key: _unpack(part, tensors) for key, part in of}
    return Counter(pairs) if kind == "counter" else pairs
