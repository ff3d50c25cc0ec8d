"""A sweep in the tracker: one MLflow run, the parent of the runs of its jobs, created once and always closed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pipeline.escaping import markdown, visible
from pipeline.orchestration.sweep_directory import SweepDirectory, sweep_directories
from pipeline.reporting.ranking import config_rows, rank
from pipeline.run_store import files
from pipeline.tracking.connection import Tracker, TrackerUnavailable, TrackingConfig, connect, exclusive


@contextmanager
def sweep_run(sweep: SweepDirectory, config: TrackingConfig) -> Iterator[str | None]:
    """Show the sweep as running inside the block, and as ended after it. Yields why that failed, None where it did not.

    The database and the experiment exist before the first job starts. Runs of other sweeps under this root that were
    killed are closed, too. A tracker that is unavailable does not stop the sweep: the first job that reaches it creates
    the parent run.
    """
    root = files.folder(sweep.path.parents[1])
    unavailable = None
    try:
        with connect(root, config) as tracker:
            tracker.set_status(find_or_create(tracker, sweep.path), "RUNNING")  # a sweep may be resumed after its end
            _close_killed(tracker, root, sweep)
    except TrackerUnavailable as error:
        unavailable = str(error)
    status = "KILLED"
    try:
        yield unavailable
        status = "FINISHED" if sweep.record.get("finished") else "FAILED"
    except KeyboardInterrupt:
        raise
    except BaseException:
        status = "FAILED"
        raise
    finally:
        _close(root, config, sweep, status)


def find_or_create(tracker: Tracker, sweep: Path) -> str:
    """Return the id of the one MLflow run of the sweep in this folder."""
    about = json.loads((sweep / "sweep.json").read_text())
    with exclusive(sweep.parent, tracker.deadline):  # two jobs that start together would create two
        runs = tracker.find_runs(about["identity"])
        if runs:
            return str(runs[0].info.run_id)
        started = round(datetime.fromisoformat(about["started"]).timestamp() * 1000)
        tags = {
            "fivegate.identity": about["identity"],
            "fivegate.sweep": sweep.name,
            "mlflow.source.name": "python -m pipeline",
            "mlflow.source.type": "LOCAL",
            "mlflow.note.content": _describe(sweep.name, about["words"]),
        }
        created = tracker.client.create_run(tracker.experiment, started, tags, run_name=f"sweep-{sweep.name}")
        return str(created.info.run_id)


def _describe(name: str, words: Sequence[str]) -> str:
    return f"Sweep {name}:\n\n    python -m pipeline -m {visible(' '.join(words))}\n"[:5000]


def _note(sweep: SweepDirectory, root: Path) -> str:
    """Return the command of the sweep, and a table of its configs with mean and standard deviation over their seeds."""
    lines = [" | ".join(map(markdown, row)) for row in config_rows(rank(root, sweep.ends()))]
    table = ["config | mean | std | n", "--- | --- | --- | ---", *lines] if lines else []
    return "\n".join([_describe(sweep.path.name, sweep.record["words"]), *table])[:5000]


def _close(root: Path, config: TrackingConfig, sweep: SweepDirectory, status: str) -> None:
    """Set the sweep's final status; where the tracker is unavailable, the next sweep does it."""
    try:
        with connect(root, config) as tracker:
            run = find_or_create(tracker, sweep.path)
            tracker.client.set_tag(run, "mlflow.note.content", _note(sweep, root))
            tracker.set_status(run, status)
    except TrackerUnavailable:
        return


def _close_killed(tracker: Tracker, root: Path, own: SweepDirectory) -> None:
    """Close the sweeps under this root that the tracker shows as running and that no process runs."""
    query = "attributes.status = 'RUNNING' and tags.`fivegate.sweep` != ''"
    runs = tracker.client.search_runs([tracker.experiment], filter_string=query)
    killed = {
        other.record.get("identity"): other for other in sweep_directories(root) if other != own and not other.running
    }
    for run in runs:
        sweep = killed.get(run.data.tags.get("fivegate.identity"))
        if sweep:
            tracker.set_status(run.info.run_id, "FINISHED" if sweep.record.get("finished") else "KILLED")
