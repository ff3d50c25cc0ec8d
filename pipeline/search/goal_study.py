"""A round for a goal other than quality: which change makes training or model cheaper, with its quality guarded.

It is the study of a round with another measure: the cost of a training in the place of its score. Candidates and the
control are trained in full on one seed of the search, the cheapest of those that keep their quality are confirmed on
fresh seeds, and the adoption rule chooses. Where trainings are timed, they run one at a time, and seeds alternate which
configuration comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from pipeline.adoption.acceptance import Guard, declared_effect, format_guard, harms, largest_family
from pipeline.adoption.context import Round, frozen_plan
from pipeline.adoption.guards import measure_guards
from pipeline.adoption.proposals import Known, config_of, ranked
from pipeline.adoption.records import adopted_change, tried_changes
from pipeline.adoption.review import format_range, require_accepted
from pipeline.adoption.round import (
    Study,
    min_effect,
    predicted,
    record_choice,
    refuse_without_survivor,
    skip_study,
    terms_of,
    train,
)
from pipeline.adoption.search import ALLOWED, CLEAR, ROUNDING, SCREENING, SEEDS, WORTH, Search, Tally, Terms
from pipeline.results import counted, digest
from pipeline.run_store.job import Job
from pipeline.search.goal_changes import goal_changes
from pipeline.trials.costs import MEASURES, as_scores, measure_costs
from pipeline.trials.executor import Trial
from pipeline.trials.final_seeds import CONFIRMATION_SEED
from pipeline.trials.study import Arm, ArmResult, compare_arms, format_harmed, select_arm, with_change

CONFIRMED = 2  # candidates of a confirmation, at most: a cost varies little, so that one seed shows the cheapest ones
NO_CANDIDATE = "the config has no setting whose change makes it cheaper"


@dataclass(frozen=True)
class GoalRound:
    """What the stages of a round for a goal need: the phase's context, the goal, its terms, and the control."""

    ctx: Round
    goal: str
    terms: Terms
    control: Arm

    def train(self, jobs: Sequence[tuple[str, Job]]) -> dict[str, Trial]:
        """Train the jobs; one at a time where their duration is measured."""
        return train(self.ctx, jobs, 0, 1 if self.goal == "train_speed" else None)

    def costs(self, trials_by_seed: Sequence[Sequence[Trial]]) -> dict[str, float]:
        """Return the cost of each training by its id; those of one seed are measured in turn."""
        planned = frozen_plan(self.ctx).config
        return measure_costs(self.ctx.run.path, self.goal, trials_by_seed, planned, self.ctx.trust)

    def margin(self, scores: Sequence[float]) -> float:
        """Return how far the score may fall: as the plan says, else by what a change for quality would have to gain."""
        declared = (frozen_plan(self.ctx).config["plan"].get("margins") or {}).get("quality")
        if declared is not None:
            return float(declared)
        return declared_effect(scores, min_effect(self.ctx), self.terms.target, self.terms.greater)

    def format(self, cost: float) -> str:
        return f"{cost:.4g} {MEASURES[self.goal].unit}"


def run_goal_study(ctx: Round) -> Study:
    """Search for a change that makes the goal's cost smaller, confirm it, and record the choice with its reason."""
    goal, start = str(ctx.settings["goal"]), adopted_change(ctx)
    arms = _candidates(ctx, goal)
    ctx.log(f"optimization, round {ctx.round}: {MEASURES[goal].what} ({goal}), {counted(len(arms), 'candidate')}")
    if not arms:
        return skip_study(ctx, NO_CANDIDATE)
    work = GoalRound(ctx, goal, terms_of(ctx, arms), Arm("control", start))
    search = Search(work.terms, work.train, ctx.log, work.control, [Tally(arm) for arm in arms])
    pairs, most = int(ctx.settings["seeds_per_arm"]), _most_confirmed(ctx)
    _announce(work, search, pairs, most)
    searched, chosen = _screen(work, search, most)
    if not chosen:
        why = "no candidate was cheaper by enough with its quality kept, so nothing was confirmed"
        return skip_study(ctx, why, search, searched)
    return _confirm(work, search, chosen, searched, pairs)


def _candidates(ctx: Round, goal: str) -> list[Arm]:
    """Return the changes for this goal that no earlier round has tried, with ids and ranks by size."""
    start, plan = adopted_change(ctx), frozen_plan(ctx)
    config, rows = config_of(start, plan.config), int(ctx.evidence_of("planning")["rows"]["train"])
    tried, arms = tried_changes(ctx) | {digest(start)}, []
    for why, delta in goal_changes(config, goal, rows, _is_on_cuda(config)):
        changed = with_change(start, vars(delta))
        if digest(changed) not in tried:
            arms.append(Arm("", changed, "", "", origin="general", why=why))
    nothing: Any = {"root_causes": [], "recommended_fixes": []}
    return ranked(Known(nothing, start, config), arms)


