"""Sweeps: Hydra's sweeper and launchers, with what they lack.

Every fault that can be found is reported before the first job starts. A failed job neither stops nor hides the others,
no state leaks from one job to the next, and each job is a run of its own, `<name>-<sweep>-<n>`. The same overrides
continue a sweep that was interrupted. Jobs report their results through files, whatever launcher runs them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from pipeline.config.arguments import parse
from pipeline.config.compose import Composition, composition, existing, hydra_over
from pipeline.config.hydra_main import hydra_sweep
from pipeline.config.override_keys import key_of
from pipeline.errors import UserError
from pipeline.orchestration.run_request import override_value
from pipeline.orchestration.sweep_directory import SETTLED, JobEnd, SweepDirectory, claim_sweep
from pipeline.orchestration.sweep_isolation import isolated
from pipeline.orchestration.sweep_task import Job, Task, relay_signals
from pipeline.runtime.interrupt import Interrupted
from pipeline.runtime.threads import cores

MAX_CHECKED = 64  # jobs that are composed before the first one starts; composing more would take too long
N_JOBS = "hydra.launcher.n_jobs"

Around = Callable[[SweepDirectory, dict[str, Any]], AbstractContextManager[object]]


@dataclass(frozen=True)
class SweepResult:
    """The root of the runs, the number of the sweep, and how its jobs ended, in their order."""

    root: Path
    number: int
    ends: list[JobEnd]


def multirun(
    argv: Sequence[str],
    job: Job,
    log: Callable[[str], None] = lambda text: None,
    around: Around = lambda directory, config: nullcontext(),
) -> SweepResult:
    """Run every combination of the swept values as one job, and return how each ended.

    `job(config, overrides)` returns its exit code; an exception ends that job only. `around(directory, config)` is
    entered in this process before the first job. Raises UserError, before anything is written, when the sweep itself
    is wrong, and Interrupted when the user stopped it.
    """
    arguments = parse(argv)
    overrides, folders = list(arguments.overrides), arguments.config_dirs
    checked = _check_jobs(overrides, folders)
    first = checked[0]
    launcher = str(first.choices.get("hydra/launcher", "basic"))
    root = Path(first.config["run"]["root"]).resolve()
    with ExitStack() as stack:
        directory, continued = stack.enter_context(claim_sweep(root, overrides, existing(folders)[0]))
        if continued:
            settled = sum(end.exit_code in SETTLED for end in directory.ends())
            log(f"sweep {directory.number} was interrupted and is continued; jobs that have ended: {settled}")
        stack.enter_context(around(directory, first.config))
        own = [f"run.sweep={directory.number}", *_launcher_overrides(launcher, checked, overrides)]
        typed = [o for o in overrides if key_of(o) not in map(key_of, own)]
        task = Task(directory, overrides, job, os.getpid())
        lost = _launch([*typed, *own], existing(folders)[0], task, launcher, log)
        return SweepResult(root, directory.number, [*directory.ends(), *lost])


def _launcher_overrides(launcher: str, jobs: Sequence[Composition], overrides: Sequence[str]) -> list[str]:
    """The overrides that keep parallel jobs from computing on more threads than there are cores.

    Results depend on the number of threads, so no job gets fewer than its plan says: fewer jobs run at a time.
    """
    if launcher == "basic":
        return []
    threads = {job.config["trainer"]["threads"] for job in jobs}
    parallel = {job.config["phases"]["optimization"]["parallel"] for job in jobs}
    own = []
    # `auto` means all cores for a large model, and for the trials of an optimization. Unless the user asks for it, a
    # parallel job trains on one thread and one trial at a time, so that the jobs themselves use the cores.
    if threads == {"auto"} and override_value(overrides, "trainer.threads") is None:
        own.append("trainer.threads=1")
        threads = {1}
    if parallel == {"auto"} and override_value(overrides, "phases.optimization.parallel") is None:
        own.append("phases.optimization.parallel=1")
        parallel = {1}
    per_job = max(_count(n) for n in threads) * max(_count(n) for n in parallel)
    at_a_time = max(1, cores() // per_job)
    if launcher == "joblib":
        typed = int(override_value(overrides, N_JOBS) or at_a_time)
        return [*own, f"{N_JOBS}={min(typed, at_a_time) if typed > 0 else at_a_time}"]
    # submitit starts all jobs of a batch at once. A year is no limit: the plan's own clock ends a training.
    return [*own, f"hydra.sweeper.max_batch_size={at_a_time}", "hydra.launcher.timeout_min=525600"]


def _count(setting: int | str) -> int:
    return cores() if setting == "auto" else int(setting)


def _launch(
    words: list[str], folders: Sequence[Path], task: Task, launcher: str, log: Callable[[str], None]
) -> list[JobEnd]:
    """Let Hydra launch every job, mark the sweep as finished, and return the jobs whose process died.

    Raises Interrupted when the user asked for a stop.
    """

    def run_job(composed: DictConfig) -> None:  # Hydra accepts functions only
        task(composed)

    directory = task.directory
    with isolated():
        os.environ.pop("MLFLOW_RUN_ID", None)  # would make all jobs write to that one run
        if launcher == "basic":
            hydra_sweep(words, folders, run_job)
            directory.finish()
            return []
        try:
            with relay_signals(directory) as requests:
                hydra_sweep(words, folders, run_job)
        except UserError:
            raise
        except Exception as error:  # launchers raise exceptions of any kind when one of their processes dies
            directory.stop_jobs(signal.SIGKILL)
            directory.wait_for_jobs()
            log(f"sweep {directory.number}: {launcher} lost a job ({type(error).__name__}); repeat the command")
            return directory.lost_jobs()
    if requests:
        directory.wait_for_jobs()
        ended = len(directory.ends())
        raise Interrupted(
            f"{ended} jobs of sweep {directory.number} have ended; the others continue where they stopped"
        )
    directory.finish()
    return []


def _check_jobs(overrides: list[str], folders: Sequence[Path]) -> list[Composition]:
    """Compose the first job and each of its variations. Raises UserError with the faults of all of them."""
    first, variations = _variations(overrides, folders)
    faults: list[str] = []
    compositions: list[Composition] = []
    for words in [first, *variations[: MAX_CHECKED - 1]]:
        try:
            compositions.append(composition(words, folders))
        except UserError as error:
            faults += error.faults
    if faults:  # the same fault of several jobs is reported once, with the command of the first of them
        raise UserError(*{message.partition("  Do: ")[0]: message for message in reversed(faults)}.values())
    return compositions


def _variations(overrides: list[str], folders: Sequence[Path]) -> tuple[list[str], list[list[str]]]:
    """The overrides of the first job, and those of the jobs that differ from it in a single value."""
    first = list(overrides)
    values: dict[int, list[str]] = {}
    with hydra_over(existing(folders)[0]):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        for position, word in enumerate(overrides):
            try:
                [override] = parser.parse_overrides([word])
                if override.is_sweep_override():
                    key = override.get_key_element()
                    values[position] = [f"{key}={value}" for value in override.sweep_string_iterator()]
                    first[position] = values[position][0]
            except (HydraException, IndexError, ValueError):
                continue  # composing the first job reports what is wrong with it
    swept = ((position, word) for position, words in values.items() for word in words[1:])
    return first, [[*first[:position], word, *first[position + 1 :]] for position, word in swept]
