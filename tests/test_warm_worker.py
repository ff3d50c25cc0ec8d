"""The warm worker forks experiments, repeats none that has a result, and ends with the phase that started it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.experiments.jobs import ARM, DESCRIBE, PROFILE, TRACE
from pipeline.experiments.worker_process import WarmWorker, WorkerEnded, recorded, warm_worker
from pipeline.import_guard import child_pythonpath
from pipeline.run_store import files
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.run import Run
from tests.check_helpers import read_evidence
from tests.conftest import SMALL, go

pytestmark = pytest.mark.process
HOT = ("experiment=digits_hot", *SMALL[1:], "phases.diagnostics.experiments=true")


def arm(run: Run, steps: int = 8, seed: int = 1, **overrides: Any) -> Job:
    """A short experiment under the plan of a run."""
    [revision] = run.state().revisions
    keys = {key.replace("__", "."): value for key, value in overrides.items()}
    return Job(revision["digest"], ARM, Delta(keys), seed, steps)


def test_worker_forks_experiments_and_repeats_none(planned: Run) -> None:
    """Outcomes come in the order of the jobs; equal jobs agree bit by bit, and what has a result is not run again."""
    folder, [revision] = planned.inside("diagnostics", 1, "experiments"), planned.state().revisions
    jobs = [
        ("about", Job(revision["digest"], DESCRIBE, seed_index=1)),
        ("trace", Job(revision["digest"], PROFILE, seed_index=1)),
        ("same-1", arm(planned)),
        ("same-2", arm(planned)),
        ("hot", arm(planned, optimizer__lr=1e6)),
        ("wrong", arm(planned, model__activation="Nothing")),
    ]
    with warm_worker(folder, parallel=2) as worker:
        about, trace, first, second, hot, wrong = worker.run(jobs)
    assert about.result["layers"] == [128, 10] and trace.failure_of_job is None
    assert (folder / "trace" / TRACE).stat().st_size > 1000
    assert first.result["weights"] == second.result["weights"] != hot.result["weights"]
    assert first.value > 0 and first.failure is None
    assert wrong.failure_of_job and "Nothing" in wrong.failure_of_job
    before = (folder / "hot" / "result.json").stat().st_mtime_ns
    with warm_worker(folder, parallel=2) as worker:
        again = worker.run(jobs)
        assert worker._process is None  # nothing was left to do, so that no process was started
    assert [outcome.result for outcome in again] == [o.result for o in (about, trace, first, second, hot, wrong)]
    assert (folder / "hot" / "result.json").stat().st_mtime_ns == before
    assert recorded(folder / "hot", arm(planned, optimizer__lr=2.0)) is None


def test_worker_that_cannot_begin_says_why(own_folder: Path) -> None:
    """A run without a seed has no permit for experiments, and the message of the worker is the reason."""
    run = go(own_folder, "phase=planning", *SMALL, "seed=null").run
    worker = WarmWorker(run.inside("diagnostics", 1, "experiments"), parallel=1)
    with pytest.raises(WorkerEnded, match="has no seed"):
        worker.run([("arm", arm(run))])


def diagnosing(root: Path) -> subprocess.Popen[bytes]:
    """The diagnostics phase of the run in a process of its own."""
    command = [sys.executable, "-m", "pipeline", "phase=diagnostics", "run.name=digits_hot", f"run.root={root}"]
    environment = {**os.environ, "PYTHONPATH": child_pythonpath()}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def results_in(folder: Path) -> dict[str, int]:
    """The experiments that have a result, with the time when it was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}


def workers_of(folder: Path) -> list[str]:
    """The processes that work in a folder."""
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in commands.splitlines() if "worker" in line and str(folder) in line]


@pytest.mark.slow
def test_killed_phase_resumes_its_experiments(tmp_path: Path) -> None:
    """Killed at an arm, the phase leaves no process; once more, it keeps the results and confirms the learning rate."""
    run = go(tmp_path, "phase=baseline", *HOT, "trainer.max_epochs=8").run
    folder = run.inside("diagnostics", 1, "experiments")
    process = diagnosing(tmp_path)
    deadline = time.monotonic() + 120
    while len(results_in(folder)) < 4 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(1.0)
    assert workers_of(folder) == []
    before = results_in(folder)
    stated = [entry for entry in read_ledger(run.ledger_path) if entry["kind"] == "hypothesis.stated"]
    assert len(before) >= 4 and stated
    process = diagnosing(tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    assert {name: results_in(folder)[name] for name in before} == before
    entries = [e["data"] for e in read_ledger(run.ledger_path) if e["kind"] == "hypothesis.stated"]
    ids = [entry["id"] for entry in entries]
    assert len(ids) == len(set(ids))
    diagnosis = json.loads(run.inside("diagnostics", 1, "diagnosis.json").read_text())
    assert diagnosis["root_causes"][0]["issue"] == "learning_rate_too_high"
    assert diagnosis["root_causes"][0]["status"] == "confirmed"
    page = run.inside("diagnostics", 1, "incident.md").read_text()
    assert re.search("Reproduced: .* on 2 other seeds.*symptom stays.*with rows in a fixed order", page)
    assert ("confirmed" in out.decode() and run.state().candidate is None) or run.state().gate("diagnostics") == "open"
    assert files.sha256(run.inside("diagnostics", 1, "diagnosis.json"))


@pytest.mark.slow
def test_slice_is_stated_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of a slice are in the ledger, and a rerun on a machine that affords the whole training keeps them."""
    run = go(tmp_path, "phase=baseline", *HOT).run
    sizes, lengths = [], []
    for seconds in (0.05, 3000.0):
        monkeypatch.setattr("pipeline.experiments.allowance.SECONDS", seconds)
        go(tmp_path, "phase=diagnostics", "run.name=digits_hot")
        stated = [e["data"] for e in read_ledger(run.ledger_path) if e["kind"] == "hypothesis.stated"]
        sizes.append({hypothesis["slice_steps"] for hypothesis in stated})
        lengths.append(read_evidence(run, "diagnostics", 1)["reproduction"]["steps"])
        files.remove_folder(run.inside("diagnostics", 1, "experiments"))  # so that all are trained again
    [steps] = sizes[0]
    assert sizes[0] == sizes[1] and lengths == [steps, steps] and steps < run_steps(run)


def run_steps(run: Run) -> int:
    """The steps of the planned training."""
    return int(read_evidence(run, "planning")["facts"]["budget"]["max_steps"])
