"""A run of MLflow as a log: its metrics are rows, its parameters the header."""

from __future__ import annotations

from collections.abc import Iterator

from diagnostics.logs.header import SETTINGS
from diagnostics.logs.row import Notes, Row
from pipeline.tracking.foreign_run import ForeignRun

NAME = "a run of MLflow"


def rows(run: ForeignRun, notes: Notes) -> Iterator[Row]:
    """Yield a row for each step; the number of a row is its place. Parameters that are settings go to the header."""
    for name, text in run.params.items():
        if known := SETTINGS.get(name.rpartition(".")[2].lower()):
            notes.header.setdefault(known, text)
    notes.remarks.append(f"run {run.name} of {run.where}")
    by_step: dict[int, dict[str, object]] = {}
    for name, points in run.metrics.items():
        for step, value in points:
            by_step.setdefault(step, {})[name] = value
    for place, step in enumerate(sorted(by_step), 1):
        yield Row(place, {"step": step, **by_step[step]})
