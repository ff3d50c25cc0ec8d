"""Is chance under control, is it known where the figures were made, and is there room to make them?"""

from __future__ import annotations

import math
from typing import Any

from pipeline.results import Evidence, Result


def seeds_fixed(evidence: Evidence) -> Result:
    """Passing proves that one master seed is fixed, from which every other seed of the run is derived."""
    seed = evidence["seed"]
    if seed is None:
        return Result(
            "failed", None, "an integer", why="no seed: add seed=1 to the command, or seed: 1 to the experiment"
        )
    return Result("passed", seed, "an integer", why="all other seeds derive from it")


def deterministic_kernels(evidence: Evidence, *, max_operations: int) -> Result:
    """Passing proves that a training of this plan repeats to the bit on its device, or that the plan says it may not.

    The value is the number of operations, forward and backward, that have no deterministic kernel there.
    """
    policy, named = evidence["determinism"]["policy"], evidence["determinism"]["operations"]
    count, which = len(named), ", ".join(named)
    if policy is True and count > max_operations:
        why = f"no deterministic kernel for {which}: allow it with trainer.deterministic=warn, or use other operations"
        return Result("failed", count, max_operations, "operations", why, cause="nondeterminism")
    if not count:
        why = "every operation repeats to the bit"
        if policy is not True:
            why += f", and with trainer.deterministic={str(policy).lower()} nothing holds it to that"
    elif policy == "warn":
        why = f"allowed to vary by trainer.deterministic=warn: {which}"
    else:
        why = f"trainer.deterministic=false promises nothing, and {which} will vary"
    return Result("passed", count, max_operations, "operations", why)


def environment_recorded(evidence: Evidence, *, needs: list[str]) -> Result:
    """Passing proves that every named fact about the machine and its software is on record."""
    environment = evidence["environment"]
    missing = [name for name in needs if environment.get(name) in (None, "")]
    if missing:
        return Result("failed", len(missing), 0, "facts", f"not recorded: {', '.join(missing)}")
    return Result(
        "passed", len(needs), len(needs), "facts", f"torch {environment['torch']}, {environment['threads']} thread(s)"
    )


def resources(evidence: Evidence, *, max_memory: float, max_disk: float, max_ratio: float) -> Result:
    """Passing proves that a step fits the memory, the records fit the disk, and the training its own time budget.

    The first two as shares of what there is; the last may be predicted to take up to `max_ratio` times its minutes,
    since a prediction from a few steps is rough. The value is the predicted minutes, or the share that is too large.
    """
    found = evidence["resources"]
    megabytes = {key: f"{found[key] / 1e6:,.0f} MB" for key in ("memory", "disk", "disk_free")}
    memory = None if found["available"] is None else found["memory"] / max(found["available"], 1)
    if found["fits"] is not None or (memory is not None and memory > max_memory):
        why = (
            f"a step on {found['batch']} rows takes {megabytes['memory']}, of {(found['available'] or 0) / 1e6:,.0f} MB"
        )
        return Result("failed", memory, max_memory, "of memory", f"{why}; {_smaller(found)}", cause="out_of_memory")
    disk = found["disk"] / max(found["disk_free"], 1)
    if disk > max_disk:
        why = f"checkpoints, history and bundle take {megabytes['disk']}, of {megabytes['disk_free']} that are free"
        return Result("failed", disk, max_disk, "of disk", f"{why}; run.root=DIR on another disk")
    minutes, budget = found["minutes"], found["max_minutes"]
    if minutes > max_ratio * budget:
        fitting = max(1, math.floor(found["steps"] * budget / minutes))
        why = f"about {minutes:.2g} minutes for {found['steps']:,} steps, which the clock ends after {budget:g}"
        why += f"; trainer.max_minutes={math.ceil(1.5 * minutes)}, or trainer.max_steps={fitting}"
        return Result("failed", minutes, max_ratio * budget, "minutes", why)
    why = f"{megabytes['memory']} of memory, {megabytes['disk']} of disk, {found['steps']:,} steps"
    why += "; it may be ended by the clock, which trainer.max_minutes sets" if minutes > budget else ""
    return Result("passed", minutes, max_ratio * budget, "minutes", why)


def _smaller(found: dict[str, Any]) -> str:
    """The override under which a step fits."""
    rows = found["fits"] if found["fits"] is not None else found["batch"] // 2
    if not rows:
        return "take a smaller model, or trainer.precision=bf16-mixed"
    return f"loader.batch_size={rows} trainer.accumulate_grad_batches={math.ceil(found['batch'] / rows)}"
