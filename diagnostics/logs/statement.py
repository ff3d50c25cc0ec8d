"""What a person says of a training, in words: the symptoms that the words name, when they began, and likely causes.

Words are the weakest evidence. Nothing of them is measured, so every cause stays possible: causes are considered and
none is named, and the diagnosis says which measurement would raise each of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diagnostics.candidates import support_share
from diagnostics.diagnosis import Considered, Diagnosis, Fix, Symptom
from diagnostics.playbook import CandidateCause, Playbook, load_all
from diagnostics.signals import description
from pipeline.errors import UserError, fault
from pipeline.repair.cures import resolve
from pipeline.repair.diagnosis_record import GapRecord
from pipeline.results import CEILINGS

BASIS = "report"
QUESTIONS = 6  # that are asked at most
_WHEN = re.compile(r"\b(?:at|since|after|from|in)?\s*(epoch|step|iteration|iter)\s*[=:#]?\s*(\d+)", re.IGNORECASE)
_AT = re.compile(r"(epoch|step)=(\d+)")


@dataclass(frozen=True)
class Statement:
    """The playbooks whose symptom the words name, and the epoch or step since when."""

    text: str
    playbooks: tuple[Playbook, ...]
    since: str = ""


def understand(text: str, at: str | None = None) -> Statement:
    """Return what the words say. Raises UserError if they name no symptom, or if `at` is no time such as `epoch=7`."""
    if at is not None and not _AT.fullmatch(at):
        raise UserError(fault("--at", "is not a time", got=at, expected="epoch=7 or step=100"))
    words = " ".join(re.findall(r"[a-z0-9_']+", text.lower()))
    playbooks = tuple(p for p in load_all() if any(re.search(rf"\b(?:{phrase})", words) for phrase in p.said))
    if not playbooks:
        known = "; ".join(p.symptom for p in load_all() if p.said)
        do = 'python -m pipeline diagnose --symptom "loss is NaN since epoch 3"'
        raise UserError(fault("--symptom", "names no symptom that is known", got=text, expected=known, do=do))
    match = _AT.fullmatch(at) if at else _WHEN.search(text)
    since = f"{match[1].lower().replace('iteration', 'step')} {match[2]}" if match else ""
    return Statement(text, playbooks, since.replace("iter ", "step "))


def diagnose_statement(statement: Statement) -> Diagnosis:
    """Return the causes that the named symptoms may have, in the order of their playbooks, and what would decide.

    A cause whose own words are in the text, such as `learning rate`, has one supporting statement.
    """
    candidates: dict[str, CandidateCause] = {}
    for playbook in statement.playbooks:
        for candidate in playbook.causes:
            candidates.setdefault(candidate.id, candidate)
    ranked = sorted(candidates.values(), key=lambda candidate: -_mentions(candidate, statement.text))
    symptoms = tuple(Symptom(p.id, p.symptom, p.severity, ()) for p in statement.playbooks)
    since = f", since {statement.since}" if statement.since else ""
    unmeasured: GapRecord = {"what": "everything", "why": "there is only a statement, and no log of the training"}
    return Diagnosis(
        symptoms=symptoms,
        root_causes=(),
        considered=tuple(_considered(candidate, statement) for candidate in ranked),
        fixes=tuple(_fixes(ranked)),
        not_checked=(unmeasured,),
        would_decide=tuple(_questions(ranked)),
        confidence_statement=(
            f"You report: {statement.text.strip()!r}{since}. Nothing was measured, so no cause is named: each one "
            f"below is a cause that this symptom often has, with a confidence on words alone ({BASIS}, at most "
            f"{CEILINGS[BASIS]:.2f}) and the measurement that would raise it."
        ),
        evaluated=tuple(p.id for p in statement.playbooks),
    )


def _mentions(candidate: CandidateCause, text: str) -> int:
    """Return whether the text names the thing that the cause is about: its id without how it is wrong."""
    thing = re.sub(r"_(too|not|mis|missing|bad|wrong).*$", "", candidate.id).replace("_", " ")
    return int(len(thing) > 3 and thing in text.lower().replace("_", " "))


def _considered(candidate: CandidateCause, statement: Statement) -> Considered:
    mentions = _mentions(candidate, statement.text)
    confidence = round(CEILINGS[BASIS] * support_share(mentions, mentions), 3)
    evidence = ("the statement names it",) if mentions else ()
    measured = [
        f"{description(support.signal, support.of)} is {support.bound}" for support in candidate.supported_by[:1]
    ]
    why = f"nothing was measured; it becomes likelier if the {measured[0]}" if measured else "nothing was measured"
    return Considered(candidate.id, confidence, evidence, why)


def _fixes(ranked: Sequence[CandidateCause]) -> list[Fix]:
    fixes: list[Fix] = []
    for candidate in ranked:
        for cure, kind in candidate.cures:
            remedy = resolve(cure, candidate.id, None)[0]
            if remedy not in [fix.remedy for fix in fixes]:
                fixes.append(Fix(candidate.id, kind, remedy, "the symptom disappears"))
    return fixes


def _questions(ranked: Sequence[CandidateCause]) -> list[str]:
    """Return what to measure: the first support of each cause, as a question."""
    questions = []
    for candidate in ranked:
        for support in candidate.supported_by[:1]:
            measured = description(support.signal, support.of)
            questions.append(f"Is the {measured} {support.bound}? Then {candidate.id} is more likely.")
    return list(dict.fromkeys(questions))[:QUESTIONS]
