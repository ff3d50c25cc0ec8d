"""Optimization: which is the smallest change that provably mends the run?

Needs the diagnosis of this round. Trains a control arm without change and each candidate cure on the same seeds, steps
and threads, in worker processes; compares them pair by pair with an exact test, corrected for the number of candidates.
Produces `fixed.yaml`, `implementation.json` and the fixed model, or the finding that no candidate wins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pipeline.job import Delta, Job
from pipeline.phase import PhaseContext
from pipeline.record import files
from pipeline.records import Evidence, Score, plain
from pipeline.trials.executor import Trial, parallel_jobs, run_jobs
from pipeline.trials.repair import implementation, performance, rerun_command
from pipeline.trials.study import Arm, added, choose, compare


def _read(ctx: PhaseContext, *parts: str | int) -> dict[str, Any]:
    return json.loads(ctx.run.inside(*parts).read_text())


def _start(ctx: PhaseContext) -> Delta:
    """The change that earlier rounds adopted; nothing in the first."""
    if ctx.round == 1:
        return Delta()
    job = _read(ctx, "optimization", ctx.round - 1, "evidence.json")["values"]["subject_training"]["job"]
    return Job.from_json(job).delta


def _tried(ctx: PhaseContext) -> set[str]:
    """The changes that earlier rounds tried, by their canonical text."""
    rounds = range(1, ctx.round)
    studies = [_read(ctx, "optimization", r, "evidence.json")["values"] for r in rounds]
    return {arm["change"] for study in studies for arm in study["arms"]}


def candidates(ctx: PhaseContext, diagnosis: Mapping[str, Any], start: Delta) -> list[Arm]:
    """The first cures of the diagnosis that a trial can try and no earlier round did, in the diagnosis's order."""
    arms: list[Arm] = []
    seen = _tried(ctx) | {start.describe()}
    for fix in diagnosis["recommended_fixes"]:
        change = fix["implementation"]
        delta = added(start, change)
        if fix["kind"] != "cure" or not (change["overrides"] or change["surgery"]) or delta.describe() in seen:
            continue
        seen.add(delta.describe())
        arms.append(Arm(f"c{len(arms) + 1}", delta, fix["cause"], fix["cure"], len(arms) + 1))
    return arms[: int(ctx.settings["candidates"])]


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
        ctx.book.append("job.finished", {**end, "weights": trial.result.get("weights")})
        line.append(f"{trial.value:<8.4f}" if trial.score else "died    " if trial.died else "none    ")
        if len(line) == columns:
            seed = f"seed {trial.job.seed_index}" if trial.job.seed_index else "master"
            ctx.say(f"  {seed:<8}  " + "  ".join(line))
            line.clear()

    for name, job in jobs:
        ctx.book.append("job.started", {"id": name, "round": ctx.round, "job": job.to_json()})
    parallel = parallel_jobs(ctx.settings["parallel"], threads)
    done = run_jobs(jobs, ctx.folder / "trials", parallel=parallel, threads=threads, told=told)
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


def _adopt(ctx: PhaseContext, control: Trial, trial: Trial, criteria: Mapping[str, tuple[bool, Any]]) -> None:
    """`fixed.yaml` and `implementation.json` say what was changed and what came of it."""
    assert ctx.plan is not None
    fixed = trial.job.config(ctx.plan.config)
    assert ctx.state.plan is not None
    command = rerun_command(ctx.run.name, ctx.state.plan, trial.job.delta, fixed["surgery"])
    files.write_text(ctx.folder / "fixed.yaml", f"# {command}\n{yaml.safe_dump(plain(fixed), sort_keys=False)}")
    before = performance(ctx.run.path, control, control.job.config(ctx.plan.config), ctx.trust)
    after = performance(ctx.run.path, trial, fixed, ctx.trust)
    document = implementation(ctx.plan.config, trial, criteria, {"before": before, "after": after})
    files.write_json(ctx.folder / "implementation.json", document)


