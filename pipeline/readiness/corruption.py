"""How the validation score decreases when the inputs are corrupted as in use, by kind of corruption and severity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypedDict

import torch

from pipeline.data.splits import Split
from pipeline.data.tree import Tree, count_rows
from pipeline.readiness import perturbations
from pipeline.readiness.subject import Subject
from pipeline.runtime.seeds import derive, seeded
from pipeline.runtime.threads import running_on, threads

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.evaluation.trivial_baseline import TrivialBaseline

MAX_ROWS = 2000  # validation rows that are corrupted: enough for a point of accuracy, and seconds for large models


class CorruptionScore(TypedDict):
    """The score under one corruption. `retained` is the share of the gain over the trivial baseline that is left."""

    corruption: str
    severity: int
    strength: float
    unit: str
    value: float
    retained: float
    nonfinite_rows: int


class CorruptionEvidence(TypedDict):
    """The scores on clean and on corrupted validation rows; `why` is the reason where nothing could be corrupted."""

    metric: str
    greater_is_better: bool
    rows: int
    clean: float
    trivial: float
    trivial_how: str
    kinds: dict[str, str]
    left_alone: list[str]
    scores: list[CorruptionScore]
    why: str | None


def plan_threads(subject: Subject) -> int:
    """Return how many threads the plan's rule gives this model: more of them only wait for each other."""
    rule = subject.config["trainer"].get("threads", "auto")
    return threads(rule, sum(parameter.numel() for parameter in subject.model.parameters()))


def sample(subject: Subject, name: str, most: int) -> Split:
    """Return at most so many validation rows, always the same ones for the seed and the name of the measurement."""
    val = subject.data.val
    if len(val) <= most:
        return val
    draw = torch.Generator().manual_seed(derive(subject.seed, name, "rows"))
    return val.take(torch.randperm(len(val), generator=draw)[:most].sort().values)


def trivial_baseline(subject: Subject, val: Split) -> TrivialBaseline:
    """Return the score of the best constant prediction on these rows; of the untrained model where there is none."""
    from pipeline.building.builder import build_model
    from pipeline.evaluation.evaluate import outputs_of
    from pipeline.evaluation.trivial_baseline import score_trivial_baseline

    task, data = subject.task, subject.data
    outputs = outputs_of(subject.model, val, task)
    arguments = (task, data.train, val, data.ids(task.kind))
    score = score_trivial_baseline(*arguments, None, data.class_names or (), outputs)
    if math.isfinite(score["value"]):
        return score
    untrained = build_model(subject.config, subject.trust, subject.seed, data)
    return score_trivial_baseline(*arguments, untrained, data.class_names or (), outputs)


def value_on(subject: Subject, X: Tree, y: Tensor) -> tuple[float, int]:
    """Return the deciding metric on these rows, and how many of them have outputs that are not finite."""
    from pipeline.evaluation.evaluate import forward, loss_and_metrics

    task = subject.task
    with seeded(derive(subject.seed, "readiness")):  # a model may draw in eval mode, too
        if task.step is not None:
            value = loss_and_metrics(subject.model, X, y, task).metrics[task.metric.name]
            return value, 0 if math.isfinite(value) else count_rows(X)
        outputs = forward(subject.model, X)
    nonfinite = int((~torch.isfinite(outputs.reshape(len(outputs), -1)).all(1)).sum())
    return task.deciding_value(outputs, y), nonfinite


def measure(subject: Subject) -> CorruptionEvidence:
    """Score the model on validation rows under every corruption that fits its inputs, at severities 1, 3 and 5.

    Raises UserError where the user's model or metric fails on corrupted rows.
    """
    with running_on(plan_threads(subject)):
        return _measured(subject)


def _measured(subject: Subject) -> CorruptionEvidence:
    rows, task = sample(subject, "corruption", MAX_ROWS), subject.task
    parts = perturbations.input_parts(subject.data, subject.config)
    by_part = {name: perturbations.corruptions_of(part) for name, part in parts.items()}
    names = {corruption: how for possible in by_part.values() for corruption, how in possible.items()}
    clean, _ = value_on(subject, rows.X, rows.y)
    trivial = trivial_baseline(subject, rows)
    gain, scores = clean - trivial["value"], []
    for name, corruption in names.items():
        for severity, strength in zip(perturbations.SEVERITIES, corruption.strengths, strict=True):
            X = perturbations.corrupted(rows.X, parts, name, severity, subject.seed)
            value, nonfinite = value_on(subject, X, rows.y)
            retained = (value - trivial["value"]) / gain if gain else math.nan
            scores.append(CorruptionScore(
                corruption=name, severity=severity, strength=strength, unit=corruption.unit,
                value=value, retained=retained, nonfinite_rows=nonfinite,
            ))  # fmt: skip
    return {
        "metric": task.metric.name,
        "greater_is_better": task.metric.greater_is_better,
        "rows": len(rows),
        "clean": clean,
        "trivial": trivial["value"],
        "trivial_how": trivial["how"],
        "kinds": {name: part.kind for name, part in parts.items()},
        "left_alone": [name for name, possible in by_part.items() if not possible],
        "scores": scores,
        "why": None if names else "no part of the inputs has values, codes or tokens that vary",
    }
