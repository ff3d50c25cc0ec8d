"""A study: arms trained on the same seeds, compared in pairs with the control, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, NotRequired, TypedDict

from pipeline.results import plain
from pipeline.run_store.job import Delta
from pipeline.trials.executor import Trial
from pipeline.trials.stats import holm, replace_failed, sign_flip_p_value

ALPHA = 0.05  # the usual level; with Holm it bounds the chance of any false winner in the whole study

Origin = Literal["experiment", "cause", "combination", "general"]


@dataclass(frozen=True)
class Arm:
    """One arm of a study: a change (none for the control), the causes that it removes, its rank by size (1: smallest).

    `origin` is why it is tried: an experiment of diagnostics confirmed it and brought back the share `restored` of the
    shortfall, it cures a cause that the diagnosis names, it combines `parts` that do, or it is general (`why`).
    `scaled` is the factor of a change that scales one setting.
    """

    id: str
    delta: Delta
    cause: str = ""
    cure: str = ""
    order: int = 0
    origin: Origin = "cause"
    causes: tuple[str, ...] = ()
    restored: float | None = None
    why: str = ""
    parts: tuple[Delta, ...] = ()
    scaled: float | None = None

    def reason(self) -> str:
        """Return why the change is tried, in a few words."""
        if self.origin == "experiment":
            return f"confirmed by an experiment for {self.cause}"
        return f"fix for {self.cause}" if self.cause else self.why


class ArmResult(TypedDict):
    """One arm with its scores per seed; effect and p-value (after Holm) are against the control.

    An arm `wins` if it is significantly better, by at least the declared effect. `reaches` says whether the mean
    reaches the target, where there is one; `guards` are the records of what must not become worse, and `harms` names
    those that did, which keep a winner from being adopted.
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
    origin: NotRequired[Origin]
    causes: NotRequired[list[str]]
    reaches: NotRequired[bool]
    guards: NotRequired[list[Any]]
    harms: NotRequired[list[str]]


def with_change(start: Delta, change: Mapping[str, Any]) -> Delta:
    """Return the start with the overrides and surgery of one more change."""
    overrides = {**start.overrides, **change.get("overrides", {})}
    return Delta(overrides, (*start.surgery, *change.get("surgery", ())), start.train_rows)


def added_overrides(start: Delta, delta: Delta) -> dict[str, Any]:
    """Return the overrides of a change that its start does not have, or has with another value."""
    return {key: value for key, value in delta.overrides.items() if start.overrides.get(key) != value}


def compare_arms(
    arms: Sequence[Arm],
    trials: Mapping[str, Trial],
    pairs: int,
    greater: bool,
    due: float = 0.0,
    p_values: Sequence[float] | None = None,
) -> list[ArmResult]:
    """Compare each arm with the control, which is the first arm; `trials` are named `<arm>-<1 to pairs>`.

    The effect is the mean difference per seed in the metric's unit, positive if the arm is better; it must reach `due`
    to win. A training without a score counts as the worst score of the study. `p_values` are those of another test, one
    per arm besides the control, where there is a single pair.
    """
    raw = {arm.id: [trials[f"{arm.id}-{i}"].value for i in range(1, pairs + 1)] for arm in arms}
    all_values = [value for values in raw.values() for value in values]
    scores = {arm_id: replace_failed(values, all_values, greater) for arm_id, values in raw.items()}
    sign = 1 if greater else -1
    control = scores[arms[0].id]
    differences = {arm.id: [sign * (v - c) for v, c in zip(scores[arm.id], control, strict=True)] for arm in arms[1:]}
    uncorrected = [sign_flip_p_value(d) for d in differences.values()] if p_values is None else p_values
    corrected = dict(zip(differences, holm(uncorrected), strict=True))
    results: list[ArmResult] = []
    for arm in arms:
        effect = fmean(differences[arm.id]) if arm.id in differences else 0.0
        p = corrected.get(arm.id, 1.0)
        results.append(
            {
                "id": arm.id,
                "cause": arm.cause,
                "cure": arm.cure,
                "order": arm.order,
                "origin": arm.origin,
                "causes": list(arm.causes),
                "change": arm.delta.describe(),
                "delta": plain(arm.delta),
                "values": raw[arm.id],
                "mean": fmean(scores[arm.id]),
                "effect": effect,
                "p": p,
                "wins": p < ALPHA and effect > 0 and effect >= due,
            }
        )
    return results


