"""Read the log at a path: recognize its format by content, and say what was understood."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

import numpy as np

from diagnostics.logs import formats, mlflow_run
from diagnostics.logs.advice import COMMAND, with_advice
from diagnostics.logs.columns import LogRun, runs_of
from diagnostics.logs.names import canonical_name
from diagnostics.logs.row import Notes, Row
from diagnostics.logs.source import HEAD_BYTES, Source
from pipeline.errors import UserError, fault
from pipeline.history import History

MAX_HISTORY_BYTES = 128 * 2**20  # of the arrays of a history.npz
MAX_FILES = 200  # of a folder that are looked at
ARCHIVES = {b"\x1f\x8b": "gzip", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"(\xb5/\xfd": "zstd"}
OWN = "a history of Fivegate"
SHOWN = 8  # columns or lines that a sentence lists


class Format(Protocol):
    """A module of `formats/`: its name, its place in the order in which formats are tried, and its two functions."""

    NAME: str
    PRIORITY: int

    def matches(self, source: Source) -> bool:
        """Return whether the first lines of a file, or its first bytes, are of this format."""

    def rows(self, source: Source, notes: Notes) -> Iterator[Row]:
        """Yield the rows, and note what else the file says."""


@dataclass
class Reading:
    """What was read from one path: the runs, and what was understood of each file."""

    path: Path
    runs: list[LogRun]
    files: list[FileReading] = field(default_factory=list)

    def sentences(self) -> list[str]:
        """Return what was understood, one thing a line; it is said before any diagnosis."""
        lines = [sentence for file in self.files for sentence in file.sentences()]
        for run in self.runs:
            lines += _run_sentences(run, named=len(self.runs) > 1)
        return lines

    def to_json(self) -> dict[str, object]:
        """Return the same for diagnosis.json."""
        return {
            "files": [
                {"path": str(file.path), "format": file.format, "header": file.notes.header} for file in self.files
            ],
            "runs": [
                {
                    "name": run.name,
                    "rows": run.row_count,
                    "columns": run.taken,
                    "unused": run.unused,
                    "restarts": [restart.sentence() for restart in run.restarts],
                    "remarks": run.remarks,
                }
                for run in self.runs
            ],
            "set_aside": [
                {"path": str(file.path), "line": line, "why": why}
                for file in self.files
                for line, why in file.notes.set_aside
            ],
        }


@dataclass
class FileReading:
    """What was understood of one file."""

    path: Path
    format: str
    notes: Notes
    long_lines: Sequence[int] = ()

    def sentences(self) -> Iterator[str]:
        yield f"{self.path}: read as {self.format}"
        if self.notes.header:
            yield "  the log states " + ", ".join(f"{name} {value}" for name, value in self.notes.header.items())
        for remark in dict.fromkeys(self.notes.remarks):
            yield f"  {remark}"
        for line, why in self.notes.set_aside[:SHOWN]:
            yield f"  set aside: line {line} {why}"
        if self.notes.set_aside_count > SHOWN:
            yield f"  set aside: {self.notes.set_aside_count - SHOWN} more lines"
        if self.long_lines:
            yield f"  only the beginning of line {', '.join(map(str, self.long_lines[:SHOWN]))} was read"


@cache
def all_formats() -> tuple[Format, ...]:
    """Return the modules of `formats/`, in the order in which they are tried."""
    names = [module.name for module in pkgutil.iter_modules(formats.__path__)]
    modules: list[ModuleType] = [importlib.import_module(f"{formats.__name__}.{name}") for name in names]
    return tuple(sorted((cast(Format, module) for module in modules), key=lambda module: module.PRIORITY))


def read(path: str | Path, columns: Mapping[str, str] | None = None) -> Reading:
    """Return what is in a log, in a folder of logs, or in a run directory.

    `columns` maps columns of the log to what they mean where their names do not say it, as `{"obj": "train/loss"}`.
    Raises UserError if nothing in it was recognized as a measurement: then it cannot be said that nothing is wrong.
    """
    columns = columns or {}
    if not os.path.lexists(path) and (run := mlflow_run.find_run(str(path))) is not None:
        return _read_mlflow(str(path), run, columns)
    path = Path(path)
    try:
        if os.path.isdir(path):
            return _read_folder(path, columns)
        reading = _read_file(path, columns)
        _refuse_unrecognized(reading)
    except UserError as error:
        raise with_advice(error, path) from None
    return reading


def _read_mlflow(reference: str, run: mlflow_run.MlflowRun, columns: Mapping[str, str]) -> Reading:
    """Return the metrics of an MLflow run."""
    notes = Notes()
    runs = runs_of(mlflow_run.rows(run, notes), notes, columns)
    reading = Reading(Path(reference), runs, [FileReading(Path(reference), mlflow_run.NAME, notes)])
    _refuse_unrecognized(reading)
    return reading


def _read_file(path: Path, columns: Mapping[str, str]) -> Reading:
    source = Source(path)
    source.wanted = columns.keys()
    if source.first_bytes.startswith(b"PK\x03\x04") or path.suffix == ".npz":
        history = History.load(path, MAX_HISTORY_BYTES)
        own = LogRun("", history, {name: [name] for name in history.names()}, [], [], 0, [])
        return Reading(path, [own], [FileReading(path, OWN, Notes())])
    if archive := next((name for mark, name in ARCHIVES.items() if source.first_bytes.startswith(mark)), None):
        raise UserError(fault(str(path), f"is compressed with {archive}", expected="the log in it"))
    recognized = next((module for module in all_formats() if module.matches(source)), None)
    notes = Notes()
    if recognized is None:
        if len(source.first_bytes) == HEAD_BYTES and len(source.head) == 1:
            notes.remarks.append(f"its first line has more than {HEAD_BYTES:,} bytes, too many to tell the format")
        return Reading(path, [], [FileReading(path, "no known format", notes)])
    runs = runs_of(recognized.rows(source, notes), notes, columns, source.read_one_in)
    for run in runs:
        run.accidents = list(source.accidents.values())
    return Reading(path, runs, [FileReading(path, recognized.NAME, notes, tuple(source.long_lines))])


def _read_folder(path: Path, columns: Mapping[str, str]) -> Reading:
    """Return the history of a run directory, or every log below the folder as a run."""
    if own := _history_of_run(path):
        return _read_file(own, columns)
    paths = [p for p in sorted(path.rglob("*"))[: 10 * MAX_FILES] if p.is_file() and not p.is_symlink()][:MAX_FILES]
    readings = [reading for p in paths if any((reading := _read_file(p, columns)).runs)]
    readings = [reading for reading in readings if any(_is_measured(run) for run in reading.runs)]
    if not readings:
        what = f"holds no log: nothing in its {len(paths)} files was recognized as a measurement"
        raise UserError(fault(str(path), what, expected="a log file or a folder of logs"))
    runs: dict[str, LogRun] = {}
    for reading in readings:
        where = str(reading.path.parent.relative_to(path))
        for run in reading.runs:
            # Each tag of TensorBoard is a file of its own: those of one folder and run belong together.
            by_tag = reading.files[0].format.startswith("TensorBoard")
            parts = [run.name] if by_tag or len(readings) == 1 else [reading.path.name, run.name]
            name = "/".join(filter(None, [where if where != "." else "", *parts]))
            if name in runs:
                _join(runs[name], run)
            else:
                run.name = name
                runs[name] = run
    return Reading(path, list(runs.values()), [file for reading in readings for file in reading.files])


def _history_of_run(path: Path) -> Path | None:
    """Return the history of a run: the one in the folder itself, the baseline's, or the only one below the folder."""
    preferred = [path / "history.npz", path / "baseline" / "history.npz"]
    histories = [p for p in preferred if p.is_file()] or sorted(path.rglob("history.npz"))
    if len(histories) > 1 and histories[0] not in preferred:
        what = f"holds {len(histories)} histories"
        expected = "a run directory whose baseline was trained, or one history.npz"
        raise UserError(fault(str(path), what, expected=expected, do=f"{COMMAND} {shlex.quote(str(histories[0]))}"))
    return histories[0] if histories else None


