"""What the score of the candidate is compared with, for the report: each measurement only where the evidence has it.

The candidate is the baseline, or the model that a later round adopted. What was measured of the baseline alone, such as
its cross-validation, is then labelled as the baseline's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from pipeline.reporting.recorded import recorded_values
from pipeline.reporting.tables import number
from pipeline.results import compare_with_score
from pipeline.run_store.ledger import Entry
from pipeline.run_store.records import PhaseRecord, ScoreRecord
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

CLASS_ROWS = 40  # most rows of the table of classes; those of the lowest recall are kept

Figure = float | str | None  # a number of the evidence; NaN is stored as the string "nan"


class BaselineModelRecord(TypedDict):
    """A baseline model in the evidence, or why there is none."""

    name: str
    metric: NotRequired[str]
    value: NotRequired[float | None]
    low: NotRequired[float | None]
    high: NotRequired[float | None]
    how: NotRequired[str]
    seconds: NotRequired[float]
    not_applicable: NotRequired[str]


class FoldsRecord(TypedDict):
    """A cross-validation in the evidence."""

    metric: str
    parts: int
    mean: float | None
    std: float | None
    values: list[float | None]
    seconds: NotRequired[float]


class NotApplicableRecord(TypedDict):
    not_applicable: str


ClassRecord = TypedDict(
    "ClassRecord",
    {"class": Any, "support": int, "precision": float, "recall": float, "recall_low": float, "recall_high": float,
     "f1": float},
)  # fmt: skip


class PairRecord(TypedDict):
    """Two classes of which one was often predicted as the other."""

    true: Any
    predicted: Any
    count: int
    share: float


class TrivialRecord(TypedDict):
    value: float
    how: str


class WarningRecord(TypedDict):
    """A warning that a library raised during the training."""

    step: int | None
    category: str
    message: str
    where: str
    count: int


class MeasuredValues(TypedDict, total=False):
    """The values of the evidence that the report shows."""

    score: ScoreRecord | None
    trivial_baseline: TrivialRecord | None
    baseline_models: list[BaselineModelRecord] | None
    cross_validation: FoldsRecord | NotApplicableRecord | None
    per_class: list[ClassRecord] | None
    worst_pairs: list[PairRecord] | None
    warnings: list[WarningRecord] | None


@dataclass(frozen=True)
class ScoreRow:
    """The score of a trained model on the validation split, and which model that is."""

    name: str
    metric: str
    value: Figure
    interval: str
    n: int
    bounds: tuple[float, float] = (math.nan, math.nan)


@dataclass(frozen=True)
class BaselineModelRow:
    """The score of a baseline model; `rank` says whether it is better than the trained one, or as good."""

    name: str
    metric: str | None
    value: Figure
    interval: str
    how: str
    seconds: float
    not_applicable: str
    rank: str
    bounds: tuple[float, float] = (math.nan, math.nan)


@dataclass(frozen=True)
class ClassRow:
    """The scores of one class, None where they are undefined; `interval` belongs to the recall."""

    name: str
    support: int
    precision: Figure
    recall: Figure
    interval: str
    f1: Figure


@dataclass(frozen=True)
class ClassTable:
    """The results per class of one model; `left_out` counts the classes of higher recall that are not shown."""

    rows: Sequence[ClassRow]
    left_out: int
    worst_pairs: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Measures:
    """The measurements; None or empty where one was not taken.

    `score` and `per_class` are those of the candidate. Where a later round adopted it, `before` and `per_class_before`
    are those of the baseline.
    """

    score: ScoreRow | None
    before: ScoreRow | None
    trivial_baseline: Mapping[str, Any] | None
    metric: str | None
    baseline_models: Sequence[BaselineModelRow]
    cross_validation: Mapping[str, Any] | None
    per_class: ClassTable
    per_class_before: ClassTable
    warnings: Sequence[Mapping[str, Any]]

    @property
    def fixed(self) -> bool:
        """Whether the candidate is not the baseline, so that the baseline's own measurements need a label."""
        return self.before is not None


