"""Was the baseline measured completely and honestly?"""

from __future__ import annotations

import math

from pipeline.results import Evidence, Relation, Result, counted, format_interval

ENDS = {"done": "the planned length, or early stopping, was reached", "budget": "the budget of steps was used"}


def loss_at_init_measured(evidence: Evidence, *, suspicious_ratio: float) -> Result:
    """Passing proves that the loss before the first step is on record, with its expected value where one is known.

    If the ratio of the two is beyond the bound in either direction, the reason warns.
    """
    loss, expected = evidence["loss_at_init"], evidence.get("loss_expected")
    if not isinstance(loss, int | float):  # NaN is a number: a training that ends in NaN was measured as well
        return Result("failed", why="the loss before the first step was not measured")
    if not expected:
        return Result("passed", loss, why="no expected value is known for this loss")
    ratio = float(loss) / expected
    why = f"{ratio:.3g} times the expected {expected:.4g}"
    if not 1 / suspicious_ratio <= ratio <= suspicious_ratio:
        why = f"warning: {why}; check the scale of the inputs, the last layer and the loss"
    return Result("passed", loss, why=why)


def trivial_baseline_scored(evidence: Evidence) -> Result:
    """Passing proves that the best constant prediction for the metric was scored on validation."""
    trivial = evidence["trivial_baseline"]
    why = f"{trivial['how']} on {trivial['n']} validation rows"
    if not math.isfinite(float(trivial["value"])):
        why = f"warning: {trivial['metric']} is {trivial['value']} for it ({why}), so no score can be better"
    return Result("passed", trivial["value"], unit=trivial["metric"], why=why)


def trained_on_plan(evidence: Evidence) -> Result:
    """Passing proves that the checkpoint was written under the frozen plan and its master seed, and how training ended.

    A training that the clock stopped is inconclusive.
    """
    trained = evidence["trained"]
    for key in ("plan", "seed"):
        if trained[key] != evidence[key]:
            return Result(
                "failed", trained[key], evidence[key], why=f"the checkpoint is of another {key}", relation="=="
            )
    if trained["stopped"] == "clock":
        why = f"stopped by the clock after {trained['steps']} steps: raise trainer.max_minutes, or plan fewer epochs"
        return Result("inconclusive", trained["steps"], unit="steps", why=why)
    return Result(
        "passed", trained["steps"], unit="steps", why=f"stopped: {ENDS.get(trained['stopped'], trained['stopped'])}"
    )


def scored_on_validation(evidence: Evidence) -> Result:
    """Passing proves that the score covers every validation row and has a 95 % interval; NaN is a score too."""
    score, rows = evidence["score"], evidence["rows"]["val"]
    if score is None:
        return Result("passed", float("nan"), unit="rows", why="the model became non-finite: there is no score")
    if score["split"] != "val" or score["n"] != rows:
        return Result(
            "failed", score["n"], rows, "rows", "not scored on all validation rows", "metric_wrong", relation="=="
        )
    return Result("passed", score["value"], unit=score["metric"], why=format_interval(score))


def artifacts_saved(evidence: Evidence, *, names: list[str], for_classes: list[str]) -> Result:
    """Passing proves that every named file was saved with its digest, those in `for_classes` if there are classes."""
    required = [*names, *(for_classes if evidence["classes"] else ())]
    missing = [name for name in required if name not in evidence.artifacts]
    if missing:
        return Result("failed", len(missing), 0, "files", f"not saved: {', '.join(missing)}")
    why = ", ".join(required) + ("" if evidence["classes"] else "; there are no classes")
    return Result("passed", len(required), len(required), "files", why, evidence=tuple(required), relation=">=")


def checkpoint_identified(evidence: Evidence) -> Result:
    """Passing proves that the weights on disk are, by digest, the weights that were scored."""
    on_disk, scored = evidence["weights_on_disk"], evidence["trained"]["weights"]
    if on_disk != scored:
        return Result("failed", on_disk, scored, why="other weights than those scored", relation="==")
    return Result("passed", on_disk[:12], why="digest over names, types, shapes and bytes")


def stable_across_seeds(evidence: Evidence, *, target: float, margin: float | None, min_seeds: int) -> Result:
    """Passing proves that the training reaches the target within its margin on every seed, not by luck on one.

    The value is the worst validation score of all seeds, the bound the target minus the margin (plus, where less is
    better). Fewer than `min_seeds` trainings are inconclusive. The scores of the folds are named beside it.
    """
    table = evidence["seed_stability"]
    trainings, greater = table["trainings"], bool(table["greater_is_better"])
    died = [t["id"] for t in trainings if t["value"] is None]
    least = target - (margin or 0.0) if greater else target + (margin or 0.0)
    unit = f"{table['metric']}, worst seed"
    relation: Relation = ">=" if greater else "<="
    if died:
        why = f"{counted(len(died), 'training')} of {len(trainings)} without a score: {', '.join(died)}"
        return Result("failed", None, least, unit, why, relation=relation)
    values = [float(t["value"]) for t in trainings]
    worst = min(values) if greater else max(values)
    why = f"{counted(len(values), 'seed')}: {min(values):.4g} to {max(values):.4g}"
    why += f", mean {float(table['mean']):.4g}" if len(values) > 1 else ""
    if folds := table["folds"]:
        why += f"; cross-validation {min(folds):.4g} to {max(folds):.4g}"
    if margin is None:
        why += "; no margin is declared, so that every seed must reach the target itself"
    if worst < least if greater else worst > least:
        return Result("failed", worst, least, unit, why, relation=relation)
    if len(values) < min_seeds:
        why = f"{counted(len(values), 'training')} instead of {min_seeds}: {table['why']}; {why}"
        return Result("inconclusive", worst, least, unit, why, relation=relation, acceptable="small_sample")
    return Result("passed", worst, least, unit, why, relation=relation)


def reproduced(evidence: Evidence, *, min_steps: int) -> Result:
    """Passing proves that the released training, repeated in a fresh process, gives the same values bit by bit.

    A training that ended has the same weights, by their digest; of a longer one, at least `min_steps` steps were
    repeated with the same history. The value is the number of repeated steps.
    """
    replay = evidence["reproducible"]
    steps, planned, difference = replay["steps"], replay["planned_steps"], replay["difference"]
    if replay["why"]:
        return Result("inconclusive", why=f"not repeated: {replay['why']}")
    if replay["died"]:
        why = f"the repeated training ended without a result: {replay['died']}"
        return Result("failed", 0, min_steps, "steps", why, cause="nondeterminism", relation=">=")
    if difference is not None:
        recorded, repeated = float(difference["recorded"]), float(difference["repeated"])
        why = f"{difference['name']} at {difference['step']} was {recorded:.9g}, and is {repeated:.9g} when repeated"
        return Result("failed", steps, planned, "steps", why, cause="nondeterminism", relation=">=")
    again = replay["repeated_weights"]
    if again is not None and again != replay["weights"]:
        why = f"the repeated training has the weights {again[:12]}, the released ones are {replay['weights'][:12]}"
        return Result("failed", steps, planned, "steps", why, cause="nondeterminism", relation=">=")
    if again is not None:
        return Result("passed", steps, planned, "steps", f"all {steps} steps, with the same weights", relation=">=")
    why = f"the first {steps} of {planned} steps, with the same history"
    if steps < min_steps:
        slow = f"only {steps} of {planned} steps were repeated in the time that it may take, with the same history"
        return Result("inconclusive", steps, min_steps, "steps", slow, relation=">=")
    return Result("passed", steps, min_steps, "steps", why, relation=">=")
