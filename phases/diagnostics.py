"""Diagnostics: why does the run miss its target, what is the evidence, and which changes would fix it?

Needs the history of the last training that needs an explanation. Without a history it still runs, with lower
confidence. Where the plan has a seed and its rows can be read, it states hypotheses and tests them by controlled
experiments, which can never become candidates. Produces `diagnosis.json` and `incident.md`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diagnostics.diagnose import MAX_DECIDING, diagnose
from diagnostics.diagnosis import Diagnosis, Incident
from diagnostics.playbook import names
from pipeline.errors import Refused, relative_path
from pipeline.experiments.arms.arm import Arm
from pipeline.experiments.arms.difference import LastGood, last_good
from pipeline.experiments.explain import Explanation, Training, explain
from pipeline.experiments.worker_process import warm_worker
from pipeline.history import WARNING, History
from pipeline.inspection.finding import Finding, Inspections, telling_feature
from pipeline.orchestration.phase import PhaseContext
from pipeline.repair.diagnosis_record import DiagnosisRecord
from pipeline.results import Artifact, Evidence, plain
from pipeline.run_store import files
from pipeline.run_store.job import Delta, Job
from pipeline.runtime.announce import announced
from pipeline.trials.executor import parallel_jobs

EXPERIMENTS = "experiments"  # the folder of the round's experiments
HONESTY = ("data_leakage",)  # causes that a score above the target does not rule out, and experiments judge
ENVIRONMENT = ("python", "torch", "numpy", "platform", "device", "threads")  # facts of the plan
MAX_WARNINGS = 5  # that the page lists
MAX_CONSIDERED = 6  # causes besides those that are named, whose removal is tried


@dataclass(frozen=True)
class Intake:
    """What the records have of the training to explain; `history` is None where nothing was trained."""

    path: Path | None
    history: History
    config: dict[str, Any]
    change: Delta
    evidence: Mapping[str, Any]
    last_good: LastGood | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the inspections of the baseline found."""
        return Inspections.from_json(self.evidence.get("inspections") or {}).findings


def _intake(ctx: PhaseContext) -> Intake:
    """Return the last insufficient training, optimization's or else the baseline's, and the baseline's evidence."""
    config = dict(ctx.config)
    # A stale baseline was trained on an older revision of the plan, so it does not explain this one.
    if "baseline" not in ctx.state.finished or ctx.state.stale("baseline"):
        return Intake(None, History(), config, Delta(), {})
    evidence, path, change = ctx.evidence_of("baseline"), ctx.artifact_of("baseline", "history"), Delta()
    if training := ctx.earlier_training():
        job = Job.from_json(training["job"])
        path, config, change = ctx.run.path / training["history"], job.config(config), job.delta
    earlier = last_good(ctx.run, ctx.state, ctx.plan, config) if ctx.plan else None
    if earlier and earlier.changes:
        ctx.log(f"  changed since the last good training ({earlier.name}): {'; '.join(earlier.format_changes())}")
    return Intake(path, History.load(path), config, change, evidence, earlier)


def _training(ctx: PhaseContext, intake: Intake) -> Training:
    """Return the training as the experiments need it."""
    assert ctx.plan is not None
    models = intake.evidence.get("baseline_models") or []
    trivial = intake.evidence.get("trivial_baseline") or {}
    return Training(
        plan_digest=ctx.plan.digest,
        config=intake.config,
        base=intake.change,
        history=intake.history,
        max_steps=int(ctx.plan.facts["budget"]["max_steps"]),
        trivial=float(trivial["value"]) if "value" in trivial else None,
        reference_scores={model["name"]: float(model["value"]) for model in models if "value" in model},
        telling_feature=telling_feature(intake.findings),
        last_good=intake.last_good,
        stated_slice=next((h["slice_steps"] for h in _hypotheses(ctx) if "slice_steps" in h), None),
    )


def _why_no_experiments(ctx: PhaseContext, intake: Intake) -> str | None:
    """Return why nothing is experimented on; None where experiments can explain something."""
    if not ctx.settings.get("experiments", True):
        return "phases.diagnostics.experiments is false"
    try:
        ctx.probe_permit()
    except Refused as refusal:
        return refusal.faults[0]
    doubted = {finding.cause for finding in intake.findings} & set(HONESTY)
    if intake.path is not None and _training(ctx, intake).reaches_target and not doubted:
        return "the training reaches its target, so that nothing is missing that an experiment could restore"
    return None


