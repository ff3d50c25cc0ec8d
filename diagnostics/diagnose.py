"""From a history to a diagnosis: evaluate every playbook, rank its causes with all evidence, resolve their cures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diagnostics.candidates import Candidate, PlaybookMatch, gather
from diagnostics.conditions import Condition, HistoryView, evaluate_condition
from diagnostics.derived import derived_facts, keeps_best
from diagnostics.diagnosis import Considered, Diagnosis, Fix, RootCause, Symptom
from diagnostics.playbook import load_all
from diagnostics.rank import Ranked, rank
from diagnostics.signals import description
from pipeline.experiments.result import ArmResult
from pipeline.history import History
from pipeline.inspection.finding import Finding
from pipeline.repair import causes as vocabulary
from pipeline.repair.config_edits import get
from pipeline.repair.cures import Remedy, resolve
from pipeline.repair.diagnosis_record import ExperimentRecord, GapRecord, Status
from pipeline.results import CEILINGS

MIN_FIXES = 3  # a diagnosis that names a cause offers at least this many changes to choose from
EVEN = 0.5  # the confidence below which a cause is less likely than not
MAX_DECIDING = 3  # causes for which an undecided diagnosis says what would decide
LOWER_IS_BETTER = ("loss", "error", "mse", "mae", "perplexity", "distance")  # in the name of a metric
MISSED = Condition("shortfall", ("val/metric", "target", "trivial"), above=0.0)
MISSED_AT_END = Condition("shortfall", ("val/metric", "target", "trivial"), last=0.1, above=0.0)
BASES = {  # what a confidence is based on, in words
    "inference": "reasoning alone",
    "report": "logs alone",
    "research": "a pattern known from the literature",
    "observation": "an experiment",
    "definition": "a pattern that follows from the definition of the cause",
}
NO_EXPERIMENTS: GapRecord = {
    "what": "controlled experiments",
    "why": "none was run on this history; phase=diagnostics runs them, and phase=optimization tries the fixes",
}
# Config values that conditions may refer to as facts, unless the history has measured them.
CONFIG_FACTS = {
    "target": "task.target",
    "batch_size": "loader.batch_size",
    "gradient_clip_val": "trainer.gradient_clip_val",
    "dropout": "model.dropout",
    "weight_decay": "optimizer.weight_decay",
    "num_workers": "loader.num_workers",
}
RemedyFinder = Callable[[str, str], list[Remedy]]  # (cure, cause) -> remedies, the smallest change first


def diagnose(
    history: History,
    config: Mapping[str, Any] | None = None,
    findings: Iterable[Finding] = (),
    experiments: Iterable[ArmResult] = (),
    round: int = 1,
) -> Diagnosis:
    """Return the symptoms in a history, their causes, those that were considered, and changes to try.

    Nothing is trained here: `findings` are those of inspections of the model, data and settings, `experiments` the
    results of controlled experiments. With `config` (the resolved config of the run) fixes are overrides of its keys,
    without it lines of code. A cause is named if it is true by definition or if the evidence is strong enough; else
    it is considered, with the reason. A missing measurement lowers confidence and is listed under `not_checked`; it
    never raises.
    """
    results = tuple(experiments)
    view = view_of(history, config)
    matches = evaluate_playbooks(view)
    from_logs = any(event["kind"] == "imported" for event in history.events)
    candidates = gather(firing(matches), view, findings, results, from_logs)
    ranked = rank(candidates, needs_mending(view, matches))
    named = [entry for entry in ranked if not entry.why_not]
    find_remedies = partial(resolve, config=config)
    fixes = _propose(ranked, find_remedies)
    return Diagnosis(
        tuple(_symptom(match) for match in firing(matches)),
        root_causes=tuple(_root_cause(entry, find_remedies) for entry in named),
        considered=tuple(_considered(entry) for entry in ranked if entry.why_not),
        fixes=fixes,
        quick_wins=tuple(f.remedy.description for f in fixes if f.remedy.overrides and f.kind != "prevention")[:3],
        experiments=tuple(map(_experiment_record, results)),
        not_checked=tuple(_not_checked(matches, candidates, results)),
        would_decide=() if _is_likely(named) else tuple(_would_decide(history, matches, ranked, find_remedies)),
        confidence_statement=_confidence_statement(matches, ranked) + _replay_sentence(history),
        evaluated=tuple(m.playbook.id for m in matches),
        round=round,
    )


def _is_likely(named: Sequence[Ranked]) -> bool:
    """Whether the first of the named causes is confirmed, or more likely than not."""
    return bool(named) and (named[0].candidate.verdict == "confirmed" or named[0].confidence.value >= EVEN)


def _symptom(match: PlaybookMatch) -> Symptom:
    playbook = match.playbook
    prevention = playbook.sections.get("Prevention", "")
    return Symptom(playbook.id, playbook.symptom, playbook.severity, match.observations, prevention)


def firing(matches: Iterable[PlaybookMatch]) -> list[PlaybookMatch]:
    """Return the playbooks whose symptom is there, blocking ones first."""
    return sorted((m for m in matches if m.fires), key=lambda m: m.playbook.severity != "blocking")


def needs_mending(view: HistoryView, matches: Iterable[PlaybookMatch]) -> bool:
    """Whether the run misses the target that it was told; without a target, whether it shows a blocking symptom.

    A curve that reaches its target may look unusual. A run that broke off at a value that is not finite is broken.
    Fivegate's own trainings keep their best weights; of others the last score counts.
    """
    missed = evaluate_condition(MISSED if keeps_best(view.history) else MISSED_AT_END, view)
    broke_off = any(event["kind"] == "nonfinite" for event in view.history.events)
    if missed.measured and not broke_off:
        return missed.holds
    return any(match.fires and match.playbook.severity == "blocking" for match in matches)


def evaluate_playbooks(view: HistoryView) -> list[PlaybookMatch]:
    """Return every playbook with the value of each of its conditions."""
    return [PlaybookMatch(p, tuple(evaluate_condition(c, view) for c in p.when)) for p in load_all()]


def view_of(history: History, config: Mapping[str, Any] | None) -> HistoryView:
    """Combine the measured facts of a history with those that its config states."""
    facts = {**derived_facts(history), **history.facts}
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
    view = HistoryView(history, facts, metric if isinstance(metric, str) else None)
    if "target" in facts and "trivial" not in facts:
        name = view.resolve("val/metric")
        scores = history.series(name)[1]
        finite = scores[np.isfinite(scores)]
        if len(finite):
            facts["trivial"] = _untrained_score(name, finite, facts)
    return view


def _untrained_score(name: str, scores: NDArray[np.float32], facts: Mapping[str, float]) -> float:
    """Return what an untrained model reaches, for a loop or a log without a trivial baseline.

    That is chance for an accuracy over known classes, else the worst score of the run; it never reaches the target.
    """
    target = facts["target"]
    if any(word in name for word in LOWER_IS_BETTER):
        worst = float(scores.max())
        return worst if worst > target else target + max(abs(target), 1.0)
    worst = float(scores.min())
    if "acc" in name and "loss_expected" in facts:
        worst = min(worst, math.exp(-facts["loss_expected"]))  # the loss of guessing is the logarithm of the classes
    return worst if worst < target else target - max(abs(target), 1.0)


def _propose(ranked: Sequence[Ranked], find_remedies: RemedyFinder) -> tuple[Fix, ...]:
    """Return the changes to try: for named causes, then for those with evidence, then for others if those are few."""
    named = [entry.candidate for entry in ranked if not entry.why_not]
    others = [entry.candidate for entry in ranked if entry.why_not and entry.candidate.verdict != "refuted"]
    fixes = list(_fixes([*named, *(c for c in others if c.supported)], find_remedies))
    if fixes and len(fixes) < MIN_FIXES:
        fixes += list(_fixes([c for c in others if not c.supported], find_remedies))
    return tuple(fixes)


def _fixes(candidates: Iterable[Candidate], find_remedies: RemedyFinder) -> Iterator[Fix]:
    """Yield each remedy once: causes by rank, cures in the order of the playbooks, small changes before large ones."""
    changes = []
    for candidate in candidates:
        for cure, (kind, expect) in candidate.cures().items():
            impact = "the symptom disappears"
            if expect:
                impact = f"{description(expect.signal, expect.of)} is {expect.bound}"
            for remedy in sorted(find_remedies(cure, candidate.cause), key=partial(_tested_order, candidate)):
                change = (remedy.overrides, remedy.surgery, remedy.code)
                if change not in changes:
                    changes.append(change)
                    yield Fix(candidate.cause, kind, remedy, impact)


def _tested_order(candidate: Candidate, remedy: Remedy) -> int:
    """Return 0 for a change that an experiment has confirmed, 2 for one that it has refuted, else 1."""
    # An experiment names its change in words, such as `learning rate 0.1 → 0.01`: the new number identifies it.
    numbers = tuple(f"→ {value:g}" for value in remedy.overrides.values() if isinstance(value, int | float))
    verdicts = {result.verdict for result in candidate.experiments if numbers and result.change.endswith(numbers)}
    return 0 if "confirmed" in verdicts else 2 if "refuted" in verdicts else 1


def _root_cause(entry: Ranked, find_remedies: RemedyFinder) -> RootCause:
    candidate = entry.candidate
    first_cure = next(iter(candidate.cures()))
    return RootCause(
        candidate.cause,
        vocabulary.load()[candidate.cause].means,
        entry.confidence,
        tuple(candidate.evidence()),
        min(find_remedies(first_cure, candidate.cause), key=partial(_tested_order, candidate)).description,
        candidate.support.candidates[0].cites if candidate.support else "",
        "confirmed" if candidate.verdict == "confirmed" else "candidate",
    )


def _considered(entry: Ranked) -> Considered:
    candidate = entry.candidate
    verdict = candidate.verdict
    status: Status = "candidate" if verdict is None or verdict == "inconclusive" else verdict
    evidence = tuple(candidate.evidence())
    return Considered(candidate.cause, entry.confidence.value, evidence, entry.why_not, status)


def _experiment_record(result: ArmResult) -> ExperimentRecord:
    return {
        "hypothesis": ", ".join(result.causes) or result.id,
        "change": result.change,
        "expected": result.expected,
        "observed": f"{result.control:.4g} → {result.observed:.4g}; {result.why}",
        "verdict": result.verdict,
        "restored": result.restored,
        "seeds": result.seeds,
        "steps": result.steps,
    }


def _not_checked(
    matches: Iterable[PlaybookMatch], candidates: Iterable[Candidate], experiments: Sequence[ArmResult]
) -> Iterator[GapRecord]:
    """Yield what could not be measured: undecided playbooks, then supports of causes, then missing experiments."""
    for match in matches:
        if match.undecided:
            yield {"what": f"symptom {match.playbook.id}", "why": match.why_undecided}
    unmeasured: dict[tuple[str, str], list[str]] = {}
    for candidate in candidates:
        for observation in candidate.support.observations.values() if candidate.support else ():
            if not observation.measured:
                unmeasured.setdefault((str(observation.condition), observation.why), []).append(candidate.cause)
    for (what, why), ids in unmeasured.items():
        yield {"what": f"{what} (for {', '.join(ids)})", "why": why}
    if not experiments:
        yield NO_EXPERIMENTS


def _would_decide(
    history: History, matches: Iterable[PlaybookMatch], ranked: Sequence[Ranked], find_remedies: RemedyFinder
) -> Iterator[str]:
    """Yield what would name a cause: a training, experiments on the likeliest causes, or the missing measurements."""
    if not history.names():
        yield "a training: no measurement of one is on record"
        return
    open_causes = [e.candidate for e in ranked if e.candidate.verdict != "refuted" and e.candidate.supported]
    for candidate in open_causes[:MAX_DECIDING]:
        first = find_remedies(next(iter(candidate.cures())), candidate.cause)[0]
        yield f"for or against {candidate.cause}: the same training with this change alone: {first.description}"
    for match in matches:
        if match.undecided:
            yield f"what the playbook {match.playbook.id} could not measure: {match.why_undecided}"
    yield "a change that no playbook lists (more data, other features, another model), compared on several seeds"


def _is_contradicted(candidate: Candidate) -> bool:
    support = candidate.support
    return not candidate.supported and support is not None and support.contradicting is not None


def _replay_sentence(history: History) -> str:
    """Return where the replay of the failing step found the first non-finite tensor; empty without a replay."""
    origins = [event for event in history.events if event["kind"] == "origin"]
    if not origins:
        return ""
    step, what, module, rows = (origins[-1].get(key) for key in ("step", "what", "module", "rows"))
    place = f"{what} of {module}" if module else str(what)
    train_rows = f", in train rows {', '.join(map(str, rows))}" if rows else ""
    return f" In a replay of step {step}, the first non-finite tensor is {place}{train_rows}."


def _confidence_statement(matches: list[PlaybookMatch], ranked: Sequence[Ranked]) -> str:
    """Return two or three sentences that say how certain the diagnosis is and what limits it."""
    undecided = [match.playbook.id for match in matches if match.undecided and not match.fires]
    why = "measurements are missing or not finite"
    missing = f" Not decided, because {why}: {', '.join(undecided)}." if undecided else ""
    named = [entry for entry in ranked if not entry.why_not]
    if not named and len(undecided) == len(matches):
        return f"No playbook could be evaluated.{missing}"
    if not named and not any(match.fires for match in matches):
        return f"None of {len(matches) - len(undecided)} playbooks finds its symptom in this history.{missing}"
    ruled_out = [entry.candidate.cause for entry in ranked if _is_contradicted(entry.candidate)]
    contradicted = f" Contradicted by measurements: {', '.join(ruled_out)}." if ruled_out else ""
    first = next((entry for entry in ranked if entry.candidate.supported), None)
    if first is None:
        return f"There is a symptom, but no measurement supports a cause in the playbooks.{contradicted}{missing}"
    if not named:
        return (
            "There is a symptom, but the evidence is not strong enough to name a cause. The likeliest is "
            f"{first.candidate.cause}; {first.why_not}.{contradicted}{missing}"
        )
    confidence = named[0].confidence
    unconfirmed = "" if named[0].candidate.verdict == "confirmed" else " No experiment has confirmed it."
    if not _is_likely(named):
        unconfirmed = f" That is less than one half: it may well be another cause.{unconfirmed}"
    return (
        f"The most likely cause is {named[0].candidate.cause}: confidence {confidence.value:.2f} on a scale that ends "
        f"at {CEILINGS[confidence.basis]:.2f} for {BASES[confidence.basis]}.{unconfirmed}{contradicted}{missing}"
    )
