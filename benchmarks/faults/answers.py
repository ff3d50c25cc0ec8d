"""What a diagnosis answers from stored facts, from all kinds of them or from some alone, and what earned it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache

import numpy as np
from cases import Case
from facts import Facts
from score import Answer
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction import DictVectorizer

from diagnostics.conditions import HistoryView, evaluate_condition
from diagnostics.diagnose import diagnose, view_of
from diagnostics.playbook import load_all
from pipeline.history import History

Known = Sequence[tuple[Case, Facts]]
KINDS = ("gates", "inspections", "playbooks", "experiments")
HEALTHY = ""  # the class of a training without a fault, for the learned classifier
TREES = 300


def answer(facts: Facts, kinds: Collection[str] = KINDS) -> Answer:
    """Return the accusations of closed gates, then what a diagnosis from these kinds of facts names and considers."""
    accused: dict[str, float] = {}
    for cause, confidence, _ in facts.gates if "gates" in kinds else ():
        accused.setdefault(cause, confidence)
    history = facts.history if "playbooks" in kinds else _without_curves(facts.history)
    findings = facts.findings if "inspections" in kinds else ()
    experiments = facts.experiments if "experiments" in kinds else ()
    diagnosis = diagnose(history, facts.config, findings, experiments)
    for named in diagnosis.root_causes:
        accused.setdefault(named.issue, named.confidence.value)
    considered = tuple(entry.issue for entry in diagnosis.considered if entry.issue not in accused)
    return Answer(tuple(accused.items()), facts.seconds, considered=considered)


def _without_curves(history: History) -> History:
    """Return a history with the facts and the validation scores alone: enough to tell whether the target is missed."""
    bare = History()
    bare.facts.update(history.facts)
    for name in history.epoch:
        if name.startswith("val/") and name != "val/loss":
            for epoch, value in zip(*history.series(name), strict=True):
                bare.log_epoch(int(epoch), {name: float(value)})
    return bare


def earned(known: Known) -> dict[str, Counter[str]]:
    """Count by playbook, inspection and experiment the cases whose first cause is right and has it as evidence.

    `alone` counts those in which no other evidence speaks for the cause.
    """
    counts: dict[str, Counter[str]] = {"any": Counter(), "alone": Counter()}
    for case, facts in known:
        first = next(iter(answer(facts).ids), None)
        if first not in case.causes:
            continue
        sources = list(dict.fromkeys(_sources(facts, first)))
        counts["any"].update(sources)
        counts["alone"].update(sources if len(sources) == 1 else ())
    return counts


def _sources(facts: Facts, cause: str) -> Iterator[str]:
    """Yield what speaks for a cause, as `kind name`."""
    yield from (f"gate {gate}" for accused, _, gate in facts.gates if accused == cause)
    yield from (f"inspection {finding.inspection}" for finding in facts.findings if finding.cause == cause)
    yield from (f"experiment {r.id}" for r in facts.experiments if cause in r.causes and r.verdict == "confirmed")
    view = view_of(facts.history, facts.config)
    for playbook in load_all():
        if all(evaluate_condition(condition, view).holds for condition in playbook.when):
            entry = next((entry for entry in playbook.causes if entry.id == cause), None)
            if entry and evaluate_condition(entry.supported_by[0], view).holds:
                yield f"playbook {playbook.id}"


# --- a classifier that learns from the same facts --------------------------------------------------------------------


def learned_answers(tuning: Known, asked: Known) -> Iterator[tuple[Case, Answer]]:
    """Yield the answers of a random forest on the same facts, trained on the tuning part without the case's family."""
    rows = {case.id: _row(facts) for case, facts in [*tuning, *asked]}
    vectorizer = DictVectorizer(sparse=False)
    matrix = np.nan_to_num(vectorizer.fit_transform(list(rows.values())), posinf=1e30, neginf=-1e30).clip(-1e6, 1e6)
    row_of = dict(zip(rows, matrix, strict=True))

    @cache
    def forest(without: str) -> RandomForestClassifier:
        known = [case for case, _ in tuning if case.family != without]
        labels = [case.faults[0][0] if case.faults else HEALTHY for case in known]
        trees = RandomForestClassifier(TREES, random_state=0, min_samples_leaf=2, class_weight="balanced_subsample")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that there are many classes for so few trainings
            return trees.fit([row_of[case.id] for case in known], labels)

    for case, _ in asked:
        trees = forest(case.family)
        likely = sorted(zip(trees.predict_proba([row_of[case.id]])[0], trees.classes_, strict=True), reverse=True)
        if likely[0][1] == HEALTHY:
            yield case, Answer(())
        else:
            yield case, Answer(tuple((str(cause), float(p)) for p, cause in likely[:1]))


def _row(facts: Facts) -> dict[str, float]:
    """Return the facts as numbers: every condition of every playbook, every finding, every experiment, every gate."""
    view = view_of(facts.history, facts.config)
    row = {f"signal {condition}": value for condition, value in _signals(view) if value == value}
    for finding in facts.findings:
        name = f"finding {finding.cause}"
        row[name] = max(row.get(name, 0.0), finding.abnormality + (finding.kind == "definition"))
    for result in facts.experiments:
        row[f"experiment {result.id}"] = -1.0 if result.restored is None else max(-1.0, result.restored)
    row.update({f"gate {cause}": 1.0 for cause, _, _ in facts.gates})
    return row


def _signals(view: HistoryView) -> Iterable[tuple[str, float]]:
    conditions = dict.fromkeys(
        condition
        for playbook in load_all()
        for condition in (*playbook.when, *(support for cause in playbook.causes for support in cause.supported_by))
    )
    return ((str(condition), evaluate_condition(condition, view).value) for condition in conditions)
