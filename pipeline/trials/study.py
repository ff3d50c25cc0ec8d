"""A study: arms trained on the same seeds, compared pair by pair with the control, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipeline.results import plain
from pipeline.run_store.job import Delta
from pipeline.trials.executor import Trial
from pipeline.trials.stats import holm, paired_p, worst_filled

ALPHA = 0.05


@dataclass(frozen=True)
class Arm:
    """One side of the comparison: a change (none for the control), the cause it cures, its place in the diagnosis."""

    id: str
    delta: Delta
    cause: str = ""
    cure: str = ""
    order: int = 0


def added(start: Delta, change: Mapping[str, Any]) -> Delta:
    """The start with one more change over it."""
    overrides = {**start.overrides, **change.get("overrides", {})}
    return Delta(overrides, (*start.surgery, *change.get("surgery", ())), start.train_rows)


def compare(arms: Sequence[Arm], trials: Mapping[str, Trial], pairs: int, greater: bool) -> list[dict[str, Any]]:
    """Each arm with its change, its values by seed and, against the control (first), its mean effect and corrected p.

    The effect is positive where the arm is better, in the metric's unit. A training without a score counts as the
    worst score of the study.
    """
    raw = {arm.id: [trials[f"{arm.id}-{i}"].value for i in range(1, pairs + 1)] for arm in arms}
    known = [v for values in raw.values() for v in values]
    values = {name: worst_filled(v, known, greater) for name, v in raw.items()}
    sign = 1 if greater else -1
    control = values[arms[0].id]
    differences = {arm.id: [sign * (v - c) for v, c in zip(values[arm.id], control, strict=True)] for arm in arms[1:]}
    corrected = dict(zip(differences, holm([paired_p(d) for d in differences.values()]), strict=True))
    rows = []
    for arm in arms:
        effect = fmean(differences[arm.id]) if arm.id in differences else 0.0
        p = corrected.get(arm.id, 1.0)
        what = {"id": arm.id, "cause": arm.cause, "cure": arm.cure, "order": arm.order, "change": arm.delta.describe()}
        found = {"values": raw[arm.id], "mean": fmean(values[arm.id]), "effect": effect, "p": p}
        rows.append({**what, "delta": plain(arm.delta), **found, "wins": p < ALPHA and effect > 0})
    return rows


def choose(rows: Sequence[Mapping[str, Any]], target: float, greater: bool) -> Mapping[str, Any] | None:
    """The winner with the smallest change (by `order`) whose mean reaches the target; where none reaches it, the winner
    with the largest effect; None without a winner."""
    winners = [row for row in rows if row["wins"]]
    enough = [row for row in winners if (row["mean"] >= target if greater else row["mean"] <= target)]
    if enough:
        return min(enough, key=lambda row: row["order"])
    return max(winners, key=lambda row: row["effect"], default=None)
