"""Baseline: what does the plan reach, measured honestly, and is it good enough?

Needs an open planning gate. Produces the results of the sanity checks, the trained weights, the history, the score on
validation with its interval, what to compare it with (trivial baseline, baseline models, cross-validation, results per
class), the warnings raised during training, plots, and the inputs of the branch decision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from diagnostics.diagnose import diagnose
from diagnostics.loops.live_guard import LiveGuard
from diagnostics.monitor import Monitor
from pipeline.orchestration.phase import PhaseContext
from pipeline.reporting import plots
from pipeline.results import Artifact, Evidence, format_interval, plain
from pipeline.run_store import files
from pipeline.run_store.gate import BranchInputs
from pipeline.run_store.job import Job
from pipeline.runtime.announce import announced

if TYPE_CHECKING:
    from pipeline.data.dataset import Data
    from pipeline.engine.observer import StepObserver
    from pipeline.engine.progress import Fit
    from pipeline.evaluation.baseline_models import BaselineScore
    from pipeline.evaluation.evaluate import Evaluation
    from pipeline.evaluation.per_class import ClassReport
    from pipeline.history import History
    from pipeline.inspection.finding import Inspections
    from pipeline.run_store.permits import TrainPermit
    from pipeline.runtime.warning_capture import RecordedWarning
    from pipeline.sanity_checks.run_checks import CheckResults


class FirstNonfinite(TypedDict):
    """The first tensor that was not finite: in which step, what it is, of which module, in which train rows.

    `rerun` tells what happened when the step was made again, from the same weights and rows: `reproducible` if the same
    happened, `persistent` if something else was not finite, `transient` if all was finite. Only the first is a fault of
    the program or its data; a machine that computes wrongly shows the others.
    """

    step: int
    what: str
    module: str
    rows: list[int]
    rerun: Literal["reproducible", "persistent", "transient"]


@dataclass(frozen=True)
class Comparisons:
    """What the score of the trained model is compared with, and the warnings raised during training.

    `row_losses` are those of the validation rows as npz, with which `compare` pairs two runs; None where the metric is
    no mean over rows.
    """

    classes: ClassReport
    baseline_models: list[BaselineScore]
    cross_validation: Mapping[str, Any]
    warnings: list[RecordedWarning]
    row_losses: bytes | None


def _run_sanity_checks(ctx: PhaseContext, permit: TrainPermit, data: Data) -> tuple[CheckResults, Inspections]:
    """Run all sanity checks, within a tenth of the training's time, and inspect the training before its first step."""
    from pipeline.sanity_checks.context import CheckContext
    from pipeline.sanity_checks.inspections import inspect_plan
    from pipeline.sanity_checks.lr_range_test import format_range_test
    from pipeline.sanity_checks.run_checks import run_checks

    context = CheckContext(ctx.config, ctx.trust, data, ctx.settings, permit, ctx.folder / "sanity_checks")
    results = run_checks(context)
    inspections, _ = inspect_plan(context, results)
    for finding in inspections.findings:
        if finding.kind == "definition":
            ctx.log(f"baseline: {finding.cause}: {finding.sentence}")
    if results["lr_range_test"]["outcome"] == "measured":
        ctx.log(f"baseline: {format_range_test(results['lr_range_test'])}")
    return results, inspections


def _watch(ctx: PhaseContext) -> list[StepObserver]:
    """Return the monitor of the training, and its guard where the config asks for one."""
    monitor, mode = Monitor(), ctx.config["trainer"].get("guard", "off")
    guard = [LiveGuard(mode, ctx.config, ctx.log, monitor.flush)] if mode in ("warn", "stop") else []
    return [monitor, *guard]


def _find_first_nonfinite(ctx: PhaseContext, fit_result: Fit, data: Data) -> FirstNonfinite | None:
    """Repeat the step that became non-finite, with hooks, and return the first such tensor; None if all was finite."""
    if fit_result.stop_reason != "nonfinite":
        return None
    from pipeline.engine.replay import replay

    step, history = fit_result.steps, fit_result.history
    again = replay(ctx.run, step, data=data)
    origin = again.origin
    where: dict[str, Any] = plain(origin) if origin else {"what": "not found", "module": "", "rows": []}
    measured = next(event["loss"] for event in history.events if event["kind"] == "nonfinite")
    same = str(again.loss) == str(float(measured))  # as text, in which NaN equals NaN
    rerun: Literal["reproducible", "persistent", "transient"] = "transient"
    if origin:
        rerun = "reproducible" if same else "persistent"
    first: FirstNonfinite = {
        "step": step, "what": where["what"], "module": where["module"], "rows": where["rows"], "rerun": rerun,
    }  # fmt: skip
    history.event("origin", **first)
    if origin:  # the repeated step is certain; the monitor counts only the batches that it sees
        in_batch = origin.what in ("inputs", "targets")
        history.facts["batch_nonfinite"] = float(len(origin.rows) or 1) if in_batch else 0.0
        history.facts["weights_nonfinite"] = float(origin.what == "parameter")
    ctx.log(f"baseline: repeated step {step} ({rerun}); the first tensor that is not finite: {origin or 'not found'}")
    return first


