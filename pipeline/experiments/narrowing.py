"""What is the smallest part of a run that matters: which settings, which rows, and whether chance is part of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from pipeline.experiments.allowance import SHORT
from pipeline.experiments.arms.arm import Arm
from pipeline.experiments.arms.choice import chosen_arms
from pipeline.experiments.arms.difference import LastGood, undoing
from pipeline.experiments.arms.minimize import minimize
from pipeline.experiments.arms.training import without_randomness
from pipeline.experiments.campaign import Campaign
from pipeline.experiments.result import ArmResult
from pipeline.experiments.verdict import CONFIRMED, SEEDS, Shortfall
from pipeline.experiments.worker_process import Outcome
from pipeline.run_store.job import Delta

MAX_TRIED = 8  # selections besides all parts together
Part = TypeVar("Part")


def explain_difference(campaign: Campaign, shortfall: Shortfall, good: LastGood | None) -> None:
    """Where an earlier training was good, find the smallest part of what changed since then that must be undone."""
    known = [key for key in good.changes if campaign.subject.has(key)] if good else []
    if good is None or not known:
        return
    result = narrow(campaign, shortfall, known, lambda keys: undoing(good, keys))
    if result is not None and result.verdict == "confirmed":
        campaign.log(f"  {result.change}: {result.why}")


def explain_rows(campaign: Campaign, shortfall: Shortfall) -> None:
    """Where clipping extreme values mends the run, find the rows that must be left out instead."""
    about = campaign.subject.description
    for arm in chosen_arms(campaign.subject, ()):
        extreme = about["extreme_inputs"] if arm.id == "clipped_inputs" else about["extreme_targets"]
        if arm.causes != ("outliers",) or not campaign.is_confirmed(arm.id) or not extreme:
            continue
        narrow(campaign, shortfall, [row for row, _ in extreme], partial(_without, arm, dict(extreme)))


def switch_off_randomness(campaign: Campaign, shortfall: Shortfall, steps: int, control: Outcome) -> str:
    """Train the run with its randomness switched off source by source; return what became of the symptom.

    `steps` are the fewest after which the control shows it. Empty where the run has no source of randomness.
    """
    arms = list(without_randomness(campaign.subject))
    costs = [campaign.subject.cost(arm, steps) for arm in arms]
    campaign.state_hypotheses(list(zip(arms, costs, strict=True)))
    jobs = [(arm.id, campaign.job(arm.delta, 1, steps), cost) for arm, cost in zip(arms, costs, strict=True)]
    outcomes = campaign.train(jobs)
    results = [campaign.record(a, [outcomes[a.id]], shortfall, whole=False) for a in arms if a.id in outcomes]
    if not results:
        return ""
    gone = next((result for result in results if (result.restored or 0.0) >= CONFIRMED), None)
    stays = f"with {gone.change} the symptom is gone" if gone else "without its randomness the symptom stays"
    scores = [f"{result.observed:.4g} with {result.change}" for result in results]
    return f"{stays}: after {steps} steps {control.value_within(steps):.4g} unchanged, {', '.join(scores)}"


def _without(arm: Arm, targets: dict[int, float], rows: Sequence[int]) -> Arm:
    """Return the arm that leaves rows out where another one clips; their targets are part of what it says."""
    named = ", ".join(f"{row} (target {targets[row]:.4g})" for row in rows)
    return replace(
        arm,
        id=f"without_rows_{'_'.join(map(str, rows))}",
        change=f"without train rows {named}",
        delta=Delta(arm.delta.overrides, arm.delta.surgery, {"without": list(rows)}),
    )


def narrow(
    campaign: Campaign, shortfall: Shortfall, parts: Sequence[Part], arm_of: Callable[[Sequence[Part]], Arm]
) -> ArmResult | None:
    """Return the result of the smallest part that restores the shortfall, on three seeds; None if nothing was trained.

    All parts together are tried first, for a quarter of the length, and in full where that is too short. If they
    restore nothing, that is the result. Every arm is stated before it is trained.
    """
    on_first_seed: dict[tuple[Part, ...], Outcome] = {}
    share = SHORT

    def restores(chosen: tuple[Part, ...]) -> bool | None:
        if len(on_first_seed) > MAX_TRIED:
            return None
        arm = arm_of(chosen)
        campaign.state_hypotheses([(arm, campaign.subject.cost(arm, campaign.subject.steps_of(arm, share)))])
        outcomes = _train(campaign, arm, 1, share)
        if not outcomes:
            return None
        on_first_seed[chosen] = outcomes[0]
        value = outcomes[0].value
        restored = shortfall.restored(value)
        return max(restored, shortfall.gained(value) if share < 1.0 else restored) >= CONFIRMED

    together = tuple(parts)
    if not restores(together):
        share = 1.0
        if not restores(together):
            known = on_first_seed.get(together)
            return campaign.record(arm_of(together), [known], shortfall, whole=True) if known else None
    smallest = minimize(together, restores)
    arm = arm_of(smallest)
    outcomes = [on_first_seed[smallest]]
    if shortfall.restored(outcomes[0].value) < CONFIRMED:  # of a short training that only gains faster
        share, outcomes = 1.0, _train(campaign, arm, 1, 1.0)
    for seed in range(2, SEEDS + 1):
        outcomes += _train(campaign, arm, seed, share)
    return campaign.record(arm, outcomes, shortfall, whole=share == 1.0) if outcomes else None


def _train(campaign: Campaign, arm: Arm, seed: int, share: float) -> list[Outcome]:
    outcomes = campaign.train_whole(arm, seed) if share == 1.0 else campaign.train_short(arm, seed)
    return list(outcomes.values())
