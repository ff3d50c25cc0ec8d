"""The last phase, its approval and its release, killed anywhere: the same payload, and test rows that are opened once.

FIVEGATE_KILLS, 300 in `make test-crash`, is ten times the number of kills at random instants.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.release.bundle import bundle_digest
from pipeline.release.registry import champion, model_name
from pipeline.release.verify import faults
from pipeline.run_store import files
from pipeline.run_store.ledger import read_ledger, scan_ledger
from pipeline.run_store.run import Run
from tests.phase_walks import NAME, Ended, Fault, Kill, Point, Walks, outcome

pytestmark = [pytest.mark.process, pytest.mark.slow]
KILLS = max(3, int(os.environ.get("FIVEGATE_KILLS", "30")) // 10)
PER_RUN = 6  # kills of one run before it is left to end
# A model that is released: its seven trainings take two seconds, everything after them is done as for any other.
WORDS = [
    "experiment=digits", "model=mlp", f"run.name={NAME}", "tracking=none", "trainer.max_epochs=20",
    "optimizer.lr=0.003", "trainer.checkpoint_steps=50", "task.target=0.9", "phases.baseline.overfit_steps=20",
    "phases.baseline.sanity_check_steps=20", "phases.baseline.reproducibility_steps=0", "phases.baseline.folds=0",
    "phases.baseline.baseline_model_seconds=0", "plan.limits.latency_ms_p99=1000",
]  # fmt: skip
STEPS = {"finalization": 4, "approve": 0, "release": 0}  # the commands after the baseline, and how each ends


# Each is the call before which the process dies, in the order of the phase: its operation, and how its path ends.
BOUNDARIES = {
    "before the first seed": ("write", "ledger.jsonl (job.started)"),
    "between two seeds": ("write", "ledger.jsonl (job.finished)"),
    "candidate not yet frozen": ("write", "ledger.jsonl (candidate.frozen)"),
    "candidate frozen": ("write", "test_openings.jsonl"),
    "opening registered for all runs": ("write", "ledger.jsonl (test.opened)"),
    "test rows read, nothing on disk": ("open", "/.predictions.npz.N.tmp"),
    "measurements not yet on disk": ("rename", "/measurements.json"),
    "measurements on disk, score not on record": ("write", "ledger.jsonl (test.scored)"),
    "score on record": ("rename", "finalization/test_score.json"),
    "first export": ("rename", "finalization/export/model.onnx"),
    "exports on disk": ("write", "ledger.jsonl (export.written)"),
    "training repeated": ("rename", "finalization/replay/training/job.json"),
    "served": ("rename", "finalization/sandbox.json"),
    "documents": ("rename", "bundle/.payload.N.tmp/MODEL_CARD.md"),
    "manifest": ("rename", "bundle/.payload.N.tmp/manifest.json"),
    "payload": ("rename", "bundle/payload"),
    "evidence": ("rename", "finalization/evidence.json"),
    "phase not finished": ("write", "ledger.jsonl (phase.finished)"),
    "gate not decided": ("write", "ledger.jsonl (gate.decided)"),
    "gate decided, page not written": ("rename", "report.html"),
}


class Release:
    """A trained model, and the commands from there to its release, after any of which the process may have died."""

    def __init__(self, folder: Path) -> None:
        self.walks, self.root, self.before = Walks(folder, WORDS), folder / "runs", folder / "before"
        self.run = Run(self.root / NAME)
        trained = self.walks(self.root, "baseline")
        assert trained.code == 0, trained.output
        shutil.copytree(self.root, self.before)

    def afresh(self, folder: Path | None = None) -> None:
        shutil.rmtree(self.root)
        shutil.copytree(folder or self.before, self.root)

    def __call__(self, step: str, **injury: Any) -> Ended:
        return self.walks(self.root, "finalization" if step == "release" else step, **injury)

    def left(self) -> str:
        """Return the step that the run waits for; empty when it is released."""
        state = self.run.state()
        if state.released:
            return ""
        if "finalization" not in state.gates or state.gate("finalization") not in ("pending", "open"):
            return "finalization"
        return "release" if state.gate("finalization") == "open" else "approve"

    def outcome(self) -> dict[str, Any]:
        """Return everything that the run amounts to: all bytes of the payload, too."""
        state, entries = self.run.state(), read_ledger(self.run.ledger_path)
        kinds = Counter(e["kind"] for e in entries)
        assert (len(state.test_opened), kinds["test.scored"], kinds["candidate.frozen"]) == (1, 1, 1)
        assert faults(self.run)[1] == []
        subject = bundle_digest(self.run.inside("bundle", "payload"))
        assert state.gates["finalization"].subject == subject
        payload = {path.name: files.sha256(path) for path in self.run.inside("bundle", "payload").iterdir()}
        named = champion(self.root, model_name(state))
        more = {"subject": subject, "released": bool(state.released), "champion": named and named["subject"]}
        return {**outcome(self.run), "payload": payload, **more}

    def end(self) -> None:
        """Run what is left, undisturbed; a release that is repeated changes nothing."""
        while step := self.left():
            ended = self(step)
            assert ended.code == STEPS[step], (step, ended.output)
        assert self("release").code == STEPS["release"]


def points_of(log: Path) -> list[Point]:
    """Return the points in the order of their first call."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return list(dict.fromkeys(Point(*line[:3]) for line in lines))


