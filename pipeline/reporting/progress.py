"""The progress of a training: one live line on a terminal, a plain line now and then in a pipe or file.

The observer asks for about three steps a second, however long a step takes. It starts no thread, and reads the loss
from the device only when it shows it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column, Table

from pipeline.engine.observer import StepObserver
from pipeline.escaping import visible
from pipeline.evaluation.metrics import Metric
from pipeline.trials.progress import Rows

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from pipeline.data.tree import Tree
    from pipeline.history import History

INTERVAL_S = 0.3  # between two updates of the live line
QUIET_S = 2.0  # that a training has to take before the first plain line
LINE_S = 10.0  # between two plain lines, which follow the end of an epoch,
LONG_EPOCH_S = 60.0  # or are printed within an epoch that takes longer than this
WIDE_COLUMNS = 130  # of a terminal that has room for the whole line; a narrower one gets the short form without a bar


class TrainingProgress(StepObserver):
    """Shows the progress of the training with this name; `metric` is the one that decides."""

    def __init__(
        self, console: Console, training: str, metric: Metric, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.every = 1
        self.console, self.training, self.metric, self.clock = console, visible(training), metric, clock
        self.live: Progress | None = None
        self.bar = TaskID(0)
        self.is_live = console.is_terminal and not console.is_dumb_terminal

    def start(self, model: nn.Module, optimizer: Optimizer, history: History, step: int) -> None:
        self.history = history
        self.first_step = self.step = self.seen_step = self.printed_step = step
        self.last_step = int(history.facts["max_steps"])
        self.per_epoch = max(1, int(history.facts["steps_per_epoch"]))
        self.rate, self.loss = math.nan, math.nan
        self.value, self.best = math.nan, math.nan
        self.started = self.seen_at = self.shown_at = self.clock()
        self.has_printed = False
        if step:
            self.console.print(f"{self.training}: resumed at step {step} of {self.last_step}", soft_wrap=True)

    def before_update(self, step: int, inputs: Tree, targets: Tree, outputs: Tree, loss: Tensor) -> None:
        """Read the loss, which waits for the device; `every` limits how often."""
        self.step, self.loss = step, loss.item()

    def after_update(self, step: int) -> None:
        """Show the progress, and ask for the step that is due at the next update."""
        now = self.clock()
        elapsed = now - self.seen_at
        if elapsed <= 0:
            return
        rate = (step - self.seen_step) / elapsed
        self.rate = (step - self.first_step) / (now - self.started)  # the mean, from which the time left is computed
        self.every = max(1, min(int(rate * INTERVAL_S), 4 * self.every))  # the first steps can be faster than the rest
        self.seen_at, self.seen_step = now, step
        self._show(now, now - self.shown_at >= LONG_EPOCH_S)

    def validated(self, epoch: int, metrics: Mapping[str, float], /) -> None:
        """Show the epoch's metrics. The time of the validation is left out of the rate of the steps."""
        losses = self.history.step.get("train/loss")
        if losses is not None:
            self.step, self.loss = losses.index[-1], losses.values[-1]
        value = metrics.get(f"val/{self.metric.name}", math.nan)
        self.value = value
        if self.metric.better(value, self.best):
            self.best = value
        self._show(self.clock(), True)
        self.seen_at, self.seen_step = self.clock(), self.step

    def finish(self) -> None:
        """Remove the live line; in a pipe, print a last line with the end of the training."""
        if self.live is not None:
            self.live.stop()
            self.live = None
        elif self.has_printed and self.printed_step != self.step:
            self._print()

    def _show(self, now: float, line_due: bool) -> None:
        """Update the live line, or print a plain line where one is due."""
        if now - self.started < (INTERVAL_S if self.is_live else QUIET_S):
            return
        if self.is_live:
            if now - self.shown_at >= INTERVAL_S:
                self.shown_at = now
                self._draw()
        elif not self.has_printed or (line_due and now - self.shown_at >= LINE_S):
            self.shown_at = now
            self._print()

    def _draw(self) -> None:
        if self.live is None:
            text = TextColumn(
                "{task.fields[line]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
            )
            bar = [BarColumn(20, table_column=Column(min_width=10))] if self.console.width >= WIDE_COLUMNS else []
            self.live = Progress(
                TextColumn("{task.description}", markup=False),
                *bar,
                text,
                console=self.console,
                transient=True,
                auto_refresh=False,
            )
            self.bar = self.live.add_task(self.training, total=self.last_step, line="")
            self.live.start()
        self.live.update(self.bar, completed=self.step, line=self.line(self.console.width < WIDE_COLUMNS), refresh=True)

    def _print(self) -> None:
        self.has_printed, self.printed_step = True, self.step
        self.console.print(f"{self.training}: {self.line()}", soft_wrap=True)

    def line(self, short: bool = False) -> str:
        """Return `epoch 12/20  step 204/340  4,100 steps/s  train/loss 0.0412  val/accuracy 0.978  0:00:01 left`."""
        epoch, epochs = (-(-step // self.per_epoch) for step in (max(self.step, 1), self.last_step))
        epoch_text, step_text = f"epoch {epoch}/{epochs}", f"step {self.step}/{self.last_step}"
        parts = [epoch_text] if short else [epoch_text, step_text]
        if not math.isnan(self.rate):
            unit = "/s" if short else " steps/s"
            parts.append(f"{self.rate:,.0f}{unit}" if self.rate >= 10 else f"{self.rate:.2g}{unit}")
        parts.append(f"loss {self.loss:.4g}" if short else f"train/loss {self.loss:.4g}")
        if not math.isnan(self.value):
            is_worse = self.best != self.value and not math.isnan(self.best)
            best = f" (best {self.best:.4g})" if is_worse and not short else ""
            parts.append(f"{'' if short else 'val/'}{self.metric.name} {self.value:.4g}{best}")
        steps = self.step - self.first_step
        if steps > 0:
            seconds = (self.clock() - self.started) / steps * max(0, self.last_step - self.step)
            parts.append(f"{timedelta(seconds=math.ceil(seconds))} left")
        return visible("  ".join(parts))


BAR = 24  # columns of the bar of a trial
TABLE_S = 0.5  # between two looks at the trials that run


@contextmanager
def live_trials(console: Console, rows: Rows) -> Iterator[None]:
    """Show the trials that run as a table below the lines of the block; it disappears at the end of the block."""
    ended = threading.Event()
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def refresh() -> None:
            while not ended.wait(TABLE_S):
                live.update(trials_table(rows), refresh=True)

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            live.update("", refresh=True)


def trials_table(rows: Rows) -> Table:
    """Return a table with the step and the newest score of each trial that runs."""
    table = Table("trial", "", "step", "score", box=None, pad_edge=False, header_style="bold")
    running = rows()
    table.show_header = bool(running)
    for row in running:
        filled = round(BAR * row.step / max(row.last_step, 1))
        score = "" if math.isnan(row.value) else visible(f"{row.metric} {row.value:.4g}")
        table.add_row(visible(row.name), "━" * filled + "╌" * (BAR - filled), f"{row.step}/{row.last_step}", score)
    return table
