"""Workers as tasks of a Ray cluster, which gives each the cores of its threads."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from pipeline.errors import FivegateError, UserError, fault
from pipeline.executors.remote_worker import RemoteWorker
from pipeline.executors.settings import ExecutorSettings

Command = Callable[[Path, int], tuple[list[str], Mapping[str, str]]]  # of a worker: (folder of the job, threads)

INSTALL = "python -m pip install 'fivegate[ray]'"
# Ray would report its usage, and hide GPUs from tasks that ask for none.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class RayTasks:
    """Tasks that each run one worker and wait for it. After `stop` no other is submitted.

    Raises UserError where Ray is not installed, or no cluster answers at the address, and FivegateError where a cluster
    on this machine does not start; Ray gives up after half a minute, which a busy machine may need.
    """

    def __init__(self, settings: ExecutorSettings, command: Command) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError as error:
            raise UserError(fault("executor", "needs Ray, which is not installed", do=INSTALL)) from error
        self._ray: Any = ray
        self._command, self._num_gpus = command, settings.gpus_per_job
        self._owns = not ray.is_initialized()
        self._tasks: set[Any] = set()
        self._stopped = False
        self._lock = threading.Lock()
        own: dict[str, Any] = {} if settings.address else {"include_dashboard": False}
        try:
            if self._owns:
                ray.init(address=settings.address or "local", log_to_driver=False, logging_level="ERROR", **own)
        except Exception as error:  # Ray raises errors of any type here
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            if settings.address is None:
                do = "repeat the command when the machine is less busy, or: executor=local"
                raise FivegateError(fault("executor", f"cannot start Ray: {why}", do=do)) from error
            expected = "the address of a Ray cluster, or null for one on this machine"
            raise UserError(
                fault("executor.address", f"cannot be reached: {why}", got=settings.address, expected=expected)
            ) from error

    def run(self, folder: Path, threads: int) -> subprocess.CompletedProcess[str]:
        """Run a worker on the folder's job and wait for it. Raises CancelledError after `stop`."""
        command, environment = self._command(folder, threads)
        worker = RemoteWorker(tuple(command), environment)
        task = self._ray.remote(num_cpus=max(1, threads), num_gpus=self._num_gpus, max_retries=0)(_run)
        with self._lock:
            if self._stopped:
                raise CancelledError
            reference = task.remote(worker)
            self._tasks.add(reference)
        try:
            return subprocess.CompletedProcess(command, *self._ray.get(reference))
        except self._ray.exceptions.RayError as error:  # its process was killed, or its machine was lost
            return subprocess.CompletedProcess(command, -signal.SIGKILL, "", str(error).splitlines()[0])
        finally:
            with self._lock:
                self._tasks.discard(reference)

    def stop(self, number: signal.Signals) -> None:
        """Cancel every task: its worker finishes the step and stops. No task is submitted afterwards."""
        with self._lock:
            self._stopped = True
            for reference in self._tasks:
                self._ray.cancel(reference, force=number == signal.SIGKILL)

    def close(self) -> None:
        """End the cluster that this object started."""
        if self._owns:
            self._ray.shutdown()


def _run(worker: RemoteWorker) -> tuple[int, str, str]:
    return worker()
