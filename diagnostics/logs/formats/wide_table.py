"""A table with more columns than can be kept: those whose names mean something are read, and the others are set aside.

Its lines are longer than those of any other log: the names and each row are read whole, and few of their cells kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache, partial

from diagnostics.logs.formats.delimited import MAX_COLUMNS, are_names, split_cells
from diagnostics.logs.names import WORDS, canonical_name
from diagnostics.logs.row import Notes, Row, number
from diagnostics.logs.source import HEAD_BYTES, Source

NAME = "a wide table"
PRIORITY = 39  # before other tables
DELIMITERS = (",", ";", "\t")
LEAST_CELLS = 200  # in the head of a file whose first line is longer
MAX_LINE = 2**25  # characters; the rest of a longer line is not read
SHOWN = 20  # columns that are kept where no name means anything
_DIGITS = str.maketrans("123456789", "0" * 9)
_WORDS = re.compile("|".join(sorted(WORDS)).translate(_DIGITS), re.IGNORECASE)


def matches(source: Source) -> bool:
    if not source.head or source.is_binary:
        return False
    first, delimiter = source.head[0], _delimiter_of(source)
    is_cut = len(source.head) == 1 and len(source.first_bytes) == HEAD_BYTES
    cells = first.count(delimiter)
    if cells < MAX_COLUMNS and not (is_cut and cells >= LEAST_CELLS):
        return False
    names = [cell.strip().strip('"') for cell in first.split(delimiter, LEAST_CELLS)[:LEAST_CELLS]]
    return are_names(names, known=False)


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    """Yield the cells of the columns that have a meaning, or that the user named."""
    delimiter = _delimiter_of(source)
    with source.path.open(encoding=source.encoding, errors="replace") as stream:
        following = partial(stream.readline, MAX_LINE)
        head = following()
        is_cut = len(head) == MAX_LINE
        width, kept = _columns_of(head, delimiter, source, notes)
        last = max(kept)
        while is_cut and head and not head.endswith("\n"):
            head = following()
        line, begins = 1, True
        while text := following():
            line += begins
            is_whole, begins = begins, text.endswith("\n")
            if not is_whole or not text.strip():
                continue  # the rest of a line that is too long, or an empty one
            if '"' in text:
                cells = split_cells(text, delimiter)
                count = len(cells or ())
            else:
                cells, count = text.split(delimiter, last + 1), text.count(delimiter) + 1
            if cells is None or (count != width and not is_cut and len(text) < MAX_LINE):
                notes.skip(line, "has a quote that is not closed" if cells is None else f"has {count:,} cells")
                continue
            values = {name: cells[place].strip() for place, name in kept.items() if place < len(cells)}
            if any(number(value) is not None for value in values.values()):
                yield Row(line, {name: value for name, value in values.items() if value})
            else:
                notes.skip(line, "holds no number in the columns that are read")


def _columns_of(head: str, delimiter: str, source: Source, notes: Notes) -> tuple[int, dict[int, str]]:
    """Return how many columns there are, and the names of those that are read by their places."""
    names = split_cells(head, delimiter) or [cell.strip().strip('"') for cell in head.split(delimiter)]
    known: dict[int, str] = {}
    for place, name in enumerate(names):
        if len(known) < MAX_COLUMNS and (name in source.wanted or _means_something(name)):
            known[place] = name
    kept = known or dict(enumerate(names[:SHOWN]))
    what = f"{len(kept)} whose names mean something are read" if known else "no name means anything here"
    notes.remarks.append(f"of {len(names):,} columns {what}, and {len(names) - len(kept):,} are set aside")
    if len(head) == MAX_LINE:
        notes.remarks.append(f"its first line has more than {MAX_LINE:,} characters: the columns behind are not read")
    return len(names), kept


def _means_something(name: str) -> bool:
    return _may_mean(name.translate(_DIGITS)) and canonical_name(name) is not None


@lru_cache(maxsize=8192)  # most of a million names differ in their digits alone
def _may_mean(name: str) -> bool:
    return _WORDS.search(name) is not None


def _delimiter_of(source: Source) -> str:
    return max(DELIMITERS, key=source.head[0].count)
