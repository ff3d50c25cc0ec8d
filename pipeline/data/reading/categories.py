"""Categorical columns: which columns of the features hold codes, and how many codes each has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.errors import fault


def read_categories(
    declared: object, width: int | None, names: Sequence[str] | None, faults: list[str]
) -> dict[int, int]:
    """Column to number of codes, including 0 for unknown, in the order of columns.

    `declared` is what the user's data give: `{feature name or column: number of codes, or the list of categories}`.
    `width` is the number of columns, None if the features are not of shape [N, F]. Reasons are added to `faults`.
    """
    if declared is None:
        return {}
    if not isinstance(declared, Mapping):
        expected = "{feature name or column: number of codes, or the list of categories}"
        faults.append(fault("data.categories", "is not a mapping", got=type(declared).__name__, expected=expected))
        return {}
    if declared and width is None:
        faults.append(fault("data.categories", "features have no columns", expected="X of shape [N, F]"))
        return {}
    columns = {name: column for column, name in enumerate(names or ())} | {c: c for c in range(width or 0)}
    counts: dict[int, int] = {}
    for key, codes in declared.items():
        # A mapping from YAML or the command line may have column numbers as text.
        column = int(key) if isinstance(key, str) and key not in columns and key.isdecimal() else key
        count = _count_codes(codes)
        if column not in columns:
            among = names or [] if isinstance(key, str) else []
            numbers = None if among else f"0 to {(width or 0) - 1}"
            faults.append(fault("data.categories", "there is no such column", got=key, among=among, expected=numbers))
        elif count is None or count < 1:
            expected = "the number of codes including 0 for unknown, or their list"
            faults.append(fault(f"data.categories.{key}", "is not a number of codes", got=codes, expected=expected))
        else:
            counts[columns[column]] = count
    return dict(sorted(counts.items()))


def _count_codes(codes: object) -> int | None:
    if isinstance(codes, int) and not isinstance(codes, bool):
        return codes
    return len(codes) if isinstance(codes, Sequence) and not isinstance(codes, str) else None
