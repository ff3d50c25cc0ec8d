"""MLflow holds a copy of the records: the ledger is the truth, and a tracker that fails stops nothing.

Everything goes through `MlflowClient` with explicit run ids, so that no global state of MLflow's is touched. What was
sent stands in the run's `tracking.json`; it is a cache: the MLflow run is found again by the identity of the ledger.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.history import History
from pipeline.run_store.lock import locked
from pipeline.tracking import description, run_export
from pipeline.tracking.run_export import Point, RunExport
from pipeline.tracking.sent_cache import Memory

EXPERIMENT = "fivegate"
PARAMS_PER_CALL, METRICS_PER_CALL = 100, 1000  # MLflow's own limits
VALUE_CHARS = 6000  # of a param
BUDGET_S = 60.0

_PATIENCE = {  # MLflow waits 120 s and tries 7 times; a copy is not worth that
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


T = TypeVar("T")


class TrackerUnavailable(Exception):
    """The tracker cannot be reached, refuses, or is too slow; what is missing is sent next time."""


@dataclass(frozen=True)
class _Call:
    """A connection to a tracker with a deadline: every call through it is checked against the clock."""

    client: Any
    deadline: float

    def __call__(self, method: str, *args: Any, **named: Any) -> Any:
        if time.monotonic() > self.deadline:
            raise TrackerUnavailable("the tracker is too slow; what is missing is sent next time")
        return getattr(self.client, method)(*args, **named)


def where(root: Path, uri: str | None = None) -> str:
    """The tracking URI in force: the one given, else MLFLOW_TRACKING_URI, else `<root>/mlflow.db`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def mirror(run_dir: Path, uri: str | None = None, *, running: bool = False) -> dict[str, Any]:
    """The tracker holds everything of the run that it did not hold before; may be called at any time.

    Returns `{uri, experiment, run, sent: {params, points, artifacts}}`. While somebody works on the run it is
    `running`; else its status is how it ended. Raises TrackingAway after at most about a minute, whatever the tracker
    does.
    """
    story = RunExport.of(Path(run_dir))
    root = story.run.path.parent
    config = story.config.get("tracking") or {}
    uri = where(root, uri or config.get("uri"))
    with connected(root, uri, config.get("experiment") or EXPERIMENT) as (call, experiment):
        run = _find_or_create(call, story, experiment)
        memory = Memory(story.run.path / "tracking.json", uri, shown(uri), run)
        try:
            sent = _send(call, run, story, memory)
        finally:
            terminate(call, run, "RUNNING" if running else run_export.status(story), story.time(-1))
    return {"uri": shown(uri), "experiment": experiment, "run": run, "sent": sent}


def parent_of(call: _Call, experiment: str, sweep: Path) -> str:
    """The one parent run of the sweep in this folder, made where there is none."""
    asked = json.loads((sweep / "sweep.json").read_text())
    with _alone(sweep.parent, call.deadline):  # or two jobs that start together make two
        found = _found(call, experiment, asked["identity"])
        if found:
            return found
        began = round(datetime.fromisoformat(asked["started"]).timestamp() * 1000)
        words = " ".join(asked["words"])
        tags = {
            "fivegate.identity": asked["identity"],
            "fivegate.sweep": sweep.name,
            "mlflow.source.name": "python -m pipeline",
            "mlflow.source.type": "LOCAL",
            "mlflow.note.content": f"Sweep {sweep.name}:\n\n    python -m pipeline -m {words}\n"[:8000],
        }
        made = call("create_run", experiment, start_time=began, run_name=f"sweep-{sweep.name}", tags=tags)
        return str(made.info.run_id)


def shown(uri: str) -> str:
    """The URI without the name and password it may carry."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


@contextmanager
def connected(root: Path, uri: str | None, experiment: str) -> Iterator[tuple[_Call, str]]:
    """A client and the experiment's id, in an environment that keeps MLflow brief; errors come out as TrackingAway."""
    uri = where(root, uri)
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
    except TrackerUnavailable:
        raise
    except Exception as error:  # the client raises its own, SQLAlchemy's and requests' errors
        first = next(iter(str(error).splitlines()), "")[:300]
        raise TrackerUnavailable(f"{shown(uri)}: {type(error).__name__}: {first.replace(uri, shown(uri))}") from error
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
    descriptor = locked(root, deadline - time.monotonic())
    if descriptor is None:
        raise TrackerUnavailable("another process keeps the tracking database to itself")
    try:
        yield
    finally:
        os.close(descriptor)


