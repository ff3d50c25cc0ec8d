"""The closed vocabulary of root causes, read from causes.yaml. Its ids are the only words for a cause anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True)
class Cause:
    """A root cause: its group (data, model, loss, ...), what it means, and the kinds of change that cure it."""

    id: str
    group: str
    means: str
    cures: tuple[str, ...]


@cache
def load() -> Mapping[str, Cause]:
    """Every cause by id, in the order of the file."""
    from omegaconf import OmegaConf

    groups = OmegaConf.load(Path(__file__).with_name("causes.yaml"))
    found: dict[str, Cause] = {}
    for group, entries in groups.items():
        for name, entry in entries.items():
            assert name not in found, f"cause {name} stands twice in causes.yaml"
            found[str(name)] = Cause(str(name), str(group), str(entry.means), tuple(entry.cures))
    return MappingProxyType(found)


def cures() -> tuple[str, ...]:
    """Every cure once, in the order of the file."""
    return tuple(dict.fromkeys(cure for cause in load().values() for cure in cause.cures))
