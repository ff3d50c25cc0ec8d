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
from pipeline.run_store.run import Run, opened
from pipeline.tracking import sync_process
from pipeline.tracking.description import note, tags
from pipeline.tracking.description import rows as splits
from pipeline.tracking.mlflow import TrackerUnavailable, mirror, shown, where
from pipeline.tracking.run_export import POINTS, TRIAL_POINTS, RunExport, params, points
from pipeline.tracking.sweep_run import parent
from tests.ledger_fixtures import CONFIG, baseline_done, freeze


@pytest.fixture(autouse=True)
def no_tracker_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
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

    return MlflowClient(tracking_uri=where(root))


def runs(root: Path) -> Any:
    tracker = client(root)
    return tracker.search_runs([tracker.get_experiment_by_name("fivegate").experiment_id])


def rows(root: Path) -> int:
    with sqlite3.connect(root / "mlflow.db") as database:
        return int(database.execute("SELECT count(*) FROM metrics").fetchone()[0])


def test_a_run_is_mirrored_whole(new_root: Path) -> None:
    """Params, metrics by phase, tags and artifacts of a run stand in SQLite beside the runs, and it is finished."""
    run = baseline_done(new_root)
    trained(run)
    files.write_bytes(run.inside("baseline", "learning_curve.png"), b"\x89PNG")
    told = mirror(run.path)
    assert told["sent"]["artifacts"] == 2
    found = client(new_root).get_run(told["run"])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "digits-hot"
    assert found.data.params["optimizer.lr"] == "3.0"
    assert not any(name.startswith(("plan.", "tracking.")) for name in found.data.params)
    assert found.data.metrics["baseline/train/loss"] == pytest.approx(2 / 30)
    assert np.isnan(found.data.metrics["baseline/val/loss"])
    assert found.data.metrics["gate/baseline/one_batch_overfits"] == 0.001
    tags = found.data.tags
    assert tags["fivegate.gate.planning"] == "open"
    assert tags["fivegate.gate.diagnostics"] == "not needed"
    assert tags["fivegate.branch"] == "sufficient"
    assert tags["fivegate.plan.digest"] == run.state().plan["digest"]  # type: ignore[index]
    history = client(new_root).get_metric_history(told["run"], "baseline/train/loss")
    assert [metric.step for metric in history] == list(range(30))
    assert (new_root / "mlartifacts").is_dir()
    assert [a.path for a in client(new_root).list_artifacts(told["run"], "plan")] == ["plan/1.yaml"]


def test_mirroring_again_sends_nothing(root: Path) -> None:
    """The second call finds everything there, also when what was sent has been forgotten."""
    run = baseline_done(root)
    trained(run)
    first = mirror(run.path)
    before = rows(root)
    assert mirror(run.path) == {**first, "sent": {"params": 0, "points": 0, "artifacts": 0}}
    run.inside("tracking.json").unlink()
    again = mirror(run.path)
    assert (again["run"], rows(root)) == (first["run"], before)


def test_what_the_tracker_lost_is_sent_again(root: Path) -> None:
    """A run that was deleted there is made anew with everything in it, not an empty one."""
    run = baseline_done(root)
    trained(run)
    first = mirror(run.path)
    client(root).delete_run(first["run"])
    again = mirror(run.path)
    assert (again["run"] != first["run"], again["sent"]) == (True, first["sent"])


def test_only_what_is_new_is_sent(root: Path) -> None:
    """A history that grew sends its new points; another phase sends its own, under its name."""
    run = baseline_done(root)
    trained(run, steps=30)
    mirror(run.path)
    trained(run, steps=40)
    assert mirror(run.path)["sent"]["points"] == 2 * 10
    trained(run, "optimization/1/trials/0", steps=5)
    told = mirror(run.path)
    assert told["sent"]["points"] == 5 + 5 + 2
    assert "optimization/1/trials/0/train/loss" in client(root).get_run(told["run"]).data.metrics


def test_another_training_in_the_same_place_has_its_own_names(root: Path) -> None:
    """A baseline trained anew does not continue the curve of the one it replaced."""
    run = baseline_done(root)
    trained(run)
    mirror(run.path)
    trained(run, offset=1.0)
    told = mirror(run.path)
    metrics = client(root).get_run(told["run"]).data.metrics
    assert metrics["baseline/train/loss"] == pytest.approx(2 / 30)
    assert metrics["baseline.2/train/loss"] == pytest.approx(1 + 2 / 30)
    assert mirror(run.path)["sent"]["points"] == 0


