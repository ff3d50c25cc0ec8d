"""What a reader makes of a log: rows of named values, what the log says besides, and the cells of the rows of a run."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from diagnostics.logs.names import canonical_name

MAX_COLUMNS = 10_000
MAX_NONFINITE = 1000  # cells of a column that are kept because they are not finite
OF_VALIDATION, OF_TRAINING = ("val", "test"), ("train", "lr", "grad_norm")
MAX_SET_ASIDE = 20  # rows that are listed one by one


class Row(NamedTuple):
    """The values of one line, by the log's own names. `run` tells the runs of one file apart."""

    line: int
    values: Mapping[str, object]
    run: str = ""


@dataclass
class Notes:
    """What a reader noticed besides the rows."""

    header: dict[str, str] = field(default_factory=dict)  # settings that the log states: dtype, rate, batch size, ...
    set_aside: list[tuple[int, str]] = field(default_factory=list)  # the first lines that were not read, and why
    set_aside_count: int = 0
    remarks: list[str] = field(default_factory=list)
    modules: Counter[str] = field(default_factory=Counter)  # how often a printed model has each kind of module

    def add_settings(self, settings: Mapping[str, str]) -> None:
        """Add settings that a line states; those that are known stay."""
        self.header = {**settings, **self.header}

    def skip(self, line: int, why: str) -> None:
        """Set a line aside."""
        self.set_aside_count += 1
        if len(self.set_aside) < MAX_SET_ASIDE:
            self.set_aside.append((line, why))


def number(value: object) -> float | None:
    """Return the number in a cell, NaN and infinity included; None if it is not a number. `81.2%` is 0.812."""
    if type(value) is float:
        return value
    try:
        if isinstance(value, str):
            return None if "_" in value else float(value)  # Python reads "1_000" as a number, logs do not
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except ValueError:
        text = str(value).strip()
        return share / 100 if text.endswith("%") and (share := number(text[:-1])) is not None else None
    except OverflowError:  # an integer with hundreds of digits
        return math.inf if isinstance(value, int) and value > 0 else -math.inf


def index_number(value: object) -> float | None:
    """Return the number of a step or epoch: also the 10 of `10/1600`."""
    measured = number(value)
    if measured is None and isinstance(value, str) and (match := re.match(r"\s*(\d+)\s*/\s*\d+\s*$", value)):
        return float(match[1])
    return measured


@dataclass
class Cells:
    """The numbers of one column with the places of their rows, and how many cells were text."""

    places: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[float] = field(default_factory=lambda: array("d"))
    texts: int = 0


class _Column(NamedTuple):
    """What a column of the log is: `step`, `epoch` or neither, where its cells go, and the split that they are of."""

    counts: str
    cells: Cells | None
    split: str


class Table:
    """The cells of one run by the log's own names, and the line and indices of each row."""

    def __init__(self) -> None:
        self.lines = array("q")
        self.steps, self.epochs = array("d"), array("d")
        self.validation = array("b")  # whether a row holds scores of validation alone
        self.cells: dict[str, Cells] = {}
        self._columns: dict[str, _Column] = {}
        self.seen = 0  # rows, also those that are not kept
        self.every = 1
        self._rows = np.zeros(0, np.int64)  # that are left of those before the last thinning
        self._thinned = 0

    def add(self, row: Row, names: Mapping[str, str]) -> int:
        """Add a row, and return how many cells it has. `names` maps columns that the user named to what they mean."""
        self.seen += 1
        added = 0
        place, step, epoch = len(self.lines), math.nan, math.nan
        splits = set()
        for name, value in row.values.items():
            index, cells, split = self._columns.get(name) or self._column(name, names)
            if index:
                counted = index_number(value)
                if counted is not None and index == "step":
                    step = counted
                elif counted is not None:
                    epoch = counted
            elif cells is not None and (measured := number(value)) is not None:
                cells.places.append(place)
                cells.numbers.append(measured)
                added += 1
                splits.add(split)
            elif cells is not None:
                cells.texts += 1
        self.lines.append(row.line)
        self.steps.append(step)
        self.epochs.append(epoch)
        self.validation.append(not splits.isdisjoint(OF_VALIDATION) and splits.isdisjoint(OF_TRAINING))
        return added

    def _column(self, name: str, names: Mapping[str, str]) -> _Column:
        """Return what a column that was not seen before is, and keep it if there is room for its cells."""
        meaning = names.get(name) or canonical_name(name)
        if meaning == "step" or meaning == "epoch":
            return self._columns.setdefault(name, _Column(meaning, None, ""))
        if len(self.cells) >= MAX_COLUMNS:
            return _Column("", None, "")
        cells = self.cells[name] = Cells()
        return self._columns.setdefault(name, _Column("", cells, meaning.partition("/")[0] if meaning else ""))

    def thin(self, whole: int) -> int:
        """Leave out every second row, and return how many cells are left.

        Columns of at most `whole` cells, as those of validations, and the first values that are not finite are kept.
        """
        self.every *= 2
        self._rows = np.concatenate([self._rows, np.arange(self._thinned, len(self.lines))])[::2]
        self._thinned = len(self.lines)
        left = np.zeros(self._thinned, bool)
        left[self._rows] = True
        for cells in self.cells.values():
            if len(cells.places) <= whole:
                continue
            places, numbers = np.frombuffer(cells.places, np.int64), np.frombuffer(cells.numbers, np.float64)
            odd = ~np.isfinite(numbers)
            selected = left[places] | (odd & (np.cumsum(odd) <= MAX_NONFINITE))
            cells.places, cells.numbers = (
                array("q", places[selected].tobytes()),
                array("d", numbers[selected].tobytes()),
            )
        return sum(len(cells.places) for cells in self.cells.values())
