"""`trainer_state.json` of the Hugging Face Trainer: one JSON object whose `log_history` is a list of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from diagnostics.logs.formats.json_lines import FINAL
from diagnostics.logs.row import Notes, Row
from diagnostics.logs.source import Source
from pipeline.errors import UserError, fault
from pipeline.foreign_files import parse_json, read_bytes

NAME = "Hugging Face trainer_state.json"
PRIORITY = 10
MAX_BYTES = 256 * 2**20
_SETTINGS = {"train_batch_size": "batch_size"}


def matches(source: Source) -> bool:
    """Whether the whole file is one object: in JSON lines the first line is an object and others follow."""
    lines = [line for line in source.head if line.strip()] or [source.first_bytes.decode("utf-8", errors="replace")]
    one_object = len(lines) == 1 or not lines[0].rstrip().endswith("}")
    return lines[0].lstrip().startswith("{") and one_object and any('"log_history"' in line for line in lines)


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    """Yield the entries of `log_history`; the line of a row is its place in that list, from 1."""
    content = read_bytes(source.path, "a trainer_state.json", MAX_BYTES)
    state = parse_json(content, str(source.path), "a trainer_state.json")
    history = state.get("log_history") if isinstance(state, Mapping) else None
    if not isinstance(history, list):
        raise UserError(fault(str(source.path), "has no list `log_history`", expected="a trainer_state.json"))
    notes.header.update({to: json.dumps(state[key]) for key, to in _SETTINGS.items() if state.get(key) is not None})
    notes.remarks.append("lines are entries of log_history")
    for place, entry in enumerate(history, 1):
        if not isinstance(entry, Mapping):
            notes.skip(place, "is not an object")
        elif any(name in entry for name in FINAL):
            notes.skip(place, "is the summary at the end of the training, not a step of it")
        else:
            yield Row(place, {str(name): value for name, value in entry.items() if value is not None})
