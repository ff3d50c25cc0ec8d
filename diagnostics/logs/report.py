"""The answer to a log or a statement: what was understood, a diagnosis of each run, and what tells the runs apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diagnostics.diagnose import diagnose
from diagnostics.diagnosis import Diagnosis
from diagnostics.logs.comparison import differences, spread_of_equal_runs
from diagnostics.logs.evidence.beside import files_beside, read_beside
from diagnostics.logs.evidence.recorded import findings_of
from diagnostics.logs.formats import text
from diagnostics.logs.read import Reading, read
from diagnostics.logs.statement import diagnose_statement, understand
from pipeline.errors import UserError
from pipeline.escaping import markdown
from pipeline.history import History
from pipeline.reporting.panels import RunCurves
from pipeline.run_store import files

MAX_STATEMENT = 2**14  # bytes of a file that is read as a statement if it is not a log
MAX_SENTENCES = 2  # lines with numbers in a text that is read as prose where it names a symptom
REPORTED = "what was reported"  # the name of the diagnosis of a statement, among those of runs


@dataclass(frozen=True)
class LogReport:
    """What was read, if anything was, and the diagnosis of each run by its name; those with symptoms come first."""

    reading: Reading | None
    diagnoses: tuple[tuple[str, Diagnosis], ...]
    differences: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()  # what the files beside the log say

    def to_json(self) -> dict[str, object]:
        """Return diagnosis.json: the diagnosis of the first run, what was understood, and the other runs."""
        (_, first), *others = self.diagnoses
        understood = self.reading.to_json() if self.reading else None
        body: dict[str, object] = {**first.to_json(), "understood": understood}
        if others:
            body["runs"] = [{"run": name, **diagnosis.to_json()} for name, diagnosis in self.diagnoses]
            body["differences"] = list(self.differences)
        return body

    def page(self) -> str:
        """Return the report as Markdown: first what was understood, then the diagnosis of each run."""
        parts = []
        if self.reading:
            understood = "\n".join(f"- {markdown(line.strip())}" for line in self.reading.sentences())
            parts += ["# What was understood of the log", understood]
        if self.beside:
            parts += ["# What the files beside the log say", "\n".join(f"- {markdown(line)}" for line in self.beside)]
        if self.differences:
            parts += ["# What differs between the runs", "\n".join(f"- {markdown(line)}" for line in self.differences)]
        for name, diagnosis in self.diagnoses:
            if len(self.diagnoses) > 1:
                parts.append(f"# {markdown(name if name == REPORTED else f'Run {name}')}")
            parts.append(diagnosis.incident().rstrip())
        return "\n\n".join(parts) + "\n"

    def curves(self) -> list[RunCurves]:
        """Return the history of each run that was read, with the times since which its symptoms have held."""
        views = dict(view for run in self.reading.runs for view in run.views()) if self.reading else {}
        return [
            RunCurves(name, views[name], tuple(symptom.since for symptom in diagnosis.symptoms))
            for name, diagnosis in self.diagnoses
            if name in views
        ]

    def save(self, path: Path) -> list[Path]:
        """Write a file of JSON, or into a folder diagnosis.json and diagnosis.md; return the files."""
        if path.suffix == ".json":
            files.write_json(path, self.to_json())
            return [path]
        files.write_json(path / "diagnosis.json", self.to_json())
        files.write_text(path / "diagnosis.md", self.page())
        return [path / "diagnosis.json", path / "diagnosis.md"]


def diagnose_log(
    path: Path | None,
    columns: Mapping[str, str] | None = None,
    target: float | None = None,
    classes: int | None = None,
    symptom: str | None = None,
    at: str | None = None,
    beside: Sequence[Path] = (),
) -> LogReport:
    """Return the diagnosis of every run in a log or a folder of logs, and of what the user reports in words.

    `columns` maps columns to meanings that their names do not tell. `target` is the score that the training should have
    reached; from `classes`, their number, the loss and the score of guessing follow. `symptom` says what was observed,
    `at` since when, as `epoch=7`; without a path they are all there is. A file of prose is read as such a statement,
    and a traceback as the error that it is. `beside` are a config, a traceback or a source; in a folder of logs they
    are found by themselves.
    Raises UserError if the log cannot be read, or if nothing was recognized.
    """
    reported = [(REPORTED, diagnose_statement(understand(symptom, at)))] if symptom else []
    if path is None:
        return LogReport(None, tuple(reported))
    try:
        reading = read(path, columns)
    except UserError:
        if (statement := _error_in(path) or _statement_in(path, at)) is None:
            raise
        return LogReport(None, ((REPORTED, statement), *reported))
    few = reading.files[0].format == text.NAME and sum(run.row_count for run in reading.runs) <= MAX_SENTENCES
    if few and (statement := _statement_in(path, at)):
        return LogReport(None, ((REPORTED, statement), *reported))  # prose with a number in it
    paths = [*beside, *(files_beside(path, [file.path for file in reading.files]) if path.is_dir() else ())]
    known = read_beside(paths)
    diagnoses = []
    spread = spread_of_equal_runs(reading.runs)
    for run in reading.runs:
        run.add_settings(known.settings)
        for name, history in run.views():
            _add_expectations(history, target, classes)
            history.facts.update({} if spread is None else {"score_spread": spread})
            diagnoses.append((name, diagnose(history, findings=[*findings_of(run, history), *known.findings])))
    diagnoses.sort(key=lambda entry: not entry[1].symptoms)
    return LogReport(reading, (*diagnoses, *reported), tuple(differences(reading.runs)), tuple(known.remarks))


def _add_expectations(history: History, target: float | None, classes: int | None) -> None:
    if target is not None:
        history.facts["target"] = target
    if classes is not None:
        guessing = {"loss_expected": math.log(classes), "trivial": 1 / classes}
        history.facts |= {"classes": float(classes), **guessing}


def _error_in(path: Path) -> Diagnosis | None:
    """Return the diagnosis of a file that is not a log but an error, such as a traceback; else None."""
    try:
        findings = read_beside([path]).findings
    except UserError:
        return None
    certain = [finding for finding in findings if finding.kind == "definition"]
    if not certain:
        return None
    history = History()
    history.event("imported", 0, file=path.name)
    return diagnose(history, findings=findings)


def _statement_in(path: Path, at: str | None) -> Diagnosis | None:
    """Return the diagnosis of a short text that names a symptom; None for anything else."""
    try:
        if path.stat().st_size > MAX_STATEMENT:
            return None
        return diagnose_statement(understand(path.read_text(), at))
    except (OSError, ValueError, UserError):
        return None