def _join(run: LogRun, other: LogRun) -> None:
    """Add the columns of another file of the same run."""
    for table, columns in ((run.history.step, other.history.step), (run.history.epoch, other.history.epoch)):
        for name, column in columns.items():
            table.setdefault(name, column)
    for name, sources in other.taken.items():
        run.taken.setdefault(name, sources)
    run.unused += other.unused
    run.restarts += other.restarts
    run.row_count += other.row_count


def _is_measured(run: LogRun) -> bool:
    return any(name != "lr" for name in run.history.names())


def _refuse_unrecognized(reading: Reading) -> None:
    """Raise UserError with what the file holds if no column of it is a loss, a metric or a norm."""
    if any(_is_measured(run) for run in reading.runs):
        _refuse_single_values(reading)
        return
    path, where = reading.path, shlex.quote(str(reading.path))
    unused = list(dict.fromkeys(name for run in reading.runs for name in run.unused))
    if not unused:
        why = [remark for file in reading.files for remark in file.notes.remarks] if len(reading.files) == 1 else []
        what = f"was not understood: {why[0] if why else 'no loss, metric or gradient norm was recognized in it'}"
        expected = "a log with names and numbers, such as a CSV, JSON lines, or lines like `step 10 loss 2.31`"
        raise UserError(fault(str(path), what, expected=expected, do=f'{COMMAND} --symptom "what you saw"'))
    close = unused[0]
    what = "holds no column that was recognized as a loss, a metric or a gradient norm"
    listed = ", ".join(unused[:SHOWN]) + (f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else "")
    do = f"{COMMAND} {where} --map {shlex.quote(f'loss={close}')}"
    raise UserError(fault(str(path), what, got=listed, expected="a column such as loss, val_loss or accuracy", do=do))


