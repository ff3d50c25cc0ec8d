"""Is it said what success means?"""

from __future__ import annotations

from pipeline.records import Evidence, Result


def metric_and_target(evidence: Evidence) -> Result:
    """Passing proves that a metric with a known direction and a number to reach were declared before training."""
    metric, target = evidence["metric"], evidence["target"]
    if target is None:
        return Result("failed", None, "a number", why=f"no target for {metric}: add task.target=NUMBER")
    direction = "at least" if evidence["greater_is_better"] else "at most"
    return Result("passed", target, unit=metric, why=f"attested by {evidence['owner']}: {metric} {direction} {target}")
