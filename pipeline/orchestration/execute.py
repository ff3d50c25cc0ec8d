"""One run's turn at the machine, or a sweep's: the run is locked, its packages are trusted, the phases are driven."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import Refused, UserError, fault
from pipeline.orchestration import state_machine
from pipeline.orchestration.phase import House, RunRequest
from pipeline.orchestration.run_request import about_the_plan, typed
from pipeline.results import GateState
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.next_step import NextStep
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import fold


def _trust(ledger: Ledger, made: RunRequest) -> RunRequest:
    """The packages that the user trusts are importable, on record, and unchanged since they were recorded.

    Trusting a package anew, because its source changed, changes the draft: its plan has to be made again.
    """
    from pipeline.config import trust

    names = made.config.get("trust") or []
    state = fold(ledger.entries)
    if names:
        grants = trust.grant(names, trust.roots(made.config_dirs))
        if list(state.trust) != list(grants):
            ledger.append("trust.granted", {"packages": grants})
            made = replace(made, changed=True)
    trust.activate(fold(ledger.entries).trust)
    return made


def _clear_false_start(run: Run, ledger: Ledger, fresh_root: bool) -> None:
    """A run that was stopped before its first plan leaves nothing behind."""
    if not fold(ledger.entries).plan:
        files.remove_folder(run.path)
        if fresh_root and not any(run.path.parent.iterdir()):
            files.remove_folder(run.path.parent)


def _followed(house: House, run: Run, made: RunRequest, ledger: Ledger) -> AbstractContextManager[None]:
    """Inside the block the tracker holds a copy; what it misses is on record and goes with the next command."""

    def away(why: str) -> None:
        if fold(ledger.entries).plan:
            ledger.append("tracking.away", {"why": why})
        house.log(f"tracking is away ({why}); the ledger has everything and is mirrored next time")

    return house.follow(run, made.config, away) if house.follow else nullcontext()


def drive(house: House, made: RunRequest) -> tuple[Run, GateState, NextStep]:
    """Run what the draft asks for, with the run locked; the gate it stopped at and the advice come back.

    Raises UserError or Refused as the phases do; a run that such a stop ends before its first plan is removed.
    """
    run = Run.at(made.config["run"]["root"], made.config["run"]["name"])
    fresh_root = not run.path.parent.exists()
    sweep = made.config["run"].get("sweep")
    of = {"experiment": typed(made.overrides, "experiment"), **({"sweep": sweep} if sweep else {})}
    with opened(run, **of) as ledger, _followed(house, run, made, ledger):
        fresh = len(ledger.entries) == 1
        last = ledger.entries[-1]
        healed = last["prev"] if last["kind"] == "ledger.torn" else None
        if made.head and made.head not in (ledger.head, healed):
            what = "another process changed this run in the meantime"
            raise UserError(fault(run.name, what, do="repeat the command"))
        try:
            gate, advice = state_machine.advance(house, run, ledger, made.config["phase"], _trust(ledger, made))
        except (UserError, Refused):
            if fresh:
                _clear_false_start(run, ledger, fresh_root)
            raise
    return run, gate, advice


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep: a run of its own, from its config on. Picklable where `house` and `code` are.

    `house(config)` are the surroundings of the job, `code(wanted, gate, stopped)` its exit code.
    """

    house: Callable[[dict[str, Any]], House]
    code: Callable[[str, str, int], int]
    config_dirs: list[str]

    def __call__(self, config: dict[str, Any], overrides: list[str]) -> int:
        made = RunRequest(config, about_the_plan(overrides), self.config_dirs)
        run = Run.at(config["run"]["root"], config["run"]["name"])
        state = run.state() if run.exists() else None
        if state and state.plan:  # the sweep was interrupted, and what its words mean may have changed since
            made = replace(made, changed=bool(plans.changed_config(plans.load(run, state).config, config)))
        _, gate, advice = drive(self.house(config), made)
        return self.code(config["phase"], gate, advice.exit_code)
