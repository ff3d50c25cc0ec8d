"""Do the data represent what the model will be used on?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.results import Evidence, Result

if TYPE_CHECKING:
    from pipeline.data.analysis.representative import ColumnShift, FeatureShift, Representativeness
    from pipeline.readiness.population import Population


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


def population_covered(
    evidence: Evidence,
    *,
    min_class_rows: int,
    max_p_value: float,
    max_target_shift: float,
    max_feature_shift: float,
    max_production_shift: float,
    max_auc: float,
) -> Result:
    """Passing proves that no class or declared slice is absent, and that the splits and production data are alike.

    Distances are those of `distributions_match`, here of test rows too. Without rows from production the result rests
    on the owner's description of the population. The value is that of the answer that failed, else the largest distance
    of production data or of validation.
    """
    measured: Population = evidence["population_covered"]
    bounds = {"max_target_shift": max_target_shift, "max_feature_shift": max_feature_shift, "max_auc": max_auc}
    about = Evidence({"representative": measured["representative"], "card": {"population": measured["population"]}})
    declared = declared_representative(about)
    if declared.outcome == "failed":
        return replace(declared, basis="attested")
    support = {**measured["classes"], **{f"slice {name}": rows for name, rows in measured["slices"].items()}}
    absent = [f"{name} in {split}" for name, rows in support.items() for split, n in rows.items() if not n]
    if absent:
        why = f"no rows of {', '.join(absent[:3])}: nothing about them can be measured"
        return Result("failed", len(absent), 0, "classes and slices without rows", why, cause="split_shift")
    alike = distributions_match(about, max_p_value=max_p_value, max_production_shift=max_production_shift, **bounds)
    if alike.outcome != "passed":
        return alike
    pairs = (("features", max_feature_shift), ("targets", max_target_shift))
    for what, bound in pairs:
        shift = measured["test"][what]  # type: ignore[literal-required]
        worst = [] if shift is None else shift["worst"]
        shifted = [column for column in worst if column["distance"] > bound and column["p_value"] < max_p_value]
        if shifted:
            why = f"test differs from train in {_format_columns(shifted)}"
            return Result("failed", shifted[0]["distance"], bound, SHIFT, why, cause="split_shift")
    fewest = min(((n, name, split) for name, rows in support.items() for split, n in rows.items()), default=None)
    why = alike.why + ("" if fewest is None else f"; fewest rows: {fewest[0]} of {fewest[1]} in {fewest[2]}")
    if fewest is not None and fewest[0] < min_class_rows:
        unit = "rows of the rarest class or slice"
        return Result("inconclusive", fewest[0], min_class_rows, unit, why, relation=">=", acceptable="small_sample")
    if measured["representative"]["production"] is not None:
        return replace(alike, why=why)
    if not measured["population"]:
        why += "; whom they represent is not declared: add plan.population=TEXT with phase=planning"
        return replace(alike, outcome="inconclusive", why=why, acceptable="not_audited")
    return replace(alike, why=f"{why}; that they represent the population is the owner's declaration", basis="attested")


def _format_columns(worst: list[ColumnShift], most: int = 3) -> str:
    return ", ".join(f"{column['column']} ({column['distance']:.2f})" for column in worst[:most])
