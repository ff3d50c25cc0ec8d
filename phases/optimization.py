"""Optimization: which is the first fix, in the diagnosis's order, that significantly improves the run?

Needs the diagnosis of this round. Trains a control arm without change and each candidate cure on the same seeds,
threads and budget of steps, in worker processes, and compares them pair by pair with an exact test, corrected for the
number of candidates. Produces `fixed.yaml`, `implementation.json` and the fixed model, or the result that no candidate
wins, and whether there is a cure that no round has tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import yaml

from pipeline.engine.budget import extended_steps
from pipeline.errors import UserError, fault
from pipeline.executors.settings import ExecutorSettings
from pipeline.orchestration.phase import PhaseContext
from pipeline.repair.diagnosis_record import DiagnosisRecord, read_diagnosis
from pipeline.results import Artifact, Evidence, Score, counted, digest, exact, plain
from pipeline.run_store import files
from pipeline.run_store.gate import BranchInputs
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.plan import Plan
from pipeline.trials.candidates import explain_no_candidate, untried
from pipeline.trials.executor import Trial, measurements
from pipeline.trials.fix_report import class_results, implementation, performance, rerun_command
from pipeline.trials.recorded import train_recorded
from pipeline.trials.study import Arm, ArmResult, compare_arms, explain_choice, format_arm, reaches, select_arm

if TYPE_CHECKING:
    from pipeline.evaluation.per_class import ClassRow, ConfusedPair

DOCUMENTS = ("fixed.yaml", "implementation.json")
MATRIX = ("confusion_matrix.png", "confusion_matrix.svg")  # of the fixed model, where there are classes
FIXED = "fixed"  # the id of the winner's training on the master seed


class Outcome(TypedDict):
    """What a round hands to the branch and to the next round; a candidate only if a change was adopted."""

    branch: BranchInputs
    subject_training: dict[str, object]  # history and job of the training that the next diagnosis explains
    candidate: NotRequired[dict[str, Any]]
    per_class: NotRequired[list[ClassRow]]  # of the candidate on validation
    worst_pairs: NotRequired[list[ConfusedPair]]
    fixed_died: NotRequired[str]


Criteria = Mapping[str, tuple[bool, Any]]  # whether each one is met, with its value


@dataclass(frozen=True)
class Study:
    """A finished comparison: the arms (control first), their trainings, the rows of results, and the winner."""

    arms: Sequence[Arm]
    seeds_per_arm: int
    budget: int
    trials: Mapping[str, Trial]
    rows: Sequence[ArmResult]
    winner: ArmResult | None
    choice: str  # why the winner was chosen, why there is none, or why nothing was compared


def _frozen_plan(ctx: PhaseContext) -> Plan:
    assert ctx.plan is not None  # only planning has none
    return ctx.plan


def _adopted_change(ctx: PhaseContext) -> Delta:
    """Return the change that earlier rounds adopted, and that no rollback undid; an empty one in the first round."""
    training = ctx.earlier_training()
    return Job.from_json(training["job"]).delta if training else Delta()


def _tried_changes(ctx: PhaseContext) -> set[str]:
    """Return the digests of the changes that earlier rounds of this plan tried, as recorded in the ledger.

    A winner whose training on the master seed died was not adopted, and may be tried again.
    """
    since = ctx.state.plan["seq"] if ctx.state.plan else -1
    entries = [e for e in ctx.ledger.entries if e["seq"] > since and e["data"].get("round", ctx.round) < ctx.round]
    finished = [e["data"] for e in entries if e["kind"] == "job.finished"]
    died = {job["round"] for job in finished if job["id"] == FIXED and job["died"]}
    studies = [e["data"] for e in entries if e["kind"] == "study.decided"]
    return {
        digest(arm["delta"])
        for study in studies
        for arm in study["arms"]
        if not (arm["id"] == study["winner"] and study["round"] in died)
    }


def _step_budget(ctx: PhaseContext, arms: Sequence[Arm]) -> int:
    """Return the steps that every arm may take: those of the plan, times the longest extension by a candidate.

    A candidate that trains longer would be compared unfairly if the control had fewer steps.
    """
    planned = int(ctx.config["trainer"]["max_epochs"])
    epochs = [int(arm.delta.overrides.get("trainer.max_epochs", planned)) for arm in arms]
    max_steps = int(_frozen_plan(ctx).facts["budget"]["max_steps"])
    return extended_steps(max_steps, planned, epochs)


def _train(ctx: PhaseContext, jobs: Sequence[tuple[str, Job]], columns: int) -> dict[str, Trial]:
    """Train every job under the folder of this round; a line per seed is printed where there are columns."""
    return train_recorded(
        jobs,
        ctx.folder / "trials",
        ledger=ctx.ledger,
        round=ctx.round,
        log=ctx.log,
        setting=ctx.settings["parallel"],
        threads=int(_frozen_plan(ctx).facts["threads"]),
        columns=columns,
        executor=ExecutorSettings.from_config(ctx.config),
    )


def _run_study(ctx: PhaseContext, arms: Sequence[Arm], greater: bool) -> Study:
    """Train every arm on every seed, compare them, and record the choice with its reason."""
    seeds, target = int(ctx.settings["seeds_per_arm"]), float(ctx.config["task"]["target"])
    ctx.log(f"optimization, round {ctx.round}: a control and {counted(len(arms) - 1, 'candidate')}, {seeds} seeds each")
    for arm in arms[1:]:
        ctx.log(f"  {arm.id}: {arm.delta.describe()}, fix for {arm.cause}")
    ctx.log("  " + " " * 10 + "  ".join(f"{arm.id:<8}" for arm in arms).rstrip())
    plan, budget = _frozen_plan(ctx).digest, _step_budget(ctx, arms)
    # Seed by seed, so that a study that is interrupted has whole pairs.
    jobs = [
        (f"{arm.id}-{index}", Job(plan, "trial", arm.delta, index, budget))
        for index in range(1, seeds + 1)
        for arm in arms
    ]
    trials = _train(ctx, jobs, len(arms))
    _refuse_without_survivor(trials.values())
    rows = compare_arms(arms, trials, seeds, greater)
    for row in rows:
        row["reaches"] = reaches(row, target, greater)
    winner = select_arm(rows[1:], target, greater)
    choice = explain_choice(rows[1:], winner, target, greater)
    for row in rows[1:]:
        ctx.log(f"  {format_arm(row, target, greater)}")
    _record_choice(ctx, rows, winner, choice)
    return Study(arms, seeds, budget, trials, rows, winner, choice)


def _refuse_without_survivor(trials: Iterable[Trial]) -> None:
    """Raise UserError with the first reason when every training died: then there is nothing to compare."""
    reasons = [trial.died for trial in trials]
    if all(reasons):
        what = f"all {len(reasons)} trainings died, so nothing was compared"
        raise UserError(fault("optimization", what, got=f"in the first one: {reasons[0]}"))


def _skip_study(ctx: PhaseContext, why: str) -> Study:
    """Record and print that nothing is compared since there are no candidates, and the reason."""
    choice = f"nothing was compared: {why}"
    ctx.log(f"optimization, round {ctx.round}: {choice}")
    _record_choice(ctx, [], None, choice)
    return Study([], int(ctx.settings["seeds_per_arm"]), _step_budget(ctx, []), {}, [], None, choice)


def _record_choice(ctx: PhaseContext, rows: Sequence[ArmResult], winner: ArmResult | None, choice: str) -> None:
    decision = {"round": ctx.round, "arms": rows, "winner": winner["id"] if winner else None, "why": choice}
    ctx.ledger.append("study.decided", decision)


def _fixed_outcome(ctx: PhaseContext, trial: Trial) -> Outcome:
    """Return the branch's inputs and the candidate of the training on the master seed."""
    from diagnostics.diagnose import diagnose
    from pipeline.history import History

    trivial = ctx.evidence_of("baseline")["trivial_baseline"]["value"]
    history = History.load(trial.folder / "history.npz")
    symptoms = diagnose(history, trial.job.config(_frozen_plan(ctx).config), round=ctx.round).to_json()["symptoms"]
    score = Score(**trial.score) if trial.score else None
    weights = ctx.run.inside(trial.result["checkpoint"], "weights.safetensors")
    return {
        "branch": {
            "target": score is not None and score.reaches(float(ctx.config["task"]["target"])),
            "trivial": score is not None and score.beats(float(trivial)),
            "symptoms": [symptom["id"] for symptom in symptoms if symptom["severity"] == "blocking"],
        },
        "candidate": {
            "weights": trial.result["weights"],
            "checkpoint": trial.result["checkpoint"],
            "file": plain(ctx.artifact(weights)),
            "job": trial.job.to_json(),
            "score": trial.score,
        },
        "subject_training": {"history": ctx.run.relative(trial.folder / "history.npz"), "job": trial.job.to_json()},
    }


