"""How much better the candidate is on rows that it was trained on than on others."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from pipeline.data.splits import Split
from pipeline.evaluation.evaluate import score_split
from pipeline.evaluation.metrics import Metric
from pipeline.readiness.subject import Subject
from pipeline.results import Score
from pipeline.runtime.seeds import derive

UNBOUNDED = ("mae", "rmse", "perplexity")


class GeneralizationGap(TypedDict):
    """The deciding metric in eval mode on so many rows of train and on validation.

    The gap is positive where train is better; `gap_low` compares train with the better limit of the interval of
    validation, and is NaN without one. `bounded`: the metric ends at 1, so that points mean the same everywhere.
    """

    metric: str
    greater_is_better: bool
    bounded: bool
    train: float
    train_rows: int
    val: float
    val_low: float
    val_high: float
    val_rows: int
    gap: float
    gap_low: float


def measure_generalization(subject: Subject) -> GeneralizationGap:
    """Score the candidate on validation and on a fixed, stratified sample of as many train rows."""
    task, data, metric = subject.task, subject.data, subject.task.metric
    sample = data.train.take(stratified_rows(data.train, len(data.val), subject.seed))
    train = score_split(subject.model, sample, task, subject.seed).score
    val = score_split(subject.model, data.val, task, subject.seed).score
    assert isinstance(val, Score)
    sign = 1 if metric.greater_is_better else -1
    best = val.high if metric.greater_is_better else val.low
    return {
        "metric": metric.name,
        "greater_is_better": metric.greater_is_better,
        "bounded": is_bounded(metric),
        "train": train.value,
        "train_rows": train.n,
        "val": val.value,
        "val_low": val.low,
        "val_high": val.high,
        "val_rows": val.n,
        "gap": sign * (train.value - val.value),
        "gap_low": sign * (train.value - best),
    }


def stratified_rows(train: Split, count: int, seed: int) -> Tensor:
    """Return the numbers of `count` rows in which every class has its share; of all rows if there are fewer."""
    n = len(train)
    order = np.random.default_rng(derive(seed, "readiness", "train_rows")).permutation(n)
    if isinstance(train.y, Tensor) and train.y.ndim == 1:
        order = order[np.argsort(train.y.numpy()[order], kind="stable")]  # by class, or by value
    chosen = order[np.linspace(0, n, min(count, n), endpoint=False).astype(int)]
    return torch.from_numpy(np.sort(chosen))


def is_bounded(metric: Metric) -> bool:
    """Return whether the best value of the metric is 1, as of shares and areas; unknown metrics count as unbounded."""
    known = not metric.users_own and metric.needs != "step" and metric.greater_is_better
    return known and metric.name not in UNBOUNDED and not metric.name.startswith("neg_")
