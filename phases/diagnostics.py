"""Diagnostics: why is the run not good enough, by what evidence, and what would mend it?

Needs the history of the last training that asks for an explanation (none is fine: less evidence lowers confidence).
Produces `diagnosis.json` and `incident.md`. Trains nothing.
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


def subject(ctx: PhaseContext) -> tuple[Path | None, dict]:
    """The history to be explained and its config: the last insufficient training's, else the baseline's."""
    config = dict(ctx.config)
    if ctx.round > 1:
        found = ctx.evidence_of("optimization")["subject_training"]
        return ctx.run.path / found["history"], Job.from_json(found["job"]).config(config)
    if "baseline" not in ctx.state.finished or ctx.state.stale("baseline"):
        return None, config
    return ctx.artifact_of("baseline", "history"), config


def run(ctx: PhaseContext) -> Evidence:
    """Which symptoms does the history show, which causes explain them, and which changes are worth a trial?"""
    path, config = subject(ctx)
    history = History.load(path) if path else History()
    found = diagnose(history, config, round=ctx.round)
    document, page = ctx.folder / "diagnosis.json", ctx.folder / "incident.md"
    files.write_json(document, found.to_json())
    files.write_text(page, found.incident())
    for cause in found.to_json()["root_causes"][:3]:
        ctx.log(f"  {cause['confidence']:.2f}  {cause['issue']}: {cause['evidence'][0] if cause['evidence'] else ''}")
    return Evidence(
        {
            "history": ctx.run.relative(path) if path else None,
            "playbooks": names(),
            "judged": found.judged,
            "diagnosis": plain(found.to_json()),
        },
        artifacts={"diagnosis": ctx.artifact(document), "incident": ctx.artifact(page)},
    )
