"""A run of MLflow as a log: its metrics are rows, its parameters the header."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Protocol, cast

from diagnostics.logs.header import SETTINGS
from diagnostics.logs.row import Notes, Row

NAME = "a run of MLflow"
_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")


class MlflowRun(Protocol):
    """A run as `pipeline.tracking.foreign_run` returns it."""

    name: str
    where: str
    metrics: Mapping[str, Sequence[tuple[int, float]]]
    params: Mapping[str, str]


def find_run(text: str) -> MlflowRun | None:
    """Return the MLflow run of an id or an address; None if the text is neither.

    MLflow is imported only for what looks like a run. Raises UserError if the run does not exist.
    """
    if not _ID.search(text):
        return None
    tracking = import_module("pipeline.tracking.foreign_run")
    return cast(MlflowRun, tracking.read_run(text)) if tracking.refers_to_run(text) else None


def rows(run: MlflowRun, notes: Notes) -> Iterator[Row]:
    """Yield a row for each step; the number of a row is its place. Parameters that are settings go to the header."""
    for name, text in run.params.items():
        if known := SETTINGS.get(name.rpartition(".")[2].lower()):
            notes.add_settings({known: text})
    notes.remarks.append(f"run {run.name} of {run.where}")
    by_step: dict[int, dict[str, object]] = {}
    for name, points in run.metrics.items():
        for step, value in points:
            by_step.setdefault(step, {})[name] = value
    for place, step in enumerate(sorted(by_step), 1):
        yield Row(place, {"step": step, **by_step[step]})
