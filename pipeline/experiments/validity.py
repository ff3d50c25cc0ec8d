"""Validity: is the reported figure honest? Faults that no change of the training mends are judged by figures.

A leak or a shift is not mended by a removal, and removing it may lower the score. So the reported score is compared
with an honest one: that of train rows that were left out, of the usual metric, with the statistics of the batch, or
of a training without the rows that validation has as well or without a feature that tells the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pipeline.experiments.allowance import SHORT
from pipeline.experiments.arms.arm import Arm
from pipeline.experiments.arms.rows import without_feature
from pipeline.experiments.campaign import Campaign
from pipeline.experiments.result import ArmResult, Verdict
from pipeline.experiments.verdict import CONFIRMED, REFUTED, SEEDS, Shortfall
from pipeline.experiments.worker_process import Outcome
from pipeline.run_store.job import Delta

FOLDS = 5  # of the train rows; one of them is left out
CLOSES_THE_GAP = "the honest figure closes at least half of the gap on 3 of 3 seeds"
WITHOUT_SHARED = Delta(train_rows={"without": "shared"})
Figure = Callable[[Outcome], float]


@dataclass(frozen=True)
class Comparison:
    """Two figures of the same training, the reported and the honest one, and the cause where they differ."""

    id: str
    cause: str
    change: str
    honest: Figure


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float | str) else math.nan


COMPARISONS = (
    Comparison(
        "batch_statistics",
        "normalization_misused",
        "validation normalized by its own statistics instead of the stored ones",
        lambda outcome: _number(outcome.result.get("batch_statistics")),
    ),
    Comparison(
        "usual_metric",
        "metric_wrong",
        "the usual metric of the task on the raw outputs, instead of the run's own",
        lambda outcome: _number(outcome.result.get("usual_metric")),
    ),
)


def state_comparisons(campaign: Campaign) -> None:
    """State what the figures of the controls will be compared for, before the controls are trained."""
    arms = [Arm(c.id, (c.cause,), c.change, Delta(), effect=CLOSES_THE_GAP) for c in COMPARISONS]
    campaign.state_hypotheses([(arm, 0.0) for arm in arms])


def compare_figures(campaign: Campaign, controls: Sequence[Outcome], shortfall: Shortfall) -> None:
    """Judge the causes for which the controls themselves have an honest figure, on a third seed where both show it."""
    for comparison in COMPARISONS:
        figures = [comparison.honest(control) for control in controls]
        if not all(map(math.isfinite, figures)):
            continue
        if all(math.isclose(figure, c.value, rel_tol=1e-4) for figure, c in zip(figures, controls, strict=True)):
            continue  # the honest figure is the reported one
        outcomes = list(controls)
        if min(map(shortfall.restored, figures)) >= CONFIRMED:
            outcomes += campaign.one_more_control()
        campaign.results[comparison.id] = judge_figures(comparison, outcomes, lambda outcome: shortfall.goal)


def judge_figures(comparison: Comparison, outcomes: Sequence[Outcome], goal: Figure) -> ArmResult:
    """Return what the difference between the honest and the reported figure says of the cause.

    Its share is that of the distance from the reported figure to the goal of the same training.
    """
    pairs = [(outcome.value, comparison.honest(outcome)) for outcome in outcomes]
    gaps = [goal(outcome) - outcome.value for outcome in outcomes]
    shares = [(honest - reported) / gap if gap else 0.0 for (reported, honest), gap in zip(pairs, gaps, strict=True)]
    verdict: Verdict = "inconclusive"
    if len(shares) >= SEEDS and min(shares) >= CONFIRMED:
        verdict = "confirmed"
    elif max(shares) < REFUTED:
        verdict = "refuted"
    reported, honest = (sum(pair[i] for pair in pairs) / len(pairs) for i in (0, 1))
    return ArmResult(
        id=comparison.id,
        causes=(comparison.cause,),
        change=comparison.change,
        expected=CLOSES_THE_GAP,
        control=reported,
        observed=honest,
        restored=sum(shares) / len(shares),
        verdict=verdict,
        seeds=len(outcomes),
        steps=max(int(outcome.result.get("steps", 0)) for outcome in outcomes),
        why=f"{honest:.4g} where {reported:.4g} was reported, in the same trainings on {len(outcomes)} seeds",
    )


def compare_held_out(campaign: Campaign, controls: Sequence[Outcome], shortfall: Shortfall) -> None:
    """Where train rows are predicted well and validation is not, compare it with train rows that were left out.

    Left out rows that are predicted about as well as the others say that validation is of another kind: a shift. As
    badly as validation, they say that the training memorizes.
    """
    train = [_train_score(control) for control in controls]
    if not all(map(math.isfinite, train)) or min(map(shortfall.restored, train)) < CONFIRMED:
        return
    arms = [_without_fold(fold) for fold in range(SEEDS)]
    campaign.state_hypotheses([(arms[0], SHORT * SEEDS)])
    outcomes = []
    for seed, arm in enumerate(arms, 1):
        outcomes += list(campaign.train_short(arm, seed).values())
    known = [outcome for outcome in outcomes if math.isfinite(_number(outcome.result.get("held_out")))]
    if known:
        comparison = Comparison(
            arms[0].id, "split_shift", arms[0].change, lambda outcome: _number(outcome.result.get("held_out"))
        )
        campaign.results[comparison.id] = judge_figures(comparison, known, _train_score)


def _train_score(outcome: Outcome) -> float:
    return _number(outcome.result.get("train"))


def _without_fold(fold: int) -> Arm:
    text = "the score on a fifth of the train rows that was left out, instead of on validation"
    change = Delta(train_rows={"without_fold": [fold, FOLDS]})
    return Arm("held_out_part", ("split_shift",), text, change, effect=CLOSES_THE_GAP)


def compare_without_shared(campaign: Campaign, controls: Sequence[Outcome]) -> None:
    """Where validation rows are train rows as well, compare the score with that of a training without those rows."""
    text = "a training without the train rows that validation has as well"
    _compare_honest(campaign, controls, Arm("without_shared_rows", ("data_leakage",), text, WITHOUT_SHARED))


def compare_without_feature(campaign: Campaign, controls: Sequence[Outcome]) -> None:
    """Where one feature alone tells the target, compare the score with that of a training without it."""
    for arm in without_feature(campaign.subject):
        _compare_honest(campaign, controls, arm)


def _compare_honest(campaign: Campaign, controls: Sequence[Outcome], arm: Arm) -> None:
    """Confirm the causes of an arm if its score, the honest one, is worse than the reported interval on every seed."""
    arm = replace(arm, effect="the honest score is worse than the interval of the reported one on 3 of 3 seeds")
    campaign.state_hypotheses([(arm, float(SEEDS))])
    outcomes = [outcome for seed in range(1, SEEDS + 1) for outcome in campaign.train_whole(arm, seed).values()]
    honest = [outcome.value for outcome in outcomes if math.isfinite(outcome.value)]
    scores = [control.result["score"] for control in controls if control.result.get("score")]
    if not honest or not scores:
        return
    reported = sum(float(score["value"]) for score in scores) / len(scores)
    # Beyond the interval of the reported score: the difference is not one of the sample.
    if campaign.subject.greater_is_better:
        bound, best = min(float(score["low"]) for score in scores), max(honest)
        beyond = best < bound
    else:
        bound, best = max(float(score["high"]) for score in scores), min(honest)
        beyond = best > bound
    campaign.results[arm.id] = ArmResult(
        id=arm.id,
        causes=arm.causes,
        change=arm.change,
        expected=arm.expected,
        control=reported,
        observed=sum(honest) / len(honest),
        restored=None,
        verdict="confirmed" if beyond and len(honest) >= SEEDS else "inconclusive",
        seeds=len(honest),
        steps=int(outcomes[0].result.get("steps", 0)),
        why=f"reported {reported:.4g}, {arm.change} {best:.4g} at best; the interval ends at {bound:.4g}",
    )
