from __future__ import annotations

import multiprocessing
import os
import socket
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.history import History
from pipeline.orchestration.sweep_directory import SweepDirectory, claim_sweep
from pipeline.results import PHASES
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.run import Run, opened
from pipeline.tracking import run_export, sync_process
from pipeline.tracking.connection import TrackerUnavailable, TrackingConfig, tracking_uri, without_credentials
from pipeline.tracking.description import datasets, note, tags
from pipeline.tracking.mirror import SentCounts, mirror
from pipeline.tracking.run_export import POINTS, TRIAL_POINTS, RunExport, Training, params, training_points
from pipeline.tracking.sweep_run import sweep_run
from tests.ledger_fixtures import CONFIG, baseline_done, freeze, gate, passed

LOCAL = TrackingConfig(kind="mlflow", uri=None)


@pytest.fixture(autouse=True)
def without_tracker_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with tables and nothing of ours in it: making one takes a second and a half."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}")
    return path.read_bytes()


@pytest.fixture
def new_root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def root(new_root: Path, migrated: bytes) -> Path:
    files.write_bytes(new_root / "mlflow.db", migrated)
    return new_root


def trained(run: Run, folder: str = "baseline", steps: int = 30, offset: float = 0.0) -> History:
    """A history with a NaN in it, saved where the run keeps it."""
    history = History()
    for step in range(steps):
        history.log_step(step, {"train/loss": offset + 2.0 / (step + 1), "lr": 0.1})
    history.log_epoch(0, {"val/loss": 1.0})
    history.log_epoch(1, {"val/loss": float("nan")})
    files.write_bytes(run.inside(*folder.split("/"), "history.npz"), history.to_bytes())
    return history


def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri(root))


def runs(root: Path) -> Any:
    tracker = client(root)
    return tracker.search_runs([tracker.get_experiment_by_name("fivegate").experiment_id])


def metric_rows(root: Path) -> int:
    with sqlite3.connect(root / "mlflow.db") as database:
        return int(database.execute("SELECT count(*) FROM metrics").fetchone()[0])


def children_of(root: Path, run: str) -> dict[str, Any]:
    """The child runs of a run, by name."""
    return {r.info.run_name: r for r in runs(root) if r.data.tags.get("mlflow.parentRunId") == run}


def trial(run: Run, ledger: Ledger, name: str, changes: dict[str, Any], *, died: str | None = None) -> None:
    """A trial of the first round that has ended, with its job and history."""
    assert run.state().plan
    job = Job("0" * 64, "trial", Delta(changes), seed_index=3)
    ledger.append("job.started", {"round": 1, "id": name, "job": job.to_json()})
    files.write_json(run.inside("optimization", "1", "trials", name, "job.json"), job.to_json())
    trained(run, f"optimization/1/trials/{name}", steps=5)
    ledger.append("job.finished", {"round": 1, "id": name, "died": died, "score": None, "weights": None})


def test_mirror_sends_the_whole_run(new_root: Path) -> None:
    """Params, curves, tags and artifacts of a run are in an SQLite file next to the runs, and the run is finished."""
    run = baseline_done(new_root)
    trained(run)
    files.write_bytes(run.inside("baseline", "learning_curve.png"), b"\x89PNG")
    result = mirror(run.path)
    assert result.sent.artifacts == 2
    stored = client(new_root).get_run(result.run)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "digits-hot"
    assert stored.data.params["optimizer.lr"] == "3.0"
    assert not any(name.startswith(("plan.", "tracking.")) for name in stored.data.params)
    assert stored.data.metrics["train/loss"] == pytest.approx(2 / 30)
    assert np.isnan(stored.data.metrics["val/loss"])
    assert set(stored.data.metrics) == {"train/loss", "val/loss", "lr"}
    tags = stored.data.tags
    assert tags["fivegate.gate.planning"] == "open"
    assert tags["fivegate.gate.diagnostics"] == "not needed"
    assert tags["fivegate.gate.baseline.one_batch_overfits"] == "passed: 0.001 (required <= 0.05)"
    assert tags["fivegate.gate.planning.seeds_fixed"] == "passed"
    assert tags["fivegate.branch"] == "sufficient"
    assert tags["fivegate.plan.digest"] == run.state().plan["digest"]  # type: ignore[index]
    history = client(new_root).get_metric_history(result.run, "train/loss")
    assert [metric.step for metric in history] == list(range(30))
    assert (new_root / "mlartifacts").is_dir()
    assert [a.path for a in client(new_root).list_artifacts(result.run, "plan")] == ["plan/1.yaml"]


