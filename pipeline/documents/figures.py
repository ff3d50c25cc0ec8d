"""Numbers in documents: how they are written, and the proof that each of them is a value of the records.

A number in a document is proved by where it comes from: a value of the evidence, of the plan or of an item, in a form
that `figure` gives it, or a word of the template. A number that was typed by hand has no such origin.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import unified_diff
from typing import Any

from markupsafe import Markup

from pipeline.escaping import code_span, markdown

NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")
DIGEST = re.compile(r"[0-9a-f]{64}")
_SHOWN_DIGITS = 12  # of a digest


def figure(value: object) -> str:
    """Return a value of the records as a document shows it: four significant digits, thousands with a comma."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "not a number" if math.isnan(value) else f"{value}"
    return str(value)


def shown(value: object) -> str:
    """Return a value as Markdown: numbers as `figure` gives them, text that shows as itself, digests shortened."""
    if isinstance(value, Markup):
        return str(value)
    if value is None or value == "":
        return "–"
    if isinstance(value, str):
        return code_span(value[:_SHOWN_DIGITS], in_table=True) if DIGEST.fullmatch(value) else markdown(value)
    return figure(value)


def numbers_in(text: str) -> list[str]:
    """Return the numbers of a text, as written, without signs; parts of words and of digests do not count."""
    return [number.rstrip(",") for number in NUMBER.findall(text)]


def numbers_of(records: Iterable[object], words: Iterable[str] = ()) -> set[str]:
    """Return every form in which a document may write a number of the records, or of the words of its template."""
    forms: set[str] = set()
    for value in (leaf for record in records for leaf in _leaves(record)):
        if isinstance(value, str):
            forms |= {*numbers_in(value), *numbers_in(markdown(value)), *numbers_in(value[:_SHOWN_DIGITS])}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            forms |= {number for form in (figure(value), repr(value)) for number in numbers_in(form)}
    return forms | {number for text in words for number in numbers_in(text)}


def unproven_numbers(text: str, proven: set[str]) -> list[str]:
    """Return the numbers of a document that no record has, each with its line."""
    return [
        f"line {number}: {found}"
        for number, line in enumerate(text.splitlines(), 1)
        for found in numbers_in(line)
        if found not in proven
    ]


def differences(text: str, regenerated: str) -> list[str]:
    """Return the first lines that differ from the document as the records give it; none where the texts are equal."""
    lines = unified_diff(regenerated.splitlines(), text.splitlines(), lineterm="", n=0)
    changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    pairs = [f"{'written' if line[0] == '+' else 'recorded'}: {line[1:].strip()[:120]}" for line in changed[:4]]
    return pairs or ([] if text == regenerated else ["line ends differ"])


def _leaves(value: object) -> Iterator[Any]:
    """The values inside a record, its keys also as words, and the lengths of its lists, which documents count."""
    if isinstance(value, Mapping):
        yield len(value)
        for key, inner in value.items():
            yield str(key)
            yield str(key).replace("_", " ")
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        yield len(value)
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value
