"""What a reader makes of a log: rows of named values, and what the log says of the training besides."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

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

    def skip(self, line: int, why: str) -> None:
        """Set a line aside."""
        self.set_aside_count += 1
        if len(self.set_aside) < MAX_SET_ASIDE:
            self.set_aside.append((line, why))


def number(value: object) -> float | None:
    """Return the number in a cell, NaN and infinity included; None if it is not a number. `81.2%` is 0.812."""
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
    if isinstance(value, str) and (match := re.match(r"\s*(\d+)\s*/\s*\d+\s*$", value)):
        return float(match[1])
    return number(value)
