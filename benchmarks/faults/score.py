"""Compares answers with the truth: counts with exact confidence intervals, without any tuned parameter.

Accusations of harmless flaws are removed before anything is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cases import Case


@dataclass(frozen=True)
class Answer:
    """The ranked accusations of one case with their confidence; its duration; and whether it raised an error.

    `considered` are the causes that the diagnosis shows below them without naming them, in its order.
    """

    accused: tuple[tuple[str, float], ...]
    seconds: float = 0.0
    broke: bool = False
    considered: tuple[str, ...] = ()

    @property
    def ids(self) -> list[str]:
        return [cause for cause, _ in self.accused]


Pairs = Sequence[tuple[Case, Answer]]
Criterion = Callable[[Case, Answer], bool]


def main_cause_first(case: Case, answer: Answer) -> bool:
    """Return whether the first accusation is the main cause of a fault, not only an accepted one."""
    return bool(answer.ids) and answer.ids[0] in [fault[0] for fault in case.faults]


def accepted_cause_first(case: Case, answer: Answer) -> bool:
    """Return whether the first accusation is an accepted cause."""
    return bool(answer.ids) and answer.ids[0] in case.causes


def in_first_three(case: Case, answer: Answer) -> bool:
    """Return whether the first three accusations name the fault, or two of several faults."""
    return _name_faults(case, answer.ids[:3])


def shown_in_first_three(case: Case, answer: Answer) -> bool:
    """Return whether the first three causes that a user sees, named or considered, contain the same."""
    return _name_faults(case, [*answer.ids, *answer.considered][:3])


def _name_faults(case: Case, causes: Collection[str]) -> bool:
    named = [fault for fault in case.faults if set(fault) & set(causes)]
    return len(named) >= min(2, len(case.faults))


def correct_accusations(case: Case, answer: Answer) -> Iterator[bool]:
    """Yield for each accusation whether it is right. A second name of a named fault counts neither way."""
    unnamed = list(case.faults)
    for cause in answer.ids:
        named = next((fault for fault in unnamed if cause in fault), None)
        if named is not None:
            unnamed.remove(named)
            yield True
        elif cause not in case.causes:
            yield False


def count(flags: Sequence[bool]) -> dict[str, Any]:
    """Return how many flags are set, of how many, and the exact (Clopper-Pearson) 95 % interval of the share."""
    from scipy.stats import binomtest

    n, k = len(flags), sum(flags)
    if not n:
        return {"k": 0, "n": 0, "share": None, "low": None, "high": None}
    interval = binomtest(k, n).proportion_ci(method="exact")
    return {"k": k, "n": n, "share": k / n, "low": interval.low, "high": interval.high}


def calibration(pairs: Pairs) -> dict[str, Any]:
    """Return how well the confidence of the first accusation predicts that it is right.

    `brier` is the Brier score, `constant` the Brier score of always predicting the share that was right, and `p` the
    two-sided p-value of Spiegelhalter's test that the confidences are true probabilities (None if all are one half).
    """
    from scipy.stats import norm

    known = [(a.accused[0][1], float(accepted_cause_first(c, a))) for c, a in pairs if a.accused]
    if not known:
        return {"n": 0}
    n, base = len(known), sum(right for _, right in known) / len(known)
    brier = sum((p - right) ** 2 for p, right in known) / n
    spread = math.sqrt(sum((1 - 2 * p) ** 2 * p * (1 - p) for p, _ in known))
    z = sum((right - p) * (1 - 2 * p) for p, right in known) / spread if spread else None
    return {
        "n": n, "brier": brier, "constant": base * (1 - base), "p": None if z is None else float(2 * norm.sf(abs(z))),
    }  # fmt: skip


def _without_harmless(case: Case, answer: Answer) -> Answer:
    accused = tuple(entry for entry in answer.accused if entry[0] not in case.harmless)
    return replace(answer, accused=accused, considered=tuple(c for c in answer.considered if c not in case.harmless))


def score_row(pairs: Pairs) -> dict[str, Any]:
    """Return one row of the table. An error detects no fault, and is a false alarm on a healthy training."""
    answers = [(c, _without_harmless(c, a)) for c, a in pairs]
    faulty = [(c, a) for c, a in answers if not c.healthy]
    seconds = sorted(a.seconds for _, a in answers if not a.broke)
    return {
        "detected": count([bool(a.accused) for _, a in faulty]),
        "main": count([main_cause_first(c, a) for c, a in faulty]),
        "first": count([accepted_cause_first(c, a) for c, a in faulty]),
        "top3": count([in_first_three(c, a) for c, a in faulty]),
        "shown3": count([shown_in_first_three(c, a) for c, a in faulty]),
        "precision": count([right for c, a in answers for right in correct_accusations(c, a)]),
        "false_alarms": count([a.broke or bool(a.accused) for c, a in answers if c.healthy]),
        "calibration": calibration(answers),
        "seconds": {"median": seconds[len(seconds) // 2], "most": seconds[-1]} if seconds else None,
    }
