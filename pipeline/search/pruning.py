"""Early stopping of a trial that is worse than the median of the trials of earlier generations.

The bounds are known before the generation starts, so that they do not depend on which worker is faster. They are those
of Optuna's MedianPruner: after each epoch the best value of the trial so far is compared with the median of the values
that the finished trials had in the same epoch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from torch import nn
from torch.optim import Optimizer

from pipeline.engine.observer import StepObserver, StopTraining
from pipeline.history import History
from pipeline.run_store import files

NEVER = 2**62  # no step is observed, only epochs are


@dataclass(frozen=True)
class Bounds:
    """The medians of `metric` (such as `val/accuracy`) by epoch; None where a trial is not stopped."""

    metric: str
    greater: bool
    medians: tuple[float | None, ...]

    def write(self, folder: Path) -> None:
        """Write the bounds beside the folder of a job, which belongs to the job alone."""
        files.write_json(_path(folder), asdict(self))

    def is_worse(self, epoch: int, values: Sequence[float]) -> bool:
        """Return whether the best of the values up to this epoch is worse than the median."""
        bound = self.medians[epoch] if epoch < len(self.medians) else None
        finite = [value for value in values if math.isfinite(value)]
        if bound is None or not finite:
            return False
        return max(finite) < bound if self.greater else min(finite) > bound


def bounds_of(
    metric: str, greater: bool, curves: Sequence[Sequence[float]], startup: int | None, warmup: int
) -> Bounds | None:
    """Return the bounds from the values per epoch of the finished trials; None where no trial is stopped yet."""
    if startup is None or len(curves) < startup:
        return None
    medians: list[float | None] = []
    for epoch in range(max(map(len, curves))):
        values = [curve[epoch] for curve in curves if epoch < len(curve) and math.isfinite(curve[epoch])]
        medians.append(median(values) if epoch >= warmup and len(values) >= startup else None)
    return Bounds(metric, greater, tuple(medians))


def observers_of(folder: Path) -> list[StepObserver]:
    """Return the observer that stops the job of a folder early; none where no bounds were written for it."""
    try:
        body = json.loads(_path(folder).read_text())
        bounds = Bounds(str(body["metric"]), bool(body["greater"]), tuple(body["medians"]))
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [_Pruner(bounds)]


def _path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.bounds.json")


class _Pruner(StepObserver):
    """Ends a training that is worse than its bounds. All it knows is in the history, so that it can be resumed."""

    def __init__(self, bounds: Bounds) -> None:
        self.every = NEVER
        self._bounds = bounds
        self._history = History()

    def start(self, model: nn.Module, optimizer: Optimizer, history: History, step: int) -> None:
        self._history = history

    def validated(self, epoch: int, metrics: Mapping[str, float], /) -> None:
        values = series_of(self._history, self._bounds.metric)
        if self._bounds.is_worse(len(values) - 1, values):
            raise StopTraining(f"pruned: worse than the median of the finished trials in epoch {epoch}")


def series_of(history: History, metric: str) -> list[float]:
    """Return the values of a metric per epoch; none where it was not measured."""
    if history.table(metric) is None:
        return []
    return [float(value) for value in history.series(metric)[1]]
