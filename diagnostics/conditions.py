"""Conditions of a playbook: a bound on a signal, evaluated on one history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from diagnostics.signals import SIGNALS, WORDS, Curve, NotMeasurable, curve_limits, description
from pipeline.history import History
from pipeline.repair.diagnosis_record import ObservationRecord, TimeRecord

IndexedCurve = tuple[NDArray[np.int64], Curve]

BROKEN = "broken"  # the curve of updates that were withheld because a value was not finite
PREFIXES = 50  # number of prefixes of the run that are tried first to find since when a condition holds


@dataclass(frozen=True)
class Condition:
    """A bound on a signal: `signal` is computed on the last share `last` of the curves named `of`."""

    signal: str
    of: tuple[str, ...]
    last: float = 1.0
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Return whether a value satisfies the bound. NaN never does."""
        over = self.above is None or value > self.above
        under = self.below is None or value < self.below
        return over and under and not math.isnan(value)

    @property
    def kind(self) -> tuple[object, ...]:
        """What conditions with another bound in the same direction have in common."""
        return self.signal, self.of, self.last, self.above is None, self.below is None

    def is_stricter(self, other: Condition) -> bool:
        """Whether this bound implies another one of its kind."""
        above = self.above is None or other.above is None or self.above >= other.above
        return above and (self.below is None or other.below is None or self.below <= other.below)

    @property
    def bound(self) -> str:
        bounds = (("above", self.above), ("below", self.below))
        return " and ".join(f"{direction} {limit:g}" for direction, limit in bounds if limit is not None)

    def __str__(self) -> str:
        window = "" if self.last == 1 else f", last {self.last:g}"
        return f"{self.signal} of {', '.join(self.of)}{window}"


@dataclass(frozen=True)
class Observation:
    """The value of a condition's signal on one history. `why` says what was missing where the value is NaN."""

    condition: Condition
    value: float
    of: tuple[str, ...] = ()
    since: TimeRecord | None = None
    why: str = ""

    @property
    def measured(self) -> bool:
        return not math.isnan(self.value)

    @property
    def holds(self) -> bool:
        return self.condition.holds(self.value)

    def sentence(self) -> str:
        """Return the observation as one line of text: signal with its curves, value, window, bound and time."""
        step = self.since["step"] if self.since else None
        since = f", since step {step}" if step is not None else ""
        return f"{self._measurement()} ({self.condition.bound}{since})"

    def denial(self) -> str:
        """Return as one line of text what speaks against a cause: a bound that does not hold, or that should not."""
        return f"{self._measurement()}, {'' if self.holds else 'not '}{self.condition.bound}"

    def _measurement(self) -> str:
        window = "" if self.condition.last == 1 else f", over the last {self.condition.last:.0%} of the run"
        signal = description(self.condition.signal, [name if name in WORDS else readable(name) for name in self.of])
        return f"{signal} is {self.value:.3g}{window}"

    def to_json(self) -> ObservationRecord:
        """Return the observation as diagnosis.json stores it."""
        window = "" if self.condition.last == 1 else f", last={self.condition.last:g}"
        return {
            "signal": f"{self.condition.signal}({', '.join(self.of)}{window})",
            "value": self.value,
            "bound": self.condition.bound,
            "since": self.since or {"step": None, "epoch": None},
        }


