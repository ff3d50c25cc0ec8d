"""What a run has for a tracker, read from its ledger and files: params, trainings, scores, artifacts. Knows no tracker.

Everything is a function of the run directory, timestamps included, so that sending twice sends the same values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.escaping import visible
from pipeline.history import History
from pipeline.results import canonical
from pipeline.run_store import plan as plans
from pipeline.run_store.job import Job
from pipeline.run_store.ledger import GENESIS, Entry, read_ledger
from pipeline.run_store.run import Run
from pipeline.run_store.state import RunState, fold

NOT_LOGGED = ("plan", "phases", "tracking", "export", "executor", "hydra", "debug")  # sections that change no training
ARTIFACTS = (
    "plan/*.yaml",
    "report.html",
    "*/*.png",
    "*/*.svg",
    "diagnostics/*/diagnosis.json",
    "diagnostics/*/incident.md",
    "optimization/*/fixed.yaml",
    "optimization/*/implementation.json",
    "bundle/payload/*",
    "bundle/attestations/*",
)
ARTIFACT_BYTES = 2**30  # a larger file is not uploaded: it would not get through before the deadline
POINTS, TRIAL_POINTS = 1000, 50  # most points of one series that are sent; history.npz has all of them

_UNSAFE = re.compile(r"[^\w\-. :/]")


@dataclass(frozen=True)
class Point:
    """One measured value: `time` in milliseconds since 1970, `step` in optimizer steps."""

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class Training:
    """One training of a run: its folder inside the run, and its newest history.

    While it runs, that is the history in its last checkpoint. `status` is RUNNING until the ledger has its end.
    """

    run: Run
    folder: str
    history: Path
    status: str

    @property
    def phase(self) -> str:
        return self.folder.split("/", 1)[0]

    @property
    def is_trial(self) -> bool:
        return "/trials/" in self.folder

    def tag(self, turn: int) -> str:
        """Return the name of the n-th training in this folder."""
        return self.folder if turn == 1 else f"{self.folder}.{turn}"

    def params(self) -> dict[str, str]:
        """Return what the training changes against the plan, and its seed index; empty for one without a job file."""
        path = self.run.path / self.folder / "job.json"
        if not path.is_file():
            return {}
        job = Job.from_json(json.loads(path.read_text()))
        changes = {**job.delta.overrides, "seed_index": job.seed_index}
        changes |= {"surgery": job.delta.surgery} if job.delta.surgery else {}
        changes |= {"train_rows": job.delta.train_rows} if job.delta.train_rows else {}
        return {safe_name(key): _param_text(value) for key, value in changes.items()}


@dataclass(frozen=True)
class RunExport:
    """A run as read from disk: its ledger, the state folded from it, and its plans by revision."""

    run: Run
    entries: list[Entry]
    state: RunState
    plans: dict[int, plans.Plan]

    @classmethod
    def of(cls, run_dir: Path) -> RunExport:
        """Read the run. Raises Refused when the ledger or a plan was tampered with."""
        run = Run(run_dir.resolve())
        entries = read_ledger(run.ledger_path)
        state = fold(entries)
        return cls(run, entries, state, {r["revision"]: plans.load(run, state, r["revision"]) for r in state.revisions})

    @property
    def identity(self) -> str:
        """The hash of the first ledger entry: unique to the run, and constant."""
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
        """Return the time of an entry in milliseconds since 1970, not before that of any entry before it.

        A clock that was set back would give a run that ends before it starts.
        """
        so_far = self.entries[: seq % len(self.entries) + 1]
        return max(round(datetime.fromisoformat(entry["time"]).timestamp() * 1000) for entry in so_far)

    def started(self, phase: str) -> int:
        """Return when the phase last started; for a phase that has no such entry, when the run was created."""
        seqs = [e["seq"] for e in self.entries if e["kind"] == "phase.started" and e["data"].get("phase") == phase]
        return self.time(seqs[-1] if seqs else 0)


def safe_name(name: str) -> str:
    """Return the name without characters and path segments that MLflow refuses, at most 250 characters long."""
    segments = _UNSAFE.sub("_", name).split("/")
    kept = ["_" if segment == ".." else segment for segment in segments if segment not in ("", ".")]
    return "/".join(kept)[:250].rstrip("/") or "_"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a nested mapping by dotted key; a list and an empty mapping are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        leaves |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {prefix + key: value}
    return leaves


def _param_text(value: object) -> str:
    return visible(value) if isinstance(value, str) else canonical(value)


def params(export: RunExport) -> dict[str, str]:
    """Return the frozen config of the training by dotted key.

    MLflow never changes a param, so that a later revision adds what it changed as `r<revision>/<key>`.
    """
    texts: dict[str, str] = {}
    newest: dict[str, Any] = {}
    for revision, plan in sorted(export.plans.items()):
        config = {key: value for key, value in flatten(plan.config).items() if key.split(".", 1)[0] not in NOT_LOGGED}
        changed = {key: value for key, value in config.items() if key not in newest or newest[key] != value}
        prefix = f"r{revision}/" if newest else ""
        texts |= {safe_name(prefix + key): _param_text(value) for key, value in changed.items()}
        newest |= config
    return texts


def status(export: RunExport) -> str:
    """Return MLflow's status for a run that no process works on; a phase that started and has no end was killed."""
    ends = ("phase.finished", "phase.failed", "stopped")
    last = next((e["kind"] for e in reversed(export.entries) if e["kind"] in (*ends, "phase.started")), ends[0])
    return {"phase.started": "KILLED", "phase.failed": "FAILED", "stopped": "KILLED"}.get(last, "FINISHED")


