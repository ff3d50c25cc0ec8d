"""What a forked process of the warm worker does: train one arm, describe the model, or profile a few steps.

The result is a JSON file in the folder of the job. An error of the changed training, such as a shape that no longer
fits, is a result too: it says what the change does to this run.
"""

from __future__ import annotations

import gzip
import math
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from pipeline.checkpoints import generation
from pipeline.checkpoints.generation import Snapshot
from pipeline.data.analysis.label_agreement import label_agreement
from pipeline.data.dataset import Data
from pipeline.data.folds import assign_folds
from pipeline.engine.fit import fit, prepared
from pipeline.engine.loop import Training
from pipeline.engine.progress import Fit
from pipeline.engine.setup import TrainingComponents
from pipeline.error_attribution import reraise_stop, text_of
from pipeline.errors import FivegateError
from pipeline.evaluation.evaluate import loss_and_metrics, outputs_of
from pipeline.evaluation.metrics import named_metric
from pipeline.experiments.describe import describe
from pipeline.experiments.jobs import ARM, CONTROL, DESCRIBE, LONGER, RESULT, TRACE, VERSION, control_name
from pipeline.run_store import files
from pipeline.run_store.job import Job
from pipeline.run_store.permits import ProbePermit
from pipeline.runtime.interrupt import Interrupted

USUAL_METRICS = ("accuracy", "r2")
MAX_CURVE = 200  # points of the validation curve that are kept
PROFILED_STEPS = 5
NAMED_ROWS = 20  # of those that were left out


def measure(permit: ProbePermit, job: Job, data: Data, folder: Path) -> None:
    """Do the job and write its result to the folder. Raises Interrupted if a signal asked to stop; no result then."""
    try:
        result = _result_of(permit, job, data, folder)
    except Interrupted:
        raise
    except FivegateError as error:
        result = {"error": error.faults[0]}
    except BaseException as error:  # code of the user's own may raise anything under a change
        reraise_stop(error)
        result = {"error": text_of(error)}
    files.write_json(folder / RESULT, {"version": VERSION, **result})


def _result_of(permit: ProbePermit, job: Job, data: Data, folder: Path) -> Mapping[str, Any]:
    if job.purpose in (ARM, CONTROL, LONGER):
        after = _end_of_control(job, folder) if job.purpose == LONGER else None
        keep = partial(generation.write, folder) if job.purpose == CONTROL else None
        return _training_result(fit(permit, job, data=data, after=after, keep=keep), job, data)
    with prepared(permit, job, data) as components:
        if job.purpose == DESCRIBE:
            return describe(components, data)
        files.write_bytes(folder / TRACE, _profile(permit, components, job))
        return {}


def _end_of_control(job: Job, folder: Path) -> Snapshot | None:
    """Return the end of the control of the job's seed; None where it was not kept, or is damaged."""
    try:
        for path in reversed(generation.generations(folder.parent / control_name(job.seed_index))):
            return generation.read(path)
    except FivegateError:
        pass
    return None