def test_a_revision_adds_what_it_changed(root: Path) -> None:
    """Params cannot change: a new revision of the plan adds the keys that differ, under its number."""
    run = baseline_done(root)
    mirror(run.path)
    with opened(run) as ledger:
        freeze(run, ledger, {**CONFIG, "optimizer": {**CONFIG["optimizer"], "lr": 0.01}}, {"optimizer.lr": [3.0, 0.01]})
    assert mirror(run.path)["sent"]["params"] == 1
    found = params(RunExport.of(run.path))
    assert {k: v for k, v in found.items() if k.endswith("lr")} == {"optimizer.lr": "3.0", "r2/optimizer.lr": "0.01"}


def test_more_than_a_call_holds(root: Path) -> None:
    """250 params and 2,400 points go out in calls of 100 and 1,000."""
    run = Run.at(root, "large")
    with opened(run, experiment="large") as ledger:
        freeze(run, ledger, {**CONFIG, "model": {f"width_{i}": i for i in range(250)}})
    history = History()
    for step in range(800):
        history.log_step(step, {"a": step, "b": step, "c": step})
    files.write_bytes(run.inside("baseline", "history.npz"), history.to_bytes())
    told = mirror(run.path)
    assert told["sent"]["points"] == 2400
    found = client(root).get_run(told["run"]).data
    assert found.params["model.width_249"] == "249"
    assert found.metrics["baseline/c"] == 799


def test_long_series_are_thinned() -> None:
    """No series sends more than its share; the first point and the spacing are kept."""
    history = History()
    for step in range(5000):
        history.log_step(step, {"loss": step})
    assert [p.step for p in points(history, "baseline", 0)["baseline/loss"]][:3] == [0, 8, 16]
    assert len(points(history, "baseline", 0)["baseline/loss"]) <= POINTS
    [(_, trial)] = points(history, "optimization/1/trials/3", 0).items()
    assert len(trial) <= TRIAL_POINTS


def job_of(shelf: SweepDirectory, name: str, experiment: str = "digits") -> Run:
    """A run that is a job of the sweep."""
    run = Run.at(shelf.path.parents[1], name)
    with opened(run, experiment=experiment, sweep=shelf.number) as ledger:
        freeze(run, ledger, CONFIG)
    return run


