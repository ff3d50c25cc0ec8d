"""Checks of the release: lineage, test score, exported formats and bundle."""

from __future__ import annotations

from pipeline.results import Evidence, Outcome, Result


def lineage(evidence: Evidence, *, needs: list[str]) -> Result:
    """Pass when every named origin of the model is identified by a digest or a value."""
    lineage = evidence["lineage"]
    missing = [name for name in needs if lineage.get(name) in (None, "", {}, [])]
    if missing:
        return Result("failed", len(missing), 0, "origins", f"unknown: {', '.join(missing)}")
    return Result("passed", len(needs), len(needs), "origins", ", ".join(needs))


def target_on_test(evidence: Evidence, *, target: float, margin: float | None) -> Result:
    """Pass when the test score reaches the target and its 95 % bound misses it by at most the margin.

    The bound is the lower one where greater is better, else the upper one. Without a margin, a score that reaches the
    target is inconclusive.
    """
    score = evidence["test_score"]
    sign = 1 if score["greater_is_better"] else -1
    bound = score["low"] if sign > 0 else score["high"]
    why = f"95 % interval {score['low']:.3g} to {score['high']:.3g}, n = {score['n']}"
    worse, end = ("below", "lower") if sign > 0 else ("above", "upper")
    reached = sign * score["value"] >= sign * target
    if not reached:
        why = f"test {score['metric']} {score['value']:.4g} is {worse} the target {target:g}; {why}"
    if margin is None:
        no_margin = f"{why}; no margin is declared: add plan.margins.target=NUMBER with phase=planning"
        return Result("inconclusive" if reached else "failed", score["value"], target, score["metric"], no_margin)
    certain = sign * bound >= sign * target - margin
    if reached and not certain:
        limit = f"{target - sign * margin:g} (target {target:g} {'minus' if sign > 0 else 'plus'} margin {margin:g})"
        why = f"{end} 95 % bound {bound:.3g} is {worse} {limit}; n = {score['n']}"
    else:
        why += f", margin {margin:g}"
    outcome: Outcome = "passed" if reached and certain else "inconclusive" if reached else "failed"
    return Result(outcome, score["value"], target, score["metric"], why)


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
    return Result("passed", 0, 0, "faults", f"payload {evidence['subject'][:12]}")
