"""Categorical columns: which columns of the features hold codes, and how many codes each has."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

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
    columns = _columns(width or 0, names)
    counts: dict[int, int] = {}
    for key, codes in declared.items():
        column = _column(key, columns)
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


def category_texts(
    declared: object, counts: Mapping[int, int], names: Sequence[str] | None
) -> dict[int, tuple[str, ...]]:
    """Column to the texts of its codes, code 0 first, for the columns whose categories the user's data list."""
    columns = _columns(max(counts, default=-1) + 1, names)
    listed = declared.items() if isinstance(declared, Mapping) else ()
    texts = {columns[_column(key, columns)]: codes for key, codes in listed if not isinstance(codes, int)}
    return {column: tuple(map(str, codes)) for column, codes in sorted(texts.items())}


def _columns(width: int, names: Sequence[str] | None) -> dict[Hashable, int]:
    """The number of every column by its name, and by itself."""
    return {name: column for column, name in enumerate(names or ())} | {c: c for c in range(width)}


def _column(key: Hashable, columns: Mapping[Hashable, int]) -> Hashable:
    # A mapping from YAML or the command line may have column numbers as text.
    return int(key) if isinstance(key, str) and key not in columns and key.isdecimal() else key


def _count_codes(codes: object) -> int | None:
    if isinstance(codes, int) and not isinstance(codes, bool):
        return codes
    return len(codes) if isinstance(codes, Sequence) and not isinstance(codes, str) else None
