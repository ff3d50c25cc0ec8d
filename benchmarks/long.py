"""A long training of the digits MLP: steps per second and memory for each tenth of it."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cases import plan_case

from diagnostics.monitor import Monitor
from pipeline.engine.fit import fit
from pipeline.engine.observer import StepObserver

STEPS_PER_EPOCH = 17  # of the digits


class Meter(StepObserver):
    """A step observer that prints speed and memory after each tenth of the training."""

    def __init__(self, steps: int) -> None:
        self.every, self.last_step = max(1, steps // 10), 0

    def start(self, *_: Any) -> None:
        self.last_time = time.perf_counter()

    def after_update(self, step: int) -> None:
        now = time.perf_counter()
        speed = (step - self.last_step) / (now - self.last_time)
        print(f"{step:>10}{speed:>10.0f} steps/s{resident_memory():>10.1f} MB", flush=True)
        self.last_time, self.last_step = now, step


def resident_memory() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def train_long(steps: int) -> None:
    overrides = (f"trainer.max_epochs={math.ceil(steps / STEPS_PER_EPOCH)}", "trainer.max_minutes=600")
    with plan_case("mlp", *overrides) as planned, TemporaryDirectory() as folder:
        print(f"digits MLP, {steps} steps of the engine, validated after every epoch; the history grows with the steps")
        fit(planned.permit, planned.job, [Monitor(), Meter(steps)], data=planned.data, folder=Path(folder))
