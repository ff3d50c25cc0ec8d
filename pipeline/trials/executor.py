"""Running jobs as worker processes on this machine, a generation at a time, results in the order of the jobs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.import_guard import child_pythonpath
from pipeline.run_store import files
from pipeline.run_store.job import Job
from pipeline.runtime.threads import cores

Run = Callable[[Path, int], subprocess.CompletedProcess[str]]  # a job's folder and its threads, run in a worker


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
    return max(1, cores() // max(threads, 1)) if setting == "auto" else int(setting)


def _finished(folder: Path, job: Job) -> Mapping[str, Any] | None:
    """The result of the same job when it already ran: a training is a pure function of its job."""
    try:
        same = json.loads((folder / "job.json").read_text()) == job.to_json()
        return json.loads((folder / "result.json").read_text()) if same else None
    except (OSError, ValueError):
        return None


def _command(folder: Path, threads: int) -> tuple[list[str], dict[str, str]]:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_RUN_ID"}
    environment["PYTHONPATH"] = child_pythonpath()
    environment["OMP_NUM_THREADS"] = str(threads)
    return [sys.executable, "-m", "pipeline", "worker", str(folder)], environment


class Workers:
    """The worker processes at work. Once they were told to stop, no other is started."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._over = False
        self._turn = threading.Lock()

    def run(self, folder: Path, threads: int) -> subprocess.CompletedProcess[str]:
        """A worker on the folder's job, waited for. Raises CancelledError where none may start any more."""
        command, environment = _command(folder, threads)
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self._turn:
            if self._over:
                raise CancelledError
            process = subprocess.Popen(command, env=environment, text=True, **pipes)
            self._running.add(process)
        try:
            out, err = process.communicate()
        finally:
            with self._turn:
                self._running.discard(process)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def tell(self, number: signal.Signals) -> None:
        """Every worker gets this signal, and none is started after it."""
        with self._turn:
            self._over = True
            for process in self._running:
                process.send_signal(number)


def _prepare(folder: Path, job: Job) -> None:
    """The folder holds this job; what the same job left there before, its checkpoints, is kept for it to take up."""
    try:
        same = json.loads((folder / "job.json").read_text()) == job.to_json()
    except (OSError, ValueError):
        same = False
    if not same:
        files.remove_folder(folder)
        files.write_json(folder / "job.json", job.to_json())


def _run_one(trial: Trial, threads: int, run: Run) -> Trial:
    known = _finished(trial.folder, trial.job)
    if known is not None:
        return Trial(trial.id, trial.job, trial.folder, known)
    _prepare(trial.folder, trial.job)
    ended = run(trial.folder, threads)
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

    A worker that dies is an outcome, not an error. Jobs that finished before are not run again, and those that were
    stopped go on from their checkpoints. When this process is interrupted its workers end their step and stop; a
    second time they are killed.
    """
    done = []
    with started(jobs, folder, parallel=parallel, threads=threads) as trials:
        for trial in trials:
            told(trial)
            done.append(trial)
    return done


@contextmanager
def started(
    jobs: Sequence[tuple[str, Job]], folder: Path, *, parallel: int, threads: int, seconds: float | None = None
) -> Iterator[Iterator[Trial]]:
    """The jobs are at work in processes of their own; what they gave comes in their order, when it is asked for.

    Whoever asks longer than `seconds` after the start gets a TimeoutError. No worker is left behind the block.
    """
    trials = [Trial(name, job, folder / name) for name, job in jobs]
    pool, workers = ThreadPoolExecutor(max_workers=parallel), Workers()
    try:
        yield pool.map(lambda t: _run_one(t, threads, workers.run), trials, timeout=seconds)
    finally:
        _end(pool, workers)


def _end(pool: ThreadPoolExecutor, workers: Workers) -> None:
    """No job is started any more, and no worker is left."""
    try:
        workers.tell(signal.SIGTERM)
        pool.shutdown(cancel_futures=True)
    except KeyboardInterrupt:
        workers.tell(signal.SIGKILL)
        pool.shutdown(cancel_futures=True)
        raise