def test_mirror_gives_every_metric_one_name_and_one_axis(root: Path) -> None:
    """`val/accuracy` has one point per epoch, at its optimizer step; the decided scores have names of their own."""
    run = baseline_done(root)
    history = History()
    history.facts["steps_per_epoch"] = 10.0
    for step in range(1, 31):
        history.log_step(step, {"train/loss": 1 / step})
    for epoch in range(1, 4):
        history.log_epoch(epoch, {"val/accuracy": epoch / 10})
    files.write_bytes(run.inside("baseline", "history.npz"), history.to_bytes())
    score = {"split": "val", "metric": "accuracy", "value": 0.3, "low": 0.2, "high": 0.4, "n": 9}
    with opened(run) as ledger:
        ledger.append("candidate.chosen", {"phase": "baseline", "round": 1, "weights": "f" * 64, "score": score})
        ledger.append("test.scored", {"candidate": "f" * 64, "score": {**score, "value": 0.25}})
    run_id = mirror(run.path).run
    stored = client(root).get_metric_history(run_id, "val/accuracy")
    assert [(m.step, m.value) for m in stored] == [(10 * n, pytest.approx(n / 10)) for n in (1, 2, 3)]
    metrics = client(root).get_run(run_id).data.metrics
    assert set(metrics) == {"train/loss", "val/accuracy", "candidate/accuracy", "candidate/test/accuracy"}
    assert (metrics["candidate/accuracy"], metrics["candidate/test/accuracy"]) == (0.3, 0.25)


def test_mirror_shows_trials_as_child_runs(root: Path) -> None:
    """Every trial is a child run with its changes as params, its own curves under plain names, and its own end."""
    run = baseline_done(root)
    trained(run)
    with opened(run) as ledger:
        trial(run, ledger, "control-1", {})
        trial(run, ledger, "c1-1", {"optimizer.lr": 0.01})
        trial(run, ledger, "c1-2", {"optimizer.lr": 0.01}, died="killed")
        ledger.append("job.started", {"round": 1, "id": "c1-3", "job": {}})
    trained(run, "optimization/1/trials/c1-3", steps=2)
    result = mirror(run.path, running=True)
    trials = children_of(root, result.run)
    assert {name.rpartition("/")[2]: child.info.status for name, child in trials.items()} == {
        "control-1": "FINISHED",
        "c1-1": "FINISHED",
        "c1-2": "FAILED",
        "c1-3": "RUNNING",
    }
    changed = trials["optimization/1/trials/c1-1"]
    assert changed.data.params == {"optimizer.lr": "0.01", "seed_index": "3"}
    assert changed.data.metrics["train/loss"] == pytest.approx(2 / 5)
    assert not any("trials" in name for name in client(root).get_run(result.run).data.metrics)
    assert mirror(run.path).sent.points == 0
    assert {child.info.status for child in children_of(root, result.run).values()} == {"FINISHED", "FAILED"}


