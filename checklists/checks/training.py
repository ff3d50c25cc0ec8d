"""Was the baseline measured completely and honestly?"""

from __future__ import annotations

from pipeline.results import Evidence, Result


def _measured(evidence: Evidence, name: str) -> bool:
    """Whether a figure is there; NaN counts, since a run that ends in NaN was measured all the same."""
    return isinstance(evidence[name], int | float)


def loss_at_init_measured(evidence: Evidence, *, suspicious_ratio: float) -> Result:
    """Passing proves that the loss before the first step is on record, beside what theory expects where it knows.

    How far the two are apart fails nothing; beyond the ratio, either way, the reason warns.
    """
    loss, expected = evidence["loss_at_init"], evidence.get("loss_expected")
    if not _measured(evidence, "loss_at_init"):
        return Result("failed", why="the loss before the first step was not measured")
    if not expected:
        return Result("passed", loss, expected, why="theory expects nothing for this loss")
    ratio = float(loss) / expected
    why = f"{ratio:.3g} times what theory expects"
    if not 1 / suspicious_ratio <= ratio <= suspicious_ratio:
        why = f"warning: {why}; look at the scale of the inputs, the last layer and the loss"
    return Result("passed", loss, expected, why=why)


def trivial_baseline_scored(evidence: Evidence) -> Result:
    """Passing proves that a model without learning (majority class, or the mean) was scored on validation."""
    bar = evidence["trivial_baseline"]
    return Result("passed", bar["value"], unit=bar["metric"], why=f"{bar['how']} on {bar['n']} validation rows")


def trained_on_plan(evidence: Evidence) -> Result:
    """Passing proves that the checkpoint was written under the frozen plan and on its master seed, and how training
    ended: done, spent, or non-finite.
    """
    trained = evidence["trained"]
    for what in ("plan", "seed"):
        if trained[what] != evidence[what]:
            return Result("failed", trained[what], evidence[what], why=f"the checkpoint is of another {what}")
    if trained["stopped"] == "clock":
        why = f"stopped by the clock after {trained['steps']} steps: raise trainer.max_minutes, or plan fewer epochs"
        return Result("inconclusive", trained["steps"], unit="steps", why=why)
    return Result("passed", trained["steps"], unit="steps", why=f"ended: {trained['stopped']}")


def scored_on_validation(evidence: Evidence) -> Result:
    """Passing proves that the score covers every validation row and carries a 95 % interval; NaN is a score too."""
    score = evidence["score"]
    if score is None:
        return Result("passed", float("nan"), unit="rows", why="the model became non-finite: there is nothing to score")
    if score["split"] != "val" or score["n"] != evidence["rows"]["val"]:
        return Result(
            "failed", score["n"], evidence["rows"]["val"], "rows", "not scored on all validation rows", "metric_wrong"
        )
    interval = f"95 % interval {score['low']:.3g} to {score['high']:.3g}"
    return Result("passed", score["value"], unit=score["metric"], why=f"{interval}, n = {score['n']}")


def artifacts_saved(evidence: Evidence, *, names: list[str], for_classes: list[str]) -> Result:
    """Passing proves that every named file was kept with its digest, those for classes where the data have classes."""
    wanted = [*names, *(for_classes if evidence["classes"] else ())]
    missing = [name for name in wanted if name not in evidence.artifacts]
    if missing:
        return Result("failed", len(missing), 0, "files", f"not kept: {', '.join(missing)}")
    why = ", ".join(wanted) + ("" if evidence["classes"] else "; there are no classes to confuse")
    return Result("passed", len(wanted), len(wanted), "files", why, evidence=tuple(wanted))


def checkpoint_identified(evidence: Evidence) -> Result:
    """Passing proves that the weights on disk are, by digest, the weights that were scored."""
    if evidence["weights_on_disk"] != evidence["trained"]["weights"]:
        return Result(
            "failed", evidence["weights_on_disk"], evidence["trained"]["weights"], why="other weights than those scored"
        )
    return Result("passed", evidence["weights_on_disk"][:12], why="digest over names, types, shapes and bytes")
