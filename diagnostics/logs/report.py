"""The answer to a log: what was understood of it, a diagnosis of each run, and what tells the runs apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diagnostics.diagnose import diagnose
from diagnostics.diagnosis import Diagnosis
from diagnostics.logs.comparison import differences
from diagnostics.logs.read import Reading, read
from pipeline.escaping import markdown
from pipeline.history import History
from pipeline.run_store import files


@dataclass(frozen=True)
class LogReport:
    """What was read, and the diagnosis of each run by its name; those with symptoms come first."""

    reading: Reading
    diagnoses: tuple[tuple[str, Diagnosis], ...]
    differences: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return diagnosis.json: the diagnosis of the first run, what was understood, and the other runs."""
        (_, first), *others = self.diagnoses
        body: dict[str, object] = {**first.to_json(), "understood": self.reading.to_json()}
        if others:
            body["runs"] = [{"run": name, **diagnosis.to_json()} for name, diagnosis in self.diagnoses]
            body["differences"] = list(self.differences)
        return body

    def page(self) -> str:
        """Return the report as Markdown: first what was understood, then the diagnosis of each run."""
        understood = "\n".join(f"- {markdown(line.strip())}" for line in self.reading.sentences())
        parts = ["# What was understood of the log", understood]
        if self.differences:
            parts += ["# What differs between the runs", "\n".join(f"- {markdown(line)}" for line in self.differences)]
        for name, diagnosis in self.diagnoses:
            if len(self.diagnoses) > 1:
                parts.append(f"# Run {markdown(name)}")
            parts.append(diagnosis.incident().rstrip())
        return "\n\n".join(parts) + "\n"

    def save(self, path: Path) -> list[Path]:
        """Write diagnosis.json, or into a folder diagnosis.json and diagnosis.md; return the files."""
        if path.suffix:
            files.write_json(path, self.to_json())
            return [path]
        files.write_json(path / "diagnosis.json", self.to_json())
        files.write_text(path / "diagnosis.md", self.page())
        return [path / "diagnosis.json", path / "diagnosis.md"]


def diagnose_log(
    path: Path, columns: Mapping[str, str] | None = None, target: float | None = None, classes: int | None = None
) -> LogReport:
    """Return the diagnosis of every run in a log or a folder of logs.

    `columns` maps columns to meanings that their names do not tell. `target` is the score that the training should
    have reached, `classes` the number of classes, from which the loss and the score of guessing follow. Raises
    UserError if the log cannot be read, or if nothing in it was recognized.
    """
    reading = read(path, columns)
    diagnoses = []
    for run in reading.runs:
        for name, history in run.views():
            _add_facts(history, target, classes)
            diagnoses.append((name, diagnose(history)))
    diagnoses.sort(key=lambda entry: not entry[1].symptoms)
    return LogReport(reading, tuple(diagnoses), tuple(differences(reading.runs)))


def _add_facts(history: History, target: float | None, classes: int | None) -> None:
    if target is not None:
        history.facts["target"] = target
    if classes is not None:
        history.facts |= {"classes": classes, "loss_expected": math.log(classes), "trivial": 1 / classes}
