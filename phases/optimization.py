"""Optimization: which is the smallest change that verifiably mends the run?

Needs the diagnosis of this round. Proposes candidates, searches for the best of them with short and single trainings,
and confirms these on fresh seeds against a control without change, in worker processes, by an exact paired test. A
change is adopted only if it is better by the declared effect, harms nothing that is guarded, and removes the symptom.
Produces `fixed.yaml`, `implementation.json` and the fixed model, or the result that the reference stays, and whether
there is a change that no round has tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import yaml

from pipeline.adoption.context import frozen_plan
from pipeline.adoption.one_seed import FILE as ROW_LOSSES
from pipeline.adoption.pages import RoundSummary, config_difference, decisions, incident_with_fix, recommendations
from pipeline.adoption.prevention import PreventionItem, Regression, items_of, prevention_items, regression_trials
from pipeline.adoption.proposals import Known, propose
from pipeline.adoption.records import FIXED, adopted_change, known_of, scores_of, tested_changes, tried_changes
from pipeline.adoption.round import Study, run_study, skip_study, train
from pipeline.orchestration.phase import PhaseContext
from pipeline.repair.diagnosis_record import DiagnosisRecord, read_diagnosis
from pipeline.results import Artifact, Evidence, Score, counted, digest, exact, plain
from pipeline.run_store import files
from pipeline.run_store.gate import BranchInputs
from pipeline.run_store.job import Delta, Job
from pipeline.search.ablation import ablation_table, format_table
from pipeline.search.goal_study import criteria_missed, run_goal_study
from pipeline.trials.candidates import explain_no_candidate
from pipeline.trials.costs import FILE as COST
from pipeline.trials.costs import MEASURES
from pipeline.trials.executor import Trial, measurements
from pipeline.trials.final_seeds import CONFIRMATION_SEED
from pipeline.trials.fix_report import class_results, implementation, performance, rerun_command
from pipeline.trials.study import ArmResult

if TYPE_CHECKING:
    from pipeline.evaluation.per_class import ClassRow, ConfusedPair

DOCUMENTS = ("fixed.yaml", "implementation.json", "changes.diff")  # of an adopted change
PAGES = ("recommendations.md", "incident.md")  # of every round
CURVES = ("arms.png", "arms.svg")  # both arms on the seeds of the confirmation
MATRIX = ("confusion_matrix.png", "confusion_matrix.svg")  # of the fixed model, where there are classes
# Items of the baseline that need no training, and are judged again on the fixed model.
SANITY = {
    "gradients_reach": "gradient_flow", "rows_independent": "batch_independence",
    "evaluation_repeats": "eval_determinism", "parameters_against_rows": "parameters_per_row",
}  # fmt: skip


class Outcome(TypedDict):
    """What a round hands to the branch and to the next round; a candidate only if a change was adopted."""

    branch: BranchInputs
    subject_training: dict[str, object]  # history and job of the training that the next diagnosis explains
    candidate: NotRequired[dict[str, Any]]
    per_class: NotRequired[list[ClassRow]]  # of the candidate on validation
    worst_pairs: NotRequired[list[ConfusedPair]]
    fixed_died: NotRequired[str]
    symptoms_left: NotRequired[list[str]]  # why a change that won was not adopted: symptoms that are still there


NO_DIAGNOSIS: Any = {"symptoms": [], "root_causes": [], "recommended_fixes": []}  # of a run that is to become cheaper
Criteria = Mapping[str, tuple[bool, Any]]  # whether each one is met, with its value


def _fixed_outcome(ctx: PhaseContext, trial: Trial) -> Outcome:
    """Return the branch's inputs and the candidate of the training on the master seed."""
    from diagnostics.diagnose import diagnose
    from pipeline.history import History

    trivial = ctx.evidence_of("baseline")["trivial_baseline"]["value"]
    history = History.load(trial.folder / "history.npz")
    symptoms = diagnose(history, trial.job.config(frozen_plan(ctx).config), round=ctx.round).to_json()["symptoms"]
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

    report = class_results(ctx.run.path, trial, trial.job.config(frozen_plan(ctx).config), ctx.trust)
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
    job = Job(frozen_plan(ctx).digest, FIXED, start)
    return {
        "branch": {"target": before["target"], "trivial": before["trivial"], "symptoms": before["symptoms"]},
        "subject_training": {"history": history, "job": job.to_json()},
    }


