"""Progress: one live line on a terminal that leaves nothing behind, few plain lines in a pipe, and no price."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from pipeline.evaluation.metric_config import metric_from_config
from pipeline.history import History
from pipeline.orchestration.phase import Hooks, PhaseContext
from pipeline.reporting.progress import LINE_S, TrainingProgress, live_trials, trials_table
from pipeline.run_store.job import Job
from pipeline.trials.progress import FILE, TrialProgress, TrialRow, running_rows

ACCURACY = metric_from_config({"kind": "classification", "metric": "accuracy"})
RMSE = metric_from_config({"kind": "regression", "metric": "rmse"})
LINE = re.compile(
    r"^baseline: epoch \d+/20  step \d+/340  [\d,.]+ steps/s  train/loss 0\.\d+"
    r"(  val/accuracy 0\.\d+( \(best 0\.\d+\))?)?  \d:\d\d:\d\d left$"
)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def watched(
    terminal: bool = False, start: int = 0, decides: Any = ACCURACY, **facts: int
) -> tuple[TrainingProgress, Clock, Any]:
    """A progress observer of 20 epochs of 17 steps, its clock, and what it has written so far."""
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=terminal, width=140, highlight=False, color_system=None)
    watch = TrainingProgress(console, "baseline", decides, clock)
    history = History()
    history.facts.update({"max_steps": 340, "steps_per_epoch": 17, **facts})
    watch.start(None, None, history, start)
    return watch, clock, out


def train(watch: TrainingProgress, clock: Clock, steps: range, seconds: float, per_epoch: int = 17) -> list[int]:
    """Steps of so many seconds, as the loop shows them to who asks; the steps that were shown."""
    shown = []
    for step in steps:
        clock.now += seconds
        if step % watch.every == 0:
            shown.append(step)
            watch.before_update(step, None, None, None, torch.tensor(0.25))
            watch.after_update(step)
        if step % per_epoch == 0:
            watch.history.log_step(step, {"train/loss": 0.25})
            value = 0.9 if step == 17 else 0.5 + step / 1000
            watch.validated(step // per_epoch, {"val/loss": 0.1, "val/accuracy": value, "val/rmse": 1.0})
    return shown


# --- in a pipe -------------------------------------------------------------------------------------------------------


def test_progress_in_a_pipe_hides_short_trainings() -> None:
    """A training of less than two seconds prints nothing."""
    watch, clock, out = watched()
    train(watch, clock, range(1, 341), 0.005)
    watch.finish()
    assert out.getvalue() == ""


def test_progress_in_a_pipe_prints_a_line_per_ten_seconds() -> None:
    """The lines are the first, the last, and ends of epochs at least ten seconds apart, without carriage returns."""
    watch, clock, out = watched()
    train(watch, clock, range(1, 341), 0.1)
    watch.finish()
    lines = out.getvalue().splitlines()

    assert 4 <= len(lines) <= 2 + 34 / LINE_S and "\r" not in out.getvalue() and "\x1b" not in out.getvalue()
    assert [line for line in lines if not LINE.match(line)] == []
    assert "step 340/340" in lines[-1] and "epoch 20/20" in lines[-1] and lines[-1].endswith("0:00:00 left")
    assert "(best 0.9)" in lines[1]


def test_progress_prints_a_line_per_minute_in_a_long_epoch() -> None:
    """A line is printed every minute where no epoch ends."""
    watch, clock, out = watched(steps_per_epoch=340)
    train(watch, clock, range(1, 341), 1.0, per_epoch=340)
    watch.finish()
    steps = [int(n) for n in re.findall(r"step (\d+)/340", out.getvalue())]
    assert len(steps) == 7 and steps[-1] == 340
    assert all(55 <= b - a <= 75 for a, b in pairwise(steps[:-1]))


def test_progress_shows_where_a_training_resumed() -> None:
    """A resumed training prints its first step, and the time left is computed from there."""
    watch, clock, out = watched(start=120)
    assert out.getvalue() == "baseline: resumed at step 120 of 340\n"
    train(watch, clock, range(121, 239), 0.1)
    assert "step 0/" not in out.getvalue()
    assert watch.line().startswith("epoch 14/20  step 238/340  10 steps/s") and "0:00:11 left" in watch.line()


def test_progress_uses_the_direction_of_the_metric() -> None:
    """For an error the lowest value is the best; a metric that was not measured is left out."""
    watch, clock, _ = watched(decides=RMSE)
    train(watch, clock, range(1, 18), 0.1)
    watch.validated(2, {"val/rmse": 2.0})
    assert "val/rmse 2 (best 1)" in watch.line()
    watch.validated(3, {})
    assert "val/rmse" not in watch.line()


# --- on a terminal ---------------------------------------------------------------------------------------------------


def test_progress_on_a_terminal_is_one_live_line() -> None:
    """The line is redrawn in place; at the end it is removed and the cursor is shown again."""
    threads = threading.active_count()
    watch, clock, out = watched(terminal=True)
    train(watch, clock, range(1, 200), 0.1)
    assert threading.active_count() == threads
    output = out.getvalue()
    assert "baseline" in output and "steps/s" in output and "\n" not in output and output.count("\x1b[2K") > 5
    watch.finish()
    watch.finish()
    ended = out.getvalue().removeprefix(output)
    assert ended.endswith("\x1b[2K") and "\x1b[?25h" in ended


def test_progress_on_a_terminal_hides_short_trainings() -> None:
    """A training of less than the update interval draws nothing."""
    watch, clock, out = watched(terminal=True)
    train(watch, clock, range(1, 341), 0.0005)
    watch.finish()
    assert out.getvalue() == ""


# --- price -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0002, 0.01, 0.5])
def test_progress_observes_a_few_steps_per_second(seconds: float) -> None:
    """About three steps a second are observed, whatever a step takes; slow steps are all observed."""
    watch, clock, _ = watched(terminal=True, max_steps=10**6, steps_per_epoch=10**6)
    steps = max(20, int(20 / seconds))
    shown = train(watch, clock, range(1, steps + 1), seconds, per_epoch=10**6)
    assert len(shown) <= min(steps, 20 / 0.25 + 12)
    assert len(shown) >= min(steps, 20 / 0.4)


def test_progress_adapts_to_slower_steps() -> None:
    """After fast steps, slower steps are observed more often."""
    watch, clock, _ = watched(max_steps=10**6, steps_per_epoch=10**6)
    train(watch, clock, range(1, 20001), 0.0002, per_epoch=10**6)
    often = watch.every
    train(watch, clock, range(20001, 22001), 0.02, per_epoch=10**6)
    assert often > 500 and watch.every < 30


def test_progress_update_is_cheap() -> None:
    """The fastest of many updates on a terminal takes a few milliseconds at most."""
    watch, clock, _ = watched(terminal=True)
    train(watch, clock, range(1, 30), 0.5)
    taken = []
    for step in range(30, 90):
        clock.now += 0.3
        began = time.perf_counter()
        watch.before_update(step, None, None, None, torch.tensor(0.25))
        watch.after_update(step)
        taken.append(time.perf_counter() - began)
    watch.finish()
    assert min(taken) < 0.01


# --- plumbing --------------------------------------------------------------------------------------------------------


def context(watch: Any) -> PhaseContext:
    config = {"task": {"kind": "classification", "metric": "accuracy"}}
    nothing: Any = SimpleNamespace(trust=())
    return PhaseContext(nothing, nothing, nothing, config, None, nothing, 1, print, watch)


def test_phase_context_makes_progress_observers() -> None:
    """`ctx.progress` returns one observer where the hooks have a factory, and none elsewhere."""
    named: list[Any] = []
    made = context(lambda what, decides: named.append((what, decides.name)) or "observer").progress("baseline")  # type: ignore[func-returns-value]
    assert made == ["observer"] and named == [("baseline", "accuracy")]
    assert context(None).progress("baseline") == []
    assert Hooks(print).progress is None


def test_progress_line_fits_a_narrow_terminal() -> None:
    """80 columns have room for epoch, speed, loss, metric and the time left."""
    watch = TrainingProgress(
        Console(width=80), "baseline", metric_from_config({"metric": "accuracy", "kind": "classification"})
    )
    history = History()
    history.facts.update(max_steps=10200.0, steps_per_epoch=17.0)
    watch.start(None, None, history, 0)
    watch.step, watch.rate, watch.loss, watch.value, watch.best = 697, 1956.0, 0.06165, 0.9778, 0.9861
    assert watch.line(short=True).startswith("epoch 41/600  1,956/s  loss 0.06165  accuracy 0.9778  0:")
    assert len(f"baseline {watch.line(short=True)}") <= 80


# --- trainings in other processes ------------------------------------------------------------------------------------


def test_trial_progress_is_written_now_and_then(own_folder: Path) -> None:
    """Steps of a tenth of a second: nothing in the first two seconds, then the step and the newest score, seldom."""
    clock, history = Clock(), History()
    history.facts.update({"max_steps": 900})
    watch = TrialProgress(own_folder, clock)
    watch.start(None, None, history, 0)  # type: ignore[arg-type]
    seen = []
    for step in range(1, 41):
        clock.now += 0.1
        if step % watch.every == 0:
            seen.append(step)
            watch.after_update(step)
        if step == 19:
            assert not (own_folder / FILE).exists()
            watch.validated(1, {"val/loss": 0.2, "val/accuracy": 0.9})

    record = json.loads((own_folder / FILE).read_text())
    assert 20 <= record["step"] <= 40 and record["last_step"] == 900
    assert (record["metric"], record["value"]) == ("val/accuracy", 0.9) and len(seen) < 20


def test_trial_progress_survives_a_disk_that_refuses(own_folder: Path) -> None:
    """A training goes on where its progress cannot be written."""
    clock, history = Clock(), History()
    history.facts.update({"max_steps": 9})
    (own_folder / "taken").write_text("")
    watch = TrialProgress(own_folder / "taken", clock)
    watch.start(None, None, history, 0)  # type: ignore[arg-type]
    clock.now += 5
    watch.after_update(1)
    assert watch.every >= 1


def test_running_rows_say_how_far_trials_are(own_folder: Path) -> None:
    """Of a training that runs: what it has written, else its newest checkpoint; not of one that has ended or waits."""
    jobs = [(name, Job("plan", "trial", max_steps=900)) for name in ("c1-1", "c1-2", "c1-3", "c1-4", "c1-5")]
    for name, number, step in (("c1-1", 9, 300), ("c1-1", 10, 450), ("c1-2", 1, 900), ("c1-4", 1, 0)):
        generation = own_folder / name / "checkpoints" / str(number)
        generation.mkdir(parents=True)
        (generation / "state.json").write_text(json.dumps({"step": step}))
        (own_folder / name / "job.json").write_text("{}")
    (own_folder / "c1-2" / "result.json").write_text("{}")
    (own_folder / "c1-5").mkdir()
    (own_folder / "c1-5" / "job.json").write_text("{}")
    written = {"step": 340, "last_step": 1020, "metric": "val/accuracy", "value": 0.93}
    (own_folder / "c1-5" / FILE).write_text(json.dumps(written))

    texts = [row.text() for row in running_rows(jobs, own_folder)]
    assert texts == ["c1-1 at step 450 of 900", "c1-5 at step 340 of 1020, val/accuracy 0.93"]
    out = io.StringIO()
    Console(file=out, width=100, color_system=None).print(trials_table(lambda: running_rows(jobs, own_folder)))
    assert re.search(r"c1-5 +━{8}╌{16} +340/1020 +val/accuracy 0\.93", out.getvalue())
    (own_folder / "c1-1" / "checkpoints" / "10" / "state.json").write_text("{")
    (own_folder / "c1-5" / FILE).write_text("{")
    assert running_rows(jobs, own_folder) == []


def test_live_trials_leave_nothing_on_the_screen() -> None:
    """The table is there while the block runs, below the lines that are printed, and is removed at its end."""
    out, shown = io.StringIO(), threading.Event()

    def rows() -> list[TrialRow]:
        shown.set()
        return [TrialRow("c1-1", 5, 10)]

    console = Console(file=out, force_terminal=True, width=80, color_system=None)
    with live_trials(console, rows):
        console.print("a line")
        assert shown.wait(10)
    assert "a line" in out.getvalue() and not any(t.name == "refresh" for t in threading.enumerate())
