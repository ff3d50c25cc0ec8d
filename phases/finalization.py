"""Finalization: has this very model, in the form that others will run, earned its release?

Needs a sufficient candidate (or a waived branch). Opens the sealed test rows once, exports the model, proves that the
exported forms answer as the model does, and lays the bundle that the owner signs. Changes nothing about the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import Refused, fault
from pipeline.orchestration.phase import PhaseContext
from pipeline.results import Artifact, Evidence, digest, plain
from pipeline.run_store import files, permits
from pipeline.run_store.job import Job
from pipeline.run_store.state import fold

if TYPE_CHECKING:
    from torch import nn

    from pipeline.data.dataset import Data


def _model(ctx: PhaseContext, candidate: Mapping[str, Any], data: Data) -> tuple[nn.Module, dict[str, Any]]:
    """The candidate with its weights, and the config it was trained by. Raises Refused when the weights are others."""
    from pipeline.building.builder import build_model
    from pipeline.checkpoints.generation import load
    from pipeline.checkpoints.weights import weights_digest

    config = Job.from_json(candidate["job"]).config(ctx.config)
    model = build_model(config, ctx.trust, seed=0, data=data)
    weights, _ = load(ctx.run.path / candidate["checkpoint"])
    if weights_digest(weights) != candidate["weights"]:
        do = f"python -m pipeline verify {ctx.run.name}"
        raise Refused(fault(candidate["checkpoint"], "holds other weights than the candidate's", do=do))
    model.load_state_dict(weights)
    return model.eval(), config


def _test_score(
    ctx: PhaseContext, model: nn.Module, config: Mapping[str, Any], data: Data, weights: str
) -> dict[str, Any]:
    """The score on the sealed rows; measured once per candidate, and read from the ledger ever after."""
    from pipeline.building.builder import build_training_task
    from pipeline.evaluation.evaluate import score_test

    assert ctx.plan is not None
    task = digest({key: value for key, value in config["task"].items() if key != "target"})
    known = {"candidate": weights, "digest": data.test.digest, "task": task}
    scored = [e["data"] for e in ctx.ledger.entries if e["kind"] == "test.scored"]
    scores = [s["score"] for s in scored if known.items() <= s.items()]
    if not scores:
        key = permits.test(ctx.run, ctx.ledger, data.test.digest)
        scoring = build_training_task(config, model, ctx.trust)
        judged = score_test(model, data.test, key, scoring, ctx.plan.seed)
        scores = [plain(judged.score)]
        ctx.ledger.append("test.scored", {**known, "plan": ctx.plan.digest, "score": scores[0]})
    files.write_json(ctx.folder / "test_score.json", {**known, "score": scores[-1]})  # to read, never read back
    return scores[-1]


def _export(ctx: PhaseContext, model: nn.Module, data: Data) -> tuple[dict[str, Any], dict[str, Path]]:
    """Every declared form with its parity on validation rows, or the sentence that says why there is none."""
    from pipeline.release.formats import export_formats

    folder = files.folder(ctx.folder / "export")
    permit = permits.export(ctx.run)
    formats = ctx.config["export"]["formats"]
    proven = export_formats(permit, model, data.val.X, folder, formats=formats)
    parity: dict[str, Any] = {}
    paths: dict[str, Path] = {}
    for name, form in proven.items():
        parity[name] = {"error": form.failure} if form.exported is None else plain(form.parity)
        if form.exported is not None:
            paths[form.exported.path.name] = form.exported.path
            where = {"phase": "finalization", "round": ctx.round}
            ctx.ledger.append("export.written", {**where, "form": name, "file": ctx.artifact(form.exported.path)})
    return parity, paths


def _bundle(ctx: PhaseContext, forms: Mapping[str, Path], checkpoint: str) -> tuple[str, list[str]]:
    """The payload's digest, and what is wrong with its layout."""
    from pipeline.release.bundle import bundle_digest, check_layout, write_payload

    assert ctx.state.plan is not None
    contents: dict[str, bytes | Path] = {
        **forms,
        "weights.safetensors": ctx.run.inside(checkpoint, "weights.safetensors"),
        "plan.yaml": ctx.run.path / ctx.state.plan["file"],
    }
    payload = write_payload(permits.export(ctx.run), contents)
    return bundle_digest(payload), check_layout(payload)


def _artifacts(ctx: PhaseContext, forms: Mapping[str, Path]) -> dict[str, Artifact]:
    """The files that this phase answers for: what was exported, the payload's manifest, the score's readable copy."""
    from pipeline.release.bundle import MANIFEST

    written = {
        **forms,
        "manifest": ctx.run.inside("bundle", "payload", MANIFEST),
        "test_score": ctx.folder / "test_score.json",
    }
    return {name: ctx.artifact(path) for name, path in written.items()}


def _openings(ctx: PhaseContext, candidate: str, rows: str) -> dict[str, int]:
    """How often these test rows were opened for the candidate, and how many candidates opened any."""
    opened = fold(ctx.ledger.entries).test_opened
    mine = [o for o in opened if (o["candidate"], o.get("digest")) == (candidate, rows)]
    return {"openings_for_candidate": len(mine), "candidates_that_opened": len({o["candidate"] for o in opened})}


def _lineage(ctx: PhaseContext, weights: str) -> dict[str, Any]:
    """Where the model comes from, by digests and values."""
    assert ctx.plan is not None
    return {
        "plan": ctx.plan.digest,
        "data": {split: known["digest"] for split, known in ctx.plan.facts["splits"].items()},
        "weights": weights,
        "seed": ctx.plan.seed,
        "environment": ctx.plan.facts["environment"],
        "determinism": ctx.plan.facts.get("determinism"),
        "ledger": ctx.state.head,
        "trust": list(ctx.state.trust),
    }


def run(ctx: PhaseContext) -> Evidence:
    """Does the chosen model keep its promise on rows that nobody has seen, in the forms that will be used?"""
    from pipeline.data.analysis.leakage import shared_fractions
    from pipeline.data.load import load

    assert ctx.plan is not None and ctx.state.candidate is not None
    candidate = ctx.state.candidate
    data = load(ctx.config, ctx.trust)
    model, config = _model(ctx, candidate, data)
    score = _test_score(ctx, model, config, data, candidate["weights"])
    parity, forms = _export(ctx, model, data)
    subject, faults = _bundle(ctx, forms, candidate["checkpoint"])
    ctx.log(f"finalization: {score['metric']} {score['value']:.4g} on the sealed test rows, bundle {subject[:12]}")
    return Evidence(
        {
            "subject": subject,
            "test_score": score,
            "planned_digests": {split: known["digest"] for split, known in ctx.plan.facts["splits"].items()},
            "digests": {split: known["digest"] for split, known in data.facts().items()},
            "shared_fraction": shared_fractions(data),
            **_openings(ctx, candidate["weights"], data.test.digest),
            "lineage": _lineage(ctx, candidate["weights"]),
            "parity": parity,
            "bundle_faults": faults,
        },
        artifacts=_artifacts(ctx, forms),
    )