def _with_class_results(ctx: PhaseContext, outcome: Outcome, trial: Trial) -> Outcome:
    """Return the outcome with the candidate's results per class, and save its confusion matrix."""
    from pipeline.evaluation.per_class import format_class_report
    from pipeline.reporting import plots

    report = class_results(ctx.run.path, trial, trial.job.config(_frozen_plan(ctx).config), ctx.trust)
    if report["per_class"]:
        ctx.log(f"optimization: of the adopted model, {format_class_report(report)}")
    if report["matrix"] is not None:
        for suffix, content in plots.confusion_matrix(report["matrix"], report["classes"]).items():
            files.write_bytes(ctx.folder / f"confusion_matrix.{suffix}", content)
    return {**outcome, "per_class": report["per_class"], "worst_pairs": report["worst_pairs"]}


def _unchanged_outcome(ctx: PhaseContext, start: Delta) -> Outcome:
    """Return the branch and the training of before, for a round that adopts nothing."""
    before: Mapping[str, Any] = ctx.state.current_branch() or {"target": False, "trivial": False, "symptoms": []}
    history = ctx.run.relative(ctx.artifact_of("baseline", "history"))
    if training := ctx.earlier_training():
        history = training["history"]
    job = Job(_frozen_plan(ctx).digest, FIXED, start)
    return {
        "branch": {"target": before["target"], "trivial": before["trivial"], "symptoms": before["symptoms"]},
        "subject_training": {"history": history, "job": job.to_json()},
    }


