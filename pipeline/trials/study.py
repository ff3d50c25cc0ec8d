"""A study: arms trained on the same seeds, compared in pairs with the control, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NotRequired, TypedDict

from pipeline.results import plain
from pipeline.run_store.job import Delta
from pipeline.trials.executor import Trial
from pipeline.trials.stats import holm, replace_failed, sign_flip_p_value

ALPHA = 0.05  # the usual level; with Holm it bounds the chance of any false winner in the whole study


@dataclass(frozen=True)
class Arm:
    """One arm of a study: a change (none for the control), the cause that it cures, its rank in the diagnosis."""

    id: str
    delta: Delta
    cause: str = ""
    cure: str = ""
    order: int = 0


class ArmResult(TypedDict):
    """One arm with its scores per seed; effect and p-value (after Holm) are against the control.

    `reaches` says whether the mean reaches the target, where there is one.
    """

    id: str
    cause: str
    cure: str
    order: int
    change: str
    delta: object
    values: list[float]
    mean: float
    effect: float
    p: float
    wins: bool
    reaches: NotRequired[bool]


def with_change(start: Delta, change: Mapping[str, Any]) -> Delta:
    """Return the start with the overrides and surgery of one more change."""
    overrides = {**start.overrides, **change.get("overrides", {})}
    return Delta(overrides, (*start.surgery, *change.get("surgery", ())), start.train_rows)


def compare_arms(arms: Sequence[Arm], trials: Mapping[str, Trial], pairs: int, greater: bool) -> list[ArmResult]:
    """Compare each arm with the control, which is the first arm; `trials` are named `<arm>-<1 to pairs>`.

    The effect is the mean difference per seed in the metric's unit, positive if the arm is better. A training without a
    score counts as the worst score of the study.
    """
    raw = {arm.id: [trials[f"{arm.id}-{i}"].value for i in range(1, pairs + 1)] for arm in arms}
    all_values = [value for values in raw.values() for value in values]
    scores = {arm_id: replace_failed(values, all_values, greater) for arm_id, values in raw.items()}
    sign = 1 if greater else -1
    control = scores[arms[0].id]
    differences = {arm.id: [sign * (v - c) for v, c in zip(scores[arm.id], control, strict=True)] for arm in arms[1:]}
    p_values = dict(zip(differences, holm([sign_flip_p_value(d) for d in differences.values()]), strict=True))
    results: list[ArmResult] = []
    for arm in arms:
        effect = fmean(differences[arm.id]) if arm.id in differences else 0.0
        p = p_values.get(arm.id, 1.0)
        results.append(
            {
                "id": arm.id,
                "cause": arm.cause,
                "cure": arm.cure,
                "order": arm.order,
                "change": arm.delta.describe(),
                "delta": plain(arm.delta),
                "values": raw[arm.id],
                "mean": fmean(scores[arm.id]),
                "effect": effect,
                "p": p,
                "wins": p < ALPHA and effect > 0,
            }
        )
    return results


def reaches(result: ArmResult, target: float, greater: bool) -> bool:
    """Return whether the mean score of an arm reaches the target; an arm of which no training has a score does not."""
    if not any(map(math.isfinite, result["values"])):
        return False
    return result["mean"] >= target if greater else result["mean"] <= target


def select_arm(results: Sequence[ArmResult], target: float, greater: bool) -> ArmResult | None:
    """Return the winning arm with the lowest order among those that reach the target; None without a winner.

    If no winner reaches the target, return the one with the largest effect.
    """
    winners = [result for result in results if result["wins"]]
    sufficient = [result for result in winners if reaches(result, target, greater)]
    # The first sufficient change, not the best score: the order begins with the most likely cause and its cheapest fix.
    if sufficient:
        return min(sufficient, key=lambda result: result["order"])
    return max(winners, key=lambda result: result["effect"], default=None)


def explain_choice(results: Sequence[ArmResult], winner: ArmResult | None, target: float, greater: bool) -> str:
    """Return why `select_arm` chose the winner among the candidates, or why it chose none, in one sentence."""
    if not results:
        return "nothing was compared"
    better = [result for result in results if result["wins"]]
    sufficient = [result for result in better if reaches(result, target, greater)]
    if winner is None:
        return "no candidate is significantly better than the control"
    comparison = f"significantly better than the control: {_ids(better)}; reaching the target {target:.4g} on average"
    if not sufficient:
        return f"{comparison}: none, so the one with the largest effect is chosen, {winner['id']}"
    first = f", of which {winner['id']} is first in the diagnosis's order"
    return f"{comparison}: {_ids(sufficient)}{first if len(sufficient) > 1 else ''}"


def _ids(results: Sequence[ArmResult]) -> str:
    return ", ".join(result["id"] for result in results)


def format_arm(result: ArmResult, target: float, greater: bool) -> str:
    """Return the result of one candidate in one line."""
    if not any(map(math.isfinite, result["values"])):
        return f"{result['id']}: none of its trainings ended with a score"
    better = "significantly better" if result["wins"] else "not significantly better"
    verb = "reaches" if reaches(result, target, greater) else "misses"
    return (
        f"{result['id']}: {better} than the control ({result['effect']:+.4g} on average, p = {result['p']:.3g} after "
        f"Holm); its mean, {result['mean']:.4g}, {verb} the target {target:.4g}"
    )
