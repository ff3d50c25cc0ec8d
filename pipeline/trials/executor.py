"""Run jobs in worker processes on this machine; results come in the order of the jobs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypedDict

from pipeline.executors.settings import ExecutorSettings
from pipeline.import_guard import child_pythonpath
from pipeline.run_store import files
from pipeline.run_store.job import Job
from pipeline.run_store.lock import end_if_forked_from

REMOTE_VARIABLES = ("PYTHONPATH", "PYTHONSAFEPATH", "OMP_NUM_THREADS", "XDG_STATE_HOME")  # what a remote worker needs
RunWorker = Callable[[Path, int], subprocess.CompletedProcess[str]]  # (folder of the job, threads)


@dataclass(frozen=True)
class Trial:
    """One training that ended. `result` is what the worker wrote, empty if it died; `died` is the reason.

    `interrupted` is why its first worker was killed or refused by the disk; a second one has taken the job up.
    """

    id: str
    job: Job
    folder: Path
    result: Mapping[str, Any] = field(default_factory=dict)
    died: str | None = None
    interrupted: str | None = None

    @property
    def score(self) -> Mapping[str, Any] | None:
        return self.result.get("score")

    @property
    def value(self) -> float:
        """The validation score, NaN when there is none."""
        return float(self.score["value"]) if self.score else float("nan")


def parallel_jobs(setting: int | str, threads: int) -> int:
    """How many workers run at a time on this machine: the setting, or for `auto` as many as their threads fit."""
    return ExecutorSettings().parallel(setting, threads)


def _same_job(folder: Path, job: Job) -> bool:
    """Whether the folder belongs to this job."""
    try:
        return bool(json.loads((folder / "job.json").read_text()) == job.to_json())
    except (OSError, ValueError):
        return False


def _recorded_result(folder: Path, job: Job) -> Mapping[str, Any] | None:
    """The result of this job if it has run already: a training is a pure function of its job."""
    try:
        return json.loads((folder / "result.json").read_text()) if _same_job(folder, job) else None
    except (OSError, ValueError):
        return None


def _command(folder: Path, threads: int) -> tuple[list[str], dict[str, str]]:
    """Return the command of a worker, and its environment."""
    # A worker must not write to the tracker's run of this process.
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
    environment["PYTHONPATH"] = child_pythonpath()
    environment["OMP_NUM_THREADS"] = str(threads)
    return [sys.executable, "-P", "-m", "pipeline", "worker", str(folder)], environment


class Workers:
    """The running worker processes, each with these variables in its environment. After `stop` no other is started."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = environment or {}
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def run(self, folder: Path, threads: int) -> subprocess.CompletedProcess[str]:
        """Run a worker on the folder's job and wait for it. Raises CancelledError after `stop`."""
        command, environment = _command(folder, threads)
        environment = {**environment, **self._environment} if self._environment else environment
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self._lock:
            if self._stopped:
                raise CancelledError
            process = subprocess.Popen(command, env=environment, text=True, **pipes)
            self._running.add(process)
        try:
            out, err = process.communicate()
        finally:
            with self._lock:
                self._running.discard(process)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def stop(self, number: signal.Signals) -> None:
        """Send this signal to every worker; no worker is started afterwards."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.send_signal(number)

    def close(self) -> None:
        """Nothing is left to be closed: a process ends with its training."""


class Executor(Protocol):
    """Runs worker processes, here or elsewhere."""

    def run(self, folder: Path, threads: int) -> subprocess.CompletedProcess[str]:
        """Run a worker on the folder's job and wait for it. Raises CancelledError after `stop`."""
        ...

    def stop(self, number: signal.Signals) -> None:
        """Ask every worker to stop; no worker is started afterwards."""
        ...

    def close(self) -> None:
        """Give back what was opened, after the last worker has ended."""
        ...


def _remote_command(folder: Path, threads: int) -> tuple[list[str], dict[str, str]]:
    """Return the command of a worker, and the variables that it needs on another machine."""
    command, environment = _command(folder.resolve(), threads)
    return command, {name: environment[name] for name in REMOTE_VARIABLES if name in environment}


def open_executor(settings: ExecutorSettings, folder: Path, environment: Mapping[str, str] | None = None) -> Executor:
    """Return the executor of the settings; one of a cluster keeps its own files below `folder`."""
    if settings.kind == "submitit":
        from pipeline.executors.submitit_jobs import SubmititWorkers

        return SubmititWorkers(settings, files.folder(folder / "submitit"), _remote_command)
    if settings.kind == "ray":
        from pipeline.executors.ray_tasks import RayTasks

        return RayTasks(settings, _remote_command)
    return Workers(environment)


def _prepare_folder(folder: Path, job: Job) -> None:
    """Write the job to its folder; checkpoints of the same job are kept, so that it resumes from them."""
    if not _same_job(folder, job):
        files.remove_folder(folder)
        files.write_json(folder / "job.json", job.to_json())


def _is_no_outcome(process: subprocess.CompletedProcess[str]) -> bool:
    """Whether a worker ended for a reason that says nothing about its training: a signal, or the disk refused."""
    return process.returncode < 0 or process.returncode == os.EX_IOERR


def _run_trial(trial: Trial, threads: int, run_worker: RunWorker) -> Trial:
    """Run the job unless it has a result already.

    A worker that was killed, or that the disk refused, is replaced once: its training would count as the worst of the
    study, and a control that counts so makes a change look better than it is.
    """
    result = _recorded_result(trial.folder, trial.job)
    if result is not None:
        return replace(trial, result=result)
    _prepare_folder(trial.folder, trial.job)
    process = run_worker(trial.folder, threads)
    if _is_no_outcome(process):
        trial = replace(trial, interrupted=_format_exit(process))
        process = run_worker(trial.folder, threads)
    result = _recorded_result(trial.folder, trial.job)
    if process.returncode == 0 and result is not None:
        return replace(trial, result=result)
    return replace(trial, died=_format_exit(process))


