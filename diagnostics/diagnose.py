"""From a history to a diagnosis: evaluate every playbook, score and merge its causes, and resolve their cures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from diagnostics.conditions import Condition, HistoryView, Observation, evaluate_condition
from diagnostics.confidence import Confidence, confidence_from_support
from diagnostics.diagnosis import Diagnosis, Fix, RootCause, Symptom
from diagnostics.playbook import CandidateCause, Kind, Playbook, load_all
from diagnostics.signals import description
from pipeline.history import History
from pipeline.repair import causes as vocabulary
from pipeline.repair.config_edits import get
from pipeline.repair.cures import Remedy, resolve
from pipeline.repair.diagnosis_record import GapRecord
from pipeline.results import CEILINGS

MIN_FIXES = 3  # a diagnosis that names a cause offers at least this many changes to choose from
BASES = {  # what a confidence is based on, in words
    "inference": "reasoning alone",
    "report": "logs alone",
    "research": "a pattern known from the literature",
    "observation": "an experiment",
    "definition": "a pattern that follows from the definition of the cause",
}
NO_EXPERIMENTS: GapRecord = {
    "what": "controlled experiments",
    "why": "diagnostics runs none in this version; phase=optimization tries the fixes",
}
# Config values that conditions may refer to as facts, unless the history has measured them.
CONFIG_FACTS = {
    "target": "task.target",
    "batch_size": "loader.batch_size",
    "gradient_clip_val": "trainer.gradient_clip_val",
    "dropout": "model.dropout",
    "weight_decay": "optimizer.weight_decay",
}
RemedyFinder = Callable[[str, str], list[Remedy]]  # (cure, cause) -> remedies, the smallest change first


@dataclass(frozen=True)
class PlaybookMatch:
    """A playbook evaluated on a history: one observation per condition."""

    playbook: Playbook
    observations: tuple[Observation, ...]

    @property
    def fires(self) -> bool:
        return all(observation.holds for observation in self.observations)

    @property
    def undecided(self) -> list[Observation]:
        """The conditions that could not be measured, if they alone keep the playbook from firing; else nothing."""
        unmeasured = [o for o in self.observations if not o.measured]
        return unmeasured if all(o.holds for o in self.observations if o.measured) else []


@dataclass(frozen=True)
class CauseScore:
    """A cause with the observations for and against it, from every playbook that fired."""

    candidates: tuple[CandidateCause, ...]
    observations: Mapping[Condition, Observation]
    from_logs: bool  # the history was read from logs of a run trained elsewhere

    @property
    def id(self) -> str:
        return self.candidates[0].id

    @property
    def supporting(self) -> list[Observation]:
        return [observation for observation in self.observations.values() if observation.holds]

    @property
    def measured_count(self) -> int:
        return sum(observation.measured for observation in self.observations.values())

    @property
    def basis(self) -> str:
        """`inference` without support, `report` for logs, else the strongest basis of the entries with support."""
        # An entry of another playbook, of which no measurement holds, adds nothing to the cause.
        supported = [c.basis for c in self.candidates if any(self.observations[s].holds for s in c.supported_by)]
        if not supported:
            return "inference"
        return "report" if self.from_logs else max(supported, key=lambda basis: CEILINGS[basis])

    @property
    def plausible(self) -> bool:
        """Whether at least one playbook's first (necessary) support of the cause is not contradicted."""
        return any(
            self._is_plausible([self.observations[condition] for condition in candidate.supported_by])
            for candidate in self.candidates
        )

    @staticmethod
    def _is_plausible(supports: list[Observation]) -> bool:
        if supports and supports[0].measured:  # the first support is necessary, the others only add confidence
            return supports[0].holds
        measured = [observation for observation in supports if observation.measured]
        return not measured or any(observation.holds for observation in measured)

    def confidence(self) -> Confidence:
        """Return the confidence in the cause. An unmeasured first support counts as one that does not hold."""
        necessary = {candidate.supported_by[0] for candidate in self.candidates if candidate.supported_by}
        unmeasured = sum(not self.observations[condition].measured for condition in necessary)
        return confidence_from_support(len(self.supporting), self.measured_count + unmeasured, self.basis)

    def cures(self) -> dict[str, tuple[Kind, Condition | None]]:
        """Return the cures of all playbooks in their order, each with its kind and the effect to expect."""
        cures: dict[str, tuple[Kind, Condition | None]] = {}
        for candidate in self.candidates:
            for cure, kind in candidate.cures:
                cures.setdefault(cure, (kind, candidate.expect))
        return cures