def _criteria(winner: ArmResult, outcome: Outcome) -> Criteria:
    """Return the criteria for the fix: its test, the target, the trivial baseline, and no blocking symptom."""
    branch, score = outcome["branch"], outcome["candidate"]["score"]
    return {
        "p_after_holm": (winner["wins"], winner["p"]),
        "mean_effect": (winner["effect"] > 0, winner["effect"]),
        "target": (branch["target"], score["value"] if score else None),
        "better_than_trivial": (branch["trivial"], branch["trivial"]),
        "no_blocking_symptom": (not branch["symptoms"], len(branch["symptoms"])),
    }


def _write_documents(ctx: PhaseContext, control: Trial, trial: Trial, criteria: Criteria) -> None:
    """Write `fixed.yaml` and `implementation.json`: what was changed, and the figures before and after."""
    planned = _frozen_plan(ctx).config
    fixed = trial.job.config(planned)
    command = rerun_command(ctx.run, ctx.state, planned, trial.job.delta)
    files.write_text(ctx.folder / "fixed.yaml", f"# {command}\n{yaml.safe_dump(exact(fixed), sort_keys=False)}")
    before = performance(ctx.run.path, control, control.job.config(planned), ctx.trust)
    after = performance(ctx.run.path, trial, fixed, ctx.trust)
    document = implementation(planned, trial, criteria, {"before": before, "after": after})
    files.write_json(ctx.folder / "implementation.json", document)