def _experiment(call: _Call, root: Path, uri: str, name: str) -> str:
    """Id of the experiment, made on first use; artifacts of a local database lie beside the runs."""
    found = call("get_experiment_by_name", name)
    if found is not None:
        return str(found.experiment_id)
    location = (root.resolve() / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    kind = {"mlflow.experimentKind": "custom_model_development"}  # else the page opens as one of language models
    return str(call("create_experiment", name, artifact_location=location, tags=kind))


def _found(call: _Call, experiment: str, identity: str) -> str | None:
    """The MLflow run of that identity: of a ledger, or of a sweep."""
    found = call("search_runs", [experiment], filter_string=f"tags.`fivegate.identity` = '{identity}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def _find_or_create(call: _Call, story: RunExport, experiment: str) -> str:
    """The one MLflow run of this ledger, under its sweep where it is a job of one."""
    found = _found(call, experiment, story.identity)
    if found:
        return found
    tags = {"fivegate.identity": story.identity}
    if story.sweep and (story.sweep / "sweep.json").is_file():
        tags["mlflow.parentRunId"] = parent_of(call, experiment, story.sweep)
    created = call("create_run", experiment, start_time=story.time(0), run_name=story.run.name, tags=tags)
    return str(created.info.run_id)


def terminate(call: _Call, run: str, status: str, at: int | None = None) -> None:
    """The run has this status, also where the time for all else is over; `at` is when it ended (ms since 1970)."""
    if status == "RUNNING":
        call.client.update_run(run, status=status)
    else:
        call.client.set_terminated(run, status=status, end_time=at)


def _data(run: str, story: RunExport, call: _Call, memory: Memory) -> None:
    """The page shows what the run was trained and judged on: every split's digest and counts."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    new = [row for row in description.rows(story) if f"{row.name} {row.digest}" not in memory.data]
    inputs = [
        DatasetInput(
            Dataset(row.name, row.digest, "code", row.source, row.schema, row.profile),
            [InputTag("mlflow.data.context", row.split)],
        )
        for row in new
    ]
    if inputs:
        call("log_inputs", run, datasets=inputs)
        memory.data += [f"{row.name} {row.digest}" for row in new]


def _send(call: _Call, run: str, story: RunExport, memory: Memory) -> dict[str, int]:
    """Everything not sent yet goes out; what went out is remembered, also when the rest fails."""
    from mlflow.entities import Metric, Param, RunTag

    try:
        decided = {name: value for name, value in run_export.params(story).items() if name not in memory.params}
        for part in _chunks(list(decided.items()), PARAMS_PER_CALL):
            call("log_batch", run, params=[Param(name, value[:VALUE_CHARS]) for name, value in part])
            memory.params += [name for name, _ in part]
        _data(run, story, call, memory)
        points = _fresh_points(story, memory)
        for batch in _chunks(points, METRICS_PER_CALL):
            call("log_batch", run, metrics=[Metric(p.name, p.value, p.time, p.step) for p in batch])
            memory.remember(batch)
        changed = {n: sha for n, sha in run_export.artifacts(story).items() if memory.artifacts.get(n) != sha}
        for name, sha in changed.items():
            call("log_artifact", run, str(story.run.path / name), name.rpartition("/")[0] or None)
            memory.artifacts[name] = sha
        call("log_batch", run, tags=[RunTag(name, value) for name, value in description.tags(story).items()])
    finally:
        memory.save()
    return {"params": len(decided), "points": len(points), "artifacts": len(changed)}


def _fresh_points(story: RunExport, memory: Memory) -> list[Point]:
    """What gates judged anew, and what each history holds beyond what was sent of it."""
    fresh: list[Point] = []
    for folder, path in run_export.histories(story):
        try:
            history = History.load(path)
        except UserError:
            if path.exists():
                raise
            continue  # a checkpoint made room for a newer one, which is read next time
        series = run_export.points(history, memory.prefix(folder, history), story.started(folder.split("/", 1)[0]))
        fresh += [point for points in series.values() for point in memory.unsent(points)]
    judged = run_export.judged(story)  # last, since a page shows the names in the order in which they came
    return fresh + [p for p in judged if memory.last.get(p.name) != [p.step, str(p.value)]]


def _chunks(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
