"""What a job of a cluster does: it starts the worker process of a trial, and passes requests to stop on to it.

So a trial has a process of its own wherever it runs, and the same worker makes the same result everywhere. The folder
of the run has to be on a file system that the machines share.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType

POLL_S = 0.5  # Ray requests a stop without a signal of the system, which would end the waiting


@dataclass(frozen=True)
class RemoteWorker:
    """A command with the variables that it needs besides those of the machine it runs on."""

    command: tuple[str, ...]
    environment: Mapping[str, str]

    def __call__(self) -> tuple[int, str, str]:
        """Run the command, and return its exit code, or minus the signal that ended it, and what it printed."""
        environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        worker: list[subprocess.Popen[str]] = []
        requested = threading.Event()

        def stop(number: int, frame: FrameType | None) -> None:
            requested.set()
            for process in worker:
                process.send_signal(signal.SIGTERM)  # the worker finishes its step, and writes a checkpoint

        # Before the worker starts: a request that comes while it does would end this process alone.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, stop)
        process = subprocess.Popen(self.command, env={**environment, **self.environment}, text=True, **pipes)  # type: ignore[call-overload]
        worker.append(process)
        if requested.is_set():
            process.send_signal(signal.SIGTERM)
        while True:
            try:
                out, err = process.communicate(timeout=POLL_S)
                return process.returncode, out, err
            except subprocess.TimeoutExpired:
                continue

    def checkpoint(self) -> object:
        """Tell submitit to queue a preempted job again: the worker goes on from its last checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)
