"""A sweep in the tracker: a parent run that those of its jobs hang under, made once and always closed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.orchestration.sweep_directory import SweepDirectory, sweep_directories
from pipeline.run_store import files
from pipeline.tracking import mlflow
from pipeline.tracking.mlflow import TrackerUnavailable


@contextmanager
def parent(shelf: SweepDirectory, tracking: Mapping[str, Any]) -> Iterator[str | None]:
    """The sweep's run in the tracker is running inside the block and closed behind it; why not, if that failed.

    The database and the experiment exist before the first job starts. Parents of other sweeps under this root that
    were killed are closed, too. A tracker that is away is no reason not to sweep: the jobs' runs find their parent, or
    make it, whenever they are sent.
    """
    root = files.folder(shelf.path.parents[1])
    told = (root, tracking.get("uri"), tracking.get("experiment") or mlflow.EXPERIMENT)
    why = None
    try:
        with mlflow.connected(*told) as (call, home):
            mlflow.terminate(call, mlflow.parent_of(call, home, shelf.path), "RUNNING")  # again, where it had ended
            _close_the_dead(call, home, root, shelf)
    except TrackerUnavailable as error:
        why = str(error)
    status = "KILLED"
    try:
        yield why
        status = "FINISHED" if shelf.record.get("finished") else "FAILED"
    except KeyboardInterrupt:
        raise
    except BaseException:
        status = "FAILED"
        raise
    finally:
        _close(told, shelf, status)


def _close(told: tuple[Any, ...], shelf: SweepDirectory, status: str) -> None:
    """The sweep's run has ended; where the tracker is away, the next sweep closes it."""
    try:
        with mlflow.connected(*told) as (call, home):
            mlflow.terminate(call, mlflow.parent_of(call, home, shelf.path), status)
    except TrackerUnavailable:
        return


def _close_the_dead(call: Any, home: str, root: Path, own: SweepDirectory) -> None:
    """Of the sweeps under this root, those that nobody runs any more and the tracker still shows as running."""
    running = call("search_runs", [home], filter_string="attributes.status = 'RUNNING' and tags.`fivegate.sweep` != ''")
    dead = {
        shelf.record.get("identity"): shelf for shelf in sweep_directories(root) if shelf != own and not shelf.running
    }
    for run in running:
        shelf = dead.get(run.data.tags.get("fivegate.identity"))
        if shelf:
            mlflow.terminate(call, run.info.run_id, "FINISHED" if shelf.record.get("finished") else "KILLED")
