"""Regression and forgetting: the candidate against the model in use, and on the rows of earlier tasks.

The model in use is run from its released file. An earlier task is scored against the model in use, else against the
weights that the training started from (`model.init_from`), which are what can be forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.splits import Split
from pipeline.data.tree import Tree, map_leaves
from pipeline.evaluation.evaluate import outputs_of
from pipeline.readiness.comparison import Comparison, compare
from pipeline.readiness.subject import Subject

Answers = Callable[[Tree], Tensor]  # inputs [N, ...] of a model, nested as the data are, to its outputs [N, ...]


class Regression(TypedDict):
    """The candidate on the rows of one task, against an earlier model.

    `task` is empty for the candidate's own validation rows. `negative_flips` counts the rows that the earlier model
    has right and the candidate has wrong, None where predictions are not classes. Without a `comparison`, `why` says
    why there is none; `value` is then the candidate's score alone, None without one.
    """

    task: str
    against: str
    rows: int
    value: float | None
    comparison: Comparison | None
    negative_flips: int | None
    why: str


def released_model(run: Callable[[Any], Mapping[str, NDArray[Any]]]) -> Answers:
    """Return what a released model answers to tensors as `output`; `run` computes all its outputs as arrays by name."""
    return lambda inputs: torch.from_numpy(np.array(run(map_leaves(lambda leaf: leaf.numpy(), inputs))["output"]))


def measure(subject: Subject, champion: Answers | None, name: str = "") -> list[Regression]:
    """Compare the candidate with the model in use, called `name`, on validation rows and on every earlier task.

    Empty where there is neither a model in use nor an earlier task.
    """
    results = [_compare(subject, "", subject.data.val, champion, name)] if champion else []
    tasks = subject.data.previous_tasks
    if not tasks:
        return results
    earlier, against = (champion, name) if champion else (_start_of(subject), "model.init_from")
    return results + [_compare(subject, task, rows, earlier, against) for task, rows in tasks.items()]


def _start_of(subject: Subject) -> Answers | None:
    """Return the model with the weights that its training started from; None where it started from random ones."""
    from pipeline.building.builder import build_model

    model: Mapping[str, Any] = subject.config["model"]
    if not model.get("init_from"):
        return None
    started = build_model(subject.config, subject.trust, seed=subject.seed, data=subject.data).eval()
    return lambda inputs: started(inputs)  # type: ignore[no-any-return]


def _compare(subject: Subject, task: str, rows: Split, earlier: Answers | None, against: str) -> Regression:
    """Compare the candidate with an earlier model on these rows, paired by row."""
    metric, groups = subject.task.metric, rows.row_metadata.groups
    result = Regression(
        task=task, against=against, rows=len(rows), value=None, comparison=None, negative_flips=None, why=""
    )
    outputs = outputs_of(subject.model, rows, subject.task)
    if outputs is None or metric.needs == "step":
        return {**result, "why": f"only task.step computes {metric.name}, which the earlier model does not have"}
    targets, ours = rows.y.numpy(), subject.task.metric_inputs(outputs, rows.y)
    value = metric(targets, ours)
    result["value"] = value if math.isfinite(value) else None
    if earlier is None:
        return {**result, "against": "", "why": "no earlier model is known: neither a release nor model.init_from"}
    try:
        with torch.no_grad():
            theirs = subject.task.metric_inputs(earlier(rows.X), rows.y)
    except Exception as error:  # a released model of another schema refuses these rows in its own way
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return {**result, "why": f"{against} cannot answer these rows: {first[:200]}"}
    result["comparison"] = compare(against, "", metric, targets, ours, theirs, subject.seed, groups)
    if metric.needs == "classes" and ours.shape == theirs.shape == targets.shape:
        result["negative_flips"] = int(((theirs == targets) & (ours != targets)).sum())
    return result