def _profile(permit: ProbePermit, components: TrainingComponents, job: Job) -> bytes:
    """Return the compressed trace of the first steps of a job; one step before them warms up."""
    training = Training(permit, components, job)
    on_gpu = [ProfilerActivity.CUDA] if components.device.type == "cuda" else []
    with training.session():
        training.run(until=1)
        with torch_profile(activities=[ProfilerActivity.CPU, *on_gpu]) as profiler:
            training.run(until=1 + PROFILED_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return gzip.compress(path.read_bytes(), mtime=0)


def _training_result(fit_result: Fit, job: Job, data: Data) -> Mapping[str, Any]:
    """Return the figures of a finished training: scores on validation, train rows, and rows that were left out."""
    name, history = fit_result.task.metric.name, fit_result.history
    index, values = history.series(f"val/{name}")
    _, train_values = history.series(f"train/{name}")
    _, losses = history.series("train/loss")
    _, val_losses = history.series("val/loss")
    steps_per_epoch = history.facts.get("steps_per_epoch", 1.0)
    every = max(1, math.ceil(len(index) / MAX_CURVE))
    curve = [
        [int(min(epoch * steps_per_epoch, fit_result.steps)), float(v)]
        for epoch, v in zip(index[::every].tolist(), values[::every].tolist(), strict=True)
    ]
    return {
        "metric": name,
        "score": fit_result.score,
        "trivial": fit_result.baseline_score["value"],
        "greater_is_better": fit_result.task.metric.greater_is_better,
        "steps": fit_result.steps,
        "stopped": fit_result.stop_reason,
        "seconds": fit_result.seconds,
        "weights": fit_result.weights_digest,
        "train": float(train_values[-1]) if len(train_values) else None,
        "train_loss": [float(losses[0]), float(np.mean(losses[-max(1, len(losses) // 10) :]))] if len(losses) else None,
        "val_loss": [float(val_losses.min()), float(val_losses[-1])] if len(val_losses) else None,
        "curve": curve,
        "went_on_from": fit_result.resumed_at,
        "held_out": _held_out_score(fit_result, job, data),
        "left_out": _left_out(job, data),
        "usual_metric": _usual_metric(fit_result, data),
        "batch_statistics": _score_with_batch_statistics(fit_result, data),
    }


def _held_out_score(fit_result: Fit, job: Job, data: Data) -> float | None:
    """Return the score on the train rows that the job left out; None if it left out none."""
    if "without_fold" not in job.delta.train_rows:
        return None
    fold, n_folds = job.delta.train_rows["without_fold"]
    left_out = np.flatnonzero(assign_folds(data.train, int(n_folds)) == int(fold))
    rows = data.train.take(torch.from_numpy(left_out))
    task = fit_result.task
    return loss_and_metrics(fit_result.model, rows.X, rows.y, task).metrics[task.metric.name]


def _left_out(job: Job, data: Data) -> Mapping[str, Any] | None:
    """Return the train rows that the job left out for their targets, with what was expected; None without such."""
    if job.delta.train_rows.get("labels") != "agreeing":
        return None
    agreement = label_agreement(data.train)
    rows = np.flatnonzero(~agreement.agrees)
    targets, first = data.train.y.reshape(-1).numpy(), rows[:NAMED_ROWS]
    return {
        "count": len(rows),
        "of": len(data.train),
        "rows": first.tolist(),
        "targets": targets[first].tolist(),
        "expected": agreement.expected[first].tolist(),
    }


def _usual_metric(fit_result: Fit, data: Data) -> float | None:
    """Return the accuracy of the largest output, or the mean recall if that is lower, or R² of the outputs; else None.

    What the run predicts and how it is scored may be the user's own code; these two depend on the outputs alone.
    """
    task, val = fit_result.task, data.val
    outputs = outputs_of(fit_result.model, val, task) if task.step is None else None
    name = task.metric.name
    if name not in USUAL_METRICS and named_metric(name, task.kind):  # another known metric measures another thing
        return None
    if outputs is None or not task.metric.greater_is_better:
        return None
    if task.kind == "classification" and outputs.ndim == 2 and val.y.ndim == 1:
        right = (outputs.argmax(1).cpu() == val.y).double()
        recalls = [float(right[val.y == label].mean()) for label in val.y.unique()]
        # The lower of the two: a metric of the user's own may count rare classes as much as others.
        return min(float(right.mean()), sum(recalls) / len(recalls))
    if task.kind == "regression" and outputs.numel() == val.y.numel():
        targets, values = val.y.double().flatten(), outputs.cpu().double().flatten()
        spread = float((targets - targets.mean()).square().sum())
        return 1 - float((targets - values).square().sum()) / spread if spread else None
    return None


def _score_with_batch_statistics(fit_result: Fit, data: Data) -> float | None:
    """Return the validation score where batch norm uses the statistics of the rows; None without batch norm."""
    norms = [m for m in fit_result.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return None
    for norm in norms:  # without running statistics, eval mode normalizes by those of the batch
        norm.running_mean = norm.running_var = None
        norm.track_running_stats = False
    task = fit_result.task
    return loss_and_metrics(fit_result.model, data.val.X, data.val.y, task).metrics[task.metric.name]
