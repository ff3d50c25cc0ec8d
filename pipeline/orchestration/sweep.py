"""A sweep: Hydra's own sweeper and launcher, and around them what they lack.

Every fault that can be seen is reported before the first job starts. A job that fails neither stops nor hides the
others, nothing leaks from one job into the next, and each job is a run of its own, `<name>-<sweep>-<n>`. A sweep that
was interrupted is continued by the same words; whatever launcher runs the jobs, their ends travel through files.
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
from pipeline.config.compose import Composition, composition, existing, hydra_over, search_path
from pipeline.config.hydra_main import hydra_main
from pipeline.config.override_keys import key_of
from pipeline.errors import UserError, fault
from pipeline.orchestration import sweep_directory as shelves
from pipeline.orchestration.sweep_directory import JobEnd, SweepDirectory
from pipeline.orchestration.sweep_isolation import isolated
from pipeline.orchestration.sweep_task import Job, Task, relayed
from pipeline.runtime.interrupt import Interrupted
from pipeline.runtime.threads import cores

LOOKED_AT_FIRST = 64  # compositions before the first job; more would cost more than they save
LAUNCHERS = {  # what each is told that the user has not typed
    "basic": (),
    "joblib": (lambda: f"hydra.launcher.n_jobs={cores()}",),
    "submitit_local": (lambda: "hydra.launcher.timeout_min=525600",),  # a year: the plan's own clock ends a training
}
Around = Callable[[SweepDirectory, dict[str, Any]], AbstractContextManager[object]]


@dataclass(frozen=True)
class Swept:
    """What became of a sweep: where its runs stand, its number, and the ends of its jobs in their order."""

    root: Path
    number: int
    ends: list[JobEnd]


def multirun(
    argv: Sequence[str],
    job: Job,
    log: Callable[[str], None] = lambda text: None,
    around: Around = lambda shelf, config: nullcontext(),
) -> Swept:
    """Every combination has been a job, once; how each ended comes back.

    `job(config, overrides)` returns its exit code; what it raises counts as its own end. `around(shelf, config)` is
    entered in this process before the first job. Raises UserError, before anything is written, when the sweep itself
    is wrong, and Interrupted when somebody stopped it.
    """
    arguments = parse(argv)
    overrides, folders = list(arguments.overrides), arguments.config_dirs
    first = _looked_at(overrides, folders)
    launcher = _launcher(first)
    root = Path(first.config["run"]["root"]).resolve()
    with ExitStack() as stack:
        shelf, goes_on = stack.enter_context(shelves.taken(root, overrides, existing(folders)[0]))
        if goes_on:
            settled = sum(end.exit_code in shelves.SETTLED for end in shelf.ends())
            log(f"sweep {shelf.number} in the same words was interrupted and goes on; jobs that have ended: {settled}")
        stack.enter_context(around(shelf, first.config))
        words = ["--multirun", search_path(existing(folders)[0]), *overrides, f"run.sweep={shelf.number}"]
        words += [word() for word in LAUNCHERS[launcher] if key_of(word()) not in map(key_of, overrides)]
        task = Task(shelf, overrides, job, os.getpid())
        lost = _launched(words, task, launcher, log)
        return Swept(root, shelf.number, [*shelf.ends(), *lost])


def _launched(words: list[str], task: Task, launcher: str, log: Callable[[str], None]) -> list[JobEnd]:
    """Hydra has launched every job, and the sweep is done; the jobs whose process died come back.

    Raises Interrupted when somebody asked for a stop.
    """

    def called(composed: DictConfig) -> None:  # Hydra wants a function
        task(composed)

    shelf = task.shelf
    with isolated():
        os.environ.pop("MLFLOW_RUN_ID", None)  # would turn every job's run into that one
        if launcher == "basic":
            hydra_main(words, called)
            shelf.finish()
            return []
        try:
            with relayed(shelf) as asked:
                hydra_main(words, called)
        except UserError:
            raise
        except Exception as error:  # the launchers raise what they like when a process of theirs dies
            shelf.tell(signal.SIGKILL)
            shelf.wait()
            log(f"sweep {shelf.number}: {launcher} lost a job ({type(error).__name__}); the same command goes on")
            return shelf.lost()
    if asked:
        shelf.wait()
        kept = f"{len(shelf.ends())} jobs of sweep {shelf.number} have ended, the others go on where they stand"
        raise Interrupted(kept)
    shelf.finish()
    return []


def _launcher(first: Composition) -> str:
    """The launcher that was chosen. Raises UserError for one whose jobs this version could not look after."""
    chosen = str(first.choices.get("hydra/launcher", "basic"))
    if chosen not in LAUNCHERS:
        what = "is not built: its jobs could be neither stopped nor continued"
        raise UserError(fault("hydra/launcher", what, got=chosen, among=LAUNCHERS, do="python -m pipeline --help"))
    return chosen


def _looked_at(overrides: list[str], folders: Sequence[Path]) -> Composition:
    """The first job as composed. Raises UserError with the faults of the first job and of each swept value."""
    first, others = _variations(overrides, folders)
    faults: list[str] = []
    found: Composition | None = None
    for words in [first, *others[: LOOKED_AT_FIRST - 1]]:
        try:
            made = composition(words, folders)
            found = found or made
        except UserError as error:
            faults += error.faults
    if faults:
        raise UserError(*{said.partition("  Do: ")[0]: said for said in reversed(faults)}.values())
    assert found is not None
    return found


def _variations(overrides: list[str], folders: Sequence[Path]) -> tuple[list[str], list[list[str]]]:
    """The overrides of the first job, and of those that differ from it in a single value."""
    first = list(overrides)
    values: dict[int, list[str]] = {}
    with hydra_over(existing(folders)[0]):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        for place, word in enumerate(overrides):
            try:
                [override] = parser.parse_overrides([word])
                if override.is_sweep_override():
                    key = override.get_key_element()
                    values[place] = [f"{key}={value}" for value in override.sweep_string_iterator()]
                    first[place] = values[place][0]
            except (HydraException, IndexError, ValueError):
                continue  # composing the first job says what is wrong with it
    swept = ((place, word) for place, words in values.items() for word in words[1:])
    return first, [[*first[:place], word, *first[place + 1 :]] for place, word in swept]
