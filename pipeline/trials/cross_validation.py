"""Cross-validation: how much the score of the plan depends on the rows that it is trained and evaluated on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from pipeline.data.dataset import Data
from pipeline.data.folds import assign_folds
from pipeline.engine.fit import fit
from pipeline.engine.observer import StepObserver
from pipeline.engine.progress import Fit
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import score_split
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.permits import TrainPermit
from pipeline.runtime.seeds import derive, seeded

Watch = Callable[[str], Sequence[StepObserver]]  # the observers of a training, by its name for the screen


class FoldResult(TypedDict, total=False):
    """One fold: its rows, its training, and its score or the reason (`why`) for having none."""

    rows: int
    steps: int
    stopped: str
    value: float
    why: str


def cross_validate(
    permit: TrainPermit,
    data: Data,
    parts: int,
    baseline: Fit,
    *,
    seconds_left: float | None = None,
    watch: Watch = lambda what: (),
) -> dict[str, Any]:
    """Train the plan once without each of `parts` folds of its train rows, and evaluate it on the fold left out.

    Returns `{parts, metric, greater_is_better, mean, std, values, folds, seconds}`, or `{not_applicable: reason}`. All
    else is as planned: validation rows choose the best epoch, and the seed is the master seed. `baseline` is the
    planned training, whose duration estimates that of a fold; `seconds_left` is by default what `trainer.max_minutes`
    leaves after it. A fold on which the metric is undefined has the value NaN and a reason `why`. Nothing is written to
    disk. Raises Interrupted as `fit` does.
    """
    plan = permit.plan
    reason = _not_applicable(plan.config, data, parts, baseline, seconds_left)
    if reason:
        return {"not_applicable": reason}
    try:
        fold = assign_folds(data.train, parts)
    except UserError as error:
        return {"not_applicable": error.faults[0]}
    start, folds = time.perf_counter(), list[FoldResult]()
    assert baseline.score is not None
    for k in range(parts):
        job = Job(plan.digest, f"fold {k + 1}", Delta(train_rows={"without_fold": [k, parts]}))
        left_out = data.train.take(torch.from_numpy(np.flatnonzero(fold == k)))
        result: FoldResult = {"rows": len(left_out)}
        try:
            fit_result = fit(permit, job, watch(f"fold {k + 1} of {parts}"), data=data)
            result |= {"steps": fit_result.steps, "stopped": fit_result.stop_reason}
            with seeded(derive(plan.seed, "fold", k)):
                result["value"] = score_split(fit_result.model, left_out, fit_result.task, plan.seed).score.value
        except UserError as error:
            # A metric may need every class, while groups may put all rows of a class into one fold.
            result |= {"value": math.nan, "why": error.faults[0]}
        folds.append(result)
    values = [result["value"] for result in folds]
    return {
        "parts": parts,
        "metric": baseline.score.metric,
        "greater_is_better": baseline.score.greater_is_better,
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)),
        "values": values,
        "folds": folds,
        "seconds": time.perf_counter() - start,
    }


def _not_applicable(
    config: Mapping[str, Any], data: Data, parts: int, baseline: Fit, seconds_left: float | None
) -> str | None:
    """Return why there is no cross-validation; None if there is."""
    if parts < 2:
        return "not requested: phases.baseline.folds is below 2"
    if config["task"]["kind"] == "custom":
        return "a custom task may use its targets in a way that a fold of rows cannot evaluate"
    if _rows_are_ordered(config, data):
        return "the rows are ordered in time: a model would be evaluated on rows older than those it learned from"
    if data.train.dataset is not None or not isinstance(data.train.y, Tensor):
        return "a Dataset is read anew in every epoch, so that its rows cannot be divided"
    if baseline.score is None:
        return f"the planned training has no score (it ended {baseline.stop_reason})"
    minutes = config["trainer"].get("max_minutes")
    left = 60 * float(minutes or math.inf) - baseline.seconds if seconds_left is None else seconds_left
    # A fold trains on fewer rows than the plan: its duration is at most about that of the planned training.
    needed = parts * baseline.seconds
    if needed > left:
        return f"{parts} trainings take about {needed:.0f} s, and trainer.max_minutes leaves {max(left, 0):.0f} s"
    return None


def _rows_are_ordered(config: Mapping[str, Any], data: Data) -> bool:
    """Whether the order of the rows matters: they have times, or are consecutive windows of one text."""
    section = config["data"]
    timed = data.train.row_metadata.times is not None or bool(section.get("time"))
    return timed or config["task"]["kind"] == "language_model" or "context" in section
