"""Gates: pure functions from items, waivers and sign-offs to open, closed or pending."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypedDict

from pipeline.results import Branch, GateState, Outcome, canonical, compared, counted, digest

NOT_BUILT = "not built"  # how the `why` of an item begins that this version cannot answer
LONGEST_WAIVER = timedelta(days=366)  # from the day it is given to its last day: a year, also where it is a leap year
NAMED = 3  # changes that a sentence lists


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
    basis: str = "automatic"  # `attested` where the outcome rests on a statement of a person
    acceptable: str = ""  # the statement of the plan that accepts an inconclusive outcome: small_sample, not_audited
    accepted_by: str = ""  # who made this statement in the plan, and why; empty without it

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
class Gate:
    """One evaluation of a phase's exit gate: its items, and what the phase was built on (`basis`, a ledger seq)."""

    phase: str
    round: int
    revision: int
    basis: int
    seq: int
    items: tuple[Item, ...]
    subject: str | None = None


def people_in(named: Mapping[str, Any], role: str) -> list[str]:
    """The person who has a role in the plan, and the plan's approvers; `named` are the people of the plan's entry."""
    names = [named.get(role), *named.get("approvers", ())]
    return list(dict.fromkeys(str(name).strip() for name in names if name and str(name).strip()))


def signers_in(named: Mapping[str, Any], role: str) -> list[str]:
    """Who may sign. An owner does not approve their own work if the plan names an approver."""
    people, author = people_in(named, role), str(named.get(role) or "").strip()
    return [name for name in people if name != author] or people


def sign_off_refusal(who: str, named: Mapping[str, Any], roles: Iterable[str]) -> str:
    """Why a signature of this person for an item with these roles does not count; empty for one that counts."""
    roles = list(roles)
    if any(who in signers_in(named, role) for role in roles):
        return ""
    if any(who in people_in(named, role) for role in roles):
        return "the plan names an approver for the owner's work"
    return "the plan does not name this person for it"


def waiver_refusal(who: str, allowed: Iterable[str], expires: str, given: date) -> str:
    """Why a waiver given on that day does not count, as what follows its name; empty for one that counts.

    `allowed` are the people of the plan who may waive. A waiver that never ends would be a change of the checklist.
    """
    if who not in allowed:
        return f"{who} is neither the owner nor an approver of the plan"
    try:
        last = date.fromisoformat(expires)
    except ValueError:
        return f"its last day, {expires}, is not a date"
    if last - given > LONGEST_WAIVER:
        return f"its last day, {expires}, is more than a year after {given.isoformat()}"
    return ""


@dataclass(frozen=True)
class Waiver:
    """A named person accepts a check (or a validation below the target) as it is, for a reason, until a day.

    `refusal` is why it does not count, which only an entry can have that no command wrote.
    """

    phase: str
    item: str
    who: str
    why: str
    expires: str
    seq: int = -1
    refusal: str = ""

    @classmethod
    def recorded(cls, data: Mapping[str, Any], seq: int, time: str, allowed: Iterable[str]) -> Waiver:
        """The waiver of an entry, which counts only where the plan knows its person and it lasts at most a year."""
        terms = {key: str(data.get(key, "")) for key in ("phase", "item", "who", "why", "expires")}
        refusal = waiver_refusal(terms["who"], allowed, terms["expires"], date.fromisoformat(time[:10]))
        return cls(**terms, seq=seq, refusal=refusal)

    def valid(self, today: date) -> bool:
        return not self.refusal and today <= date.fromisoformat(self.expires)

    @property
    def terms(self) -> dict[str, str]:
        """What a signature of a bundle accepts with it."""
        return {"phase": self.phase, "item": self.item, "who": self.who, "why": self.why, "expires": self.expires}


Outcomes = Mapping[str, Mapping[str, str]]  # of the items, by phase


def signed_digest(subject: str, outcomes: Outcomes, waivers: Iterable[Mapping[str, str]]) -> str:
    """One SHA-256 over all that a signature accepts: the bundle, the outcomes of the items, the waivers in force."""
    terms = sorted((dict(terms) for terms in waivers), key=canonical)
    return digest({"subject": subject, "outcomes": outcomes, "waivers": terms})


@dataclass(frozen=True)
class SignOff:
    """A person's signature for one item: of a bundle (`digest`), the outcomes of all items and the waivers in force.

    `binding` is the digest over the three (`signed_digest`). `refusal` is why the signature does not count.
    """

    phase: str
    item: str
    who: str
    digest: str
    note: str = ""
    outcomes: Outcomes = field(default_factory=dict)
    waivers: tuple[Mapping[str, str], ...] = ()
    binding: str = ""
    seq: int = -1
    refusal: str = ""

    @classmethod
    def recorded(cls, data: Mapping[str, Any], seq: int, named: Mapping[str, Any], roles: Iterable[str]) -> SignOff:
        """The signature of an entry, which counts only where the plan lets its person sign for a role of the item."""
        keys = ("phase", "item", "who", "digest", "note", "outcomes", "binding")
        known = {key: data[key] for key in keys if key in data}
        refusal = sign_off_refusal(data["who"], named, roles)
        return cls(**known, waivers=tuple(data.get("waivers", ())), seq=seq, refusal=refusal)

    def lapse(self, subject: str | None, outcomes: Outcomes, waivers: Iterable[Waiver]) -> str:
        """Why the signature does not count for these outcomes and waivers, as a clause; empty where it counts.

        A waiver that was signed and has expired is no reason: its item closes the gate by itself.
        """
        if self.refusal:
            return f"the signature of {self.who} does not count: {self.refusal}"
        if self.digest != subject:
            return f"{self.who} signed another bundle, {self.digest[:12]}"
        if self.binding != signed_digest(self.digest, self.outcomes, self.waivers):
            return f"the signature of {self.who} is not of the outcomes and waivers beside it"
        if changes := _outcome_changes(self.outcomes, outcomes):
            return f"signed before {_listed(changes)}"
        given = [f"{w.phase}/{w.item}" for w in waivers if w.terms not in self.waivers]
        if given:
            verb = "was" if len(given) == 1 else "were"
            return f"signed before {counted(len(given), 'waiver')} {verb} given: {_listed(given)}"
        return ""


def _outcome_changes(signed: Outcomes, current: Outcomes) -> list[str]:
    """Every item whose outcome is not the one that was signed, with both."""
    changes = []
    for phase in dict.fromkeys([*signed, *current]):
        old, new = signed.get(phase, {}), current.get(phase, {})
        if not old or not new:
            changes.append(f"{phase} was evaluated" if new else f"{phase} was evaluated for another plan or training")
            continue
        pairs = {item: (old.get(item, "nothing"), new.get(item, "nothing")) for item in [*new, *old]}
        changes += [f"{item} changed from {was} to {now}" for item, (was, now) in pairs.items() if was != now]
    return changes


def _listed(texts: list[str]) -> str:
    rest = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return ", ".join(texts[:NAMED]) + rest


def satisfied(
    item: Item, waivers: Iterable[Waiver], signed: Iterable[SignOff], subject: str | None, today: date
) -> bool:
    """Whether an item lets its gate open: passed, not applicable, accepted by the plan, signed, or waived.

    `subject` is the digest that a sign-off must be bound to; a signature of anything else does not count.
    """
    if item.outcome in ("passed", "not_applicable") or item.accepted_by:
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