def _format_exit(process: subprocess.CompletedProcess[str]) -> str:
    """Return how a worker ended, with its last line: the error itself, below its traceback."""
    silent = "no message" if process.returncode else "it ended without a result, as after os._exit"
    last = (process.stderr.strip() or process.stdout.strip() or silent).splitlines()[-1]
    how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit {process.returncode}"
    return f"{how}: {last}"


def run_jobs(
    jobs: Sequence[tuple[str, Job]],
    folder: Path,
    *,
    parallel: int,
    threads: int,
    on_finished: Callable[[Trial], None],
    settings: ExecutorSettings | None = None,
) -> list[Trial]:
    """Train every job in its own process under `folder/<id>`; `on_finished` is called in the order of the jobs.

    A worker that dies is an outcome, not an error. Jobs with a result are not run again, and stopped jobs resume from
    their checkpoints. When this process is interrupted, its workers finish their step and stop; a second
    interrupt kills them.
    """
    finished = []
    with start_jobs(jobs, folder, parallel=parallel, threads=threads, settings=settings) as trials:
        for trial in trials:
            on_finished(trial)
            finished.append(trial)
    return finished


@contextmanager
def start_jobs(
    jobs: Sequence[tuple[str, Job]],
    folder: Path,
    *,
    parallel: int,
    threads: int,
    seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
    settings: ExecutorSettings | None = None,
) -> Iterator[Iterator[Trial]]:
    """Run the jobs in their own processes while the block runs, and yield their trials in the order of the jobs.

    `settings` say where they run; without them, on this machine. A trial that is not finished `seconds` after the start
    raises TimeoutError. All workers have ended after the block. They have the variables of `environment` besides those
    of this process.
    """
    trials = [Trial(name, job, folder / name) for name, job in jobs]
    workers = open_executor(settings or ExecutorSettings(), folder, environment)
    # Ctrl-C raises in this thread wherever it is, also inside the lock of a Future, which would then stay closed.
    # SimpleQueue is written in C, so that Ctrl-C cannot stop it half-way.
    waiting: SimpleQueue[Trial] = SimpleQueue()
    ended: SimpleQueue[tuple[str, Trial | BaseException]] = SimpleQueue()
    for trial in trials:
        waiting.put(trial)

    def work() -> None:
        while (trial := _next(waiting)) is not None:
            try:
                ended.put((trial.id, _run_trial(trial, threads, workers.run)))
            except BaseException as error:  # it is raised in the thread that asks for the result
                ended.put((trial.id, error))

    pool, owner = [threading.Thread(target=work) for _ in range(min(parallel, len(trials)))], os.getpid()
    try:
        for thread in pool:
            thread.start()
        yield _in_order(trials, ended, seconds)
    finally:
        end_if_forked_from(owner)  # a child of the user's code would stop the workers of its parent
        while _next(waiting) is not None:
            pass
        _shut_down(pool, workers)


def _next(waiting: SimpleQueue[Trial]) -> Trial | None:
    """Take a job that no thread has begun; None if there is none."""
    try:
        return waiting.get_nowait()
    except Empty:
        return None


def _in_order(
    trials: Sequence[Trial], ended: SimpleQueue[tuple[str, Trial | BaseException]], seconds: float | None
) -> Iterator[Trial]:
    """Yield the trials in the order of the jobs, each as soon as it and those before it have ended."""
    end = math.inf if seconds is None else time.monotonic() + seconds
    outcomes: dict[str, Trial | BaseException] = {}
    for trial in trials:
        while trial.id not in outcomes:
            try:
                name, outcome = ended.get(timeout=None if seconds is None else max(0.0, end - time.monotonic()))
            except Empty:
                raise TimeoutError(f"{trial.id} has not ended within {seconds:g} s") from None
            outcomes[name] = outcome
        outcome = outcomes.pop(trial.id)
        if isinstance(outcome, BaseException):
            raise outcome
        yield outcome


def _shut_down(pool: Sequence[threading.Thread], workers: Executor) -> None:
    """Wait until all workers have ended, after asking them to stop; a second interrupt kills them."""
    try:
        workers.stop(signal.SIGTERM)
        _join(pool)
    except KeyboardInterrupt:
        workers.stop(signal.SIGKILL)
        _join(pool)
        raise
    finally:
        workers.close()


def _join(pool: Sequence[threading.Thread]) -> None:
    for thread in pool:
        if thread.ident is not None:  # it was started
            thread.join()


def ending_record(trial: Trial) -> dict[str, Any]:
    """Return what the ledger records of the end of a trial."""
    end = {"id": trial.id, "score": trial.score, "died": trial.died, "weights": trial.result.get("weights")}
    return {**end, "interrupted": trial.interrupted} if trial.interrupted else end


class TrialMeasurements(TypedDict):
    """What a worker measured of its own training; None where it died."""

    id: str
    arm: str
    seed_index: int
    died: str | None
    seed: int | None
    threads: int | None
    steps: int | None
    stopped: str | None


def measurements(trial: Trial) -> TrialMeasurements:
    """Return what the worker of a trial measured."""
    worker = trial.result.get
    return {
        "id": trial.id,
        "arm": trial.id.rpartition("-")[0],
        "seed_index": trial.job.seed_index,
        "died": trial.died,
        "seed": worker("seed"),
        "threads": worker("threads"),
        "steps": worker("steps"),
        "stopped": worker("stopped"),
    }
