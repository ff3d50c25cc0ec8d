"""Ranks candidate causes: contradictions by definition first, then by a logistic model of six kinds of evidence.

The model sees no cause, data set or model: only how much evidence there is, of which kind, and since when. There is one
for diagnoses with experiments and one for those without, where the other evidence has to decide. Their table
`ranker.yaml` is fitted on the tuning part of the fault benchmark by `make fit-ranker`, with one family left out at a
time; the thresholds above which causes are named are the smallest with enough right accusations there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from diagnostics.candidates import Candidate, Confidence
from pipeline import safe_yaml
from pipeline.experiments.result import ON_TOP_OF
from pipeline.results import CEILINGS

TABLE = Path(__file__).with_name("ranker.yaml")
FEATURES = ("supports", "abnormality", "restored", "mends", "onset", "rivals")
WITH, WITHOUT = "with_experiments", "without_experiments"  # the two models in the table
EXPLAINED = 0.5  # an experiment that restores this share of the shortfall explains the run


@dataclass(frozen=True)
class Ranker:
    """The coefficients of a logistic model, one per feature, and the probabilities from which on causes are named.

    Every cause is named from `threshold` on. Where none reaches it, the likeliest one is named from `least` on.
    """

    intercept: float
    coefficients: Sequence[float]
    threshold: float
    least: float = 1.0

    def probability(self, features: Sequence[float]) -> float:
        """Return the probability that a candidate with these features is a true cause."""
        logit = self.intercept + sum(c * x for c, x in zip(self.coefficients, features, strict=True))
        return 1 / (1 + math.exp(-logit))


@dataclass(frozen=True)
class Ranked:
    """A candidate with the confidence in it, and why it is not named as a root cause; empty if it is."""

    candidate: Candidate
    confidence: Confidence
    why_not: str = ""


@cache
def load_ranker(name: str, path: Path = TABLE) -> Ranker:
    """Return the fitted ranker of this name, `WITH` or `WITHOUT`."""
    table = safe_yaml.load_strict(path.read_text(encoding="utf-8"), path.name)[name]
    coefficients = tuple(float(table["coefficients"][feature]) for feature in FEATURES)
    return Ranker(float(table["intercept"]), coefficients, float(table["threshold"]), float(table["least"]))


def features(candidate: Candidate, others: Iterable[Candidate] = ()) -> tuple[float, ...]:
    """Return the six features of a candidate, in the order of `FEATURES`, each from 0 to 1.

    - supports: smoothed share of the supports in playbooks that hold; 0 if no playbook names the cause
    - abnormality: how rare its most extreme finding is among healthy trainings, by orders of magnitude, up to 1 in 1000
    - restored: share of the shortfall that an experiment restored by removing it; 0 without an experiment
    - mends: the restored share times the abnormality, or times the supports where they say more. Something abnormal
      whose removal mends the run is its cause; more epochs, for example, mend many runs in which nothing is abnormal
    - onset: share of the run before the evidence began
    - rivals: share of the evidence that the best other candidate has, 1 if that has as much or more
    """
    weight = _weight(candidate)
    best_rival = max((_weight(other) for other in others if other is not candidate), default=0.0)
    supports, rarity = _supports(candidate), _rarity(candidate.abnormality)
    return (
        supports,
        rarity,
        candidate.restored,
        candidate.restored * max(supports, rarity),
        candidate.onset,
        min(1.0, best_rival / weight) if weight else 1.0,
    )


def rank(candidates: Sequence[Candidate], needs_mending: bool, ranker: Ranker | None = None) -> list[Ranked]:
    """Return the candidates, most likely cause first; those that are named come before all others.

    `needs_mending` says whether the run misses its target or shows a symptom. Otherwise an abnormality is harmless, and
    only a contradiction in terms or an experiment can accuse.
    """
    ranker = ranker or load_ranker(kind_of(candidates))
    scored = [(candidate, ranker.probability(features(candidate, candidates))) for candidate in candidates]
    scored.sort(key=lambda pair: (not pair[0].definitional, -pair[1]))
    objections = [_objection(candidate, needs_mending) for candidate, _ in scored]
    ranked = [
        Ranked(candidate, _confidence(candidate, p), objection or _doubt(candidate, p, ranker.threshold))
        for (candidate, p), objection in zip(scored, objections, strict=True)
    ]
    likeliest = next((i for i, objection in enumerate(objections) if not objection), None)
    if likeliest is not None and all(entry.why_not for entry in ranked):
        candidate, p = scored[likeliest]
        # What mends the run on every seed is named too, unless something that speaks louder is ruled out.
        if p >= ranker.least or (likeliest == 0 and candidate.verdict == "confirmed"):
            ranked[likeliest] = replace(ranked[likeliest], why_not="")
    ranked.sort(key=lambda entry: bool(entry.why_not))  # stable: keeps the order within both groups
    return _without_explained(ranked)


def kind_of(candidates: Iterable[Candidate]) -> str:
    """Return which of the two models ranks these candidates.

    Experiments that only rule causes out say nothing of the others, for which all other evidence has to decide.
    """
    results = (result for candidate in candidates for result in candidate.experiments)
    return WITH if any(result.restored is not None or result.verdict != "refuted" for result in results) else WITHOUT


def _without_explained(ranked: list[Ranked]) -> list[Ranked]:
    """Return the candidates without accusations that the first proven cause has made unnecessary.

    One cause that is proven, by definition or by an experiment, is mended before another is looked for: what restores
    the run too, or has no experiment, may be a consequence or a second way around the same fault. Beside the first are
    named other contradictions in terms, and what an experiment confirms on top of its removal.
    """
    named = [entry.candidate for entry in ranked if not entry.why_not]
    first = next((candidate for candidate in named if candidate.definitional or _explains(candidate)), None)
    if first is None:
        return ranked
    judged = [
        entry
        if entry.why_not or entry.candidate is first or _stands_beside(entry.candidate, first)
        else replace(entry, why_not=_explained_by(first))
        for entry in ranked
    ]
    return sorted(judged, key=lambda entry: bool(entry.why_not))


def _explains(candidate: Candidate) -> bool:
    """Return whether an experiment confirms a cause and restores most of what is missing."""
    return candidate.verdict == "confirmed" and candidate.restored >= EXPLAINED


def _stands_beside(candidate: Candidate, first: Candidate) -> bool:
    """Return whether a cause is proven apart from the first one."""
    on_top = any(r.verdict == "confirmed" and ON_TOP_OF in r.id for r in candidate.experiments)
    return candidate.definitional or on_top or (candidate.verdict == "confirmed" and not _explains(first))


def _explained_by(first: Candidate) -> str:
    if _explains(first):
        return f"{first.cause} explains the run: its removal restores {first.restored:.0%} of what is missing"
    return f"{first.cause} is a fault by definition: mend it first, then diagnose what remains"


def _confidence(candidate: Candidate, probability: float) -> Confidence:
    ceiling = CEILINGS[candidate.basis]
    return Confidence(round(ceiling if candidate.definitional else min(ceiling, probability), 3), candidate.basis)


def _objection(candidate: Candidate, needs_mending: bool) -> str:
    """Return what forbids naming a candidate, however likely it is; empty if nothing does."""
    if candidate.definitional:
        return ""
    if candidate.verdict == "refuted" and candidate.decisive:
        return f"an experiment speaks against it ({candidate.decisive.change}): {candidate.decisive.why}"
    if not candidate.supported:
        return _lacking_support(candidate)
    if not needs_mending and candidate.verdict != "confirmed":
        return (
            "nothing is missing that its removal could restore: "
            "the run reaches its target, or shows no blocking symptom"
        )
    return ""


def _doubt(candidate: Candidate, probability: float, threshold: float) -> str:
    """Return why a candidate is not likely enough to be named; empty if it is."""
    if candidate.definitional or probability >= threshold:
        return ""
    too_low = f"a confidence of {probability:.2f} is not enough to name it (from {threshold:.2f} on)"
    if candidate.verdict == "confirmed":
        return f"{too_low}: an experiment confirms it, and little else speaks for it"
    lacks = "no experiment has tested it" if candidate.decisive is None else "the experiments do not decide"
    return f"{too_low}, and {lacks}"


def _lacking_support(candidate: Candidate) -> str:
    """Return which measurement contradicts a cause, or which is missing."""
    contradicting = candidate.support.contradicting if candidate.support else None
    if contradicting:
        return f"a measurement contradicts it: {contradicting.denial()}"
    unmeasured = [o.why for o in candidate.support.observations.values() if not o.measured] if candidate.support else []
    return "nothing that was measured supports it" + "".join(f": {why}" for why in unmeasured[:1])


def _weight(candidate: Candidate) -> float:
    """Return the evidence for a candidate as one number, for a comparison with its rivals."""
    if candidate.verdict == "refuted":
        return 0.0
    abnormal = max(_supports(candidate), _rarity(candidate.abnormality))
    return abnormal + candidate.restored + 2 * candidate.restored * abnormal


def _supports(candidate: Candidate) -> float:
    """Return the share of supports in playbooks; 0 if they contradict the cause or do not name it."""
    return candidate.support.share if candidate.support and not candidate.support.contradicting else 0.0


def _rarity(abnormality: float) -> float:
    """Return the orders of magnitude of 1 - abnormality as a share of three: 0.9 is 1/3, 0.99 2/3, from 0.999 on 1."""
    return min(3.0, -math.log10(max(1 - abnormality, 1e-3))) / 3