def test_mirror_uploads_weights_and_exports(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The candidate's weights and the bundle are artifacts; a file above the limit is named instead."""
    run = baseline_done(root)
    monkeypatch.setattr(run_export, "ARTIFACT_BYTES", 10_000)
    files.write_bytes(run.inside("baseline", "checkpoints", "2", "weights.safetensors"), b"weights")
    files.write_bytes(run.inside("baseline", "checkpoints", "1", "weights.safetensors"), b"older weights")
    files.write_bytes(run.inside("bundle", "payload", "model.onnx"), b"onnx")
    files.write_bytes(run.inside("bundle", "payload", "model.pt2"), b"x" * 10_001)
    with opened(run) as ledger:
        candidate = {"phase": "baseline", "round": 1, "weights": "f" * 64, "checkpoint": "baseline/checkpoints/2"}
        ledger.append("candidate.chosen", candidate)
    run_id = mirror(run.path).run
    tracker = client(root)
    assert [a.path for a in tracker.list_artifacts(run_id, "baseline/checkpoints/2")] == [
        "baseline/checkpoints/2/weights.safetensors"
    ]
    assert [a.path for a in tracker.list_artifacts(run_id, "bundle/payload")] == ["bundle/payload/model.onnx"]
    assert tracker.list_artifacts(run_id, "baseline/checkpoints/1") == []
    assert tracker.get_run(run_id).data.tags["fivegate.not_uploaded"] == "bundle/payload/model.pt2"


def test_mirror_sends_nothing_twice(root: Path) -> None:
    """The second call finds everything in the tracker, also when the cache of what was sent is lost."""
    run = baseline_done(root)
    trained(run)
    with opened(run) as ledger:
        trial(run, ledger, "c1-1", {"optimizer.lr": 0.01})
    first = mirror(run.path)
    before = metric_rows(root), len(runs(root))
    assert mirror(run.path) == first._replace(sent=SentCounts(0, 0, 0))
    run.inside("tracking.json").unlink()
    again = mirror(run.path)
    assert (again.run, metric_rows(root), len(runs(root))) == (first.run, *before)


def test_mirror_sends_again_what_was_deleted(root: Path) -> None:
    """A run or a trial that was deleted in the tracker is created again with everything in it."""
    run = baseline_done(root)
    trained(run)
    with opened(run) as ledger:
        trial(run, ledger, "c1-1", {"optimizer.lr": 0.01})
    first = mirror(run.path)
    [child] = children_of(root, first.run).values()
    client(root).delete_run(child.info.run_id)
    assert mirror(run.path).sent.points == 5 + 5 + 2
    assert "seed_index" in children_of(root, first.run)[child.info.run_name].data.params
    client(root).delete_run(first.run)
    again = mirror(run.path)
    assert (again.run != first.run, again.sent) == (True, first.sent)


def test_mirror_sends_only_what_is_new(root: Path) -> None:
    """A history that grew sends its new points; a trial sends its own."""
    run = baseline_done(root)
    trained(run, steps=30)
    mirror(run.path)
    trained(run, steps=40)
    assert mirror(run.path).sent.points == 2 * 10
    trained(run, "optimization/1/trials/0", steps=5)
    assert mirror(run.path).sent.points == 5 + 5 + 2


def test_mirror_gives_a_replaced_training_a_child_run(root: Path) -> None:
    """A baseline trained again does not continue the curve of the one it replaced, also when the cache is lost."""
    run = baseline_done(root)
    trained(run)
    mirror(run.path)
    trained(run, offset=1.0)
    result = mirror(run.path)
    again = children_of(root, result.run)["baseline.2"]
    assert client(root).get_run(result.run).data.metrics["train/loss"] == pytest.approx(2 / 30)
    assert again.data.metrics["train/loss"] == pytest.approx(1 + 2 / 30)
    assert again.info.status == "FINISHED"
    assert mirror(run.path).sent.points == 0
    run.inside("tracking.json").unlink()
    before = metric_rows(root)
    mirror(run.path)
    assert metric_rows(root) == before


def test_mirror_adds_what_a_revision_changed(root: Path) -> None:
    """Params cannot change: a new revision of the plan adds the keys that differ, under its number."""
    run = baseline_done(root)
    mirror(run.path)
    with opened(run) as ledger:
        freeze(run, ledger, {**CONFIG, "optimizer": {**CONFIG["optimizer"], "lr": 0.01}}, {"optimizer.lr": [3.0, 0.01]})
    assert mirror(run.path).sent.params == 1
    logged = params(RunExport.of(run.path))
    assert {k: v for k, v in logged.items() if k.endswith("lr")} == {"optimizer.lr": "3.0", "r2/optimizer.lr": "0.01"}


def test_mirror_splits_what_one_call_cannot_hold(root: Path) -> None:
    """250 params, 2,400 points and 120 items of a gate are sent in calls of 100, 1,000 and 100."""
    run = Run.at(root, "large")
    with opened(run, experiment="large") as ledger:
        freeze(run, ledger, {**CONFIG, "model": {f"width_{i}": i for i in range(250)}})
        gate(ledger, "planning", *(passed(f"item_{i}") for i in range(120)))
    history = History()
    for step in range(800):
        history.log_step(step, {"a": step, "b": step, "c": step})
    files.write_bytes(run.inside("baseline", "history.npz"), history.to_bytes())
    result = mirror(run.path)
    assert result.sent.points == 2400
    stored = client(root).get_run(result.run).data
    assert stored.params["model.width_249"] == "249"
    assert stored.metrics["c"] == 799
    assert stored.tags["fivegate.gate.planning.item_119"] == "passed"


def test_training_points_thins_long_series(tmp_path: Path) -> None:
    """No series sends more than its limit; the first point and an even spacing remain."""
    history = History()
    for step in range(5000):
        history.log_step(step, {"loss": step})
    baseline = Training(Run(tmp_path), "baseline", tmp_path / "history.npz", "RUNNING")
    loss = training_points(baseline, history, 0)["loss"]
    assert [point.step for point in loss][:3] == [0, 8, 16]
    assert len(loss) <= POINTS
    trial = replace(baseline, folder="optimization/1/trials/3")
    assert len(training_points(trial, history, 0)["loss"]) <= TRIAL_POINTS


def job_of(sweep: SweepDirectory, name: str, experiment: str = "digits") -> Run:
    """A run that is a job of the sweep."""
    run = Run.at(sweep.path.parents[1], name)
    with opened(run, experiment=experiment, sweep=sweep.number) as ledger:
        freeze(run, ledger, CONFIG)
    return run


def statuses(root: Path) -> dict[str, str]:
    return {run.info.run_name: run.info.status for run in runs(root)}


def test_sweep_run_is_the_parent_of_its_jobs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs have one parent, whatever MLFLOW_RUN_ID is; it ends as the sweep does, and runs again with it."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with claim_sweep(root, ["seed=1,2"], []) as (sweep, _), sweep_run(sweep, LOCAL):
        children = [mirror(job_of(sweep, name).path).run for name in ("one", "two")]
        [above] = {client(root).get_run(c).data.tags["mlflow.parentRunId"] for c in children}
        assert client(root).get_run(above).info.status == "RUNNING"
        sweep.finish()
    assert len({above, *children}) == 3
    assert os.environ["MLFLOW_RUN_ID"] == "0" * 32
    assert client(root).get_run(above).info.status == "FINISHED"
    assert client(root).get_run(above).info.run_name == "sweep-1"
    with pytest.raises(ZeroDivisionError), claim_sweep(root, ["seed=3"], []) as (sweep, _), sweep_run(sweep, LOCAL):
        1 / 0
    assert statuses(root)["sweep-2"] == "FAILED"
    with claim_sweep(root, ["seed=3"], []) as (sweep, _), sweep_run(sweep, LOCAL):
        assert statuses(root) == {"one": "FINISHED", "two": "FINISHED", "sweep-1": "FINISHED", "sweep-2": "RUNNING"}


def test_sweep_run_closes_killed_sweeps(root: Path) -> None:
    """A killed run is closed by the next mirror of it, a killed sweep by the next sweep; neither is created twice."""
    with claim_sweep(root, ["seed=1,2"], []) as (sweep, _):
        run = job_of(sweep, "killed")
        with opened(run) as ledger:
            ledger.append("phase.started", {"phase": "planning", "round": 1, "basis": -1})
        mirror(run.path, running=True)
        assert statuses(root) == {"killed": "RUNNING", "sweep-1": "RUNNING"}
    mirror(run.path)
    with claim_sweep(root, ["seed=3"], []) as (other, _), sweep_run(other, LOCAL):
        assert statuses(root) == {"killed": "KILLED", "sweep-1": "KILLED", "sweep-2": "RUNNING"}


def test_mirror_sets_the_status_of_the_ledger(root: Path) -> None:
    """A run inside a phase is running; one whose phase failed has failed; one that was interrupted was killed."""
    run = baseline_done(root)
    shown = []
    for kind in ("phase.started", "phase.failed", "phase.started", "stopped"):
        with opened(run) as ledger:
            ledger.append(kind, {"phase": "finalization", "round": 1, "why": "x"})
        result = mirror(run.path, running=kind == "phase.started")
        shown.append(client(root).get_run(result.run).info.status)
    assert shown == ["RUNNING", "FAILED", "RUNNING", "KILLED"]


@pytest.mark.parametrize(
    "uri", ["http://ada:secret@127.0.0.1:9/", "sqlite:////proc/none/x.db", "./mlruns", "nosuch://x"]
)
def test_mirror_fails_fast_when_the_tracker_is_unavailable(root: Path, uri: str) -> None:
    """Refused connections, impossible databases, retired stores, unknown schemes: one quick error, without secrets."""
    run = baseline_done(root)
    started = time.monotonic()
    with pytest.raises(TrackerUnavailable) as raised:
        mirror(run.path, uri)
    assert time.monotonic() - started < 15
    assert "secret" not in str(raised.value)
    assert not run.inside("tracking.json").exists()


def test_mirror_refuses_a_broken_database(new_root: Path) -> None:
    """A file that is not a database is reported at once, instead of after a hundred seconds of retries."""
    run = baseline_done(new_root)
    (new_root / "mlflow.db").write_bytes(b"no database, but long enough to look at" * 100)
    with pytest.raises(TrackerUnavailable, match="not a database"):
        mirror(run.path)


def test_mirror_gives_up_on_a_silent_server(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and never answers costs seconds, not minutes; a timeout that the user set is used."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")

    run = baseline_done(root)
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        with pytest.raises(TrackerUnavailable):
            mirror(run.path, f"http://127.0.0.1:{server.getsockname()[1]}")
    assert time.monotonic() - started < 8
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"


def test_mirror_sends_later_what_was_missed(root: Path) -> None:
    """After the tracker was unavailable, the next call that reaches it sends everything."""
    run = baseline_done(root)
    trained(run)
    with pytest.raises(TrackerUnavailable):
        mirror(run.path, "http://127.0.0.1:9/")
    assert mirror(run.path).sent.points == 30 + 30 + 2


def test_tracking_uri_is_the_users_own(new_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFLOW_TRACKING_URI is used, and a configured URI has precedence over it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/own.db")
    assert tracking_uri(new_root) == f"sqlite:///{tmp_path}/own.db"
    assert tracking_uri(new_root, "http://tracker") == "http://tracker"
    mirror(baseline_done(new_root).path)
    assert (tmp_path / "own.db").exists()
    assert not (new_root / "mlflow.db").exists()


@pytest.mark.process
def test_mirror_shares_a_new_database_between_processes(new_root: Path) -> None:
    """Three processes that use a new database for the first time all succeed."""
    runs = [baseline_done(new_root, name) for name in ("a", "b", "c")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    code = (
        "import sys; from pathlib import Path; from pipeline.tracking import connection, mirror;"
        "connection.BUDGET_S = 300;"  # the test is about sharing, not about the speed of the machine
        "mirror.mirror(Path(sys.argv[1]))"
    )
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(run.path)], stderr=subprocess.PIPE, env=environment)
        for run in runs
    ]
    errors = [job.communicate()[1].decode()[-500:] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], errors


