"""Repetition: the same training twice, each in a fresh process, and the first step at which they are not the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipeline.history import History
from pipeline.run_store import files
from pipeline.run_store.job import Delta, Job
from pipeline.sanity_checks.context import CheckContext, NotRun
from pipeline.trials.executor import Trial, parallel_jobs, start_jobs

Proof = Callable[[CheckContext], Mapping[str, Any]]
TWICE = ("one", "other")
START = 3.0  # seconds; a process that loads torch takes about as long before its first step


@contextmanager
def repetition(bench: CheckContext) -> Iterator[Proof]:
    """The proof, whose two processes are at work while the block runs where there is a core to spare for them."""
    asked = int(bench.settings["reproducibility_steps"]) and bench.permit is not None and bench.folder is not None
    if not asked or bench.left < START:
        yield _not_begun
    elif bench.threads > 1:  # they would only wait for each other and for us
        yield _one_after_the_other
    else:
        with _at_work(bench) as trials:
            yield lambda bench: _compared(bench, trials)


def _not_begun(bench: CheckContext) -> Mapping[str, Any]:
    bench.steps(int(bench.settings["reproducibility_steps"]))
    bench.require_permit()
    if bench.folder is None:
        raise NotRun("there is no folder for other processes to work in")
    raise NotRun(f"time: two processes take {START:g} s to start, of {bench.allowance:.1f} s for all proofs")


def _one_after_the_other(bench: CheckContext) -> Mapping[str, Any]:
    with _at_work(bench) as trials:
        return _compared(bench, trials)


@contextmanager
def _at_work(bench: CheckContext) -> Iterator[Iterable[Trial]]:
    """Both processes train the same job; nothing of them is left on disk behind the block."""
    permit, folder = bench.require_permit(), bench.folder
    assert folder is not None
    seconds = max(0.0, bench.left)
    steps = bench.steps(int(bench.settings["reproducibility_steps"]))
    clock = Delta({"trainer.max_minutes": max(seconds, 1.0) / 60, "trainer.checkpoint_minutes": None})
    job = Job(permit.plan.digest, "proof.repeat", clock, max_steps=steps)
    files.remove_folder(folder)
    at_once = parallel_jobs("auto" if bench.threads > 1 else 2, bench.threads)
    try:
        with start_jobs(
            [(n, job) for n in TWICE], folder, parallel=at_once, threads=bench.threads, seconds=seconds
        ) as two:
            yield two
    finally:
        files.remove_folder(folder)


def _compared(bench: CheckContext, trials: Iterable[Trial]) -> dict[str, Any]:
    """Whether both ended in the same weights, else the first step of which anything that was measured differs."""
    try:
        one, other = trials
    except TimeoutError:
        raise NotRun(f"time: two fresh processes did not end within the {bench.allowance:.0f} s allowed") from None
    if died := next((trial.died for trial in (one, other) if trial.died), None):
        raise RuntimeError(f"a process of its own ended with {died}")
    if "clock" in (one.result["stopped"], other.result["stopped"]):
        raise NotRun("time: a training was stopped by the clock")
    same = one.result["weights"] == other.result["weights"]
    step, what = first_difference(*(History.load(trial.folder / "history.npz") for trial in (one, other)))
    if not same and step is None:
        step, what = int(one.result["steps"]), "weights"
    return {
        "steps": one.result["steps"],
        "same": same and step is None,
        "first_difference": step,
        "of": what,
        "weights": [one.result["weights"], other.result["weights"]],
        "deterministic": bench.config["trainer"].get("deterministic", True),
    }


def first_difference(one: History, other: History) -> tuple[int | None, str]:
    """The first step at which two histories differ, and in what; (None, "") where they are the same, times apart."""
    found: list[tuple[int, str]] = []
    for name in sorted({*one.step, *other.step}):
        if name.startswith("time/"):
            continue
        (at, values), (at_other, others) = one.series(name), other.series(name)
        length = min(len(at), len(at_other))
        same = (at[:length] == at_other[:length]) & (
            (values[:length] == others[:length]) | (np.isnan(values[:length]) & np.isnan(others[:length]))
        )
        if not same.all():
            found.append((int(at[:length][~same][0]), name))
        elif len(at) != len(at_other):
            found.append((int(max(at, at_other, key=len)[length]), name))
    return min(found, default=(None, ""))
