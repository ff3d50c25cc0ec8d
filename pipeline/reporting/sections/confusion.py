"""Which class is predicted as which: on validation rows for the baseline, on the sealed test rows for the candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.errors import UserError, fault
from pipeline.foreign_files import parse_json, read_bytes, read_npz
from pipeline.json_types import mismatch
from pipeline.reporting.sections import quality_charts as charts
from pipeline.run_store.ledger import Entry, is_intact
from pipeline.run_store.records import FileRecord
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState

EXPECTED = "the counts of true and predicted classes that a phase wrote"
PREDICTIONS = {"targets": np.int64, "predictions": np.int64}


class ConfusionRecord(TypedDict):
    """The counts of true class (rows) against predicted class (columns), and the names of the classes."""

    classes: list[str]
    matrix: list[list[int]]


@dataclass(frozen=True)
class ConfusionPanel:
    """The matrix of one set of rows, and how many rows were right."""

    title: str
    svg: Markup
    right: int
    rows: int


def confusion_panels(run: Run, state: RunState, entries: Sequence[Entry], missing: list[str]) -> list[ConfusionPanel]:
    """Return the matrices that are on record and small enough to draw; files that changed are added to `missing`."""
    recorded = _recorded_matrix(run, state, missing)
    if recorded is None:
        return []
    classes, matrix = recorded
    tested = _test_matrix(run, state, entries, len(classes), missing)
    titled = [("sealed test rows", tested), ("baseline, validation rows", matrix)]
    return [
        ConfusionPanel(title, charts.confusion(counts, classes, title), int(np.trace(counts)), int(counts.sum()))
        for title, counts in titled
        if counts is not None
    ]


def _recorded_matrix(run: Run, state: RunState, missing: list[str]) -> tuple[list[str], NDArray[np.int64]] | None:
    """Return the classes and the matrix of the baseline; None without one, or with more classes than are drawn."""
    finished = state.finished.get("baseline")
    file = finished.get("artifacts", {}).get("confusion_matrix.json") if finished else None
    if file is None or not _intact(run, file, missing):
        return None
    try:
        body = parse_json(read_bytes(run.path / file["path"], EXPECTED), file["path"], EXPECTED)
        record = _checked(body, file["path"])
    except UserError as error:
        missing += error.faults
        return None
    return (record["classes"], np.array(record["matrix"], np.int64)) if _is_drawn(record) else None


def _checked(body: object, where: str) -> ConfusionRecord:
    """Return the record. Raises UserError for a matrix that is not square, or not of these classes."""
    if (what := mismatch(body, ConfusionRecord, "the matrix")) is not None:
        raise UserError(fault(where, f"cannot be read: {what}", expected=EXPECTED))
    record: ConfusionRecord = body  # type: ignore[assignment]
    size = len(record["classes"])
    if [len(row) for row in record["matrix"]] != [size] * size:
        raise UserError(fault(where, f"is not a matrix of {size} classes", expected=EXPECTED))
    return record


def _is_drawn(record: ConfusionRecord) -> bool:
    return 0 < len(record["classes"]) <= charts.MAX_CLASSES


def _test_matrix(
    run: Run, state: RunState, entries: Sequence[Entry], size: int, missing: list[str]
) -> NDArray[np.int64] | None:
    """Return the counts of the candidate's predictions on the test rows; None where there are none of classes."""
    chosen = [record["weights"] for record in (state.candidate, state.frozen) if record]
    scored = [e["data"] for e in entries if e["kind"] == "test.scored" and e["data"]["candidate"] in chosen]
    file = scored[-1].get("files", {}).get("predictions") if scored else None
    if file is None or not _intact(run, file, missing):
        return None
    return _counts(run.path / file["path"], size)


def _counts(path: Path, size: int) -> NDArray[np.int64] | None:
    """Return the counts of a file of predictions; None where these are not one class of `size` per row."""
    try:
        arrays = read_npz(read_bytes(path, EXPECTED), path.name, PREDICTIONS, EXPECTED)
    except UserError:
        return None
    targets, predictions = arrays["targets"], arrays["predictions"]
    same = targets.ndim == 1 and targets.shape == predictions.shape
    if not same or not all(((ids >= 0) & (ids < size)).all() for ids in (targets, predictions)):
        return None
    counts = np.zeros((size, size), np.int64)
    np.add.at(counts, (targets, predictions), 1)
    return counts


def _intact(run: Run, file: FileRecord, missing: list[str]) -> bool:
    is_as_recorded = is_intact(run.path, **file)
    missing += [] if is_as_recorded else [f"{file['path']} is not what the ledger recorded"]
    return is_as_recorded
