"""One job of a sweep, in whatever process the launcher runs it; its end travels through the sweep's folder."""

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
from pipeline.runtime.interrupt import ONE_REQUEST, heard, outside_training

log = logging.getLogger(__name__)

Job = Callable[[dict[str, Any], list[str]], int]


@dataclass(frozen=True)
class Task:
    """What a launcher calls with every job's config. Picklable where `job(config, overrides)` is.

    `home` is the process of the sweep itself: a job that runs in another one ends with it, and ends quietly when the
    sweep is asked to stop, so that no launcher takes a stop for a failure.
    """

    shelf: SweepDirectory
    typed: list[str]
    job: Job
    home: int

    def __call__(self, composed: DictConfig) -> None:
        number = int(HydraConfig.get().job.num)
        told = [word for word in HydraConfig.get().overrides.task if not word.startswith("run.sweep=")]
        if self.shelf.settled(number):
            return
        if os.getpid() == self.home:  # whoever relays a request to stop does not relay it to itself
            with heard({signal.SIGINT: signal.default_int_handler}), outside_training():
                self.shelf.put(number, self._run(composed, told, number))
            return
        try:
            with outside_training(), self.shelf.at_work(number, self._name(composed, number), told), _orphaned(self):
                if not self.shelf.stopping:
                    self.shelf.put(number, self._run(composed, told, number))
        except KeyboardInterrupt as stop:
            log.error("%s: interrupted: %s", self._name(composed, number), stop)

    def _name(self, composed: DictConfig, number: int) -> str:
        try:
            return f"{composed.run.name}-{self.shelf.number}-{number}"
        except Exception:  # the interpolations of others may fail in many ways, which composing says
            return f"?-{self.shelf.number}-{number}"

    def _run(self, composed: DictConfig, told: list[str], number: int) -> JobEnd:
        """The job from its config to its end, nothing of it left in the process. Only an interrupt gets out."""
        suffix = f"{self.shelf.number}-{number}"
        name = f"?-{suffix}"
        try:
            with isolated():
                config, faults = finished(composed, self.typed)
                if faults:
                    raise UserError(*faults)
                name = config["run"]["name"] = f"{config['run']['name']}-{suffix}"
                validate(config)
                code = self.job(config, told)
        except FivegateError as error:
            log.error("%s: %s", name, error)
            code = error.exit_code
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        except Exception:  # a fault of the program in one job is no reason to lose the others
            log.exception("%s: fault in the program", name)
            code = 1
        return JobEnd(name, code, told)


@contextmanager
def _orphaned(task: Task) -> Iterator[None]:
    """Inside the block this process ends within a second when the one of the sweep does, however that ends.

    The kernel could do it for a child alone, and some launchers put a process between the two.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            if not task.shelf.taken and not over.is_set():
                os.kill(os.getpid(), signal.SIGKILL)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


@contextmanager
def relayed(shelf: SweepDirectory) -> Iterator[list[str]]:
    """Inside the block a request to stop goes to the jobs' processes, which end their steps; it is listed.

    Who asks once more, half a second later, has them killed: KeyboardInterrupt.
    """
    asked: list[str] = []
    first = 0.0

    def stop(number: int, _: Any) -> None:
        nonlocal first
        if not asked:
            first = time.monotonic()
            asked.append(signal.Signals(number).name)
            shelf.tell(signal.SIGTERM)
        elif time.monotonic() - first > ONE_REQUEST:
            shelf.tell(signal.SIGKILL)
            raise KeyboardInterrupt(asked[0])

    with heard({signal.SIGINT: stop, signal.SIGTERM: stop}):
        yield asked
