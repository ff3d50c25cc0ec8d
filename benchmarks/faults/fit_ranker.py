"""Fits the ranker of diagnostics/rank.py on stored facts of the tuning part.  `make fit-ranker`

    benchmarks/faults/fit_ranker.py FACTS [--variants DIR] [--out diagnostics/ranker.yaml]

With `--variants` the facts of healthy variants and mutants are added, as `variants.py --facts DIR` stored them; their
families are those of their parents.

A logistic model whose coefficients keep the sign that their meaning has: more support never lowers a confidence. Each
family is ranked by a model that has not seen it. Those probabilities choose the threshold above which every cause is
named, and then the lower one above which the likeliest is, where none reaches the first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from cases import Case, cases
from facts import Facts, stored
from numpy.typing import NDArray
from scipy.optimize import minimize
from score import Answer, correct_accusations
from variants import variants, verified

from diagnostics.candidates import PRIOR as PRIOR_OF_A_CAUSE
from diagnostics.candidates import Candidate, gather
from diagnostics.diagnose import evaluate_playbooks, firing, needs_mending, view_of
from diagnostics.rank import FEATURES, TABLE, WITH, WITHOUT, Ranker, features, kind_of, rank

Matrix = NDArray[np.float64]

# Where the facts say nothing of a feature, its coefficient stays near this one; its sign never changes.
PRIOR = {"supports": 4.0, "abnormality": 3.0, "restored": 4.0, "mends": 4.0, "onset": -0.5, "rivals": -1.0}
PENALTY = 1.0  # of the squared distance of the coefficients from these, in units of one candidate
PRECISION = 0.85  # of the accusations: 0.80 is promised, and the choice of the threshold flatters
LOWEST = 0.35  # threshold of every cause
LEAST = PRIOR_OF_A_CAUSE  # threshold of the likeliest one: what is less likely is less than a guess
FALSE_ALARMS = 0.015  # of the healthy trainings


@dataclass(frozen=True)
class Subject:
    """One reading of a case: its candidates, whether the run needs mending, and what was known of it."""

    case: Case
    candidates: list[Candidate]
    needs_mending: bool
    reading: str


AS_IT_IS, NOT_TOLD, AS_LOG = "as it is", "target not told", "history alone"


def known_cases(folder: Path, of_variants: Path | None) -> Iterator[tuple[Case, Facts]]:
    """Yield the stored cases of the tuning part, and its variants with the labels that their trainings have earned."""
    yield from stored(folder, [case for case in cases() if case.part == "tuning"])
    for variant, facts in stored(of_variants, list(variants())) if of_variants else ():
        case = verified(variant, facts)
        if case is not None:
            yield case, facts


def subjects(stored_cases: Iterable[tuple[Case, Facts]]) -> Iterator[Subject]:
    """Yield each case in three readings: all is known, no target, the history alone."""
    for case, facts in stored_cases:
        readings = {AS_IT_IS: facts, NOT_TOLD: facts.without_target(), AS_LOG: facts.as_log()}
        for reading, known in readings.items():
            view = view_of(known.history, known.config)
            matches = evaluate_playbooks(view)
            from_logs = any(event["kind"] == "imported" for event in known.history.events)
            candidates = gather(firing(matches), view, known.findings, known.experiments, from_logs)
            yield Subject(case, candidates, needs_mending(view, matches), reading)


def table(known: Sequence[Subject]) -> tuple[Matrix, Matrix, list[str]]:
    """Return the features of all candidates [n, 6], whether each is a true cause [n], and the family of each.

    Contradictions by definition are not ranked by the model, and harmless flaws count neither way.
    """
    rows, labels, families = [], [], []
    for subject in known:
        if not subject.needs_mending:
            continue
        for candidate in subject.candidates:
            if not candidate.definitional and candidate.cause not in subject.case.harmless:
                rows.append(features(candidate, subject.candidates))
                labels.append(float(candidate.cause in subject.case.causes))
                families.append(subject.case.family)
    return np.array(rows), np.array(labels), families


def fit(rows: Matrix, labels: Matrix) -> tuple[float, Matrix]:
    """Return intercept and coefficients of the most likely model whose coefficients keep the signs of `PRIOR`."""

    prior = np.array([PRIOR[name] for name in FEATURES])

    def loss(weights: Matrix) -> tuple[float, Matrix]:
        logits, distance = weights[0] + rows @ weights[1:], weights[1:] - prior
        errors = 1 / (1 + np.exp(-logits)) - labels
        value = float(np.logaddexp(0, logits).sum() - labels @ logits + PENALTY / 2 * distance @ distance)
        return value, np.concatenate([[errors.sum()], errors @ rows + PENALTY * distance])

    bounds = [(None, None), *((0, None) if sign > 0 else (None, 0) for sign in prior)]
    weights = minimize(loss, np.concatenate([[-3.0], prior]), jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(weights[0]), weights[1:]


def rankers_without_family(known: Sequence[Subject], threshold: float = 0.0) -> dict[str, Ranker]:
    """Return for each family the ranker that was fitted on all others."""
    rows, labels, families = table(known)
    fitted = {}
    for family in {subject.case.family for subject in known}:
        others = np.array([name != family for name in families])
        intercept, coefficients = fit(rows[others], labels[others])
        fitted[family] = Ranker(intercept, tuple(coefficients), threshold)
    return fitted


def answers(
    known: Sequence[Subject], rankers: dict[str, Ranker], threshold: float, least: float = 1.0
) -> list[tuple[Case, Answer]]:
    """Return what is named above these thresholds, each family ranked without having been seen."""
    named = []
    for subject in known:
        ranker = replace(rankers[subject.case.family], threshold=threshold, least=least)
        ranked = rank(subject.candidates, subject.needs_mending, ranker)
        accused = [(e.candidate.cause, e.confidence.value) for e in ranked if not e.why_not]
        named.append((subject.case, Answer(tuple(x for x in accused if x[0] not in subject.case.harmless))))
    return named


def measure(pairs: Sequence[tuple[Case, Answer]]) -> dict[str, int]:
    """Return the counts that the threshold trades off."""
    right = [flag for case, answer in pairs for flag in correct_accusations(case, answer)]
    return {
        "accusations": len(right),
        "right": sum(right),
        "first_right": sum(bool(a.ids) and a.ids[0] in c.causes for c, a in pairs if not c.healthy),
        "faulty": sum(not case.healthy for case, _ in pairs),
        "false_alarms": sum(bool(answer.ids) for case, answer in pairs if case.healthy),
        "healthy": sum(case.healthy for case, _ in pairs),
    }


def choose_thresholds(known: Sequence[Subject], rankers: dict[str, Ranker]) -> tuple[float, float]:
    """Return the smallest thresholds with enough right accusations and few enough false alarms.

    The first is that of every cause, for readings with the target and without it. The second is that of the likeliest
    one where none reaches the first: it has to be precise where the target is told, and to accuse few healthy trainings
    in both. A history alone is left out: there the best guess is worth reading, with the low confidence that it has.
    """
    as_it_is = [subject for subject in known if subject.reading == AS_IT_IS]
    both = [subject for subject in known if subject.reading != AS_LOG]

    def is_good(threshold: float, least: float, asked: Sequence[Subject]) -> bool:
        counts, alarms = (measure(answers(readings, rankers, threshold, least)) for readings in (asked, both))
        precise = counts["right"] >= PRECISION * counts["accusations"]
        return precise and alarms["false_alarms"] <= FALSE_ALARMS * alarms["healthy"]

    threshold = next((t for t in np.arange(LOWEST, 1.0, 0.01) if is_good(t, 1.0, both)), 0.99)
    least = next((t for t in np.arange(LEAST, threshold, 0.01) if is_good(threshold, t, as_it_is)), threshold)
    return round(float(threshold), 2), round(float(least), 2)


def fitted(known: Sequence[Subject]) -> tuple[list[str], Ranker]:
    """Return the ranker of these readings, and what it is worth on families that it has not seen, as lines."""
    rankers = rankers_without_family(known)
    thresholds = choose_thresholds(known, rankers)
    rows, labels, _ = table(known)
    intercept, coefficients = fit(rows, labels)
    lines = [f"# Fitted on {len(rows)} candidates of {len(known)} readings, {int(labels.sum())} of them true causes."]
    for reading in dict.fromkeys(subject.reading for subject in known):
        counts = measure(answers([subject for subject in known if subject.reading == reading], rankers, *thresholds))
        lines.append(
            f"# One family left out at a time, {reading}: "
            f"first cause right {counts['first_right']}/{counts['faulty']}, "
            f"accusations right {counts['right']}/{counts['accusations']}, "
            f"false alarms {counts['false_alarms']}/{counts['healthy']}."
        )
    return lines, Ranker(intercept, tuple(coefficients), *thresholds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facts", type=Path, help="folder that bench.py --facts has filled")
    parser.add_argument("--variants", type=Path, metavar="DIR", help="folder that variants.py --facts has filled")
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    known = list(subjects(known_cases(args.facts, args.variants)))
    lines = ["# The rankers of diagnostics/rank.py. Written by `make fit-ranker`; do not edit."]
    for name in (WITH, WITHOUT):
        worth, ranker = fitted([subject for subject in known if kind_of(subject.candidates) == name])
        values = ", ".join(f"{name}: {value:.3f}" for name, value in zip(FEATURES, ranker.coefficients, strict=True))
        lines += [f"{name}:", *(f"  {line}" for line in worth), f"  intercept: {ranker.intercept:.3f}"]
        lines += [f"  coefficients: {{{values}}}", f"  threshold: {ranker.threshold:.2f}"]
        lines += [f"  least: {ranker.least:.2f}"]
    args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
