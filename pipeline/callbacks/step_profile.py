"""Where the time of a training step goes: a profile of a few steps, as `debug=profile` sets it up."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from pipeline.history import History

SHOWN = 12  # operators, those with the largest share of the time


class StepProfile:
    """A callback that profiles `steps` steps after the first `warm_up` ones, whose time is mostly that of first calls.

    The history gets an event `profile` with one row per operator: its name, its calls, its own milliseconds on the CPU,
    and on the GPU where there is one.
    """

    def __init__(self, warm_up: int = 10, steps: int = 20) -> None:
        self.first, self.last, self.every = warm_up + 1, warm_up + steps, 1
        self.profiler: profile | None = None

    def start(self, model: nn.Module, optimizer: Optimizer, history: History, step: int) -> None:
        self.history = history
        self.first, self.last = self.first + step, self.last + step
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())
        self.activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]

    def before_forward(self, step: int) -> None:
        if step == self.first:
            self.profiler = profile(activities=self.activities, acc_events=True)
            self.profiler.start()

    def after_update(self, step: int) -> None:
        if self.profiler is not None and step == self.last:
            self._stop(step)
            self.every = sys.maxsize

    def finish(self) -> None:
        """A training that ended before the last profiled step has the profile of the steps that it made."""
        if self.profiler is not None:
            self._stop(self.last)

    def _stop(self, step: int) -> None:
        profiler, self.profiler = self.profiler, None
        assert profiler is not None
        profiler.stop()
        averages: list[Any] = sorted(profiler.key_averages(), key=lambda operator: -_microseconds(operator))
        rows = [
            {"operator": operator.key, "calls": operator.count, "ms": round(_microseconds(operator) / 1e3, 3)}
            for operator in averages
        ]
        total = sum(row["ms"] for row in rows)
        self.history.event("profile", step, steps=self.last - self.first + 1, ms=total, operators=rows[:SHOWN])


def _microseconds(operator: Any) -> float:
    """The own time of an operator, of all its calls, on the CPU and on a device."""
    return float(operator.self_cpu_time_total + getattr(operator, "self_device_time_total", 0.0))


def lines(event: dict[str, Any]) -> list[str]:
    """Return a profile's event as lines to print: a head, then an operator each with its share of the time."""
    total = float(event["ms"]) or 1.0
    head = f"profile of {event['steps']} steps, {total / event['steps']:.3g} ms each; share, calls, operator"
    shown = (f"  {row['ms'] / total:6.1%} {row['calls']:>7}  {row['operator']}" for row in event["operators"])
    return [head, *shown]
