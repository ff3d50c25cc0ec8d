"""Conditions of a playbook: a bound on a signal, evaluated on one history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from diagnostics.schema import ObservationRecord, TimeRecord
from diagnostics.signals import MIN_POINTS, SIGNALS, Curve, curve_limits, description
from pipeline.history import History
from pipeline.results import counted

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
        window = "" if self.condition.last == 1 else f", over the last {self.condition.last:.0%} of the run"
        step = self.since["step"] if self.since else None
        since = f", since step {step}" if step is not None else ""
        signal = description(self.condition.signal, self.of)
        return f"{signal} is {self.value:.3g}{window} ({self.condition.bound}{since})"

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

    def curve(self, name: str) -> tuple[NDArray[np.int64], Curve]:
        """Return index and values of a column, or of a fact as one point; both are empty if neither was measured."""
        index, values = self.history.series(name)
        if not len(values) and name in self.facts:
            return np.zeros(1, np.int64), np.array([self.facts[name]], np.float64)
        return index, values.astype(np.float64)

    def time(self, name: str, index: int) -> TimeRecord:
        """Return an index of a column as step and epoch; None where the history does not say."""
        per_epoch = self.facts.get("steps_per_epoch", 0)
        match self.history.table(name):
            case "step":
                return {"step": index, "epoch": int(index // per_epoch) if per_epoch >= 1 else None}
            case "epoch":
                return {"step": int((index + 1) * per_epoch) - 1 if per_epoch >= 1 else None, "epoch": index}
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
    value = _signal_value(condition, values, 1.0)
    if math.isnan(value):
        return Observation(condition, value, recorded, why=_format_unmeasurable(condition, recorded, values))
    since = None
    if condition.holds(value):
        share = _share_since_holding(condition, values)
        index = curves[recorded[0]][0]
        since = view.time(recorded[0], int(index[max(1, math.ceil(share * len(index))) - 1]))
    return Observation(condition, value, recorded, since)


def _format_missing(names: Sequence[str]) -> str:
    """Return which measurements the log does not have, for example `the log has no target`."""
    readable = {"trivial": "trivial-baseline score"}
    return "the log has " + " and ".join(f"no {readable.get(name, name)}" for name in names)


def _format_unmeasurable(condition: Condition, names: Sequence[str], curves: Sequence[Curve]) -> str:
    """Return why the signal has no value on curves that were recorded: non-finite values, too few points, or others."""
    windows = [y[-max(1, math.ceil(condition.last * len(y))) :] for y in curves]
    for name, window in zip(names, windows, strict=True):
        if not np.isfinite(window).all():
            return f"{name} has values that are NaN or infinite"
    if len(windows[0]) < MIN_POINTS.get(condition.signal, 1):
        return f"{names[0]} is too short: {counted(len(windows[0]), 'point')}"
    return f"the values of {names[0]} do not define the signal"


def _signal_value(condition: Condition, curves: list[Curve], share: float) -> float:
    """Compute the signal as if only the first `share` of the run had happened; the window is the last part of that."""
    prefixes = [y[: max(1, math.ceil(share * len(y)))] for y in curves]
    windows = [y[-max(1, math.ceil(condition.last * len(y))) :] for y in prefixes]
    with np.errstate(all="ignore"):
        return float(SIGNALS[condition.signal](*windows))


def _share_since_holding(condition: Condition, curves: list[Curve]) -> float:
    """Return the smallest share of the run from which on the condition holds without interruption.

    The search goes back from the end in steps of 1/50 of the run, then bisects the last step. Every prefix costs one
    evaluation of the signal, so testing each point of a long run would be slow.
    """
    longest = max(len(y) for y in curves)
    stride = max(1, longest // PREFIXES)
    holding, failing = longest, longest
    while failing > 0 and condition.holds(_signal_value(condition, curves, failing / longest)):
        holding, failing = failing, failing - stride
    failing = max(0, failing)
    while holding - failing > 1:
        middle = (holding + failing) // 2
        if condition.holds(_signal_value(condition, curves, middle / longest)):
            holding = middle
        else:
            failing = middle
    return holding / longest