def _outcome(ctx: PhaseContext, trial: Trial) -> dict[str, Any]:
    """The branch's inputs and the candidate of the fixed training."""
    from diagnostics.diagnose import diagnose
    from pipeline.history import History

    assert ctx.plan is not None
    bar = _read(ctx, "baseline", "evidence.json")["values"]["trivial"]["value"]
    history = History.load(trial.folder / "history.npz")
    found = diagnose(history, trial.job.config(ctx.plan.config), round=ctx.round).to_json()
    blocking = [symptom["id"] for symptom in found["symptoms"] if symptom["severity"] == "blocking"]
    score = Score(**trial.score) if trial.score else None
    reached = score is not None and score.reaches(float(ctx.config["task"]["target"]))
    better = score is not None and score.beats(float(bar))
    return {
        "branch": {"target": reached, "trivial": better, "symptoms": blocking},
        "candidate": {
            "weights": trial.result["weights"],
            "checkpoint": trial.result["checkpoint"],
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
    history = "baseline/history.npz"
    if ctx.round > 1:
        history = _read(ctx, "optimization", ctx.round - 1, "evidence.json")["values"]["subject_training"]["history"]
    job = Job(ctx.plan.digest if ctx.plan else "", "fixed", start)
    return {
        "branch": {key: before[key] for key in ("target", "trivial", "symptoms")},
        "subject_training": {"history": history, "job": job.to_json()},
        "nothing_left": True,
    }


def run(ctx: PhaseContext) -> Evidence:
    """Does one of the cures that the diagnosis proposes beat no change at all, on the same seeds, beyond chance?"""
    assert ctx.plan is not None
    diagnosis = _read(ctx, "diagnostics", ctx.round, "diagnosis.json")
    start = _start(ctx)
    control = Arm("control", start)
    arms = candidates(ctx, diagnosis, start)
    pairs = int(ctx.settings["pairs"])
    greater = bool(_read(ctx, "planning", "evidence.json")["values"]["greater_is_better"])
    every = [control, *arms] if arms else []
    jobs = _jobs(ctx, every, pairs)
    ctx.say(f"optimization, round {ctx.round}: a control and {len(arms)} candidate(s), {pairs} seeds each")
    for arm in arms:
        ctx.say(f"  {arm.id}: {arm.delta.describe()}, a cure of {arm.cause}")
    if every:
        ctx.say("  " + " " * 10 + "  ".join(f"{arm.id:<8}" for arm in every))
    trials = _train(ctx, jobs, len(every))
    rows = compare(every, trials, pairs, greater) if arms else []
    winner = choose(rows[1:], float(ctx.config["task"]["target"]), greater)
    ctx.book.append("study.decided", {"round": ctx.round, "arms": rows, "winner": winner["id"] if winner else None})
    outcome = _unchanged(ctx, start)
    if winner:
        arm = next(a for a in arms if a.id == winner["id"])
        job = Job(ctx.plan.digest, "fixed", arm.delta, 0, _budget(ctx, every))
        fixed = _train(ctx, [("fixed", job)], 1)["fixed"]
        if not fixed.died:
            outcome = _outcome(ctx, fixed)
            _adopt(ctx, trials["control-1"], fixed, _criteria(winner, outcome))
            ctx.say(
                f"adopted: {winner['change']} ({winner['effect']:+.4g} on average, p = {winner['p']:.3g} after Holm)"
            )
    threads = int(ctx.plan.facts["threads"])
    stamped = [{**row, "threads": threads} for row in rows]
    ended = [e for e in ctx.book.entries if e["kind"] == "job.finished" and e["seq"] > ctx.state.seq]
    return Evidence(
        {
            "causes": [cause["issue"] for cause in diagnosis["root_causes"]],
            "control": stamped[0] if stamped else {"seed_indices": [], "max_steps": 0, "threads": threads},
            "arms": stamped[1:],
            "pairs": pairs,
            "winner": winner,
            "trials_planned": len(jobs) + bool(winner),
            "trials_recorded": len(ended),
            "trials_died": sum(bool(e["data"]["died"]) for e in ended),
            "score_splits": [e["data"]["score"]["split"] for e in ended if e["data"]["score"]],
            "test_opened": len([t for t in ctx.state.test_opened if t["plan"] == ctx.plan.digest]),
            **outcome,
        },
        units={"effect": str(ctx.config["task"]["metric"])},
    )