def _criteria(winner: ArmResult, outcome: Outcome, due: float) -> Criteria:
    """Return the criteria for the fix: its test, its effect, the target, the trivial baseline, the symptoms, guards."""
    branch, score = outcome["branch"], outcome["candidate"]["score"]
    return {
        "p_after_holm": (winner["wins"], winner["p"]),
        "mean_effect": (winner["effect"] > 0 and winner["effect"] >= due, winner["effect"]),
        "target": (branch["target"], score["value"] if score else None),
        "better_than_trivial": (branch["trivial"], branch["trivial"]),
        "no_blocking_symptom": (not branch["symptoms"], len(branch["symptoms"])),
        "nothing_harmed": (not winner.get("harms"), len(winner.get("harms", []))),
    }


def _write_documents(ctx: PhaseContext, study: Study, trial: Trial, criteria: Criteria, regression: Regression) -> None:
    """Write what was changed, as a config, as a difference and as a report with the figures before and after."""
    from pipeline.building.builder import build_model
    from pipeline.data.load import load

    planned, control = frozen_plan(ctx).config, study.trials["control-1"]
    old, fixed = control.job.config(planned), trial.job.config(planned)
    command = rerun_command(ctx.run, ctx.state, planned, trial.job.delta)
    files.write_text(ctx.folder / "fixed.yaml", f"# {command}\n{yaml.safe_dump(exact(fixed), sort_keys=False)}")
    models = [str(build_model(config, ctx.trust, 0, load(config, ctx.trust))) for config in (old, fixed)]
    files.write_text(ctx.folder / "changes.diff", config_difference(old, fixed, (models[0], models[1])))
    before = performance(ctx.run.path, control, old, ctx.trust)
    after = performance(ctx.run.path, trial, fixed, ctx.trust)
    document = implementation(planned, trial, criteria, {"before": before, "after": after}, regression.checks)
    files.write_json(ctx.folder / "implementation.json", document)


def _run_again(ctx: PhaseContext, trial: Trial, symptoms: Sequence[str], diagnosis: DiagnosisRecord) -> Regression:
    """Judge sanity checks on the fixed model, and hold it to what the incidents of this run left behind."""
    from pipeline.data.load import load
    from pipeline.history import History
    from pipeline.sanity_checks import forward_checks
    from pipeline.sanity_checks.context import CheckContext
    from pipeline.sanity_checks.run_checks import run_check

    assert ctx.judge is not None
    config, history = trial.job.config(frozen_plan(ctx).config), History.load(trial.folder / "history.npz")
    context = CheckContext(config, ctx.trust, load(config, ctx.trust), ctx.config["phases"]["baseline"])
    results = {name: run_check(getattr(forward_checks, name), context) for name in SANITY.values()}
    checks = [item for item in frozen_plan(ctx).checklists["baseline"] if item["id"] in SANITY]
    judged = ctx.judge(checks, Evidence({"sanity_checks": results}))
    items = [*_earlier_items(ctx), *prevention_items(diagnosis, ctx.round, history)]
    return Regression(items, regression_trials(items, history, symptoms), [(i.id, i.outcome) for i in judged])


