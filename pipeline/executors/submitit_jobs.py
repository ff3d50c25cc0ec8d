"""Workers as jobs of submitit: on a Slurm cluster, or for a try on this machine."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError, fault
from pipeline.executors.remote_worker import RemoteWorker
from pipeline.executors.settings import ExecutorSettings

if TYPE_CHECKING:
    from submitit import Job

Command = Callable[[Path, int], tuple[list[str], Mapping[str, str]]]  # of a worker: (folder of the job, threads)

INSTALL = "python -m pip install 'fivegate[launchers]'"


class SubmititWorkers:
    """Jobs that each run one worker and wait for it. After `stop` no other is submitted.

    submitit writes its files and the output of each job below `folder`. Raises UserError for parameters that it does
    not know, and where it is not installed or finds no Slurm.
    """

    def __init__(self, settings: ExecutorSettings, folder: Path, command: Command) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError(fault("executor", "needs submitit, which is not installed", do=INSTALL)) from error
        self._command = command
        self._jobs: set[Job[tuple[int, str, str]]] = set()
        self._stopped = False
        self._lock = threading.Lock()
        parameters = {"timeout_min": settings.timeout_min, **settings.parameters}
        try:
            self._executor = submitit.AutoExecutor(folder=folder / "%j", cluster=settings.cluster)
            self._executor.update_parameters(**parameters)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            expected = "a Slurm cluster with sbatch and srun on this machine, and parameters that submitit knows"
            what = f"cannot be used: {error}"
            do = "python -m pipeline ... executor.cluster=local"
            raise UserError(fault("executor", what, got=str(dict(parameters)), expected=expected, do=do)) from error

    def run(self, folder: Path, threads: int) -> subprocess.CompletedProcess[str]:
        """Submit a worker for the folder's job and wait for it. Raises CancelledError after `stop`."""
        import submitit

        command, environment = self._command(folder, threads)
        with self._lock:  # the parameters belong to the executor, not to the job
            if self._stopped:
                raise CancelledError
            self._executor.update_parameters(cpus_per_task=threads)
            job = self._executor.submit(RemoteWorker(tuple(command), environment))
            self._jobs.add(job)
        try:
            return subprocess.CompletedProcess(command, *job.result())
        except submitit.core.utils.UncompletedJobError as error:  # killed, out of time, or its machine was lost
            return subprocess.CompletedProcess(command, -signal.SIGKILL, "", str(error).splitlines()[0])
        finally:
            with self._lock:
                self._jobs.discard(job)

    def stop(self, number: signal.Signals) -> None:
        """Cancel every job: its worker finishes the step and stops. No job is submitted afterwards."""
        with self._lock:
            self._stopped = True
            for job in self._jobs:
                job.cancel(check=False)

    def close(self) -> None:
        """Nothing is left to be closed: a job ends with its worker."""
