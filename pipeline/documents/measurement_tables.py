"""Measurements as Markdown tables: any JSON value of the evidence, whatever its keys are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.documents.figures import shown

MAX_ROWS = 15  # of a table; report.json has all of them
MAX_LISTED = 8  # values of a list in one cell
MAX_LEVELS = 3  # of nested measurements
MAX_TEXT = 240  # characters of a text in a cell


def tables(value: object, name: str = "") -> list[str]:
    """Return the lines of the tables that show a measurement; an empty list for one without values."""
    return _tables(value, name, 1)


def measurement(values: Mapping[str, object]) -> list[str]:
    """Return the tables of an item's values: the single ones in one table, the others each under its name."""
    lines = table(
        ["measure", "value"], [[words_of(name), value] for name, value in values.items() if _fits_a_cell(value)]
    )
    for name, value in values.items():
        if not _fits_a_cell(value):
            lines += _titled(name, tables(value), 2) if len(values) > 1 else tables(value)
    return lines


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a table. Texts are escaped; numbers are written as documents write them."""
    if not rows:
        return []
    lines = [f"| {' | '.join(words(column) for column in columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows[:MAX_ROWS]]
    if len(rows) > MAX_ROWS:
        lines += ["", f"The first of {len(rows)} rows; `report.json` has all of them."]
    return [*lines, ""]


def words(name: str) -> str:
    """Return a key as words."""
    return shown(str(name).replace("_", " ")) if name else " "


def _tables(value: object, name: str, level: int) -> list[str]:
    if _is_scalar(value):
        return table(["measure", "value"], [[words_of(name), value]]) if value is not None else []
    if isinstance(value, Mapping):
        return _mapping(value, name, level)
    if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value):
        return _titled(name, _records([(None, row) for row in value]), level)
    return table(["measure", "value"], [[words_of(name), value]]) if value else []


def _mapping(value: Mapping[str, Any], name: str, level: int) -> list[str]:
    scalars = [[words_of(key), inner] for key, inner in value.items() if _fits_a_cell(inner)]
    nested = {key: inner for key, inner in value.items() if not _fits_a_cell(inner)}
    lines = table(["measure", "value"], scalars)
    same_kind = [inner for inner in nested.values() if isinstance(inner, Mapping) and _has_scalars(inner)]
    if len(nested) > 1 and len(same_kind) == len(nested) and len({*map(frozenset, same_kind)}) == 1:
        return _titled(name, [*lines, *_records(list(nested.items()))], level)
    if level < MAX_LEVELS:
        for key, inner in nested.items():
            lines += _tables(inner, f"{name}: {key}" if name else str(key), level + 1)
    return _titled(name, lines, level) if scalars else lines


def _records(rows: Sequence[tuple[str | None, Mapping[str, Any]]]) -> list[str]:
    """A table with a column per key; keys with nested values are left out."""
    keys = list(dict.fromkeys(key for _, row in rows for key, inner in row.items() if _fits_a_cell(inner)))
    named = [[key] if key is not None else [] for key, _ in rows]
    cells = [[*first, *(row.get(key) for key in keys)] for first, (_, row) in zip(named, rows, strict=True)]
    return table([*([""] if named[0] else []), *keys], cells) if keys else []


def _titled(name: str, lines: list[str], level: int) -> list[str]:
    return [f"*{words(name)}*", "", *lines] if lines and name and level > 1 else lines


def words_of(key: object) -> str:
    return str(key).replace("_", " ")


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _fits_a_cell(value: object) -> bool:
    return _is_scalar(value) or (isinstance(value, list) and all(map(_is_scalar, value)))


def _has_scalars(value: Mapping[str, Any]) -> bool:
    return any(map(_fits_a_cell, value.values()))


def _cell(value: object) -> str:
    if isinstance(value, list):
        listed = ", ".join(map(_cell, value[:MAX_LISTED]))
        return f"{listed}, … ({len(value)} in all)" if len(value) > MAX_LISTED else listed or "none"
    if isinstance(value, str) and len(value) > MAX_TEXT:
        value = value[:MAX_TEXT].rpartition(" ")[0] + " …"
    return shown(value).strip()
