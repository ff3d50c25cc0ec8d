"""The contract between the state machine and `phases/`: what a run is executed with, and what a phase is given."""

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
from pipeline.run_store.checklist import FindCheck, Judge, judge
from pipeline.run_store.gate import Item
from pipeline.run_store.ledger import Ledger, is_intact
from pipeline.run_store.plan import Plan
from pipeline.run_store.records import ChecklistItem, FileRecord
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

if TYPE_CHECKING:
    from pipeline.engine.observer import StepObserver
    from pipeline.evaluation.metrics import Metric
    from pipeline.trials.progress import ShowTrials


@dataclass(frozen=True)
class RunRequest:
    """What a command asks for: the composed config, the overrides behind it, and whether it differs from the plan.

    `ledger_head` is the ledger's head that the request was compared with; it is empty for a run without a plan.
    `notice` is a line about config files that were edited after planning and that the phase does not use.
    """

    config: dict[str, Any]
    overrides: list[str]
    config_dirs: list[str]
    changed: bool = False
    ledger_head: str = ""
    notice: str = ""

    @property
    def phase(self) -> str:
        """The requested phase, or `auto`."""
        return str(self.config["phase"])

    @property
    def run(self) -> Run:
        """The run directory that the config names, whether or not it exists."""
        return Run.at(self.config["run"]["root"], self.config["run"]["name"])


MakeProgress = Callable[[str, "Metric"], "StepObserver"]  # (name of the training, its deciding metric)


@dataclass(frozen=True)
class PhaseContext:
    """Everything that a phase may use: its config, its own folder, and the facts in the ledger so far.

    `plan` is None for planning only, which creates it. A phase writes to `folder` and nowhere else. `judge` evaluates
    items as the gate will, for the report that a release contains.
    """

    run: Run
    ledger: Ledger
    state: RunState
    config: Mapping[str, Any]
    plan: Plan | None
    folder: Path
    round: int
    log: Callable[[str], None] = field(repr=False)
    make_progress: MakeProgress | None = field(default=None, repr=False)
    judge: Judge | None = field(default=None, repr=False)
    show_trials: ShowTrials | None = field(default=None, repr=False)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The phase's own section of the config, `phases.<phase>`."""
        return self.config["phases"][self.folder.parent.name if self.folder.name.isdigit() else self.folder.name]

    @property
    def trust(self) -> tuple[str, ...]:
        """The names of the packages that the user trusts."""
        return tuple(grant["package"] for grant in self.state.trust)

    def artifact_of(self, phase: str, name: str) -> Path:
        """A file that an earlier phase wrote. Raises Refused when it is missing or was changed."""
        return self._verified_path(phase, self.state.finished[phase]["artifacts"][name])

    def evidence_of(self, phase: str) -> dict[str, Any]:
        """The values that an earlier phase measured. Raises Refused when the file is missing or was changed."""
        path = self._verified_path(phase, self.state.finished[phase]["evidence"])
        return dict(json.loads(path.read_text())["values"])

    def earlier_training(self) -> dict[str, Any] | None:
        """The history and the job of the training that this round starts from; None where that is the baseline's.

        That is the baseline's in the first round, and after a rollback to it.
        """
        record, planned = self.state.finished.get("optimization"), self.state.plan["seq"] if self.state.plan else -1
        if record is None or record["seq"] < planned or record["round"] >= self.round:
            return None
        return dict(self.evidence_of("optimization")["subject_training"])

    def _verified_path(self, phase: str, record: FileRecord) -> Path:
        path = self.run.path / record["path"]
        if not is_intact(self.run.path, **record):
            do = f"restore it, or run the phase again: python -m pipeline phase={phase} {self.run.overrides_for(phase)}"
            raise Refused(fault(record["path"], "is not the file that the ledger recorded", do=do))
        return path

    def progress(self, training: str) -> list[StepObserver]:
        """The observers that show the progress of a training; empty where progress is not shown."""
        if self.make_progress is None:
            return []
        from pipeline.evaluation.metric_config import metric_from_config

        return [self.make_progress(training, metric_from_config(self.config["task"], self.trust))]

    def train_permit(self) -> permits.TrainPermit:
        """A permit to train. Raises Refused unless the planning gate is open in the ledger on disk."""
        return permits.train(self.run)

    def probe_permit(self) -> permits.ProbePermit:
        """A permit for experiments. Raises Refused for a plan without a seed or without rows that could be read."""
        return permits.probe(self.run)

    def artifact(self, path: Path) -> Artifact:
        """The path of a file inside the run directory, and its digest."""
        return Artifact(self.run.relative(path), files.sha256(path))


Track = Callable[[Run, Mapping[str, Any], Callable[[str], None]], AbstractContextManager[None]]
PhaseRun = Callable[[PhaseContext], Evidence]


@dataclass(frozen=True)
class Registry:
    """Where phases, checks and checklists are found: two functions that look up a name, and a folder."""

    phase: Callable[[str], PhaseRun]
    check: FindCheck
    checklists: Path

    def judge(self, items: list[ChecklistItem], evidence: Evidence) -> list[Item]:
        """Evaluate items on evidence: for the gate of a phase, and again for `verify`."""
        return judge(items, evidence, self.check)


@dataclass(frozen=True)
class Hooks:
    """What is called while a run is executed.

    `report(run)` writes the run's HTML page after each phase. `track(run, config, warn)` is a context manager that
    copies the ledger to the tracker and calls `warn(why)` when the tracker is unavailable. `progress(training, metric)`
    returns an observer that shows the progress of a training. `show_trials(rows)` is a context manager that shows the
    trials that run in other processes.
    """

    log: Callable[[str], None]
    report: Callable[[Run], object] | None = None
    track: Track | None = None
    progress: MakeProgress | None = None
    show_trials: ShowTrials | None = None