def test_without_credentials_removes_user_and_password() -> None:
    """The part of a URI before the @ is removed."""
    assert without_credentials("postgresql://ada:pw@db:5432/x") == "postgresql://db:5432/x"
    assert without_credentials("sqlite:///a@b.db") == "sqlite:///a@b.db"


def test_note_has_the_gates_and_the_next_command(root: Path) -> None:
    """The description has the gates and the next command, and no folder or person of this machine is named."""
    run = baseline_done(root)
    stored = client(root).get_run(mirror(run.path).run)
    text = note(RunExport.of(run.path))
    assert stored.data.tags["mlflow.note.content"] == text
    for line in ("| planning | open |", "| diagnostics | not needed |", "python -m pipeline phase="):
        assert line in text
    assert (stored.data.tags["mlflow.source.name"], "mlflow.user" in stored.data.tags) == ("python -m pipeline", False)


def test_tags_leave_out_an_experiment_without_a_name(root: Path) -> None:
    """No tag is empty, and no sentence lacks a name."""
    export = RunExport.of(job_of(SweepDirectory(root / ".sweeps" / "1"), "unnamed", experiment="").path)
    assert all(tags(export).values())
    assert note(replace(export, plans={})).startswith("Run `unnamed`.\n")


def test_mirror_logs_every_split_as_a_dataset(root: Path) -> None:
    """Train and test are inputs with digest and context, and the folders of a path are not shown."""
    run = Run.at(root, "rows")
    facts = {s: {"rows": 9, "digest": s * 20, "schema": {"X": [64]}, "counts": {"0": 9}} for s in ("train", "test")}
    config = {**CONFIG, "data": {"_target_": "pipeline.data.sources.csv.csv", "path": "/home/ada/secret/rows.csv"}}
    with opened(run, experiment="csv") as ledger:
        plan = plans.Plan(1, config, {phase: [] for phase in PHASES}, {"splits": facts})
        path = plans.write(run, plan)
        about = {"revision": 1, "digest": plan.digest, "file": run.relative(path), "changed": {}}
        ledger.append("plan.frozen", about)
    [run_id] = {mirror(run.path).run for _ in range(2)}
    inputs = client(root).get_run(run_id).inputs.dataset_inputs
    assert {(i.tags[0].value, i.dataset.name) for i in inputs} == {("train", "csv/train"), ("test", "csv/test")}
    assert {i.dataset.digest for i in inputs} == {record.digest for record in datasets(RunExport.of(run.path))}
    assert all("rows.csv" in i.dataset.source and "ada" not in i.dataset.source for i in inputs)


