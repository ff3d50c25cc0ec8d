"""Is it said what success means?"""

from __future__ import annotations

from pipeline.results import Evidence, Result


def metric_and_target(evidence: Evidence) -> Result:
    """Passing proves that a metric with a known direction and a number to reach were declared before training."""
    metric, target = evidence["metric"], evidence["target"]
    if target is None:
        return Result("failed", None, "a number", why=f"no target for {metric}: add task.target=NUMBER")
    direction = "at least" if evidence["greater_is_better"] else "at most"
    return Result("passed", target, unit=metric, why=f"attested by {evidence['owner']}: {metric} {direction} {target}")


def problem_card(evidence: Evidence, *, must: list[str], should: list[str]) -> Result:
    """Passing proves that the owner declared every field of `must`; those of `should` that are missing are named.

    What was declared counts as attested: nobody measured it. The value is the number of fields declared.
    """
    card = evidence["card"]
    lacking = [name for name in must if not card.get(name)]
    missing = [name for name in should if not card.get(name)]
    declared, all_of_them = len(must) + len(should) - len(lacking) - len(missing), len(must) + len(should)
    if lacking:
        add = " ".join(_typed(name) for name in lacking)
        why = f"not said: {', '.join([*lacking, *missing])}; add at least {add} with phase=planning"
        return Result("failed", declared, all_of_them, "fields", why)
    why = f"attested by {evidence['owner']}"
    why += f"; not said, and asked for by the last gate: {', '.join(missing)}" if missing else ""
    return Result("passed", declared, all_of_them, "fields", why)


def _typed(name: str) -> str:
    """The words that declare a field."""
    forms = {
        "assumptions": "'plan.assumptions=[...]'",
        "risks": "'plan.risks=[...]'",
        "limits": "plan.limits.size_mb=...",
    }
    return forms.get(name, f"plan.{name}=...")
