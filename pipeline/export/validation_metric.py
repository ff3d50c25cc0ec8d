"""The deciding metric on validation, of the trained model and of an exported file."""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.evaluation.task import Task
from pipeline.export.parity import LARGEST, MetricDifference, run_in_batches
from pipeline.export.proof_rows import ProofRows
from pipeline.export.runners import Outputs, Runner
from pipeline.export.served_model import OUTPUT


class ValidationMetric(NamedTuple):
    """The task that measures, and the targets of the validation rows."""

    task: Task
    targets: object


class Compared(TypedDict):
    """The entries of a proof about the metric."""

    metric: MetricDifference | None
    metric_why: str


def metric_difference(measured: ValidationMetric, reference: Outputs, run: Runner, rows: ProofRows) -> Compared:
    """Return the metric of both on the validation rows, or why outputs alone have none."""
    task, targets = measured
    if task.metric.needs == "step" or task.step is not None:
        return {"metric": None, "metric_why": f"task.step computes '{task.metric.name}' itself"}
    if not isinstance(targets, Tensor):
        return {"metric": None, "metric_why": "the targets are nested"}
    chosen = slice(rows.edge, rows.edge + rows.validation)
    outputs = run_in_batches(run, rows.batch, LARGEST, chosen.stop)[OUTPUT]
    try:
        model, file = (
            task.deciding_value(torch.from_numpy(np.ascontiguousarray(values[chosen])), targets)
            for values in (reference[OUTPUT], outputs)
        )
    except UserError as error:  # a metric of the user's own may need more than outputs
        return {"metric": None, "metric_why": str(error)}
    found = MetricDifference(name=task.metric.name, model=model, file=file, bounded=_bounded(task))
    return {"metric": found, "metric_why": ""}


def _bounded(task: Task) -> bool:
    """Return whether the metric's values are fractions of 1, as those of class ids and ranks are; losses are not."""
    metric = task.metric
    fractions = metric.needs in ("classes", "scores") and metric.greater_is_better
    return fractions and not metric.users_own and not metric.name.startswith("neg_")
