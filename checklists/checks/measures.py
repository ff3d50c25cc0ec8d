"""Is there more beside the score: simple models as its bar, and folds that say how far it can be relied on?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.results import Evidence, Result


def baseline_models_scored(evidence: Evidence) -> Result:
    """Passing proves that every simple model was scored on the validation rows, or that it is on record why not.

    That one of them is as good as the trained model closes nothing; it is said.
    """
    models, score = evidence["baseline_models"], evidence["score"]
    silent = [one["name"] for one in models if "value" not in one and not one.get("not_applicable")]
    if silent or not models:
        why = f"neither a score nor a reason: {', '.join(silent)}" if silent else "no simple model was tried"
        return Result("failed", len(silent), 0, "models", why)
    scored = [one for one in models if "value" in one and math.isfinite(one["value"])]
    if not scored:
        return Result("not_applicable", why="; ".join(f"{one['name']}: {_reason(one)}" for one in models))
    greater = score["greater_is_better"] if score else True
    best = (max if greater else min)(scored, key=lambda one: float(one["value"]))
    told = ", ".join(f"{one['name']} {one['value']:.4g}" if one in scored else _left_out(one) for one in models)
    return Result("passed", best["value"], unit=best["metric"], why=told + _beside(best, score))


def _reason(one: Mapping[str, Any]) -> str:
    return str(one.get("not_applicable", "its score is not a number"))


def _left_out(one: Mapping[str, Any]) -> str:
    return f"{one['name']} left out ({_reason(one)})"


def _beside(best: Mapping[str, Any], score: Mapping[str, Any] | None) -> str:
    """What it means for the trained model that a simple one reaches this much."""
    if score is None:
        return "; the trained model has no score to compare"
    sign = 1 if score["greater_is_better"] else -1
    ahead, lower = sign * (best["value"] - score["value"]), score["low"] if sign > 0 else score["high"]
    if ahead > 0:
        return f"; warning: {best['name']} is better than the trained model, {score['value']:.4g}"
    if ahead == 0 or (math.isfinite(lower) and sign * (best["value"] - lower) >= 0):
        return f"; {best['name']} is as good as the trained model, {score['value']:.4g}, within its 95 % interval"
    return f"; the trained model is better, {score['value']:.4g}"


def cross_validated(evidence: Evidence, *, suspicious_spread: float, suspicious_distance: float) -> Result:
    """Passing proves that the plan was also judged on folds of its train rows, and how far these differ.

    The spread is their standard deviation, in the metric's own points or, for metrics above one, as a share of their
    mean. What is suspicious closes nothing; it is said. Not applicable where no folds can be made or afforded.
    """
    folds, score = evidence["cross_validation"], evidence["score"]
    if folds.get("not_applicable"):
        return Result("not_applicable", why=str(folds["not_applicable"]))
    mean, std = folds["mean"], folds["std"]
    if not math.isfinite(mean):
        reason = next((f": {one['why']}" for one in folds.get("folds", ()) if one.get("why")), "")
        why = f"warning: a fold of {folds['parts']} has no score{reason}"
        return Result("passed", mean, unit=folds["metric"], why=why)
    why = f"{mean:.4g} ± {std:.2g} over {folds['parts']} folds"
    if std / max(1.0, abs(mean)) > suspicious_spread:
        why += "; warning: the folds differ much, so one score on one validation side says little"
    if score and abs(score["value"] - mean) > suspicious_distance * std:
        side = "better" if (score["value"] > mean) == score["greater_is_better"] else "worse"
        why += f"; warning: validation, {score['value']:.4g}, is {side} than {suspicious_distance:.2g} spreads explain"
    return Result("passed", mean, unit=folds["metric"], why=why)
