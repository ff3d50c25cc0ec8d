"""The remedies of a cure: what a kind of change means for one config.

A remedy is a set of overrides if the config has the key, else surgery on the model, else a suggestion in code. An
override names an existing key and its new value (never `+`), so that a remedy can be trained, compared and undone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import nearest
from pipeline.repair import causes
from pipeline.repair.config_edits import Config, get
from pipeline.repair.cure_table import CURES, Cure


@dataclass(frozen=True)
class Remedy:
    """A cure resolved for one config; exactly one of overrides, surgery and code is given."""

    cure: str
    description: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    surgery: tuple[Mapping[str, Any], ...] = ()
    code: str | None = None


def resolve(cure: str, cause: str, config: Config | None) -> list[Remedy]:
    """Return the remedies of a cure for this config, smallest change first; there is always at least one.

    Raises ValueError for a cause that is not in causes.yaml, or a cure that it does not list for the cause.
    """
    known = causes.load()
    if cause not in known or cure not in known[cause].cures:
        close = nearest(cure, known[cause].cures if cause in known else known)
        raise ValueError(f"{cure} is not a cure of {cause} in causes.yaml; did you mean '{close}'?")
    entry, config = CURES[cure], config or {}
    remedies = [_override_remedy(cure, entry, config, change) for edit in entry.edits for change in edit(config)]
    if not remedies and "surgery" in config and not isinstance(get(config, entry.key), str):
        applied = config["surgery"] if isinstance(config["surgery"], Sequence) else ()
        remedies = [_surgery_remedy(cure, entry, step) for step in entry.surgery if step not in applied]
    return remedies or [Remedy(cure, f"{entry.summary}: {entry.code}", code=entry.code)]


def _override_remedy(cure: str, entry: Cure, config: Config, change: Mapping[str, object]) -> Remedy:
    parts = [f"{key} {_format_value(get(config, key))} → {_format_value(value)}" for key, value in change.items()]
    return Remedy(cure, f"{entry.summary}: {', '.join(parts)}", overrides=change)


def _surgery_remedy(cure: str, entry: Cure, step: Mapping[str, Mapping[str, object]]) -> Remedy:
    ((name, arguments),) = step.items()  # a step is a mapping with one key
    values = ", ".join(f"{key} {value}" for key, value in arguments.items())
    return Remedy(cure, f"{entry.summary}: surgery {name} ({values})", surgery=(step,))


def _format_value(value: object) -> str:
    """Return a value for a sentence; an object by the name of its class."""
    if isinstance(value, Mapping):
        return str(value.get("_target_", dict(value))).rpartition(".")[2]
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
