"""Is it declared what success means?"""

from __future__ import annotations

from pipeline.results import Evidence, Result


def metric_and_target(evidence: Evidence) -> Result:
    """Passing proves that a metric with a known direction and a number to reach were declared before training."""
    metric, target = evidence["metric"], evidence["target"]
    if target is None:
        return Result("failed", None, "a number", relation="is", why=f"no target for {metric}: add task.target=NUMBER")
    direction = "at least" if evidence["greater_is_better"] else "at most"
    return Result("passed", target, unit=metric, why=f"attested by {evidence['owner']}: {metric} {direction} {target}")


def problem_card(evidence: Evidence, *, required: list[str], recommended: list[str]) -> Result:
    """Passing proves that the owner declared every field of `required`; missing fields of `recommended` are named.

    A declared field counts as attested, since it is not measured. The value is the number of declared fields of
    `required`.
    """
    card = evidence["card"]
    missing, also_missing = ([name for name in names if not card.get(name)] for names in (required, recommended))
    declared, unit = len(required) - len(missing), "fields"
    if missing:
        add = " ".join(_format_override(name) for name in missing)
        why = f"not declared: {', '.join([*missing, *also_missing])}; add at least {add} with phase=planning"
        return Result("failed", declared, len(required), unit, why, relation=">=")
    why = f"attested by {evidence['owner']}; "
    why += f"{len(recommended) - len(also_missing)} of {len(recommended)} recommended fields"
    why += f"; not declared, but required by the last gate: {', '.join(also_missing)}" if also_missing else ""
    return Result("passed", declared, len(required), unit, why, relation=">=")


def _format_override(name: str) -> str:
    """The override that declares a field."""
    forms = {
        "assumptions": "'plan.assumptions=[...]'",
        "risks": "'plan.risks=[...]'",
        "limits": "plan.limits.size_mb=100",
    }
    return forms.get(name, f"plan.{name}=...")
