"""Do the data stand for those that the model will serve?"""

from __future__ import annotations

from typing import Any

from pipeline.results import Evidence, Result


def declared_representative(evidence: Evidence) -> Result:
    """Passing proves that nobody who knows the data said that they do not stand for the population."""
    said = evidence["representative"]["declared"]
    if said is not None:
        why = f"their owner declares these data not representative: {said}; nothing is trained on them"
        return Result("failed", False, True, why=why, cause="split_shift")
    population = "" if evidence["card"].get("population") else "; plan.population says of whom, and is left open"
    return Result("passed", True, True, why=f"nobody declared otherwise{population}")


def representative(
    evidence: Evidence, *, max_p: float, max_target_shift: float, max_feature_shift: float, max_field_shift: float,
    max_auc: float,
) -> Result:  # fmt: skip
    """Passing proves that the sides, and the field where rows of it were given, look like draws from one population.

    A distance is a share from 0 to 1 beyond chance; one above its bound counts only where chance makes so large a one
    with a probability below `max_p`. `max_auc` is how well a classifier may tell train from the field. The value is
    that of the worst answer, or the largest distance of the field, else of validation.
    """
    found = evidence["representative"]
    for split, shift in (found["targets"] or {}).items():
        if shift["distance"] > max_target_shift and shift["p"] < max_p:
            why = f"the targets of {split} are others than those of train; split anew, stratified"
            return Result("failed", shift["distance"], max_target_shift, "beyond chance", why, cause="split_shift")
    bounds = {
        "validation": (found["features"], max_feature_shift),
        "production": (found["production"], max_field_shift),
    }
    for side, (shift, bound) in bounds.items():
        far = [one for one in (shift or {"worst": []})["worst"] if one["distance"] > bound and one["p"] < max_p]
        if far:
            why = f"{side} differs from train in {_columns(far)}"
            return Result("failed", far[0]["distance"], bound, "beyond chance", why, cause="split_shift")
    field = found["production"]
    if field and field["auc"] - 3 * field["error"] > 0.5 and field["auc"] > max_auc:
        why = "a classifier tells production from train, though no feature alone does; farthest "
        why += _columns(field["worst"])
        return Result("failed", field["auc"], max_auc, "AUC", why, cause="split_shift")
    return _alike(found, max_field_shift if field else max_feature_shift)


def _alike(found: Any, bound: float) -> Result:
    """What was compared, and how far the farthest feature was."""
    field = found["production"]
    shift = field or found["features"]
    against = (
        f"{field['rows']} rows of production (AUC {field['auc']:.2f})" if field else "validation; no production rows"
    )
    why = f"train against {against}: {shift['looked_at']} of {shift['columns']} features compared"
    worst = shift["worst"][0]["distance"] if shift["worst"] else 0.0
    return Result("passed", worst, bound, "beyond chance", why)


def _columns(worst: list[Any], most: int = 3) -> str:
    return ", ".join(f"{one['column']} ({one['distance']:.2f})" for one in worst[:most])
