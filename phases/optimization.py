"""Optimization: which is the smallest change that provably mends the run?

Needs the diagnosis of this round. Trains a control arm without change and each candidate cure on the same seeds,
threads and budget of steps, in worker processes; compares them pair by pair with an exact test, corrected for the
number of candidates. Produces `fixed.yaml`, `implementation.json` and the fixed model, or the finding that no candidate
wins, and whether a cure is left that no round has tried.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.orchestration.phase import PhaseContext
from pipeline.results import Artifact, Evidence, Score, digest, plain
from pipeline.run_store import files
from pipeline.run_store.job import Delta, Job
from pipeline.trials.executor import Trial, parallel_jobs, run_jobs
from pipeline.trials.fix_report import implementation, performance, rerun_command
from pipeline.trials.study import Arm, compare_arms, select_arm, with_change

DOCUMENTS = ("fixed.yaml", "implementation.json")
FIXED = "fixed"  # the winner, trained once more on the master seed


def _diagnosis(ctx: PhaseContext) -> dict[str, Any]:
    return dict(json.loads(ctx.artifact_of("diagnostics", "diagnosis").read_text()))


def _start(ctx: PhaseContext) -> Delta:
    """The change that earlier rounds adopted; nothing in the first."""
    if ctx.round == 1:
        return Delta()
    return Job.from_json(ctx.evidence_of("optimization")["subject_training"]["job"]).delta


def _tried(ctx: PhaseContext) -> set[str]:
    """Digests of the changes that earlier rounds of this plan tried, as the ledger has them.

    A winner whose last training died was never adopted and may be tried again.
    """
    since = ctx.state.plan["seq"] if ctx.state.plan else -1
    entries = [e for e in ctx.ledger.entries if e["seq"] > since and e["data"].get("round", ctx.round) < ctx.round]
    ended = [e["data"] for e in entries if e["kind"] == "job.finished"]
    lost = {end["round"] for end in ended if end["id"] == FIXED and end["died"]}
    studies = [e["data"] for e in entries if e["kind"] == "study.decided"]
    return {
        digest(arm["delta"])
        for study in studies
        for arm in study["arms"]
        if not (arm["id"] == study["winner"] and study["round"] in lost)
    }


def untried(diagnosis: Mapping[str, Any], start: Delta, tried: Set[str]) -> list[Arm]:
    """Every cure of a named cause that a trial can try and none did, in the diagnosis's order (cheapest first)."""
    arms: list[Arm] = []
    named = {cause["issue"] for cause in diagnosis["root_causes"]}
    seen = tried | {digest(start)}
    for fix in diagnosis["recommended_fixes"]:
        change = fix["implementation"]
        delta = with_change(start, change)
        usable = fix["kind"] == "cure" and fix["cause"] in named and (change["overrides"] or change["surgery"])
        if usable and digest(delta) not in seen:
            seen = seen | {digest(delta)}
            arms.append(Arm(f"c{len(arms) + 1}", delta, fix["cause"], fix["cure"], len(arms) + 1))
    return arms


def _budget(ctx: PhaseContext, arms: Sequence[Arm]) -> int:
    """Steps that every arm may take: the plan's, and as many times more as a candidate asks for longer training."""
    assert ctx.plan is not None
    planned = int(ctx.config["trainer"]["max_epochs"])
    epochs = [int(arm.delta.overrides.get("trainer.max_epochs", planned)) for arm in arms]
    return math.ceil(int(ctx.plan.facts["budget"]["max_steps"]) * max([1.0, *(e / planned for e in epochs)]))


def _jobs(ctx: PhaseContext, arms: Sequence[Arm], pairs: int) -> list[tuple[str, Job]]:
    assert ctx.plan is not None
    steps = _budget(ctx, arms)
    every = [(arm, index) for index in range(1, pairs + 1) for arm in arms]
    return [(f"{arm.id}-{i}", Job(ctx.plan.digest, "trial", arm.delta, i, steps)) for arm, i in every]


def _train(ctx: PhaseContext, jobs: Sequence[tuple[str, Job]], columns: int) -> dict[str, Trial]:
    """Every job trained; its start and its end, dead or alive, are in the ledger. Says a line per `columns` jobs."""
    assert ctx.plan is not None
    threads = int(ctx.plan.facts["threads"])
    line: list[str] = []

    def told(trial: Trial) -> None:
        end = {"id": trial.id, "round": ctx.round, "score": trial.score, "died": trial.died}
        ctx.ledger.append("job.finished", {**end, "weights": trial.result.get("weights")})
        line.append(f"{trial.value:<8.4f}" if trial.score else "died    " if trial.died else "none    ")
        if len(line) == columns:
            seed = f"seed {trial.job.seed_index}" if trial.job.seed_index else "master"
            ctx.log(f"  {seed:<8}  " + "  ".join(line))
            line.clear()

    for name, job in jobs:
        ctx.ledger.append("job.started", {"id": name, "round": ctx.round, "job": job.to_json()})
    parallel = parallel_jobs(ctx.settings["parallel"], threads)
    done = run_jobs(jobs, ctx.folder / "trials", parallel=parallel, threads=threads, on_finished=told)
    return {trial.id: trial for trial in done}