def test_mirror_shows_a_training_while_it_runs(root: Path) -> None:
    """The newest checkpoint's history is sent; the final history adds only what that one did not have."""
    run = baseline_done(root)
    trained(run, "baseline/checkpoints/1", steps=10)
    trained(run, "baseline/checkpoints/2", steps=20)
    result = mirror(run.path, running=True)
    assert client(root).get_run(result.run).info.status == "RUNNING"
    assert client(root).get_run(result.run).data.metrics["train/loss"] == pytest.approx(2 / 20)
    trained(run, steps=30)
    assert mirror(run.path).sent.points == 2 * 10


@pytest.mark.process
def test_mirror_run_sends_everything_and_ends(root: Path) -> None:
    """The process sends what is missing when the run is over; a tracker that refuses is reported and stops nothing."""
    run = baseline_done(root)
    messages: list[str] = []
    with sync_process.mirror_run(run.path, LOCAL, messages.append):
        trained(run)
    assert messages == []
    assert [r.info.status for r in runs(root)] == ["FINISHED"]
    assert "train/loss" in runs(root)[0].data.metrics
    with sync_process.mirror_run(run.path, {"kind": "mlflow", "uri": "http://127.0.0.1:9/"}, messages.append):
        pass
    assert len(messages) == 1 and "127.0.0.1" in messages[0]


