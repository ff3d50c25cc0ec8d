"""One JSON document: a list of rows, a single object, or lists by name as `history.history` of Keras.

A document may be written over many lines, or as a Python dict that was printed: `{'loss': [2.3, 1.9], ...}`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping

from diagnostics.logs.formats.json_lines import FINAL, flatten, with_split
from diagnostics.logs.row import Notes, Row, number
from diagnostics.logs.source import Source
from pipeline.errors import UserError, fault

NAME = "a JSON document"
PRIORITY = 15
MAX_BYTES = 64 * 2**20
MAX_PRINTED = 2**20  # of the print of a Python object
_WORDS = re.compile(r"(?<!['\w])(-?(?:nan|inf))(?!['\w])")  # numbers that Python prints as words
ROWS = ("history", "log_history", "logs", "log", "metrics", "results", "epochs", "data")  # keys that hold the rows


def matches(source: Source) -> bool:
    """Whether the file begins as a list or an object and its first line is not an object of its own."""
    lines = [line.strip() for line in source.head if line.strip()] or [
        source.first_bytes.decode("utf-8", errors="replace")
    ]
    first = lines[0]
    begins = first[:1] in ("{", "[") and first[:2] != "[["
    is_row = len(lines) > 1 and first.startswith("{") and first.endswith("}")  # of JSON lines, or of a print
    if not begins or is_row or source.path.stat().st_size > MAX_BYTES:
        return False
    return _rows_in(_parse(source)) is not None


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    document = _parse(source)
    entries = _rows_in(document)
    if entries is None:
        raise UserError(fault(str(source.path), "holds no rows", expected="a list of objects, or lists by name"))
    notes.remarks.append("lines are entries of the document")
    for place, entry in enumerate(entries, 1):
        values = dict(flatten(entry))
        if any(name in values for name in FINAL):
            notes.skip(place, "is the summary at the end of the training, not a step of it")
        else:
            yield Row(place, with_split(values, notes))


def _parse(source: Source) -> object:
    """Return the document; None for what is neither JSON nor the print of a Python object."""
    text = "\n".join(line for _, line in source.lines()).strip()
    try:
        return json.loads(text)
    except (ValueError, RecursionError, MemoryError):
        pass
    try:
        return ast.literal_eval(_WORDS.sub(r"'\1'", text)) if len(text) < MAX_PRINTED else None
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def _rows_in(document: object) -> list[Mapping[str, object]] | None:
    """Return the rows of a document, or None if it holds none."""
    if isinstance(document, list):
        return document if document and all(isinstance(entry, Mapping) for entry in document) else None
    if not isinstance(document, Mapping):
        return None
    columns = {
        str(name): column
        for name, column in document.items()
        if isinstance(column, list) and column and all(cell is None or number(cell) is not None for cell in column)
    }
    if columns:
        longest = max(map(len, columns.values()))
        return [
            {"epoch": place, **{name: column[place] for name, column in columns.items() if place < len(column)}}
            for place in range(longest)
        ]
    for name in ROWS:
        if (inner := _rows_in(document.get(name))) is not None:
            return inner
    return None
