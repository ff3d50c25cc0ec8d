"""What a run has to tell a tracker, read from its ledger and files: params, tags, points, artifacts. Knows no tracker.

Everything is a pure function of the run directory, timestamps included, so that sending twice says the same thing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.history import History
from pipeline.results import canonical
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import GENESIS, Entry, read_ledger
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState, fold

NOT_SCIENCE = ("plan", "phases", "tracking", "export", "executor", "hydra", "debug")
ARTIFACTS = (
    "plan/*.yaml",
    "report.html",
    "*/*.png",
    "*/*.svg",
    "diagnostics/*/diagnosis.json",
    "diagnostics/*/incident.md",
    "optimization/*/fixed.yaml",
    "optimization/*/implementation.json",
)
POINTS, TRIAL_POINTS = 1000, 50  # most points of one series that are sent; history.npz has them all

_UNSAFE = re.compile(r"[^\w\-. :/]")


@dataclass(frozen=True)
class Point:
    """One measured value: `time` in milliseconds since 1970, `step` an optimizer step or an epoch."""

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class RunExport:
    """A run as read from disk: its ledger, the state that folds out of it, and its plans by revision."""

    run: Run
    entries: list[Entry]
    state: RunState
    plans: dict[int, plans.Plan]

    @classmethod
    def of(cls, run_dir: Path) -> RunExport:
        """Raises Refused when the ledger or a plan was tampered with."""
        run = Run(run_dir.resolve())
        entries = read_ledger(run.ledger_path)
        state = fold(entries)
        return cls(run, entries, state, {r["revision"]: plans.load(run, state, r["revision"]) for r in state.revisions})

    @property
    def identity(self) -> str:
        """Hash of the first ledger entry: no two runs share it, and a run never changes it."""
        return self.entries[0]["hash"] if self.entries else GENESIS

    @property
    def config(self) -> Mapping[str, Any]:
        return self.plans[max(self.plans)].config if self.plans else {}

    @property
    def sweep(self) -> Path | None:
        """The folder of the sweep that this run is a job of."""
        number = self.entries[0]["data"].get("sweep") if self.entries else None
        return self.run.path.parent / ".sweeps" / str(number) if number else None

    def time(self, seq: int) -> int:
        return round(datetime.fromisoformat(self.entries[seq]["time"]).timestamp() * 1000)

    def started(self, phase: str) -> int:
        """When the phase last started; when the run was created for what belongs to none."""
        seqs = [e["seq"] for e in self.entries if e["kind"] == "phase.started" and e["data"].get("phase") == phase]
        return self.time(seqs[-1] if seqs else 0)


def safe(name: str) -> str:
    """The name with everything a tracker may refuse replaced, at most 250 characters."""
    return _UNSAFE.sub("_", name).strip("/")[:250]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted key; a list is one leaf."""
    if isinstance(config, Mapping) and config:
        nested = (flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in config.items())
        return {key: value for part in nested for key, value in part.items()}
    return {prefix: config} if prefix else {}


def params(story: RunExport) -> dict[str, str]:
    """What was decided about the training, by dotted key.

    Params can never change, so a later revision adds what it changed as `r<revision>/<key>`.
    """
    found: dict[str, str] = {}
    known: dict[str, Any] = {}
    for revision, plan in sorted(story.plans.items()):
        science = {k: v for k, v in flatten(dict(plan.config)).items() if k.split(".", 1)[0] not in NOT_SCIENCE}
        changed = {k: v for k, v in science.items() if k not in known or known[k] != v}
        prefix = f"r{revision}/" if known else ""
        found |= {safe(prefix + k): v if isinstance(v, str) else canonical(v) for k, v in changed.items()}
        known |= science
    return found


def status(story: RunExport) -> str:
    """The tracker's word for how a run ended that nobody works on: a phase that began and has no end was killed."""
    ends = ("phase.finished", "phase.failed", "stopped")
    last = next((e["kind"] for e in reversed(story.entries) if e["kind"] in (*ends, "phase.started")), "phase.finished")
    return {"phase.started": "KILLED", "phase.failed": "FAILED", "stopped": "KILLED"}.get(last, "FINISHED")


def judged(story: RunExport) -> list[Point]:
    """The values that gates judged, as `gate/<phase>/<item>` at the round they were judged in."""
    found = []
    for phase, gate in story.state.gates.items():
        for item in gate.items:
            if isinstance(item.value, int | float) and not isinstance(item.value, bool):
                name = safe(f"gate/{phase}/{item.id}")
                found.append(Point(name, float(item.value), story.time(gate.seq), gate.round))
    return found


def histories(story: RunExport) -> Iterator[tuple[str, Path]]:
    """The newest history of every training of the run with the prefix of its names: its folder inside the run.

    While a training runs that is the one in its last checkpoint.
    """
    newest: dict[str, Path] = {}
    for path in story.run.path.rglob("history.npz"):
        parts = path.parent.relative_to(story.run.path).parts
        if any(part.startswith(".") for part in parts):
            continue
        folder = "/".join(parts[:-2] if parts[-2:-1] == ("checkpoints",) else parts)
        if folder not in newest or _written(path) > _written(newest[folder]):
            newest[folder] = path
    yield from sorted(newest.items())


def _written(path: Path) -> int:
    """When, in nanoseconds; 0 for a checkpoint that has made room meanwhile."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def points(history: History, prefix: str, time: int) -> dict[str, list[Point]]:
    """The points of every series by name, in order; a long one thinned to every 2nd, 4th, 8th, ... of its points."""
    most = TRIAL_POINTS if "/trials/" in prefix else POINTS
    found = {}
    for name in history.names():
        index, values = history.series(name)
        stride = 2 ** max(0, math.ceil(math.log2(max(1, len(index)) / most)))
        key = safe(f"{prefix}/{name}")
        pairs = zip(index.tolist()[::stride], values.tolist()[::stride], strict=True)
        found[key] = [Point(key, value, time + step, step) for step, value in pairs]
    return found


def artifacts(story: RunExport) -> dict[str, str]:
    """The files worth looking at in a tracker, as path inside the run → SHA-256."""
    root = story.run.path
    paths = sorted({path for pattern in ARTIFACTS for path in root.glob(pattern) if path.is_file()})
    return {path.relative_to(root).as_posix(): files.sha256(path) for path in paths}
