"""From a run that misses its target to the results of controlled experiments: intake, controls, arms, verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.experiments.allowance import Allowance, slice_steps
from pipeline.experiments.arms.arm import Subject
from pipeline.experiments.arms.choice import EPOCHS_OF_A_TREND, chosen_arms, more_epochs
from pipeline.experiments.arms.difference import LastGood
from pipeline.experiments.campaign import Campaign, StateHypotheses
from pipeline.experiments.jobs import DESCRIBE, PROFILE, TRACE, control_name
from pipeline.experiments.narrowing import explain_difference, explain_rows, switch_off_randomness
from pipeline.experiments.result import FIRST_SPLIT, ArmResult, Reproduction
from pipeline.experiments.validity import (
    compare_figures,
    compare_held_out,
    compare_labels,
    compare_shuffled,
    compare_without_feature,
    compare_without_shared,
    state_comparisons,
)
from pipeline.experiments.verdict import Shortfall
from pipeline.experiments.worker_process import Outcome, WarmWorker, WorkerEnded
from pipeline.history import History
from pipeline.repair.diagnosis_record import GapRecord
from pipeline.run_store import files
from pipeline.run_store.job import Delta, Job

LATE_SHARE = 0.02  # of the whole improvement, in the last fifth of the run


@dataclass(frozen=True)
class Explanation:
    """What the experiments of a round showed, and what could not be tried."""

    results: tuple[ArmResult, ...] = ()
    reproduction: Reproduction | None = None
    not_checked: tuple[GapRecord, ...] = ()
    trace: Path | None = None
    spent: float = 0.0  # planned trainings
    allowed: float = 0.0


@dataclass(frozen=True)
class Training:
    """The training to explain, as the records have it: its plan, its change, its history, and what it is compared with.

    `reference_scores` are those of models that are no neural networks, on the same validation rows. `telling_feature`
    is the number of a feature that alone tells the target, if an inspection has found one. `last_good` is an earlier
    training that reached the target on the same rows, if there is one. `stated_slice` are the steps of a slice that the
    ledger has for this plan; without them the slice follows from the time of a step.
    """

    plan_digest: str
    config: Mapping[str, Any]
    base: Delta
    history: History
    max_steps: int
    trivial: float | None = None
    reference_scores: Mapping[str, float] = field(default_factory=dict)
    telling_feature: int | None = None
    last_good: LastGood | None = None
    stated_slice: int | None = None

    @property
    def target(self) -> float | None:
        target = (self.config.get("task") or {}).get("target")
        return None if target is None else float(target)

    @property
    def metric(self) -> str | None:
        """The name of the metric that decides; None without a history."""
        names = [name for name in self.history.facts if name.startswith("decides/")]
        return names[0].partition("/")[2] if names else None

    @property
    def greater_is_better(self) -> bool:
        """Whether a higher metric is better, as the history says."""
        return self.history.facts[f"decides/{self.metric}"] > 0

    @property
    def score(self) -> float:
        """The best validation score of the history, NaN without one."""
        _, values = self.history.series(f"val/{self.metric}")
        finite = [float(value) for value in values if math.isfinite(value)]
        if not finite:
            return math.nan
        return max(finite) if self.greater_is_better else min(finite)

    @property
    def reaches_target(self) -> bool:
        """Whether the history has a score that reaches the target."""
        if self.target is None or not math.isfinite(self.score):
            return False
        return self.score >= self.target if self.greater_is_better else self.score <= self.target

    @property
    def stopped(self) -> str:
        kinds = {event["kind"] for event in self.history.events}
        return "clock" if "clock" in kinds else "nonfinite" if "nonfinite" in kinds else "done"

    @property
    def still_improves(self) -> bool:
        """Whether validation was still getting better when training ended, at a rate that no schedule had lowered."""
        if self.stopped != "done" or self.config.get("scheduler"):
            return False
        return any(self._improves_late(name) for name in ("val/loss", f"val/{self.metric}"))

    def _improves_late(self, name: str) -> bool:
        """Whether the last fifth of a curve added a part of what the whole run improved."""
        _, values = self.history.series(name)
        if len(values) < EPOCHS_OF_A_TREND:
            return len(values) > 0  # so few epochs show no end of the improvement
        rises = name != "val/loss" and self.greater_is_better
        curve = [float(value) * (1 if rises else -1) for value in values]
        if not all(map(math.isfinite, curve)):
            return False
        late = max(1, len(curve) // 5)
        return max(curve) - max(curve[:-late]) > LATE_SHARE * (max(curve) - curve[0])

    @property
    def update_ratio(self) -> float:
        """The median norm of an update over that of the weights, after the first two measurements; NaN without any."""
        return _median(self.history.series("update_ratio")[1][2:], math.nan)

    @property
    def step_seconds(self) -> float:
        return _median(self.history.series("time/step")[1], 0.0)

    @property
    def slice_steps(self) -> int:
        """The steps of a slice, for all rounds of the plan."""
        return self.stated_slice or slice_steps(self.max_steps, self.step_seconds)


def _median(values: Iterable[float], missing: float) -> float:
    """Return the median of the finite values; `missing` where there is none."""
    finite = sorted(float(value) for value in values if math.isfinite(value))
    return finite[len(finite) // 2] if finite else missing


def explain(
    training: Training,
    worker: WarmWorker,
    suspects: Sequence[str],
    state_hypotheses: StateHypotheses,
    log: Callable[[str], None],
) -> Explanation:
    """Experiment on a training that misses its target, the arms of the suspected causes first.

    The hypotheses are stated before the trainings that test them. Nothing is raised: what the experiments could not
    find out is part of the result.
    """
    try:
        return _Experimenter(training, worker, suspects, state_hypotheses, log).explanation()
    except WorkerEnded as error:
        return Explanation(not_checked=({"what": "controlled experiments", "why": error.faults[0]},))


@dataclass
class _Experimenter:
    """The arguments of `explain`, which its steps share."""

    training: Training
    worker: WarmWorker
    suspects: Sequence[str]
    state_hypotheses: StateHypotheses
    log: Callable[[str], None]

    def explanation(self) -> Explanation:
        training = self.training
        allowance = Allowance.of_run(training.max_steps, training.slice_steps)
        subject = _before_controls(training, allowance.slice)
        campaign = Campaign(self.worker, subject, allowance, self.state_hypotheses, self.log)
        plan, base = training.plan_digest, training.base
        [about] = self.worker.run([("describe", Job(plan, DESCRIBE, base, 1))])
        if about.failure_of_job:
            return _without_experiments(f"the model cannot be built: {about.failure_of_job}")
        whole = campaign.subject.slice == 1.0
        longer = more_epochs(campaign.subject) if training.still_improves and whole else None
        campaign.keeps_controls = longer is not None
        state_comparisons(campaign)
        controls = campaign.controls()
        failures = [control.failure for control in controls if control.failure_of_job]
        if not controls or failures:
            return _without_experiments(
                f"the unchanged run cannot be trained again: {failures[0] if failures else 'no allowance'}"
            )
        subject = campaign.subject = _after_controls(campaign.subject, training, about, controls)
        shortfall = _shortfall(subject, controls, [] if whole else self._reference(campaign))
        reproduction = _reproduction(subject, controls, shortfall)
        self.log(f"  {reproduction['why']}")
        if about.result["shared_rows"] and "data_leakage" in self.suspects:
            compare_without_shared(campaign, controls)
        if shortfall is None or not shortfall.exists:
            compare_without_feature(campaign, controls)  # the score may be too good
        else:
            compare_figures(campaign, controls, shortfall)
            compare_held_out(campaign, controls, shortfall)
            compare_labels(campaign, shortfall, self.suspects)
            explain_difference(campaign, shortfall, training.last_good)
            campaign.run(chosen_arms(subject, self.suspects), shortfall, longer)
            explain_rows(campaign, shortfall)
            compare_shuffled(campaign, shortfall, self.suspects)
            if without := switch_off_randomness(campaign, shortfall, reproduction["slice_steps"], controls[0]):
                reproduction["why"] += f"; {without}"
        self._remove_kept_states()
        self.worker.run([("profile", Job(plan, PROFILE, base, 1))])
        trace = self.worker.folder / "profile" / TRACE
        return Explanation(
            tuple(campaign.results.values()),
            reproduction,
            tuple(_not_run(campaign)),
            trace if trace.is_file() else None,
            allowance.spent * allowance.slice,
            allowance.trainings * allowance.slice,
        )

    def _remove_kept_states(self) -> None:
        """Remove what the controls kept to go on from: no weights of an experiment outlast it."""
        for folder in self.worker.folder.glob(f"{control_name(0)[:-1]}*/checkpoints"):
            files.remove_folder(folder)

    def _reference(self, campaign: Campaign) -> list[float]:
        """Return the score of the reference model in one slice, if it has one: what so few steps can reach."""
        arms = [arm for arm in chosen_arms(campaign.subject, ()) if arm.id == FIRST_SPLIT]
        campaign.state_hypotheses([(arm, 1.0) for arm in arms])
        outcomes = [outcome for arm in arms for outcome in campaign.train_whole(arm, 1).values()]
        return [outcome.value for outcome in outcomes if math.isfinite(outcome.value)]


def _without_experiments(why: str) -> Explanation:
    return Explanation(not_checked=({"what": "controlled experiments", "why": why},))


def _before_controls(training: Training, slice_share: float) -> Subject:
    """The subject as far as it is known before the controls."""
    description: Any = {"train_rows": int(training.history.facts.get("train_rows", 0))}
    return Subject(
        plan_digest=training.plan_digest,
        config=training.config,
        description=description,
        max_steps=max(1, round(training.max_steps * slice_share)),
        slice=slice_share,
        target=training.target,
        trivial=math.nan,
        greater_is_better=True,
        control=training.score,
        stopped=training.stopped,
        step_seconds=training.step_seconds,
        update_ratio=training.update_ratio,
        telling_feature=training.telling_feature,
        base=training.base,
    )


def _after_controls(subject: Subject, training: Training, about: Outcome, controls: Sequence[Outcome]) -> Subject:
    """The subject with the description of its model and rows, and with what its controls measured."""
    measured = controls[0].result
    description: Any = about.result
    return replace(
        subject,
        description=description,
        trivial=float(measured["trivial"]) if training.trivial is None else training.trivial,
        greater_is_better=bool(measured["greater_is_better"]),
        reference_scores=training.reference_scores,
    )


def _shortfall(subject: Subject, controls: Sequence[Outcome], in_slice: Sequence[float]) -> Shortfall | None:
    """What the run misses; None where there is neither a target nor a reference model to compare it with.

    `in_slice` are scores that a reference reaches in one slice: no more is expected of the run in as few steps.
    """
    references = [value for value in subject.reference_scores.values() if math.isfinite(value)]
    best = max if subject.greater_is_better else min
    goal = subject.target if subject.target is not None else best(references) if references else None
    if goal is None:
        return None
    worst = min if subject.greater_is_better else max
    goal = worst([goal, *in_slice])
    own = (subject.control,) if math.isfinite(subject.control) and subject.slice == 1.0 else ()
    values = (*own, *(control.value for control in controls))
    at_a_quarter = controls[0].value_within(subject.max_steps // 4)
    return Shortfall(values, goal, subject.trivial, subject.greater_is_better, at_a_quarter)


def _reproduction(subject: Subject, controls: Sequence[Outcome], shortfall: Shortfall | None) -> Reproduction:
    values = ", ".join(f"{control.value:.4g}" for control in controls)
    run = "the unchanged run" if subject.slice == 1.0 else f"the first {subject.slice:.0%} of the unchanged run"
    steps = max(int(control.result.get("steps", 0)) for control in controls)
    name = controls[0].result.get("metric")
    if shortfall is None:
        why = f"{run} on {len(controls)} other seeds: {name} {values}; without a target nothing is missing"
    elif shortfall.exists:
        why = f"{run} misses {shortfall.goal:.4g} on {len(controls)} other seeds as well: {name} {values}"
    else:
        why = f"{run} reaches {shortfall.goal:.4g} on {len(controls)} other seeds: {name} {values}"
    return {
        "reproduced": shortfall is not None and shortfall.exists,
        "seeds": len(controls),
        "steps": steps,
        "slice_steps": _shortest_slice(subject, controls) or steps,
        "control": math.nan if shortfall is None else shortfall.control,
        "goal": None if shortfall is None else shortfall.goal,
        "why": why,
    }


def _shortest_slice(subject: Subject, controls: Sequence[Outcome]) -> int | None:
    """The steps after the last time that a control reached the goal: the shortest length at which the symptom stays."""
    if subject.target is None:
        return None
    starts = []
    for control in controls:
        reached = [step for step, value in control.result.get("curve", []) if not _misses(subject, float(value))]
        later = [step for step, _ in control.result.get("curve", []) if step > max(reached, default=0)]
        starts.append(min(later, default=subject.max_steps))
    return max(starts)


def _misses(subject: Subject, value: float) -> bool:
    return not math.isfinite(value) or (subject.target is not None and subject.better(subject.target, value))


def _not_run(campaign: Campaign) -> list[GapRecord]:
    if not campaign.not_run:
        return []
    names = ", ".join(dict.fromkeys(campaign.not_run))
    unit = "planned trainings" if campaign.subject.slice == 1.0 else "slices"
    spent = f"{campaign.allowance.spent:.1f} of {campaign.allowance.trainings:.1f} {unit} are spent"
    return [{"what": f"experiments {names}", "why": f"the allowance of a round does not reach: {spent}"}]
