"""A round of optimization: the search among the candidates, the confirmation of the best, and the choice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pipeline.adoption.acceptance import MIN_EFFECT, declared_effect, format_guard, harms, largest_family
from pipeline.adoption.context import Round, frozen_plan
from pipeline.adoption.guards import measure_guards
from pipeline.adoption.one_seed import FILE as ROW_LOSSES
from pipeline.adoption.one_seed import ONE_SEED, row_p_values, write_row_losses
from pipeline.adoption.review import format_range, require_accepted
from pipeline.adoption.search import POOL, Search, Tally, Terms, predicted_trainings
from pipeline.config.sections import LoaderConfig, TrainerConfig
from pipeline.engine.budget import planned_budget
from pipeline.errors import UserError, fault
from pipeline.executors.settings import ExecutorSettings
from pipeline.results import counted
from pipeline.run_store.job import Delta, Job
from pipeline.trials.executor import Trial
from pipeline.trials.final_seeds import CONFIRMATION_SEED, LONG_MINUTES, training_minutes
from pipeline.trials.recorded import train_recorded
from pipeline.trials.study import Arm, ArmResult, compare_arms, explain_choice, format_arm, reaches, select_arm

BY_ROWS = f"{ONE_SEED}, compared by validation rows"
START_SECONDS = 4.0  # until a training in a process of its own takes its first step


@dataclass(frozen=True)
class Study:
    """A finished round: the search, the arms that were confirmed (control first), their trainings, and the winner."""

    arms: Sequence[Arm]
    seeds_per_arm: int
    budget: int
    trials: Mapping[str, Trial]
    rows: Sequence[ArmResult]
    winner: ArmResult | None
    choice: str  # why the winner was chosen, why there is none, or why nothing was compared
    due: float = 0.0  # the declared effect in the unit of the metric
    searched: Sequence[Tally] = ()
    spent: float = 0.0  # planned trainings' worth of steps, by the search
    ablation: Sequence[Mapping[str, Any]] = ()
    goal: str = ""  # where the arms are compared by a cost, which has this `target`
    target: float = math.inf
    all_trials: Mapping[str, Trial] = field(default_factory=dict)


def terms_of(ctx: Round, arms: Sequence[Arm]) -> Terms:
    """Return what the search and the confirmation of these arms are held to."""
    plan, rows = frozen_plan(ctx), int(ctx.evidence_of("planning")["rows"]["train"])
    greater, target = bool(ctx.evidence_of("planning")["greater_is_better"]), float(ctx.config["task"]["target"])

    def steps_of(delta: Delta) -> int:
        config = Job("", "", delta).config(plan.config)
        trainer, loader = TrainerConfig.from_mapping(config["trainer"]), LoaderConfig.from_mapping(config["loader"])
        return planned_budget(trainer, loader, rows).max_steps

    max_steps = int(plan.facts["budget"]["max_steps"])
    # All arms may take as many steps as the longest: one that trains longer is not cut off.
    budget = max([max_steps, *(steps_of(arm.delta) for arm in arms)])
    due = partial(_due, min_effect(ctx), target, greater)
    return Terms(plan.digest, max_steps, budget, greater, target, steps_of, due)


def _due(share: float, target: float, greater: bool, control: float) -> float:
    return declared_effect([control], share, target, greater)


def train(ctx: Round, jobs: Sequence[tuple[str, Job]], columns: int, at_a_time: int | None = None) -> dict[str, Trial]:
    """Train every job under the folder of this round; a line per seed is printed where there are columns.

    `at_a_time` is the number of processes at the same time; None for that of the config.
    """
    return train_recorded(
        jobs,
        ctx.folder / "trials",
        ledger=ctx.ledger,
        round=ctx.round,
        log=ctx.log,
        setting=at_a_time or ctx.settings["parallel"],
        threads=int(frozen_plan(ctx).facts["threads"]),
        columns=columns,
        executor=ExecutorSettings.from_config(ctx.config),
        show=ctx.show_trials,
    )


def predicted(ctx: Round, trainings: float, count: int, one_by_one: bool = False) -> str:
    """Return how long so many planned trainings' worth of steps in so many processes take, in words."""
    from pipeline.history import History

    plan = frozen_plan(ctx)
    _, step_times = History.load(ctx.artifact_of("baseline", "history")).series("time/step")
    measured = sorted(float(value) for value in step_times if not math.isnan(value))
    step_seconds = measured[len(measured) // 2] if measured else 0.0
    parallel = ExecutorSettings.from_config(ctx.config).parallel(ctx.settings["parallel"], int(plan.facts["threads"]))
    parallel = 1 if one_by_one else parallel
    seconds = (trainings * int(plan.facts["budget"]["max_steps"]) * step_seconds + count * START_SECONDS) / max(
        parallel, 1
    )
    return f"about {seconds / 60:.0f} minutes" if seconds >= 120 else f"about {seconds:.0f} seconds"


def _search(ctx: Round, start: Delta, arms: Sequence[Arm]) -> tuple[Search, list[Arm], dict[str, Trial]]:
    """Search the candidates for those that are worth a confirmation; return them with all trainings of the search."""
    terms, trials, pairs = terms_of(ctx, arms), dict[str, Trial](), pairs_of(ctx)
    most = min(int(ctx.settings["candidates"]), max(1, largest_family(pairs)))
    ctx.log(f"optimization, round {ctx.round}: {counted(len(arms), 'candidate')}")
    for arm in arms:
        ctx.log(f"  {arm.id}: {arm.delta.describe()}, {arm.reason()}")
    cost = predicted_trainings(terms, arms)
    times = [predicted(ctx, cost, round(cost) + POOL), predicted(ctx, 2 * pairs, 2 * pairs)]
    if cost:
        ctx.log(f"  predicted: the search costs at most {cost:.1f} trainings' worth of steps ({times[0]}),")
    else:
        ctx.log("  predicted: the search costs nothing, since an experiment of diagnostics was the search,")
    ctx.log(
        f"    then a confirmation costs {format_range(2 * pairs, (1 + most) * pairs)} trainings ({times[1]} or more)"
    )
    effect = (
        f"a gain of {min_effect(ctx):.0%} of the remaining error at least, on fresh seeds, and no symptom of before"
    )
    require_accepted(ctx, arms, cost, [2 * pairs, (1 + most) * pairs], times, effect)

    def run_jobs(jobs: Sequence[tuple[str, Job]]) -> dict[str, Trial]:
        finished = train(ctx, jobs, 0)
        trials.update(finished)
        return finished

    search = Search(terms, run_jobs, ctx.log, Arm("control", start), [Tally(arm) for arm in arms])
    return search, search.run(most), trials


def pairs_of(ctx: Round) -> int:
    """Return the number of pairs of a confirmation: one where a training takes longer than half an hour."""
    from pipeline.history import History

    minutes = training_minutes(History.load(ctx.artifact_of("baseline", "history")))
    return 1 if minutes > LONG_MINUTES else int(ctx.settings["seeds_per_arm"])


def run_study(ctx: Round, start: Delta, candidates: Sequence[Arm]) -> Study:
    """Search, confirm the best candidates on fresh seeds, and record the choice with its reason."""
    search, arms, searched = _search(ctx, start, candidates)
    refuse_without_survivor(searched.values())
    if not arms:
        why = "none of the candidates was ahead of the control in the search, so nothing was confirmed"
        return skip_study(ctx, why, search, searched)
    everyone, terms, seeds = [search.control, *arms], search.terms, pairs_of(ctx)
    trials = _confirm(ctx, everyone, terms, seeds)
    rows, due = _compare(ctx, everyone, trials, terms, seeds)
    winner = select_arm(rows[1:], terms.target, terms.greater)
    choice = explain_choice(rows[1:], winner, terms.target, terms.greater)
    choice = f"{BY_ROWS}: {choice}" if seeds == 1 else choice
    study = Study(
        everyone, seeds, terms.budget, trials, rows, winner, choice, due, search.tallies, search.spent,
        search.ablation, all_trials={**searched, **trials},
    )  # fmt: skip
    record_choice(ctx, study)
    return study


def _confirm(ctx: Round, arms: Sequence[Arm], terms: Terms, seeds: int) -> dict[str, Trial]:
    """Train the control and the candidates on fresh seeds."""
    basis = f"on {seeds} fresh seeds each" if seeds > 1 else f"on {BY_ROWS}"
    ctx.log(f"  confirmation: the control and {counted(len(arms) - 1, 'candidate')} {basis}")
    ctx.log("  " + " " * 10 + "  ".join(f"{arm.id:<8}" for arm in arms).rstrip())
    # Seed by seed, so that a study that is interrupted has whole pairs.
    jobs = [
        (f"{arm.id}-{index}", Job(terms.plan_digest, "trial", arm.delta, CONFIRMATION_SEED + index - 1, terms.budget))
        for index in range(1, seeds + 1)
        for arm in arms
    ]
    trials = train(ctx, jobs, len(arms))
    refuse_without_survivor(trials.values())
    return trials


def _compare(
    ctx: Round, arms: Sequence[Arm], trials: Mapping[str, Trial], terms: Terms, seeds: int
) -> tuple[list[ArmResult], float]:
    """Return the results of the confirmed arms with their guards, control first, and the declared effect."""
    p_values = None
    if seeds == 1:
        for trial in trials.values():
            write_row_losses(ctx.run.path, trial, frozen_plan(ctx).config, ctx.trust)
        files = [trials[f"{arm.id}-1"].folder / ROW_LOSSES for arm in arms]
        p_values = row_p_values(files[0], files[1:], str(ctx.config["task"]["metric"]))
    control = [trials[f"control-{index}"].value for index in range(1, seeds + 1)]
    due = declared_effect(control, min_effect(ctx), terms.target, terms.greater)
    rows = compare_arms(arms, trials, seeds, terms.greater, due, p_values)
    for row in rows:
        row["reaches"] = reaches(row, terms.target, terms.greater)
        if row["wins"]:
            _guard(ctx, row, trials, seeds)
    for row in rows[1:]:
        label = f" ({ONE_SEED})" if seeds == 1 else ""
        ctx.log(f"  {format_arm(row, terms.target, terms.greater)}{label}")
    return rows, due


def min_effect(ctx: Round) -> float:
    """Return the share of the remaining error that a change must remove."""
    return float(ctx.settings.get("min_effect", MIN_EFFECT))


def _guard(ctx: Round, row: ArmResult, trials: Mapping[str, Trial], seeds: int) -> None:
    """Measure what the change of a winner must not make worse, and add it to its row."""
    before, after = ([trials[f"{arm}-{i}"] for i in range(1, seeds + 1)] for arm in ("control", row["id"]))
    guards = measure_guards(ctx.run.path, frozen_plan(ctx).config, ctx.trust, before, after)
    row["guards"], row["harms"] = list(guards), harms(guards)
    for guard in guards:
        ctx.log(f"  {row['id']}: {format_guard(guard)}")


def refuse_without_survivor(trials: Iterable[Trial]) -> None:
    """Raise UserError with the first reason when every training died: then there is nothing to compare."""
    reasons = [trial.died for trial in trials]
    if reasons and all(reasons):
        what = f"all {len(reasons)} trainings died, so nothing was compared"
        raise UserError(fault("optimization", what, got=f"in the first one: {reasons[0]}"))


def skip_study(ctx: Round, why: str, search: Search | None = None, trials: Mapping[str, Trial] | None = None) -> Study:
    """Record and print that nothing was confirmed, and the reason: no candidate, or none that was ahead."""
    choice = f"nothing was compared: {why}"
    ctx.log(f"optimization, round {ctx.round}: {choice}")
    tallies, spent = (search.tallies, search.spent) if search else ([], 0.0)
    budget = search.terms.budget if search else int(frozen_plan(ctx).facts["budget"]["max_steps"])
    study = Study(
        [], pairs_of(ctx), budget, {}, [], None, choice, searched=tallies, spent=spent, all_trials=trials or {}
    )
    record_choice(ctx, study)
    return study


def record_choice(ctx: Round, study: Study) -> None:
    """Record the arms, the winner and the reason in the ledger."""
    decision = {
        "round": ctx.round,
        "arms": study.rows,
        "winner": study.winner["id"] if study.winner else None,
        "why": study.choice,
        "first_seed": CONFIRMATION_SEED,
        "searched": [tally.to_json() for tally in study.searched],
        "search_trainings": round(study.spent, 3),
    }
    ctx.ledger.append("study.decided", decision)