def _suspects(diagnosis: Diagnosis) -> list[str]:
    """Return the causes that playbooks and inspections speak for, in the order of the diagnosis."""
    named = [cause.issue for cause in diagnosis.root_causes]
    considered = [c.issue for c in diagnosis.considered if c.status != "refuted" and c.evidence]
    return [*named, *considered[:MAX_CONSIDERED]]


def _experiment(ctx: PhaseContext, intake: Intake, suspects: Sequence[str]) -> Explanation:
    """Test the suspected causes by experiments; what was tried before and has a result is not trained again."""

    training = _training(ctx, intake)

    def state_hypotheses(arms: Sequence[tuple[Arm, float]]) -> None:
        # A round that an earlier version began has hypotheses without the length of a slice.
        stated = [{"slice_steps": training.slice_steps, **hypothesis} for hypothesis in _hypotheses(ctx)]
        for arm, cost in arms:
            hypothesis = plain(_hypothesis(ctx, arm, cost, training.slice_steps))
            if hypothesis not in stated:
                ctx.ledger.append("hypothesis.stated", hypothesis)

    parallel = parallel_jobs(ctx.settings.get("parallel", "auto"), 1)
    with (
        announced(ctx.log, f"diagnostics: controlled experiments, {parallel} at a time"),
        warm_worker(ctx.folder / EXPERIMENTS, parallel) as worker,
    ):
        return explain(training, worker, suspects, state_hypotheses, ctx.log)


def _hypotheses(ctx: PhaseContext) -> list[dict[str, Any]]:
    """Return what the ledger states of arms under this plan, in any round."""
    assert ctx.plan is not None
    stated = [entry["data"] for entry in ctx.ledger.entries if entry["kind"] == "hypothesis.stated"]
    return [hypothesis for hypothesis in stated if hypothesis["plan"] == ctx.plan.digest]


def _hypothesis(ctx: PhaseContext, arm: Arm, cost: float, slice_steps: int) -> dict[str, Any]:
    """Return what the ledger states of an arm before it is trained; `cost` is in slices of so many steps."""
    assert ctx.plan is not None
    return {
        "round": ctx.round,
        "plan": ctx.plan.digest,
        "id": arm.id,
        "causes": arm.causes,
        "change": arm.change,
        "delta": arm.delta,
        "expected": f"without {' or '.join(arm.causes)} the run reaches its goal" if arm.causes else arm.expected,
        "success": arm.expected,
        "failure": "less than a tenth of that",
        "cost": round(cost, 3),
        "slice_steps": slice_steps,
    }


def _log_chain(ctx: PhaseContext, record: DiagnosisRecord, explanation: Explanation) -> None:
    """Print the chain from symptom to verdict, then the causes with their confidence."""
    for symptom in record["symptoms"]:
        seen = "; ".join(f"{o['signal']} {float(o['value']):.3g} ({o['bound']})" for o in symptom["observations"])
        ctx.log(f"  symptom {symptom['id']}: {seen}")
    tried = [result for result in explanation.results if result.causes]
    for result in sorted(tried, key=lambda result: -(result.restored or 0.0)):
        ctx.log(f"  {result.verdict:<12} {', '.join(result.causes)}: {result.change}; {result.why}")
    if record["root_causes"]:
        ctx.log("diagnostics: causes with confidence")
    else:
        _log_undecided(ctx, record)
    for cause in record["root_causes"][:3]:
        evidence = cause["evidence"][0] if cause["evidence"] else "no supporting measurement"
        ctx.log(f"  {cause['confidence']:.2f}  {cause['issue']} ({cause['status']}): {evidence}")


def _log_undecided(ctx: PhaseContext, record: DiagnosisRecord) -> None:
    """Print why no cause is named and what would decide it, one to a line; the page has what does not fit a screen."""
    short, *_ = re.split(r" (?=Contradicted by measurements: |Not decided, because )", record["confidence_statement"])
    ctx.log(f"diagnostics: not decided, no cause is named: {short}")
    first, *others = record["would_decide"][:MAX_DECIDING]
    lines = [f"  what would decide: {first}"] if not others else ["  what would decide:", f"  - {first}"]
    for line in (*lines, *(f"  - {what}" for what in others)):
        ctx.log(line)
    more = len(record["would_decide"]) - MAX_DECIDING
    if more > 0:
        ctx.log(f"  and {more} more, with what was ruled out: {relative_path(ctx.folder / 'incident.md')}")


