"""Progress: one live line on a terminal, a few plain ones in a pipe, while a model trains.

An observer of the training's steps that asks for about three a second, whatever a step takes: it starts no thread, and
reads the loss back no more often than it shows it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from pipeline.engine.observer import StepObserver
from pipeline.evaluation.metrics import Metric

INTERVAL = 0.3  # seconds between two looks
QUIET = 2.0  # seconds that a training has to take before a pipe hears of it
LINES = 10.0  # seconds between two plain lines, which come after an epoch ...
LONG = 60.0  # ... or within one that takes longer than this
WIDE = 130  # columns of a terminal in which the whole line stands; in a narrow one, its shortest form without the bar


class Watch(StepObserver):
    """What a training shows of itself while it runs. `what` names it, `metric` is the one that decides."""

    def __init__(
        self, console: Console, what: str, metric: Metric, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.every = 1
        self.console, self.what, self.metric, self.clock = console, what, metric, clock
        self.live: Progress | None = None
        self.bar = TaskID(0)
        self.alive = console.is_terminal and not console.is_dumb_terminal

    def start(self, model: Any, optimizer: Any, history: Any, step: int) -> None:
        """Before the first step; a training that is taken up says from where."""
        self.history = history
        self.first = self.step = self.looked_step = self.said_step = step
        self.last = int(history.facts["max_steps"])
        self.per_epoch = max(1, int(history.facts["steps_per_epoch"]))
        self.rate, self.loss = math.nan, math.nan
        self.value, self.best = math.nan, math.nan
        self.started = self.looked = self.said = self.clock()
        self.spoken = False
        if step:
            self.console.print(f"{self.what}: resumed at step {step} of {self.last}", soft_wrap=True)

    def before_update(self, step: int, inputs: Any, targets: Any, outputs: Any, loss: Any) -> None:
        """Reading the loss waits for the device, as often as `every` lets it."""
        self.step, self.loss = step, loss.item()

    def after_update(self, step: int) -> None:
        """Show where training stands, and ask for the step that will be due at the next look."""
        now = self.clock()
        taken = now - self.looked
        if taken <= 0:
            return
        rate = (step - self.looked_step) / taken
        self.rate = (step - self.first) / (now - self.started)  # of all that is done, as the time left is
        self.every = max(1, min(int(rate * INTERVAL), 4 * self.every))  # a first fast step is not trusted at once
        self.looked, self.looked_step = now, step
        self._show(now, now - self.said >= LONG)

    def validated(self, epoch: int, metrics: Mapping[str, float], /) -> None:
        """The epoch's measurements are in, and its losses in the history; what they took is not in the steps' rate."""
        losses = self.history.step.get("train/loss")
        if losses is not None:
            self.step, self.loss = losses.index[-1], losses.values[-1]
        value = metrics.get(f"val/{self.metric.name}", math.nan)
        self.value = value
        if self.metric.better(value, self.best):
            self.best = value
        self._show(self.clock(), True)
        self.looked, self.looked_step = self.clock(), self.step

    def finish(self) -> None:
        """The live line is gone; in a pipe the last line says where training ended."""
        if self.live is not None:
            self.live.stop()
            self.live = None
        elif self.spoken and self.said_step != self.step:
            self._print()

    def _show(self, now: float, line: bool) -> None:
        """The live line anew, or a plain `line` where one is due."""
        if now - self.started < (INTERVAL if self.alive else QUIET):
            return
        if self.alive:
            if now - self.said >= INTERVAL:
                self.said = now
                self._draw()
        elif not self.spoken or (line and now - self.said >= LINES):
            self.said = now
            self._print()

    def _draw(self) -> None:
        if self.live is None:
            text = TextColumn("{task.fields[line]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
            bar = [BarColumn(20, table_column=Column(min_width=10))] if self.console.width >= WIDE else []
            self.live = Progress(
                TextColumn("{task.description}"), *bar, text, console=self.console, transient=True, auto_refresh=False
            )
            self.bar = self.live.add_task(self.what, total=self.last, line="")
            self.live.start()
        self.live.update(self.bar, completed=self.step, line=self.line(self.console.width < WIDE), refresh=True)

    def _print(self) -> None:
        self.spoken, self.said_step = True, self.step
        self.console.print(f"{self.what}: {self.line()}", soft_wrap=True)

    def line(self, short: bool = False) -> str:
        """`epoch 12/20  step 204/340  4,100 steps/s  train/loss 0.0412  val/accuracy 0.978  0:00:01 left`."""
        epoch, epochs = (-(-step // self.per_epoch) for step in (max(self.step, 1), self.last))
        parts = [f"epoch {epoch}/{epochs}"] if short else [f"epoch {epoch}/{epochs}", f"step {self.step}/{self.last}"]
        if not math.isnan(self.rate):
            unit = "/s" if short else " steps/s"
            parts.append(f"{self.rate:,.0f}{unit}" if self.rate >= 10 else f"{self.rate:.2g}{unit}")
        parts.append(f"loss {self.loss:.4g}" if short else f"train/loss {self.loss:.4g}")
        if not math.isnan(self.value):
            behind = self.best != self.value and not math.isnan(self.best)
            best = f" (best {self.best:.4g})" if behind and not short else ""
            parts.append(f"{'' if short else 'val/'}{self.metric.name} {self.value:.4g}{best}")
        made = self.step - self.first
        if made > 0:
            seconds = (self.clock() - self.started) / made * max(0, self.last - self.step)
            parts.append(f"{timedelta(seconds=math.ceil(seconds))} left")
        return "  ".join(parts)
