"""What may be the cause of a symptom: each cause with its evidence from playbooks, inspections and experiments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from diagnostics.conditions import Condition, HistoryView, Observation, evaluate_condition
from diagnostics.playbook import CandidateCause, Kind, Playbook
from pipeline.experiments.result import FIRST_SPLIT, ArmResult, Verdict
from pipeline.inspection.finding import Finding
from pipeline.repair import causes as vocabulary
from pipeline.results import CEILINGS

ROWS = "data"  # the group of causes that the first split keeps
PRIOR = 0.25  # a cause without any evidence: a playbook lists about four causes, so each starts at one in four


@dataclass(frozen=True)
class Confidence:
    """A confidence value between 0 and the ceiling of its basis.

    Raises ValueError for an unknown basis and for a value above the ceiling, so that logs alone (`report`) can never
    be presented with the confidence of a controlled experiment (`observation`).
    """

    value: float
    basis: str

    def __post_init__(self) -> None:
        if self.basis not in CEILINGS:
            raise ValueError(f"basis must be one of {', '.join(CEILINGS)}, got {self.basis!r}")
        if not (math.isfinite(self.value) and 0 <= self.value <= CEILINGS[self.basis]):
            raise ValueError(f"confidence on {self.basis} lies in 0..{CEILINGS[self.basis]}, got {self.value}")


def support_share(supporting: int, measured: int) -> float:
    """Return the share of measured supports that hold, smoothed with one imaginary support worth `PRIOR`.

    Each support that holds raises it, and each that does not hold lowers it.
    """
    assert 0 <= supporting <= measured
    return (supporting + PRIOR) / (measured + 1)


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

    @property
    def why_undecided(self) -> str:
        """What was missing for the conditions that could not be measured."""
        return "; ".join(dict.fromkeys(observation.why for observation in self.undecided))


@dataclass(frozen=True)
class Support:
    """The observations for and against a cause, from every playbook that fired and lists it.

    `observations` are those of its supports, `exclusions` those of the conditions that rule it out.
    """

    candidates: tuple[CandidateCause, ...]
    observations: Mapping[Condition, Observation]
    last_step: int = 0  # of the run
    exclusions: Mapping[Condition, Observation] = field(default_factory=dict)

    @property
    def holding(self) -> list[Observation]:
        """The supports that hold; of several bounds in the same direction on the same curve, the strictest one."""
        strictest: dict[object, Observation] = {}
        for observation in self.observations.values():
            kind = observation.condition.kind
            if observation.holds and (
                kind not in strictest or observation.condition.is_stricter(strictest[kind].condition)
            ):
                strictest[kind] = observation
        return list(strictest.values())

    @property
    def measured_count(self) -> int:
        return len({condition.kind for condition, observation in self.observations.items() if observation.measured})

    @property
    def share(self) -> float:
        """The smoothed share of supports that hold; an unmeasured first support, which is necessary, does not hold."""
        necessary = {entry.supported_by[0] for entry in self.candidates if entry.supported_by}
        unmeasured = sum(not self.observations[condition].measured for condition in necessary)
        return support_share(len(self.holding), self.measured_count + unmeasured)

    @property
    def basis(self) -> str:
        """`inference` without support, else the strongest basis of the entries with support."""
        # An entry of another playbook, of which no measurement holds, adds nothing to the cause.
        supported = [c.basis for c in self.candidates if any(self.observations[s].holds for s in c.supported_by)]
        return max(supported, key=lambda basis: CEILINGS[basis], default="inference")

    @property
    def proven(self) -> bool:
        """Whether an entry follows from the definition of its cause, and all its measurements hold."""
        by_definition = [entry for entry in self.candidates if entry.basis == "definition" and entry.supported_by]
        return any(all(self.observations[s].holds for s in entry.supported_by) for entry in by_definition)

    @property
    def contradicting(self) -> Observation | None:
        """What rules the cause out in every playbook that lists it; None if one of them does not.

        That is its first support, measured not to hold, or a condition of `unless` that holds.
        """
        against = [
            next((self.exclusions[c] for c in entry.unless if self.exclusions[c].holds), None)
            or _contradiction([self.observations[s] for s in entry.supported_by])
            for entry in self.candidates
        ]
        return None if any(observation is None for observation in against) else against[0]


def _contradiction(supports: Sequence[Observation]) -> Observation | None:
    """Return the observation that rules a cause out: its first support, or all of the others, were measured to fail."""
    if supports and supports[0].measured:  # the first support is necessary, the others only add confidence
        return None if supports[0].holds else supports[0]
    measured = [observation for observation in supports if observation.measured]
    return measured[0] if measured and not any(observation.holds for observation in measured) else None


@dataclass(frozen=True)
class Candidate:
    """A cause with all evidence on it. What it lacks is empty, or None for the playbooks."""

    cause: str
    support: Support | None = None
    findings: tuple[Finding, ...] = ()
    experiments: tuple[ArmResult, ...] = ()
    from_logs: bool = False  # the history was read from logs of a run trained elsewhere
    remaining: float = 0.0  # share of the shortfall that stays where everything but the part of the cause is replaced

    @property
    def supported(self) -> bool:
        """Whether anything speaks for the cause."""
        playbooks = self.support is not None and self.support.contradicting is None and bool(self.support.holding)
        return playbooks or bool(self.findings) or any(result.verdict != "refuted" for result in self.experiments)

    @property
    def definitional(self) -> bool:
        """Whether an inspection found a contradiction in terms, or the measurements prove the cause by definition."""
        found = any(finding.kind == "definition" for finding in self.findings)
        return found or (self.support is not None and not self.from_logs and self.support.proven)

    @property
    def abnormality(self) -> float:
        """The share of healthy trainings that are less extreme, from the most extreme finding; 0 without a finding."""
        return max((finding.abnormality for finding in self.findings), default=0.0)

    @property
    def decisive(self) -> ArmResult | None:
        """The experiment on this cause alone that restored most, else the one on a group of causes; None without."""
        own = [result for result in self.experiments if result.causes == (self.cause,)]
        return max(own or self.experiments, key=lambda result: _share_or_lowest(result.restored), default=None)

    @property
    def verdict(self) -> Verdict | None:
        """What the experiments say of this cause. A group of causes can be refuted, but not confirmed one by one."""
        result = self.decisive
        if result is None:
            return None
        in_group = result.causes != (self.cause,)
        return "inconclusive" if in_group and result.verdict == "confirmed" else result.verdict

    @property
    def restored(self) -> float:
        """The share of the shortfall that is due to the cause, 0 to 1: what its removal restored.

        That of a group is shared by its causes. Where nothing removes the cause, it is what remains without every other
        part of the run, if an inspection has found something in this part.
        """
        result = self.decisive
        if result is None:
            return self.remaining if self.findings else 0.0
        share = 1.0 if result.restored is None and result.verdict == "confirmed" else _share_or_lowest(result.restored)
        return min(max(share, 0.0), 1.0) / max(1, len(result.causes))

    @property
    def onset(self) -> float:
        """The share of the run before the evidence began: 0 for evidence at rest, towards 1 for a late consequence."""
        if self.findings or self.support is None:
            return 0.0
        steps = [o.since["step"] for o in self.support.holding if o.since and o.since["step"] is not None]
        return min(1.0, min(steps) / self.support.last_step) if steps and self.support.last_step else 0.0

    @property
    def basis(self) -> str:
        """The kind of evidence, which limits the confidence (`CEILINGS`)."""
        if self.definitional:
            return "definition"
        if self.verdict == "confirmed":
            return "observation"
        if self.from_logs:
            return "report" if self.support and self.support.holding else "inference"
        known = [self.support.basis] if self.support else []
        known += ["research"] if self.findings else []  # a measurement of this run beside those of healthy ones
        return max(known, key=lambda basis: CEILINGS[basis], default="inference")

    def evidence(self) -> Iterator[str]:
        """Yield each piece of evidence as a sentence: experiments, first the decisive one, findings, observations."""
        for result in sorted(self.experiments, key=lambda result: result is not self.decisive):
            if result.verdict != "refuted":
                yield f"experiment ({result.change}): {result.why}"
        for finding in sorted(self.findings, key=lambda finding: -finding.abnormality):
            yield finding.sentence
        for observation in self.support.holding if self.support else ():
            yield observation.sentence()

    def cures(self) -> dict[str, tuple[Kind, Condition | None]]:
        """Return the cures, each with its kind and the effect to expect: in the order of the playbooks, then the rest.

        A cause that no playbook has named has the cures of causes.yaml.
        """
        cures: dict[str, tuple[Kind, Condition | None]] = {}
        for entry in self.support.candidates if self.support else ():
            for cure, kind in entry.cures:
                cures.setdefault(cure, (kind, entry.expect))
        return cures or {cure: ("cure", None) for cure in vocabulary.load()[self.cause].cures}


def gather(
    firing: Iterable[PlaybookMatch],
    view: HistoryView,
    findings: Iterable[Finding],
    experiments: Iterable[ArmResult],
    from_logs: bool,
) -> list[Candidate]:
    """Return each cause that a firing playbook, an inspection or an experiment names, once, with all its evidence."""
    listed: dict[str, list[CandidateCause]] = {}
    for match in firing:
        for entry in match.playbook.causes:
            listed.setdefault(entry.id, []).append(entry)
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(finding.cause, []).append(finding)
    tested: dict[str, list[ArmResult]] = {}
    results = list(experiments)
    for result in results:
        for cause in result.causes:
            tested.setdefault(cause, []).append(result)
    first_split = next((result for result in results if result.id == FIRST_SPLIT), None)
    remaining = 0.0 if first_split is None else min(max(1 - _share_or_lowest(first_split.restored), 0.0), 1.0)
    return [
        Candidate(
            cause,
            _support(listed[cause], view) if cause in listed else None,
            tuple(found.get(cause, ())),
            tuple(tested.get(cause, ())),
            from_logs,
            remaining if vocabulary.load()[cause].group == ROWS else 0.0,
        )
        for cause in dict.fromkeys([*listed, *found, *tested])
    ]


def _support(entries: Sequence[CandidateCause], view: HistoryView) -> Support:
    conditions = dict.fromkeys(condition for entry in entries for condition in entry.supported_by)
    observations = {condition: evaluate_condition(condition, view) for condition in conditions}
    exclusions = {condition: evaluate_condition(condition, view) for entry in entries for condition in entry.unless}
    return Support(tuple(entries), observations, view.last_step or 0, exclusions)


def _share_or_lowest(share: float | None) -> float:
    """Return a share, or -infinity, which comes last in every order, where an experiment has none."""
    return -math.inf if share is None or math.isnan(share) else share
