"""One job of a sweep, in the process where the launcher runs it. Its end is written to the sweep's directory."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pipeline.config.compose import finished
from pipeline.config.schema import validate
from pipeline.errors import FivegateError, UserError
from pipeline.orchestration.sweep_directory import JobEnd, SweepDirectory
from pipeline.orchestration.sweep_isolation import isolated
from pipeline.runtime.interrupt import REPEAT_SECONDS, StopSignal, is_stop_request, outside_training, signal_handlers
from pipeline.trust.environment import reading, reading_all

log = logging.getLogger(__name__)

Job = Callable[[dict[str, Any], list[str]], int]


@dataclass(frozen=True)
class Task:
    """The function that a launcher calls with the config of each job. It can be pickled where `job` can.

    `overrides` are those of the command line, `parent_pid` is the process of the sweep itself. A job in another process
    ends when that process does, and ends quietly when the sweep is stopped, so that no launcher reports a failure.
    """

    directory: SweepDirectory
    overrides: list[str]
    job: Job
    parent_pid: int

    def __call__(self, composed: DictConfig) -> None:
        number = int(HydraConfig.get().job.num)
        overrides = [word for word in HydraConfig.get().overrides.task if not word.startswith("run.sweep=")]
        if self.directory.settled(number):
            return
        if os.getpid() == self.parent_pid:  # relay_signals must not relay a stop to its own process
            with outside_training():
                self.directory.record_end(number, self._run(composed, overrides, number))
            return
        name = self._name(composed, number)
        try:
            with outside_training(), self.directory.job_process(number, name, overrides), _ends_with_sweep(self):
                if not self.directory.stopping:
                    self.directory.record_end(number, self._run(composed, overrides, number))
        except StopSignal as stop:
            log.error("%s: interrupted: %s", name, stop)

    def _name(self, composed: DictConfig, number: int) -> str:
        try:
            with reading(()):
                name = composed.run.name
            return f"{name}-{self.directory.number}-{number}"
        except Exception:  # an interpolation may fail in any way; `_run` reports it
            return f"?-{self.directory.number}-{number}"

    def _run(self, composed: DictConfig, overrides: list[str], number: int) -> JobEnd:
        """Validate the config, run the job, and undo what it did to the process. Only an interrupt is raised."""
        suffix = f"{self.directory.number}-{number}"
        name = f"?-{suffix}"
        try:
            with isolated():
                config, faults = finished(composed, self.overrides)
                if faults:
                    raise UserError(*faults)
                name = config["run"]["name"] = f"{config['run']['name']}-{suffix}"
                validate(config)
                with reading_all():
                    code = self.job(config, overrides)
        except FivegateError as error:
            log.error("%s: %s", name, error)
            code = error.exit_code
        except BaseException as error:  # a fault of one job, `sys.exit` included, does not stop the others
            if is_stop_request(error):
                raise
            log.exception("%s: fault in the program", name)
            code = 1
        return JobEnd(name, code, overrides)


@contextmanager
def _ends_with_sweep(task: Task) -> Iterator[None]:
    """Kill this process within a second after the process of the sweep has ended, for whatever reason.

    The kernel could do it for a direct child only, and some launchers put a process between the two.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            if not task.directory.running and not done.is_set():
                os.kill(os.getpid(), signal.SIGKILL)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


@contextmanager
def relay_signals(directory: SweepDirectory) -> Iterator[list[str]]:
    """Relay a request to stop to the processes of the jobs, which finish their step; yields the list of requests.

    A second request, at least half a second later, kills them and raises StopSignal.
    """
    requests: list[str] = []
    first = 0.0

    def stop(number: int, _: Any) -> None:
        nonlocal first
        if not requests:
            first = time.monotonic()
            requests.append(signal.Signals(number).name)
            directory.stop_jobs(signal.SIGTERM)
        elif time.monotonic() - first > REPEAT_SECONDS:
            directory.stop_jobs(signal.SIGKILL)
            raise StopSignal(requests[0])

    with signal_handlers({signal.SIGINT: stop, signal.SIGTERM: stop}):
        yield requests
