"""The closed vocabulary of root causes, read from causes.yaml: a cause has the same id everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from pipeline import safe_yaml


@dataclass(frozen=True)
class Cause:
    """A root cause: its group (data, model, loss, ...), its meaning, and the kinds of change that cure it."""

    id: str
    group: str
    means: str
    cures: tuple[str, ...]


@cache
def load() -> Mapping[str, Cause]:
    """Return every cause by id, in the order of the file."""
    path = Path(__file__).with_name("causes.yaml")
    groups = safe_yaml.load_strict(path.read_text(encoding="utf-8"), path.name)
    loaded: dict[str, Cause] = {}
    for group, entries in groups.items():
        for name, entry in entries.items():
            assert name not in loaded, f"cause {name} is twice in causes.yaml"
            loaded[str(name)] = Cause(str(name), str(group), str(entry["means"]), tuple(entry["cures"]))
    return MappingProxyType(loaded)


def cures() -> tuple[str, ...]:
    """Return every cure once, in the order of the file."""
    return tuple(dict.fromkeys(cure for cause in load().values() for cure in cause.cures))
