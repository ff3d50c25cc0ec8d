"""The warm worker as the phase uses it: started once, given jobs, asked for their outcomes."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pipeline.errors import FivegateError, fault
from pipeline.experiments.jobs import MARK, READY, RESULT, VERSION
from pipeline.import_guard import child_pythonpath
from pipeline.run_store import files
from pipeline.run_store.job import Job
from pipeline.run_store.lock import end_if_forked_from

MAX_MESSAGE = 4000  # characters that are read of what the worker wrote last on its standard error


class WorkerEnded(FivegateError):
    """The worker ended by itself: the data cannot be read, or the ledger permits no experiments."""


class WorkerKilled(WorkerEnded):
    """The worker was killed by a signal."""


@dataclass(frozen=True)
class Outcome:
    """An experiment that ended: what it measured, or why it has no figures, which is a result too."""

    id: str
    job: Job
    result: Mapping[str, Any] = field(default_factory=dict)
    died: str | None = None

    @property
    def value(self) -> float:
        """The validation score; NaN where the training crashed, diverged or was not scored."""
        score = self.result.get("score")
        return float(score["value"]) if score else float("nan")

    def value_within(self, steps: int) -> float:
        """The best validation score of the first steps; NaN if the training was not validated there."""
        values = [float(value) for step, value in self.result.get("curve", []) if step <= steps]
        known = [value for value in values if math.isfinite(value)]
        if not known:
            return math.nan
        return max(known) if self.result["greater_is_better"] else min(known)

    @property
    def failure_of_job(self) -> str | None:
        """Why the job has no result; None if it has one, whatever its score."""
        return self.died or self.result.get("error")

    @property
    def failure(self) -> str | None:
        """Why the training has no score; None if it has one."""
        if self.failure_of_job:
            return self.failure_of_job
        return None if self.result.get("score") else f"no score, training ended {self.result.get('stopped')}"


def recorded(folder: Path, job: Job) -> Mapping[str, Any] | None:
    """Return the result of this job if its folder has one: an experiment is a pure function of its job."""
    try:
        if json.loads((folder / "job.json").read_text()) != job.to_json():
            return None
        result = dict(json.loads((folder / RESULT).read_text()))
        return result if result.get("version") == VERSION else None
    except (OSError, ValueError):
        return None


class WarmWorker:
    """The process that forks experiments; it is started by the first one that has no result yet."""

    def __init__(self, folder: Path, parallel: int) -> None:
        self.folder, self.parallel = folder, parallel
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._unread = b""

    def start(self) -> None:
        """Start the process without waiting until it is ready: imports and data take a second or two."""
        if self._process is not None:
            return
        files.write_json(self.folder / MARK, {"parallel": self.parallel})
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
        # One thread; and the driver of a GPU must not be initialized before the forks.
        environment |= {"PYTHONPATH": child_pythonpath(), "OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the process
        command = [sys.executable, "-m", "pipeline", "worker", str(self.folder)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
        )

    def run(self, jobs: Sequence[tuple[str, Job]], seconds: float = 3600.0) -> list[Outcome]:
        """Run the jobs, several at a time, and return their outcomes in the order of the jobs.

        Those with a result are not run again. One that has not ended after `seconds` counts as died. What was killed by
        a signal, the worker or an experiment, is replaced once, since that says nothing about the training. Raises
        WorkerEnded if the worker cannot do any job.
        """
        outcomes = {
            name: Outcome(name, job, known)
            for name, job in jobs
            if (known := recorded(self._folder_of(name), job)) is not None
        }
        waiting = [(name, job) for name, job in jobs if name not in outcomes]
        running: dict[str, Job] = {}
        replaced: set[str] = set()
        deadline = time.monotonic() + seconds
        while waiting or running:
            while waiting and len(running) < self.parallel:
                name, job = waiting.pop(0)
                self._prepare(name, job)
                running[name] = job
                self._send(name)
            try:
                answer = self._answer(deadline)
            except WorkerKilled:
                if self.folder.name in replaced:
                    raise
                replaced.add(self.folder.name)
                waiting, running = [*running.items(), *waiting], {}
                continue
            if answer is None:
                self._kill()
                late = {
                    name: Outcome(name, job, died=f"did not end in {seconds:.0f} s") for name, job in running.items()
                }
                outcomes |= late
                running = {}
                continue
            name, code = answer
            job = running.pop(name)
            known = recorded(self._folder_of(name), job)
            if code < 0 and known is None and name not in replaced:
                replaced.add(name)
                waiting.append((name, job))
                continue
            how = f"signal {-code}" if code < 0 else f"exit {code}"
            outcomes[name] = (
                Outcome(name, job, known) if known is not None else Outcome(name, job, died=f"its process ended: {how}")
            )
        return [outcomes[name] for name, _ in jobs]

    def _folder_of(self, name: str) -> Path:
        return self.folder / name

    def _prepare(self, name: str, job: Job) -> None:
        files.remove_folder(self._folder_of(name))
        files.write_json(self._folder_of(name) / "job.json", job.to_json())

    def _send(self, name: str) -> None:
        self.start()
        assert self._process and self._process.stdin
        with suppress(BrokenPipeError):  # that the worker has ended is read with the next answer
            self._process.stdin.write(f"{name}\n".encode())
            self._process.stdin.flush()

    def _answer(self, deadline: float) -> tuple[str, int] | None:
        """Return the next job that ended, with its exit code; None at the deadline."""
        while True:
            line = self._line(deadline)
            if line is None:
                return None
            if line == READY:
                continue
            name, _, code = line.rpartition(" ")
            return name, int(code)

    def _line(self, deadline: float) -> str | None:
        assert self._process and self._process.stdout
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return None
            received = os.read(self._process.stdout.fileno(), 65536)
            if not received:
                raise self._ended()
            self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def _ended(self) -> WorkerEnded:
        """Return the error of a worker that ended by itself, with the last line that it wrote."""
        assert self._process and self._stderr
        code = self._process.wait()
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - MAX_MESSAGE))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        self._process, self._unread = None, b""
        kind = WorkerKilled if code < 0 else WorkerEnded
        return kind(lines[-1] if lines else fault("worker", "ended without a message", got=f"exit {code}"))

    def _kill(self) -> None:
        """End the process and the experiments that it forked, which die with it; the next job starts another one."""
        process, self._process, self._unread = self._process, None, b""
        if process is None:
            return
        process.send_signal(signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


@contextmanager
def warm_worker(folder: Path, parallel: int) -> Iterator[WarmWorker]:
    """A worker for the block; after it the process and its experiments have ended."""
    worker, owner = WarmWorker(folder, parallel), os.getpid()
    try:
        yield worker
    finally:
        end_if_forked_from(owner)
        worker._kill()