def _record_time_limit(ctx: PhaseContext, fit_result: Fit) -> None:
    """Record in the ledger that the clock ended the training: on another machine it would have had more steps."""
    if fit_result.stop_reason == "clock":
        why = f"the clock, {ctx.config['trainer']['max_minutes']} minutes, after {fit_result.steps} steps"
        ctx.ledger.append("stopped", {"phase": "baseline", "round": ctx.round, "why": why})


def _branch_inputs(ctx: PhaseContext, fit_result: Fit) -> BranchInputs:
    symptoms = diagnose(fit_result.history, dict(ctx.config)).to_json()["symptoms"]
    score = fit_result.score
    return {
        "target": score is not None and score.reaches(float(ctx.config["task"]["target"])),
        "trivial": score is not None and score.beats(fit_result.baseline_score["value"]),
        "symptoms": [symptom["id"] for symptom in symptoms if symptom["severity"] == "blocking"],
    }


def _format_score(fit_result: Fit) -> str:
    score = fit_result.score
    if score is None:
        ended = f"training ended {fit_result.stop_reason} after {fit_result.steps} steps"
        name = fit_result.task.metric.name
        _, values = fit_result.history.series(f"val/{name}")
        last = float(values[-1]) if len(values) else 0.0
        if not math.isfinite(last):
            ended += f"; {fit_result.task.metric.where}: '{name}' is {last} on validation, which is no score"
        return f"no score, {ended}"
    return f"{score.metric} {score.value:.4g} on validation ({format_interval(asdict(score))})"


def _save(ctx: PhaseContext, path: Path, content: bytes) -> Artifact:
    files.write_bytes(path, content)
    return ctx.artifact(path)


def _class_report(ctx: PhaseContext, evaluation: Evaluation, data: Data) -> ClassReport:
    """Return the results per class, and print a summary; no rows where there are no classes."""
    from pipeline.evaluation.per_class import format_class_report, report_of

    report = report_of(evaluation, data, str(ctx.config["task"]["kind"]))
    if report["per_class"]:
        ctx.log(f"baseline: {format_class_report(report)}")
    return report


def _score_baseline_models(
    ctx: PhaseContext, fit_result: Fit, data: Data, counts: Mapping[str, int], evaluation: Evaluation
) -> list[BaselineScore]:
    """Score baseline models on the same validation rows; the learning curve shows them as horizontal lines."""
    from pipeline.building.builder import build_loss
    from pipeline.evaluation.baseline_models import score_baseline_models
    from pipeline.evaluation.task import build_task

    seconds = float(ctx.settings["baseline_model_seconds"])
    if not seconds:
        reason = "not requested: phases.baseline.baseline_model_seconds is 0"
        return [{"name": "baseline models", "not_applicable": reason}]
    loss = build_loss(ctx.config, ctx.trust, counts)
    task = build_task(ctx.config, loss, fit_result.model, ctx.trust, data.column_targets)
    scores = score_baseline_models(task, data, int(ctx.config["seed"]), seconds, outputs=evaluation.outputs)
    values = {score["name"]: score["value"] for score in scores if "value" in score}
    fit_result.history.facts.update({f"baseline_model/{name}": value for name, value in values.items()})
    if values:
        ctx.log(f"baseline: other models: {', '.join(f'{name} {value:.4g}' for name, value in values.items())}")
    return scores


def _compare(ctx: PhaseContext, permit: TrainPermit, fit_result: Fit, data: Data) -> Comparisons:
    from pipeline.data.splits import class_counts
    from pipeline.engine.fit import evaluate
    from pipeline.runtime import warning_capture
    from pipeline.trials.cross_validation import cross_validate

    evaluation = evaluate(fit_result.model, data.val, fit_result.task, permit.plan.seed)
    comparisons = Comparisons(
        _class_report(ctx, evaluation, data),
        _score_baseline_models(ctx, fit_result, data, class_counts(data.train.y), evaluation),
        cross_validate(permit, data, int(ctx.settings["folds"]), fit_result, watch=ctx.progress),
        warning_capture.recorded_warnings(fit_result.history),
        _row_losses(fit_result, evaluation, data),
    )
    if comparisons.warnings:
        ctx.log(f"baseline: {warning_capture.format_warnings(comparisons.warnings)}")
    return comparisons


def _row_losses(fit_result: Fit, evaluation: Evaluation, data: Data) -> bytes | None:
    """Return the loss of each validation row as npz; None where the metric is no mean over rows."""
    from pipeline.readiness.comparison import row_losses
    from pipeline.tuning.validation_rows import to_bytes

    task, outputs = fit_result.task, evaluation.outputs
    if outputs is None or task.metric.needs == "step":
        return None
    losses = row_losses(task.metric, evaluation.targets, task.metric_inputs(outputs, data.val.y))
    return to_bytes(losses[0], data.val.row_metadata.groups) if losses else None


