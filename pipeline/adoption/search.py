"""The search of a round: which of many candidates are worth a confirmation, for a few trainings' worth of steps.

1. A quick test: every candidate and the control train for a tenth of the planned steps on one seed. What dies, or is
   clearly behind the control, is lost. Changes that only train longer show nothing then, and go on.
2. Screening: the control and the best of the rest are trained in full on one seed.
3. Where that leaves it open whether the best is better, it and the control are trained on a second seed.

The confirmation uses other seeds than the search: a candidate that was only lucky in the search loses there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.adoption.general import WIDEST
from pipeline.results import plain
from pipeline.run_store.job import Delta, Job
from pipeline.trials.executor import Trial
from pipeline.trials.study import Arm, added_overrides

QUICK, SCREENING = "quick", "screening"  # stages, and purposes of jobs
SEEDS = (10, 11)  # indices of screening seeds
ALLOWED = 6.0  # planned trainings' worth of steps that a search may cost
QUICK_SHARE = 0.1  # of the planned steps, for a quick test
MIN_QUICK_STEPS, MAX_QUICK_STEPS = 100, 400
WHOLE = 0.5  # of the planned steps, from which a quick test is as good as a training
POOL = 8  # candidates of a quick test
QUICK_ALLOWED = 2.5  # planned trainings' worth of steps that a quick test may cost
SCREENED = 3  # candidates of a screening
CLEAR = 2.0  # times the declared effect, from which one seed is enough
ROUNDING = 1e-9  # of a sum of costs, which may not exclude what just fits
WORTH = 0.5  # times the declared effect, below which a gain is too small to be confirmed
PROVEN = 0.9  # share of the shortfall that an experiment brought back, from which it needs no screening
LENGTH_KEYS = ("trainer.max_epochs", "trainer.max_steps", "trainer.patience")

TrainJobs = Callable[[Sequence[tuple[str, Job]]], Mapping[str, Trial]]


@dataclass(frozen=True)
class Terms:
    """What a search is held to: the plan, the length of the planned training, what counts as a gain, and the target.

    `steps_of` gives the planned steps of a change; `due` is the declared effect for a score of the control.
    """

    plan_digest: str
    max_steps: int
    budget: int
    greater: bool
    target: float
    steps_of: Callable[[Delta], int]
    due: Callable[[float], float]

    @property
    def quick_steps(self) -> int:
        return min(self.max_steps, max(MIN_QUICK_STEPS, min(MAX_QUICK_STEPS, round(QUICK_SHARE * self.max_steps))))

    def cost(self, delta: Delta) -> float:
        """Return the length of one whole training with this change, in planned trainings."""
        return self.steps_of(delta) / self.max_steps

    def gain(self, value: float, control: float) -> float:
        """Return how much better a score is than the control's; a training without a score is infinitely worse."""
        if not math.isfinite(value):
            return -math.inf
        if not math.isfinite(control):
            return math.inf
        return value - control if self.greater else control - value

    def reaches(self, value: float) -> bool:
        return math.isfinite(value) and (value >= self.target if self.greater else value <= self.target)


@dataclass
class Tally:
    """What the search found out about a candidate: its scores by stage, and why it was put aside."""

    arm: Arm
    quick: float | None = None
    values: list[float] = field(default_factory=list)
    outcome: str = "not tried"

    def to_json(self) -> dict[str, Any]:
        """Return the record for the ledger and the evidence."""
        arm = self.arm
        return plain({
            "id": arm.id, "change": arm.delta.describe(), "delta": arm.delta, "cause": arm.cause, "cure": arm.cure,
            "causes": list(arm.causes), "origin": arm.origin, "order": arm.order, "quick": self.quick,
            "values": self.values, "outcome": self.outcome,
        })  # fmt: skip


