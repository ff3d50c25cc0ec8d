"""Checks of the release: lineage, test score, exported formats and bundle."""

from __future__ import annotations

import math

from pipeline.results import Evidence, Outcome, Relation, Result, compared, format_sample


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


def parity(evidence: Evidence, *, form: str, atol: float, min_argmax_agreement: float) -> Result:
    """Pass when an exported file computes the model's outputs on validation and edge rows, at any batch size.

    Where the outputs are scores of several classes, the predicted classes have to agree, too.
    """
    result = evidence["parity"].get(form)
    if result is None:
        return Result("not_applicable", why=f"export.formats does not ask for {form}")
    if result.get("error"):
        return Result("failed", why=result["error"])
    agreement = result["argmax_agreement"]
    why = f"{result['rows']} rows" + ("" if agreement is None else f", class agreement {agreement:.2%}")
    good = result["max_abs"] <= atol and (agreement is None or agreement >= min_argmax_agreement)
    return Result("passed" if good else "failed", result["max_abs"], atol, "largest difference", why)


def bundle_layout(evidence: Evidence) -> Result:
    """Pass when the payload has the declared files with their digests, and nothing else."""
    faults = evidence["bundle_faults"]
    if faults:
        return Result("failed", len(faults), 0, "faults", "; ".join(faults))
    return Result("passed", 0, 0, "faults", "every file is declared, and is what its name and the manifest say")
