"""What the records say about the candidates of a round: the adopted change, what was tried, what was tested."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.adoption.context import Round, frozen_plan
from pipeline.adoption.proposals import Experiment, Known, config_of
from pipeline.repair.diagnosis_record import DiagnosisRecord
from pipeline.results import digest
from pipeline.run_store.job import Delta, Job

FIXED = "fixed"  # the id of the winner's training on the master seed


def adopted_change(ctx: Round) -> Delta:
    """Return the change that earlier rounds adopted, and that no rollback undid; an empty one in the first round."""
    training = ctx.earlier_training()
    return Job.from_json(training["job"]).delta if training else Delta()


def tried_changes(ctx: Round) -> set[str]:
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
        for arm in (*study["arms"], *(t for t in study.get("searched", ()) if t["values"] or t["quick"] is not None))
        if not (arm["id"] == study["winner"] and study["round"] in died)
    }


def known_of(ctx: Round, diagnosis: DiagnosisRecord, start: Delta) -> Known:
    """Return what the records say about the changes that are worth a trial."""
    config = config_of(start, frozen_plan(ctx).config)
    range_test = (ctx.evidence_of("baseline").get("sanity_checks") or {}).get("lr_range_test") or {}
    suggested = range_test.get("suggested") if not start else None  # it was measured without the adopted change
    return Known(
        diagnosis,
        start,
        config,
        tested_changes(ctx),
        None if suggested is None else float(suggested),
        inputs_have_a_scale(ctx),
    )


def tested_changes(ctx: Round) -> list[Experiment]:
    """Return the changes that the experiments of this round's diagnostics tested, with their verdicts."""
    stated = [e["data"] for e in ctx.ledger.entries if e["kind"] == "hypothesis.stated"]
    deltas = {s["id"]: s["delta"] for s in stated if s["round"] == ctx.round and s["plan"] == frozen_plan(ctx).digest}
    tested = []
    for result in ctx.evidence_of("diagnostics").get("experiments", []):
        if result["id"] in deltas:
            delta = deltas[result["id"]]
            change = Delta(dict(delta["overrides"]), tuple(delta["surgery"]), delta["train_rows"])
            restored = float(result["restored"] or 0.0)
            tested.append(Experiment(change, tuple(result["causes"]), result["verdict"], restored))
    return tested


def inputs_have_a_scale(ctx: Round) -> bool:
    """Return whether the inputs are numbers, and no ids of tokens or classes, as diagnostics saw them."""
    path = ctx.run.inside("diagnostics", ctx.round, "experiments", "describe", "result.json")
    try:
        described = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return True  # nothing was described: the quick test finds out
    return "input_scale" not in described or described["input_scale"] is not None


def scores_of(ctx: Round, score: object, training: Mapping[str, object]) -> dict[str, dict[str, Any]]:
    """Return the scores of the reference and of the fixed model by split, both trained with the plan's seed.

    `score` is that of the fixed model on validation, and `training` names its history.
    """
    from pipeline.history import History

    earlier, before = ctx.earlier_training(), ctx.state.candidate["score"] if ctx.state.candidate else None
    old = ctx.run.path / earlier["history"] if earlier else ctx.artifact_of("baseline", "history")
    scores: dict[str, dict[str, Any]] = {"validation": {"before": before, "after": score}}
    name, sides = f"train/{ctx.config['task']['metric']}", dict[str, Any]()
    for side, path in (("before", old), ("after", ctx.run.path / str(training["history"]))):
        _, values = History.load(path).series(name)
        if len(values):
            sides[side] = {"value": float(values[-1])}
    return scores | ({"train, reported only": sides} if sides else {})