@dataclass
class Search:
    """A search under way: its terms, the control's scores by stage, the candidates, and what it cost."""

    terms: Terms
    train: TrainJobs
    log: Callable[[str], None]
    control: Arm
    tallies: list[Tally]
    spent: float = 0.0
    ablation: list[dict[str, Any]] = field(default_factory=list)
    control_quick: float = math.nan
    control_values: list[float] = field(default_factory=list)

    def run(self, most: int) -> list[Arm]:
        """Return the candidates that are worth a confirmation, at most `most`."""
        proven = [tally for tally in self.tallies if _is_proven(tally.arm)]
        if proven:
            chosen = _one_per_setting(proven)[:most]
            for tally in chosen:
                tally.outcome = "confirmed by an experiment of diagnostics, which was its screening"
            return [tally.arm for tally in chosen]
        alive = self._quick_test(self.tallies[:POOL])
        alive = self._screen(alive, 0)
        if alive:
            alive = self._one_step_further(alive)
        if alive and self._is_open(alive[0]):
            alive = self._screen(alive[:1], 1)
        if alive and len(alive[0].arm.parts) > 1:
            alive = [self._without_idle_parts(alive[0]), *alive[1:]]
        chosen = self._worth_confirming(alive)[:most]
        for tally in alive:
            if tally not in chosen:
                tally.outcome = f"ahead of the control in screening, not confirmed: {chosen[0].arm.id} came first"
        return [tally.arm for tally in chosen]

    # --- stages -------------------------------------------------------------------------------------------------------

    def _quick_test(self, pool: Sequence[Tally]) -> list[Tally]:
        """Return the candidates that are not lost after a few steps, the best first."""
        terms, steps = self.terms, self.terms.quick_steps
        affordable = int(QUICK_ALLOWED * terms.max_steps / steps) - 1  # besides the control
        short = [tally for tally in pool if not _only_longer(tally.arm.delta, self.control.delta)]
        short = short[: max(affordable, 0)]
        if steps >= WHOLE * terms.max_steps or len(pool) <= 1 or len(short) < 2:
            return list(pool)
        arms = [self.control, *(tally.arm for tally in short)]
        self.log(f"  quick test: {len(short)} changes and the control, {steps} steps each")
        trials = self.train_arms(QUICK, arms, SEEDS[0], steps)
        self.control_quick = trials[self.control.id].value
        alive = []
        for tally in short:
            trial = trials[tally.arm.id]
            tally.quick = trial.value
            gain = terms.gain(trial.value, self.control_quick)
            if trial.died:
                tally.outcome = f"lost: its training died in the quick test ({trial.died})"
            elif gain < 0:
                tally.outcome = f"lost: {trial.value:.4g} after {steps} steps, the control {self.control_quick:.4g}"
            else:
                alive.append(tally)
            self.log(f"    {tally.arm.id:<4} {tally.outcome if tally not in alive else f'{trial.value:.4g}, goes on'}")
        alive.sort(key=lambda t: -terms.gain(t.quick if t.quick is not None else math.nan, self.control_quick))
        longer = [tally for tally in pool if _only_longer(tally.arm.delta, self.control.delta)]
        return [*alive[: SCREENED - bool(longer)], *longer, *alive[SCREENED - bool(longer) :]]

    def _screen(self, tallies: Sequence[Tally], place: int) -> list[Tally]:
        """Train the control and the candidates that the allowance affords in full; return those that are ahead."""
        terms, seed = self.terms, SEEDS[place]
        left, chosen = ALLOWED - self.spent - terms.cost(self.control.delta), list[Tally]()
        for tally in tallies:
            cost = terms.cost(tally.arm.delta)
            if len(chosen) < SCREENED and cost <= left + ROUNDING:
                chosen.append(tally)
                left -= cost
            elif place == 0:
                tally.outcome = "not screened: better candidates came first, or the allowance does not reach"
        if not chosen:
            return list(tallies) if place else []
        trials = self.train_arms(SCREENING, [self.control, *(tally.arm for tally in chosen)], seed, None)
        self.control_values.append(trials[self.control.id].value)
        self.log(f"  screening, seed {seed}: control {self.control_values[-1]:.4g}")
        ahead = []
        for tally in chosen:
            trial = trials[tally.arm.id]
            tally.values.append(trial.value)
            if trial.died:
                tally.outcome = f"lost: its training died in screening ({trial.died})"
            elif not self._is_ahead(tally):
                tally.outcome = f"lost in screening: {trial.value:.4g}, the control {self.control_values[-1]:.4g}"
            else:
                tally.outcome = "ahead in screening"
                ahead.append(tally)
            self.log(f"    {tally.arm.id:<4} {trial.value:.4g}, {tally.outcome}")
        return sorted(ahead, key=lambda tally: -self._mean_gain(tally))

    def train_arms(self, stage: str, arms: Sequence[Arm], seed: int, steps: int | None) -> dict[str, Trial]:
        """Train arms on one seed, and return their trials by the id of the arm."""
        terms, place = self.terms, SEEDS.index(seed) + 1
        names = {arm.id: f"{stage}-{arm.id}-{place}" for arm in arms}
        jobs = [(names[arm.id], Job(terms.plan_digest, stage, arm.delta, seed, steps or terms.budget)) for arm in arms]
        self.spent += sum(steps / terms.max_steps if steps else terms.cost(arm.delta) for arm in arms)
        trials = self.train(jobs)
        return {arm.id: trials[names[arm.id]] for arm in arms}

    def _one_step_further(self, ahead: Sequence[Tally]) -> list[Tally]:
        """Repeat the step of the best candidate, a rate or a width, where that gains and still misses the target."""
        best = ahead[0]
        if self.terms.reaches(best.values[0]) or (further := further_step(best.arm, self.control.delta)) is None:
            return list(ahead)
        tally = Tally(replace(best.arm, id=f"{best.arm.id}x", delta=further, order=best.arm.order))
        if self.spent + self.terms.cost(further) > ALLOWED + ROUNDING:
            return list(ahead)
        self.tallies.append(tally)
        trial = self.train_arms(SCREENING, [tally.arm], SEEDS[0], None)[tally.arm.id]
        tally.values.append(trial.value)
        tally.outcome = "ahead in screening" if self._is_ahead(tally) else "lost in screening"
        self.log(f"    {tally.arm.id:<4} {trial.value:.4g}, the same step once more: {further.describe()}")
        leading = [*ahead, *([tally] if self._is_ahead(tally) else [])]
        return sorted(leading, key=lambda tally: -self._mean_gain(tally))

    def _without_idle_parts(self, tally: Tally) -> Tally:
        """Take each part of a combination out once; return what is left without the first that contributes nothing.

        A part contributes if the score without it is worse by half of the declared effect on the screening seed.
        """
        arm, due = tally.arm, WORTH * self.terms.due(self.control_values[0])
        for place, part in enumerate(arm.parts):
            rest = arm.parts[1 - place]
            screened = [other for other in self.tallies if other.arm.delta == rest and other.values]
            if not screened and self.spent + self.terms.cost(rest) > ALLOWED + ROUNDING:
                self.ablation.append(_ablated(arm, part, self.control.delta, None, "the allowance does not reach"))
                continue
            reduced = screened[0] if screened else self._screen_part(tally, place, rest)
            loss = self.terms.gain(tally.values[0], reduced.values[0])
            contributes = loss > due or not math.isfinite(reduced.values[0])
            why = "contributes" if contributes else "contributes nothing and is dropped"
            self.ablation.append(_ablated(arm, part, self.control.delta, reduced.values[0], why))
            self.log(
                f"    {arm.id:<4} {tally.values[0]:.4g} with {part.describe()}, {reduced.values[0]:.4g} without: {why}"
            )
            if not contributes:
                tally.outcome = f"replaced by {reduced.arm.id}: {part.describe()} contributes nothing"
                return reduced
        return tally

    def _screen_part(self, tally: Tally, place: int, rest: Delta) -> Tally:
        reduced = Tally(replace(tally.arm, id=f"{tally.arm.id}p{place + 1}", delta=rest, parts=()))
        self.tallies.append(reduced)
        trial = self.train_arms(SCREENING, [reduced.arm], SEEDS[0], None)[reduced.arm.id]
        reduced.values.append(trial.value)
        reduced.outcome = f"a part of {tally.arm.id}"
        return reduced

    # --- judgements ---------------------------------------------------------------------------------------------------

    def _mean_gain(self, tally: Tally) -> float:
        gains = [self.terms.gain(v, c) for v, c in zip(tally.values, self.control_values, strict=False)]
        return sum(gains) / len(gains) if gains else -math.inf

    def _is_ahead(self, tally: Tally) -> bool:
        """Whether the gain in screening is large enough that a confirmation can show the declared effect."""
        gain = self._mean_gain(tally)
        return gain > 0 and gain >= WORTH * self.terms.due(self.control_values[0])

    def _is_open(self, tally: Tally) -> bool:
        """Whether one seed leaves it open that the best is better, and the allowance reaches for another."""
        cost = self.terms.cost(self.control.delta) + self.terms.cost(tally.arm.delta)
        clear = self._mean_gain(tally) >= CLEAR * self.terms.due(self.control_values[0])
        return not clear and self.spent + cost <= ALLOWED + ROUNDING

    def _worth_confirming(self, alive: Sequence[Tally]) -> list[Tally]:
        """Return the best of the screening, and the smallest change that reaches the target there as well."""
        if not alive:
            return []
        best = alive[0]
        smaller = [t for t in alive[1:] if t.arm.order < best.arm.order and all(map(self.terms.reaches, t.values))]
        return [best, *sorted(smaller, key=lambda tally: tally.arm.order)[:1]]