def measures(run: Run, state: RunState, entries: Sequence[Entry], missing: list[str]) -> Measures:
    """Return what the evidence holds; evidence that is not as recorded is added to `missing` instead."""
    values = recorded_values(run, state.finished.get("baseline"), MeasuredValues, missing)
    score, folds = values.get("score"), values.get("cross_validation")
    adopted = _adopting_phase(state, entries)
    fixed_values = recorded_values(run, adopted, MeasuredValues, missing)
    before = _score_row("the baseline, before the fix", score) or NO_SCORE if adopted else None
    if adopted:
        score = state.score
    name = f"the candidate (fixed in round {adopted['round']})" if adopted else "the trained model"
    models = [_baseline_model_row(model, score) for model in values.get("baseline_models") or ()]
    return Measures(
        score=_score_row(name, score),
        before=before,
        trivial_baseline=values.get("trivial_baseline"),
        metric=score["metric"] if score else next((row.metric for row in models if row.metric), None),
        baseline_models=models,
        cross_validation={"not_applicable": "", "seconds": 0.0, **folds} if folds else None,
        per_class=_class_table(fixed_values if adopted else values),
        per_class_before=_class_table(values if adopted else {}),
        warnings=values.get("warnings") or (),
    )


def _adopting_phase(state: RunState, entries: Sequence[Entry]) -> PhaseRecord | None:
    """Return the record of the optimization that adopted the candidate; None if the candidate is the baseline."""
    candidate = state.candidate
    if candidate is None or candidate.get("phase") != "optimization":
        return None
    finished = [e for e in entries if e["kind"] == "phase.finished" and e["seq"] < candidate["seq"]]
    records: list[Any] = [{**e["data"], "seq": e["seq"]} for e in finished if e["data"]["phase"] == "optimization"]
    return records[-1] if records else None


def _score_row(name: str, score: Mapping[str, Any] | None) -> ScoreRow | None:
    if not score:
        return None
    return ScoreRow(name, score["metric"], score["value"], _interval(score), score["n"], _bounds(score))


def _class_table(values: Mapping[str, Any]) -> ClassTable:
    classes = _lowest_recall_first([_class_row(row) for row in values.get("per_class") or ()])
    return ClassTable(classes[:CLASS_ROWS], len(classes[CLASS_ROWS:]), values.get("worst_pairs") or ())


NO_SCORE = ScoreRow("the baseline, before the fix", "", None, "", 0)  # its training became non-finite


def _baseline_model_row(model: Mapping[str, Any], score: Mapping[str, Any] | None) -> BaselineModelRow:
    return BaselineModelRow(
        name=model["name"],
        metric=model.get("metric"),
        value=model.get("value"),
        interval=_interval(model),
        how=model.get("how", ""),
        seconds=model.get("seconds", 0.0),
        not_applicable=model.get("not_applicable", ""),
        rank=_compare(model.get("value"), score),
        bounds=_bounds(model),
    )


def _class_row(row: Mapping[str, Any]) -> ClassRow:
    precision, recall, f1 = (None if row[key] == "nan" else row[key] for key in ("precision", "recall", "f1"))
    interval = _interval({end: row[f"recall_{end}"] for end in ("low", "high")})
    return ClassRow(row["class"], row["support"], precision, recall, interval, f1)


def _lowest_recall_first(rows: Sequence[ClassRow]) -> Sequence[ClassRow]:
    """Return the rows as they are where all of them fit; else by recall, classes without rows last."""
    return rows if len(rows) <= CLASS_ROWS else sorted(rows, key=lambda row: _as_float(row.recall, math.inf))


def _as_float(value: Figure, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) else otherwise


def _compare(value: Figure, score: Mapping[str, Any] | None) -> str:
    """Return `better` for a baseline model ahead of the trained one's interval, `as good` for one in it, else ""."""
    rank = compare_with_score(value, score) if score is not None and value is not None else None
    return rank if rank in ("better", "as good") else ""


def _bounds(estimate: Mapping[str, Any]) -> tuple[float, float]:
    """Return the ends of the 95 % interval, NaN without one."""
    low, high = (_as_float(estimate.get(end), math.nan) for end in ("low", "high"))
    return low, high


def _interval(estimate: Mapping[str, Any]) -> str:
    """Return `0.94 to 0.98` for an estimate with `low` and `high`, an empty string for one without."""
    low, high = _bounds(estimate)
    return "" if math.isnan(low) or math.isnan(high) else f"{number(low)} to {number(high)}"
