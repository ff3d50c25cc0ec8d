"""A table as it stands in its files: cells of text by column, and the file and row that each came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError, fault

MOSTLY = 0.9  # of a column's values are numbers: then what is none is a mistake, and the column no category


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of text, None where a value is missing; `lines` are rows of the file as an editor counts them."""

    files: tuple[str, ...]
    names: tuple[str, ...]
    cells: tuple[Sequence[str | None], ...]
    file_of: NDArray[np.intp]
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lines)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}

    def place(self, row: int, name: str) -> str:
        """`<file>: row 17, column 'age'`, as a message begins."""
        return f"{self.files[self.file_of[row]]}: row {self.lines[row]}, column '{name}'"

    def column(self, name: str, key: str) -> Sequence[str | None]:
        """The cells of one column. Raises UserError, naming the config's key, where there is none of that name."""
        if name not in self._places:
            many = None if len(self.names) <= 12 else f"one of its {len(self.names)} columns"
            what = f"{self.files[0]} has no such column"
            raise UserError(fault(f"data.{key}", what, got=name, among=self.names, expected=many))
        return self.cells[self._places[name]]

    def whole(self, name: str, key: str) -> list[str]:
        """The cells of a column in which none may be missing. Raises UserError naming the first that is."""
        cells = self.column(name, key)
        for row, cell in enumerate(cells):
            if cell is None:
                raise UserError(fault(self.place(row, name), f"{key} is missing", expected="a value in every row"))
        return [cell for cell in cells if cell is not None]


def number(cell: str) -> float | None:
    """The number that a cell holds, infinities among them; None for any other text."""
    try:
        return float(cell) if "_" not in cell else None
    except ValueError:
        return None


def numbers(table: Table, name: str, key: str) -> NDArray[np.float64] | None:
    """A column as numbers, NaN where missing; None for text, which is a category.

    Raises UserError for a column of numbers in which a cell is none, naming the cell.
    """
    cells = table.column(name, key)
    try:
        if "_" not in "".join(filter(None, cells)):
            return np.array([math.nan if cell is None else float(cell) for cell in cells])
    except ValueError:
        pass
    found = [(row, number(cell)) for row, cell in enumerate(cells) if cell is not None]
    odd = [row for row, value in found if value is None]
    if len(odd) <= (1 - MOSTLY) * len(found):
        what = (
            "is no number, as the rest of its column is" if len(odd) == 1 else f"is no number, one of {len(odd)} here"
        )
        do = f"mend the cell, or: python -m pipeline ... data.categories=[{name}]"
        raise UserError(fault(table.place(odd[0], name), what, got=cells[odd[0]], expected="a number", do=do))
    return None


def instants(table: Table, name: str) -> NDArray[np.float64]:
    """A column of times as numbers that grow: numbers as they are, dates and times of ISO 8601 in seconds (UTC).

    Raises UserError naming the first cell that is neither.
    """
    cells, found = table.whole(name, "time"), []
    for row, cell in enumerate(cells):
        value = number(cell)
        value = _seconds(cell) if value is None else value
        if value is None or not math.isfinite(value):
            expected = "a number, or a date like 2024-05-31T12:00:00"
            raise UserError(fault(table.place(row, name), "is no time", got=cell, expected=expected))
        found.append(value)
    return np.array(found)


def _seconds(cell: str) -> float | None:
    try:
        moment = datetime.fromisoformat(cell)
    except ValueError:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
