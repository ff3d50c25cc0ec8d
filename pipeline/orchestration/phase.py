"""What a phase is given and what the machine is made of: the contract between `machine.py` and `phases/`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import Refused, fault
from pipeline.results import Artifact, Evidence
from pipeline.run_store import files, permits
from pipeline.run_store.checklist import FindCheck
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.plan import Plan
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

if TYPE_CHECKING:
    from pipeline.evaluation.metrics import Metric


@dataclass(frozen=True)
class RunRequest:
    """What a command asks for: the composed config, the words behind it, whether it differs from the frozen plan.

    `head` is the ledger's head that the draft was made against, empty for a run without a plan.
    """

    config: dict[str, Any]
    overrides: list[str]
    config_dirs: list[str]
    changed: bool = False
    head: str = ""


Watched = Callable[[str, "Metric"], Any]  # (what trains, the metric that decides) -> an observer of its steps


@dataclass(frozen=True)
class PhaseContext:
    """Everything a phase may touch: the config it works from, its own folder, and the ledger's facts so far.

    `plan` is None for planning alone, which makes it. `folder` is the only place a phase writes to.
    """

    run: Run
    ledger: Ledger
    state: RunState
    config: Mapping[str, Any]
    plan: Plan | None
    folder: Path
    round: int
    log: Callable[[str], None] = field(repr=False)
    watched: Watched | None = field(default=None, repr=False)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The phase's own section of the config, `phases.<phase>`."""
        return self.config["phases"][self.folder.parent.name if self.folder.name.isdigit() else self.folder.name]

    @property
    def trust(self) -> tuple[str, ...]:
        """The names of the packages the user trusted."""
        return tuple(grant["package"] for grant in self.state.trust)

    def artifact_of(self, phase: str, name: str) -> Path:
        """A file that an earlier phase left, as recorded. Raises Refused when it is gone or was changed."""
        recorded = self.state.finished[phase]["artifacts"][name]
        return self._as_recorded(phase, recorded)

    def evidence_of(self, phase: str) -> dict[str, Any]:
        """The values that an earlier phase measured. Raises Refused when they are not as recorded."""
        path = self._as_recorded(phase, self.state.finished[phase]["evidence"])
        return dict(json.loads(path.read_text())["values"])

    def _as_recorded(self, phase: str, recorded: Mapping[str, str]) -> Path:
        path = self.run.path / recorded["path"]
        if not path.is_file() or files.sha256(path) != recorded["sha256"]:
            do = f"restore it, or do it again: python -m pipeline phase={phase} run.name={self.run.name}"
            raise Refused(fault(recorded["path"], "is not what the ledger recorded", do=do))
        return path

    def watch(self, what: str) -> list[Any]:
        """Who looks on while `what` trains and shows it, as observers of its steps; nobody where nobody wants to."""
        if self.watched is None:
            return []
        from pipeline.evaluation.metrics import metric_from_config

        return [self.watched(what, metric_from_config(self.config["task"], self.trust))]

    def train_permit(self) -> permits.TrainPermit:
        """A permit to train. Raises Refused unless the planning gate is open in the ledger on disk."""
        return permits.train(self.run)

    def artifact(self, path: Path) -> Artifact:
        """A file of this run as evidence holds it."""
        return Artifact(self.run.relative(path), files.sha256(path))


Follow = Callable[[Run, Mapping[str, Any], Callable[[str], None]], AbstractContextManager[None]]
PhaseRun = Callable[[PhaseContext], Evidence]


@dataclass(frozen=True)
class House:
    """What the machine is driven with: how to find a phase, a check and a checklist, and whom to tell.

    `report(run)` writes the run's page after every phase. Inside `follow(run, config, away)` the tracker holds a
    copy of the records; where it does not, `away(why)` is called. `watch(what, metric)` makes the observer that shows a
    training.
    """

    phase: Callable[[str], PhaseRun]
    check: FindCheck
    checklists: Path
    log: Callable[[str], None]
    report: Callable[[Run], object] | None = None
    follow: Follow | None = None
    watch: Watched | None = None