@dataclass(frozen=True)
class HistoryView:
    """A history as conditions read it: a name is a column, else a fact; `<split>/metric` is the metric of the task."""

    history: History
    facts: Mapping[str, float]
    metric: str | None = None

    def resolve(self, name: str) -> str:
        """Return the column that `val/metric` or `train/metric` stands for; return any other name unchanged."""
        split, _, metric = name.partition("/")
        if metric != "metric":
            return name
        if self.metric and f"{split}/{self.metric}" in self.history.names():
            return f"{split}/{self.metric}"
        # Logs do not say which metric counts. One validation metric is unambiguous; of several, none is chosen.
        scores = [n for n in self.history.names() if n.startswith("val/") and n != "val/loss"]
        return f"{split}/{scores[0].removeprefix('val/')}" if len(scores) == 1 else name

    def curve(self, name: str) -> IndexedCurve:
        """Return index and values of a column, or of a fact as one point; both are empty if neither was measured.

        `broken` has a NaN for each step whose update was withheld, unless a column has a non-finite value of that step.
        """
        if name == BROKEN:
            steps = np.array(self._withheld_steps(), np.int64)
            return steps, np.full(len(steps), math.nan)
        index, values = self.history.series(name)
        if not len(values) and name in self.facts:
            return np.zeros(1, np.int64), np.array([self.facts[name]], np.float64)
        return index, values.astype(np.float64)

    def _withheld_steps(self) -> list[int]:
        steps = sorted({event["step"] for event in self.history.events if event["kind"] == "nonfinite"})
        columns = [self.history.series(name) for name in self.history.step] if steps else []
        recorded = {step for index, values in columns for step in index[~np.isfinite(values)].tolist()}
        return [step for step in steps if step not in recorded]

    def positions(self, name: str) -> NDArray[np.float64]:
        """Return the position of each point of a curve in the run, in steps where the history tells, else in epochs.

        Epochs of a log that does not say how long they are get equal shares of its steps. A fact is at minus infinity.
        """
        index = self.curve(name)[0].astype(np.float64)
        last_step = self.last_step
        match self._table(name):
            case "step":
                return index
            case "epoch" if self._steps_per_epoch:
                return np.minimum(index * self._steps_per_epoch, math.inf if last_step is None else last_step)
            case "epoch" if last_step is not None:
                return np.arange(1, len(index) + 1) / len(index) * last_step
            case "epoch":
                return index
        return np.full(len(index), -math.inf)

    def _table(self, name: str) -> str | None:
        return "step" if name == BROKEN else self.history.table(name)

    @property
    def last_step(self) -> int | None:
        """The last step of any column; None where the history has no steps."""
        return max((column.index[-1] for column in self.history.step.values() if column.index), default=None)

    @property
    def _steps_per_epoch(self) -> int:
        """The optimizer steps of an epoch as the engine records them, which counts steps and epochs from 1; else 0."""
        steps = self.facts.get("steps_per_epoch", 0)
        return int(steps) if math.isfinite(steps) and abs(steps) < 2**53 else 0

    def time(self, name: str, index: int) -> TimeRecord:
        """Return an index of a column as step and epoch; None where the history does not say."""
        per_epoch = self._steps_per_epoch
        match self._table(name):
            case "step":
                return {"step": index, "epoch": math.ceil(index / per_epoch) if per_epoch else None}
            case "epoch":
                end_of_epoch = index * per_epoch
                step = end_of_epoch if self.last_step is None else min(end_of_epoch, self.last_step)
                return {"step": step if per_epoch else None, "epoch": index}
        return {"step": None, "epoch": None}


def evaluate_condition(condition: Condition, view: HistoryView) -> Observation:
    """Return the value of the condition's signal on a history, and since when its bound holds.

    A name with `*` matches several columns; the observation is that of the column furthest in the direction of the
    bound. Optional curves that were not recorded are skipped; without a required one the value is NaN.
    """
    pattern = view.resolve(condition.of[0])
    matches = [n for n in view.history.names() if fnmatchcase(n, pattern)] if "*" in pattern else [pattern]
    if not matches:
        return Observation(condition, math.nan, (pattern,), why=f"no column {pattern} was recorded")
    others = tuple(map(view.resolve, condition.of[1:]))
    observations = [_evaluate_on_columns(condition, view, (name, *others)) for name in matches]
    measured = [observation for observation in observations if observation.measured]
    if not measured:
        return observations[0]
    # One bad layer is enough for a fault, and an average over all layers would hide it.
    furthest = max if condition.above is not None else min
    return furthest(measured, key=lambda observation: observation.value)


