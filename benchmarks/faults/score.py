"""What answers are worth, beside the truth: counts with exact intervals, nothing that is tuned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cases import Case


@dataclass(frozen=True)
class Answer:
    """What was said of one case: accusations with their confidence, ranked, and the seconds that it took."""

    accused: tuple[tuple[str, float], ...]
    seconds: float = 0.0

    @property
    def ids(self) -> list[str]:
        return [cause for cause, _ in self.accused]


Judge = Callable[[Case, Answer], bool]


def first(case: Case, answer: Answer) -> bool:
    """The first accusation is one of the accepted causes."""
    return bool(answer.ids) and answer.ids[0] in case.causes


def top3(case: Case, answer: Answer) -> bool:
    """One of the first three accusations is accepted; of several faults, the first three name two or more."""
    right = set(answer.ids[:3]) & set(case.causes)
    return len(right) >= (2 if case.several else 1)


def counted(flags: Sequence[bool]) -> dict[str, Any]:
    """How many of how many, with the exact (Clopper-Pearson) 95 % interval of the share."""
    from scipy.stats import binomtest

    n, k = len(flags), sum(flags)
    if not n:
        return {"k": 0, "n": 0, "share": None, "low": None, "high": None}
    interval = binomtest(k, n).proportion_ci(method="exact")
    return {"k": k, "n": n, "share": k / n, "low": interval.low, "high": interval.high}


def precision(pairs: Sequence[tuple[Case, Answer]]) -> dict[str, Any]:
    """Of all accusations, on faulty and healthy trainings, how many were right; flaws that do no harm do not count."""
    return counted([c in case.causes for case, answer in pairs for c in answer.ids if c not in case.harmless])


def calibration(pairs: Sequence[tuple[Case, Answer]]) -> dict[str, Any]:
    """Brier score of the first accusation's confidence, that of always saying the share that was right, and
    Spiegelhalter's test that the confidences are true probabilities (two-sided p)."""
    from scipy.stats import norm

    known = [(a.accused[0][1], float(first(c, a))) for c, a in pairs if a.accused and a.ids[0] not in c.harmless]
    if not known:
        return {"n": 0}
    n, base = len(known), sum(right for _, right in known) / len(known)
    brier = sum((p - right) ** 2 for p, right in known) / n
    spread = math.sqrt(sum((1 - 2 * p) ** 2 * p * (1 - p) for p, _ in known))
    z = sum((right - p) * (1 - 2 * p) for p, right in known) / spread if spread else math.nan
    return {"n": n, "brier": brier, "constant": base * (1 - base), "p": float(2 * norm.sf(abs(z)))}


def scored(pairs: Sequence[tuple[Case, Answer]]) -> dict[str, Any]:
    """One row of the table."""
    faulty = [(c, a) for c, a in pairs if not c.healthy]
    healthy = [(c, a) for c, a in pairs if c.healthy]
    seconds = sorted(a.seconds for _, a in pairs)
    return {
        "detected": counted([bool(a.accused) for _, a in faulty]),
        "first": counted([first(c, a) for c, a in faulty]),
        "top3": counted([top3(c, a) for c, a in faulty]),
        "precision": precision(pairs),
        "false_alarms": counted([bool(set(a.ids) - set(c.harmless)) for c, a in healthy]),
        "calibration": calibration(pairs),
        "seconds": {"median": seconds[len(seconds) // 2], "most": seconds[-1]} if seconds else None,
    }