def _criteria(row: Mapping[str, Any], outcome: Mapping[str, Any]) -> dict[str, tuple[bool, Any]]:
    """What the repair is held against: its test, the target, the bar, and silence of the blocking playbooks."""
    branch, score = outcome["branch"], outcome["candidate"]["score"]
    return {
        "p_after_holm": (row["wins"], row["p"]),
        "mean_effect": (row["effect"] > 0, row["effect"]),
        "target": (branch["target"], score["value"] if score else None),
        "better_than_trivial": (branch["trivial"], branch["trivial"]),
        "no_blocking_symptom": (not branch["symptoms"], len(branch["symptoms"])),
    }


def _document(ctx: PhaseContext, control: Trial, trial: Trial, criteria: Mapping[str, tuple[bool, Any]]) -> None:
    """`fixed.yaml` and `implementation.json` say what was changed and what came of it."""
    assert ctx.plan is not None
    planned = ctx.plan.config
    fixed = trial.job.config(planned)
    command = rerun_command(ctx.run, ctx.state, planned, trial.job.delta)
    files.write_text(ctx.folder / "fixed.yaml", f"# {command}\n{yaml.safe_dump(plain(fixed), sort_keys=False)}")
    before = performance(ctx.run.path, control, control.job.config(planned), ctx.trust)
    after = performance(ctx.run.path, trial, fixed, ctx.trust)
    document = implementation(planned, trial, criteria, {"before": before, "after": after})
    files.write_json(ctx.folder / "implementation.json", document)


def _outcome(ctx: PhaseContext, trial: Trial) -> dict[str, Any]:
    """The branch's inputs and the candidate of the fixed training."""
    from diagnostics.diagnose import diagnose
    from pipeline.history import History

    assert ctx.plan is not None
    bar = ctx.evidence_of("baseline")["trivial_baseline"]["value"]
    history = History.load(trial.folder / "history.npz")
    found = diagnose(history, trial.job.config(ctx.plan.config), round=ctx.round).to_json()
    blocking = [symptom["id"] for symptom in found["symptoms"] if symptom["severity"] == "blocking"]
    score = Score(**trial.score) if trial.score else None
    reached = score is not None and score.reaches(float(ctx.config["task"]["target"]))
    better = score is not None and score.beats(float(bar))
    weights = ctx.run.inside(trial.result["checkpoint"], "weights.safetensors")
    return {
        "branch": {"target": reached, "trivial": better, "symptoms": blocking},
        "candidate": {
            "weights": trial.result["weights"],
            "checkpoint": trial.result["checkpoint"],
            "file": plain(ctx.artifact(weights)),
            "job": trial.job.to_json(),
            "score": trial.score,
        },
        "subject_training": {
            "history": ctx.run.relative(trial.folder / "history.npz"),
            "job": trial.job.to_json(),
        },
    }


def _unchanged(ctx: PhaseContext, start: Delta) -> dict[str, Any]:
    """What stays when nothing is adopted: the branch and the training as they were."""
    before = ctx.state.current_branch() or {"target": False, "trivial": False, "symptoms": []}
    history = ctx.run.relative(ctx.artifact_of("baseline", "history"))
    if ctx.round > 1:
        history = ctx.evidence_of("optimization")["subject_training"]["history"]
    job = Job(ctx.plan.digest if ctx.plan else "", FIXED, start)
    return {
        "branch": {key: before[key] for key in ("target", "trivial", "symptoms")},
        "subject_training": {"history": history, "job": job.to_json()},
    }


@dataclass(frozen=True)
class Study:
    """The comparison as it was made: the arms (control first), their trainings, the rows of figures, and the winner."""

    arms: Sequence[Arm]
    pairs: int
    budget: int
    trials: Mapping[str, Trial]
    rows: Sequence[Mapping[str, Any]]
    winner: Mapping[str, Any] | None


def _study(ctx: PhaseContext, arms: Sequence[Arm], greater: bool) -> Study:
    """Every arm trained on every seed, compared, and the choice on record; nothing is trained without a candidate."""
    pairs, every = int(ctx.settings["seeds_per_arm"]), list(arms) if len(arms) > 1 else []
    ctx.log(f"optimization, round {ctx.round}: a control and {len(arms) - 1} candidate(s), {pairs} seeds each")
    for arm in arms[1:]:
        ctx.log(f"  {arm.id}: {arm.delta.describe()}, a cure of {arm.cause}")
    if every:
        ctx.log("  " + " " * 10 + "  ".join(f"{arm.id:<8}" for arm in every))
    trials = _train(ctx, _jobs(ctx, every, pairs), len(every))
    rows = compare_arms(every, trials, pairs, greater) if every else []
    winner = select_arm(rows[1:], float(ctx.config["task"]["target"]), greater)
    ctx.ledger.append("study.decided", {"round": ctx.round, "arms": rows, "winner": winner["id"] if winner else None})
    return Study(every, pairs, _budget(ctx, every), trials, rows, winner)