def _write_pages(
    ctx: PhaseContext,
    study: Study,
    outcome: Outcome,
    regression: Regression,
    untried: Sequence[str],
    table: Sequence[str],
) -> None:
    """Write what a person reads of the round: what was tried, the incident with its fix, both arms' curves."""
    from pipeline.history import History
    from pipeline.reporting import plots

    adopted = study.winner["change"] if study.winner and "candidate" in outcome else ""
    missed = not outcome["branch"]["target"]
    summary = RoundSummary(
        round=ctx.round,
        metric=str(ctx.config["task"]["metric"]),
        target=float(ctx.config["task"]["target"]),
        choice=study.choice,
        adopted=adopted,
        rows=study.rows,
        searched=study.searched,
        ablation=study.ablation,
        symptoms=outcome["branch"]["symptoms"],
        scores=scores_of(ctx, outcome["candidate"]["score"], outcome["subject_training"]) if adopted else {},
        untried=untried,
        table=table,
        commands=decisions(frozen_plan(ctx).config, ctx.trust, study.searched, ctx.run.overrides) if missed else {},
        undo=f"python -m pipeline rollback {ctx.run.argument}" if adopted else "",
        checks=regression.checks,
        unit=f" {MEASURES[study.goal].unit}" if study.goal else "",
    )
    files.write_text(ctx.folder / "recommendations.md", recommendations(summary))
    if not ctx.state.pursues_goal:  # which has no incident
        page = ctx.artifact_of("diagnostics", "incident").read_text(encoding="utf-8")
        questions = [item["ask"] for item in regression.prevention]
        files.write_text(ctx.folder / "incident.md", incident_with_fix(page, summary, questions))
    if study.rows:
        shown = study.winner or max(study.rows[1:], key=lambda row: row["effect"])
        paths = {name: trial.folder / "history.npz" for name, trial in study.trials.items() if not trial.died}
        control, arm = (
            [History.load(path) for name, path in paths.items() if name.rpartition("-")[0] == arm_id and path.is_file()]
            for arm_id in ("control", shown["id"])
        )
        for suffix, content in plots.arm_curves(control, arm, summary.metric, summary.target, shown["id"]).items():
            files.write_bytes(ctx.folder / f"arms.{suffix}", content)


def _adopt(
    ctx: PhaseContext, study: Study, start: Delta, diagnosis: DiagnosisRecord
) -> tuple[Outcome, Trial | None, Regression]:
    """Train the winner on the master seed, and adopt it unless it died or keeps the symptom.

    Returns the outcome of the round, that training if there is a winner, and what was run again on an adopted change.
    """
    winner, regression = study.winner, Regression(_earlier_items(ctx))
    if winner is None:
        return _unchanged_outcome(ctx, start), None, regression
    arm = next(a for a in study.arms if a.id == winner["id"])
    job = Job(frozen_plan(ctx).digest, FIXED, arm.delta, 0, study.budget)
    ctx.log(f"chosen: {winner['change']} ({study.choice})")
    fixed = train(ctx, [(FIXED, job)], 0)[FIXED]
    if fixed.died:
        ctx.log(f"not adopted: {winner['change']} won, but its training with the plan's seed died: {fixed.died}")
        return {**_unchanged_outcome(ctx, start), "fixed_died": fixed.died}, fixed, regression
    outcome = _fixed_outcome(ctx, fixed)
    if left := criteria_missed(outcome["branch"]) if study.goal else _symptoms_left(ctx, outcome):
        why = "with the plan's seed" if study.goal else "it reaches the target, but the symptom is still there"
        ctx.log(f"not adopted: {winner['change']} won, but {why}: {', '.join(left)}")
        return {**_unchanged_outcome(ctx, start), "symptoms_left": left}, fixed, regression
    outcome = _with_class_results(ctx, outcome, fixed)
    regression = _run_again(ctx, fixed, outcome["branch"]["symptoms"], diagnosis)
    _write_documents(ctx, study, fixed, _criteria(winner, outcome, study.due), regression)
    score = f"{fixed.score['metric']} {fixed.value:.4g}" if fixed.score else "no score"
    ctx.log(f"adopted: {winner['change']}; trained again with the plan's seed: {score} on validation")
    return outcome, fixed, regression


def _earlier_items(ctx: PhaseContext) -> list[PreventionItem]:
    """Return what the incidents of earlier rounds left behind, also of a round before one that adopted nothing."""
    return items_of(ctx.evidence_of("optimization")) if ctx.earlier_training() else []


def _symptoms_left(ctx: PhaseContext, outcome: Outcome) -> list[str]:
    """Return the blocking symptoms of before that a model at its target still shows.

    Below the target a change may mend a part: what is left is for the next round.
    """
    before: Mapping[str, Any] = ctx.state.current_branch() or {}
    left = set(before.get("symptoms", [])) & set(outcome["branch"]["symptoms"])
    return sorted(left) if outcome["branch"]["target"] else []


def _untried(ctx: PhaseContext, study: Study, known: Known | None, tried: Set[str]) -> list[str]:
    """Return the candidates, in words, left for a next round that starts from the same change; none for a goal."""
    if known is None:
        return []
    searched = {digest(t.arm.delta) for t in study.searched if t.values or t.quick is not None}
    left = propose(known, tried | searched | {digest(arm.delta) for arm in study.arms})
    if (study.rows or study.searched) and study.winner is None:
        ctx.log(f"{study.choice}; {counted(len(left), 'untried change')} left")
    return [arm.delta.describe() for arm in left]


