"""Whether a value that was read from JSON has the type that its reader expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict


@cache
def _keys(record: type) -> dict[str, tuple[Any, bool]]:
    """Return the type of each key of a record, and whether it is required; `seq` is not part of the data."""
    hints = get_type_hints(record, include_extras=True)
    is_total = getattr(record, "__total__", True)
    optional = {key for key, hint in hints.items() if get_origin(hint) is NotRequired or not is_total}
    types = {key: get_args(hint)[0] if get_origin(hint) is NotRequired else hint for key, hint in hints.items()}
    return {key: (hint, key not in optional) for key, hint in types.items() if key != "seq"}


def mismatch(value: Any, hint: Any, where: str, closed: frozenset[type] = frozenset()) -> str | None:
    """Return the first part of a value of JSON that does not have its type; None where all have.

    A TypedDict may have further keys unless it is in `closed`. A float may be a text such as "nan".
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if is_typeddict(hint):
        if not isinstance(value, Mapping):
            return f"{where} is {value!r:.60}"
        keys = _keys(hint)
        missing = [key for key, (_, is_required) in keys.items() if is_required and key not in value]
        unknown = [key for key in value if key not in keys] if hint in closed else []
        if missing or unknown:
            return f"{where} has no {missing[0]!r}" if missing else f"{where} has {unknown[0]!r}"
        parts = [(value[key], part, f"{where}.{key}") for key, (part, _) in keys.items() if key in value]
    elif origin in (Union, UnionType):
        return (
            None
            if any(mismatch(value, part, where, closed) is None for part in arguments)
            else f"{where} is {value!r:.60}"
        )
    elif origin is Literal:
        return None if isinstance(value, str) and value in arguments else f"{where} is {value!r:.60}"
    elif origin in (list, dict, Sequence, Mapping):
        if not isinstance(value, list if origin in (list, Sequence) else dict):
            return f"{where} is {value!r:.60}"
        inner = value.values() if isinstance(value, dict) else value
        parts = [(part, arguments[-1], where) for part in inner]
    else:
        return None if _has_type(value, hint) else f"{where} is {value!r:.60}"
    return next((fault for part in parts if (fault := mismatch(*part, closed)) is not None), None)


def _has_type(value: object, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is float:
        return _is_number(value)
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    return value is None if kind in (None, NoneType) else isinstance(value, kind)


def _is_number(value: object) -> bool:
    """Return whether a value is a number as the ledger writes it: NaN and infinity are text."""
    if isinstance(value, str):
        return value in ("nan", "inf", "-inf")
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**1000
