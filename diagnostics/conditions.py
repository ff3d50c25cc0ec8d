"""A condition of a playbook, looked at in one history: what the signal is, whether the bound holds, and since when."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagnostics.signals import SIGNALS, Curve, curves_wanted, phrase
from pipeline.history import History

PREFIXES = 50  # looked at to find since when a condition holds


@dataclass(frozen=True)
class Condition:
    """A bound over a signal: `signal` of the curves `of`, over the last share `last` of them."""

    signal: str
    of: tuple[str, ...]
    last: float = 1.0
    above: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a value lies inside the bound; NaN never does."""
        over = self.above is None or value > self.above
        under = self.below is None or value < self.below
        return over and under and not math.isnan(value)

    @property
    def bound(self) -> str:
        parts = [f"{word} {x:g}" for word, x in (("above", self.above), ("below", self.below)) if x is not None]
        return " and ".join(parts)

    def __str__(self) -> str:
        window = "" if self.last == 1 else f", last {self.last:g}"
        return f"{self.signal} of {', '.join(self.of)}{window}"


@dataclass(frozen=True)
class Observation:
    """What was seen of a condition. `why` says what was missing where the value is NaN."""

    condition: Condition
    value: float
    of: tuple[str, ...] = ()
    since: Mapping[str, int | None] | None = None
    why: str = ""

    @property
    def measured(self) -> bool:
        return not math.isnan(self.value)

    @property
    def holds(self) -> bool:
        return self.condition.holds(self.value)

    def sentence(self) -> str:
        """The observation as people read it, with its value, bound and time."""
        window = "" if self.condition.last == 1 else f", over the last {self.condition.last:.0%} of the run"
        step = (self.since or {}).get("step")
        when = f", since step {step}" if step is not None else ""
        of = " against ".join(self.of) if len(self.of) == 2 else self.of[0]
        return f"{of}: {phrase(self.condition.signal)} is {self.value:.3g}{window} ({self.condition.bound}{when})"

    def to_dict(self) -> dict[str, Any]:
        since = self.since or {"step": None, "epoch": None}
        window = "" if self.condition.last == 1 else f", last={self.condition.last:g}"
        signal = f"{self.condition.signal}({', '.join(self.of)}{window})"
        return {"signal": signal, "value": self.value, "bound": self.condition.bound, "since": dict(since)}


@dataclass(frozen=True)
class View:
    """A history as conditions read it: columns, then facts; `<split>/metric` is the task's own metric."""

    history: History
    facts: Mapping[str, float]
    metric: str | None = None

    def resolve(self, name: str) -> str:
        """The column that is meant by `val/metric` or `train/metric`; any other name is itself."""
        split, _, metric = name.partition("/")
        if metric != "metric":
            return name
        if self.metric and f"{split}/{self.metric}" in self.history.names():
            return f"{split}/{self.metric}"
        scores = [n for n in self.history.names() if n.startswith("val/") and n != "val/loss"]
        return f"{split}/{scores[0].removeprefix('val/')}" if len(scores) == 1 else name

    def curve(self, name: str) -> tuple[NDArray[np.int64], Curve]:
        """Index and values of a column or, as one point, of a fact; empty when neither was measured."""
        index, values = self.history.series(name)
        if not len(values) and name in self.facts:
            return np.zeros(1, np.int64), np.array([self.facts[name]], np.float64)
        return index, values.astype(np.float64)

    def when(self, name: str, index: int) -> dict[str, int | None]:
        """An index of a column as step and epoch; the one that cannot be known is None."""
        per_epoch = self.facts.get("steps_per_epoch", 0)
        match self.history.table(name):
            case "step":
                return {"step": index, "epoch": int(index // per_epoch) if per_epoch >= 1 else None}
            case "epoch":
                return {"step": int((index + 1) * per_epoch) - 1 if per_epoch >= 1 else None, "epoch": index}
        return {"step": None, "epoch": None}


def observe(condition: Condition, view: View) -> Observation:
    """The signal's value and whether its bound holds.

    A name with `*` stands for every column that fits; the one furthest in the bound's direction is observed.
    Missing curves beyond those a signal needs are left out; a missing one that it needs makes it not measurable.
    """
    head = view.resolve(condition.of[0])
    heads = [n for n in view.history.names() if fnmatchcase(n, head)] if "*" in head else [head]
    if not heads:
        return Observation(condition, math.nan, (head,), why=f"no column {head} was recorded")
    found = [_observe(condition, view, (name, *map(view.resolve, condition.of[1:]))) for name in heads]
    measured = [o for o in found if o.measured]
    if not measured:
        return found[0]
    pick = max if condition.above is not None else min
    return pick(measured, key=lambda o: o.value)


def _observe(condition: Condition, view: View, of: tuple[str, ...]) -> Observation:
    least, _ = curves_wanted(condition.signal)
    curves = {name: view.curve(name) for name in of}
    known = tuple(name for name in of if len(curves[name][1]))
    missing = [name for name in of[:least] if name not in known] or ([] if known else list(of))
    if missing:
        return Observation(condition, math.nan, of, why=f"{' and '.join(missing)} not recorded")
    windows = [curves[name][1] for name in known]
    value = _value(condition, windows, 1.0)
    if math.isnan(value):
        return Observation(condition, value, known, why=f"{known[0]} is too short or not finite")
    since = None
    if condition.holds(value):
        share = _held_since(condition, windows)
        index = curves[known[0]][0]
        since = view.when(known[0], int(index[max(1, math.ceil(share * len(index))) - 1]))
    return Observation(condition, value, known, since)


def _value(condition: Condition, curves: list[Curve], share: float) -> float:
    """The signal over the first `share` of the run, of which the window is the last part."""
    seen = [y[: max(1, math.ceil(share * len(y)))] for y in curves]
    windows = [y[-max(1, math.ceil(condition.last * len(y))) :] for y in seen]
    with np.errstate(all="ignore"):
        return float(SIGNALS[condition.signal](*windows))


def _held_since(condition: Condition, curves: list[Curve]) -> float:
    """The share of the run from whose end on the condition has held without interruption.

    Looked for in steps of a fiftieth, then to the point by bisection.
    """
    longest = max(len(y) for y in curves)
    stride = max(1, longest // PREFIXES)
    holding, failing = longest, longest
    while failing > 0 and condition.holds(_value(condition, curves, failing / longest)):
        holding, failing = failing, failing - stride
    failing = max(0, failing)
    while holding - failing > 1:
        middle = (holding + failing) // 2
        if condition.holds(_value(condition, curves, middle / longest)):
            holding = middle
        else:
            failing = middle
    return holding / longest
