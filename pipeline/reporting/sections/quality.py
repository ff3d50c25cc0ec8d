"""How the model errs and holds up, measured by finalization: confusion, slices, calibration, robustness, latency."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from markupsafe import Markup

from pipeline.json_types import mismatch
from pipeline.reporting.canvas import Marked
from pipeline.reporting.recorded import recorded_values
from pipeline.reporting.sections import quality_charts as charts
from pipeline.reporting.sections.scores import IntervalRow, interval_plot
from pipeline.reporting.tables import in_words, number
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

SLICE_ROWS = 12  # slices of the lowest score are shown, as many as this


class SliceRecord(TypedDict):
    name: str
    of: str
    rows: int
    value: float
    low: float
    high: float


class SlicesRecord(TypedDict):
    """The score of each slice of the test rows, and of all of them."""

    metric: str
    greater_is_better: bool
    value: float
    scores: list[SliceRecord]
    recall: NotRequired[float | None]


class CalibrationRecord(TypedDict):
    """Whether probabilities, or intervals of values, are calibrated; None where this does not apply."""

    rows: int
    error: float | None
    error_before: float | None
    p_value: float | None
    brier_score: float | None
    temperature: float | None
    coverage: float | None
    coverage_low: float | None
    coverage_high: float | None
    nominal_coverage: float | None
    half_width: float | None


class CorruptionRow(TypedDict):
    corruption: str
    severity: int
    value: float


class CorruptionRecord(TypedDict):
    """The score on corrupted validation rows by kind and severity."""

    metric: str
    clean: float
    trivial: float
    scores: list[CorruptionRow]


class AttackRow(TypedDict):
    radius: float
    noise: float
    fgsm: float
    pgd: float


class AdversarialRecord(TypedDict):
    """The score on attacked rows by the radius of the attack."""

    metric: str
    unit: str
    clean: float
    curve: list[AttackRow]


class Quantile(TypedDict):
    value: float | None


class TimingRecord(TypedDict):
    """Milliseconds per call."""

    p50: Quantile
    p95: Quantile
    p99: Quantile


class LatencyRecord(TypedDict):
    """Each format's time for one row, and for a batch where it was measured."""

    formats: dict[str, dict[str, TimingRecord]]


class QualityValues(TypedDict, total=False):
    """The evidence of finalization, of which the page checks each part on its own."""

    slices: Any
    calibration: Any
    corruption: Any
    adversarial: Any
    within_limits: Any


@dataclass(frozen=True)
class QualityPanel:
    """One picture with what it says in a sentence and in figures; `name` is the id of its heading."""

    name: str
    title: str
    summary: str
    svg: Markup
    figures: Sequence[tuple[str, str]] = ()
    key: Sequence[tuple[str, str]] = ()  # of the curves: the class of the key, and the name


def quality_panels(run: Run, state: RunState, limits: Mapping[str, Any], missing: list[str]) -> list[QualityPanel]:
    """Return a panel for each measurement of finalization that is on record for the present candidate."""
    finished = None if state.stale("finalization") else state.finished.get("finalization")
    values = recorded_values(run, finished, QualityValues, missing)
    panels = [
        _slices(_part(values, "slices", SlicesRecord)),
        _calibration(_part(values, "calibration", CalibrationRecord)),
        _corruption(_part(values, "corruption", CorruptionRecord)),
        _adversarial(_part(values, "adversarial", AdversarialRecord)),
        _latency(_part(values, "within_limits", LatencyRecord), limits),
    ]
    return [panel for panel in panels if panel is not None]


def _part(values: Mapping[str, Any], name: str, kind: type) -> Mapping[str, Any] | None:
    """Return one measurement; None where it was not taken, which its item of the gate says with the reason."""
    part = values.get(name)
    return part if isinstance(part, Mapping) and mismatch(part, kind, name) is None else None


def _slices(record: Mapping[str, Any] | None) -> QualityPanel | None:
    if record is None or not record["scores"]:
        return None
    rows = [
        IntervalRow(f"{in_words(s['of'])} {s['name']}", float(s["value"]), float(s["low"]), float(s["high"]),
                    note=f"{s['rows']} rows")
        for s in record["scores"] if math.isfinite(float(s["value"]))
    ]  # fmt: skip
    worst_first = sorted(rows, key=lambda row: row.value if record["greater_is_better"] else -row.value)
    shown = worst_first[:SLICE_ROWS]
    if not shown:
        return None
    overall = record.get("recall") if record.get("recall") is not None else record["value"]
    marked = Marked("all rows", float(overall or math.nan))
    left_out = (
        f" The {len(worst_first) - len(shown)} better ones are left out." if len(worst_first) > len(shown) else ""
    )
    summary = (
        f"Worst first, with 95 % intervals; the line is the score of all test rows, {number(marked.value)}.{left_out}"
    )
    return QualityPanel("slices", "Slices", summary, interval_plot(shown, "score of each slice", marked, "slices"))


