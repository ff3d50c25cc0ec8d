"""Cross-validation: how far the score of the plan depends on which rows it was trained on and judged by."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.dataset import Data
from pipeline.data.folds import folds_of
from pipeline.engine.fit import fit
from pipeline.engine.loop import Fit
from pipeline.engine.observer import StepObserver
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import score_split
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.permits import TrainPermit
from pipeline.runtime.seeds import derive, seeded

Watch = Callable[[str], Sequence[StepObserver]]


def cross_validate(
    permit: TrainPermit,
    data: Data,
    parts: int,
    baseline: Fit,
    *,
    seconds_left: float | None = None,
    trust: Sequence[str] = (),
    watch: Watch = lambda what: (),
) -> dict[str, Any]:
    """The plan trained once without each fold of its train rows, and judged by the deciding metric on that fold.

    `{parts, metric, greater_is_better, mean, std, values, folds, seconds}`, or `{not_applicable: reason}`. Everything
    else is as planned: the best epoch is that of the validation rows, the seed the master seed. `baseline` is the
    planned training, by whose seconds the folds are foretold; `seconds_left` is what `trainer.max_minutes` leaves
    beside it where nothing is said. A fold without or beside which the metric is undefined is NaN and says `why`.
    Nothing is kept on disk. Raises Interrupted as `fit` does.
    """
    plan = permit.plan
    why = _unfit(plan.config, data, parts, baseline, seconds_left)
    if why:
        return {"not_applicable": why}
    try:
        fold = folds_of(data.train, parts)
    except UserError as error:
        return {"not_applicable": error.faults[0]}
    began, found = time.perf_counter(), list[dict[str, Any]]()
    assert baseline.score is not None
    for k in range(parts):
        job = Job(plan.digest, f"fold {k + 1}", Delta(train_rows={"without_fold": [k, parts]}))
        left_out = data.train.take(torch.from_numpy(np.flatnonzero(fold == k)))
        told: dict[str, Any] = {"rows": len(left_out)}
        try:
            done = fit(permit, job, watch(f"fold {k + 1} of {parts}"), data=data)
            told |= {"steps": done.steps, "stopped": done.stopped}
            with seeded(derive(plan.seed, "fold", k)):
                value = score_split(done.model, left_out, done.task, plan.seed).score.value
        except UserError as error:  # a metric may want every class, and groups may keep one out of a fold, or in it
            value, told["why"] = math.nan, error.faults[0]
        found.append({**told, "value": value})
    values = [one["value"] for one in found]
    return {
        "parts": parts,
        "metric": baseline.score.metric,
        "greater_is_better": baseline.score.greater_is_better,
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)),
        "values": values,
        "folds": found,
        "seconds": time.perf_counter() - began,
    }


def _unfit(config: Mapping[str, Any], data: Data, parts: int, baseline: Fit, seconds_left: float | None) -> str | None:
    """Why these rows are not cut into folds; None where they are."""
    if parts < 2:
        return "not asked for: phases.baseline.folds is below 2"
    if config["task"]["kind"] == "custom":
        return "a custom task may mean by its targets what no fold of rows can judge"
    if _in_time(config, data):
        return "the rows are ordered in time: a fold would be judged by what was learned from its future"
    if data.train.items is not None or not isinstance(data.train.y, Tensor):
        return "a Dataset reads its rows anew in every epoch"
    if baseline.score is None:
        return f"the planned training has no score itself (it ended {baseline.stopped})"
    minutes = config["trainer"].get("max_minutes")
    left = 60 * float(minutes or math.inf) - baseline.seconds if seconds_left is None else seconds_left
    needed = parts * baseline.seconds
    if needed > left:
        return f"{parts} trainings take about {needed:.0f} s, and trainer.max_minutes leaves {max(left, 0):.0f} s"
    return None


def _in_time(config: Mapping[str, Any], data: Data) -> bool:
    """Whether the order of the rows means something: a column of times, or windows of one text."""
    asked = config["data"]
    timed = data.train.marks.times is not None or bool(asked.get("time"))
    return timed or config["task"]["kind"] == "language_model" or "context" in asked
