"""Checks of the release: lineage, test score, exported formats and bundle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pipeline.results import Evidence, Outcome, Relation, Result, compared, counted, format_sample


def lineage(evidence: Evidence, *, needs: list[str]) -> Result:
    """Pass when every named origin of the model is identified by a digest or a value."""
    lineage = evidence["lineage"]
    missing = [name for name in needs if lineage.get(name) in (None, "", {}, [])]
    if missing:
        return Result("failed", len(missing), 0, "origins", f"unknown: {', '.join(missing)}")
    return Result("passed", len(needs), len(needs), "origins", ", ".join(needs), relation=">=")


def target_on_test(evidence: Evidence, *, target: float, margin: float | None) -> Result:
    """Pass when the test score reaches the target and the limit of its 95 % interval misses it by at most the margin.

    The limit is the lower one where greater is better, else the upper one. A score that reaches the target is
    inconclusive if its limit misses by more, if it has no interval, or if no margin is given.
    """
    score = evidence["test_score"]
    greater = bool(score["greater_is_better"])
    reached = score["value"] >= target if greater else score["value"] <= target
    reached = reached and math.isfinite(score["value"])
    why = f"test {score['metric']} {compared(score['value'], target, greater)}"
    end, limit = ("lower", float(str(score["low"]))) if greater else ("upper", float(str(score["high"])))
    certain = False
    if math.isnan(limit):
        why += " (target); the score has no 95 % interval"
    elif margin is None:
        why += " (target); no margin is declared: add plan.margins.target=NUMBER with phase=planning"
    else:
        least = target - margin if greater else target + margin
        certain = limit >= least if greater else limit <= least
        why += f" (target); {end} limit of its 95 % interval {compared(limit, least, greater)}"
        why += f" (target {'-' if greater else '+'} margin {margin:g})"
    outcome: Outcome = "passed" if reached and certain else "inconclusive" if reached else "failed"
    relation: Relation = ">=" if greater else "<="
    why += f"; {format_sample(score)}"
    return Result(outcome, score["value"], target, score["metric"], why, relation=relation)


def parity(
    evidence: Evidence, *, forms: Sequence[str], tolerance: float, max_metric_points: float, max_metric_relative: float
) -> Result:
    """Pass when exported files of these formats compute the model's outputs, classes and metric, at any batch size.

    Differences are relative to the model's value where that is above 1. A predicted class may differ where the two
    largest scores are within twice the tolerance. The metrics of model and file on validation may differ by
    `max_metric_points`, in hundredths, where the metric is a fraction of 1, else by `max_metric_relative` of the
    model's. The result is that of the worst file.
    """
    asked = {form: evidence["parity"][form] for form in forms if form in evidence["parity"]}
    if not asked:
        return Result("not_applicable", why=f"export.formats does not ask for {' or '.join(forms)}")
    bounds = (tolerance, max_metric_points, max_metric_relative)
    results = {form: _parity_of(result, *bounds) for form, result in asked.items()}
    worst = max(results.values(), key=lambda r: (r.outcome == "failed", r.value is None, r.value or 0.0))
    texts = [f"{form}: {result.why}" if len(forms) > 1 else result.why for form, result in results.items()]
    return replace(worst, why="; ".join(texts))


def _parity_of(result: Evidence, tolerance: float, max_points: float, max_relative: float) -> Result:
    """Judge one file."""
    if result.get("error"):
        return Result("failed", why=result["error"])
    size, rows = float(result["worst"]["largest"]["size"]), sum(result["rows"].values())
    faults = [result["first"] or "outputs differ"] if not size <= tolerance else []
    if result["nan_rows"]:
        faults.append(f"the model's own outputs are NaN for {counted(result['nan_rows'], 'validation row')}")
    if result["worst"]["largest_margin"] > 2 * tolerance:
        margin = result["worst"]["largest_margin"]
        faults.append(f"another class is predicted where the two largest scores differ by {margin:.3g}")
    if result["worst"]["label_changes"]:
        faults.append(f"{counted(result['worst']['label_changes'], 'label')} not of the largest probability")
    metric_why, metric_good = _metric_parity(result, max_points, max_relative)
    faults += [] if metric_good else [metric_why]
    why = f"{rows} rows in batches of {', '.join(sorted(result['batches'], key=int))}; {metric_why}"
    opsets = ", ".join(f"{domain} {version}" for domain, version in result["facts"].get("opset", {}).items())
    why += f"; opset {opsets}" if opsets else ""
    why += "; deprecated by torch" if result["facts"].get("deprecated") else ""
    why = f"{'; '.join(faults)} ({why})" if faults else why
    what = "largest difference / max(1, |value|)"
    return Result("failed" if faults else "passed", size, tolerance, what, why, relation="<=")


def _metric_parity(result: Evidence, max_points: float, max_relative: float) -> tuple[str, bool]:
    """Return what to say of the metrics of model and file, and whether they are close enough."""
    metric = result["metric"]
    if metric is None:
        return f"no metric compared: {result['metric_why']}" if result["metric_why"] else "no metric compared", True
    model, file = float(metric["model"]), float(metric["file"])
    apart = abs(model - file)
    if math.isnan(model) and math.isnan(file):
        return f"validation {metric['name']} is NaN for both", True
    if metric["bounded"]:
        of_ties = (result["worst"]["class_changes"] or 0) / result["rows"]["validation"]  # each changes it by a row
        close, shown = apart <= max(max_points / 100, of_ties), f"{100 * apart:.3g} points"
    else:
        close, shown = apart <= max_relative * abs(model), f"{apart / abs(model) if model else apart:.3g} of it"
    return f"validation {metric['name']} {file:.6g} (model {model:.6g}) differs by {shown}", close


def bundle_layout(evidence: Evidence) -> Result:
    """Pass when the payload has the declared files with their digests, and nothing else."""
    faults = evidence["bundle_faults"]
    if faults:
        return Result("failed", len(faults), 0, "faults", "; ".join(faults))
    return Result("passed", 0, 0, "faults", "every file is declared, and is what its name and the manifest say")
