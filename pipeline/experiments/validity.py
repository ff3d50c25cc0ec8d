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
from pipeline.experiments.arms.arm import Arm, combined
from pipeline.experiments.arms.choice import chosen_arms
from pipeline.experiments.arms.rows import without_feature
from pipeline.experiments.campaign import Campaign
from pipeline.experiments.result import FIRST_SPLIT, ArmResult, Verdict
from pipeline.experiments.verdict import CONFIRMED, REFUTED, SEEDS, Shortfall, judge
from pipeline.experiments.worker_process import Outcome
from pipeline.run_store.job import Delta

FOLDS = 5  # of the train rows; one of them is left out
CLOSES_THE_GAP = "the honest figure closes at least half of the gap on 3 of 3 seeds"
NO_MORE_THAN_SHUFFLED = "on 3 of 3 seeds own labels teach less than a tenth of the way to the goal more than shuffled"
UNRELATED = ("labels_misaligned", "inputs_uninformative")  # this experiment does not tell which of the two it is
LABELLED = ("classification", "binary", "regression")
NAMED = 5  # rows
MOST_LEFT_OUT = 0.5  # of the rows, by a simple model whose expectations can speak against a suspicion
AGREEING = Arm(
    "agreeing_labels",
    ("label_noise",),
    "only the train rows whose targets a simple model fitted on the other rows expects",
    Delta(train_rows={"labels": "agreeing"}),
    effect="at least half of what a random part of the same size misses is restored on 3 of 3 seeds",
)
AS_MANY = Arm(
    "as_many_rows", (), "a random part of the train rows, as many as agree", Delta(train_rows={"labels": "as_many"}),
    kind="context",
)  # fmt: skip
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


def compare_labels(campaign: Campaign, shortfall: Shortfall, suspects: Sequence[str]) -> None:
    """Where labels are suspected, train without the rows whose targets a simple model does not expect.

    The control is a random part of the rows of the same size: without it, fewer rows would be taken for worse ones.
    """
    about = campaign.subject.description
    if "label_noise" not in suspects or about["kind"] not in LABELLED or about["from_dataset"]:
        return
    campaign.state_hypotheses([(AGREEING, SHORT * SEEDS), (AS_MANY, SHORT * SEEDS)])
    agreeing, as_many = list[Outcome](), list[Outcome]()
    for seed in range(1, SEEDS + 1):
        agreeing += campaign.train_short(AGREEING, seed).values()
        as_many += campaign.train_short(AS_MANY, seed).values()
        rest = shortfall.from_controls([outcome.value for outcome in as_many])
        if len(agreeing) != len(as_many) or not rest.exists or rest.restored(agreeing[-1].value) < CONFIRMED:
            break
    if not agreeing or not as_many:
        return
    rest = shortfall.from_controls([outcome.value for outcome in as_many])
    if not rest.exists:
        return
    result = judge(AGREEING, agreeing, rest, whole=False)
    if result.verdict == "refuted" and _share_left_out(agreeing[0]) > MOST_LEFT_OUT:
        # A model that expects so few of the labels has not learned which of them are wrong.
        result = replace(result, verdict="inconclusive", restored=None)
    campaign.results[AGREEING.id] = replace(result, why=f"{result.why}; {_rows_left_out(agreeing[0])}")


def _share_left_out(outcome: Outcome) -> float:
    left_out = outcome.result.get("left_out") or {}
    return left_out["count"] / left_out["of"] if left_out.get("count") else 0.0


def _rows_left_out(outcome: Outcome) -> str:
    """Return which train rows an arm left out, and what their targets are."""
    left_out = outcome.result.get("left_out") or {}
    if not left_out.get("count"):
        return "no row was left out"
    named = zip(left_out["rows"], left_out["targets"], left_out["expected"], strict=True)
    rows = [f"row {row} has {target:.4g} where {expected:.4g} is expected" for row, target, expected in named]
    more = ", ..." if left_out["count"] > NAMED else ""
    return f"{left_out['count']} of {left_out['of']} train rows were left out: {', '.join(rows[:NAMED])}{more}"


def compare_shuffled(campaign: Campaign, shortfall: Shortfall, suspects: Sequence[str]) -> None:
    """Where rows and labels may not belong together: does a reference learn more from them than from shuffled ones?

    Labels that teach no more than shuffled ones were shuffled apart, or the features say nothing of them.
    """
    own = campaign.trainings.get(FIRST_SPLIT, [])
    if not own or not set(UNRELATED) & set(suspects) or shortfall.restored(own[0].value) >= CONFIRMED:
        return
    reference = next(arm for arm in chosen_arms(campaign.subject, ()) if arm.id == FIRST_SPLIT)
    text = "shuffled labels for a reference model, instead of the run's own"
    change = combined(reference.delta, Delta(train_rows={"targets": "shuffled"}))
    arm = Arm("shuffled_labels", UNRELATED, text, change, effect=NO_MORE_THAN_SHUFFLED)
    campaign.state_hypotheses([(arm, SHORT * (2 * SEEDS - 1))])
    shuffled = list[Outcome]()
    for seed in range(1, SEEDS + 1):
        own = own if len(own) >= seed else [*own, *campaign.train_short(reference, seed).values()]
        shuffled += campaign.train_short(arm, seed).values()
        if min(len(own), len(shuffled)) < seed or _learned(shortfall, own[seed - 1], shuffled[-1]) >= REFUTED:
            break
    learned = [_learned(shortfall, first, second) for first, second in zip(own, shuffled, strict=False)]
    if learned:
        campaign.results[arm.id] = _shuffled_result(arm, own[: len(learned)], shuffled, learned)


def _learned(shortfall: Shortfall, own: Outcome, shuffled: Outcome) -> float:
    """Return what own labels teach beyond shuffled ones, as a share of the way from trivial to the goal."""
    way = shortfall.goal - shortfall.trivial
    values = [outcome.value if math.isfinite(outcome.value) else shortfall.trivial for outcome in (own, shuffled)]
    return (values[0] - values[1]) / way if way else math.nan


def _shuffled_result(
    arm: Arm, own: Sequence[Outcome], shuffled: Sequence[Outcome], learned: Sequence[float]
) -> ArmResult:
    verdict: Verdict = "inconclusive"
    if len(learned) >= SEEDS and max(learned) < REFUTED:
        verdict = "confirmed"
    elif max(learned) >= CONFIRMED:
        verdict = "refuted"
    mean = sum(learned) / len(learned)
    return ArmResult(
        id=arm.id,
        causes=arm.causes,
        change=arm.change,
        expected=arm.expected,
        control=sum(outcome.value for outcome in own) / len(own),
        observed=sum(outcome.value for outcome in shuffled) / len(shuffled),
        restored=0.0 if verdict == "refuted" else None,
        verdict=verdict,
        seeds=len(learned),
        steps=max(int(outcome.result.get("steps", 0)) for outcome in shuffled),
        why=f"own labels teach a reference model {mean:.2f} of the way to the goal more than shuffled ones",
    )


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
