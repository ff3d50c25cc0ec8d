"""What answers are worth, beside the truth: counts with exact intervals, nothing that is tuned.

Accusations of flaws that are there and do no harm are left out before anything is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cases import Case


@dataclass(frozen=True)
class Answer:
    """What was said of one case: accusations with their confidence, ranked, the seconds it took, or that it broke."""

    accused: tuple[tuple[str, float], ...]
    seconds: float = 0.0
    broke: bool = False

    @property
    def ids(self) -> list[str]:
        return [cause for cause, _ in self.accused]


Pairs = Sequence[tuple[Case, Answer]]
Judge = Callable[[Case, Answer], bool]


def main_cause(case: Case, answer: Answer) -> bool:
    """The first accusation is the main cause of a fault, not just one that also counts as right."""
    return bool(answer.ids) and answer.ids[0] in [fault[0] for fault in case.faults]


def first(case: Case, answer: Answer) -> bool:
    """The first accusation is one of the accepted causes."""
    return bool(answer.ids) and answer.ids[0] in case.causes


def top3(case: Case, answer: Answer) -> bool:
    """The first three accusations name the fault, or two of several."""
    found = [fault for fault in case.faults if set(fault) & set(answer.ids[:3])]
    return len(found) >= min(2, len(case.faults))


def hits(case: Case, answer: Answer) -> Iterator[bool]:
    """Of each accusation whether it is right; another name for a fault that was already named is neither."""
    unnamed = list(case.faults)
    for cause in answer.ids:
        named = next((fault for fault in unnamed if cause in fault), None)
        if named is not None:
            unnamed.remove(named)
            yield True
        elif cause not in case.causes:
            yield False


def counted(flags: Sequence[bool]) -> dict[str, Any]:
    """How many of how many, with the exact (Clopper-Pearson) 95 % interval of the share."""
    from scipy.stats import binomtest

    n, k = len(flags), sum(flags)
    if not n:
        return {"k": 0, "n": 0, "share": None, "low": None, "high": None}
    interval = binomtest(k, n).proportion_ci(method="exact")
    return {"k": k, "n": n, "share": k / n, "low": interval.low, "high": interval.high}


def calibration(pairs: Pairs) -> dict[str, Any]:
    """Brier score of the first accusation's confidence, that of always saying the share that was right, and
    Spiegelhalter's test that the confidences are true probabilities (two-sided p, none where all are one half)."""
    from scipy.stats import norm

    known = [(a.accused[0][1], float(first(c, a))) for c, a in pairs if a.accused]
    if not known:
        return {"n": 0}
    n, base = len(known), sum(right for _, right in known) / len(known)
    brier = sum((p - right) ** 2 for p, right in known) / n
    spread = math.sqrt(sum((1 - 2 * p) ** 2 * p * (1 - p) for p, _ in known))
    z = sum((right - p) * (1 - 2 * p) for p, right in known) / spread if spread else None
    return {
        "n": n, "brier": brier, "constant": base * (1 - base), "p": None if z is None else float(2 * norm.sf(abs(z))),
    }  # fmt: skip


def scored(pairs: Pairs) -> dict[str, Any]:
    """One row of the table. What broke has said nothing of a fault, and is a false alarm on a healthy training."""
    told = [(c, replace(a, accused=tuple(one for one in a.accused if one[0] not in c.harmless))) for c, a in pairs]
    faulty = [(c, a) for c, a in told if not c.healthy]
    seconds = sorted(a.seconds for _, a in told if not a.broke)
    return {
        "detected": counted([bool(a.accused) for _, a in faulty]),
        "main": counted([main_cause(c, a) for c, a in faulty]),
        "first": counted([first(c, a) for c, a in faulty]),
        "top3": counted([top3(c, a) for c, a in faulty]),
        "precision": counted([right for c, a in told for right in hits(c, a)]),
        "false_alarms": counted([a.broke or bool(a.accused) for c, a in told if c.healthy]),
        "calibration": calibration(told),
        "seconds": {"median": seconds[len(seconds) // 2], "most": seconds[-1]} if seconds else None,
    }
