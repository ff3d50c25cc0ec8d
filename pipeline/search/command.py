"""`-m hparams_search=NAME`: plan the run, search its space, and say what the command line would adopt."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from pipeline.config.compose import Composition, composition, existing, hydra_over
from pipeline.config.override_keys import key_of
from pipeline.errors import UserError, fault
from pipeline.executors.settings import ExecutorSettings
from pipeline.orchestration.execute import RunOutcome, execute_run, tracked
from pipeline.orchestration.phase import Hooks, Registry
from pipeline.orchestration.run_request import override_value, resolve_request
from pipeline.repair.config_edits import format_override_value
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import read_recorded_json
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import fold
from pipeline.search.result import SearchRecord
from pipeline.search.search import search
from pipeline.search.settings import read_settings
from pipeline.search.trainings import Trainings

GROUP = "hparams_search"
SWEEPER = "optuna"


@dataclass(frozen=True)
class SearchOverrides:
    """The words of the command line: overrides of the run, those of the search, and parameters with their ranges."""

    run: list[str]
    search: list[str]
    parameters: dict[str, str]


@dataclass(frozen=True)
class SearchOutcome:
    """Where a search ended: its run, what it found, and the command that adopts it; nothing behind a closed gate."""

    run: Run
    record: SearchRecord | None
    command: str
    exit_code: int


def run_search(overrides: Sequence[str], config_dirs: Sequence[str], registry: Registry, hooks: Hooks) -> SearchOutcome:
    """Plan the run where its planning gate is not open, and search. The same overrides continue a search.

    Raises UserError with every fault of the settings, and where the search would change what is planned.
    """
    typed = _sort_overrides(overrides, config_dirs)
    name = str(override_value(overrides, GROUP))
    composed = composition([*typed.run, *typed.search], config_dirs, searching=True)
    _refuse_no_search(name, composed)
    _refuse_changed_config(name, composed, composition(typed.run, config_dirs))
    read_settings(composed.sweeper, name, composed.config, None, typed.parameters)  # before anything is planned
    request = resolve_request([*typed.run, "phase=baseline"], config_dirs)
    run = request.run
    if request.changed or not run.exists() or run.state().gate("planning") != "open":
        planning = replace(request, config={**request.config, "phase": "planning"})
        outcome = execute_run(registry, hooks, planning)
        if outcome.gate != "open":
            return _closed(outcome)
    with opened(run) as ledger:
        state = fold(ledger.entries)
        plan = plans.load(run, state)
        evidence = read_recorded_json(run.path, state.finished["planning"]["evidence"])
        greater = bool(evidence["values"]["greater_is_better"])
        settings = read_settings(composed.sweeper, name, plan.config, greater, typed.parameters)
        executor = ExecutorSettings.from_config(composed.config)
        hooks.log(f"search {settings.name}: {settings.trials} trials, {settings.generation} at a time are proposed")
        with tracked(hooks, run, request, ledger):
            record = search(Trainings(run, plan, ledger, settings, executor, hooks.log))
    return SearchOutcome(run, record, _command(run, record), 0)


def _sort_overrides(overrides: Sequence[str], config_dirs: Sequence[str]) -> SearchOverrides:
    """Sort the overrides by what they are about. Raises UserError for one that cannot be read."""
    typed, faults = SearchOverrides([], [], {}), []
    with hydra_over(existing(config_dirs)[0]):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        for word in overrides:
            key = key_of(word)
            if key == "phase":
                continue
            if key == GROUP or key.startswith(("hydra.", "hydra/")):
                typed.search.append(word)
                continue
            try:
                [override] = parser.parse_overrides([word])
            except (HydraException, ValueError) as error:
                faults.append(fault(word, f"cannot be read ({str(error).splitlines()[0]})", expected="KEY=VALUE"))
                continue
            if override.is_sweep_override():
                typed.parameters[key] = word.partition("=")[2]
            else:
                typed.run.append(word)
    if faults:
        raise UserError(*faults)
    return typed


def _refuse_no_search(name: str, composed: Composition) -> None:
    if composed.choices.get("hydra/sweeper") != SWEEPER:
        what = "does not choose how to search"
        expected = "defaults: [override /hydra/sweeper: optuna] in its file"
        raise UserError(fault(f"{GROUP}={name}", what, got=composed.choices.get("hydra/sweeper"), expected=expected))


def _refuse_changed_config(name: str, composed: Composition, plain: Composition) -> None:
    """Raise UserError where the file of the search sets more than the search: it would not be in the plan."""
    if changes := plans.changed_config(plain.config, composed.config):
        what = "changes the config, and not only what is searched"
        do = f"python -m pipeline -m {GROUP}={name} ... KEY=VALUE, or write it into the experiment"
        raise UserError(*(fault(key, f"{GROUP}={name} {what}", got=new, expected=old, do=do)
                          for key, (old, new) in changes.items()))  # fmt: skip


def _closed(outcome: RunOutcome) -> SearchOutcome:
    step = next_step(outcome.run.state(), outcome.run.path)
    return SearchOutcome(outcome.run, None, step.command, outcome.exit_code("planning"))


def _command(run: Run, record: SearchRecord) -> str:
    """Return the command that trains what was accepted, or that goes on with the reference."""
    command = f"python -m pipeline phase=baseline {run.overrides_for('baseline')}"
    if not record["accepted"] or not record["candidate"]:
        return command
    changes = [f"{key}={format_override_value(value)}" for key, value in record["candidate"].items()]
    return f"{command} {shlex.join(changes)}"
