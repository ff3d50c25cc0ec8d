"""Are the values fit to be trained on?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from checklists.checks.data import format_list
from pipeline.results import Evidence, Result

if TYPE_CHECKING:
    from pipeline.data.analysis.quality import Nonfinite, Quality


def data_finite(evidence: Evidence, *, max_rows: int) -> Result:
    """Passing proves that at most `max_rows` rows of train or validation have a missing or infinite value.

    Missing features pass if the model as built gave finite outputs for such rows; infinite features and targets, and
    missing targets, do not. The value is the number of rows.
    """
    measured: dict[str, Nonfinite] = evidence["quality"]["nonfinite"]
    worst = max(measured, key=lambda split: measured[split]["rows"])
    counts = measured[worst]
    rows = counts["rows"]
    if not rows:
        return Result("passed", 0, max_rows, "rows", "every value of train and validation is finite")
    where = f"{worst} rows {format_list(counts['first_rows'])} in {format_list(counts['columns'])}"
    why = f"{counts['missing']} missing and {counts['infinite']} infinite values: {where}"
    # Imputation fills NaN; an infinite value is a fault of the data, and a missing target cannot be learned.
    treatable = not any(split["infinite"] or split["in_targets"] for split in measured.values())
    if treatable and evidence["treatments"]["missing_values"]:
        return Result("passed", rows, None, "rows", f"{why}; the model gives finite outputs for such rows")
    if rows > max_rows:
        do = "preprocess.impute=median, or remove the rows" if treatable else "remove or correct the rows"
        return Result("failed", rows, max_rows, "rows", f"{why}; {do}", cause="nonfinite_inputs")
    return Result("passed", rows, max_rows, "rows", why)


def values_plausible(
    evidence: Evidence,
    *,
    max_distance: float,
    max_row_share: float,
    max_weight: float,
    min_gap: float,
    many_duplicates: float,
) -> Result:
    """Passing proves that features and targets vary, and that no column is dominated by a few of its rows.

    A column is dominated if its farthest row is more than `max_distance` usual distances from the median, and at most
    `max_row_share` of the rows have more than `max_weight` of the squared distances and are `min_gap` times as far as
    all others. Constant features, duplicate rows (first of all if more than a share of `many_duplicates`) and the scale
    of targets are only reported. The value is the largest distance.
    """
    quality: Quality = evidence["quality"]
    constant = quality["constant"]
    if constant["targets"]:
        why = f"every train row has the same target: {format_list(constant['targets'])}"
        return Result("failed", len(constant["targets"]), 0, "targets", why, cause="inputs_uninformative")
    if constant["features"] and constant["count"] == constant["features"]:
        why, bound = "no feature is informative: each has one value in all train rows", constant["features"] - 1
        return Result("failed", constant["count"], bound, "constant features", why, cause="inputs_uninformative")
    # Outliers of validation count too: they dominate its loss, by which checkpoints are chosen.
    columns = [(split, outlier) for split, outliers in quality["outliers"].items() for outlier in outliers]
    dominated = [
        (split, outlier)
        for split, outlier in columns
        if outlier["distance"] > max_distance
        and outlier["share"] <= max_row_share
        and outlier["weight"] > max_weight
        and outlier["gap"] >= min_gap
    ]
    if dominated:
        split, worst = max(dominated, key=lambda column: column[1]["distance"])
        why = f"{worst['column']}: {split} rows {format_list(worst['first_rows'])} have {worst['weight']:.0%} of all "
        why += "squared distances from the median; clip, correct or remove them"
        return Result("failed", worst["distance"], max_distance, "robust standard deviations", why, cause="outliers")
    largest = max((outlier["distance"] for _, outlier in columns), default=0.0)
    why = "; ".join(_notes(evidence, many_duplicates)) or "all columns vary"
    return Result("passed", largest, max_distance, "robust standard deviations", why)


def _notes(evidence: Evidence, many_duplicates: float) -> list[str]:
    """What is worth knowing but does not close the gate."""
    quality: Quality = evidence["quality"]
    rows, constant, notes = evidence["rows"], quality["constant"], list[str]()
    duplicates = {split: count for split, count in quality["duplicates"].items() if count}
    many = [f"{s} {count / rows[s]:.0%}" for s, count in duplicates.items() if count > many_duplicates * rows[s]]
    if many:
        notes.append(f"many rows are duplicates, which gives them more weight: {', '.join(many)}")
    if constant["count"]:
        notes.append(f"{constant['count']} constant features ({format_list(constant['columns'])})")
    if duplicates:
        notes.append(f"duplicate rows: {', '.join(f'{count} in {split}' for split, count in duplicates.items())}")
    std = constant["targets_std"]
    # Up to a factor of ten from unit scale, the default learning rates of the optimizers still fit.
    if std is not None and not 0.1 <= float(std) <= 10 and not evidence["treatments"]["target_scale"]:
        notes.append(f"targets spread by {float(std):.3g} (targets_not_scaled: preprocess.targets=standardize)")
    return notes
