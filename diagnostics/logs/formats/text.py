"""Any text in which numbers follow names: `iter 100: loss 2.31, lr 1e-3`, `Epoch [3/10] | val acc: 81.2%`.

A line that names only an epoch or a step says where the lines below it belong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from diagnostics.logs.header import settings_in
from diagnostics.logs.names import SPLITS, canonical_name
from diagnostics.logs.row import Notes, Row
from diagnostics.logs.source import Source

NAME = "text with names and values"
PRIORITY = 90
_NUMBER = re.compile(
    r"(?<![\w@.])([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf|infinity))(?![\w.]*[A-Za-z_])"
    r"(\s*%|/\s*\d+(?!\d*/))?",
    re.IGNORECASE,
)
_LINKS = re.compile(r"(?:\s+(?:is|was|of|at|to|reached|equals|now|is now))+$", re.IGNORECASE)
# tqdm: percentage, bar, steps done and to do, times and speed, and what the program shows behind them.
_BAR = re.compile(r"\d+%\s*(?:\|[^|]*\|)?\s*(\d+)/(\d+)\s*\[[^\],]*(?:,[^\],]*(?:/s|/it|B/s)\s*)?(?:,([^\]]*))?\]?")
_UNNAMED_EPOCH = re.compile(r"^\s*\[(\d+)/\d+\]\s*\[\s*(\d+)/\d+\]")  # as the tutorial on GANs prints them
_TENSOR = re.compile(r"\btensor\(\s*([^\s,()]+)[^)]*\)(?:[^\s,;|)]*\))?")
_FULL_WIDTH = str.maketrans("：，；（）％＝｜", ":,;()%=|")


def matches(source: Source) -> bool:
    return any(_measured(values_in(line)) for line in source.head)


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    current: dict[str, object] = {}
    shown: dict[str, object] = {}  # by the last progress bar
    split = ""
    for line, text in source.lines():
        bar = _BAR.search(text) if "%" in text else None
        values = values_in(text)
        if text.lstrip().startswith("*") and split:  # the summary below the lines of a split
            values = {_of_split(name, split): value for name, value in values.items()}
        split = _split_of(values) or split
        index = {name: value for name, value in values.items() if canonical_name(name) in ("step", "epoch")}
        if bar:
            values, shown = _news(values, shown, finished=bar[1] == bar[2]), values
        if _measured(values):
            # An index of another kind goes on: a loss of `iter 5` below the line `Epoch 2` is of epoch 2.
            kinds = {canonical_name(name) for name in index}
            yield Row(line, {**{k: v for k, v in current.items() if canonical_name(k) not in kinds}, **values})
        elif bar:  # a bar without a value, as that of a validation, counts something else
            continue
        else:
            notes.header.update({k: v for k, v in settings_in(text).items() if k not in notes.header})
        if index:
            known = {canonical_name(name) for name in index}
            # A step goes on within its epoch; an epoch begins without a step.
            epoch = {name: value for name, value in current.items() if canonical_name(name) == "epoch"}
            current = {**(epoch if known == {"step"} else {}), **index}


def _news(values: dict[str, object], shown: dict[str, object], *, finished: bool) -> dict[str, object]:
    """Leave out the scores of validation that a bar goes on to show during the next epoch."""
    if finished:
        return values
    return {
        name: value
        for name, value in values.items()
        if not (canonical_name(name) or "").startswith(("val/", "test/")) or shown.get(name) != value
    }


def _split_of(values: dict[str, object]) -> str:
    meanings = [name for name in map(canonical_name, values) if name and "/" in name]
    return meanings[-1].partition("/")[0] if meanings else ""


def _of_split(name: str, split: str) -> str:
    kind = canonical_name(name)
    named = any(word in SPLITS for word in re.split(r"[^a-z]+", name.lower()))
    return name if named or kind in (None, "step", "epoch", "lr", "grad_norm") else f"{split} {name}"


def values_in(text: str) -> dict[str, object]:
    """Return the numbers of a line by the names in front of them. A split holds for the names behind it."""
    text = _plain(text)
    values: dict[str, object] = {}
    split, end, last_kind = "", 0, None
    for match in _NUMBER.finditer(text):
        between = text[end : match.start()]
        name, named_split = _before(between)
        if not name and last_kind == "epoch" and re.fullmatch(r"\s*\]\s*\[\s*", between):
            name = "iter" if split in ("", "train") else ""  # `Epoch: [3][ 50/100]`; validation counts other batches
        split = named_split or split
        kind = canonical_name(name) if name else None
        if kind is None and not match[1][-1].isdigit() and match[1][-1] != ".":
            continue  # a word: `number of nan iterations: 0`
        end, last_kind = match.end(), kind
        if not name:
            continue
        if split and split != "train":
            name = _of_split(name, split)
        meaning = canonical_name(name)
        if " " in name and meaning and meaning.endswith("_loss"):  # words of a sentence, not the name of a part
            continue
        values.setdefault(name, f"{match[1]}%" if (match[2] or "").strip() == "%" else match[1])
    return values


def _plain(text: str) -> str:
    """Return a line with its progress bar as a step, and without what surrounds a number: `tensor(2.3, ...)`."""
    text = text if text.isascii() else text.translate(_FULL_WIDTH)
    if "%" in text and (bar := _BAR.search(text)):
        text = f"{text[: bar.start()].rstrip(' :')} , iter {bar[1]}, {bar[3] or ''} {text[bar.end() :]}"
    if "tensor(" in text:
        text = _TENSOR.sub(r"\1", text)
    return _UNNAMED_EPOCH.sub(r"epoch \1 iter \2 ", text) if text.lstrip()[:1] == "[" else text


@lru_cache(maxsize=8192)  # the same words stand between the numbers of most lines
def _before(between: str) -> tuple[str, str]:
    """Return the name at the end of the text between two numbers, and the split that the text names."""
    split = next((SPLITS[word] for word in re.split(r"[^a-z]+", between.lower()) if word in SPLITS), "")
    return _name_in(between), split


def _name_in(between: str) -> str:
    """Return the name at the end of the text between two numbers: what follows the last separator."""
    name = re.sub(r"\((?:train|val|valid|test|eval)\)\s*\[?\s*$", "", between)  # `Epoch(train) [3]` of mmengine
    name = name.rstrip(" \t:=([<>~≈'\"*`-→|")
    name = re.split(r"[|,;:()\[\]{}<>\t]|\s-\s|\.\s|'|\"", name)[-1].strip(" *`_#>")
    words = _LINKS.sub("", name).split()
    return " ".join(words[-3:]) if words and re.search("[A-Za-z]", name) else ""


def _measured(values: dict[str, object]) -> bool:
    return any(canonical_name(name) not in (None, "step", "epoch") for name in values)