def _calibration(record: Mapping[str, Any] | None) -> QualityPanel | None:
    if record is None:
        return None
    if record["coverage"] is not None:
        value, low, high = (_number(record[f"coverage{end}"]) for end in ("", "_low", "_high"))
        row = IntervalRow("coverage of the interval", value, low, high)
        nominal = _number(record["nominal_coverage"])
        svg = interval_plot([row], "coverage", Marked("intended", nominal), "calibration")
        figures = [("half width of the interval", number(record["half_width"])), ("rows", str(record["rows"]))]
        caption = (
            f"The interval holds {number(row.value)} of the test values; the line is the intended {number(nominal)}."
        )
        return QualityPanel("calibration", "Calibration", caption, svg, figures)
    if record["error"] is None:
        return None
    rows = [IntervalRow("as released", _number(record["error"]), kind="model")]
    if record["error_before"] is not None:
        rows.append(IntervalRow("at temperature 1", _number(record["error_before"]), kind="simple"))
    names = (("p_value", "p of a calibrated model"), ("brier_score", "Brier score"), ("temperature", "temperature"))
    figures = [(label, number(float(record[key]))) for key, label in names if record[key] is not None]
    caption = f"Expected calibration error on {record['rows']} test rows: 0 is calibrated."
    return QualityPanel(
        "calibration",
        "Calibration",
        caption,
        interval_plot(rows, "calibration error", Marked("calibrated", 0.0), "calibration"),
        figures,
    )


def _corruption(record: Mapping[str, Any] | None) -> QualityPanel | None:
    if record is None or not record["scores"]:
        return None
    curves: dict[str, list[tuple[float, float]]] = {}
    for score in record["scores"]:
        start = [(0.0, float(record["clean"]))]
        curves.setdefault(in_words(score["corruption"]), start).append(
            (float(score["severity"]), float(score["value"]))
        )
    svg = charts.curves(curves, "severity", float(record["trivial"]), "corruption")
    worst = min((points[-1][1], name) for name, points in curves.items())
    caption = f"{record['metric'].capitalize()} over the severity of a corruption of validation rows; 0 is clean, "
    caption += f"the dotted line a constant prediction. At the end, {worst[1]} leaves {number(worst[0])}."
    return QualityPanel("robustness", "Robustness to corruption", caption, svg, key=charts.key(curves))


def _adversarial(record: Mapping[str, Any] | None) -> QualityPanel | None:
    if record is None or not record["curve"]:
        return None
    worst = max(record["curve"], key=lambda attack: float(attack["radius"]))
    rows = [IntervalRow("clean rows", float(record["clean"]), kind="model")]
    names = {"noise": "random noise of the same size", "fgsm": "FGSM", "pgd": "PGD"}
    rows += [IntervalRow(label, float(worst[key]), kind="simple") for key, label in names.items()]  # type: ignore[literal-required]
    radius = f"{number(float(worst['radius']))} ({record['unit']})"
    caption = f"{record['metric'].capitalize()} on attacked validation rows, at radius {radius}."
    svg = interval_plot(rows, "score under attack", None, "attack")
    return QualityPanel("adversarial", "Adversarial robustness", caption, svg)


def _latency(record: Mapping[str, Any] | None, limits: Mapping[str, Any]) -> QualityPanel | None:
    timings = {name: kinds["one"] for name, kinds in (record or {"formats": {}})["formats"].items() if "one" in kinds}
    points = {name: [_number(timing[p]["value"]) for p in ("p50", "p95", "p99")] for name, timing in timings.items()}  # type: ignore[literal-required]
    points = {name: values for name, values in points.items() if all(v > 0 and math.isfinite(v) for v in values)}
    if not points:
        return None
    limit = limits.get("latency_ms_p99")
    bound = float(limit) if isinstance(limit, int | float) and limit > 0 else None
    caption = "Milliseconds for one row, from the median to the 99th percentile, on a logarithmic axis"
    caption += f"; the limit is {number(bound)} ms." if bound else "."
    return QualityPanel("latency", "Latency", caption, charts.latency(points, bound, "latency"))


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float | str) else math.nan
