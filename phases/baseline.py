"""Baseline: what does the plan give, measured honestly, and is it good enough?

Needs an open planning gate. Produces what the proofs found, the trained weights, the history, the score on validation
with its interval, what stands beside it (a model without learning, simple models, folds, classes, warnings), pictures,
and what the branch is decided on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diagnostics.diagnose import diagnose
from diagnostics.monitor import Monitor
from pipeline.orchestration.phase import PhaseContext
from pipeline.reporting import plots
from pipeline.results import Artifact, Evidence, plain
from pipeline.run_store import files
from pipeline.run_store.job import Job

if TYPE_CHECKING:
    from pipeline.data.dataset import Data
    from pipeline.engine.loop import Fit
    from pipeline.evaluation.evaluate import Evaluation
    from pipeline.run_store.permits import TrainPermit
    from pipeline.sanity_checks.run_checks import CheckResults


def _proofs(ctx: PhaseContext, permit: TrainPermit, data: Data) -> CheckResults:
    """What careful engineers try by hand before a long training, within a tenth of its time."""
    from pipeline.sanity_checks.context import CheckContext
    from pipeline.sanity_checks.lr_range_test import told
    from pipeline.sanity_checks.run_checks import prove

    found = prove(CheckContext(ctx.config, ctx.trust, data, ctx.settings, permit, ctx.folder / "sanity_checks"))
    if found["learning_rate"]["outcome"] == "measured":
        ctx.log(f"baseline: {told(found['learning_rate'])}")
    return found


def _origin(ctx: PhaseContext, done: Fit, data: Data) -> dict[str, Any] | None:
    """The first tensor that was not finite, found by making the guilty step again; None where all was finite."""
    if done.stopped != "nonfinite":
        return None
    from pipeline.engine.replay import replay

    origin = replay(ctx.run, done.steps, data=data).origin
    found = {"step": done.steps, **(plain(origin) if origin else {"what": "not found", "module": "", "rows": []})}
    done.history.event("origin", **found)
    if origin:  # certain where the monitor only counted what it happened to see
        in_batch = origin.what in ("inputs", "targets")
        done.history.facts["batch_nonfinite"] = float(len(origin.rows) or 1) if in_batch else 0.0
        done.history.facts["weights_nonfinite"] = float(origin.what == "parameter")
    ctx.log(f"baseline: made step {done.steps} again; the first tensor that is not finite: {origin or 'not found'}")
    return found


def _stop_by_the_clock(ctx: PhaseContext, done: Fit) -> None:
    """What ended by the clock and not by its budget is on record: another machine would have gone further."""
    if done.stopped == "clock":
        why = f"the clock, {ctx.config['trainer']['max_minutes']} minutes, after {done.steps} steps"
        ctx.ledger.append("stopped", {"phase": "baseline", "round": ctx.round, "why": why})


def trained(done: Fit, state: Mapping[str, Any]) -> dict[str, Any]:
    """What is on record of a training: plan and seed as its checkpoint's state says, length, end and weights."""
    return {
        "plan": state["plan_digest"],
        "seed": state["seed"],
        "steps": done.steps,
        "stopped": done.stopped,
        "weights": done.weights_digest,
    }


def branch_inputs(ctx: PhaseContext, done: Fit, trivial: float) -> dict[str, Any]:
    """What the branch is decided on: target reached, better than trivial, blocking symptoms by name."""
    found = diagnose(done.history, dict(ctx.config)).to_json()
    blocking = [symptom["id"] for symptom in found["symptoms"] if symptom["severity"] == "blocking"]
    reached = done.score is not None and done.score.reaches(float(ctx.config["task"]["target"]))
    better = done.score is not None and done.score.beats(trivial)
    return {"target": reached, "trivial": better, "symptoms": blocking}


def _told(done: Fit) -> str:
    """The outcome in one line."""
    if done.score is None:
        return f"no score, training ended {done.stopped} after {done.steps} steps"
    s = done.score
    interval = "" if math.isnan(s.low) else f"95 % interval {s.low:.3g} to {s.high:.3g}, "
    return f"{s.metric} {s.value:.4g} on validation ({interval}n = {s.n})"


def _kept(ctx: PhaseContext, path: Path, content: bytes) -> Artifact:
    """A file of this phase, written and identified."""
    files.write_bytes(path, content)
    return ctx.artifact(path)


def _per_class(ctx: PhaseContext, judged: Evaluation, data: Data) -> dict[str, Any]:
    """What is found of each class and confused with which, told in a line; no rows where there are no classes."""
    from pipeline.evaluation.per_class import confusion, told

    predictions = judged.predictions
    labels = predictions.shape[1] if predictions is not None and predictions.ndim == 2 else None
    count = data.classes or (labels if ctx.config["task"]["kind"] == "multilabel" else None)
    if predictions is None or predictions.dtype.kind not in "iu" or not count:  # a step's outputs may be anything
        return {"classes": [], "matrix": None, "per_class": [], "worst_pairs": []}
    found = confusion(judged.targets, predictions, data.class_names or tuple(map(str, range(count))))
    ctx.log(f"baseline: {told(found)}")
    return found