def _evaluate_on_columns(condition: Condition, view: HistoryView, names: tuple[str, ...]) -> Observation:
    required, _ = curve_limits(condition.signal)
    curves = {name: view.curve(name) for name in names}
    recorded = tuple(name for name in names if len(curves[name][1]))
    missing = [name for name in names[:required] if name not in recorded] or ([] if recorded else list(names))
    if missing:
        return Observation(condition, math.nan, names, why=_format_missing(missing))
    values = [curves[name][1] for name in recorded]
    value = _signal_value(condition, values)
    if math.isnan(value):
        return Observation(condition, value, recorded, why=_format_unmeasurable(condition, recorded, value))
    since = _since_holding(condition, view, curves) if condition.holds(value) else None
    return Observation(condition, float(value), recorded, since)


READABLE = {  # for facts whose names users do not log
    "trivial": "trivial-baseline score",
    "broken": "withheld updates",
    "rerun_differs": "repetition of the training",
    "score_unmoved": "curve of a score",
    "score_lost": "curve of a score",
    "score_ratio": "train and validation curve of a score",
    "score_follows_loss": "curves of a validation score and its loss",
    "accuracy_under_floor": "curves of the validation accuracy and its loss",
    "loss_burst": "finite losses from the first step on",
    "loss_left": "finite losses without a score of train rows",
    "cross_entropy": "known loss function",
    "score_spread": "other runs with the same settings",
    "resume_break": "resume",
    "resume_repeat_change": "steps that a resume repeated",
    "time/data_wait": "waiting times for data",
    "reference_score": "score of another model",
}


def readable(name: str) -> str:
    """Return the words for a fact whose name users do not log; any other name is returned unchanged."""
    return READABLE.get(name, name)


def _format_missing(names: Sequence[str]) -> str:
    """Return which measurements the log does not have, for example `the log has no target`."""
    return "the log has " + " and ".join(f"no {readable(name)}" for name in names if name != BROKEN)


def _format_unmeasurable(condition: Condition, names: Sequence[str], value: float) -> str:
    """Return why the signal has no value on curves that were recorded, in the words of the signal."""
    why = value.why if isinstance(value, NotMeasurable) else f"the values of {{0}} do not define {condition.signal}"
    window = "" if condition.last == 1 else f" (in the last {condition.last:.0%} of the run)"
    return why.format(*map(readable, names)) + window


def _signal_value(condition: Condition, curves: Sequence[Curve]) -> float:
    """Compute the signal on the last share `condition.last` of every curve."""
    windows = [y[-max(1, math.ceil(condition.last * len(y))) :] for y in curves]
    with np.errstate(all="ignore"):
        return SIGNALS[condition.signal](*windows)


def _since_holding(condition: Condition, view: HistoryView, curves: Mapping[str, IndexedCurve]) -> TimeRecord:
    """Return the time from which on the condition holds without interruption.

    The search goes back from the end in steps of 1/50 of the run, then bisects the last step. Every prefix costs one
    evaluation of the signal, so testing each point of a long run would be slow.
    """
    recorded = {name: curve for name, curve in curves.items() if len(curve[1])}
    positions = {name: view.positions(name) for name in recorded}
    # Facts are known before the first step, so only curves have a time.
    merged = np.concatenate([p[np.isfinite(p)] for p in positions.values()])
    if not len(merged):
        return {"step": None, "epoch": None}
    merged.sort(kind="stable")  # merges curves that are sorted already, which np.unique sorts from scratch
    timeline = merged[np.append(True, merged[1:] != merged[:-1])]

    def holds(points: int) -> bool:
        now = timeline[points - 1]
        prefixes = [y[: np.searchsorted(positions[name], now, "right")] for name, (_, y) in recorded.items()]
        measured = [y for y in prefixes if len(y)]
        required, _ = curve_limits(condition.signal)
        return all(map(len, prefixes[:required])) and condition.holds(_signal_value(condition, measured))

    stride = max(1, len(timeline) // PREFIXES)
    holding, failing = len(timeline), len(timeline) - stride
    while failing > 0 and holds(failing):
        holding, failing = failing, failing - stride
    failing = max(0, failing)
    while holding - failing > 1:
        middle = (holding + failing) // 2
        holding, failing = (middle, failing) if holds(middle) else (holding, middle)
    since = timeline[holding - 1]
    dated = next(name for name, position in positions.items() if since in position)
    return view.time(dated, int(recorded[dated][0][np.searchsorted(positions[dated], since)]))