def test_a_sweep_is_a_parent_with_children(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs hang under one parent, whatever MLFLOW_RUN_ID says; it ends as the sweep does, and runs again with it."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with claim_sweep(root, ["seed=1,2"], []) as (shelf, _), parent(shelf, {}):
        children = [mirror(job_of(shelf, name).path)["run"] for name in ("one", "two")]
        [above] = {client(root).get_run(c).data.tags["mlflow.parentRunId"] for c in children}
        assert client(root).get_run(above).info.status == "RUNNING"
        shelf.finish()
    assert len({above, *children}) == 3
    assert os.environ["MLFLOW_RUN_ID"] == "0" * 32
    assert client(root).get_run(above).info.status == "FINISHED"
    assert client(root).get_run(above).info.run_name == "sweep-1"
    with pytest.raises(ZeroDivisionError), claim_sweep(root, ["seed=3"], []) as (shelf, _), parent(shelf, {}):
        1 / 0
    assert {r.info.run_name: r.info.status for r in runs(root)}["sweep-2"] == "FAILED"
    with claim_sweep(root, ["seed=3"], []) as (shelf, _), parent(shelf, {}):
        assert {r.info.run_name: r.info.status for r in runs(root)} == {
            "one": "FINISHED",
            "two": "FINISHED",
            "sweep-1": "FINISHED",
            "sweep-2": "RUNNING",
        }


def test_what_was_killed_is_closed(root: Path) -> None:
    """A run that was killed is closed by the next word of it; a sweep that was, by the next sweep; none twice made."""
    with claim_sweep(root, ["seed=1,2"], []) as (shelf, _):
        run = job_of(shelf, "killed")
        with opened(run) as ledger:
            ledger.append("phase.started", {"phase": "planning", "round": 1, "basis": -1})
        mirror(run.path, running=True)
        assert {r.info.run_name: r.info.status for r in runs(root)} == {"killed": "RUNNING", "sweep-1": "RUNNING"}
    mirror(run.path)
    with claim_sweep(root, ["seed=3"], []) as (other, _), parent(other, {}):
        found = {r.info.run_name: r.info.status for r in runs(root)}
    assert found == {"killed": "KILLED", "sweep-1": "KILLED", "sweep-2": "RUNNING"}


def test_the_status_is_the_ledgers(root: Path) -> None:
    """A run inside a phase is running; one whose phase broke has failed; one that was interrupted was killed."""
    run = baseline_done(root)
    seen = []
    for kind in ("phase.started", "phase.failed", "phase.started", "stopped"):
        with opened(run) as ledger:
            ledger.append(kind, {"phase": "finalization", "round": 1, "why": "x"})
        told = mirror(run.path, running=kind == "phase.started")
        seen.append(client(root).get_run(told["run"]).info.status)
    assert seen == ["RUNNING", "FAILED", "RUNNING", "KILLED"]


@pytest.mark.parametrize(
    "uri", ["http://ada:secret@127.0.0.1:9/", "sqlite:////proc/none/x.db", "./mlruns", "nosuch://x"]
)
def test_a_tracker_that_is_away_is_one_quick_exception(root: Path, uri: str) -> None:
    """Refused connections, impossible databases, retired stores, unknown schemes: TrackingAway, without secrets."""
    run = baseline_done(root)
    started = time.monotonic()
    with pytest.raises(TrackerUnavailable) as raised:
        mirror(run.path, uri)
    assert time.monotonic() - started < 15
    assert "secret" not in str(raised.value)
    assert not run.inside("tracking.json").exists()


def test_a_broken_database_is_away(new_root: Path) -> None:
    """A file that is no database is said at once, instead of after a hundred seconds of trying."""
    run = baseline_done(new_root)
    (new_root / "mlflow.db").write_bytes(b"no database, but long enough to look at" * 100)
    with pytest.raises(TrackerUnavailable, match="not a database"):
        mirror(run.path)


def test_a_silent_server_is_given_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and never answers costs seconds, not minutes; the user's own patience is respected."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")

    run = baseline_done(root)
    with socket.create_server(("127.0.0.1", 0)) as server:
        started = time.monotonic()
        with pytest.raises(TrackerUnavailable):
            mirror(run.path, f"http://127.0.0.1:{server.getsockname()[1]}")
    assert time.monotonic() - started < 8
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"


def test_what_was_missed_is_sent_later(root: Path) -> None:
    """After a tracker was away, the next call that reaches it sends everything."""
    run = baseline_done(root)
    trained(run)
    with pytest.raises(TrackerUnavailable):
        mirror(run.path, "http://127.0.0.1:9/")
    assert mirror(run.path)["sent"]["points"] == 30 + 30 + 2 + 2


def test_the_users_own_tracker_is_used(new_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLFLOW_TRACKING_URI is honoured, and a URI that is given goes before it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/own.db")
    assert where(new_root) == f"sqlite:///{tmp_path}/own.db"
    assert where(new_root, "http://tracker") == "http://tracker"
    mirror(baseline_done(new_root).path)
    assert (tmp_path / "own.db").exists()
    assert not (new_root / "mlflow.db").exists()


@pytest.mark.process
def test_processes_that_start_together_share_a_fresh_database(new_root: Path) -> None:
    """Three first users of a new database all succeed."""
    runs = [baseline_done(new_root, name) for name in ("a", "b", "c")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    code = (
        "import sys; from pathlib import Path; from pipeline.tracking.mlflow import mirror; mirror(Path(sys.argv[1]))"
    )
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(run.path)], stderr=subprocess.PIPE, env=environment)
        for run in runs
    ]
    errors = [job.communicate()[1].decode()[-500:] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], errors


def test_credentials_are_not_shown() -> None:
    """The part of a URI before the @ never leaves."""
    assert shown("postgresql://ada:pw@db:5432/x") == "postgresql://db:5432/x"
    assert shown("sqlite:///a@b.db") == "sqlite:///a@b.db"


def test_the_page_says_what_where_and_what_next(root: Path) -> None:
    """The description has gates and the next command, and no folder or person of this machine is named."""
    run = baseline_done(root)
    told = mirror(run.path)
    story = RunExport.of(run.path)
    found = client(root).get_run(told["run"])
    assert found.data.tags["mlflow.note.content"] == note(story)
    for said in ("| planning | open |", "| diagnostics | not needed |", "python -m pipeline phase="):
        assert said in note(story)
    assert (found.data.tags["mlflow.source.name"], "mlflow.user" in found.data.tags) == ("python -m pipeline", False)


