"""From a history to a diagnosis: every playbook is judged, its causes are weighed and merged, their cures resolved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diagnostics.conditions import Condition, Observation, View, observe
from diagnostics.confidence import Confidence, weigh
from diagnostics.diagnosis import Diagnosis, Fix, RootCause, Symptom
from diagnostics.playbook import CandidateCause, Kind, Playbook, load_all
from pipeline.history import History
from pipeline.repair import causes as vocabulary
from pipeline.repair.config_edits import look
from pipeline.repair.cures import resolve
from pipeline.results import CEILINGS

MIN_FIXES = 3
NOT_BUILT = {
    "what": "controlled experiments",
    "why": "run phase=optimization; experiments inside diagnostics are not built in this version",
}
# Numbers of a config that conditions may ask for as facts, unless the history has measured them.
CONFIG_FACTS = {
    "target": "task.target",
    "batch_size": "loader.batch_size",
    "gradient_clip_val": "trainer.gradient_clip_val",
    "dropout": "model.dropout",
    "weight_decay": "optimizer.weight_decay",
}


@dataclass(frozen=True)
class PlaybookMatch:
    """A playbook beside a history: each condition observed."""

    playbook: Playbook
    observations: tuple[Observation, ...]

    @property
    def fires(self) -> bool:
        return all(o.holds for o in self.observations)

    @property
    def undecided(self) -> list[Observation]:
        """What was missing, where that alone keeps the playbook from firing."""
        missing = [o for o in self.observations if not o.measured]
        return missing if all(o.holds for o in self.observations if o.measured) else []


@dataclass(frozen=True)
class CauseScore:
    """A cause with all that supports and contradicts it, over every playbook that fired."""

    suspects: tuple[CandidateCause, ...]
    seen: Mapping[Condition, Observation]
    report: bool  # the history was read from somebody's logs

    @property
    def id(self) -> str:
        return self.suspects[0].id

    @property
    def held(self) -> list[Observation]:
        return [o for o in self.seen.values() if o.holds]

    @property
    def measured(self) -> int:
        return sum(o.measured for o in self.seen.values())

    @property
    def basis(self) -> str:
        """Without support it is an inference; from logs alone a report; else what the playbook stands on."""
        if not self.held:
            return "inference"
        return "report" if self.report else max((s.basis for s in self.suspects), key=lambda b: CEILINGS[b])

    @property
    def named(self) -> bool:
        """Plausible to one of the playbooks: the first support, which it cannot do without, is not contradicted."""
        return any(self._plausible([self.seen[c] for c in suspect.supported_by]) for suspect in self.suspects)

    @staticmethod
    def _plausible(supports: list[Observation]) -> bool:
        if supports and supports[0].measured:
            return supports[0].holds
        measured = [o for o in supports if o.measured]
        return not measured or any(o.holds for o in measured)

    def confidence(self) -> Confidence:
        """A first support that nobody measured weighs like one that does not hold: less evidence, less confidence."""
        firsts = {suspect.supported_by[0] for suspect in self.suspects if suspect.supported_by}
        unknown = sum(not self.seen[c].measured for c in firsts)
        return weigh(len(self.held), self.measured + unknown, self.basis)


def diagnose(history: History, config: Mapping[str, Any] | None = None, round: int = 1) -> Diagnosis:
    """What the history shows, why, and what to change; candidates only, since nothing is trained here.

    `config` (a resolved plan) turns cures into overrides. Missing measurements lower confidence and are listed.
    """
    view = _view(history, config)
    judged = [PlaybookMatch(p, tuple(observe(c, view) for c in p.when)) for p in load_all()]
    firing = sorted((j for j in judged if j.fires), key=lambda j: j.playbook.severity != "blocking")
    report = any(event["kind"] == "imported" for event in history.events)
    ranked = sorted(_weigh(firing, view, report), key=lambda w: -w.confidence().value)
    named = [w for w in ranked if w.named]
    fixes = list(_fixes(named, config))
    if named and len(fixes) < MIN_FIXES:
        fixes += list(_fixes([w for w in ranked if not w.named], config))
    symptoms = tuple(Symptom(j.playbook.id, j.playbook.symptom, j.playbook.severity, j.observations) for j in firing)
    return Diagnosis(
        symptoms,
        tuple(_root_cause(w, config) for w in named),
        tuple(fixes),
        tuple(f.remedy.description for f in fixes if f.remedy.overrides and f.kind != "prevention")[:3],
        tuple(_not_checked(judged, ranked)),
        _statement(judged, ranked) + _made_again(history),
        tuple(j.playbook.id for j in judged),
        round,
    )


def _view(history: History, config: Mapping[str, Any] | None) -> View:
    facts = dict(history.facts)
    for name, key in CONFIG_FACTS.items():
        value = look(config or {}, key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            facts.setdefault(name, float(value))
        elif value is None and name == "gradient_clip_val":
            facts.setdefault(name, math.inf)  # no bound is a bound that nothing reaches
    if any(event["kind"] == "nonfinite" for event in history.events):
        facts["broken"] = math.nan  # a gradient that was withheld leaves no other mark
    precision = str(((config or {}).get("trainer") or {}).get("precision", ""))
    if precision:
        facts.setdefault("precision_bits", 16.0 if "16" in precision else 32.0)
    metric = ((config or {}).get("task") or {}).get("metric")
    return View(history, facts, metric if isinstance(metric, str) else None)


def _weigh(firing: Iterable[PlaybookMatch], view: View, report: bool) -> Iterator[CauseScore]:
    """Each cause once, with the distinct conditions of all playbooks that propose it."""
    suspects: dict[str, list[CandidateCause]] = {}
    for judged in firing:
        for suspect in judged.playbook.causes:
            suspects.setdefault(suspect.id, []).append(suspect)
    for entries in suspects.values():
        conditions = dict.fromkeys(c for entry in entries for c in entry.supported_by)
        yield CauseScore(tuple(entries), {c: observe(c, view) for c in conditions}, report)


def _cures(weighed: CauseScore) -> dict[str, tuple[Kind, Condition | None]]:
    """The cures of all playbooks in their order, each with what it should bring about."""
    found: dict[str, tuple[Kind, Condition | None]] = {}
    for suspect in weighed.suspects:
        for cure, kind in suspect.cures:
            found.setdefault(cure, (kind, suspect.expect))
    return found


def _fixes(ranked: Iterable[CauseScore], config: Mapping[str, Any] | None) -> Iterator[Fix]:
    """Every remedy once, causes in their rank, cures in the playbooks' order, small changes before large."""
    seen: list[Any] = []
    for weighed in ranked:
        for cure, (kind, expect) in _cures(weighed).items():
            impact = f"{expect} comes to lie {expect.bound}" if expect else "the symptom disappears"
            for remedy in resolve(cure, weighed.id, config):
                change = (remedy.overrides, remedy.surgery, remedy.code)
                if change not in seen:
                    seen.append(change)
                    yield Fix(weighed.id, kind, remedy, impact)


