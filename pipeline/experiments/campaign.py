"""A round of experiments: controls, short arms, and the confirmation of what restored the shortfall.

1. The unchanged run on two seeds: is the shortfall there again?
2. Every chosen arm at a quarter of its length on the first seed.
3. Arms that restored half of the shortfall are repeated on two more seeds; where none did, the most promising ones are
   trained at full length.
4. If what is confirmed leaves a part unexplained, or nothing is confirmed, the other arms are tried on top of the best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline.experiments.allowance import CONTROL_SEEDS, MAX_SHORT, MAX_WHOLE, REPEATS, SHORT, Allowance
from pipeline.experiments.arms.arm import Arm, Subject, combined
from pipeline.experiments.arms.choice import MORE_EPOCHS
from pipeline.experiments.jobs import ARM, CONTROL, LONGER, control_name
from pipeline.experiments.result import ON_TOP_OF, ArmResult
from pipeline.experiments.verdict import CONFIRMED, EXPLAINED, SEEDS, Shortfall, judge
from pipeline.experiments.worker_process import Outcome, WarmWorker
from pipeline.run_store.job import Delta, Job

MAX_CONFIRMED = 4  # arms that are repeated on more seeds
PROMISING = 0.02  # share of the shortfall that a short experiment must restore to be trained at full length
MAX_MINUTES = 5.0  # of one experiment
PAIRED = 4  # of the most promising arms, whose pairs are tried where no single arm restores enough

Log = Callable[[str], None]
Planned = tuple[str, Job, float]  # id, job, cost in slices
StateHypotheses = Callable[[Sequence[tuple[Arm, float]]], None]  # (arm, cost in slices), before any of them


@dataclass
class Campaign:
    """The state of a round: what is experimented on, what it may cost, and what has been found."""

    worker: WarmWorker
    subject: Subject
    allowance: Allowance
    state_hypotheses: StateHypotheses
    log: Log
    trainings: dict[str, list[Outcome]] = field(default_factory=dict)  # by the id of their arm
    results: dict[str, ArmResult] = field(default_factory=dict)
    not_run: list[str] = field(default_factory=list)
    at_a_quarter: set[str] = field(default_factory=set)  # ids of arms that were trained before those of `run`
    at_full_length: set[str] = field(default_factory=set)  # ids of arms
    keeps_controls: bool = False  # the ends of the controls, so that an arm with more epochs can go on from there

    # --- trainings ---------------------------------------------------------------------------------------------------

    def job(self, delta: Delta, seed: int, steps: int | None, purpose: str = ARM) -> Job:
        """The job of an experiment: the adopted change, that of the arm, and what all experiments have in common."""
        minutes = self.subject.number("trainer.max_minutes")
        common: dict[str, object] = {"trainer.compile": False}
        if self.subject.stopped != "clock":
            common["trainer.max_minutes"] = min(MAX_MINUTES, minutes or MAX_MINUTES)
        known = {key: value for key, value in common.items() if self.subject.has(key)}
        change = combined(Delta(known), combined(self.subject.base, delta))
        return Job(self.subject.plan_digest, purpose, change, seed, steps)

    def train(self, jobs: Sequence[Planned]) -> dict[str, Outcome]:
        """Train the jobs (id, job, cost) that the allowance affords, and return their outcomes by id."""
        chosen = []
        for name, job, cost in jobs:
            if self.allowance.affords(cost):
                self.allowance.spend(cost)
                chosen.append((name, job))
            else:
                self.not_run.append(name)
        return {outcome.id: outcome for outcome in self.worker.run(chosen)}

    def controls(self) -> list[Outcome]:
        """Train the unchanged run on the control seeds."""
        return list(self.train([self._control(seed) for seed in range(1, CONTROL_SEEDS + 1)]).values())

    def one_more_control(self) -> list[Outcome]:
        """Train the unchanged run on one more seed, where the allowance affords it."""
        return list(self.train([self._control(SEEDS)]).values())

    def _control(self, seed: int) -> Planned:
        steps = None if self.subject.slice == 1.0 else self.subject.max_steps
        purpose = CONTROL if self.keeps_controls else ARM
        return control_name(seed), self.job(Delta(), seed, steps, purpose), 1.0

    def train_short(self, arm: Arm, seed: int) -> dict[str, Outcome]:
        """Train an arm for a quarter of its length on one seed."""
        self.at_a_quarter.add(arm.id)
        return self.train(self._trainings_of(arm, [seed], SHORT))

    def train_whole(self, arm: Arm, seed: int) -> dict[str, Outcome]:
        """Train an arm for a whole slice on one seed."""
        return self.train(self._trainings_of(arm, [seed], 1.0))

    def _trainings_of(self, arm: Arm, seeds: Iterable[int], share: float, base: str = "") -> list[Planned]:
        steps = self.subject.steps_of(arm, share)
        limit = None if share * self.subject.slice == 1.0 else steps
        name = f"{base}{arm.id}{'' if share == 1.0 else '-short'}"
        purpose = LONGER if arm.length > 1.0 else ARM
        costs = {seed: self._cost(arm, steps, seed) for seed in seeds}
        return [(f"{name}-{seed}", self.job(arm.delta, seed, limit, purpose), costs[seed]) for seed in costs]

    def _cost(self, arm: Arm, steps: int, seed: int) -> float:
        """The cost of an arm in slices; one with more epochs goes on from the end of the control of its seed."""
        goes_on = arm.length > 1.0 and self.keeps_controls and seed <= CONTROL_SEEDS
        return self.subject.cost(arm, steps) - (1.0 if goes_on else 0.0)

    # --- the stages --------------------------------------------------------------------------------------------------

    def run(self, arms: Sequence[Arm], shortfall: Shortfall, longer: Arm | None) -> None:
        """Try the arms, confirm what restores the shortfall, and explain what is left.

        `longer` has more epochs, for a training that still improved at its end; a part of it shows nothing.
        """
        affordable = int((self.allowance.left - REPEATS) / SHORT)
        count = max(1, min(MAX_SHORT - len(self.at_a_quarter), affordable))
        chosen = list(arms)[:count]
        self.not_run += [arm.id for arm in arms[count:]]
        self.state_hypotheses([(arm, self.subject.cost(arm, self.subject.steps_of(arm, SHORT))) for arm in chosen])
        screened = self.screen(chosen, shortfall)
        self.confirm(chosen, screened, shortfall)
        if longer is not None and not self._is_explained():
            self.state_hypotheses([(longer, self._cost(longer, self.subject.steps_of(longer, 1.0), 1))])
            self._confirm_in_full(longer, shortfall, "")
        self.explain_rest(chosen, screened, shortfall)

    def screen(self, arms: Sequence[Arm], shortfall: Shortfall, base: str = "") -> dict[str, Outcome]:
        """Train every arm for a quarter of its length on the first seed, and judge it by that for now."""
        jobs = [job for arm in arms for job in self._trainings_of(arm, [1], SHORT, base)]
        outcomes = self.train(jobs)
        screened = {}
        for arm, (name, _, _) in zip(arms, jobs, strict=True):
            if name in outcomes:
                screened[arm.id] = outcomes[name]
                self.record(arm, [outcomes[name]], shortfall, whole=False, base=base)
        return screened

    def record(
        self, arm: Arm, outcomes: Sequence[Outcome], shortfall: Shortfall, *, whole: bool, base: str = ""
    ) -> ArmResult:
        """Judge an arm by its trainings, and keep the result in place of an earlier one."""
        name = base + arm.id
        self.trainings[name] = list(outcomes)
        self.results[name] = replace(judge(arm, outcomes, shortfall, whole=whole), id=name)
        return self.results[name]

    def _is_explained(self) -> bool:
        """Whether a confirmed change restored about everything."""
        return any(r.verdict == "confirmed" and (r.restored or 0.0) >= EXPLAINED for r in self.results.values())

    def is_confirmed(self, name: str) -> bool:
        """Whether the arm of this id was tried, and its causes confirmed."""
        return name in self.results and self.results[name].verdict == "confirmed"

    def confirm(
        self, arms: Sequence[Arm], screened: Mapping[str, Outcome], shortfall: Shortfall, base: str = ""
    ) -> None:
        """Repeat the arms that restored half of the shortfall on more seeds; else train the best ones in full."""
        tried = [arm for arm in arms if arm.id in screened]
        shares = {arm.id: shortfall.restored(screened[arm.id].value) for arm in tried}
        gains = {arm.id: max(shares[arm.id], shortfall.gained(screened[arm.id].value)) for arm in tried}
        strong = [arm for arm in tried if shares[arm.id] >= CONFIRMED]
        # What restores everything is equally good: then the order of the hypotheses counts.
        repeated = sorted((arm for arm in strong if arm.kind == "repair"), key=lambda a: -min(shares[a.id], 1.0))
        for arm in repeated[:MAX_CONFIRMED]:
            more = self.train(self._trainings_of(arm, range(2, SEEDS + 1), SHORT, base))
            self.record(arm, [screened[arm.id], *more.values()], shortfall, whole=False, base=base)
        if any(self.is_confirmed(base + arm.id) for arm in repeated):
            return
        gains |= {arm.id: self.results[base + arm.id].restored or 0.0 for arm in repeated}
        for arm in sorted((arm for arm in tried if arm.kind == "repair"), key=lambda a: -gains[a.id]):
            if gains[arm.id] >= PROMISING and self._confirm_in_full(arm, shortfall, base):
                return

    def _confirm_in_full(self, arm: Arm, shortfall: Shortfall, base: str) -> bool:
        """Train an arm at full length, on three seeds if the first restores enough; return whether it does."""
        name = base + arm.id
        if name not in self.at_full_length and len(self.at_full_length) >= MAX_WHOLE:
            self.not_run.append(f"{name} at full length")
            return False
        outcomes = list(self.train(self._trainings_of(arm, [1], 1.0, base)).values())
        if not outcomes:
            return False
        self.at_full_length.add(name)
        if shortfall.restored(outcomes[0].value) >= CONFIRMED:
            outcomes += self.train(self._trainings_of(arm, range(2, SEEDS + 1), 1.0, base)).values()
        return self.record(arm, outcomes, shortfall, whole=True, base=base).verdict == "confirmed"

    # --- several faults ----------------------------------------------------------------------------------------------

    def explain_rest(self, arms: Sequence[Arm], screened: Mapping[str, Outcome], shortfall: Shortfall) -> None:
        """Try the other arms on top of the best one, where that leaves a part of the shortfall or confirms nothing."""
        longer = self.results.get(MORE_EPOCHS)
        if self._is_explained() or (longer is not None and (longer.restored or 0.0) >= CONFIRMED):
            return
        repairs = [arm for arm in arms if arm.kind == "repair" and self.results.get(arm.id)]
        restored = {arm.id: self.results[arm.id].restored or 0.0 for arm in repairs}
        confirmed = [arm for arm in repairs if self.is_confirmed(arm.id)]
        if confirmed:
            first = max(confirmed, key=lambda arm: restored[arm.id])
            if self._explains_in_full(first, shortfall):
                return
            others = [arm for arm in repairs if not set(arm.causes) & set(first.causes)]
            self._on_top_of(first, others, screened, shortfall)
            return
        # Where no change alone helps, two unusual settings may hide each other.
        promising = sorted(repairs, key=lambda arm: (-round(max(restored[arm.id], 0.0), 1), arm.reason != "unusual"))[
            :PAIRED
        ]
        for i, first in enumerate(promising):
            if self._on_top_of(first, promising[i + 1 :], screened, shortfall):
                return

    def _explains_in_full(self, arm: Arm, shortfall: Shortfall) -> bool:
        """Whether a change that was confirmed by short trainings restores everything at full length."""
        outcomes = self.train(self._trainings_of(arm, [1], 1.0))
        return any(shortfall.restored(outcome.value) >= EXPLAINED for outcome in outcomes.values())

    def _on_top_of(
        self, first: Arm, others: Sequence[Arm], screened: Mapping[str, Outcome], shortfall: Shortfall
    ) -> bool:
        """Try the other arms together with the first one; return whether one of the pairs is confirmed.

        The control of a pair is the first arm alone, so that its result is what the second change adds.
        """
        scores = [outcome.value for outcome in self.trainings[first.id] if math.isfinite(outcome.value)]
        rest = shortfall.from_controls(scores or [shortfall.control])
        if not rest.exists:
            return False
        base = first.id + ON_TOP_OF
        pairs = [
            replace(arm, delta=combined(first.delta, arm.delta), change=f"{first.change}; and {arm.change}")
            for arm in others
            if not arm.delta.overlaps(first.delta)
        ]
        self.state_hypotheses([(replace(arm, id=base + arm.id), SHORT) for arm in pairs])
        # What the first change adds to the second is read off the same trainings.
        added = [replace(first, id=arm.id + ON_TOP_OF + first.id, delta=arm.delta, change=arm.change) for arm in pairs]
        self.state_hypotheses([(arm, 0.0) for arm in added])
        tried = self.screen(pairs, rest, base)
        self.confirm(pairs, tried, rest, base)
        confirmed = [arm for arm in pairs if self.is_confirmed(base + arm.id)]
        for arm in confirmed:
            self._confirm_first(first, arm, shortfall, base, screened)
        return bool(confirmed)

    def _confirm_first(
        self, first: Arm, second: Arm, shortfall: Shortfall, base: str, screened: Mapping[str, Outcome]
    ) -> None:
        """Where only both changes together restore the shortfall, judge the first by what it adds to the second."""
        if self.is_confirmed(first.id) or second.id not in screened:
            return
        value = screened[second.id].value
        rest = shortfall.from_controls([value if math.isfinite(value) else shortfall.control])
        if rest.exists:
            pair = replace(first, id=second.id + ON_TOP_OF + first.id, change=second.change)
            self.record(pair, self.trainings[base + second.id], rest, whole=False)
