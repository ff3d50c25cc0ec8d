"""Checks of robustness: corrupted inputs, adversarial inputs, earlier models and tasks, and a repeated training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.results import Evidence, Result, compared


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
        why = f"{measured['metric']} {clean:.4g} is no gain over the trivial baseline, {trivial:.4g}"
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
