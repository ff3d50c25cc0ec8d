"""Running jobs as worker processes on this machine, a generation at a time, results in the order of the jobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.job import Job
from pipeline.record import files

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Trial:
    """One training as it ended: `result` is what the worker wrote, empty when it died, and `died` says of what."""

    id: str
    job: Job
    folder: Path
    result: Mapping[str, Any] = field(default_factory=dict)
    died: str | None = None

    @property
    def score(self) -> Mapping[str, Any] | None:
        return self.result.get("score")

    @property
    def value(self) -> float:
        """The validation score, NaN when there is none."""
        return float(self.score["value"]) if self.score else float("nan")


def parallel_jobs(setting: int | str, threads: int) -> int:
    """How many workers at a time: as told, or so many that their threads fit the cores."""
    return max(1, (os.cpu_count() or 1) // max(threads, 1)) if setting == "auto" else int(setting)


def _finished(folder: Path, job: Job) -> Mapping[str, Any] | None:
    """The result of the same job when it already ran: a training is a pure function of its job."""
    try:
        same = json.loads((folder / "job.json").read_text()) == job.to_json()
        return json.loads((folder / "result.json").read_text()) if same else None
    except (OSError, ValueError):
        return None


def _command(folder: Path, threads: int) -> tuple[list[str], dict[str, str]]:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_RUN_ID"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), environment.get("PYTHONPATH")) if p)
    environment["OMP_NUM_THREADS"] = str(threads)
    return [sys.executable, "-m", "pipeline", "worker", str(folder)], environment


def _run_one(trial: Trial, threads: int) -> Trial:
    known = _finished(trial.folder, trial.job)
    if known is not None:
        return Trial(trial.id, trial.job, trial.folder, known)
    files.remove_folder(trial.folder)
    files.write_json(trial.folder / "job.json", trial.job.to_json())
    command, environment = _command(trial.folder, threads)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    result = _finished(trial.folder, trial.job)
    if ended.returncode == 0 and result is not None:
        return Trial(trial.id, trial.job, trial.folder, result)
    last = (ended.stderr.strip() or ended.stdout.strip() or "no message").splitlines()[-1]
    how = f"signal {-ended.returncode}" if ended.returncode < 0 else f"exit {ended.returncode}"
    return Trial(trial.id, trial.job, trial.folder, died=f"{how}: {last}")


def run_jobs(
    jobs: Sequence[tuple[str, Job]],
    folder: Path,
    *,
    parallel: int,
    threads: int,
    told: Callable[[Trial], None],
) -> list[Trial]:
    """Every job trained in a process of its own under `folder/<id>`; `told` hears of each in the order of the jobs.

    A worker that dies is an outcome, not an error. Jobs that finished before are not run again.
    """
    trials = [Trial(name, job, folder / name) for name, job in jobs]
    done = []
    with ThreadPoolExecutor(max_workers=parallel) as pool:
        for trial in pool.map(lambda t: _run_one(t, threads), trials):
            told(trial)
            done.append(trial)
    return done
