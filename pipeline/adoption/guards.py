"""Measure what a change must not make worse: classes, slices, further metrics, latency, size and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pipeline.adoption.acceptance import Guard
from pipeline.trials.executor import Trial
from pipeline.trials.fix_report import evaluate_trial, paired_latency

if TYPE_CHECKING:
    from pipeline.data.dataset import Data
    from pipeline.evaluation.evaluate import Evaluation
    from pipeline.evaluation.task import Task

WORST_CLASS, LATENCY, SIZE = "recall of the worst class", "latency in ms", "size in MB"
MEMORY = "memory of the training in MB"
BYTES_PER_PARAMETER = 4  # in single precision
FEWEST_ROWS = 5  # of a class or a slice: fewer say nothing of it


@dataclass(frozen=True)
class Quality:
    """What one trained model does besides its score: recall of its worst class, its score by slice, further metrics."""

    worst_recall: float = math.nan
    slices: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


def measure_guards(
    run_dir: Path,
    planned: Mapping[str, Any],
    trust: Sequence[str],
    before: Sequence[Trial],
    after: Sequence[Trial],
) -> list[Guard]:
    """Return the guards of a change from the trainings of the control and of the change, pair by pair.

    Margins and limits are those of the plan; what has none is reported and not guarded.
    """
    plan = planned.get("plan") or {}
    margins, limits = plan.get("margins") or {}, plan.get("limits") or {}
    (old, _), (new, greater) = (qualities(run_dir, arm, planned, trust) for arm in (before, after))
    return [
        *_quality_guards(old, new, greater, margins),
        *_cost_guards(run_dir, planned, trust, before, after, margins.get("cost"), limits),
    ]


def _quality_guards(
    old: Sequence[Quality], new: Sequence[Quality], greater: Mapping[str, bool], margins: Mapping[str, Any]
) -> list[Guard]:
    """Return the guards of the worst class, of each declared slice, and of each further metric."""
    share, further = margins.get("slice"), margins.get("metrics") or {}
    guards = [_guard(WORST_CLASS, [q.worst_recall for q in old], [q.worst_recall for q in new], share, "slice")]
    for name in dict.fromkeys(name for quality in new for name in quality.slices):
        before, after = ([quality.slices.get(name, math.nan) for quality in arm] for arm in (old, new))
        guards.append(_guard(f"slice {name}", before, after, share, "slice", greater.get("", True)))
    for name in dict.fromkeys(name for quality in new for name in quality.metrics):
        before, after = ([quality.metrics.get(name, math.nan) for quality in arm] for arm in (old, new))
        guards.append(_guard(name, before, after, further.get(name), f"metrics.{name}", greater.get(name, True)))
    return [guard for guard in guards if any(map(math.isfinite, guard["after"]))]


def _guard(
    what: str, before: list[float], after: list[float], margin: float | None, key: str, greater: bool = True
) -> Guard:
    guard: Guard = {"what": what, "before": before, "after": after, "margin": margin, "limit": None}
    if not greater:
        guard["greater_is_better"] = False
    return guard if margin is not None else {**guard, "why": f"plan.margins.{key} is not declared"}


def _cost_guards(
    run_dir: Path,
    planned: Mapping[str, Any],
    trust: Sequence[str],
    before: Sequence[Trial],
    after: Sequence[Trial],
    share: float | None,
    limits: Mapping[str, Any],
) -> list[Guard]:
    """Return the guards of latency, size and memory: each within its limit, and grown by at most the declared share."""
    params = [_performance(arm, "params") for arm in (before, after)]
    peak = [_performance(arm, "memory_mb") for arm in (before, after)]
    sizes = [[BYTES_PER_PARAMETER * count / 1e6 for count in arm] for arm in params]
    latencies = paired_latency(run_dir, before, after, planned, trust)
    # plan.limits.memory_mb is of prediction, which the last gate measures.
    measured: list[tuple[str, list[float], list[float], str]] = [
        (LATENCY, *latencies, "latency_ms_p99"),
        (SIZE, sizes[0], sizes[1], "size_mb"),
        (MEMORY, peak[0], peak[1], ""),
    ]
    guards: list[Guard] = []
    for what, old, new, bound in measured:
        known = [value for value in old if math.isfinite(value)]
        if not any(map(math.isfinite, new)):
            continue
        margin = share * fmean(known) if share is not None and known else None
        guard: Guard = {"what": what, "before": old, "after": new, "margin": margin, "limit": limits.get(bound)}
        guard["greater_is_better"] = False
        if margin is None and guard["limit"] is None:
            guard["why"] = f"{f'plan.limits.{bound}' if bound else 'plan.margins.cost'} is not declared"
        guards.append(guard)
    return guards


def _performance(arm: Sequence[Trial], key: str) -> list[float]:
    return [float(trial.result.get("performance", {}).get(key, math.nan)) for trial in arm]


def qualities(
    run_dir: Path, arm: Sequence[Trial], planned: Mapping[str, Any], trust: Sequence[str]
) -> tuple[list[Quality], dict[str, bool]]:
    """Return the quality of each training of an arm on validation rows, and whether higher is better by metric.

    The deciding metric, which scores the slices, has an empty name. A dead training has no figures.
    """
    from pipeline.data.load import load

    alive = [trial for trial in arm if trial.result.get("checkpoint")]
    if not alive:
        return [Quality()] * len(arm), {}
    config = alive[0].job.config(planned)  # the trainings of an arm differ in their seed alone
    data, greater, measured = load(config, trust), dict[str, bool](), dict[str, Quality]()
    for trial in alive:
        evaluation, task, _ = evaluate_trial(run_dir, trial, config, trust, data)
        measured[trial.id] = _quality(evaluation, task, data, str(config["task"]["kind"]))
        greater = {"": task.metric.greater_is_better, **{m.name: m.greater_is_better for m in task.metrics}}
    return [measured.get(trial.id, Quality()) for trial in arm], greater


def _quality(evaluation: Evaluation, task: Task, data: Data, kind: str) -> Quality:
    from pipeline.evaluation.per_class import report_of

    rows = report_of(evaluation, data, kind)["per_class"]
    recalls = [float(row["recall"]) for row in rows if row["support"] >= FEWEST_ROWS]
    worst, y = min(filter(math.isfinite, recalls), default=math.nan), data.val.y
    if evaluation.outputs is None or not hasattr(y, "numpy"):
        return Quality(worst)
    values = task.metric_values(evaluation.outputs, y)
    further = {name: value for name, value in values.items() if name != task.metric.name}
    declared = data.val.row_metadata.slices
    if not declared or task.metric.needs == "step":
        return Quality(worst, {}, further)
    predicted, targets = task.metric_inputs(evaluation.outputs, y), y.numpy()
    slices = {
        name: task.metric(targets[inside.numpy()], predicted[inside.numpy()])
        for name, inside in declared.items()
        if int(inside.sum()) >= FEWEST_ROWS
    }
    return Quality(worst, slices, further)