def _refuse_single_values(reading: Reading) -> None:
    """Raise UserError if nothing was measured twice and every value is a number: that is a summary, and no curve."""
    values = [run.history.series(name)[1] for run in reading.runs for name in run.history.names()]
    if reading.files[0].format != OWN and all(len(column) < 2 and np.isfinite(column).all() for column in values):
        names = ", ".join(dict.fromkeys(name for run in reading.runs for name in run.history.names()))
        what = "holds one value of each column, and no curve"
        do = f'{COMMAND} --symptom "what you saw"'
        raise UserError(fault(str(reading.path), what, got=names, expected="values over steps or epochs", do=do))


def _run_sentences(run: LogRun, *, named: bool) -> Iterator[str]:
    """Yield what the columns of a run were taken for, its restarts, and what was not used."""
    history = run.history
    rows = f"{run.row_count} rows" if run.row_count else "a history"
    yield f"run {run.name}: {rows}" if named else f"{rows}, of which these columns were understood:"
    for name in history.names():
        sources = [source for source in run.taken.get(name, ()) if source != name]
        index, _ = history.series(name)
        per = history.table(name)
        taken = f" (column {', '.join(sources)})" if sources else ""
        yield f"  {name}{taken}: {len(index)} values by {per}"
    for restart in run.restarts[:SHOWN]:
        yield f"  restart in {restart.sentence()}"
    for remark in run.remarks:
        yield f"  {remark}"
    if run.unused:
        more = f" and {len(run.unused) - SHOWN} more" if len(run.unused) > SHOWN else ""
        yield f"  not used: {', '.join(run.unused[:SHOWN])}{more}"


def column_map(entries: Sequence[str]) -> dict[str, str]:
    """Return columns with their meanings from `--map loss=train_loss`: a meaning, then the column of the log.

    Raises UserError with every entry that is not of this form.
    """
    columns: dict[str, str] = {}
    faults = []
    for entry in entries:
        meaning, _, column = entry.partition("=")
        known = canonical_name(meaning)
        if not column or known is None:
            expected = "MEANING=COLUMN with a meaning such as loss, val_loss, val_accuracy, lr, step or epoch"
            faults.append(fault("--map", "cannot be read", got=entry, expected=expected))
        else:
            columns[column] = known
    if faults:
        raise UserError(*faults)
    return columns
