"""Measure what a change must not make worse: the worst class and slice, latency and size, before and after it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.adoption.acceptance import Guard
from pipeline.trials.executor import Trial
from pipeline.trials.fix_report import class_results, performance

WORST_CLASS, LATENCY, SIZE = "recall of the worst class", "latency in ms", "size in MB"
BYTES = 4  # of a parameter in single precision
FEWEST_ROWS = 5  # of a class, fewer say nothing of its recall


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
    guards = list[Guard]()
    classes = [worst_recalls(run_dir, arm, planned, trust) for arm in (before, after)]
    if any(map(math.isfinite, classes[1])):
        why = "plan.margins.slice is not declared"
        guards.append(_guard(WORST_CLASS, *classes, margin=margins.get("slice"), limit=None, why=why))
    figures = [_figures(run_dir, arm, planned, trust) for arm in (before, after)]
    for what, key, bound in ((LATENCY, "inference_ms", "latency_ms_p99"), (SIZE, "size_mb", "size_mb")):
        values = [[figure[key]] if key in figure else [math.nan] for figure in figures]
        if math.isfinite(values[1][0]):
            why = f"plan.limits.{bound} is not declared"
            guards.append(_guard(what, *values, margin=None, limit=limits.get(bound), why=why))
    return guards


def _guard(
    what: str, before: list[float], after: list[float], *, margin: float | None, limit: float | None, why: str
) -> Guard:
    guard: Guard = {"what": what, "before": before, "after": after, "margin": margin, "limit": limit}
    return guard if margin is not None or limit is not None else {**guard, "why": why}


def _figures(run_dir: Path, arm: Sequence[Trial], planned: Mapping[str, Any], trust: Sequence[str]) -> dict[str, float]:
    """Return latency and size of the first model of an arm that was trained to its end; nothing without one."""
    for trial in arm:
        if trial.result.get("checkpoint"):
            figures = performance(run_dir, trial, trial.job.config(planned), trust)
            return {**figures, "size_mb": BYTES * figures["params"] / 1e6} if "params" in figures else figures
    return {}


def worst_recalls(run_dir: Path, arm: Sequence[Trial], planned: Mapping[str, Any], trust: Sequence[str]) -> list[float]:
    """Return the lowest recall of a class on validation rows for each training of an arm.

    It is NaN for a dead training and for a task without classes.
    """
    from pipeline.data.load import load

    alive = [trial for trial in arm if trial.result.get("checkpoint")]
    if not alive:
        return [math.nan] * len(arm)
    config = alive[0].job.config(planned)  # the trainings of an arm differ in their seed alone
    data = load(config, trust)
    reports = {trial.id: class_results(run_dir, trial, config, trust, data) for trial in alive}
    lowest = []
    for trial in arm:
        rows = reports[trial.id]["per_class"] if trial.id in reports else []
        recalls = [float(row["recall"]) for row in rows if row["support"] >= FEWEST_ROWS]
        lowest.append(min(filter(math.isfinite, recalls), default=math.nan))
    return lowest
