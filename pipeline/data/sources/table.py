"""A table as it was read from its files, cells of text by column, and the options that all readers of tables share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.config.override_keys import command
from pipeline.errors import UserError, fault

# If at least this share of a column's values are numbers, the others are taken for mistakes, and reported; with fewer
# numbers the column is categorical.
NUMERIC_SHARE = 0.9
MAX_LISTED = 12  # columns whose names a message lists


@dataclass(frozen=True)
class TableOptions:
    """What the columns of a table mean and how rows are divided: the options that all readers of tables share."""

    label: str | None
    features: Sequence[str] | None = None
    ignore: Sequence[str] = ()
    categories: Sequence[str] = ()
    label_kind: str = "classes"
    class_names: Sequence[str] | None = None
    split: str | None = None
    group: str | None = None
    time: str | None = None
    val: float = 0.2
    test: float = 0.2
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of text, None where a value is missing; `lines` are the rows' line numbers as in an editor."""

    files: tuple[str, ...]
    names: tuple[str, ...]
    cells: tuple[Sequence[str | None], ...]
    file_of: NDArray[np.intp]
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lines)

    @cached_property
    def _column_numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def place(self, row: int, name: str) -> str:
        """`<file>: row 17, column 'age'`, the beginning of a message."""
        return f"{self.files[self.file_of[row]]}: row {self.lines[row]}, column '{name}'"

    def column(self, name: str, key: str) -> Sequence[str | None]:
        """The cells of one column. Raises UserError, naming the config key, if there is no such column."""
        if name not in self._column_numbers:
            expected = None if len(self.names) <= MAX_LISTED else f"one of its {len(self.names)} columns"
            what = f"{self.files[0]} has no such column"
            raise UserError(fault(f"data.{key}", what, got=name, among=self.names, expected=expected))
        return self.cells[self._column_numbers[name]]

    def complete_column(self, name: str, key: str) -> list[str]:
        """The cells of a column without missing values. Raises UserError naming the first missing one."""
        cells = self.column(name, key)
        for row, cell in enumerate(cells):
            if cell is None:
                raise UserError(fault(self.place(row, name), f"{key} is missing", expected="a value in every row"))
        return [cell for cell in cells if cell is not None]


def parse_number(cell: str) -> float | None:
    """The number in a cell, which may be infinite; None for any other text."""
    try:
        return float(cell) if "_" not in cell else None  # Python reads "1_000" as a number, tables do not
    except ValueError:
        return None


def parse_numbers(table: Table, name: str, key: str) -> NDArray[np.float64] | None:
    """A column as numbers, NaN for missing values; None for text, which is categorical.

    Raises UserError for a column of numbers with a cell that is not one, naming the cell.
    """
    cells = table.column(name, key)
    try:
        if "_" not in "".join(filter(None, cells)):
            return np.array([math.nan if cell is None else float(cell) for cell in cells])
    except ValueError:
        pass
    numbers = [(row, parse_number(cell)) for row, cell in enumerate(cells) if cell is not None]
    text_rows = [row for row, number in numbers if number is None]
    if len(text_rows) <= (1 - NUMERIC_SHARE) * len(numbers):
        what = "is not a number, unlike the rest of its column"
        if len(text_rows) > 1:
            what = f"is not a number, one of {len(text_rows)} such cells in a column of numbers"
        do = f"correct the cell, or: {command(f'data.categories=[{name}]')}"
        row = text_rows[0]
        raise UserError(fault(table.place(row, name), what, got=cells[row], expected="a number", do=do))
    return None


def parse_times(table: Table, name: str) -> NDArray[np.float64]:
    """A column of times: numbers unchanged, dates and times in ISO 8601 as seconds (UTC).

    Raises UserError naming the first cell that is neither.
    """
    cells = table.complete_column(name, "time")
    times = []
    for row, cell in enumerate(cells):
        number = parse_number(cell)
        value = _parse_seconds(cell) if number is None else number
        if value is None or not math.isfinite(value):
            expected = "a number, or a date like 2024-05-31T12:00:00"
            raise UserError(fault(table.place(row, name), "is not a time", got=cell, expected=expected))
        times.append(value)
    return np.array(times)


def _parse_seconds(cell: str) -> float | None:
    try:
        moment = datetime.fromisoformat(cell)
    except ValueError:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