@pytest.fixture
def release(own_folder: Path) -> Iterator[Release]:
    release = Release(own_folder)
    yield release
    release.walks.close()


def test_finalization_ends_the_same_after_a_kill_at_each_boundary(release: Release, own_folder: Path) -> None:
    """Killed between any two of its steps, and resumed by the same command: the payload has the same digest."""
    calm = release("finalization", log=str(own_folder / "log"))
    assert calm.code == 4, calm.output
    expected = release.outcome()
    assert expected["gates"]["finalization"] == "pending"

    points = [point for point in points_of(own_folder / "log") if point.process == "parent"]
    release.afresh()
    for name, (operation, path) in BOUNDARIES.items():
        where = next(point for point in points if point.operation == operation and point.path.endswith(path))
        ended = release("finalization", faults=[Fault(where, "kill")])
        assert ended.code == -9, (name, ended.output)
        assert len(release.run.state().test_opened) <= 1, name
        assert scan_ledger(release.run.ledger_path).fault is None, name
    assert release("finalization").code == 4
    assert release.outcome() == expected
    print(f"finalization: killed at {len(BOUNDARIES)} boundaries; 0 failures")


@pytest.mark.parametrize("step", ["approve", "release"])
def test_approval_and_release_are_complete_after_a_kill_at_each_call(
    release: Release, own_folder: Path, step: str
) -> None:
    """Killed before any call of the file module, and repeated: one release, of the payload that was approved."""
    for earlier in list(STEPS)[: list(STEPS).index(step)]:
        ended = release(earlier)
        assert ended.code == STEPS[earlier], ended.output
    shutil.copytree(release.root, own_folder / "waiting")
    assert release(step, log=str(own_folder / "log")).code == 0
    release.end()
    expected = release.outcome()
    assert expected["released"]

    points = points_of(own_folder / "log")
    for where in points:
        release.afresh(own_folder / "waiting")
        ended = release(step, faults=[Fault(where, "kill")])
        assert ended.code == -9, (where, ended.output)
        release.end()
        assert release.outcome() == expected, where
    print(f"{step}: killed at {len(points)} of {len(points)} calls; 0 failures")


def test_release_ends_the_same_after_kills_at_random_instants(release: Release) -> None:
    """Killed again and again between the training and the release, each time continued by the command that is due."""
    draw = random.Random(KILLS)
    seconds = {}
    while step := release.left():
        ended = release(step)
        assert ended.code == STEPS[step], ended.output
        seconds[step] = ended.seconds
    expected = release.outcome()

    killed, runs, where = 0, 0, Counter[str]()
    while killed < KILLS:
        release.afresh()
        runs += 1
        entries: list[Any] = []
        for _ in range(min(PER_RUN, KILLS - killed)):
            if not (step := release.left()):
                break
            kill = Kill(draw.choice(["group", "group", "parent"]), draw.uniform(0, seconds[step]))
            ended = release(step, kill=kill)
            assert ended.code == (-9 if ended.killed else STEPS[step]), ended.output
            scan = scan_ledger(release.run.ledger_path)
            assert scan.fault is None and scan.entries[: len(entries)] == entries  # no acknowledged fact is lost
            entries = scan.entries
            if ended.killed:
                killed += 1
                where[reached(entries)] += 1
        release.end()
        assert release.outcome() == expected, f"run {runs}"
        print(f"run {runs} ended as the undisturbed one: {killed} of {KILLS} kills so far", flush=True)
    spelled = ", ".join(f"{name} {count}" for name, count in where.items())
    print(f"kills from training to release: {killed} of {KILLS} over {runs} runs (after {spelled}); 0 failures")


def reached(entries: list[Any]) -> str:
    """Return what the last phase had on record."""
    milestones = ("candidate.frozen", "test.opened", "test.scored", "export.written", "phase.finished", "sign_off")
    kinds = [e["kind"] for e in entries if e["data"].get("phase", "finalization") == "finalization"]
    return next((kind for kind in reversed(kinds) if kind in milestones), "nothing")