def reaches(result: ArmResult, target: float, greater: bool) -> bool:
    """Return whether the mean score of an arm reaches the target; an arm of which no training has a score does not."""
    if not any(map(math.isfinite, result["values"])):
        return False
    return result["mean"] >= target if greater else result["mean"] <= target


def beats_everywhere(result: ArmResult, other: ArmResult, greater: bool) -> bool:
    """Return whether an arm scores better than another on every seed."""
    pairs = list(zip(result["values"], other["values"], strict=True))
    return all(a > b if greater else a < b for a, b in pairs)


def select_arm(results: Sequence[ArmResult], target: float, greater: bool) -> ArmResult | None:
    """Return the arm that is adopted: the smallest change that wins and reaches the target; None without a winner.

    A larger change is adopted instead if it beats the smallest on every seed, of several the one with the best mean. If
    no winner reaches the target, the one with the largest effect is adopted. Winners that harm what is guarded are
    left out.
    """
    winners = [result for result in results if result["wins"] and not result.get("harms")]
    sufficient = [result for result in winners if reaches(result, target, greater)]
    if not sufficient:
        return max(winners, key=lambda result: result["effect"], default=None)
    smallest = min(sufficient, key=lambda result: result["order"])
    better = [result for result in sufficient if beats_everywhere(result, smallest, greater)]
    return max(better, key=lambda result: result["effect"], default=smallest)


def explain_choice(results: Sequence[ArmResult], winner: ArmResult | None, target: float, greater: bool) -> str:
    """Return why `select_arm` chose the winner among the candidates, or why it chose none, in one sentence."""
    if not results:
        return "nothing was compared"
    better = [result for result in results if result["wins"]]
    harmless = [result for result in better if not result.get("harms")]
    sufficient = [result for result in harmless if reaches(result, target, greater)]
    harmed = format_harmed(better)
    if winner is None:
        return f"no candidate is significantly better than the control by the declared effect{harmed}"
    comparison = f"significantly better than the control: {_ids(better)}; reaching the target {target:.4g} on average"
    if not sufficient:
        return f"{comparison}: none, so the one with the largest effect is chosen, {winner['id']}{harmed}"
    others = [result for result in sufficient if result is not winner]
    if not others:
        return f"{comparison}: {winner['id']}{harmed}"
    smallest = min(sufficient, key=lambda result: result["order"])
    if smallest is not winner:
        rule = f"of which {winner['id']} beats the smallest change, {smallest['id']}, on every seed"
        return f"{comparison}: {_ids(sufficient)}, {rule}{harmed}"
    higher = [r for r in others if (r["mean"] > winner["mean"] if greater else r["mean"] < winner["mean"])]
    but = f"; {_ids(higher)} scored better on average, but not on every seed" if higher else ""
    return f"{comparison}: {_ids(sufficient)}, of which {winner['id']} is the smallest change{but}{harmed}"


def format_harmed(results: Sequence[ArmResult]) -> str:
    """Return the end of a sentence: which arms are left out for what they harm; empty if none is."""
    return "".join(
        f"; {result['id']} is left out, since it harms {', '.join(result['harms'])}"
        for result in results
        if result.get("harms")
    )


def _ids(results: Sequence[ArmResult]) -> str:
    return ", ".join(result["id"] for result in results)


def format_arm(result: ArmResult, target: float, greater: bool) -> str:
    """Return the result of one candidate in one line."""
    if not any(map(math.isfinite, result["values"])):
        return f"{result['id']}: none of its trainings ended with a score"
    small = result["p"] < ALPHA and result["effect"] > 0  # it does not win although its test does
    missed = "better by less than the declared effect, not worth a change" if small else "not significantly better"
    better = "significantly better" if result["wins"] else missed
    verb = "reaches" if reaches(result, target, greater) else "misses"
    return (
        f"{result['id']}: {better} than the control ({result['effect']:+.4g} on average, p = {result['p']:.3g} after "
        f"Holm); its mean, {result['mean']:.4g}, {verb} the target {target:.4g}"
    )