def _simple(ctx: PhaseContext, done: Fit, data: Data, counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """What models that anybody would try first reach on the same rows; the curves show them as bars."""
    from pipeline.building.builder import build_loss
    from pipeline.evaluation.reference_models import simple_scores
    from pipeline.evaluation.task import build_task

    seconds = float(ctx.settings["baseline_model_seconds"])
    if not seconds:
        return [
            {"name": "simple models", "not_applicable": "not asked for: phases.baseline.baseline_model_seconds is 0"}
        ]
    task = build_task(ctx.config, build_loss(ctx.config, ctx.trust, counts), done.model, ctx.trust)
    found = simple_scores(task, data, int(ctx.config["seed"]), seconds=seconds)
    scored = {one["name"]: one["value"] for one in found if "value" in one}
    done.history.facts.update({f"baseline_model/{name}": value for name, value in scored.items()})
    if scored:
        ctx.log(f"baseline: simple models: {', '.join(f'{name} {value:.4g}' for name, value in scored.items())}")
    return found


def _pictures(ctx: PhaseContext, done: Fit, measured: Mapping[str, Any]) -> dict[str, Artifact]:
    """The history, the learning curve and, for classes, the confusion matrix, kept with their digests."""
    kept = {"history": _kept(ctx, ctx.folder / "history.npz", done.history.to_bytes())}
    drawn = {"learning_curve": plots.learning_curve(done.history)}
    if measured["per_class"]:
        figures = ctx.folder / "confusion_matrix.json"
        files.write_json(figures, {key: measured[key] for key in ("classes", "matrix", "per_class", "worst_pairs")})
        kept[figures.name] = ctx.artifact(figures)
    if measured["matrix"] is not None:
        drawn["confusion_matrix"] = plots.confusion_matrix(measured["matrix"], measured["classes"])
    for name, picture in drawn.items():
        for suffix, content in picture.items():
            path = ctx.folder / f"{name}.{suffix}"
            kept[name if suffix == "png" else path.name] = _kept(ctx, path, content)
    return kept


def _measured(ctx: PhaseContext, permit: TrainPermit, done: Fit, data: Data) -> dict[str, Any]:
    """What stands beside the score: its classes, simple models on the same rows, folds of the train rows, warnings."""
    from pipeline.data.splits import class_counts
    from pipeline.evaluation.evaluate import score_split
    from pipeline.runtime import warning_capture
    from pipeline.trials.cross_validation import cross_validate

    counts = class_counts(data.train.y)
    judged = score_split(done.model, data.val, done.task, permit.plan.seed)
    found = {
        **_per_class(ctx, judged, data),
        "baseline_models": _simple(ctx, done, data, counts),
        "cross_validation": cross_validate(
            permit, data, int(ctx.settings["folds"]), done, trust=ctx.trust, watch=ctx.watch
        ),
        "warnings": warning_capture.recorded_warnings(done.history),
    }
    if found["warnings"]:
        ctx.log(f"baseline: {warning_capture.told(found['warnings'])}")
    return found


def _weights(ctx: PhaseContext, permit: TrainPermit, done: Fit, score: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is on record of the weights: the training they came from, their digest on disk, and the candidate."""
    from pipeline.checkpoints.generation import WEIGHTS
    from pipeline.checkpoints.generation import load as load_weights
    from pipeline.checkpoints.weights import weights_digest

    assert done.checkpoint is not None
    weights, state = load_weights(done.checkpoint)
    return {
        "trained": trained(done, state),
        "weights_on_disk": weights_digest(weights),
        "candidate": {
            "weights": done.weights_digest,
            "checkpoint": ctx.run.relative(done.checkpoint),
            "file": plain(ctx.artifact(done.checkpoint / WEIGHTS)),
            "job": Job(permit.plan.digest, "baseline").to_json(),
            "score": score,
        },
    }


def run(ctx: PhaseContext) -> Evidence:
    """What does the planned training reach on validation, beside a model that learned nothing?"""
    from pipeline.data.load import load
    from pipeline.engine.fit import fit
    from pipeline.sanity_checks.run_checks import note

    permit = ctx.train_permit()
    data = load(ctx.config, ctx.trust)
    proofs = _proofs(ctx, permit, data)
    observers = [Monitor(), *ctx.watch("baseline")]
    done = fit(permit, Job(permit.plan.digest, "baseline"), observers, data=data, folder=ctx.folder)
    note(done.history, proofs)
    _stop_by_the_clock(ctx, done)
    origin = _origin(ctx, done, data)
    measured = _measured(ctx, permit, done, data)
    artifacts = _pictures(ctx, done, measured)
    score = asdict(done.score) if done.score else None
    ctx.log(f"baseline: {_told(done)}; a model without learning: {done.bar['value']:.4g}")
    return Evidence(
        {
            "plan": permit.plan.digest,
            "seed": permit.plan.seed,
            "classes": len(measured["classes"]) if measured["matrix"] is not None else None,
            "rows": {"val": len(data.val)},
            "loss_at_init": done.history.facts.get("loss_at_init"),
            "loss_expected": done.history.facts.get("loss_expected"),
            "sanity_checks": proofs,
            "first_nonfinite": origin,
            "trivial_baseline": dict(done.bar),
            "score": score,
            **{
                name: measured[name]
                for name in ("per_class", "worst_pairs", "baseline_models", "cross_validation", "warnings")
            },
            **_weights(ctx, permit, done, score),
            "branch": branch_inputs(ctx, done, done.bar["value"]),
        },
        units={"loss_at_init": "loss", "loss_expected": "loss"},
        artifacts=artifacts,
    )
