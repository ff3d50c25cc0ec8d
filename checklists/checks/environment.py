"""Is the training reproducible, is it recorded where results are made, and are there enough resources?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.results import Evidence, Result, counted

if TYPE_CHECKING:
    from pipeline.building.resource_estimate import TrainingCost


def seeds_fixed(evidence: Evidence) -> Result:
    """Passing proves that a master seed is fixed, from which every other seed of the run is derived."""
    seed = evidence["seed"]
    if seed is None:
        why = "no seed: add seed=1 to the command, or seed: 1 to the experiment"
        return Result("failed", None, "an integer", why=why, relation="is")
    return Result("passed", seed, "an integer", why="all other seeds derive from it", relation="is")


def deterministic_kernels(evidence: Evidence, *, max_operations: int) -> Result:
    """Passing proves that a training of this plan is bit-reproducible on its device, or that the plan allows variation.

    The value is the number of operations, forward and backward, that have no deterministic kernel there.
    """
    policy, operations = evidence["determinism"]["policy"], evidence["determinism"]["operations"]
    count, names, unit = len(operations), ", ".join(operations), "operations without a deterministic kernel"
    if policy is True and count > max_operations:
        why = f"no deterministic kernel for {names}: allow it with trainer.deterministic=warn, or use other operations"
        return Result("failed", count, max_operations, unit, why, cause="nondeterminism")
    if not count:
        why = "every operation is bit-reproducible"
        if policy is not True:
            why += f", but trainer.deterministic={str(policy).lower()} does not enforce it"
    elif policy == "warn":
        why = f"allowed to vary by trainer.deterministic=warn: {names}"
    else:
        why = f"trainer.deterministic=false does not require reproducibility, and {names} will vary"
    return Result("passed", count, max_operations if count <= max_operations else None, unit, why)


def environment_recorded(evidence: Evidence, *, required: list[str]) -> Result:
    """Passing proves that every required fact about the machine and its software is recorded."""
    environment = evidence["environment"]
    missing = [name for name in required if environment.get(name) in (None, "")]
    if missing:
        return Result("failed", len(missing), 0, "facts missing", f"not recorded: {', '.join(missing)}")
    why = f"torch {environment['torch']}, {counted(environment['threads'], 'thread')}"
    return Result("passed", len(required), len(required), "facts recorded", why, relation=">=")


def resources(evidence: Evidence, *, max_memory: float, max_disk: float, max_ratio: float) -> Result:
    """Passing proves that a step fits the memory, the records fit the disk, and the training its own time budget.

    The first two bounds are shares of what is available. The estimate of the minutes may exceed the budget up to
    `max_ratio` times, since it extrapolates from a few steps. The value is the estimated minutes, or the share that is
    too large.
    """
    cost = evidence["resources"]
    megabytes = {key: f"{cost[key] / 1e6:,.0f} MB" for key in ("memory", "disk", "disk_free")}
    # Where the system does not report its memory, only `fits` can show that a step is too large.
    memory = None if cost["available"] is None else cost["memory"] / max(cost["available"], 1)
    if cost["fits"] is not None or (memory is not None and memory > max_memory):
        available = (cost["available"] or 0) / 1e6
        why = f"a step on {cost['batch']} rows needs {megabytes['memory']} of {available:,.0f} MB"
        return Result("failed", memory, max_memory, "of memory", f"{why}; {_remedy(cost)}", cause="out_of_memory")
    disk = cost["disk"] / max(cost["disk_free"], 1)
    if disk > max_disk:
        why = f"checkpoints, history and bundle need {megabytes['disk']}, of {megabytes['disk_free']} that are free"
        return Result("failed", disk, max_disk, "of disk", f"{why}; run.root=DIR on another disk")
    minutes, budget = cost["minutes"], cost["max_minutes"]
    if minutes > max_ratio * budget:
        fitting = max(1, math.floor(cost["steps"] * budget / minutes))
        why = f"about {minutes:.2g} minutes for {cost['steps']:,} steps, but training is stopped after {budget:g}"
        why += f"; trainer.max_minutes={math.ceil(1.5 * minutes)}, or trainer.max_steps={fitting}"
        return Result("failed", minutes, max_ratio * budget, "minutes", why)
    why = f"{megabytes['memory']} of memory, {megabytes['disk']} of disk, {cost['steps']:,} steps in about "
    why += f"{60 * minutes:.1g} s" if minutes < 1 else f"{minutes:.2g} minutes"
    why += f"; the estimate may be {max_ratio:g} times trainer.max_minutes={budget:g}"
    why += "; training may be stopped by trainer.max_minutes" if minutes > budget else ""
    return Result("passed", minutes, max_ratio * budget, "minutes", why)


def _remedy(cost: TrainingCost) -> str:
    """The overrides with which a step fits the memory."""
    rows = cost["fits"] if cost["fits"] is not None else cost["batch"] // 2
    if not rows:
        return "use a smaller model, or trainer.precision=bf16-mixed"
    return f"loader.batch_size={rows} trainer.accumulate_grad_batches={math.ceil(cost['batch'] / rows)}"
