"""Before anything trains: whether metrics and predictor can be computed on validation rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.data.splits import Split
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import loss_and_metrics
from pipeline.evaluation.task import Task

ROWS = 512  # validation rows that the untrained model evaluates


def require_fitting_metrics(model: nn.Module, task: Task, val: Split) -> None:
    """Raises UserError for a metric or a predictor that cannot be computed on validation rows.

    A metric with a name is given the targets in the place of predictions. What the user wrote may take predictions
    only, in a shape of its own, and is given those of the model.
    """
    if isinstance(val.y, Tensor) and task.step is None:
        targets = val.y.numpy()
        for metric in task.metrics:
            if metric.needs in ("classes", "values") and not metric.users_own:
                metric(targets, targets)
    if task.step is not None or task.own_predict or any(metric.users_own for metric in task.metrics):
        _evaluate(model, task, val)


def _evaluate(model: nn.Module, task: Task, val: Split) -> None:
    """Evaluate the untrained model on some validation rows; on all of them where these are not enough.

    A metric may need every class, and a few rows may lack one.
    """
    rows = val.take(torch.linspace(0, len(val) - 1, min(ROWS, len(val))).long())
    try:
        loss_and_metrics(model, rows.X, rows.y, task)
    except UserError:
        if len(rows) == len(val):
            raise
        loss_and_metrics(model, val.X, val.y, task)