def _root_cause(weighed: CauseScore, config: Mapping[str, Any] | None) -> RootCause:
    first = next(iter(_cures(weighed)))
    return RootCause(
        weighed.id,
        vocabulary.load()[weighed.id].means,
        weighed.confidence(),
        tuple(o.sentence() for o in weighed.held),
        resolve(first, weighed.id, config)[0].description,
        weighed.suspects[0].cites,
    )


def _not_checked(judged: Iterable[PlaybookMatch], ranked: Iterable[CauseScore]) -> Iterator[dict[str, str]]:
    """What could not be measured: playbooks left undecided by it, then supports of causes, then what is not built."""
    for j in judged:
        if j.undecided:
            why = "; ".join(dict.fromkeys(o.why for o in j.undecided))
            yield {"what": f"symptom {j.playbook.id}", "why": why}
    missing: dict[tuple[str, str], list[str]] = {}
    for weighed in ranked:
        for o in weighed.seen.values():
            if not o.measured:
                missing.setdefault((str(o.condition), o.why), []).append(weighed.id)
    for (what, why), ids in missing.items():
        yield {"what": f"{what} (for {', '.join(ids)})", "why": why}
    yield NOT_BUILT


def _made_again(history: History) -> str:
    """What the guilty step showed when it was made again with hooks; empty where none was."""
    found = [event for event in history.events if event["kind"] == "origin"]
    if not found:
        return ""
    step, what, module, rows = (found[-1].get(key) for key in ("step", "what", "module", "rows"))
    place = f"{what} of {module}" if module else str(what)
    shown = f", in train rows {', '.join(map(str, rows))}" if rows else ""
    return f" Made again, step {step} shows the first tensor that is not finite: {place}{shown}."


def _statement(judged: list[PlaybookMatch], ranked: list[CauseScore]) -> str:
    """How sure the whole is, in two or three sentences."""
    undecided = [j.playbook.id for j in judged if j.undecided and not j.fires]
    left = f" Not decided for want of measurements: {', '.join(undecided)}." if undecided else ""
    if not any(j.fires for j in judged):
        return f"None of {len(judged)} playbooks sees its symptom in this history.{left}"
    named = [w for w in ranked if w.named]
    if not named:
        return f"A symptom is plain, and what was measured contradicts every cause that the playbooks know.{left}"
    first = named[0]
    sure = first.confidence()
    seen = f"{len(first.held)} of {first.measured} measured supports hold" if first.measured else "nothing decides it"
    against = [w.id for w in ranked if not w.named]
    out = f" Contradicted by what was measured: {', '.join(against)}." if against else ""
    return (
        f"{first.id} is named first, confidence {sure.value:.2f} on {sure.basis} (at most {CEILINGS[sure.basis]:.2f}): "
        f"{seen}. Every cause is a candidate until an experiment decides.{out}{left}"
    )
