"""A long training of the digits MLP: steps per second and memory, tenth by tenth."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cases import planned

from diagnostics.monitor import Monitor
from pipeline.engine.fit import fit
from pipeline.engine.observer import StepObserver

STEPS = 17  # of one epoch of the digits


class Meter(StepObserver):
    """Prints a line at every tenth of the way: a step observer that looks at nothing else."""

    def __init__(self, steps: int) -> None:
        self.every, self.steps = max(1, steps // 10), 0

    def start(self, *_: Any) -> None:
        self.at = time.perf_counter()

    def after_update(self, step: int) -> None:
        now = time.perf_counter()
        rate = (step - self.steps) / (now - self.at)
        print(f"{step:>10}{rate:>10.0f} steps/s{memory():>10.1f} MB", flush=True)
        self.at, self.steps = now, step


def memory() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def long(steps: int) -> None:
    words = (f"trainer.max_epochs={math.ceil(steps / STEPS)}", "trainer.max_minutes=600")
    with planned("mlp", *words) as given, TemporaryDirectory() as folder:
        print(f"digits MLP, {steps} steps through the engine, every epoch validated; history grows by design")
        fit(given.permit, given.job, [Monitor(), Meter(steps)], data=given.data, folder=Path(folder))