def _is_on_cuda(config: Mapping[str, Any]) -> bool:
    import torch

    accelerator = config["trainer"].get("accelerator", "auto")
    return accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available())


def _most_confirmed(ctx: Round) -> int:
    """Return how many candidates are confirmed at most."""
    family = largest_family(int(ctx.settings["seeds_per_arm"]))
    return min(CONFIRMED, int(ctx.settings["candidates"]), max(1, family))


def _announce(work: GoalRound, search: Search, pairs: int, most: int) -> None:
    """Print the plan of the study before it is paid, and stop where a person has to accept it first."""
    ctx, arms = work.ctx, [tally.arm for tally in search.tallies]
    for arm in arms:
        ctx.log(f"  {arm.id}: {arm.delta.describe()}, {arm.why}")
    costs = [work.terms.cost(work.control.delta), *(work.terms.cost(arm.delta) for arm in arms)]
    screening = min(ALLOWED, sum(costs))
    one_by_one = work.goal == "train_speed"
    times = [predicted(ctx, trainings, round(trainings), one_by_one) for trainings in (screening, (1 + most) * pairs)]
    ctx.log(f"  predicted: the search costs at most {screening:.1f} trainings' worth of steps ({times[0]}),")
    ctx.log(
        f"    then a confirmation costs {format_range(2 * pairs, (1 + most) * pairs)} trainings ({times[1]} at most)"
    )
    expected = f"a {MEASURES[work.goal].what} that is smaller by {min_effect(ctx):.0%} at least, with the score kept"
    require_accepted(ctx, arms, screening, [2 * pairs, (1 + most) * pairs], times, expected)


def _screen(work: GoalRound, search: Search, most: int) -> tuple[dict[str, Trial], list[Arm]]:
    """Train everything on one seed; return all trainings, and the cheapest candidates that keep their score."""
    affordable, left = list[Tally](), ALLOWED - work.terms.cost(work.control.delta)
    for tally in search.tallies:
        cost = work.terms.cost(tally.arm.delta)
        if cost <= left + ROUNDING:
            affordable.append(tally)
            left -= cost
        else:
            tally.outcome = "not screened: the allowance does not reach"
    trials = search.train_arms(SCREENING, [work.control, *(tally.arm for tally in affordable)], SEEDS[0], None)
    refuse_without_survivor(trials.values())
    costs = work.costs([[*trials.values()]])
    control = trials[work.control.id]
    control_cost, margin = costs[control.id], work.margin([control.value])
    search.control_values.append(control.value)
    work.ctx.log(f"  screening, seed {SEEDS[0]}: control {work.format(control_cost)}, {control.value:.4g}")
    cheaper: list[tuple[float, Tally]] = []
    for tally in affordable:
        trial = trials[tally.arm.id]
        tally.values.append(trial.value)
        cost = costs[trial.id]
        tally.outcome = _judge_screening(work, trial, cost, control_cost, margin, control.value)
        if tally.outcome.startswith("cheaper"):
            cheaper.append((cost, tally))
        work.ctx.log(f"    {tally.arm.id:<4} {work.format(cost)}, {trial.value:.4g}, {tally.outcome}")
    chosen = [tally for _, tally in sorted(cheaper, key=lambda pair: pair[0])]
    for tally in chosen[most:]:
        tally.outcome = f"cheaper in screening, not confirmed: {chosen[0].arm.id} came first"
    return {trial.id: trial for trial in trials.values()}, [tally.arm for tally in chosen[:most]]


def _judge_screening(
    work: GoalRound, trial: Trial, cost: float, control_cost: float, margin: float, control_score: float
) -> str:
    """Return what one seed says about a candidate."""
    if trial.died:
        return f"lost: its training died in screening ({trial.died})"
    if not cost <= (1 - WORTH * min_effect(work.ctx)) * control_cost:
        return f"lost in screening: {work.format(cost)}, the control {work.format(control_cost)}"
    # One seed may be unlucky: what it loses is held against the margin only where it is far beyond.
    if work.terms.gain(trial.value, control_score) < -CLEAR * margin:
        return f"lost in screening: its score, {trial.value:.4g}, is below that of the control by more than allowed"
    return f"cheaper by {1 - cost / control_cost:.0%} in screening"


