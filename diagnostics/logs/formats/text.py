"""Any text in which numbers follow names: `iter 100: loss 2.31, lr 1e-3`, `Epoch [3/10] | val acc: 81.2%`.

A line that names only an epoch or a step says where the lines below it belong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from diagnostics.logs.header import settings_in
from diagnostics.logs.names import SPLITS, canonical_name
from diagnostics.logs.row import Notes, Row
from diagnostics.logs.source import Source

NAME = "text with names and values"
PRIORITY = 90
_NUMBER = re.compile(
    r"(?<![\w@.])([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf|infinity))(?![\w.]*[A-Za-z_])(\s*%|/\d+(?!\d*/))?",
    re.IGNORECASE,
)
_LINKS = re.compile(r"(?:\s+(?:is|was|of|at|to|reached|equals|now|is now))+$", re.IGNORECASE)


def matches(source: Source) -> bool:
    return any(_measured(values_in(line)) for line in source.head)


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    current: dict[str, object] = {}
    for line, text in source.lines():
        values = values_in(text)
        index = {name: value for name, value in values.items() if canonical_name(name) in ("step", "epoch")}
        if _measured(values):
            # An index of another kind goes on: a loss of `iter 5` below the line `Epoch 2` is of epoch 2.
            yield Row(line, {**current, **values})
        else:
            notes.header.update({k: v for k, v in settings_in(text).items() if k not in notes.header})
        if index:
            known = {canonical_name(name) for name in index}
            # A step goes on within its epoch; an epoch begins without a step.
            current = {**{name: value for name, value in current.items() if known == {"step"}}, **index}


def values_in(text: str) -> dict[str, object]:
    """Return the numbers of a line by the names in front of them. A split holds for the names behind it."""
    values: dict[str, object] = {}
    split, end = "", 0
    for match in _NUMBER.finditer(text):
        between, end = text[end : match.start()], match.end()
        name = _name_in(between)
        if not name:
            continue
        split = next((SPLITS[word] for word in re.split(r"[^a-z]+", between.lower()) if word in SPLITS), split)
        if split and split != "train" and not any(word in SPLITS for word in re.split(r"[^a-z]+", name.lower())):
            kind = canonical_name(name)
            name = name if kind in (None, "step", "epoch", "lr", "grad_norm") else f"{split} {name}"
        meaning = canonical_name(name)
        if " " in name and meaning and meaning.endswith("_loss"):  # words of a sentence, not the name of a part
            continue
        values.setdefault(name, f"{match[1]}%" if (match[2] or "").strip() == "%" else match[1])
    return values


def _name_in(between: str) -> str:
    """Return the name at the end of the text between two numbers: what follows the last separator."""
    name = between.rstrip(" \t:=([<>~≈'\"*`-→")
    name = re.split(r"[|,;()\[\]{}<>\t]|\s-\s|\.\s|:\s|'|\"", name)[-1].strip(" *`_#>")
    words = _LINKS.sub("", name).split()
    return " ".join(words[-3:]) if words and re.search("[A-Za-z]", name) else ""


def _measured(values: dict[str, object]) -> bool:
    return any(canonical_name(name) not in (None, "step", "epoch") for name in values)
