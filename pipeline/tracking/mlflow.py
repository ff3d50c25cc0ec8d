"""MLflow holds a copy of the records: the ledger is the truth, and a tracker that fails stops nothing.

Everything goes through `MlflowClient` with explicit run ids, so that no global state of MLflow's is touched. What was
sent stands in the run's `tracking.json`; it is a cache: the MLflow run is found again by the identity of the ledger.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.history import History
from pipeline.record import files
from pipeline.tracking import outgoing
from pipeline.tracking.memory import Memory
from pipeline.tracking.outgoing import Point, Story

EXPERIMENT = "fivegate"
PARAMS_PER_CALL, METRICS_PER_CALL = 100, 1000  # MLflow's own limits
VALUE_CHARS = 6000  # of a param
BUDGET_S = 60.0

_PATIENCE = {  # MLflow waits 120 s and tries 7 times; a copy is not worth that
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


T = TypeVar("T")


class TrackingAway(Exception):
    """The tracker cannot be reached, refuses, or is too slow; what is missing is sent next time."""


@dataclass(frozen=True)
class _Call:
    """A connection to a tracker with a deadline: every call through it is checked against the clock."""

    client: Any
    deadline: float

    def __call__(self, method: str, *args: Any, **named: Any) -> Any:
        if time.monotonic() > self.deadline:
            raise TrackingAway("the tracker is too slow; what is missing is sent next time")
        return getattr(self.client, method)(*args, **named)


def where(root: Path, uri: str | None = None) -> str:
    """The tracking URI in force: the one given, else MLFLOW_TRACKING_URI, else `<root>/mlflow.db`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def mirror(run_dir: Path, uri: str | None = None, parent: str | None = None) -> dict[str, Any]:
    """The tracker holds everything of the run that it did not hold before; may be called after every phase.

    `parent` is the MLflow run id of the sweep this run belongs to. Returns `{uri, experiment, run, sent: {params,
    points, artifacts}}`. Raises TrackingAway after at most about a minute, whatever the tracker does.
    """
    story = Story.of(Path(run_dir))
    root = story.run.path.parent
    config = story.config.get("tracking") or {}
    uri = where(root, uri or config.get("uri"))
    with _connected(uri, root, config.get("experiment") or EXPERIMENT) as (call, experiment):
        memory = Memory(story.run.path / "tracking.json", uri, shown(uri))
        run = _find_or_create(call, story, experiment, parent)
        status = "FAILED"
        try:
            sent = _send(call, run, story, memory)
            status = outgoing.status(story)
        finally:
            _terminate(call, run, status)
    return {"uri": shown(uri), "experiment": experiment, "run": run, "sent": sent}


@contextmanager
def sweep(root: Path, name: str, uri: str | None = None, experiment: str = EXPERIMENT) -> Iterator[str]:
    """A parent run for the length of the block; hand its id to `mirror(..., parent=id)` of each job.

    Database and experiment exist before the first job starts. It ends as FAILED when the block raises.
    """
    uri = where(files.folder(root), uri)
    with _connected(uri, root, experiment) as (call, home):
        run = call("create_run", home, run_name=name, tags={"fivegate.sweep": name}).info.run_id
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    finally:
        with _connected(uri, root, experiment) as (call, _):
            _terminate(call, run, status)


def shown(uri: str) -> str:
    """The URI without the name and password it may carry."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


@contextmanager
def _connected(uri: str, root: Path, experiment: str) -> Iterator[tuple[_Call, str]]:
    """A client and the experiment's id, in an environment that keeps MLflow brief; errors come out as TrackingAway."""
    before = dict(os.environ)
    os.environ.update({key: value for key, value in _PATIENCE.items() if key not in before})
    os.environ.pop("MLFLOW_RUN_ID", None)  # would silently turn every run into that one
    try:
        deadline = time.monotonic() + BUDGET_S
        with _alone(root, deadline):
            _reachable(uri)
            import mlflow

            logging.getLogger("mlflow").setLevel(logging.ERROR)
            logging.getLogger("alembic").setLevel(logging.ERROR)
            call = _Call(mlflow.MlflowClient(tracking_uri=uri), deadline)
            home = _experiment(call, root, uri, experiment)
        yield call, home
    except TrackingAway:
        raise
    except Exception as error:  # the client raises its own, SQLAlchemy's and requests' errors
        first = next(iter(str(error).splitlines()), "")[:300]
        raise TrackingAway(f"{shown(uri)}: {type(error).__name__}: {first.replace(uri, shown(uri))}") from error
    finally:
        for key in {*_PATIENCE, "MLFLOW_RUN_ID"}:
            os.environ.pop(key, None)
            if key in before:
                os.environ[key] = before[key]


