"""What a tracker was sent already, so that only the rest is sent: `tracking.json` in the run, a cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from pipeline.errors import UserError
from pipeline.foreign_files import parse_json, read_bytes
from pipeline.history import History
from pipeline.json_types import mismatch
from pipeline.run_store import files
from pipeline.tracking.run_export import Point, safe_name, series


class TrainingRecord(TypedDict, total=False):
    """A training in the file."""

    turn: int
    last: dict[str, Any]  # step and text of the value
    run: str
    status: str


class TrackerRecord(TypedDict, total=False):
    """What one tracker was sent, in the file."""

    uri: str
    run: str
    params: list[str]
    datasets: list[str]
    artifacts: dict[str, str]
    scores: TrainingRecord
    trainings: dict[str, TrainingRecord]


CLOSED = frozenset({TrainingRecord})  # objects are made of it, which have no other keys


@dataclass
class SentTraining:
    """What was sent of one training: the last point of each series, as step and text of the value.

    `turn` counts the trainings that had the same folder, `run` and `status` belong to its child run.
    """

    turn: int = 1
    last: dict[str, tuple[int, str]] = field(default_factory=dict)
    run: str = ""
    status: str = ""

    def missing(self, points: Mapping[str, Sequence[Point]]) -> list[Point]:
        """Return the points after the last one sent of their series."""
        first = {name: self.last[name][0] + 1 if name in self.last else 0 for name in points}
        return [point for name, line in points.items() for point in line if point.step >= first[name]]

    def remember(self, points: Sequence[Point]) -> None:
        self.last |= {point.name: (point.step, str(point.value)) for point in points}

    def is_continued_by(self, history: History) -> bool:
        """Return whether the last points sent are in the history; else another training replaced the one sent."""
        for name in history.names():
            sent = self.last.get(safe_name(name))
            if sent:
                steps, values = series(history, name)
                if sent[1] not in map(str, values[steps == sent[0]].tolist()):
                    return False
        return True


class SentCache:
    """What one tracker was sent of a run. Losing it costs time: the same values are sent again.

    Trackers are distinguished by a digest of their URI, which may contain a password. The cache is emptied when the
    MLflow run is another one, as after its database was deleted.
    """

    def __init__(self, path: Path, uri: str, shown_uri: str, run: str) -> None:
        self.path = path
        self._key = hashlib.sha256(uri.encode()).hexdigest()[:12]
        self._about = {"uri": shown_uri, "run": run}
        self._trackers = _read(path)
        stored: TrackerRecord = self._trackers.get(self._key, {})
        if stored.get("run") != run:
            stored = {}
        self.params: list[str] = stored.get("params", [])
        self.datasets: list[str] = stored.get("datasets", [])  # name and digest of each split
        self.artifacts: dict[str, str] = stored.get("artifacts", {})  # path -> version
        self.scores = SentTraining(**stored.get("scores", {}))
        self.trainings = {folder: SentTraining(**sent) for folder, sent in stored.get("trainings", {}).items()}

    def save(self) -> None:
        self._trackers[self._key] = {
            "uri": self._about["uri"],
            "run": self._about["run"],
            "params": self.params,
            "datasets": self.datasets,
            "artifacts": self.artifacts,
            "scores": _record(self.scores),
            "trainings": {folder: _record(sent) for folder, sent in self.trainings.items()},
        }
        files.write_json(self.path, self._trackers)


def _record(training: SentTraining) -> TrainingRecord:
    record: Any = asdict(training)
    return TrainingRecord(**record)


def _read(path: Path) -> dict[str, TrackerRecord]:
    """Return what each tracker was sent; nothing where the file is missing or damaged."""
    if not path.is_file():
        return {}
    try:
        content = parse_json(read_bytes(path, "what a tracker was sent"), str(path))
    except UserError:
        return {}
    trackers: dict[str, TrackerRecord] = content
    return {} if mismatch(content, dict[str, TrackerRecord], "trackers", CLOSED) else trackers