@pytest.mark.process
def test_mirror_run_does_not_delay_the_end(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a process that was forked meanwhile nor, after an interrupt, a silent tracker delays the end."""
    run = baseline_done(root)
    monkeypatch.setattr(sync_process, "END_TIMEOUT_S", 30.0)
    monkeypatch.setattr(sync_process, "INTERRUPT_TIMEOUT_S", 0.3)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    messages: list[str] = []
    with sync_process.mirror_run(run.path, LOCAL, messages.append):
        forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        forked.start()
    forked.kill()
    assert messages == []
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(KeyboardInterrupt):
        uri = f"http://ada:secret@127.0.0.1:{server.getsockname()[1]}"
        with sync_process.mirror_run(run.path, {"kind": "mlflow", "uri": uri}, messages.append):
            commands = subprocess.check_output(["ps", "-o", "args=", "--ppid", str(os.getpid())], text=True)
            raise KeyboardInterrupt
    assert messages == ["the tracker did not answer within 0 seconds"]
    assert "tracking.sync_process" in commands and "secret" not in commands


FIRST_USE = """
import sys
from pathlib import Path
from pipeline.tracking import connection

connection.BUDGET_S = 300.0
with connection.connect(Path(sys.argv[1]), {}) as tracker:
    print(tracker.experiment)
"""


@pytest.mark.process
def test_tracking_database_is_made_once_by_three_jobs_at_once(tmp_path: Path) -> None:
    """Three processes that use a new database at the same time all get its one experiment."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FIRST_USE, str(tmp_path)]
    jobs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [job.communicate(timeout=300)[0].strip() for job in jobs]

    assert [job.returncode for job in jobs] == [0, 0, 0] and len(set(answers)) == 1 and answers[0]
