"""Write the curves and scores of a run as TensorBoard event files, in `<root>/tensorboard/<run>/<training>`.

Event files only grow. What was written is remembered in `tensorboard.json` of the run, as for any tracker, so that the
next call appends the rest; without that folder everything is written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import UserError
from pipeline.history import History
from pipeline.tracking import run_export
from pipeline.tracking.connection import TrackerUnavailable
from pipeline.tracking.run_export import Point, RunExport, Training
from pipeline.tracking.sent_cache import SentCache, SentTraining

FOLDER = "tensorboard"


def write_run(run_dir: Path) -> int:
    """Append what the event files lack, and return the number of points. Raises TrackerUnavailable where that fails."""
    if find_spec("tensorboard") is None:
        raise TrackerUnavailable("tensorboard is not installed: python -m pip install tensorboard")
    export = RunExport.of(run_dir)
    folder = export.run.path.parent / FOLDER / export.run.name
    cache = SentCache(export.run.path / "tensorboard.json", str(folder), str(folder), export.identity)
    if not folder.is_dir():  # deleted, or never written
        cache.trainings, cache.scores = {}, SentTraining()
    try:
        points = sum(_write_training(cache, folder, export, training) for training in run_export.trainings(export))
        points += _append(folder, cache.scores, run_export.score_points(export))
    except OSError as error:
        raise TrackerUnavailable(f"{folder}: {error.strerror or error}") from error
    cache.save()
    return points


def _write_training(cache: SentCache, folder: Path, export: RunExport, training: Training) -> int:
    try:
        history = History.load(training.history)
    except UserError:
        if training.history.exists():
            raise
        return 0  # a newer checkpoint has replaced it meanwhile; that one is read next time
    sent = cache.trainings.setdefault(training.folder, SentTraining())
    if not sent.is_continued_by(history):  # another training replaced it in the same folder of the run
        sent = cache.trainings[training.folder] = SentTraining(sent.turn + 1)
    points = run_export.training_points(training, history, export.started(training.phase))
    return _append(folder / training.tag(sent.turn), sent, points)


def _append(folder: Path, sent: SentTraining, points: dict[str, list[Point]]) -> int:
    missing: Sequence[Point] = sent.missing(points)
    if missing:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder)) as writer:
            for point in missing:
                writer.add_scalar(point.name, point.value, point.step, walltime=point.time / 1000)
        sent.remember(missing)
    return len(missing)
