"""Reproduce a training: the same job once more in a fresh process, with another hash seed, compared bit by bit.

A training that takes longer than the time it is given is stopped, and the stretch that was trained is compared with
the recorded history: losses, norms and scores of every step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.history import Column, History
from pipeline.run_store import files
from pipeline.run_store.job import Job
from pipeline.trials.executor import start_jobs

NAME = "training"
OTHER_HASH_SEED = {"PYTHONHASHSEED": "20011"}  # sets and dicts of text are in another order than in the first training


class FirstDifference(TypedDict):
    """The first recorded value in which the repeated training differs."""

    step: int
    name: str
    recorded: float
    repeated: float


class Replay(TypedDict):
    """A repeated training: its steps, of how many, and whether it agrees.

    `weights` and `repeated_weights` are digests; the second is None where the training was stopped before its end, or
    where the clock ended one of the two. `died` is the reason why it ended without a result, `why` why it was not done.
    """

    steps: int
    planned_steps: int
    weights: str
    repeated_weights: str | None
    difference: FirstDifference | None
    died: str
    why: str


def replay_training(job: Job, weights: str, recorded: Path, scratch: Path, *, seconds: float, threads: int) -> Replay:
    """Train the job once more for at most `seconds`, and compare with the training in the folder `recorded`.

    `weights` is the digest of the recorded weights. Everything is trained in `scratch`, which is removed afterwards.
    """
    history = History.load(recorded / "history.npz")
    last = _last_state(recorded)
    result = Replay(
        steps=0, planned_steps=int(str(last.get("step", 0))), weights=weights, repeated_weights=None, difference=None,
        died="", why="",
    )  # fmt: skip
    if not seconds:
        return {**result, "why": "phases.finalization.replay_seconds is 0"}
    files.remove_folder(scratch)
    try:
        with start_jobs(
            [(NAME, job)], scratch, parallel=1, threads=threads, seconds=seconds, environment=OTHER_HASH_SEED
        ) as trials:
            try:
                (trial,) = trials
            except TimeoutError:
                trial = None  # the worker saves a checkpoint when the block ends
        if trial is not None and trial.died:
            return {**result, "died": trial.died}
        repeated, steps = _repeated(scratch / NAME)
        result |= {"steps": steps, "difference": first_difference(history, repeated, steps)}
        by_clock = "clock" in (last.get("stop_reason"), trial and trial.result.get("stopped"))
        if trial is not None and not by_clock:
            result["repeated_weights"] = str(trial.result["weights"])
    finally:
        files.remove_folder(scratch)
    return result


def _last_state(folder: Path) -> Mapping[str, object]:
    """Return the state of the newest checkpoint of a training that has its history; empty without one."""
    states = [json.loads(path.read_bytes()) for path in folder.glob("checkpoints/*/state.json")]
    last = [state for state in states if state.get("role") == "last"]
    return max(last, key=lambda state: int(state["step"]), default={})


def _repeated(folder: Path) -> tuple[History, int]:
    """Return the history of a training that ended or was stopped, and its number of steps."""
    steps = int(str(_last_state(folder).get("step", 0)))
    if (folder / "history.npz").is_file():
        return History.load(folder / "history.npz"), steps
    saved = [path for path in folder.glob("checkpoints/*/history.npz") if path.parent.name.isdigit()]
    newest = max(saved, key=lambda path: int(path.parent.name), default=None)
    return (History(), 0) if newest is None else (History.load(newest), steps)


def first_difference(recorded: History, repeated: History, steps: int) -> FirstDifference | None:
    """Return the first value up to this step in which two histories differ; None where they agree. Times are left out.

    A value that only one of them has is a difference, too, and is NaN in the other.
    """
    epochs = max((column.index[-1] for column in repeated.epoch.values() if column.index), default=0)
    differences: list[FirstDifference] = []
    for own, other, limit in ((recorded.step, repeated.step, steps), (recorded.epoch, repeated.epoch, epochs)):
        for name in {*own, *other}:
            if name.startswith("time/"):
                continue
            (index, values), (again, repeated_values) = (_until(table.get(name), limit) for table in (own, other))
            if np.array_equal(index, again) and np.array_equal(values, repeated_values, equal_nan=True):
                continue
            known, new = dict(zip(index, values, strict=True)), dict(zip(again, repeated_values, strict=True))
            pairs = ((step, known.get(step, np.nan), new.get(step, np.nan)) for step in sorted({*known, *new}))
            step, before, after = next(pair for pair in pairs if not _same(pair, known, new))
            differences.append({"step": int(step), "name": name, "recorded": float(before), "repeated": float(after)})
    return min(differences, key=lambda difference: (difference["step"], difference["name"]), default=None)


def _until(column: Column | None, limit: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return index and values of a column up to a step or epoch."""
    index = np.array(column.index if column else [], np.int64)
    return index[index <= limit], np.array(column.values if column else [], np.float32)[index <= limit]


def _same(pair: tuple[Any, Any, Any], known: Mapping[Any, Any], new: Mapping[Any, Any]) -> bool:
    step, before, after = pair
    return step in known and step in new and bool(before == after or (np.isnan(before) and np.isnan(after)))
