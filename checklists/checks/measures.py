"""Checks of what the score is compared with: baseline models on the same rows, and cross-validation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pipeline.results import Evidence, Result, compare_with_score

if TYPE_CHECKING:
    from pipeline.evaluation.baseline_models import BaselineScore


def baseline_models_scored(evidence: Evidence) -> Result:
    """Passing proves that every baseline model was scored on the validation rows, or that the reason is on record.

    A baseline model that is as good as the trained model only warns.
    """
    models, score = evidence["baseline_models"], evidence["score"]
    missing = [model["name"] for model in models if "value" not in model and not model.get("not_applicable")]
    if missing or not models:
        why = f"neither a score nor a reason: {', '.join(missing)}" if missing else "no baseline model was scored"
        return Result("failed", len(missing), 0, "models", why)
    scored = [model for model in models if "value" in model and math.isfinite(model["value"])]
    if not scored:
        return Result("not_applicable", why="; ".join(f"{model['name']}: {_reason(model)}" for model in models))
    greater = score["greater_is_better"] if score else True
    best = (max if greater else min)(scored, key=lambda model: float(model["value"]))
    values = ", ".join(
        f"{model['name']} {model['value']:.4g}" if model in scored else f"{model['name']} left out ({_reason(model)})"
        for model in models
    )
    return Result("passed", best["value"], unit=best["metric"], why=values + _compared(best, evidence))


def _reason(model: BaselineScore) -> str:
    return str(model.get("not_applicable", "its score is not a number"))


def _compared(best: BaselineScore, evidence: Evidence) -> str:
    """Return how the trained model compares with the best baseline model."""
    score, value = evidence["score"], best["value"]
    if score is None:
        return "; the trained model has no score to compare"
    rank, trained = compare_with_score(value, score), f"the trained model, {score['value']:.4g}"
    if rank == "better":
        return f"; warning: {best['name']} is better than {trained}"
    if rank is None:
        return "; the score of the trained model is not a number"
    ahead = (value > score["value"]) == score["greater_is_better"] and value != score["value"]
    if rank == "as good" and ahead:
        return f"; warning: {best['name']} scores better than {trained}, but within its 95 % interval"
    if rank == "as good":
        return f"; {best['name']} is as good as {trained}, within its 95 % interval"
    return f"; the trained model is better, {score['value']:.4g}"


def cross_validated(evidence: Evidence, *, suspicious_spread: float, suspicious_distance: float) -> Result:
    """Passing proves that the plan was cross-validated on its train rows, with the spread of the folds on record.

    The spread is the standard deviation of the folds' scores: in the metric's own unit, or as a share of their mean
    for metrics above one. Suspicious values only warn. Not applicable where folds are impossible or take too long.
    """
    folds, score = evidence["cross_validation"], evidence["score"]
    if folds.get("not_applicable"):
        return Result("not_applicable", why=str(folds["not_applicable"]))
    mean, std = folds["mean"], folds["std"]
    if not math.isfinite(mean):
        reason = next((f": {fold['why']}" for fold in folds.get("folds", ()) if fold.get("why")), "")
        why = f"warning: a fold of {folds['parts']} has no score{reason}"
        return Result("passed", mean, unit=folds["metric"], why=why)
    why = f"{mean:.4g} ± {std:.2g} over {folds['parts']} folds"
    if std / max(1.0, abs(mean)) > suspicious_spread:
        why += "; warning: the folds differ much, so the score on a single validation split is uncertain"
    if score and abs(score["value"] - mean) > suspicious_distance * std:
        compared = "better" if (score["value"] > mean) == score["greater_is_better"] else "worse"
        why += (
            f"; warning: validation, {score['value']:.4g}, is {compared} than "
            f"{suspicious_distance:.2g} standard deviations explain"
        )
    return Result("passed", mean, unit=folds["metric"], why=why)
