"""Python dicts printed among other lines, as the Hugging Face Trainer does between its progress bars."""

from __future__ import annotations

import re
from collections.abc import Iterator

from diagnostics.logs.formats.json_lines import FINAL, with_split
from diagnostics.logs.header import settings_in
from diagnostics.logs.row import Notes, Row
from diagnostics.logs.source import Source

NAME = "printed dicts (Hugging Face Trainer)"
PRIORITY = 30
_DICT = re.compile(r"\{\s*(['\"])\w[^{}]*\}")
# The values of a dict of numbers; newer versions of the Trainer print them as text.
_PAIR = re.compile(r"['\"]([\w./ -]+)['\"]\s*:\s*['\"]?(-?(?:[\d.]+(?:[eE][+-]?\d+)?|nan|inf)|[\w./%-]+)['\"]?")


def matches(source: Source) -> bool:
    return sum("loss" in text for text in map(_dict_in, source.head)) > 0


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    for line, text in source.lines():
        content = _dict_in(text)
        values: dict[str, object] = dict(_PAIR.findall(content))
        if any(name in values for name in FINAL):
            notes.skip(line, "is the summary at the end of the training, not a step of it")
        elif values:
            yield Row(line, with_split(values, notes))
        else:
            notes.add_settings(settings_in(text))


def _dict_in(text: str) -> str:
    match = _DICT.search(text)
    return match[0] if match else ""
