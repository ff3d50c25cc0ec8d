"""Gates decide: items with outcomes, waivers and sign-offs in; open, closed or pending out. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from pipeline.results import Branch, GateState, Outcome


def utc_today() -> date:
    """The day that waivers are held against, the same everywhere: ledger entries bear UTC times, too."""
    return datetime.now(UTC).date()


@dataclass(frozen=True)
class Item:
    """One question of a gate with its outcome: what `item.evaluated` records and what people read."""

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


@dataclass(frozen=True)
class Waiver:
    """A named person accepts an item (or the branch) as it is, for a reason, until a day (inclusive)."""

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
    """A name typed by a person for one item, bound to the digest of what was looked at."""

    phase: str
    item: str
    who: str
    digest: str
    note: str = ""
    seq: int = -1


def satisfied(
    item: Item, waivers: Iterable[Waiver], signed: Iterable[SignOff], subject: str | None, today: date
) -> bool:
    """Whether an item lets its gate open: passed, not applicable, signed for this very subject, or validly waived.

    `subject` is the digest a sign-off must be bound to; a signature under anything else does not count.
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
    """The state of a gate: open when every item is satisfied, pending when only people are missing, else closed.

    A gate without a single evaluated item is closed: nothing asked is nothing proved.
    """
    today = today or utc_today()
    waivers, signed, items = list(waivers), list(signed), list(items)
    left = [i for i in items if not satisfied(i, waivers, signed, subject, today)]
    if not items:
        return "closed"
    if not left:
        return "open"
    return "pending" if all(i.outcome == "pending" for i in left) else "closed"


def branch(target: bool, trivial: bool, symptoms: Iterable[str]) -> Branch:
    """Whether a model is good enough to finish: target reached, better than trivial, no blocking symptom."""
    return "sufficient" if target and trivial and not list(symptoms) else "insufficient"
