"""What the modules of a round need of the phase's context: its plan and settings, its records, and where it writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.results import Artifact
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.plan import Plan
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

if TYPE_CHECKING:
    from pipeline.trials.progress import ShowTrials


class Round(Protocol):
    """The context of a round of optimization, as the phase gets it."""

    @property
    def run(self) -> Run: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def state(self) -> RunState: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def plan(self) -> Plan | None: ...
    @property
    def folder(self) -> Path: ...
    @property
    def round(self) -> int: ...
    @property
    def log(self) -> Callable[[str], None]: ...
    @property
    def settings(self) -> Mapping[str, Any]: ...
    @property
    def show_trials(self) -> ShowTrials | None: ...
    @property
    def trust(self) -> tuple[str, ...]: ...
    def artifact_of(self, phase: str, name: str) -> Path:
        """A file that an earlier phase wrote."""

    def artifact(self, path: Path) -> Artifact:
        """The path of a file inside the run directory, and its digest."""

    def earlier_training(self) -> dict[str, Any] | None:
        """The training that this round starts from; None where that is the baseline's."""

    def evidence_of(self, phase: str) -> dict[str, Any]:
        """The values that an earlier phase measured."""


def frozen_plan(ctx: Round) -> Plan:
    assert ctx.plan is not None  # only planning has none
    return ctx.plan