def _adopt(ctx: PhaseContext, study: Study, start: Delta) -> tuple[dict[str, Any], Trial | None]:
    """What follows from the study, with the winner's training on the master seed where there is a winner."""
    assert ctx.plan is not None
    winner = study.winner
    if winner is None:
        return _unchanged(ctx, start), None
    arm = next(a for a in study.arms if a.id == winner["id"])
    job = Job(ctx.plan.digest, FIXED, arm.delta, 0, study.budget)
    fixed = _train(ctx, [(FIXED, job)], 1)[FIXED]
    if fixed.died:
        ctx.log(f"not adopted: {winner['change']} won, and its training on the master seed died of {fixed.died}")
        return {**_unchanged(ctx, start), "fixed_died": fixed.died}, fixed
    outcome = _outcome(ctx, fixed)
    _document(ctx, study.trials["control-1"], fixed, _criteria(winner, outcome))
    ctx.log(f"adopted: {winner['change']} ({winner['effect']:+.4g} on average, p = {winner['p']:.3g} after Holm)")
    return outcome, fixed


def _left(ctx: PhaseContext, study: Study, diagnosis: Mapping[str, Any], start: Delta, tried: Set[str]) -> int:
    """How many cures the next round could try, were it to start where this one did; said where nothing was adopted."""
    left = len(untried(diagnosis, start, tried | {digest(arm.delta) for arm in study.arms}))
    if study.winner is None:
        ctx.log(f"no candidate beats the control beyond chance; {left or 'no'} untried cure(s) left")
    return left


def _measured(trial: Trial) -> dict[str, Any]:
    """What the worker itself says of a training; nothing where it died."""
    which = {"id": trial.id, "arm": trial.id.rpartition("-")[0], "seed_index": trial.job.seed_index, "died": trial.died}
    return {**which, **{key: trial.result.get(key) for key in ("seed", "threads", "steps", "stopped")}}


def _artifacts(ctx: PhaseContext, trials: Iterable[Trial], adopted: bool) -> dict[str, Artifact]:
    """The documents of what was adopted, and every file that a trial is judged by, each with its digest."""
    paths = {name: ctx.folder / name for name in DOCUMENTS} if adopted else {}
    paths |= {f"{t.id}/{name}": t.folder / name for t in trials for name in ("result.json", "history.npz")}
    return {name: ctx.artifact(path) for name, path in paths.items() if path.is_file()}


def run(ctx: PhaseContext) -> Evidence:
    """Does one of the cures that the diagnosis proposes beat no change at all, on the same seeds, beyond chance?"""
    assert ctx.plan is not None
    diagnosis, start, tried = _diagnosis(ctx), _start(ctx), _tried(ctx)
    greater = bool(ctx.evidence_of("planning")["greater_is_better"])
    for name in DOCUMENTS:  # of an earlier revision of the plan, which this round may not confirm
        files.remove(ctx.folder / name)
    arms = untried(diagnosis, start, tried)[: int(ctx.settings["candidates"])]
    study = _study(ctx, [Arm("control", start), *arms], greater)
    outcome, fixed = _adopt(ctx, study, start)
    left = _left(ctx, study, diagnosis, start, tried)
    trials = [*study.trials.values(), *([fixed] if fixed else [])]
    ended = [e["data"] for e in ctx.ledger.entries if e["kind"] == "job.finished" and e["seq"] > ctx.state.seq]
    return Evidence(
        {
            "causes": [cause["issue"] for cause in diagnosis["root_causes"]],
            "target": float(ctx.config["task"]["target"]),
            "greater_is_better": greater,
            "control": study.rows[0] if study.rows else None,
            "arms": list(study.rows[1:]),
            "seeds_per_arm": study.pairs,
            "max_steps": study.budget,
            "winner": study.winner,
            "trials": [_measured(trial) for trial in study.trials.values()],
            "trials_planned": len(study.arms) * study.pairs + bool(study.winner),
            "trials_recorded": len(ended),
            "trials_died": sum(bool(end["died"]) for end in ended),
            "score_splits": [end["score"]["split"] for end in ended if end["score"]],
            "test_opened": len([t for t in ctx.state.test_opened if t["plan"] == ctx.plan.digest]),
            "nothing_left": study.winner is None and not left,
            **outcome,
        },
        units={"effect": str(ctx.config["task"]["metric"])},
        artifacts=_artifacts(ctx, trials, "candidate" in outcome),
    )
