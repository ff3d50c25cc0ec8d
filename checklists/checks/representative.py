"""Do the data represent what the model will be used on?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.results import Evidence, Result

if TYPE_CHECKING:
    from pipeline.data.analysis.representative import ColumnShift, FeatureShift, Representativeness


SHIFT = "largest shift in excess of chance"  # of a distribution, a distance from 0 to 1


def declared_representative(evidence: Evidence) -> Result:
    """Passing proves that the owner did not declare the data unrepresentative of the population."""
    reason = evidence["representative"]["declared"]
    if reason is not None:
        why = f"their owner declares these data not representative: {reason}; nothing is trained on them"
        return Result("failed", why=why, cause="split_shift")
    population = "" if evidence["card"].get("population") else "; plan.population is not declared"
    return Result("passed", why=f"no objection declared{population}")


def distributions_match(
    evidence: Evidence,
    *,
    max_p_value: float,
    max_target_shift: float,
    max_feature_shift: float,
    max_production_shift: float,
    max_auc: float,
) -> Result:
    """Passing proves that the splits, and production data if given, look like samples of one population.

    A distance is a share from 0 to 1 in excess of chance; one above its bound counts only if its p-value is below
    `max_p_value`. `max_auc` bounds the area under the ROC curve of a classifier between train and production data. The
    value is that of the answer that failed, or the largest distance of production data, else of validation.
    """
    measured: Representativeness = evidence["representative"]
    for split, shift in (measured["targets"] or {}).items():
        if shift["distance"] > max_target_shift and shift["p_value"] < max_p_value:
            why = f"the targets of {split} differ in distribution from those of train; split again, stratified"
            return Result("failed", shift["distance"], max_target_shift, SHIFT, why, cause="split_shift")
    production = measured["production"]
    reference = "validation" if measured["augmented"] else "train"
    # A distance must be large and not explained by chance: in large data any trifle is significant, in small data
    # large distances occur by chance.
    bounds: list[tuple[str, FeatureShift | None, float]] = [
        ("validation", measured["features"], max_feature_shift),
        ("production", production, max_production_shift),
    ]
    for name, features, bound in bounds:
        worst = [] if features is None else features["worst"]
        shifted = [column for column in worst if column["distance"] > bound and column["p_value"] < max_p_value]
        if shifted:
            why = f"{name} differs from {reference} in {_format_columns(shifted)}"
            return Result("failed", shifted[0]["distance"], bound, SHIFT, why, cause="split_shift")
    # Three standard errors above 0.5: the classifier does better than chance allows.
    if production and production["auc"] - 3 * production["standard_error"] > 0.5 and production["auc"] > max_auc:
        why = f"a classifier distinguishes production from {reference}, though no single feature does; largest shifts: "
        why += _format_columns(production["worst"])
        return Result("failed", production["auc"], max_auc, "AUC", why, cause="split_shift")
    features = production or measured["features"]
    if features is None:
        why = "not compared with validation: the Dataset of train changes its rows each time they are read"
        return Result("passed", why=why)
    against = "validation"
    if production:
        against = f"{production['rows']} rows of production (AUC {production['auc']:.2f})"
    why = f"{reference} against {against}, {features['compared']} of {features['columns']} features compared"
    why += "" if production else "; no production data given"
    largest, bound = features["worst"][0]["distance"] if features["worst"] else 0.0, max_feature_shift
    return Result("passed", largest, max_production_shift if production else bound, SHIFT, why)


def _format_columns(worst: list[ColumnShift], most: int = 3) -> str:
    return ", ".join(f"{column['column']} ({column['distance']:.2f})" for column in worst[:most])