def _confirm(work: GoalRound, search: Search, arms: Sequence[Arm], searched: Mapping[str, Trial], pairs: int) -> Study:
    """Train the control and the candidates on fresh seeds, compare their costs, guard their quality, and choose."""
    ctx, terms, everyone = work.ctx, work.terms, [work.control, *arms]
    ctx.log(f"  confirmation: the control and {counted(len(arms), 'candidate')} on {pairs} fresh seeds each")
    jobs = [
        (f"{arm.id}-{i}", Job(terms.plan_digest, "trial", arm.delta, CONFIRMATION_SEED + i - 1, terms.budget))
        for i in range(1, pairs + 1)
        for arm in (everyone if i % 2 else everyone[::-1])
    ]
    trials = work.train(jobs)
    refuse_without_survivor(trials.values())
    costs = work.costs([[trials[f"{arm.id}-{i}"] for arm in everyone] for i in range(1, pairs + 1)])
    control = [costs[f"control-{i}"] for i in range(1, pairs + 1)]
    due = declared_effect(control, min_effect(ctx), 0.0, False)
    target = fmean(control) - due if all(map(math.isfinite, control)) else math.inf
    rows = compare_arms(everyone, as_scores(trials, costs), pairs, False, due)
    for row in rows[1:]:
        _guard(work, row, trials, pairs)
        ctx.log(f"  {_format_row(work, row, rows[0]['mean'])}")
    winner = select_arm(rows[1:], target, False)
    choice = _explain(rows[1:], winner, min_effect(ctx))
    study = Study(
        everyone, pairs, terms.budget, trials, rows, winner, choice, due, search.tallies, search.spent, (),
        work.goal, target, {**searched, **trials},
    )  # fmt: skip
    record_choice(ctx, study)
    return study


def _guard(work: GoalRound, row: ArmResult, trials: Mapping[str, Trial], pairs: int) -> None:
    """Measure the quality of an arm that is cheaper, and what else it must not make worse."""
    row["reaches"] = row["wins"]
    if not row["wins"]:
        return
    ctx, metric = work.ctx, str(frozen_plan(work.ctx).config["task"]["metric"])
    before, after = ([trials[f"{arm}-{i}"] for i in range(1, pairs + 1)] for arm in ("control", row["id"]))
    scores = [trial.value for trial in before], [trial.value for trial in after]
    quality: Guard = {
        "what": metric,
        "before": scores[0],
        "after": scores[1],
        "margin": work.margin(scores[0]),
        "limit": work.terms.target,
        "greater_is_better": work.terms.greater,
    }
    guards = [quality, *measure_guards(ctx.run.path, frozen_plan(ctx).config, ctx.trust, before, after)]
    row["guards"], row["harms"] = list(guards), harms(guards)
    for guard in guards:
        ctx.log(f"  {row['id']}: {format_guard(guard)}")


def _format_row(work: GoalRound, row: ArmResult, before: float) -> str:
    """Return the result of one candidate in one line."""
    change = row["mean"] / before - 1 if before else 0.0
    costs = (
        f"{work.format(row['mean'])} instead of {work.format(before)} ({change:+.0%}, p = {row['p']:.3g} after Holm)"
    )
    verdict = "cheaper" if row["wins"] else "not shown to be cheaper by enough"
    return f"{row['id']}: {verdict}, {costs}"


def _explain(rows: Sequence[ArmResult], winner: ArmResult | None, share: float) -> str:
    """Return why `select_arm` chose the winner among the candidates, or why it chose none, in one sentence."""
    cheaper = [row for row in rows if row["wins"]]
    harmless = [row for row in cheaper if not row["harms"]]
    harmed = format_harmed(cheaper)
    if winner is None:
        return f"no candidate is shown to be cheaper by {share:.0%} with its quality kept{harmed}"
    shown = f"cheaper by {share:.0%} at least with its quality kept: {', '.join(row['id'] for row in harmless)}"
    smallest = min(harmless, key=lambda row: row["order"])
    if len(harmless) == 1:
        return f"{shown}{harmed}"
    if winner is not smallest:
        rule = f"of which {winner['id']} is cheaper than the smallest change, {smallest['id']}, on every seed"
        return f"{shown}, {rule}{harmed}"
    below = [row["id"] for row in harmless if row["mean"] < winner["mean"]]
    but = f"; {', '.join(below)} cost less on average, but not on every seed" if below else ""
    return f"{shown}, of which {winner['id']} is the smallest change{but}{harmed}"


def criteria_missed(branch: Mapping[str, Any]) -> list[str]:
    """Return what a cheaper model with the plan's seed does not keep; empty where it is as sufficient as before."""
    missed = [] if branch["target"] else ["it misses the target"]
    missed += [] if branch["trivial"] else ["it is not shown to be better than the trivial baseline"]
    return [*missed, *(f"it shows {symptom}" for symptom in branch["symptoms"])]
