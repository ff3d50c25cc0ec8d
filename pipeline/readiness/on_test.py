"""Everything that is measured on test rows, at their one opening.

What is compared with the candidate is fitted on train rows before: at the opening it only predicts.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from pipeline.data.analysis.representative import FeatureShift, feature_shift
from pipeline.data.splits import Split
from pipeline.evaluation.baseline_models import FittedModel, comparable, fit_baseline_models
from pipeline.evaluation.evaluate import Evaluation, loss_and_metrics, outputs_of
from pipeline.evaluation.metrics import PERPLEXITY
from pipeline.evaluation.task import ROWS
from pipeline.evaluation.trivial_baseline import fit_constant
from pipeline.readiness.calibration import Calibration
from pipeline.readiness.comparison import Comparison, compare
from pipeline.readiness.reliability import Reliability, measure_reliability
from pipeline.readiness.slices import Slices, measure_slices
from pipeline.readiness.subject import Subject
from pipeline.results import Evidence
from pipeline.run_store import files

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class References:
    """What the candidate is compared with: the best constant, or the model before its first step, and other models."""

    constant: tuple[Callable[[Split], Array], str] | None
    untrained: nn.Module | None
    models: list[FittedModel]
    not_fitted: dict[str, str]


class BaselineComparison(TypedDict):
    """The candidate against the trivial baseline and simple models on test rows.

    `untrained` is the score of the model before its first step, where no constant prediction is known.
    """

    metric: str
    greater_is_better: bool
    value: float
    rows: int
    groups: int | None
    trivial: Comparison | None
    untrained: float | None
    models: list[Comparison]
    not_fitted: dict[str, str]


class TestShift(TypedDict):
    """How far the features and the values of test rows are from those of train; None where they are not compared."""

    features: FeatureShift | None
    targets: FeatureShift | None


class TestMeasurements(TypedDict):
    """All measurements on test rows, as their file has them; the score itself is in the ledger."""

    calibration: Reliability
    beats_baseline: BaselineComparison
    slices: Slices
    shift: TestShift


def fit_references(subject: Subject, seconds: float) -> References:
    """Fit on train rows what the candidate is compared with: the models take about `seconds`; 0 fits none."""
    from pipeline.building.builder import build_model

    task, data, seed = subject.task, subject.data, subject.seed
    few = data.val.take(_first(len(data.val)))
    outputs = outputs_of(subject.model, few, task)
    constant = fit_constant(task, data.train, data.ids(task.kind), data.class_names or (), outputs)
    untrained = None if constant is not None else build_model(subject.config, subject.trust, seed=seed, data=data)
    if not seconds:
        return References(constant, untrained, [], {"simple models": "phases.baseline.baseline_model_seconds is 0"})
    models, reasons = fit_baseline_models(task, data, seed, seconds, outputs)
    return References(constant, untrained, models, reasons)


def _first(rows: int) -> Any:
    import torch

    return torch.arange(min(rows, ROWS))


def measure_on_test(
    subject: Subject, rows: Split, evaluation: Evaluation, calibration: Calibration, references: References
) -> TestMeasurements:
    """Measure the candidate on test rows: calibration, comparisons, slices, and the distance of the rows from train."""
    task, outputs = subject.task, evaluation.outputs
    per_row = outputs is not None and task.metric.needs != "step"
    inputs = task.metric_inputs(outputs, rows.y) if outputs is not None and per_row else None
    return {
        "calibration": measure_reliability(task, rows, evaluation, calibration, subject.seed),
        "beats_baseline": _compare(subject, rows, evaluation, inputs, references),
        "slices": measure_slices(task, subject.data, rows, evaluation, inputs, subject.seed),
        "shift": _shift(subject, rows),
    }


def save(folder: Path, measured: TestMeasurements, rows: Split, evaluation: Evaluation) -> dict[str, Path]:
    """Write the measurements and the predictions per row into a folder, and return the two files by name."""
    paths = {"measurements": folder / "measurements.json", "predictions": folder / "predictions.npz"}
    files.folder(folder)
    files.write_bytes(paths["predictions"], _predictions_file(rows, evaluation))
    files.write_json(paths["measurements"], Evidence(measured).to_json())
    return paths


def load(content: Mapping[str, Any]) -> TestMeasurements:
    """Return the measurements from the content of their file."""
    return cast(TestMeasurements, Evidence.from_json(content).values)


def _predictions_file(rows: Split, evaluation: Evaluation) -> bytes:
    """Return outputs, predictions and targets per row as an npz without pickles."""
    arrays: dict[str, Array] = {"targets": rows.y.numpy()}
    if evaluation.outputs is not None:
        arrays["outputs"] = evaluation.outputs.numpy()
    if evaluation.predictions is not None:
        arrays["predictions"] = evaluation.predictions
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: array for name, array in arrays.items() if array.dtype.kind in "biuf"})  # type: ignore[arg-type]
    return buffer.getvalue()


def _compare(
    subject: Subject, rows: Split, evaluation: Evaluation, inputs: Array | None, references: References
) -> BaselineComparison:
    task, groups = subject.task, rows.row_metadata.groups
    metric = PERPLEXITY if task.metric.name == "perplexity" else task.metric
    reasons, trivial, models = dict(references.not_fitted), None, list[Comparison]()
    targets = rows.y.numpy()
    if inputs is not None and references.constant is not None:
        predict, how = references.constant
        of_constant = predict(rows)
        trivial = compare("trivial baseline", how, metric, targets, inputs, of_constant, subject.seed, groups)
    for model in references.models:
        if inputs is None:
            break
        try:
            theirs = comparable(task, rows, model.predict(rows))
        except (ValueError, ArithmeticError, IndexError) as error:  # test rows that it cannot predict
            reasons[model.name] = (str(error).splitlines() or [type(error).__name__])[0]
            continue
        models.append(compare(model.name, model.how, metric, targets, inputs, theirs, subject.seed, groups))
    untrained = None
    if references.untrained is not None:
        metrics = loss_and_metrics(references.untrained, rows.X, rows.y, task).metrics
        untrained = float(metrics.get(task.metric.name, math.nan))
    return {
        "metric": task.metric.name,
        "greater_is_better": task.metric.greater_is_better,
        "value": evaluation.score.value,
        "rows": len(rows),
        "groups": None if groups is None else len(np.unique(groups)),
        "trivial": trivial,
        "untrained": untrained,
        "models": models,
        "not_fitted": reasons,
    }


def _shift(subject: Subject, rows: Split) -> TestShift:
    data = subject.data
    reference = data.val if data.train.augmented else data.train  # augmented rows are meant to differ
    of_values = data.train.y.is_floating_point()
    return {
        "features": feature_shift(reference.X, rows.X, data.feature_names),
        "targets": feature_shift(reference.y, rows.y) if of_values else None,
    }