def _reachable(uri: str) -> None:
    """Raise at once where MLflow would try for minutes: a database file that cannot be opened, a silent host."""
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
        with closing(sqlite3.connect(path, timeout=5)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("SELECT count(*) FROM sqlite_master")
            connection.rollback()
        return
    scheme, _, rest = uri.partition("://")
    host, _, port = rest.rpartition("@")[2].partition("/")[0].partition(":")
    if host and port.isdigit() and not scheme.startswith("http"):  # a proxy may stand before an http one
        import socket

        socket.create_connection((host, int(port)), timeout=5).close()


@contextmanager
def _alone(root: Path, deadline: float) -> Iterator[None]:
    """No other process initializes the database under `root` meanwhile: the first use of a fresh file is a race."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TrackingAway("another process keeps the tracking database to itself") from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _experiment(call: _Call, root: Path, uri: str, name: str) -> str:
    """Id of the experiment, made on first use; artifacts of a local database lie beside the runs."""
    found = call("get_experiment_by_name", name)
    if found is not None:
        return str(found.experiment_id)
    location = (root.resolve() / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    return str(call("create_experiment", name, artifact_location=location))


def _find_or_create(call: _Call, story: Story, experiment: str, parent: str | None) -> str:
    """The one MLflow run of this ledger."""
    same = f"tags.`fivegate.identity` = '{story.identity}'"
    found = call("search_runs", [experiment], filter_string=same, max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {"fivegate.identity": story.identity} | ({"mlflow.parentRunId": parent} if parent else {})
    created = call("create_run", experiment, start_time=story.time(0), run_name=story.run.name, tags=tags)
    return str(created.info.run_id)


def _terminate(call: _Call, run: str, status: str) -> None:
    if status == "RUNNING":
        call.client.update_run(run, status=status)
    else:
        call.client.set_terminated(run, status=status)


def _send(call: _Call, run: str, story: Story, memory: Memory) -> dict[str, int]:
    """Everything not sent yet goes out; what went out is remembered, also when the rest fails."""
    from mlflow.entities import Metric, Param, RunTag

    try:
        decided = {name: value for name, value in outgoing.params(story).items() if name not in memory.params}
        for part in _chunks(list(decided.items()), PARAMS_PER_CALL):
            call("log_batch", run, params=[Param(name, value[:VALUE_CHARS]) for name, value in part])
            memory.params += [name for name, _ in part]
        points = _fresh_points(story, memory)
        for batch in _chunks(points, METRICS_PER_CALL):
            call("log_batch", run, metrics=[Metric(p.name, p.value, p.time, p.step) for p in batch])
            memory.remember(batch)
        changed = {n: sha for n, sha in outgoing.artifacts(story).items() if memory.artifacts.get(n) != sha}
        for name, sha in changed.items():
            call("log_artifact", run, str(story.run.path / name), name.rpartition("/")[0] or None)
            memory.artifacts[name] = sha
        call("log_batch", run, tags=[RunTag(name, value) for name, value in outgoing.tags(story).items()])
    finally:
        memory.save()
    return {"params": len(decided), "points": len(points), "artifacts": len(changed)}


def _fresh_points(story: Story, memory: Memory) -> list[Point]:
    """What gates judged anew, and what each history holds beyond what was sent of it."""
    fresh = [p for p in outgoing.judged(story) if memory.last.get(p.name) != [p.step, str(p.value)]]
    for folder, path in outgoing.histories(story):
        history = History.load(path)
        series = outgoing.points(history, memory.prefix(folder, history), story.started(folder.split("/", 1)[0]))
        fresh += [point for points in series.values() for point in memory.unsent(points)]
    return fresh


def _chunks(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
