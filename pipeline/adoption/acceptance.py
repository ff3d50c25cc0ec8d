"""When a better candidate is worth its change: the declared effect, and what must not become worse.

Everything here is a function of recorded figures, so that `verify` derives the same answer again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NotRequired, TypedDict

from pipeline.trials.stats import holm, sign_flip_p_value
from pipeline.trials.study import ALPHA

MIN_EFFECT = 0.1  # share of the remaining error that a change must remove, where the plan says nothing
BEST_SHARE = 1.0  # the best value of a metric like accuracy, F1 or R²


class Guard(TypedDict):
    """Something that a change must not make worse: `before` and `after` per seed, or the figure of one training.

    With a `margin`, `after` may be worse by it, tested over the seeds; with a `limit`, `after` may not exceed it. A
    guard with neither is only reported, for the reason in `why`. Higher figures are better unless it says otherwise; a
    limit is the largest value, unless it says that higher is better.
    """

    what: str
    before: list[float]
    after: list[float]
    margin: float | None
    limit: float | None
    greater_is_better: NotRequired[bool]
    why: NotRequired[str]


def remaining_error(score: float, target: float, greater: bool) -> float:
    """Return how far a score is from the best possible value, which is 1 for shares like accuracy and 0 for errors.

    A metric that may exceed 1, or that is negative, is compared with the target or with 0.
    """
    if not greater:
        return max(0.0, score) if target >= 0 else max(0.0, score - target)
    best = 0.0 if target < 0 else BEST_SHARE if target <= BEST_SHARE else target
    return max(0.0, best - score)


def declared_effect(control: Sequence[float], share: float, target: float, greater: bool) -> float:
    """Return the gain that a change must have: a share of what the mean of the control misses; 0 for a dead control."""
    known = [value for value in control if math.isfinite(value)]
    return share * remaining_error(fmean(known), target, greater) if known else 0.0


def noninferiority_p(before: Sequence[float], after: Sequence[float], margin: float) -> float:
    """Return the one-sided p-value of `after` being worse by at least the margin; larger figures are better.

    The exact sign-flip test of the paired differences plus the margin. Pairs without both figures count against it.
    """
    differences = [b - a + margin if math.isfinite(a) and math.isfinite(b) else -margin
                   for a, b in zip(before, after, strict=True)]  # fmt: skip
    if fmean(differences) <= 0:
        return 1.0
    return sign_flip_p_value(differences) / 2


def harmed(guard: Guard) -> bool:
    """Return whether a guard speaks against the change: beyond its limit, or not shown to be within its margin."""
    known = [value for value in guard["after"] if math.isfinite(value)]
    if guard["limit"] is not None and known and _is_beyond(fmean(known), guard["limit"], guard):
        return True
    if guard["margin"] is None or not any(map(math.isfinite, guard["before"])):
        return False
    sign = 1 if guard.get("greater_is_better", True) else -1
    before, after = ([sign * value for value in guard[side]] for side in ("before", "after"))  # type: ignore[literal-required]
    if len(after) == 1:
        return bool(after[0] < before[0] - guard["margin"])
    return noninferiority_p(before, after, guard["margin"]) >= ALPHA


def _is_beyond(value: float, limit: float, guard: Guard) -> bool:
    """Return whether a figure is beyond its limit, a least value where the guard says that higher is better."""
    return value < limit if guard.get("greater_is_better") else value > limit


def harms(guards: Sequence[Guard]) -> list[str]:
    """Return the names of the guards that speak against the change."""
    return [guard["what"] for guard in guards if harmed(guard)]


def format_guard(guard: Guard) -> str:
    """Return a guard as a sentence: what it was, what it is, and whether that is within its bounds."""
    before, after = _format_mean(guard["before"]), _format_mean(guard["after"])
    verdict = "worse than allowed" if harmed(guard) else "within"
    bounds = {"the limit": guard["limit"], "the margin": guard["margin"]}
    given = " and ".join(f"{name} {bound:.4g}" for name, bound in bounds.items() if bound is not None)
    if not given:
        return f"{guard['what']} {before} → {after}: not guarded, {guard.get('why', 'no margin is declared')}"
    return f"{guard['what']} {before} → {after}: {verdict}{' by' if harmed(guard) else ''} {given}"


def _format_mean(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f"{fmean(known):.4g}" if known else "unknown"


def largest_family(pairs: int) -> int:
    """Return how many candidates may be confirmed at most so that the exact test of so many pairs can reach 5 %."""
    count = 0
    while max(holm([2 / 2**pairs] * (count + 1)), default=1.0) < ALPHA:
        count += 1
    return count


def guards_of(record: Mapping[str, Any]) -> list[Guard]:
    """Return the guards of a recorded arm, with NaN and infinity as numbers again."""
    guards: list[Guard] = []
    for recorded in record.get("guards", []):
        guard: Guard = {**recorded}  # type: ignore[typeddict-item]
        guards.append({**guard, **{side: [*map(float, recorded[side])] for side in ("before", "after")}})  # type: ignore[typeddict-item]
    return guards
