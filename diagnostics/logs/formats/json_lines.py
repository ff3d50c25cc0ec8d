"""One JSON object per line: torchtune, ms-swift, mmengine, mmdet and many other loggers; objects may be nested."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from diagnostics.logs.header import SETTINGS
from diagnostics.logs.names import SPLITS, canonical_name
from diagnostics.logs.row import Notes, Row, number
from diagnostics.logs.source import Source

NAME = "JSON lines"
PRIORITY = 20
MAX_LEVELS = 20  # of nested objects in a line
MODES = ("mode", "split", "phase", "stage", "_stage", "type", "event")  # keys that say whose values the line holds
CONFIGS = ("config", "cfg", "args", "hparams", "hyperparameters", "params", "settings")  # objects of settings
_SCALARS = frozenset((int, float, str, bool))  # of a JSON object whose values are none of lists, objects and null
FINAL = ("train_runtime", "total_flos", "train_samples_per_second")  # of the summary that HF Trainer writes at the end


def matches(source: Source) -> bool:
    lines = [line.lstrip() for line in source.head if line.strip()]
    objects = sum(line.startswith("{") and _object(line) is not None for line in lines[:50])
    return objects > 0 and objects >= 0.5 * len(lines[:50])


def rows(source: Source, notes: Notes) -> Iterator[Row]:
    for line, text in source.lines():
        if not text.strip():
            continue
        entry = _object(text)
        if entry is None:
            notes.skip(line, "is not a JSON object")
            continue
        values = entry if _SCALARS.issuperset(map(type, entry.values())) else dict(flatten(entry))
        if not values.keys().isdisjoint(FINAL):
            notes.skip(line, "is the summary at the end of the training, not a step of it")
            continue
        yield Row(line, with_split(values, notes))


def with_split(values: dict[str, object], notes: Notes) -> dict[str, object]:
    """Return values named after the split that the line itself states; settings in text go to the header."""
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    if not texts:
        return values
    for name, value in values.items():
        group, _, key = name.lower().rpartition("/")
        stated = group.partition("/")[0] in CONFIGS or (isinstance(value, str) and number(value) is None)
        if key in SETTINGS and stated:
            notes.add_settings({SETTINGS[key]: str(value)})
    values = {name: value for name, value in values.items() if name.lower().partition("/")[0] not in CONFIGS}
    mode = next((str(values[key]).lower() for key in MODES if isinstance(values.get(key), str)), "")
    split = SPLITS.get(mode, "")
    if split == "train":  # an object `metrics` without a split would be taken for one of validation
        return {name.removeprefix("metrics/"): value for name, value in values.items()}
    if not split:
        return values
    # A validation line of mmdet counts validation batches in `iter`: only its epoch says when it was written.
    per_epoch = "epoch" in values and "step" not in values
    named: dict[str, object] = {}
    for name, value in values.items():
        index = canonical_name(name)
        if index in ("step", "epoch", "lr", "grad_norm"):
            if not (index == "step" and per_epoch):
                named[name] = value
        else:
            named[f"{split}/{name}"] = value
    return named


def _object(text: str) -> dict[str, object] | None:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError, MemoryError):
        return None
    return entry if isinstance(entry, dict) else None


def flatten(entry: Mapping[str, object], prefix: str = "", level: int = 1) -> Iterator[tuple[str, object]]:
    """Yield the values with their joined names; null means not measured, and lists are no measurements."""
    for name, value in entry.items():
        if isinstance(value, Mapping) and level < MAX_LEVELS:
            yield from flatten(value, f"{prefix}{name}/", level + 1)
        elif isinstance(value, int | float | str):
            yield f"{prefix}{name}", value