def _adopt(ctx: PhaseContext, study: Study, start: Delta) -> tuple[Outcome, Trial | None]:
    """Train the winner on the master seed; return the outcome of the round, and that training if there is a winner."""
    winner = study.winner
    if winner is None:
        return _unchanged_outcome(ctx, start), None
    arm = next(a for a in study.arms if a.id == winner["id"])
    job = Job(_frozen_plan(ctx).digest, FIXED, arm.delta, 0, study.budget)
    ctx.log(f"chosen: {winner['change']} ({study.choice})")
    fixed = _train(ctx, [(FIXED, job)], 0)[FIXED]
    if fixed.died:
        ctx.log(f"not adopted: {winner['change']} won, but its training with the plan's seed died: {fixed.died}")
        return {**_unchanged_outcome(ctx, start), "fixed_died": fixed.died}, fixed
    outcome = _with_class_results(ctx, _fixed_outcome(ctx, fixed), fixed)
    _write_documents(ctx, study.trials["control-1"], fixed, _criteria(winner, outcome))
    score = f"{fixed.score['metric']} {fixed.value:.4g}" if fixed.score else "no score"
    ctx.log(f"adopted: {winner['change']}; trained again with the plan's seed: {score} on validation")
    return outcome, fixed


def _count_untried(ctx: PhaseContext, study: Study, diagnosis: DiagnosisRecord, start: Delta, tried: Set[str]) -> int:
    """Return the number of cures left for a next round that starts from the same change."""
    left = len(untried(diagnosis, start, tried | {digest(arm.delta) for arm in study.arms}))
    if study.rows and study.winner is None:
        ctx.log(f"{study.choice}; {counted(left, 'untried cure')} left")
    return left


def _artifacts(ctx: PhaseContext, trials: Iterable[Trial], adopted: bool) -> dict[str, Artifact]:
    """Return the documents of an adopted fix, and the files of every trial that the gate uses, with their digests."""
    paths = {name: ctx.folder / name for name in (*DOCUMENTS, *MATRIX)} if adopted else {}
    paths |= {f"{t.id}/{name}": t.folder / name for t in trials for name in ("result.json", "history.npz")}
    return {name: ctx.artifact(path) for name, path in paths.items() if path.is_file()}


def run(ctx: PhaseContext) -> Evidence:
    """Is one of the cures that the diagnosis proposes significantly better than no change, on the same seeds?"""
    plan = _frozen_plan(ctx)
    diagnosis = read_diagnosis(ctx.artifact_of("diagnostics", "diagnosis"))
    start, tried = _adopted_change(ctx), _tried_changes(ctx)
    greater = bool(ctx.evidence_of("planning")["greater_is_better"])
    for name in (*DOCUMENTS, *MATRIX):  # files of an earlier plan revision, which this round may not confirm
        files.remove(ctx.folder / name)
    if arms := untried(diagnosis, start, tried)[: int(ctx.settings["candidates"])]:
        study = _run_study(ctx, [Arm("control", start), *arms], greater)
    else:
        study = _skip_study(ctx, explain_no_candidate(diagnosis, start))
    outcome, fixed = _adopt(ctx, study, start)
    left = _count_untried(ctx, study, diagnosis, start, tried)
    trials = [*study.trials.values(), *([fixed] if fixed else [])]
    finished = [e["data"] for e in ctx.ledger.entries if e["kind"] == "job.finished" and e["seq"] > ctx.state.seq]
    return Evidence(
        {
            "causes": [cause["issue"] for cause in diagnosis["root_causes"]],
            "target": float(ctx.config["task"]["target"]),
            "greater_is_better": greater,
            "control": study.rows[0] if study.rows else None,
            "arms": list(study.rows[1:]),
            "seeds_per_arm": study.seeds_per_arm,
            "max_steps": study.budget,
            "winner": study.winner,
            "choice": study.choice,
            "trials": [measurements(trial) for trial in study.trials.values()],
            "trials_planned": len(study.arms) * study.seeds_per_arm + bool(study.winner),
            "trials_recorded": len(finished),
            "trials_died": sum(bool(job["died"]) for job in finished),
            "score_splits": [job["score"]["split"] for job in finished if job["score"]],
            "test_opened": len([t for t in ctx.state.test_opened if t["plan"] == plan.digest]),
            "nothing_left": study.winner is None and not left,
            "nothing_left_why": "no untried cure is left" if study.rows else study.choice,
            **outcome,
        },
        units={"effect": str(ctx.config["task"]["metric"])},
        artifacts=_artifacts(ctx, trials, "candidate" in outcome),
    )
