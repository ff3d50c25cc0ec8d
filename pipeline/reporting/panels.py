"""What a learning curve shows, as plain numbers: one panel per metric. No matplotlib, so that reading it is cheap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.history import History
from pipeline.repair.diagnosis_record import TimeRecord

Floats = NDArray[np.float64]
ReferenceKind = Literal["target", "trivial", "initial", "baseline"]

LOG_RATIO = 30.0  # a metric whose values differ by more than this factor has a logarithmic axis
SMOOTH_POINTS = 50  # a long training curve is reduced to this many means
BASELINE_MODEL = "baseline_model/"  # prefix of the facts with the score of a baseline model: `baseline_model/ridge`
DECIDES = "decides/"  # prefix of the fact that names the metric that decides: `decides/accuracy`


@dataclass(frozen=True)
class RunCurves:
    """The history of one run, and the times since which its symptoms have held."""

    name: str
    history: History
    onsets: tuple[TimeRecord, ...] = ()


@dataclass(frozen=True)
class Line:
    """One curve over epochs; `split` is train or val."""

    name: str
    split: str
    x: Floats
    y: Floats


@dataclass(frozen=True)
class Panel:
    """The curves of one metric.

    `references` are horizontal lines by name, `nonfinite` the epochs of the first NaN or infinite value of each curve,
    `best_epoch` the epoch whose weights were kept, None where it is unknown; `onsets` the epochs since which a symptom
    has held.
    """

    title: str
    lines: tuple[Line, ...]
    references: Mapping[str, float]
    nonfinite: tuple[float, ...]
    log: bool
    best_epoch: float | None = None
    onsets: tuple[float, ...] = ()
    symptoms: tuple[str, ...] = ()  # what holds from each onset on, in words; empty if it has no name
    unit: Literal["epoch", "step"] = "epoch"  # of x; a log without epochs is shown over steps
    broken: Mapping[str, float] = field(default_factory=dict)  # the first NaN of each split that has one


def reference_kind(name: str) -> ReferenceKind:
    """Return what a reference line stands for: target, trivial score, loss before the first step, or baseline model."""
    kinds: dict[str, ReferenceKind] = {"target": "target", "trivial": "trivial", "at init": "initial"}
    return kinds.get(name, "baseline")


def panels(history: History, onsets: Sequence[TimeRecord] = (), symptoms: Sequence[str] = ()) -> list[Panel]:
    """Return the panel of the loss, then one panel for every other validation metric; the deciding metric comes first.

    x counts completed epochs, so that loops that number epochs from 0 and from 1 give the same picture. NaN and
    infinite values are left out of the curves and listed in `nonfinite`. `onsets` are steps or epochs since which a
    symptom has held, and `symptoms` its name, for each of them.
    """
    metrics = [n.split("/", 1)[1] for n in history.names() if n.startswith("val/") and n != "val/loss"]
    facts = {name: value for name, value in history.facts.items() if np.isfinite(value)}
    references: dict[str, float] = {name: facts[name] for name in ("target", "trivial") if name in facts}
    models = sorted(name for name in facts if name.startswith(BASELINE_MODEL))
    references |= {name.removeprefix(BASELINE_MODEL): facts[name] for name in models}
    initial = {"at init": facts["loss_at_init"]} if "loss_at_init" in facts else {}
    deciding = next((metric for metric in metrics if DECIDES + metric in facts), metrics[0] if metrics else "")
    metrics.sort(key=lambda metric: metric != deciding)
    all_panels = [_panel(history, "loss", initial)]
    all_panels += [_panel(history, metric, references if metric == deciding else {}) for metric in metrics]
    marks = _marks(history, onsets, symptoms or [""] * len(onsets))
    unit: Literal["epoch", "step"] = "epoch" if _has_epochs(history) else "step"
    at, names = tuple(marks), tuple(map(", ".join, marks.values()))
    return [
        replace(panel, onsets=at, symptoms=names, unit=unit) for panel in all_panels if panel.lines or panel.nonfinite
    ]


def _marks(history: History, onsets: Sequence[TimeRecord], symptoms: Sequence[str]) -> dict[float, list[str]]:
    """Return the symptoms that hold from each onset on, earliest first, by its time in completed epochs."""
    marks: dict[float, list[str]] = {}
    for onset, symptom in zip(onsets, symptoms, strict=True):
        if (at := _epochs_at(history, onset)) is not None:
            marks.setdefault(at, [])
            marks[at] += [symptom] if symptom and symptom not in marks[at] else []
    return dict(sorted(marks.items()))


def _epochs_at(history: History, time: TimeRecord) -> float | None:
    """Return a step or epoch in completed epochs, as `x` counts them; None for a time that is neither."""
    if (step := time["step"]) is not None and history.step:
        first = min((column.index[0] for column in history.step.values() if column.index), default=0)
        return (step + (first == 0)) / _steps_per_epoch(history)
    if (epoch := time["epoch"]) is not None:
        first = min((column.index[0] for column in history.epoch.values() if column.index), default=0)
        return float(epoch + (first == 0))
    return None


def _panel(history: History, metric: str, references: Mapping[str, float]) -> Panel:
    lines: list[Line] = []
    broken: dict[str, float] = {}
    for split in ("train", "val"):
        name = f"{split}/{metric}"
        x, y = _over_epochs(history, name)
        finite = np.isfinite(y)
        if not finite.all():
            broken[split] = float(x[~finite].min())
        if finite.any():
            lines.append(Line(name, split, *_smooth(x[finite], y[finite])))
    best_epoch = history.facts.get("best_epoch")
    log = _needs_log_axis(lines, references)
    return Panel(metric, tuple(lines), references, tuple(sorted(set(broken.values()))), log, best_epoch, broken=broken)


def _needs_log_axis(lines: Sequence[Line], references: Mapping[str, float]) -> bool:
    """Return whether a linear axis would flatten all but the largest values; fractions up to 1 stay linear."""
    values = np.array([*(value for line in lines for value in line.y), *references.values()])
    positive = bool(values.size) and bool((values > 0).all())
    return positive and float(values.max()) > 1 and float(values.max() / values.min()) > LOG_RATIO


def _over_epochs(history: History, name: str) -> tuple[Floats, Floats]:
    """Return (epochs, values) of a series of the step table or of the epoch table."""
    index, values = history.series(name)
    columns, per_epoch = history.epoch, 1.0
    if history.table(name) == "step":
        columns, per_epoch = history.step, _steps_per_epoch(history)
    first = min((column.index[0] for column in columns.values() if column.index), default=0)
    return (index.astype(np.float64) + (first == 0)) / per_epoch, values.astype(np.float64)


def _steps_per_epoch(history: History) -> float:
    """Return the recorded number of steps per epoch, an estimate where a log does not have it, 1 without epochs."""
    if history.facts.get("steps_per_epoch", 0) > 0:
        return history.facts["steps_per_epoch"]
    if not _has_epochs(history):
        return 1.0
    steps = max((column.index[-1] + 1 for column in history.step.values() if column.index), default=1)
    epochs = max((column.index[-1] + 1 for column in history.epoch.values() if column.index), default=1)
    return max(1.0, steps / epochs)


def _has_epochs(history: History) -> bool:
    return bool(history.epoch) or history.facts.get("steps_per_epoch", 0) > 0


def _smooth(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return at most `SMOOTH_POINTS` means of consecutive values; a short series is returned as it is."""
    if len(x) <= 2 * SMOOTH_POINTS:
        return x, y
    groups = np.array_split(np.arange(len(x)), SMOOTH_POINTS)
    return np.array([x[g].mean() for g in groups]), np.array([y[g].mean() for g in groups])