def score_points(export: RunExport) -> dict[str, list[Point]]:
    """Return the scores that were decided on: `candidate/<metric>` on validation, `candidate/test/<metric>` on test.

    They have names of their own, since `val/<metric>` is the curve of one training. The step counts the scores.
    """
    scores: dict[str, list[Point]] = {}
    for entry in export.entries:
        score = entry["data"].get("score") if entry["kind"] in ("candidate.chosen", "test.scored") else None
        if score and isinstance(score["value"], int | float):
            split = "test/" if entry["kind"] == "test.scored" else ""
            name = safe_name(f"candidate/{split}{score['metric']}")
            points = scores.setdefault(name, [])
            points.append(Point(name, float(score["value"]), export.time(entry["seq"]), len(points) + 1))
    return scores


def trainings(export: RunExport) -> Iterator[Training]:
    """Yield every training of the run that has a history, the baseline's first."""
    newest: dict[str, Path] = {}
    for path in export.run.path.rglob("history.npz"):
        parts = path.parent.relative_to(export.run.path).parts
        if any(part.startswith(".") for part in parts):
            continue
        folder = "/".join(parts[:-2] if parts[-2:-1] == ("checkpoints",) else parts)
        if folder not in newest or _modified(path) > _modified(newest[folder]):
            newest[folder] = path
    for folder, path in sorted(newest.items()):
        yield Training(export.run, folder, path, _training_status(export, folder))


def _training_status(export: RunExport, folder: str) -> str:
    """Return the status of a trial by its newest entry; the baseline has no such entries and is RUNNING."""
    for entry in reversed(export.entries):
        job, kind = entry["data"], entry["kind"]
        is_job = kind in ("job.started", "job.finished")
        place = f"search/{job['study']}" if job.get("study") else f"optimization/{job.get('round')}"
        if is_job and folder == f"{place}/trials/{job.get('id')}":
            ended = "FAILED" if job.get("died") else "FINISHED"
            return ended if kind == "job.finished" else "RUNNING"
    return "RUNNING"


def _modified(path: Path) -> int:
    """Return the modification time in nanoseconds; 0 for a checkpoint that was removed meanwhile."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def series(history: History, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (steps, values) of a series, all in optimizer steps, so that MLflow shows every curve on one axis."""
    index, values = history.series(name)
    steps_per_epoch = history.facts.get("steps_per_epoch", 1) if history.table(name) == "epoch" else 1
    return np.rint(index * steps_per_epoch).astype(np.int64), values


def training_points(training: Training, history: History, started: int) -> dict[str, list[Point]]:
    """Return the points of every series by name; a long series keeps every 2nd, 4th, 8th, ... of its points.

    A point's time is the start of the phase plus one millisecond per step: it has to be the same in every call.
    """
    most = TRIAL_POINTS if training.is_trial else POINTS
    points = {}
    for name in history.names():
        steps, values = series(history, name)
        stride = 2 ** max(0, math.ceil(math.log2(max(1, len(steps)) / most)))
        key = safe_name(name)
        pairs = zip(steps.tolist()[::stride], values.tolist()[::stride], strict=True)
        points[key] = [Point(key, value, started + step, step) for step, value in pairs]
    return points


def artifacts(export: RunExport) -> dict[str, str]:
    """Return the files to upload, as path inside the run -> version: reports, figures, weights and exported models."""
    return {name: version for name, version, uploaded in _artifacts(export) if uploaded}


def too_large(export: RunExport) -> list[str]:
    """Return the files that are not uploaded because of their size."""
    return [name for name, _, uploaded in _artifacts(export) if not uploaded]


def _artifacts(export: RunExport) -> Iterator[tuple[str, str, bool]]:
    root = export.run.path
    paths = {path for pattern in ARTIFACTS for path in root.glob(pattern)}
    candidate = export.state.candidate
    if candidate and (checkpoint := candidate.get("checkpoint")):
        paths.add(export.run.inside(checkpoint, "weights.safetensors"))
    for path in sorted(path for path in paths if path.is_file()):
        # Size and time instead of a digest: weights may have gigabytes, and this is read every few seconds.
        about = path.stat()
        version = f"{about.st_size}-{about.st_mtime_ns}"
        yield path.relative_to(root).as_posix(), version, about.st_size <= ARTIFACT_BYTES
