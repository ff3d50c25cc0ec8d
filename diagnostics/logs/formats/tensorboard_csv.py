"""The download of one scalar of TensorBoard: `Wall time,Step,Value`, with the tag in the name of the file."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from diagnostics.logs.row import Notes, Row
from diagnostics.logs.source import Source

NAME = "TensorBoard's CSV download"
PRIORITY = 11
HEAD = ["wall time", "step", "value"]


def matches(source: Source) -> bool:
    return bool(source.head) and [name.strip().lower() for name in source.head[0].split(",")] == HEAD


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    run, tag = _run_and_tag(source.path)
    notes.remarks.append(f"the tag '{tag}' was read from the name of the file")
    lines = source.lines()
    next(lines, None)
    for line, text in lines:
        cells = next(csv.reader([text]), [])
        if len(cells) == len(HEAD):
            yield Row(line, {"step": cells[1], tag: cells[2]}, run)
        elif text.strip():
            notes.skip(line, f"has {len(cells)} cells and not {len(HEAD)}")


def _run_and_tag(path: Path) -> tuple[str, str]:
    """Return run and tag of `run-version_0-tag-train_loss.csv`; any other name is the tag."""
    match = re.match(r"(?:run-)?(.*?)-?tag-(.+)$", path.stem)
    return (match[1].strip(), match[2].strip()) if match else ("", path.stem)