def _intake_lines(ctx: PhaseContext, intake: Intake) -> tuple[str, ...]:
    """Return the environment, what changed since the last good training, and the warnings of the training."""
    assert ctx.plan is not None
    known = ctx.plan.facts.get("environment") or {}
    named = [f"{name} {known[name]}" for name in ENVIRONMENT if name in known]
    lines = [f"environment: {', '.join(named)}"] if named else []
    if (good := intake.last_good) is None:
        lines.append("no earlier training reached its target on these rows, neither of this run nor of one beside it")
    elif good.changes:
        lines.append(f"changed since the last good training ({good.name}): {'; '.join(good.format_changes())}")
    else:
        lines.append(f"nothing that trains changed since the last good training ({good.name})")
    warnings = [event for event in intake.history.events if event["kind"] == WARNING]
    lines += [f"warning at step {event['step']}: {event['message']}" for event in warnings[:MAX_WARNINGS]]
    if len(warnings) > MAX_WARNINGS:
        lines.append(f"{len(warnings) - MAX_WARNINGS} more warnings")
    return tuple(lines)


def _incident(ctx: PhaseContext, intake: Intake, explanation: Explanation) -> Incident:
    """Return what the page says of the run: score and constraints, owner, and the commands that repeat the training."""
    task, plan = ctx.config["task"], ctx.config.get("plan") or {}
    where = f"run.root={shlex.quote(str(ctx.run.path.parent))} run.name={ctx.run.path.name}"
    return Incident(
        subject=f"run {ctx.run.path.name}, round {ctx.round}",
        constraints=(
            f"the target stays: {task['metric']} {task['target']} on validation",
            "rows and splits stay as the plan has frozen them; the test split stays sealed",
        ),
        intake=_intake_lines(ctx, intake),
        reproduced=explanation.reproduction["why"] if explanation.reproduction else "",
        commands=(f"python -m pipeline phase=baseline {where}", f"python -m pipeline phase=diagnostics {where}"),
        owner=str(plan.get("owner") or ""),
        rollback="A fix is a set of overrides of the frozen plan. Nothing is adopted here, so there is nothing to undo "
        "yet; an adopted fix is undone by planning again without its overrides.",
    )


def _stated(ctx: PhaseContext) -> list[str]:
    """Return the ids of the hypotheses that the ledger has of this round and plan."""
    return sorted({hypothesis["id"] for hypothesis in _hypotheses(ctx) if hypothesis["round"] == ctx.round})


def _metrics_per_split(history: History) -> dict[str, list[str]]:
    """Return the names of the losses and metrics of each split that the history has."""
    names = [name for name in history.names() if name.startswith(("train/", "val/"))]
    return {split: [name for name in names if name.startswith(f"{split}/")] for split in ("train", "val")}


def _artifacts(ctx: PhaseContext, document: Path, page: Path, explanation: Explanation) -> dict[str, Artifact]:
    artifacts = {"diagnosis": ctx.artifact(document), "incident": ctx.artifact(page)}
    return artifacts | ({"profile": ctx.artifact(explanation.trace)} if explanation.trace else {})


def run(ctx: PhaseContext) -> Evidence:
    """Which symptoms does the history show, which causes explain them, and which changes are worth a trial?"""
    intake = _intake(ctx)
    suspected = diagnose(intake.history, intake.config, intake.findings, round=ctx.round)
    suspects = _suspects(suspected)
    why = _why_no_experiments(ctx, intake)
    explanation = Explanation(not_checked=({"what": "controlled experiments", "why": why},)) if why else None
    explanation = explanation or _experiment(ctx, intake, suspects)
    diagnosis = diagnose(intake.history, intake.config, intake.findings, explanation.results, ctx.round)
    known = {gap["what"] for gap in explanation.not_checked}
    others = [gap for gap in diagnosis.not_checked if gap["what"] not in known]
    diagnosis = replace(diagnosis, not_checked=(*others, *explanation.not_checked))
    record = diagnosis.to_json()
    document, page = ctx.folder / "diagnosis.json", ctx.folder / "incident.md"
    files.write_json(document, record)
    files.write_text(page, diagnosis.incident(_incident(ctx, intake, explanation)))
    _log_chain(ctx, record, explanation)
    return Evidence(
        {
            "history": ctx.run.relative(intake.path) if intake.path else None,
            "playbooks": names(),
            "evaluated_playbooks": diagnosis.evaluated,
            "diagnosis": plain(record),
            "experiments": [result.to_json() for result in explanation.results],
            "reproduction": explanation.reproduction,
            "hypotheses": _stated(ctx),
            "metrics_per_split": _metrics_per_split(intake.history),
            "trainings_spent": {"spent": explanation.spent, "allowed": explanation.allowed},
        },
        artifacts=_artifacts(ctx, document, page, explanation),
    )
