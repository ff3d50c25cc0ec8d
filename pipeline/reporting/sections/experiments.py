"""Both arms of each controlled experiment on the page: the score without and with its change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from markupsafe import Markup

from pipeline.reporting.canvas import (
    GREEN,
    GREY,
    NO_DRAWING,
    PURPLE,
    ROW_MARGINS,
    Canvas,
    drawing,
    marked_target,
    rows_height,
)
from pipeline.reporting.recorded import recorded_values
from pipeline.reporting.tables import number
from pipeline.run_store.ledger import Entry
from pipeline.run_store.run import Run

COLOURS = {"confirmed": GREEN, "refuted": GREY, "inconclusive": PURPLE}
TONES = {"confirmed": "good", "refuted": "bad", "inconclusive": "warn"}


class ArmsRecord(TypedDict):
    """An experiment of the evidence: the mean score of the unchanged trainings, and that with the change."""

    change: str
    verdict: str
    control: NotRequired[float | None]
    observed: NotRequired[float | None]
    causes: NotRequired[list[str]]
    seeds: NotRequired[int]
    steps: NotRequired[int]
    why: NotRequired[str]
    expected: NotRequired[str]
    restored: NotRequired[float | None]


class ExperimentValues(TypedDict):
    """The values of the evidence of diagnostics that the page shows."""

    experiments: NotRequired[list[ArmsRecord] | None]


@dataclass(frozen=True)
class ArmsRow:
    """One experiment with both arms; NaN where an arm has no score."""

    change: str
    causes: Sequence[str]
    control: float
    observed: float
    verdict: str
    seeds: int
    steps: int
    why: str
    expected: str

    @property
    def tone(self) -> str:
        return TONES.get(self.verdict, "plain")


@dataclass(frozen=True)
class ExperimentSection:
    """The experiments of one round and their picture, which is empty where no experiment has two scores."""

    round: int
    rows: Sequence[ArmsRow]
    svg: Markup


def experiment_sections(
    run: Run, entries: Sequence[Entry], target: float | None, metric: str, missing: list[str]
) -> dict[int, ExperimentSection]:
    """Return the experiments of every round, by its number."""
    phases: dict[int, Any] = {}  # a PhaseRecord, which the fold has checked
    for entry in entries:
        if entry["kind"] == "phase.finished" and entry["data"]["phase"] == "diagnostics":
            phases[entry["data"]["round"]] = entry["data"]
    sections = {}
    for round_, finished in phases.items():
        values = recorded_values(run, finished, ExperimentValues, missing)
        rows = [_row(record) for record in values.get("experiments") or ()]
        if rows:
            sections[round_] = ExperimentSection(round_, rows, _plot(rows, target, metric, f"experiments/{round_}"))
    return sections


def _row(record: ArmsRecord) -> ArmsRow:
    return ArmsRow(
        change=record["change"],
        causes=record.get("causes") or (),
        control=_number(record.get("control")),
        observed=_number(record.get("observed")),
        verdict=record["verdict"],
        seeds=record.get("seeds", 0),
        steps=record.get("steps", 0),
        why=record.get("why", ""),
        expected=record.get("expected", ""),
    )


def _number(value: float | None) -> float:
    return float(value) if isinstance(value, int | float | str) else math.nan


def _plot(rows: Sequence[ArmsRow], target: float | None, metric: str, salt: str) -> Markup:
    """Return an arrow per experiment from the score without the change to that with it; empty without two scores."""
    drawn = [row for row in rows if math.isfinite(row.control) and math.isfinite(row.observed)]
    if not drawn:
        return NO_DRAWING

    def paint(canvas: Canvas) -> None:
        axes, ends = canvas.axes, [end for row in drawn for end in (row.control, row.observed)]
        canvas.rows([row.change for row in drawn], ends, marked_target(target))
        for at, row in enumerate(drawn):
            colour = COLOURS.get(row.verdict, GREY)
            axes.plot([row.control, row.observed], [at, at], color=colour, linewidth=2.4, zorder=2)
            (before,) = axes.plot([row.control], [at], "o", color=GREY, markersize=6, zorder=3)
            (after,) = axes.plot([row.observed], [at], "D", color=colour, markersize=7, zorder=4)
            canvas.hover(before, f"unchanged: {metric} {number(row.control)}")
            canvas.hover(after, f"{row.change}: {metric} {number(row.observed)}, {row.verdict}")
            canvas.note(at, 1, "right", number(row.observed), colour)

    label = f"{metric} without and with the change of each experiment"
    return drawing(paint, label, salt, rows_height(len(drawn)), ROW_MARGINS)