def diagnose(history: History, config: Mapping[str, Any] | None = None, round: int = 1) -> Diagnosis:
    """Return the symptoms in a history, their ranked candidate causes, and changes to try. Nothing is trained.

    With `config` (the resolved config of the run) fixes are overrides of its keys, without it lines of code.
    A missing measurement lowers confidence and is listed under `not_checked`; it never raises.
    """
    view = _view(history, config)
    find_remedies = partial(resolve, config=config)
    matches = [PlaybookMatch(p, tuple(evaluate_condition(c, view) for c in p.when)) for p in load_all()]
    # Blocking symptoms come first, so that their causes win among causes of equal confidence.
    firing = sorted((m for m in matches if m.fires), key=lambda m: m.playbook.severity != "blocking")
    from_logs = any(event["kind"] == "imported" for event in history.events)
    ranked = sorted(_score_causes(firing, view, from_logs), key=lambda score: -score.confidence().value)
    plausible = [score for score in ranked if score.plausible]
    fixes = list(_fixes(plausible, find_remedies))
    if plausible and len(fixes) < MIN_FIXES:  # then also for causes that are contradicted: those cures may still help
        fixes += list(_fixes([score for score in ranked if not score.plausible], find_remedies))
    symptoms = tuple(Symptom(m.playbook.id, m.playbook.symptom, m.playbook.severity, m.observations) for m in firing)
    return Diagnosis(
        symptoms,
        root_causes=tuple(_root_cause(score, find_remedies) for score in plausible),
        fixes=tuple(fixes),
        quick_wins=tuple(f.remedy.description for f in fixes if f.remedy.overrides and f.kind != "prevention")[:3],
        not_checked=tuple(_not_checked(matches, ranked)),
        would_decide=() if plausible else tuple(_would_decide(history, matches)),
        confidence_statement=_confidence_statement(matches, ranked) + _replay_sentence(history),
        evaluated=tuple(m.playbook.id for m in matches),
        round=round,
    )


