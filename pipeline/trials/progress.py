"""How far trainings in other processes are: each writes it into its folder now and then, and the parent reads it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from pipeline.engine.observer import StepObserver
from pipeline.errors import DiskError
from pipeline.history import History
from pipeline.run_store import files
from pipeline.run_store.job import Job

FILE = "progress.json"
WRITE_S = 2.0  # between two writes: a person sees that a training moves, and a short one writes nothing


@dataclass(frozen=True)
class TrialRow:
    """A training that runs: its name, its step and last step, and its newest validation score (NaN before one)."""

    name: str
    step: int
    last_step: int
    metric: str = ""
    value: float = math.nan

    def text(self) -> str:
        """Return `c1-3 at step 340 of 1020, val/accuracy 0.93`."""
        score = "" if math.isnan(self.value) else f", {self.metric} {self.value:.4g}"
        return f"{self.name} at step {self.step} of {self.last_step}{score}"


Rows = Callable[[], Sequence[TrialRow]]
ShowTrials = Callable[[Rows], AbstractContextManager[None]]  # shows the rows while the block runs


class TrialProgress(StepObserver):
    """Writes the step of a training and its newest score into the folder of the job.

    It reads nothing from the device. The training goes on if the disk refuses a write.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.every = 1
        self._folder, self._clock = folder, clock
        self._metric, self._value = "", math.nan

    def start(self, model: nn.Module, optimizer: Optimizer, history: History, step: int) -> None:
        self._last_step, self._step = int(history.facts["max_steps"]), step
        self._written = self._seen = self._clock()

    def after_update(self, step: int) -> None:
        """Write the step where it is due, and ask to be called about twice a second."""
        now = self._clock()
        rate = (step - self._step) / max(now - self._seen, 1e-9)
        self._step, self._seen = step, now
        self.every = max(1, min(int(rate / 2), 4 * self.every))
        self._write(now)

    def validated(self, epoch: int, metrics: Mapping[str, float], /) -> None:
        names = [name for name in metrics if name != "val/loss"] or [*metrics]
        if names:
            self._metric, self._value = names[0], float(metrics[names[0]])
        self._write(self._clock())

    def _write(self, now: float) -> None:
        if now - self._written < WRITE_S:
            return
        self._written = now
        value = self._value if math.isfinite(self._value) else None
        record = {"step": self._step, "last_step": self._last_step, "metric": self._metric, "value": value}
        try:
            files.write_json(self._folder / FILE, record)
        except (OSError, DiskError):
            return


def running_rows(jobs: Sequence[tuple[str, Job]], folder: Path) -> list[TrialRow]:
    """Return how far the trainings under `folder/<id>` are that have begun and not ended."""
    rows = []
    for name, job in jobs:
        job_folder = folder / name
        if (job_folder / "result.json").exists() or not (job_folder / "job.json").exists():
            continue
        if row := _written_row(name, job_folder) or _saved_row(name, job_folder, job):
            rows.append(row)
    return rows


def _written_row(name: str, folder: Path) -> TrialRow | None:
    """Return what a training has written of its progress; None where it has written nothing yet."""
    try:
        record = json.loads((folder / FILE).read_bytes())
        value = math.nan if record["value"] is None else float(record["value"])
        return TrialRow(name, int(record["step"]), int(record["last_step"]), str(record["metric"]), value)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _saved_row(name: str, folder: Path, job: Job) -> TrialRow | None:
    """Return the step of the newest checkpoint of a training; None where there is none yet."""
    newest = max((p for p in folder.glob("checkpoints/*") if p.name.isdigit()), key=lambda p: int(p.name), default=None)
    try:
        step = None if newest is None else int(json.loads((newest / "state.json").read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a newer one has replaced it in the meantime
    return TrialRow(name, step, job.max_steps or 0) if step else None