def test_an_experiment_that_nobody_named_is_not_shown_empty(root: Path) -> None:
    """No tag is without a value, and no sentence has a hole where a name belongs."""
    story = RunExport.of(job_of(SweepDirectory(root / ".sweeps" / "1"), "unnamed", experiment="").path)
    assert all(tags(story).values())
    assert note(replace(story, plans={})).startswith("Run `unnamed`.\n")


def test_every_split_is_an_input(root: Path) -> None:
    """Train and test stand in the tracker by digest and context, and the folders of a path are not shown."""
    run = Run.at(root, "rows")
    sides = {s: {"rows": 9, "digest": s * 20, "schema": {"X": [64]}, "counts": {"0": 9}} for s in ("train", "test")}
    config = {**CONFIG, "data": {"_target_": "pipeline.data.sources.csv.csv", "path": "/home/ada/secret/rows.csv"}}
    with opened(run, experiment="csv") as ledger:
        plan = plans.Plan(1, config, {phase: [] for phase in PHASES}, {"splits": sides})
        path = plans.write(run, plan)
        about = {"revision": 1, "digest": plan.digest, "file": run.relative(path), "changed": {}}
        ledger.append("plan.frozen", about)
    told = [mirror(run.path)["run"] for _ in range(2)]
    inputs = client(root).get_run(told[0]).inputs.dataset_inputs
    assert {(i.tags[0].value, i.dataset.name) for i in inputs} == {("train", "csv/train"), ("test", "csv/test")}
    assert {i.dataset.digest for i in inputs} == {row.digest for row in splits(RunExport.of(run.path))}
    assert all("rows.csv" in i.dataset.source and "ada" not in i.dataset.source for i in inputs)


def test_a_training_is_seen_while_it_runs(root: Path) -> None:
    """The newest checkpoint's history is sent under the name of the final one, which adds only what it did not have."""
    run = baseline_done(root)
    trained(run, "baseline/checkpoints/1", steps=10)
    trained(run, "baseline/checkpoints/2", steps=20)
    told = mirror(run.path, running=True)
    assert client(root).get_run(told["run"]).info.status == "RUNNING"
    assert client(root).get_run(told["run"]).data.metrics["baseline/train/loss"] == pytest.approx(2 / 20)
    trained(run, steps=30)
    assert mirror(run.path)["sent"]["points"] == 2 * 10


@pytest.mark.process
def test_the_process_beside_sends_all_and_ends(root: Path) -> None:
    """It sends what is there, and the rest when the run is over; a tracker that refuses is said, and stops nothing."""
    run = baseline_done(root)
    said: list[str] = []
    with sync_process.following(run.path, {"kind": "mlflow", "uri": None}, said.append):
        trained(run)
    assert said == []
    assert [r.info.status for r in runs(root)] == ["FINISHED"]
    assert "baseline/train/loss" in runs(root)[0].data.metrics
    with sync_process.following(run.path, {"kind": "mlflow", "uri": "http://127.0.0.1:9/"}, said.append):
        pass
    assert len(said) == 1 and "127.0.0.1" in said[0]


@pytest.mark.process
def test_nothing_keeps_the_end_of_a_phase_waiting(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a process forked meanwhile, as readers of data are, nor, when it is interrupted, a silent tracker."""
    run = baseline_done(root)
    monkeypatch.setattr(sync_process, "LAST", 30.0)
    monkeypatch.setattr(sync_process, "AT_ONCE", 0.3)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    said: list[str] = []
    with sync_process.following(run.path, {"kind": "mlflow", "uri": None}, said.append):
        forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
        forked.start()
    forked.kill()
    assert said == []
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(KeyboardInterrupt):
        uri = f"http://ada:secret@127.0.0.1:{server.getsockname()[1]}"
        with sync_process.following(run.path, {"kind": "mlflow", "uri": uri}, said.append):
            seen = subprocess.check_output(["ps", "-o", "args=", "--ppid", str(os.getpid())], text=True)
            raise KeyboardInterrupt
    assert said == ["the tracker did not answer within 0 seconds"]
    assert "tracking.sync_process" in seen and "secret" not in seen
