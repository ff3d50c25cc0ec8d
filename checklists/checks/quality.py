"""Are the values fit to be trained on, and are the candidate's predictions good enough to be released?"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from checklists.checks.data import format_list
from pipeline.results import Evidence, Result

if TYPE_CHECKING:
    from pipeline.data.analysis.quality import Nonfinite, Quality
    from pipeline.readiness.comparison import Comparison
    from pipeline.readiness.generalization import GeneralizationGap
    from pipeline.readiness.on_test import BaselineComparison
    from pipeline.readiness.reliability import Reliability
    from pipeline.readiness.slices import Slices, SliceScore


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
    all others. Constant features and those that repeat another one, duplicate rows (first of all if more than a share
    of `many_duplicates`) and the scale of targets are only reported. The value is the largest distance.
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
    repeated = quality.get("repeated_features")  # plans of earlier versions do not have it
    if repeated and repeated["count"]:
        copies = format_list(entry["equation"] for entry in repeated["first"])
        notes.append(f"features that repeat another one: {repeated['count']} ({copies})")
    if duplicates:
        notes.append(f"duplicate rows: {', '.join(f'{count} in {split}' for split, count in duplicates.items())}")
    std = constant["targets_std"]
    # Up to a factor of ten from unit scale, the default learning rates of the optimizers still fit.
    if std is not None and not 0.1 <= float(std) <= 10 and not evidence["treatments"]["target_scale"]:
        notes.append(f"targets spread by {float(std):.3g} (targets_not_scaled: preprocess.targets=standardize)")
    return notes


def generalization_gap(evidence: Evidence, *, max_gap: float, max_unbounded_gap: float | None) -> Result:
    """Passing proves that train rows, in eval mode, score at most this much better than as many validation rows.

    `max_gap` bounds metrics whose best value is 1; `max_unbounded_gap`, in the unit of the metric, all others. A gap
    that exceeds its bound by no more than the 95 % interval of validation is inconclusive.
    """
    measured: GeneralizationGap = evidence["generalization_gap"]
    bound = max_gap if measured["bounded"] else max_unbounded_gap
    test, gap = float(str(evidence["test_score"]["value"])), measured["gap"]
    sign = 1 if measured["greater_is_better"] else -1
    why = f"{measured['metric']} {measured['train']:.4g} on {measured['train_rows']} train rows, {measured['val']:.4g} "
    why += f"on {measured['val_rows']} of validation; validation less test: {sign * (measured['val'] - test):+.3g}"
    unit = f"{measured['metric']} by which train is better"
    if bound is None:
        why += "; no bound is declared: add plan.margins.slice=NUMBER with phase=planning"
        return Result("inconclusive", gap, None, unit, why)
    if not math.isfinite(gap):
        return Result("failed", gap, bound, unit, why)
    if gap <= bound:
        return Result("passed", gap, bound, unit, why)
    if measured["gap_low"] <= bound:
        why += "; the interval of so few validation rows allows a smaller gap"
        return Result("inconclusive", gap, bound, unit, why, acceptable="small_sample")
    return Result("failed", gap, bound, unit, why, cause="overfitting")


def beats_baseline(evidence: Evidence, *, margin: float | None) -> Result:
    """Passing proves that the model is better than a constant prediction, and not inferior to simple models.

    Both are one-sided 95 % bounds of paired differences on test rows: above 0 for the constant, and above -`margin` for
    every simple model. The value is the lowest of these bounds.
    """
    measured: BaselineComparison = evidence["beats_baseline"]
    name, trivial = measured["metric"], measured["trivial"]
    unit = f"{name} by which the model is better (95 % bound)"
    if trivial is None:
        weak = _untrained(measured, evidence)
        if weak is not None:
            return weak
        why = f"{name} {measured['value']:.4g}, {measured['untrained']:.4g} before the first step"
    else:
        why = f"{name} {measured['value']:.4g}; {trivial['how']}: {trivial['value']:.4g}"
        if not trivial["difference"] > 0:
            why += "; a constant prediction is as good"
            return Result("failed", trivial["difference"], 0, f"{name} above the constant", why, relation=">=")
        if trivial["bound"] is None or trivial["bound"] <= 0:
            why += f"; {trivial['method']}: the difference may be chance"
            return Result("inconclusive", trivial["bound"], 0, unit, why, relation=">=", acceptable="small_sample")
    if not measured["models"]:
        why += f"; no simple model: {'; '.join(measured['not_fitted'].values()) or 'none is known'}"
        bound = trivial["bound"] if trivial else None
        return Result("passed", bound, 0 if trivial else None, unit, why, relation=">=")
    worst = min(measured["models"], key=lambda model: -math.inf if model["bound"] is None else model["bound"])
    why += "; " + "; ".join(_format_comparison(model, margin) for model in measured["models"])
    if margin is None:
        why += "; no margin is declared: add plan.margins.regression=NUMBER with phase=planning"
        return Result("inconclusive", worst["bound"], None, unit, why)
    if worst["bound"] is not None and worst["bound"] > -margin:
        return Result("passed", worst["bound"], -margin, unit, why, relation=">=")
    if not worst["difference"] >= -margin:
        why += f"; {worst['name']} beats the model: release it instead, or improve the model"
        return Result("failed", worst["difference"], -margin, f"{name} above {worst['name']}", why, relation=">=")
    why += f"; so few rows do not exclude that {worst['name']} is better by more than the margin"
    return Result("inconclusive", worst["bound"], -margin, unit, why, relation=">=", acceptable="small_sample")


def _untrained(measured: BaselineComparison, evidence: Evidence) -> Result | None:
    """Return what is wrong with a model for which no constant is known: it is not better than before its training."""
    value, before = measured["value"], measured["untrained"]
    unit = measured["metric"]
    if before is None or not math.isfinite(before):
        return Result("inconclusive", value, before, unit, "there is nothing that the model can be compared with")
    greater = measured["greater_is_better"]
    if (value <= before if greater else value >= before) or not math.isfinite(value):
        why = f"{unit} {value:.4g} is not better than {before:.4g} before the first step"
        return Result("failed", value, before, unit, why, relation=">=" if greater else "<=")
    end = float(str(evidence["test_score"]["low" if greater else "high"]))
    if end <= before if greater else end >= before:
        why = f"{before:.4g} before the first step lies inside the 95 % interval of {unit} {value:.4g}"
        return Result("inconclusive", value, before, unit, why, acceptable="small_sample")
    return None


def _format_comparison(model: Comparison, margin: float | None) -> str:
    """Return `ridge 54.2 (difference +1.3, bound -0.4): as good`."""
    bound = model["bound"]
    verdict = "worse" if bound is not None and bound > 0 else "as good"
    verdict = "better" if not model["difference"] >= -(margin or 0.0) else verdict
    text = f"{model['name']} {model['value']:.4g} (difference {model['difference']:+.3g}"
    return f"{text}, {'no bound' if bound is None else f'bound {bound:+.3g}'}): {verdict}"


def calibrated(
    evidence: Evidence, *, max_error: float, min_p_value: float, coverage: list[float], min_rows: int
) -> Result:
    """Passing proves that predicted probabilities, or the 90 % intervals of values, hold on test rows.

    The expected calibration error is at most `max_error`, or as large as labels drawn from the model's own
    probabilities would give (p-value above `min_p_value`). The exact interval of the coverage overlaps `coverage`.
    """
    measured: Reliability = evidence["calibration"]
    rows, error, share = measured["rows"], measured["error"], measured["coverage"]
    if measured["reason"] == "not_finite":
        return Result("failed", why=measured["why"])
    if measured["reason"] == "few_rows":
        return Result("inconclusive", why=measured["why"], acceptable="small_sample")
    if error is None and share is None:
        return Result("not_applicable", why=measured["why"] or "nothing was fitted")
    few = f"; fewer than {min_rows} test rows show little"
    if share is not None:
        low, high = float(measured["coverage_low"] or 0), float(measured["coverage_high"] or 0)
        why = f"intervals of ±{measured['half_width']:.4g} contain {share:.1%} of {rows} test rows "
        why += f"(95 % interval {low:.1%} to {high:.1%}), of which {coverage[0]:.0%} to {coverage[1]:.0%} are expected"
        if low > coverage[1] or high < coverage[0]:
            bound, above = (coverage[1], True) if low > coverage[1] else (coverage[0], False)
            return Result("failed", share, bound, "coverage", why, relation="<=" if above else ">=")
        if rows < min_rows:
            return Result("inconclusive", share, coverage[0], "coverage", why + few, acceptable="small_sample")
        return Result("passed", share, coverage[0], "coverage", why, relation=">=" if share >= coverage[0] else "is")
    assert error is not None
    p_value, unit = float(measured["p_value"] or 0), "expected calibration error"
    why = f"temperature {measured['temperature']:.3g} (before: {measured['error_before']:.3g}), {rows} test rows, "
    why += f"Brier score {measured['brier_score']:.3g}; "
    why += f"labels drawn from its own probabilities give as much in {p_value:.1%} of cases"
    if not math.isfinite(error):
        return Result("failed", error, max_error, unit, why)
    if rows < min_rows:
        return Result("inconclusive", error, max_error, unit, why + few, acceptable="small_sample")
    if error <= max_error:
        return Result("passed", error, max_error, unit, why)
    if p_value > min_p_value:
        return Result("passed", p_value, min_p_value, f"p-value of {unit} {error:.3g}", why, relation=">=")
    return Result("failed", error, max_error, unit, why, cause="overfitting")


def slices_hold(evidence: Evidence, *, margin: float | None, level: float, min_power: float, reliable: int) -> Result:
    """Passing proves that no class, declared slice or quarter of the predictions scores far below all test rows.

    The floor is the score on all rows less `margin`; classes are compared by recall. A slice whose interval is so wide
    that a shortfall of `margin` would be found with a probability below `min_power` (one-sided `level`) is
    inconclusive; one without an interval if it has fewer than `reliable` rows. The value is that of the worst slice.
    """
    measured: Slices = evidence["slices"]
    judged = [s for s in measured["scores"] if s["of"] != "targets"]
    if not judged:
        why = measured["why"] or "the task has no classes, and data.slices declares none"
        return Result("not_applicable", why=why)
    notes = _slice_notes(measured)
    if margin is None:
        why = f"no margin is declared: add plan.margins.slice=NUMBER with phase=planning; {notes}"
        return Result("inconclusive", why=why)
    states: dict[str, list[tuple[float, SliceScore]]] = {"failed": [], "inconclusive": [], "passed": []}
    for score in judged:
        above = _above_floor(measured, score, margin)
        states[_slice_state(score, above, margin, level, min_power, reliable)].append((above, score))
    for outcome in ("failed", "inconclusive", "passed"):
        if not states[outcome]:
            continue
        above, worst = min(states[outcome], key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0])
        greater = measured["greater_is_better"] or worst["of"] == "class"
        floor = worst["value"] - above if greater else worst["value"] + above
        why = f"{'worst slice: ' if outcome == 'passed' else ''}{_format_slice(worst)}"
        if outcome == "inconclusive":
            names = [score["name"] for _, score in states[outcome]]
            why = f"too few rows to find a shortfall of {margin:g} in {format_list(names)}; {why}"
        why += f"; {notes}" if notes else ""
        relation: Literal[">=", "<="] = ">=" if greater else "<="
        if outcome == "inconclusive":
            value, unit = worst["value"], worst["metric"]
            return Result("inconclusive", value, floor, unit, why, relation=relation, acceptable="small_sample")
        return Result(outcome, worst["value"], floor, worst["metric"], why, relation=relation)  # type: ignore[arg-type]
    raise AssertionError("every slice has a state")


def _above_floor(measured: Slices, score: SliceScore, margin: float) -> float:
    """Return by how much a slice is better than its floor."""
    if score["of"] == "class":
        return score["value"] - (float(measured["recall"] or 0) - margin)
    sign = 1 if measured["greater_is_better"] else -1
    return sign * (score["value"] - measured["value"]) + margin


def _slice_state(
    score: SliceScore, above: float, margin: float, level: float, min_power: float, reliable: int
) -> Literal["failed", "inconclusive", "passed"]:
    if not math.isfinite(above):
        return "inconclusive"
    width = score["high"] - score["low"]
    if math.isnan(width):
        return "inconclusive" if score["rows"] < reliable else "passed" if above >= 0 else "failed"
    normal = NormalDist()
    error = width / (2 * normal.inv_cdf(0.975))
    power = normal.cdf(margin / error - normal.inv_cdf(1 - level)) if error > 0 else 1.0
    # The better end of its interval, on the side that speaks for the slice.
    best = max(abs(score["high"] - score["value"]), abs(score["value"] - score["low"]))
    if above + best < 0:
        return "failed"
    if power < min_power:
        return "inconclusive"
    return "passed" if above >= 0 else "failed"


def _format_slice(score: SliceScore) -> str:
    interval = "" if math.isnan(score["low"]) else f", 95 % interval {score['low']:.3g} to {score['high']:.3g}"
    return f"{score['of'] if score['of'] == 'class' else 'slice'} {score['name']}: {score['metric']} " + (
        f"{score['value']:.3g} on {score['rows']} rows{interval}"
    )


def _slice_notes(measured: Slices) -> str:
    """Return the most confused pair, the largest gap inside a declared attribute, and the worst quarter of targets."""
    notes = list[str]()
    if measured["worst_pairs"]:
        pair = measured["worst_pairs"][0]
        notes.append(f"most confused: {pair['true']} as {pair['predicted']} ({pair['count']} rows)")
    attributes: dict[str, list[SliceScore]] = {}
    for score in measured["scores"]:
        if score["of"] == "declared" and math.isfinite(score["value"]):
            attributes.setdefault(score["name"].split("=")[0], []).append(score)
    gaps = {
        name: max(s["value"] for s in scores) - min(s["value"] for s in scores)
        for name, scores in attributes.items()
        if len(scores) > 1
    }
    if gaps:
        name = max(gaps, key=lambda attribute: gaps[attribute])
        notes.append(f"largest gap within an attribute: {name} {gaps[name]:.3g}")
    outcomes = [score for score in measured["scores"] if score["of"] == "targets" and math.isfinite(score["value"])]
    if outcomes:
        choose = min if measured["greater_is_better"] else max
        worst = choose(outcomes, key=lambda score: score["value"])
        notes.append(f"only reported: {worst['name']}, {worst['metric']} {worst['value']:.3g}")
    return "; ".join(notes)
