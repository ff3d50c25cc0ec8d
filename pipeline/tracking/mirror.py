"""Copy the records of a run to MLflow. The ledger is the truth; a tracker that fails stops nothing.

MLflow's own asynchronous logging cannot replace this module: against a server that accepts and does not answer, its
queue held the end of the process for ten seconds (a join without a timeout), and 30 of 40 batches were dropped with no
more than a log line. Here another process sends what is missing, until a deadline, and what was sent is remembered in
`tracking.json`, so that the next command sends the rest.

One run of the pipeline is one MLflow run, with the curves of its baseline. Each trial is a child run of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pipeline.errors import UserError
from pipeline.history import History
from pipeline.tracking import anchors, description, model_registry, run_export, sweep_run
from pipeline.tracking.connection import (
    Tracker,
    TrackerUnavailable,
    TrackingConfig,
    connect,
    tracking_uri,
    without_credentials,
)
from pipeline.tracking.run_export import Point, RunExport, Training
from pipeline.tracking.sent_cache import SentCache, SentTraining

PARAMS_PER_CALL, METRICS_PER_CALL, TAGS_PER_CALL = 100, 1000, 100  # MLflow's own limits
PARAM_CHARS = 6000  # MLflow's own limit
TRAINING_TAG = "fivegate.training"  # the folder of a child run's training inside the run

T = TypeVar("T")


class SentCounts(NamedTuple):
    """How much a call of `mirror` sent."""

    params: int
    points: int
    artifacts: int


class MirrorResult(NamedTuple):
    """Where a run is in the tracker: URI without credentials, experiment id, run id; and what this call sent."""

    uri: str
    experiment: str
    run: str
    sent: SentCounts


def mirror(run_dir: Path, uri: str | None = None, *, running: bool = False) -> MirrorResult:
    """Send everything of the run that the tracker does not have yet; may be called at any time.

    With `running` the MLflow run is shown as running, else with the status it ended with. Raises TrackerUnavailable
    after at most about a minute, whatever the tracker does.
    """
    export = RunExport.of(Path(run_dir))
    root = export.run.path.parent
    section = export.config.get("tracking") or {}
    config = TrackingConfig(uri=uri or section.get("uri"), experiment=section.get("experiment"))
    with connect(root, config) as tracker:
        run = _find_or_create_run(tracker, export)
        uri = tracking_uri(root, config["uri"])
        cache = SentCache(export.run.path / "tracking.json", uri, without_credentials(uri), run)
        status = "RUNNING" if running else run_export.status(export)
        try:
            sent = _Sender(tracker, export, cache, run, status).send()
            if not running:
                model_registry.mirror_aliases(tracker, export, run)
        finally:
            cache.save()
            tracker.set_status(run, status, export.time(-1))
    return MirrorResult(without_credentials(uri), tracker.experiment, run, sent)


def _find_or_create_run(tracker: Tracker, export: RunExport) -> str:
    """Return the id of the MLflow run of this ledger; a job of a sweep is a child of the sweep's run.

    A copy of a run has the identity of its original, and an MLflow run of its own; a run that was renamed keeps its.
    """
    runs = tracker.find_runs(export.identity)
    names = {run.data.tags.get(anchors.NAME_TAG, run.info.run_name): str(run.info.run_id) for run in runs}
    if export.run.name in names:
        return names[export.run.name]
    moved = [
        run for name, run in names.items() if not anchors.has_identity(export.run.path.parent / name, export.identity)
    ]
    if moved:
        return moved[0]
    tags = {"fivegate.identity": export.identity, anchors.NAME_TAG: export.run.name}
    if export.sweep and (export.sweep / "sweep.json").is_file():
        tags["mlflow.parentRunId"] = sweep_run.find_or_create(tracker, export.sweep)
    name, started = export.run.name, export.time(0)
    return str(tracker.client.create_run(tracker.experiment, started, tags, run_name=name).info.run_id)


class _Sender:
    """One call of `mirror`: sends to the MLflow run of a run and to the child runs of its trials."""

    def __init__(self, tracker: Tracker, export: RunExport, cache: SentCache, run: str, status: str) -> None:
        self.tracker, self.export, self.cache, self.run, self.status = tracker, export, cache, run, status
        query = f"tags.mlflow.parentRunId = '{run}'"
        children = tracker.client.search_runs([tracker.experiment], filter_string=query, max_results=10_000)
        self.children = {child.data.tags.get(TRAINING_TAG, ""): str(child.info.run_id) for child in children}

    def send(self) -> SentCounts:
        """Send what is missing. Uploads come last: a large file that does not get through holds nothing else up."""
        params = self._send_params()
        self._send_anchors()
        self._send_datasets()
        points = sum(self._send_training(training) for training in run_export.trainings(self.export))
        points += self._send_points(self.run, self.cache.scores, run_export.score_points(self.export))
        self._send_tags()
        return SentCounts(params, points, self._send_artifacts())

    def _send_params(self) -> int:
        params = {
            name: value for name, value in run_export.params(self.export).items() if name not in self.cache.params
        }
        self._log_params(self.run, params)
        self.cache.params += params
        return len(params)

    def _send_anchors(self) -> None:
        """Send the hashes of decisions. Raises TrackerUnavailable where the tracker has others of the same entries."""
        missing = {
            name: value for name, value in anchors.anchors(self.export.entries).items() if name not in self.cache.params
        }
        if missing:
            known = self.tracker.client.get_run(self.run).data.params
            if other := [name for name, value in missing.items() if known.get(name, value) != value]:
                entry = other[0].removeprefix(anchors.ANCHOR)
                raise TrackerUnavailable(f"it has another entry {entry} of this run, and keeps it; `verify` says more")
            self._log_params(self.run, missing)
            self.cache.params += missing

    def _log_params(self, run: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        for part in _chunks(list(params.items()), PARAMS_PER_CALL):
            self.tracker.client.log_batch(run, params=[Param(name, value[:PARAM_CHARS]) for name, value in part])

    def _send_datasets(self) -> None:
        """Show the data of the run: digest and counts of every split."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = {}
        for split in description.datasets(self.export):
            dataset = Dataset(split.name, split.digest, "code", split.source, split.schema, split.profile)
            inputs[f"{split.name} {split.digest}"] = DatasetInput(
                dataset, [InputTag("mlflow.data.context", split.split)]
            )
        missing = {key: value for key, value in inputs.items() if key not in self.cache.datasets}
        if missing:
            self.tracker.client.log_inputs(self.run, datasets=list(missing.values()))
            self.cache.datasets += missing

    def _send_training(self, training: Training) -> int:
        """Send what a training's history has gained, and return the number of points."""
        try:
            history = History.load(training.history)
        except UserError:
            if training.history.exists():
                raise
            return 0  # a newer checkpoint has replaced it meanwhile; that one is read next time
        points = run_export.training_points(training, history, self.export.started(training.phase))
        sent = self._sent_of(training, history)
        if not training.is_trial and sent.turn == 1:
            return self._send_points(self.run, sent, points)
        run = self._child_run(training, sent)
        count = self._send_points(run, sent, points)
        status = self.status if training.status == "RUNNING" else training.status
        if sent.status != status:
            self.tracker.set_status(run, status, self.export.time(-1))
            sent.status = status
        return count

    def _sent_of(self, training: Training, history: History) -> SentTraining:
        """Return the record of the training; one that replaced another in the same folder has a new record and run."""
        sent = self.cache.trainings.setdefault(training.folder, SentTraining())
        while training.tag(sent.turn + 1) in self.children or not sent.is_continued_by(history):
            sent = self.cache.trainings[training.folder] = SentTraining(sent.turn + 1)
        return sent

    def _child_run(self, training: Training, sent: SentTraining) -> str:
        """Return the id of the child run, created with the training's changes against the plan as params."""
        tag = training.tag(sent.turn)
        run = self.children.get(tag)
        if run is None:
            client, started = self.tracker.client, self.export.started(training.phase)
            tags = {TRAINING_TAG: tag, "mlflow.parentRunId": self.run, "mlflow.source.name": "python -m pipeline"}
            run = str(client.create_run(self.tracker.experiment, started, tags, run_name=tag).info.run_id)
        if sent.run != run:  # also where a person deleted the child run: everything is sent to the new one
            self._log_params(run, training.params())
            sent.run, sent.last, sent.status = run, {}, ""
        return run

    def _send_points(self, run: str, sent: SentTraining, points: dict[str, list[Point]]) -> int:
        from mlflow.entities import Metric

        missing = sent.missing(points)
        for part in _chunks(missing, METRICS_PER_CALL):
            self.tracker.client.log_batch(run, metrics=[Metric(p.name, p.value, p.time, p.step) for p in part])
            sent.remember(part)
        return len(missing)

    def _send_tags(self) -> None:
        from mlflow.entities import RunTag

        for part in _chunks(list(description.tags(self.export).items()), TAGS_PER_CALL):
            self.tracker.client.log_batch(self.run, tags=[RunTag(name, value) for name, value in part])

    def _send_artifacts(self) -> int:
        artifacts = run_export.artifacts(self.export)
        changed = {name: version for name, version in artifacts.items() if self.cache.artifacts.get(name) != version}
        for name, version in changed.items():
            self.tracker.client.log_artifact(
                self.run, str(self.export.run.path / name), name.rpartition("/")[0] or None
            )
            self.cache.artifacts[name] = version
        return len(changed)


def _chunks(rows: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
