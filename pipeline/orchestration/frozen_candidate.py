"""The candidate of a release: trained on several seeds, the median of them frozen before the test rows are opened."""

from __future__ import annotations

from pipeline.errors import Refused, fault
from pipeline.executors.settings import ExecutorSettings
from pipeline.history import History
from pipeline.orchestration.phase import PhaseContext
from pipeline.results import Score, counted, plain
from pipeline.run_store.job import Job
from pipeline.run_store.ledger import is_intact
from pipeline.run_store.records import CandidateRecord
from pipeline.trials.executor import Trial
from pipeline.trials.final_seeds import (
    LONG_MINUTES,
    final_jobs,
    format_stability,
    median_trial,
    stability,
    study_of,
    training_minutes,
)
from pipeline.trials.recorded import train_recorded


def freeze_candidate(ctx: PhaseContext) -> CandidateRecord:
    """Train the candidate's job on several seeds, and record the training with the median score on validation.

    Raises Refused, with the test rows unopened, when this one misses the target and no person waived the branch.
    """
    assert ctx.plan is not None and ctx.state.candidate is not None
    frozen, candidate = ctx.state.frozen, ctx.state.candidate
    if frozen and is_intact(ctx.run.path, **frozen["file"]):
        return frozen
    planning, baseline = ctx.evidence_of("planning"), ctx.evidence_of("baseline")
    greater, metric = bool(planning["greater_is_better"]), str(ctx.config["task"]["metric"])
    trials, why = _train_seeds(ctx, candidate)
    chosen = median_trial(trials, greater)
    table = stability(trials, chosen, metric, greater, baseline["cross_validation"], why)
    ctx.log(f"finalization: {format_stability(table)}")
    score = Score(**chosen.score) if chosen.score else None
    target = float(ctx.config["task"]["target"])
    if ctx.state.branch != "insufficient" and not (score and score.reaches(target)):
        what = f"the median of {counted(len(trials), 'training')} misses the target on validation"
        got = f"{metric} {score.value:.4g}" if score else f"no score: {chosen.died or 'it is not finite'}"
        do = f"python -m pipeline phase=diagnostics {ctx.run.overrides}"
        raise Refused(fault("finalization", what, got=got, expected=f"the target {target:.4g}", do=do))
    weights = ctx.run.inside(chosen.result["checkpoint"], "weights.safetensors")
    record = {
        "phase": "finalization",
        "round": ctx.round,
        "weights": chosen.result["weights"],
        "checkpoint": chosen.result["checkpoint"],
        "file": plain(ctx.artifact(weights)),
        "job": chosen.job.to_json(),
        "score": chosen.score,
        "stability": plain(table),
    }
    entry = ctx.ledger.append("candidate.frozen", record)
    return {**record, "seq": entry["seq"]}  # type: ignore[typeddict-item]


def _train_seeds(ctx: PhaseContext, candidate: CandidateRecord) -> tuple[list[Trial], str]:
    """Return the trainings of the candidate's job by seed index; of a long training the candidate alone, and why."""
    assert ctx.plan is not None
    count = int(ctx.settings["seeds"])
    own, folder = ctx.folder / "trainings", ctx.run.path / candidate["checkpoint"]
    minutes = training_minutes(History.load(folder.parent.parent / "history.npz"))
    if count == 1 or minutes > LONG_MINUTES:
        why = f"one training takes {minutes:.0f} minutes" if count > 1 else "phases.finalization.seeds is 1"
        result = {key: candidate[key] for key in ("score", "weights", "checkpoint")}  # type: ignore[literal-required]
        return [Trial("candidate", Job.from_json(candidate["job"]), folder, result)], why
    jobs = final_jobs(candidate, study_of(ctx.ledger.entries, candidate), ctx.run.path, own, count)
    trials: list[Trial] = []
    for place in dict.fromkeys(place for place, _, _ in jobs):
        part = [(name, job) for folder, name, job in jobs if folder == place]
        trained = train_recorded(
            part,
            place,
            ledger=ctx.ledger,
            round=ctx.round,
            log=ctx.log,
            setting=ctx.settings["parallel"],
            threads=int(ctx.plan.facts["threads"]),
            executor=ExecutorSettings.from_config(ctx.config),
            show=ctx.show_trials,
        )
        trials += trained.values()
    return trials, ""
