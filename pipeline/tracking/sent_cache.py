"""What a tracker was sent already, so that only the rest goes out. A file in the run, and only a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.history import History
from pipeline.run_store import files
from pipeline.tracking import run_export
from pipeline.tracking.run_export import Point


class Memory:
    """What one tracker (by its URI, of which only a digest is kept) was sent of a run. Losing it costs time: sending
    again says the same thing once more. It is forgotten with the tracker's run, as when its database was removed.
    """

    def __init__(self, path: Path, uri: str, shown: str, run: str) -> None:
        self.path = path
        try:
            self.trackers = dict(json.loads(path.read_text()))
        except (OSError, ValueError):
            self.trackers = {}
        tracker = hashlib.sha256(uri.encode()).hexdigest()[:12]
        if self.trackers.get(tracker, {}).get("run") != run:
            self.trackers[tracker] = {"uri": shown, "run": run}
        here = self.trackers[tracker]
        self.params: list[str] = here.setdefault("params", [])
        self.data: list[str] = here.setdefault("data", [])  # name and digest of each split
        self.artifacts: dict[str, str] = here.setdefault("artifacts", {})
        self.last: dict[str, list[Any]] = here.setdefault("last", {})  # metric name -> step and value sent last
        self.turns: dict[str, int] = here.setdefault("turns", {})  # folder -> how often its history was replaced

    def save(self) -> None:
        files.write_json(self.path, self.trackers)

    def remember(self, points: Sequence[Point]) -> None:
        self.last |= {point.name: [point.step, str(point.value)] for point in points}

    def unsent(self, points: Sequence[Point]) -> list[Point]:
        """The points behind the last one sent under their name."""
        return [p for p in points if p.name not in self.last or p.step > self.last[p.name][0]]

    def prefix(self, folder: str, history: History) -> str:
        """The prefix of a history's names: its folder, numbered anew when another training has replaced it there."""
        turn = self.turns.get(folder, 1)
        while not self._continues(f"{folder}.{turn}" if turn > 1 else folder, history):
            turn += 1
        self.turns[folder] = turn
        return f"{folder}.{turn}" if turn > 1 else folder

    def _continues(self, prefix: str, history: History) -> bool:
        """Whether what was sent under the prefix is still in the history, value for value."""
        for name in history.names():
            step, value = self.last.get(run_export.safe(f"{prefix}/{name}"), (None, None))
            index, values = history.series(name)
            if step is not None and str(value) not in map(str, values[index == step].tolist()):
                return False
        return True
