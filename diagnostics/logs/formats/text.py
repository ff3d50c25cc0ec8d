"""Any text in which numbers follow names: `iter 100: loss 2.31, lr 1e-3`, `Epoch [3/10] | val acc: 81.2%`.

A line that names only an epoch or a step says where the lines below it belong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from diagnostics.logs.header import settings_in
from diagnostics.logs.names import SPLITS, canonical_name
from diagnostics.logs.row import Notes, Row
from diagnostics.logs.source import Source

NAME = "text with names and values"
PRIORITY = 90
MAX_REMEMBERED, MAX_NAMES = 1000, 50  # characters of a line and names in it, for which the next ones may be like it
_NUMBER = re.compile(
    r"(?<![\w@.])([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf|infinity))(?![\w.]*[A-Za-z_])"
    r"(\s*%|/\s*\d+(?!\d*/))?",
    re.IGNORECASE,
)
_LINKS = re.compile(r"(?:\s+(?:is|was|of|at|to|reached|equals|now|is now))+$", re.IGNORECASE)
# tqdm: percentage, bar, steps done and to do, times and speed, and what the program shows behind them.
_BAR = re.compile(r"\d+%\s*(?:\|[^|]*\|)?\s*(\d+)/(\d+)\s*\[[^\],]*(?:,[^\],]*(?:/s|/it|B/s)\s*)?(?:,([^\]]*))?\]?")
_MODULE = re.compile(r"^\s*\(\w+\): ([A-Z]\w+)\(")  # a line of a printed model
_UNNAMED_EPOCH = re.compile(r"^\s*\[(\d+)/\d+\]\s*\[\s*(\d+)/\d+\]")  # as the tutorial on GANs prints them
_TENSOR = re.compile(r"\btensor\(\s*([^\s,()]+)[^)]*\)(?:[^\s,;|)]*\))?")
_DIGITS = str.maketrans("123456789", "0" * 9)
_FULL_WIDTH = str.maketrans("：，；（）％＝｜", ":,;()%=|")


def matches(source: Source) -> bool:
    return any(_names(tuple(values_in(line))).measured for line in source.head)


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    current: dict[str, object] = {}
    of_current: frozenset[str | None] = frozenset()  # what the names in it mean
    shown: dict[str, object] = {}  # by the last progress bar
    split = ""
    for line, text in source.lines():
        bar = _bar_in(text)
        values = values_in(text)
        if split and text.lstrip()[:1] == "*":  # the summary below the lines of a split
            values = {_of_split(name, split): value for name, value in values.items()}
        named = _names_of(values)
        split = named.split or split
        if bar:
            values, shown = _news(values, shown, finished=bar[1] == bar[2]), values
            named = _names_of(values)
        settings = settings_in(text) if not named.measured or named.only_rate else {}
        if named.only_rate and len(settings) > 1:  # a line of settings, as `model=mlp lr=0.001 batch_size=128`
            notes.add_settings(settings)
            continue
        if named.measured:
            # An index of another kind goes on: a loss of `iter 5` below the line `Epoch 2` is of epoch 2.
            goes_on = not of_current <= named.kinds
            carried = {k: v for k, v in current.items() if canonical_name(k) not in named.kinds} if goes_on else {}
            yield Row(line, {**carried, **values} if carried else values)
        elif bar:  # a bar without a value, as that of a validation, counts something else
            continue
        else:
            notes.add_settings(settings)
            notes.modules.update(_MODULE.findall(text))
        if named.indices:
            # A step goes on within its epoch; an epoch begins without a step.
            within = "epoch" in of_current and named.kinds == {"step"}
            epoch = {k: v for k, v in current.items() if canonical_name(k) == "epoch"} if within else {}
            current = {**epoch, **{name: values[name] for name in named.indices}}
            of_current = named.kinds | {"epoch"} if within else named.kinds


def _names_of(values: Mapping[str, object]) -> _Names:
    return (_names if len(values) <= MAX_NAMES else _names.__wrapped__)(tuple(values))


class _Names(NamedTuple):
    """What the names of a line mean together: the split of the last one, its indices, and what it measures."""

    split: str
    indices: tuple[str, ...]
    kinds: frozenset[str | None]
    measured: bool
    only_rate: bool  # it measures, and nothing but the learning rate


@lru_cache(maxsize=8192)  # most lines have the names of another one
def _names(names: tuple[str, ...]) -> _Names:
    meanings = [canonical_name(name) for name in names]
    splits = [meaning.partition("/")[0] for meaning in meanings if meaning and "/" in meaning]
    index = tuple(n for n, meaning in zip(names, meanings, strict=True) if meaning in ("step", "epoch"))
    measured = {meaning for meaning in meanings if meaning not in (None, "step", "epoch")}
    kinds = frozenset(map(canonical_name, index))
    return _Names(splits[-1] if splits else "", index, kinds, bool(measured), measured == {"lr"})


def _news(values: dict[str, object], shown: dict[str, object], *, finished: bool) -> dict[str, object]:
    """Leave out the scores of validation that a bar goes on to show during the next epoch."""
    if finished:
        return values
    return {
        name: value
        for name, value in values.items()
        if not (canonical_name(name) or "").startswith(("val/", "test/")) or shown.get(name) != value
    }


def _of_split(name: str, split: str) -> str:
    kind = canonical_name(name)
    named = any(word in SPLITS for word in re.split(r"[^a-z]+", name.lower()))
    return name if named or kind in (None, "step", "epoch", "lr", "grad_norm") else f"{split} {name}"


def values_in(text: str) -> dict[str, object]:
    """Return the numbers of a line by the names in front of them. A split holds for the names behind it."""
    plain = _plain(text)
    # What is remembered of a long line, as one with a printed array, would need more memory than it saves time.
    remembers = len(plain) <= MAX_REMEMBERED
    layout, names_before = (_layout, _names_before) if remembers else (_layout.__wrapped__, _names_before.__wrapped__)
    numbers, names = layout(plain.translate(_DIGITS))
    if names is None:
        ends = (0, *(found.stop for found in numbers))
        texts = tuple(plain[end : found.start] for end, found in zip(ends, numbers, strict=False))
        spellings = tuple(plain[n.start : n.end] if plain[n.end - 1].isalpha() else "" for n in numbers)
        names = names_before(texts, spellings if any(spellings) else ())
    values: dict[str, object] = {}
    for place, name in names:
        start, end, _, percent = numbers[place]
        values[name] = plain[start:end] + percent
    return values


class _Number(NamedTuple):
    """Where a number is in its line, where its unit ends, and a percent sign if it has one."""

    start: int
    end: int
    stop: int
    percent: str


@lru_cache(maxsize=8192)  # most lines differ from another one in their digits alone
def _layout(line: str) -> tuple[tuple[_Number, ...], tuple[tuple[int, str], ...] | None]:
    """Return the numbers of a line, and the places and names of those that have one, as `_names_before` does.

    In `line` each digit is 0. The names are None where they may depend on the digits: where a name has one, as `acc1`,
    and where a number is a word, as `nan`.
    """
    found = list(_NUMBER.finditer(line))
    numbers = tuple(_Number(*m.span(1), m.end(), "%" if (m[2] or "").strip() == "%" else "") for m in found)
    if any(match[1][-1].isalpha() for match in found):
        return numbers, None
    ends = (0, *(match.end() for match in found))
    names_before = _names_before if len(line) <= MAX_REMEMBERED else _names_before.__wrapped__
    names = names_before(tuple(line[end : m.start()] for end, m in zip(ends, found, strict=False)), ())
    return numbers, None if any("0" in name for _, name in names) else names


@lru_cache(maxsize=8192)  # the same words stand between the numbers of most lines
def _names_before(texts: tuple[str, ...], spellings: tuple[str, ...]) -> tuple[tuple[int, str], ...]:
    """Return the places and names of the numbers that have one, by the texts in front of them; the first counts.

    `spellings` holds the numbers that may be words, and "" for the others; it is empty if there are none.
    """
    names: dict[str, int] = {}
    split, last_kind, skipped = "", None, ""
    for place, text in enumerate(texts):
        between = skipped + text
        name, named_split = (_before if len(between) <= MAX_REMEMBERED else _before.__wrapped__)(between)
        if not name and last_kind == "epoch" and re.fullmatch(r"\s*\]\s*\[\s*", between):
            name = "iter" if split in ("", "train") else ""  # `Epoch: [3][ 50/100]`; validation counts other batches
        split = named_split or split
        kind = canonical_name(name) if name else None
        if kind is None and spellings and spellings[place] and between.rstrip()[-1:] not in ("=", ":"):
            skipped = between + spellings[place]  # a word: `number of nan iterations: 0`
            continue
        last_kind, skipped = kind, ""
        if not name:
            continue
        if split and split != "train":
            name = _of_split(name, split)
        meaning = canonical_name(name)
        if " " in name and meaning and meaning.endswith("_loss"):  # words of a sentence, not the name of a part
            continue
        names.setdefault(name, place)
    return tuple((place, name) for name, place in names.items())


def _bar_in(text: str) -> re.Match[str] | None:
    return _BAR.search(text) if "%" in text and "[" in text else None


def _plain(text: str) -> str:
    """Return a line with its progress bar as a step, and without what surrounds a number: `tensor(2.3, ...)`."""
    text = text if text.isascii() else text.translate(_FULL_WIDTH)
    if bar := _bar_in(text):
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
    name = re.sub(r"^.*=\S*\s", "", name)  # a setting in words before it: `dtype=float16 epochs`
    words = _LINKS.sub("", name).split()
    return " ".join(words[-3:]) if words and re.search("[A-Za-z]", name) else ""
