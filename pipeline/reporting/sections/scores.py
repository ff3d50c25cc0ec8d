"""The score of the model beside those of simple and trivial ones, as a picture of intervals on one axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.reporting.canvas import (
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    ROW_MARGINS,
    Canvas,
    Marked,
    drawing,
    rows_height,
)
from pipeline.reporting.measures import BaselineModelRow, Measures, ScoreRow
from pipeline.reporting.tables import in_words, number
from pipeline.run_store.records import ScoreRecord

TONES = {"model": BLUE, "test": ORANGE, "simple": PURPLE, "trivial": GREY, "plain": BLUE}


@dataclass(frozen=True)
class IntervalRow:
    """One score; `low` and `high` are NaN without an interval. `kind` chooses the colour."""

    name: str
    value: float
    low: float = math.nan
    high: float = math.nan
    kind: str = "plain"
    note: str = ""

    @property
    def has_interval(self) -> bool:
        return not (math.isnan(self.low) or math.isnan(self.high))

    @property
    def title(self) -> str:
        interval = f", 95 % interval {number(self.low)} to {number(self.high)}" if self.has_interval else ""
        return f"{self.name}: {number(self.value)}{interval}{f', {self.note}' if self.note else ''}"


def score_rows(measured: Measures, test: Mapping[str, Any] | ScoreRecord | None) -> list[IntervalRow]:
    """Return the scores that belong on one axis: the model on test and validation, simple models, a constant."""
    rows = [_of_test(test)] if test else []
    rows += [_of_score(measured.score)] if measured.score else []
    rows += [_of_score(measured.before, "plain")] if measured.before else []
    rows += [_of_model(model) for model in measured.baseline_models if not model.not_applicable]
    if measured.trivial_baseline:
        trivial = measured.trivial_baseline
        rows.append(IntervalRow("trivial prediction", _number(trivial["value"]), kind="trivial", note=trivial["how"]))
    return [row for row in rows if math.isfinite(row.value)]


def _of_test(score: Mapping[str, Any] | ScoreRecord) -> IntervalRow:
    low, high = _number(score["low"]), _number(score["high"])
    return IntervalRow("the model, sealed test rows", _number(score["value"]), low, high, "test", f"n = {score['n']}")


def _of_score(row: ScoreRow, kind: str = "model") -> IntervalRow:
    low, high = row.bounds
    return IntervalRow(f"{row.name}, validation", _number(row.value), low, high, kind, f"n = {row.n}" if row.n else "")


def _of_model(model: BaselineModelRow) -> IntervalRow:
    low, high = model.bounds
    return IntervalRow(in_words(model.name), _number(model.value), low, high, "simple", model.how)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float | str) else math.nan


def interval_plot(rows: Sequence[IntervalRow], label: str, marked: Marked | None, salt: str) -> Markup:
    """Return the rows from top to bottom as a drawing: a dot with its interval, and a value that has a line."""

    def paint(canvas: Canvas) -> None:
        canvas.rows([row.name for row in rows], [end for row in rows for end in (row.value, row.low, row.high)], marked)
        for at, row in enumerate(rows):
            colour = TONES[row.kind]
            if row.has_interval:
                band = [row.low, row.high]
                canvas.axes.plot(band, [at, at], color=colour, linewidth=5, alpha=0.35, solid_capstyle="round")
            (dot,) = canvas.axes.plot([row.value], [at], "o", color=colour, markersize=8, zorder=4)
            canvas.hover(dot, row.title)
            canvas.note(at, 1, "right", number(row.value), colour)

    return drawing(paint, label, salt, rows_height(len(rows)), ROW_MARGINS)