def _is_proven(arm: Arm) -> bool:
    """Whether an experiment showed that a change brings back about everything that was missing."""
    return arm.origin == "experiment" and arm.restored is not None and arm.restored >= PROVEN


def _one_per_setting(tallies: Sequence[Tally]) -> list[Tally]:
    """Return the best candidate of each setting: another value of the same setting is the same idea."""
    settings: list[set[str]] = []
    best = []
    for tally in tallies:
        keys = {*tally.arm.delta.overrides, *(next(iter(step)) for step in tally.arm.delta.surgery)}
        if keys not in settings:
            settings.append(keys)
            best.append(tally)
        else:
            tally.outcome = "not tried: another value of the same setting restored more"
    return best


def _ablated(arm: Arm, part: Delta, start: Delta, without: float | None, why: str) -> dict[str, Any]:
    """Return the record of one part of a combination that was taken out."""
    own = Delta(added_overrides(start, part), part.surgery[len(start.surgery) :])
    return plain({"arm": arm.id, "without": own.describe(), "score": without, "why": why})


def further_step(arm: Arm, start: Delta) -> Delta | None:
    """Return the change with its step taken once more, where it is one rate or one width; None for other changes."""
    added = added_overrides(start, arm.delta)
    if len(added) != 1 or arm.scaled in (None, 1.0) or arm.delta.surgery != start.surgery:
        return None
    ((key, value),) = added.items()
    values = value if isinstance(value, list | tuple) else [value]
    new = [type(v)(float(f"{v * arm.scaled:.3g}")) for v in values]
    if any(isinstance(v, int) and not 1 <= v <= WIDEST for v in new):
        return None
    return replace(
        arm.delta, overrides={**arm.delta.overrides, key: new if isinstance(value, list | tuple) else new[0]}
    )


def _only_longer(delta: Delta, start: Delta) -> bool:
    """Whether a change trains longer with a constant or stretched schedule: a short training of it shows nothing."""
    return bool(added_overrides(start, delta).keys() & set(LENGTH_KEYS)) and len(delta.surgery) == len(start.surgery)


def predicted_trainings(terms: Terms, arms: Sequence[Arm]) -> float:
    """Return what a search of these candidates may cost at most, in planned trainings."""
    if any(map(_is_proven, arms)):
        return 0.0
    quick_test = min(QUICK_ALLOWED, (1 + min(len(arms), POOL)) * terms.quick_steps / terms.max_steps)
    control, second_seed = 1, 2  # the second seed trains the control and the best candidate
    longest = sorted((terms.cost(arm.delta) for arm in arms), reverse=True)[:SCREENED]
    return min(ALLOWED, quick_test + control + sum(longest) + second_seed)
