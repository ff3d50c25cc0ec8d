"""The metrics and parameters of an MLflow run by its id or URI, of any program."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError, fault
from pipeline.tracking.connection import without_credentials

Points = list[tuple[int, float]]  # step, value
_ID = r"(?P<id>[0-9a-f]{32})"
_REFERENCES = (
    re.compile(rf"^(?:runs:/+)?{_ID}$"),
    re.compile(rf"^(?P<scheme>https?):/+(?P<host>[^/]+)/.*\bruns/{_ID}\b.*$"),  # the address of its page
)
OWN_STORE = Path("runs", "mlflow.db")  # where Fivegate's runs are copied to, below the current folder


@dataclass(frozen=True)
class ForeignRun:
    """What a run logged: each metric as points of step and value, and its parameters as text."""

    name: str
    where: str
    metrics: dict[str, Points]
    params: dict[str, str]


def refers_to_run(text: str) -> bool:
    """Return whether a text is the id of an MLflow run, `runs:/<id>`, or the address of a run's page."""
    return any(pattern.match(text) for pattern in _REFERENCES)


def read_run(text: str) -> ForeignRun:
    """Return a run. Without an address it is looked up in `MLFLOW_TRACKING_URI`, in Fivegate's store, else in MLflow's.

    Raises UserError if the run does not exist, or if its store cannot be reached.
    """
    match = next(match for pattern in _REFERENCES if (match := pattern.match(text)))
    from mlflow import MlflowClient, get_tracking_uri
    from mlflow.exceptions import MlflowException

    groups = match.groupdict()
    uri = f"{groups['scheme']}://{groups['host']}" if groups.get("scheme") else os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        uri = f"sqlite:///{OWN_STORE}" if OWN_STORE.is_file() else get_tracking_uri()
    try:
        client = MlflowClient(tracking_uri=uri)
        run = client.get_run(groups["id"])
        histories = {name: client.get_metric_history(groups["id"], name) for name in run.data.metrics}
    except (MlflowException, OSError) as error:
        what = f"was not found in the MLflow store {without_credentials(uri)} ({str(error).splitlines()[0][:200]})"
        raise UserError(
            fault(text, what, expected="an id of a run there, or MLFLOW_TRACKING_URI of its store")
        ) from None
    metrics = {
        name: sorted((int(point.step), float(point.value)) for point in points) for name, points in histories.items()
    }
    return ForeignRun(run.info.run_name or groups["id"], without_credentials(uri), metrics, dict(run.data.params))