def _save_artifacts(ctx: PhaseContext, fit_result: Fit, comparisons: Comparisons) -> dict[str, Artifact]:
    """Save the history, the losses of validation rows, the learning curve and, for classes, the confusion matrix."""
    report = comparisons.classes
    saved = {"history": _save(ctx, ctx.folder / "history.npz", fit_result.history.to_bytes())}
    if comparisons.row_losses is not None:
        saved["row_losses"] = _save(ctx, ctx.folder / "row_losses.npz", comparisons.row_losses)
    figures = {"learning_curve": plots.learning_curve(fit_result.history)}
    if report["per_class"]:
        path = ctx.folder / "confusion_matrix.json"
        files.write_json(path, report)
        saved[path.name] = ctx.artifact(path)
    if report["matrix"] is not None:
        figures["confusion_matrix"] = plots.confusion_matrix(report["matrix"], report["classes"])
    for name, figure in figures.items():
        for suffix, content in figure.items():
            path = ctx.folder / f"{name}.{suffix}"
            saved[name if suffix == "png" else path.name] = _save(ctx, path, content)
    return saved


def _weights_evidence(ctx: PhaseContext, permit: TrainPermit, fit_result: Fit) -> dict[str, Any]:
    """Return what the checkpoint says of the training, the digest of the weights on disk, and the candidate."""
    from pipeline.checkpoints.generation import WEIGHTS
    from pipeline.checkpoints.generation import load as load_weights
    from pipeline.checkpoints.weights import weights_digest

    assert fit_result.checkpoint is not None
    score = asdict(fit_result.score) if fit_result.score else None
    weights, state = load_weights(fit_result.checkpoint)
    return {
        "trained": {
            "plan": state["plan_digest"],
            "seed": state["seed"],
            "steps": fit_result.steps,
            "stopped": fit_result.stop_reason,
            "weights": fit_result.weights_digest,
        },
        "weights_on_disk": weights_digest(weights),
        "candidate": {
            "weights": fit_result.weights_digest,
            "checkpoint": ctx.run.relative(fit_result.checkpoint),
            "file": plain(ctx.artifact(fit_result.checkpoint / WEIGHTS)),
            "job": Job(permit.plan.digest, "baseline").to_json(),
            "score": score,
        },
    }


def _log_profile(ctx: PhaseContext, history: History) -> None:
    """Print where the time of the profiled steps went, if a callback profiled some."""
    for event in (event for event in history.events if event["kind"] == "profile"):
        from pipeline.callbacks.step_profile import lines

        for line in lines(event):
            ctx.log(line)


def _format_trivial(fit_result: Fit, target: float) -> str:
    """Return the bar and its constant, and that the target says nothing where the constant reaches it."""
    baseline, score = fit_result.baseline_score, fit_result.score
    line = f"trivial baseline {baseline['value']:.4g} ({baseline['how']})"
    if score is not None and replace(score, value=baseline["value"]).reaches(target):
        line += f", which reaches the target {target:.4g}: choose another metric or target"
    return line


def run(ctx: PhaseContext) -> Evidence:
    """What does the planned training reach on validation, compared with the trivial baseline?"""
    from pipeline.data.load import load
    from pipeline.engine.fit import fit
    from pipeline.sanity_checks.run_checks import add_facts

    permit = ctx.train_permit()
    with announced(ctx.log, "baseline: reading the data"):
        data = load(ctx.config, ctx.trust)
    with announced(ctx.log, "baseline: sanity checks, in at most a tenth of trainer.max_minutes"):
        checks, inspections = _run_sanity_checks(ctx, permit, data)
    observers = [*_watch(ctx), *ctx.progress("baseline")]
    fit_result = fit(permit, Job(permit.plan.digest, "baseline"), observers, data=data, folder=ctx.folder)
    history = fit_result.history
    add_facts(history, checks)
    _log_profile(ctx, history)
    _record_time_limit(ctx, fit_result)
    first_nonfinite = _find_first_nonfinite(ctx, fit_result, data)
    comparisons = _compare(ctx, permit, fit_result, data)
    report = comparisons.classes
    artifacts = _save_artifacts(ctx, fit_result, comparisons)
    score = asdict(fit_result.score) if fit_result.score else None
    ctx.log(
        f"baseline: {_format_score(fit_result)}; {_format_trivial(fit_result, float(ctx.config['task']['target']))}"
    )
    return Evidence(
        {
            "plan": permit.plan.digest,
            "seed": permit.plan.seed,
            "classes": len(report["classes"]) if report["matrix"] is not None else None,
            "rows": {"val": len(data.val)},
            "loss_at_init": history.facts.get("loss_at_init"),
            "loss_expected": history.facts.get("loss_expected"),
            "sanity_checks": checks,
            "inspections": inspections.to_json(),
            "first_nonfinite": first_nonfinite,
            "trivial_baseline": dict(fit_result.baseline_score),
            "score": score,
            "per_class": report["per_class"],
            "worst_pairs": report["worst_pairs"],
            "baseline_models": comparisons.baseline_models,
            "cross_validation": comparisons.cross_validation,
            "warnings": comparisons.warnings,
            **_weights_evidence(ctx, permit, fit_result),
            "branch": _branch_inputs(ctx, fit_result),
        },
        units={"loss_at_init": "loss", "loss_expected": "loss"},
        artifacts=artifacts,
    )
