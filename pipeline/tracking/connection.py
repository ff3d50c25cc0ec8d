"""A connection to MLflow with a deadline: one client, one experiment, explicit run ids, no global state of MLflow."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from pipeline.run_store.lock import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

DEFAULT_EXPERIMENT = "fivegate"
BUDGET_S = 60.0  # that a connection may be used, however slow the tracker is
SOCKET_TIMEOUT_S = 5.0

ENVIRONMENT = {  # by default MLflow waits 120 s for an answer and tries 7 times, too long for a copy
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class TrackingConfig(TypedDict, total=False):
    """The section `tracking` of the config."""

    kind: str
    tensorboard: bool
    uri: str | None
    experiment: str | None


class TrackerUnavailable(Exception):
    """The tracker cannot be reached, refuses, or is too slow. What is missing is sent with the next command."""


@dataclass(frozen=True)
class Tracker:
    """A tracker that answered, and the id of the experiment in it; to be used until the deadline."""

    unlimited: MlflowClient  # for closing a run, which has to happen after the deadline, too
    deadline: float
    experiment: str = ""

    @property
    def client(self) -> MlflowClient:
        """The client. Raises TrackerUnavailable when the deadline is over."""
        if time.monotonic() > self.deadline:
            raise TrackerUnavailable("the tracker is too slow")
        return self.unlimited

    def find_runs(self, identity: str) -> list[MlflowRun]:
        """Return the MLflow runs with this identity (of a ledger, or of a sweep), the newest first."""
        query = f"tags.`fivegate.identity` = '{identity}'"
        return list(self.client.search_runs([self.experiment], filter_string=query, max_results=100))

    def set_status(self, run: str, status: str, end_time: int | None = None) -> None:
        """Set the status of a run, also after the deadline; `end_time` is in milliseconds since 1970."""
        if status == "RUNNING":
            self.unlimited.update_run(run, status=status)
        else:
            self.unlimited.set_terminated(run, status=status, end_time=end_time)


def tracking_uri(root: Path, uri: str | None = None) -> str:
    """Return the URI in use: the configured one, else MLFLOW_TRACKING_URI, else `<root>/mlflow.db`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlflow.db'}"


def without_credentials(uri: str) -> str:
    """Return the URI without the user name and password that it may contain."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


@contextmanager
def connect(root: Path, config: TrackingConfig) -> Iterator[Tracker]:
    """Yield the tracker of the runs under `root`; the experiment exists.

    Every error inside the block, also one of MLflow, SQLAlchemy or requests, becomes TrackerUnavailable, without
    credentials. The environment is restored.
    """
    uri = tracking_uri(root, config.get("uri"))
    before = dict(os.environ)
    os.environ.update({key: value for key, value in ENVIRONMENT.items() if key not in before})
    os.environ.pop("MLFLOW_RUN_ID", None)  # MLflow would write every run into that one
    try:
        deadline = time.monotonic() + BUDGET_S
        with exclusive(root, deadline):
            _check_reachable(uri)
            import mlflow

            logging.getLogger("mlflow").setLevel(logging.ERROR)
            logging.getLogger("alembic").setLevel(logging.ERROR)
            tracker = Tracker(mlflow.MlflowClient(tracking_uri=uri), deadline)
            experiment = _find_or_create_experiment(tracker, root, uri, config.get("experiment") or DEFAULT_EXPERIMENT)
        yield Tracker(tracker.unlimited, deadline, experiment)
    except TrackerUnavailable as error:
        raise TrackerUnavailable(f"{without_credentials(uri)}: {error}") from error
    except Exception as error:
        shown = without_credentials(uri)
        first_line = next(iter(str(error).splitlines()), "")[:300].replace(uri, shown)
        raise TrackerUnavailable(f"{shown}: {type(error).__name__}: {first_line}") from error
    finally:
        for key in {*ENVIRONMENT, "MLFLOW_RUN_ID"}:
            os.environ.pop(key, None)
            if key in before:
                os.environ[key] = before[key]


def _check_reachable(uri: str) -> None:
    """Raise at once where MLflow would retry for minutes: an unusable database file, or a host that does not answer."""
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
        with closing(sqlite3.connect(path, timeout=SOCKET_TIMEOUT_S)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("SELECT count(*) FROM sqlite_master")
            database.rollback()
        return
    scheme, _, rest = uri.partition("://")
    host, _, port = rest.rpartition("@")[2].partition("/")[0].partition(":")
    if host and port.isdigit() and not scheme.startswith("http"):  # HTTP may go through a proxy, and has a timeout
        import socket

        socket.create_connection((host, int(port)), timeout=SOCKET_TIMEOUT_S).close()


@contextmanager
def exclusive(root: Path, deadline: float) -> Iterator[None]:
    """Hold the lock of `root`: two processes that use a new database file for the first time fail in MLflow."""
    descriptor = locked(root, deadline - time.monotonic())
    if descriptor is None:
        raise TrackerUnavailable("another process holds the lock of the tracking database")
    try:
        yield
    finally:
        os.close(descriptor)


def _find_or_create_experiment(tracker: Tracker, root: Path, uri: str, name: str) -> str:
    """Return the id of the experiment; artifacts of a local database are stored next to the runs."""
    experiment = tracker.client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = (root.resolve() / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    tags = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow's page opens the view for LLM traces
    return str(tracker.client.create_experiment(name, artifact_location=location, tags=tags))
