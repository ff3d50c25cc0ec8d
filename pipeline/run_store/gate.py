"""Gates: pure functions from items, waivers and sign-offs to open, closed or pending."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, TypedDict

from pipeline.results import Branch, GateState, Outcome, compared

NOT_BUILT = "not built"  # how the `why` of an item begins that this version cannot answer


def utc_today() -> date:
    """Today in UTC, as in the times of the ledger: a waiver expires on the same day everywhere."""
    return datetime.now(UTC).date()


class BranchInputs(TypedDict):
    """What the branch is decided on: target reached, shown to beat the trivial baseline, ids of blocking symptoms."""

    target: bool
    trivial: bool
    symptoms: list[str]


@dataclass(frozen=True)
class Item:
    """One question of a gate with its outcome, as `item.evaluated` records it."""

    id: str
    ask: str
    outcome: Outcome
    value: Any = None
    bound: Any = None
    unit: str = ""
    why: str = ""
    cause: str | None = None
    waivable: bool = True
    sign_off: str | None = None
    evidence: tuple[str, ...] = ()
    relation: str = ""  # that passing requires between value and bound; empty in runs of earlier versions

    @property
    def warns(self) -> bool:
        """Whether the item passed with a warning."""
        return self.outcome == "passed" and "warning: " in self.why

    @property
    def is_built(self) -> bool:
        """Whether this version can answer the item. One that it cannot answer is recorded as errored."""
        return not (self.outcome == "errored" and self.why.startswith(NOT_BUILT))

    @property
    def label(self) -> str:
        """The outcome in words, as people read it; the recorded outcome keeps its closed list of words."""
        if not self.is_built:
            return "not implemented"
        return "passed with warning" if self.warns else self.outcome.replace("_", " ")


@dataclass(frozen=True)
class Waiver:
    """A named person accepts a check (or a validation below the target) as it is, for a reason, until a day."""

    phase: str
    item: str
    who: str
    why: str
    expires: str
    seq: int = -1

    def valid(self, today: date) -> bool:
        return today <= date.fromisoformat(self.expires)


@dataclass(frozen=True)
class SignOff:
    """A person's signature for one item, bound to the digest of what was signed."""

    phase: str
    item: str
    who: str
    digest: str
    note: str = ""
    seq: int = -1


def satisfied(
    item: Item, waivers: Iterable[Waiver], signed: Iterable[SignOff], subject: str | None, today: date
) -> bool:
    """Whether an item lets its gate open: passed, not applicable, signed, or waived and not expired.

    `subject` is the digest that a sign-off must be bound to; a signature of anything else does not count.
    """
    if item.outcome in ("passed", "not_applicable"):
        return True
    if item.sign_off and subject and any(s.item == item.id and s.digest == subject for s in signed):
        return True
    return item.waivable and any(w.item == item.id and w.valid(today) for w in waivers)


def decide(
    items: Iterable[Item],
    waivers: Iterable[Waiver] = (),
    signed: Iterable[SignOff] = (),
    subject: str | None = None,
    today: date | None = None,
) -> GateState:
    """The state of a gate: open when every item is satisfied, pending when only signatures are missing, else closed.

    A gate without any evaluated item is closed.
    """
    today = today or utc_today()
    waivers, signed, items = list(waivers), list(signed), list(items)
    left = [i for i in items if not satisfied(i, waivers, signed, subject, today)]
    if not items:
        return "closed"
    if not left:
        return "open"
    return "pending" if all(i.outcome == "pending" for i in left) else "closed"


def branch_conditions(decision: Mapping[str, Any]) -> list[str]:
    """The three facts that a recorded branch was decided on, in words, with the validation score where it is known."""
    score, symptoms = decision.get("score"), decision["symptoms"]
    figures = ""
    if score and decision.get("target_value") is not None:
        figures = compared(score["value"], decision["target_value"], bool(score.get("greater_is_better", True)))
        figures = f" ({score['metric']} {figures})"
    return [
        f"target {'reached' if decision['target'] else 'missed'}{figures}",
        ("" if decision["trivial"] else "not shown to be ") + "better than the trivial baseline",
        f"blocking {'symptom' if len(symptoms) == 1 else 'symptoms'}: {', '.join(symptoms)}"
        if symptoms
        else "no blocking symptom",
    ]


def branch(target: bool, trivial: bool, symptoms: Iterable[str]) -> Branch:
    """Whether a model is good enough to finish: target reached, better than trivial, no blocking symptom."""
    return "sufficient" if target and trivial and not list(symptoms) else "insufficient"
