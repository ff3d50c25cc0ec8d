"""Reproducibility: the same training in two new processes, and the first step at which the two differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypedDict

import numpy as np

from pipeline.history import History
from pipeline.run_store import files
from pipeline.run_store.job import Delta, Job
from pipeline.sanity_checks.context import CheckContext, NotRun
from pipeline.trials.executor import Trial, parallel_jobs, start_jobs

NAMES = ("first", "second")
START_SECONDS = 3.0  # about what a process needs to import torch before its first step


class ReproducibilityResult(TypedDict):
    steps: int
    same: bool
    first_difference: int | None
    of: str
    weights: list[str]
    deterministic: object  # true, false or "warn"


Check = Callable[[CheckContext], ReproducibilityResult]


@contextmanager
def reproducibility_check(context: CheckContext) -> Iterator[Check]:
    """Yield the check; its two processes run during the block if there are spare CPU cores for them."""
    requested = int(context.settings["reproducibility_steps"]) and context.permit and context.folder
    if not requested or context.left < START_SECONDS:
        yield _skip
    elif context.threads > 1:  # in parallel to other checks, all of them would compete for the cores
        yield _train_and_compare
    else:
        with _trainings(context) as trials:
            yield lambda context: _compare(context, trials)


def _skip(context: CheckContext) -> ReproducibilityResult:
    context.steps("reproducibility_steps")
    context.require_permit()
    if context.folder is None:
        raise NotRun("there is no folder for other processes to work in")
    start = f"two processes take {START_SECONDS:g} s to start"
    raise NotRun(f"time: {start}, of {context.allowance:.1f} s for all sanity checks")


def _train_and_compare(context: CheckContext) -> ReproducibilityResult:
    with _trainings(context) as trials:
        return _compare(context, trials)


@contextmanager
def _trainings(context: CheckContext) -> Iterator[Iterable[Trial]]:
    """Start the same job in two processes; their files are removed at the end of the block."""
    permit, folder = context.require_permit(), context.folder
    assert folder is not None
    seconds = max(0.0, context.left)
    steps = context.steps("reproducibility_steps")
    limits = Delta({"trainer.max_minutes": max(seconds, 1.0) / 60, "trainer.checkpoint_minutes": None})
    job = Job(permit.plan.digest, "sanity_check.reproducibility", limits, max_steps=steps)
    files.remove_folder(folder)
    parallel = parallel_jobs("auto" if context.threads > 1 else 2, context.threads)
    try:
        with start_jobs(
            [(name, job) for name in NAMES], folder, parallel=parallel, threads=context.threads, seconds=seconds
        ) as trials:
            yield trials
    finally:
        files.remove_folder(folder)


def _compare(context: CheckContext, trials: Iterable[Trial]) -> ReproducibilityResult:
    """Return whether both trainings have the same weights and histories, else the first step that differs."""
    try:
        first, second = trials
    except TimeoutError:
        raise NotRun(f"time: two new processes did not end within the {context.allowance:.0f} s allowed") from None
    if died := next((trial.died for trial in (first, second) if trial.died), None):
        raise RuntimeError(f"a process of its own ended with {died}")
    if "clock" in (first.result["stopped"], second.result["stopped"]):
        raise NotRun("time: a training was stopped by the clock")
    same = first.result["weights"] == second.result["weights"]
    step, series = first_difference(*(History.load(trial.folder / "history.npz") for trial in (first, second)))
    if not same and step is None:
        step, series = int(first.result["steps"]), "weights"
    return {
        "steps": first.result["steps"],
        "same": same and step is None,
        "first_difference": step,
        "of": series,
        "weights": [first.result["weights"], second.result["weights"]],
        "deterministic": context.config["trainer"].get("deterministic", True),
    }


def first_difference(first: History, second: History) -> tuple[int | None, str]:
    """Return the first step at which two histories differ, with the series; (None, "") if they are the same.

    Times may differ. NaN equals NaN here.
    """
    differences: list[tuple[int, str]] = []
    for name in sorted({*first.step, *second.step}):
        if name.startswith("time/"):
            continue
        (steps, values), (other_steps, other_values) = first.series(name), second.series(name)
        length = min(len(steps), len(other_steps))
        a, b = values[:length], other_values[:length]
        same = (steps[:length] == other_steps[:length]) & ((a == b) | (np.isnan(a) & np.isnan(b)))
        if not same.all():
            differences.append((int(steps[:length][~same][0]), name))
        elif len(steps) != len(other_steps):
            differences.append((int(max(steps, other_steps, key=len)[length]), name))
    return min(differences, default=(None, ""))
