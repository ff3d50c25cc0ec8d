"""Columns of categories: which columns of the features hold codes, and how many codes each has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import fault


def categories_of(given: Any, width: int | None, names: Sequence[str] | None, faults: list[str]) -> dict[int, int]:
    """Column to number of codes, 0 = unknown included, in the order of columns.

    `given` is what the user's data say, `{feature name or column: number of codes, or the list of words}`; `width` is
    the number of columns, None where features are no rows [N, F]. What is wrong is added to `faults`.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        expected = "{feature name or column: number of codes, or the list of words}"
        faults.append(fault("data.categories", "is no mapping", got=type(given).__name__, expected=expected))
        return {}
    if given and width is None:
        faults.append(fault("data.categories", "features are no rows of columns", expected="X of shape [N, F]"))
        return {}
    places = {name: column for column, name in enumerate(names or ())} | {c: c for c in range(width or 0)}
    found: dict[int, int] = {}
    for key, codes in given.items():
        known = int(key) if isinstance(key, str) and key not in places and key.isdecimal() else key
        count = codes if isinstance(codes, int) and not isinstance(codes, bool) else _words(codes)
        if known not in places:
            among = names or [] if isinstance(key, str) else []
            numbers = None if among else f"0 to {(width or 0) - 1}"
            faults.append(fault("data.categories", "there is no such column", got=key, among=among, expected=numbers))
        elif count is None or count < 1:
            expected = "the number of codes, the unknown 0 included, or their list"
            faults.append(fault(f"data.categories.{key}", "is no number of codes", got=codes, expected=expected))
        else:
            found[places[known]] = count
    return dict(sorted(found.items()))


def _words(codes: Any) -> int | None:
    return len(codes) if isinstance(codes, Sequence) and not isinstance(codes, str) else None