def _artifacts(ctx: PhaseContext, trials: Iterable[Trial], adopted: bool) -> dict[str, Artifact]:
    """Return the documents of an adopted fix, and the files of every trial that the gate uses, with their digests."""
    paths = {name: ctx.folder / name for name in (*PAGES, *CURVES, *((*DOCUMENTS, *MATRIX) if adopted else ()))}
    names = ("result.json", "history.npz", ROW_LOSSES, COST)
    paths |= {f"{t.id}/{name}": t.folder / name for t in trials for name in names}
    return {name: ctx.artifact(path) for name, path in paths.items() if path.is_file()}


def run(ctx: PhaseContext) -> Evidence:
    """Does a change mend the run, verified on fresh seeds against no change?"""
    plan = frozen_plan(ctx)
    for_goal, start, tried = ctx.state.pursues_goal, adopted_change(ctx), tried_changes(ctx)
    diagnosis = NO_DIAGNOSIS if for_goal else read_diagnosis(ctx.artifact_of("diagnostics", "diagnosis"))
    known = None if for_goal else known_of(ctx, diagnosis, start)
    ablation_rows, ablation_trials = ablation_table(ctx, start)
    for name in (*DOCUMENTS, *PAGES, *CURVES, *MATRIX):  # of an earlier plan revision, which this round may not confirm
        files.remove(ctx.folder / name)
    if known is None:
        study = run_goal_study(ctx)
    elif candidates := propose(known, tried):
        study = run_study(ctx, start, candidates)
    else:
        study = skip_study(ctx, explain_no_candidate(diagnosis, start))
    outcome, fixed, regression = _adopt(ctx, study, start, diagnosis)
    left = _untried(ctx, study, known, tried)
    _write_pages(ctx, study, outcome, regression, left, format_table(ablation_rows) if ablation_rows else ())
    trials = [*ablation_trials.values(), *study.all_trials.values(), *([fixed] if fixed else [])]
    finished = [e["data"] for e in ctx.ledger.entries if e["kind"] == "job.finished" and e["seq"] > ctx.state.seq]
    tested = [] if for_goal else tested_changes(ctx)
    return Evidence(
        {
            "causes": [cause["issue"] for cause in diagnosis["root_causes"]],
            "confirmed_causes": sorted({c for t in tested if t.verdict == "confirmed" for c in t.causes}),
            "target": study.target if study.goal else float(ctx.config["task"]["target"]),
            "greater_is_better": not study.goal and bool(ctx.evidence_of("planning")["greater_is_better"]),
            "goal": study.goal or None,
            "control": study.rows[0] if study.rows else None,
            "arms": list(study.rows[1:]),
            "searched": [tally.to_json() for tally in study.searched],
            "search": {"trainings": study.spent, "ablation": list(study.ablation)},
            "ablation_table": ablation_rows,
            "seeds_per_arm": study.seeds_per_arm,
            "first_seed": CONFIRMATION_SEED,
            "declared_effect": study.due,
            "one_seed": study.seeds_per_arm == 1,
            "max_steps": study.budget,
            "winner": study.winner,
            "choice": study.choice,
            "trials": [measurements(trial) for trial in study.trials.values()],
            "trials_planned": len(ablation_trials) + len(study.all_trials) + bool(study.winner),
            "trials_recorded": len(finished),
            "trials_died": sum(bool(job["died"]) for job in finished),
            "score_splits": [job["score"]["split"] for job in finished if job["score"]],
            "test_opened": len([t for t in ctx.state.test_opened if t["plan"] == plan.digest]),
            "nothing_left": study.winner is None and not left,
            "nothing_left_why": "no untried cure is left" if study.rows or study.searched else study.choice,
            "prevention": list(regression.prevention),
            "regression": {"trials": list(regression.trials), "sanity": dict(regression.sanity)},
            "rollback": "the command rollback, with the name of the run" if "candidate" in outcome else None,
            **outcome,
        },
        units={"effect": MEASURES[study.goal].unit if study.goal else str(ctx.config["task"]["metric"])},
        artifacts=_artifacts(ctx, trials, "candidate" in outcome),
    )