def _view(history: History, config: Mapping[str, Any] | None) -> HistoryView:
    """Combine the measured facts of a history with those that its config states."""
    facts = dict(history.facts)
    for name, key in CONFIG_FACTS.items():
        value = get(config or {}, key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            facts.setdefault(name, float(value))
        elif value is None and name == "gradient_clip_val":
            facts.setdefault(name, math.inf)  # no clipping is a bound that no gradient reaches
    precision = str(((config or {}).get("trainer") or {}).get("precision", ""))
    if precision:
        facts.setdefault("precision_bits", 16.0 if "16" in precision else 32.0)
    metric = ((config or {}).get("task") or {}).get("metric")
    return HistoryView(history, facts, metric if isinstance(metric, str) else None)


def _score_causes(firing: Iterable[PlaybookMatch], view: HistoryView, from_logs: bool) -> Iterator[CauseScore]:
    """Yield each cause once, with the distinct conditions of every playbook that lists it."""
    candidates: dict[str, list[CandidateCause]] = {}
    for match in firing:
        for candidate in match.playbook.causes:
            candidates.setdefault(candidate.id, []).append(candidate)
    for entries in candidates.values():
        conditions = dict.fromkeys(c for entry in entries for c in entry.supported_by)
        yield CauseScore(tuple(entries), {c: evaluate_condition(c, view) for c in conditions}, from_logs)


def _fixes(ranked: Iterable[CauseScore], find_remedies: RemedyFinder) -> Iterator[Fix]:
    """Yield each remedy once: causes by rank, cures in the order of the playbooks, small changes before large ones."""
    changes = []
    for score in ranked:
        for cure, (kind, expect) in score.cures().items():
            impact = "the symptom disappears"
            if expect:
                impact = f"{description(expect.signal, expect.of)} is {expect.bound}"
            for remedy in find_remedies(cure, score.id):
                change = (remedy.overrides, remedy.surgery, remedy.code)
                if change not in changes:
                    changes.append(change)
                    yield Fix(score.id, kind, remedy, impact)


def _root_cause(score: CauseScore, find_remedies: RemedyFinder) -> RootCause:
    first_cure = next(iter(score.cures()))
    return RootCause(
        score.id,
        vocabulary.load()[score.id].means,
        score.confidence(),
        tuple(observation.sentence() for observation in score.supporting),
        find_remedies(first_cure, score.id)[0].description,
        score.candidates[0].cites,
    )


def _not_checked(matches: Iterable[PlaybookMatch], ranked: Iterable[CauseScore]) -> Iterator[GapRecord]:
    """Yield what could not be measured: undecided playbooks, then supports of causes, then the missing experiments."""
    for match in matches:
        if match.undecided:
            why = "; ".join(dict.fromkeys(observation.why for observation in match.undecided))
            yield {"what": f"symptom {match.playbook.id}", "why": why}
    unmeasured: dict[tuple[str, str], list[str]] = {}
    for score in ranked:
        for observation in score.observations.values():
            if not observation.measured:
                unmeasured.setdefault((str(observation.condition), observation.why), []).append(score.id)
    for (what, why), ids in unmeasured.items():
        yield {"what": f"{what} (for {', '.join(ids)})", "why": why}
    yield NO_EXPERIMENTS


def _would_decide(history: History, matches: Iterable[PlaybookMatch]) -> Iterator[str]:
    """Yield what would name a cause: a training, the missing measurements, or a change that a person compares."""
    if not history.names():
        yield "a training: no measurement of one is on record"
        return
    for match in matches:
        if match.undecided:
            why = "; ".join(dict.fromkeys(observation.why for observation in match.undecided))
            yield f"what the playbook {match.playbook.id} could not measure: {why}"
    yield "a change that no playbook lists (more data, other features, another model), compared on several seeds"


def _replay_sentence(history: History) -> str:
    """Return where the replay of the failing step found the first non-finite tensor; empty without a replay."""
    origins = [event for event in history.events if event["kind"] == "origin"]
    if not origins:
        return ""
    step, what, module, rows = (origins[-1].get(key) for key in ("step", "what", "module", "rows"))
    place = f"{what} of {module}" if module else str(what)
    train_rows = f", in train rows {', '.join(map(str, rows))}" if rows else ""
    return f" In a replay of step {step}, the first non-finite tensor is {place}{train_rows}."


def _confidence_statement(matches: list[PlaybookMatch], ranked: list[CauseScore]) -> str:
    """Return two or three sentences that say how certain the diagnosis is and what limits it."""
    undecided = [match.playbook.id for match in matches if match.undecided and not match.fires]
    why = "measurements are missing or not finite"
    missing = f" Not decided, because {why}: {', '.join(undecided)}." if undecided else ""
    if len(undecided) == len(matches):
        return f"No playbook could be evaluated.{missing}"
    if not any(match.fires for match in matches):
        return f"None of {len(matches) - len(undecided)} playbooks finds its symptom in this history.{missing}"
    plausible = [score for score in ranked if score.plausible]
    if not plausible:
        return f"There is a symptom, but the measurements contradict every cause in the playbooks.{missing}"
    first = plausible[0]
    confidence = first.confidence()
    measured = first.measured_count
    support_count = len(first.supporting)
    support = (
        f"{support_count} of {measured} measurements support it" if measured else "no measurement could support it"
    )
    contradicted = [score.id for score in ranked if not score.plausible]
    ruled_out = f" Contradicted by measurements: {', '.join(contradicted)}." if contradicted else ""
    return (
        f"The most likely cause is {first.id}: confidence {confidence.value:.2f}, not a probability, on a scale that "
        f"ends at {CEILINGS[confidence.basis]:.2f} for {BASES[confidence.basis]}; {support}. "
        f"Every cause is only possible until an experiment confirms it.{ruled_out}{missing}"
    )
