"""The facts of a case, stored so that playbooks and ranking can be changed and scored again without a training.

A case has two files: `<id>.json` with its config, the findings of the inspections, the results of the experiments and
the accusations of closed gates; and `<id>.npz` with its history.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cases import Case

from pipeline.experiments.result import ArmResult
from pipeline.history import History
from pipeline.inspection.finding import Finding
from pipeline.results import plain

Accusation = tuple[str, float, str]  # cause, confidence, the gate that closed because of it


@dataclass(frozen=True)
class Facts:
    """What is known of one training: everything that a diagnosis starts from, and what closed gates said.

    `config` is None for a loop and for logs, whose program Fivegate has not seen.
    """

    history: History
    config: Mapping[str, Any] | None = None
    findings: tuple[Finding, ...] = ()
    experiments: tuple[ArmResult, ...] = ()
    gates: tuple[Accusation, ...] = ()
    value: float | None = None
    seconds: float = 0.0
    phase_seconds: float | None = None  # of `phase=diagnostics` alone

    def without_target(self) -> Facts:
        """Return what is known if nobody has told the target; then no experiment could measure a shortfall."""
        config = None
        if self.config is not None:
            config = {**self.config, "task": {**self.config["task"], "target": None}}
        history = self._history_without_target()
        return Facts(history, config, self.findings, (), self.gates, self.value, self.seconds)

    def as_log(self) -> Facts:
        """Return the history alone without the target, as if it were the log of another program."""
        history = self._history_without_target()
        history.event("imported", 0, file="history.npz")
        return Facts(history, value=self.value, seconds=self.seconds)

    def _history_without_target(self) -> History:
        history = self.history.copy()
        history.facts.pop("target", None)
        return history


def store(folder: Path, name: str, facts: Facts) -> None:
    """Write the two files of a case."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.npz").write_bytes(facts.history.to_bytes())
    record = {
        "config": facts.config,
        "findings": [finding.to_json() for finding in facts.findings],
        "experiments": [result.to_json() for result in facts.experiments],
        "gates": facts.gates,
        "value": facts.value,
        "seconds": facts.seconds,
        "phase_seconds": facts.phase_seconds,
    }
    (folder / f"{name}.json").write_text(json.dumps(plain(record), indent=1) + "\n")


def load(folder: Path, name: str) -> Facts:
    """Return the facts of a case from its two files."""
    record = json.loads((folder / f"{name}.json").read_text())
    return Facts(
        History.load(folder / f"{name}.npz"),
        record["config"],
        tuple(map(Finding.from_json, record["findings"])),
        tuple(map(ArmResult.from_json, record["experiments"])),
        tuple((cause, float(confidence), by) for cause, confidence, by in record["gates"]),
        None if record["value"] is None else float(record["value"]),
        float(record["seconds"]),
        record.get("phase_seconds"),
    )


def stored(folder: Path, selected: Sequence[Case]) -> Iterator[tuple[Case, Facts]]:
    """Yield the cases whose facts are in a folder, with their facts."""
    for case in selected:
        if (folder / f"{case.id}.json").is_file():
            yield case, load(folder, case.id)
