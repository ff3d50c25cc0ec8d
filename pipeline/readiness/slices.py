"""The score on parts of the test rows: classes, slices that the owner declared, and quarters of the values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import Data
from pipeline.data.splits import Split
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.intervals.score import confidence_interval
from pipeline.evaluation.metrics import Metric
from pipeline.evaluation.per_class import ClassReport, class_report, empty_report
from pipeline.evaluation.task import Task
from pipeline.results import plain

Array = NDArray[Any]
QUARTERS = ("lowest", "second", "third", "highest")


class SliceScore(TypedDict):
    """The score of one slice with its 95 % interval; NaN where undefined.

    `of` is `class` (recall), `declared`, `predictions` (a quarter of them), or `targets`, which is only reported: rows
    that are chosen by their outcome look worse under any model.
    """

    name: str
    of: str
    metric: str
    rows: int
    value: float
    low: float
    high: float


class Slices(TypedDict):
    """The score on all rows and of each slice; `recall` is that on all rows where classes are compared by recall."""

    metric: str
    greater_is_better: bool
    value: float
    recall: float | None
    rows: int
    scores: list[SliceScore]
    worst_pairs: list[dict[str, Any]]
    why: str


def measure_slices(
    task: Task, data: Data, rows: Split, evaluation: Evaluation, inputs: Array | None, seed: int
) -> Slices:
    """Score every slice of the rows by the deciding metric, given what it takes; and every class by its recall."""
    metric, score = task.metric, evaluation.score
    report = _classes(task, data, rows, evaluation)
    scores: list[SliceScore] = [
        {
            "name": row["class"],
            "of": "class",
            "metric": "recall",
            "rows": row["support"],
            "value": row["recall"],
            "low": row["recall_low"],
            "high": row["recall_high"],
        }
        for row in report["per_class"]
    ]
    why = ""
    if inputs is None:
        why = "the deciding metric has no value per row" if metric.needs == "step" else "the model returns no outputs"
    else:
        members = [*_declared(rows), *_quarters(task, rows, evaluation)]
        scores += [_score(metric, rows, inputs, name, of, inside, seed) for name, of, inside in members]
    return {
        "metric": metric.name,
        "greater_is_better": metric.greater_is_better,
        "value": score.value,
        "recall": _overall_recall(report),
        "rows": len(rows),
        "scores": scores,
        "worst_pairs": plain(report["worst_pairs"]),
        "why": why,
    }


def _classes(task: Task, data: Data, rows: Split, evaluation: Evaluation) -> ClassReport:
    predictions, y = evaluation.predictions, rows.y
    labels = y.shape[1] if task.kind == "multilabel" and y.ndim == 2 else None
    count = data.classes or labels
    same = predictions is not None and tuple(predictions.shape) == tuple(y.shape)
    if predictions is None or not same or predictions.dtype.kind not in "iub" or not count:
        return empty_report()
    names = data.class_names or tuple(map(str, range(count)))
    return class_report(y.numpy(), predictions, names, rows.row_metadata.groups)


def _overall_recall(report: ClassReport) -> float | None:
    """Return the share of all rows, or of all present labels, that are found."""
    rows = [row for row in report["per_class"] if row["support"]]
    total = sum(row["support"] for row in rows)
    return sum(row["recall"] * row["support"] for row in rows) / total if total else None


def _declared(rows: Split) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    for name, inside in rows.row_metadata.slices.items():
        yield name, "declared", inside.numpy().astype(bool)


def _quarters(task: Task, rows: Split, evaluation: Evaluation) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Yield the quarters of predicted values and of targets, where each row has one value and one loss."""
    predictions = evaluation.predictions
    if task.kind != "regression" or task.metric.row_losses is None or predictions is None:
        return
    for of, values in (("predictions", predictions), ("targets", rows.y.numpy())):
        if values.size != len(rows) or not np.isfinite(values).all():
            continue
        ends = np.quantile(values, (0.25, 0.5, 0.75))
        number = np.searchsorted(ends, values.reshape(-1), side="right")
        for quarter, name in enumerate(QUARTERS):
            yield f"{name} quarter of the {of}", of, number == quarter


def _score(
    metric: Metric, rows: Split, inputs: Array, name: str, of: str, inside: NDArray[np.bool_], seed: int
) -> SliceScore:
    groups = rows.row_metadata.groups
    value = low = high = math.nan
    if inside.any():
        targets, predicted = rows.y.numpy()[inside], inputs[inside]
        value = metric(targets, predicted)
        interval = confidence_interval(metric, targets, predicted, seed, None if groups is None else groups[inside])
        low, high = interval.low, interval.high
    return {
        "name": name,
        "of": of,
        "metric": metric.name,
        "rows": int(inside.sum()),
        "value": value,
        "low": low,
        "high": high,
    }
