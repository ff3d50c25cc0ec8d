"""Checks of robustness: corrupted inputs, adversarial inputs, earlier models and tasks, and a repeated training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.results import Evidence, Relation, Result, compared

if TYPE_CHECKING:
    from pipeline.readiness.regression import Regression


def corruption(evidence: Evidence, *, severity: int, min_mean: float, min_worst: float, min_rows: int) -> Result:
    """Pass when, at this severity, most of the gain over the trivial baseline is retained under every corruption.

    `min_mean` bounds the mean share over the corruptions, `min_worst` that of the worst one. Outputs that are not
    finite fail at any severity. Fewer rows than `min_rows` say too little.
    """
    measured = evidence["corruption"]
    if measured["why"]:
        return Result("not_applicable", why=measured["why"])
    broken = [score for score in measured["scores"] if score["nonfinite_rows"]]
    if broken:
        worst = max(broken, key=lambda score: int(score["nonfinite_rows"]))
        why = f"outputs are not finite under {_named(worst)}"
        return Result("failed", worst["nonfinite_rows"], 0, "rows", f"{why}; {len(broken)} corruptions have such rows")
    clean, trivial = measured["clean"], measured["trivial"]
    better = clean > trivial if measured["greater_is_better"] else clean < trivial
    if not (better and math.isfinite(clean) and math.isfinite(trivial)):
        why = f"{measured['metric']} {clean:.4g} does not exceed the trivial baseline, {trivial:.4g}"
        return Result("inconclusive", why=f"{why}, of which a share could be retained")
    scores = [score for score in measured["scores"] if score["severity"] == severity]
    mean = sum(score["retained"] for score in scores) / len(scores)
    worst = min(scores, key=lambda score: float(score["retained"]))
    why = (
        f"at severity {severity} the mean of {len(scores)} corruptions retains {mean:.0%} of the gain "
        f"({compared(mean, min_mean)}), the worst, {_named(worst)}, {worst['retained']:.0%} "
        f"({compared(worst['retained'], min_worst)}); {measured['metric']} {clean:.4g} on "
        f"{measured['rows']} clean rows, {worst['value']:.4g} under the worst"
    )
    good = mean >= min_mean and worst["retained"] >= min_worst
    if measured["rows"] < min_rows:
        why += f"; fewer than {min_rows} rows"
        return Result("inconclusive", mean, min_mean, "of the gain", why, relation=">=", acceptable="small_sample")
    return Result("passed" if good else "failed", mean, min_mean, "of the gain", why, relation=">=")


def _named(score: Mapping[str, Any]) -> str:
    return f"{str(score['corruption']).replace('_', ' ')} ({score['strength']:g} {score['unit']})"


def adversarial(evidence: Evidence, *, floor: float | None, tolerance: float, chance_tolerance: float) -> Result:
    """Pass when the attacks are shown to work and, where a floor is declared, the score under PGD keeps it.

    The attacks work when PGD does at least as much as FGSM, FGSM at least as much as noise of the same size, and PGD
    without a limit brings the score down to the trivial baseline. `tolerance` and `chance_tolerance` are shares of the
    gain over that baseline. Otherwise the gradients say nothing (masking), and the result is inconclusive. Without a
    floor it is required that the curve is measured; what it may be is the owner's decision.
    """
    measured = evidence["adversarial"]
    if measured["why"]:
        return Result("not_applicable", why=measured["why"])
    sign = 1 if measured["greater_is_better"] else -1
    clean, trivial = measured["clean"], measured["trivial"]
    gain = abs(clean - trivial)
    curve = measured["curve"]
    shown = "; ".join(
        f"radius {p['radius']:.3g}: noise {p['noise']:.4g}, FGSM {p['fgsm']:.4g}, PGD {p['pgd']:.4g}" for p in curve
    )
    why = f"{measured['metric']} {clean:.4g} on {measured['rows']} clean rows, {shown} ({measured['unit']})"
    values = [clean, trivial, measured["huge"], *(p[name] for p in curve for name in ("noise", "fgsm", "pgd"))]
    if not all(math.isfinite(value) for value in values):
        return Result("failed", why=f"the score under attack is not a number; {why}")
    faults = []
    if any(sign * (p["pgd"] - p["fgsm"]) > tolerance * gain for p in curve):
        faults.append("PGD does less than FGSM")
    if any(sign * (p["fgsm"] - p["noise"]) > tolerance * gain for p in curve):
        faults.append("FGSM does less than noise of the same size")
    if sign * (measured["huge"] - trivial) > chance_tolerance * gain:
        faults.append(f"PGD without a limit leaves {measured['huge']:.4g}, the trivial baseline is {trivial:.4g}")
    if faults:
        masked = f", {measured['zero_gradient_rows']} rows have no gradient" if measured["zero_gradient_rows"] else ""
        return Result(
            "inconclusive", why=f"the attacks do not work (gradient masking): {'; '.join(faults)}{masked}; {why}"
        )
    worst = curve[-1]["pgd"]
    if floor is None:
        return Result(
            "passed", worst, unit=measured["metric"], why=f"{why}; no floor is declared (plan.robustness.adversarial)"
        )
    good = sign * (worst - floor) >= 0
    relation: Relation = ">=" if sign > 0 else "<="
    return Result("passed" if good else "failed", worst, floor, measured["metric"], why, relation=relation)


def no_regression(evidence: Evidence, *, margin: float | None) -> Result:
    """Passing proves that the candidate is not worse than the model in use, nor on any earlier task, by the margin.

    The value is the lowest one-sided 95 % bound of the paired differences, which has to exceed -`margin`.
    """
    measured = evidence["no_regression"]
    regressions: list[Regression] = measured["compared"]
    if measured["lost"]:
        return Result("inconclusive", why=measured["lost"])
    if not regressions:
        why = "no model of this task is in use, and data.previous_tasks names no earlier task"
        return Result("not_applicable", why=why)
    unknown = [f"{r['task'] or 'validation'}: {r['why']}" for r in regressions if r["comparison"] is None]
    if unknown:
        return Result("inconclusive", why="; ".join(unknown))
    texts, bounds, differences = list[str](), list[float](), list[float]()
    for regression in regressions:
        comparison = regression["comparison"]
        assert comparison is not None
        bound = -math.inf if comparison["bound"] is None else comparison["bound"]
        flips = "" if regression["negative_flips"] is None else f", {regression['negative_flips']} rows newly wrong"
        where = f"on {regression['task']}" if regression["task"] else "on validation"
        figures = f"{comparison['difference']:+.3g} (bound {bound:+.3g})"
        texts.append(f"{where} {figures} against {regression['against']}{flips}")
        bounds.append(bound)
        differences.append(comparison["difference"])
    why, unit = "; ".join(texts), "difference (95 % bound)"
    if margin is None:
        why += "; no margin is declared: add plan.margins.regression=NUMBER with phase=planning"
        return Result("inconclusive", min(bounds), None, unit, why)
    if min(bounds) > -margin:
        return Result("passed", min(bounds), -margin, unit, why, relation=">=")
    if min(differences) < -margin:
        return Result("failed", min(differences), -margin, "difference", why, relation=">=")
    return Result("inconclusive", min(bounds), -margin, unit, why, relation=">=", acceptable="small_sample")
