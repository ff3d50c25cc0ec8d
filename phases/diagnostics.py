"""Diagnostics: why does the run miss its target, what is the evidence, and which changes would fix it?

Needs the history of the last training that needs an explanation. Without a history it still runs, with lower
confidence. Produces `diagnosis.json` and `incident.md`. Trains nothing.
"""

from __future__ import annotations

from pathlib import Path

from diagnostics.diagnose import diagnose
from diagnostics.playbook import names
from pipeline.history import History
from pipeline.orchestration.phase import PhaseContext
from pipeline.results import Evidence, plain
from pipeline.run_store import files
from pipeline.run_store.job import Job


def _training_to_explain(ctx: PhaseContext) -> tuple[Path | None, dict]:
    """Return the history and the config of the last insufficient training: optimization's, else the baseline's."""
    config = dict(ctx.config)
    if ctx.round > 1:
        training = ctx.evidence_of("optimization")["subject_training"]
        return ctx.run.path / training["history"], Job.from_json(training["job"]).config(config)
    # A stale baseline was trained on an older revision of the plan, so it does not explain this one.
    if "baseline" not in ctx.state.finished or ctx.state.stale("baseline"):
        return None, config
    return ctx.artifact_of("baseline", "history"), config


def run(ctx: PhaseContext) -> Evidence:
    """Which symptoms does the history show, which causes explain them, and which changes are worth a trial?"""
    path, config = _training_to_explain(ctx)
    history = History.load(path) if path else History()
    diagnosis = diagnose(history, config, round=ctx.round)
    record = diagnosis.to_json()
    document, page = ctx.folder / "diagnosis.json", ctx.folder / "incident.md"
    files.write_json(document, record)
    files.write_text(page, diagnosis.incident())
    if record["root_causes"]:
        ctx.log("diagnostics: possible causes with confidence")
    else:
        ctx.log(f"diagnostics: not decided, no cause is named: {record['confidence_statement']}")
        ctx.log("  what would decide: " + "; ".join(record["would_decide"]))
    for cause in record["root_causes"][:3]:
        evidence = cause["evidence"][0] if cause["evidence"] else "no supporting measurement"
        ctx.log(f"  {cause['confidence']:.2f}  {cause['issue']}: {evidence}")
    return Evidence(
        {
            "history": ctx.run.relative(path) if path else None,
            "playbooks": names(),
            "evaluated_playbooks": diagnosis.evaluated,
            "diagnosis": plain(record),
        },
        artifacts={"diagnosis": ctx.artifact(document), "incident": ctx.artifact(page)},
    )
