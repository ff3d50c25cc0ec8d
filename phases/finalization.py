"""Finalization: is the candidate, in the formats that others will run, ready for release?

Needs a sufficient candidate (or a waived branch). Trains its job on several seeds and freezes the median, evaluates it
once on the sealed test rows, measures its robustness, repeats its training, exports it, compares the exported files
with it and serves them, and writes the bundle with its documents that the owner signs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import Refused, fault
from pipeline.orchestration.frozen_candidate import freeze_candidate
from pipeline.orchestration.phase import PhaseContext
from pipeline.readiness.subject import Subject
from pipeline.results import Artifact, Evidence, digest, plain
from pipeline.run_store import files, permits
from pipeline.run_store.job import Job
from pipeline.run_store.ledger import read_recorded_json
from pipeline.run_store.records import CandidateRecord, ScoreRecord
from pipeline.run_store.state import fold
from pipeline.runtime.announce import announced

if TYPE_CHECKING:
    from pipeline.data.dataset import Data
    from pipeline.documents.write import Release
    from pipeline.export.served_model import ServedModel
    from pipeline.readiness.calibration import Calibration
    from pipeline.readiness.on_test import TestMeasurements


@dataclass(frozen=True)
class ExportedFiles:
    """The exported files by name, the parity of every format, or its error, and the module that was exported."""

    paths: dict[str, Path]
    parity: dict[str, object]
    served: ServedModel


def _load_candidate(ctx: PhaseContext, record: CandidateRecord, data: Data) -> Subject:
    """Return the candidate with its weights. Raises Refused when the checkpoint has other weights than recorded."""
    from pipeline.building.builder import build_model, build_training_task
    from pipeline.checkpoints.generation import load
    from pipeline.checkpoints.weights import weights_digest

    config = Job.from_json(record["job"]).config(ctx.config)
    model = build_model(config, ctx.trust, seed=0, data=data)  # any seed: the weights are loaded below
    weights, _ = load(ctx.run.path / record["checkpoint"])
    if weights_digest(weights) != record["weights"]:
        do = f"python -m pipeline verify {ctx.run.argument}"
        raise Refused(fault(record["checkpoint"], "has other weights than the candidate", do=do))
    model.load_state_dict(weights)
    task = build_training_task(config, model, ctx.trust, column_targets=data.column_targets)
    assert ctx.plan is not None
    return Subject(model.eval(), task, data, config, record["weights"], ctx.plan.seed, ctx.trust)


def _on_test(ctx: PhaseContext, candidate: Subject, fitted: Calibration) -> tuple[ScoreRecord, TestMeasurements]:
    """Return score and measurements on the sealed rows: made once per candidate, then read from ledger and file."""
    from pipeline.data import test_openings
    from pipeline.evaluation.evaluate import evaluate_test
    from pipeline.readiness import on_test

    assert ctx.plan is not None
    # The target is left out: with a new target the same score is compared again, not measured again.
    task = digest({key: value for key, value in candidate.config["task"].items() if key != "target"})
    about = {"candidate": candidate.weights, "digest": candidate.data.test.digest, "task": task}
    records = [e["data"] for e in ctx.ledger.entries if e["kind"] == "test.scored"]
    records = [record for record in records if about.items() <= record.items()]
    if not records:
        references = on_test.fit_references(
            candidate, float(ctx.config["phases"]["baseline"]["baseline_model_seconds"])
        )
        # The key is made after its entry in the ledger: no crash leaves rows that were read and not recorded.
        rows, budget = candidate.data.test.digest, _max_candidates(ctx)
        register = partial(test_openings.record, ctx.run, rows, budget=budget)
        key = permits.test(ctx.run, ctx.ledger, rows, register)
        test, evaluation = evaluate_test(candidate.model, candidate.data.test, key, candidate.task, candidate.seed)
        measured = on_test.measure_on_test(candidate, test, evaluation, fitted, references)
        folder = files.folder(ctx.folder / "test") / digest(about)[:12]
        written = on_test.save(folder, measured, test, evaluation)
        record = {**about, "plan": ctx.plan.digest, "score": plain(evaluation.score)}
        record["files"] = {name: plain(ctx.artifact(path)) for name, path in written.items()}
        ctx.ledger.append("test.scored", record)
        records = [record]
    score: ScoreRecord = records[-1]["score"]
    files.write_json(ctx.folder / "test_score.json", {**about, "score": score})  # for people; only written
    content = read_recorded_json(ctx.run.path, records[-1]["files"]["measurements"])
    if content is None:
        do = "restore it from a copy, or start a new run: python -m pipeline phase=auto run.name=NAME"
        what = "is not the file that the ledger recorded, and the test rows are not read again"
        raise Refused(fault(records[-1]["files"]["measurements"]["path"], what, do=do))
    return score, on_test.load(content)


def _max_candidates(ctx: PhaseContext) -> int | None:
    """Return how many models may be scored on the same test rows, by the plan; None where it sets no limit."""
    assert ctx.plan is not None
    items = {item["id"]: item for item in ctx.plan.checklists["finalization"]}
    limit = items.get("test_opened_once", {}).get("with", {}).get("max_candidates")
    return None if limit is None else int(limit)


def _export(ctx: PhaseContext, candidate: Subject, fitted: Calibration) -> ExportedFiles:
    """Export the served graph in every declared format, prove each file on validation rows, and record the files."""
    from pipeline.export.formats import export_formats
    from pipeline.export.parity import ValidationMetric
    from pipeline.export.served_model import ServedModel
    from pipeline.runtime.seeds import derive

    folder = files.folder(ctx.folder / "export")
    val, names = candidate.data.val, candidate.data.class_names
    served = ServedModel(candidate.model, candidate.task, fitted.temperature, fitted.half_width, names).eval()
    results = export_formats(
        permits.export(ctx.run),
        served,
        val.X,
        folder,
        formats=ctx.config["export"]["formats"],
        seed=derive(candidate.seed, "parity"),
        metric=ValidationMetric(candidate.task, val.y),
    )
    exports = ExportedFiles({}, {}, served)
    for name, result in results.items():
        exports.parity[name] = result.evidence()
        if result.exported is not None:
            path = result.exported.path
            exports.paths[path.name] = path
            about = {"phase": "finalization", "round": ctx.round, "form": name, "file": ctx.artifact(path)}
            ctx.ledger.append("export.written", about)
        ctx.log(f"finalization: {result.summary(name)}")
    return exports


def _release(
    ctx: PhaseContext, candidate: Subject, contents: Mapping[str, object], measured: dict[str, object]
) -> Release:
    """Return what the documents are made from."""
    from pipeline.documents.dossier import inputs_of
    from pipeline.documents.write import Release
    from pipeline.supply_chain.distributions import components
    from pipeline.supply_chain.provenance import commit_of

    assert ctx.plan is not None
    inputs = inputs_of(ctx.run, ctx.ledger.entries, ctx.state, candidate.config, ctx.evidence_of("planning"))
    inputs |= {"weights": candidate.weights, "files": sorted(contents), "commit": commit_of(Path.cwd())}
    model_files = {name: path for name, path in contents.items() if name.startswith(("model.", "weights."))}
    subjects = {name: files.sha256(path) for name, path in model_files.items() if isinstance(path, Path)}
    return Release(ctx.plan, measured, inputs, subjects, components())


def _write_bundle(
    ctx: PhaseContext, exports: ExportedFiles, candidate: Subject, checkpoint: str, measured: dict[str, object]
) -> dict[str, object]:
    """Write the payload with its documents; return the rest of the evidence: documents, dependencies, bundle.

    The report in the payload has the outcome of the payload's own layout. Where that is not faultless, as the first
    report says, both are written again.
    """
    from pipeline.documents.write import write
    from pipeline.release.bundle import bundle_digest, check_layout, scripts, write_payload

    assert ctx.state.plan is not None and ctx.judge is not None
    contents: dict[str, bytes | Path] = {
        **exports.paths,
        "weights.safetensors": ctx.run.inside(checkpoint, "weights.safetensors"),
        "plan.yaml": ctx.run.path / ctx.state.plan["file"],
        **scripts(),
    }
    release = _release(ctx, candidate, contents, measured)
    faults: list[str] = []
    for _ in range(2):
        documents = write(release._replace(measured={**measured, "bundle_faults": faults}), ctx.judge)
        payload = write_payload(permits.export(ctx.run), {**contents, **documents.contents})
        layout_faults = check_layout(payload)
        if layout_faults == faults:
            break
        faults = layout_faults
    return {**documents.evidence, "subject": bundle_digest(payload), "bundle_faults": faults}


def _serve(ctx: PhaseContext, candidate: Subject, exports: ExportedFiles, score: ScoreRecord) -> dict[str, object]:
    """Add the files that the payload is served and monitored with; return how they serve, and how the monitor does."""
    from pipeline.drift import rehearsal
    from pipeline.serving.package import package

    folder = ctx.folder / "export"
    paths, evidence = package(candidate, folder, exports.served)
    monitor, rehearsed = rehearsal.measure(candidate, folder, score)
    exports.paths.update({**paths, **monitor})
    evidence["drift_monitor"] = plain(rehearsed)
    files.write_json(ctx.folder / "sandbox.json", evidence["sandbox_serve"])  # the transcript, for people
    return evidence


def _artifacts(ctx: PhaseContext, exports: ExportedFiles) -> dict[str, Artifact]:
    """Return the files that this phase produced: the exports, the payload's manifest, and a copy of the score."""
    from pipeline.release.bundle import MANIFEST

    written = {
        **exports.paths,
        "manifest": ctx.run.inside("bundle", "payload", MANIFEST),
        "test_score": ctx.folder / "test_score.json",
        "sandbox": ctx.folder / "sandbox.json",
    }
    return {name: ctx.artifact(path) for name, path in written.items()}


def _count_openings(ctx: PhaseContext, candidate: str, rows: str) -> dict[str, object]:
    """Return how often the rows were opened for the candidate, how many candidates of this run opened any test rows,
    and which models and runs of the root were scored on these rows before the candidate.
    """
    from pipeline.data import test_openings

    opened = fold(ctx.ledger.entries).test_opened
    own = [o for o in opened if (o["candidate"], o.get("digest")) == (candidate, rows)]
    on_rows = test_openings.openings(ctx.run.path.parent, rows)
    models = test_openings.models(on_rows)
    earlier = models[: models.index(candidate)] if candidate in models else models
    return {
        "openings_for_candidate": len(own),
        "candidates_that_opened": len({o["candidate"] for o in opened}),
        "models_before": len(earlier),
        "runs_before": test_openings.runs([opening for opening in on_rows if opening["candidate"] in earlier]),
    }


def _replay(ctx: PhaseContext, frozen: CandidateRecord) -> dict[str, object]:
    """Train the frozen candidate once more in a fresh process, as far as the time allows."""
    from pipeline.trials.replay_training import replay_training

    assert ctx.plan is not None
    seconds, threads = float(ctx.settings["replay_seconds"]), int(ctx.plan.facts["threads"])
    job, recorded = Job.from_json(frozen["job"]), ctx.run.path / frozen["checkpoint"]
    with announced(ctx.log, "finalization: the released training is repeated in a fresh process"):
        replay = replay_training(
            job, frozen["weights"], recorded.parent.parent, ctx.folder / "replay", seconds=seconds, threads=threads
        )
    return dict(replay)


def _regressions(ctx: PhaseContext, candidate: Subject) -> dict[str, object]:
    """Compare the candidate with the model in use, from its released file, and on the rows of earlier tasks."""
    from pipeline.export.runners import load_onnx
    from pipeline.readiness import regression
    from pipeline.release import registry

    root, name = ctx.run.path.parent, registry.model_name(ctx.state)
    champion = registry.champion(root, name)
    payload = registry.payload_of(root, champion) if champion else None
    if champion is None or payload is None:
        lost = f"the payload of the model in use, {champion['subject'][:12]}, is missing or changed" if champion else ""
        return {"compared": regression.measure(candidate, None), "lost": lost}
    answers = regression.released_model(load_onnx(payload / "model.onnx"))
    called = f"release {champion['subject'][:12]} of {champion['run']}"
    return {"compared": regression.measure(candidate, answers, called), "lost": ""}


def _lineage(ctx: PhaseContext, weights: str) -> dict[str, object]:
    """Return the origin of the model, as digests and values."""
    from pipeline.documents.dossier import origin_of

    assert ctx.plan is not None
    return {
        "plan": ctx.plan.digest,
        "data": {split: facts["digest"] for split, facts in ctx.plan.facts["splits"].items()},
        "weights": weights,
        "seed": ctx.plan.seed,
        "environment": ctx.plan.facts["environment"],
        "determinism": ctx.plan.facts.get("determinism"),
        "ledger": origin_of(ctx.ledger.entries, ctx.state)["hash"],
        "trust": [{k: v for k, v in grant.items() if k != "signature"} for grant in ctx.state.trust],
    }


def run(ctx: PhaseContext) -> Evidence:
    """Is the frozen candidate good, robust, reproducible, and the same in every exported file?"""
    from pipeline.data.analysis.leakage import shared_fractions
    from pipeline.data.load import load
    from pipeline.readiness import adversarial, calibration, corruption
    from pipeline.readiness.generalization import measure_generalization
    from pipeline.readiness.population import measure_population
    from pipeline.release.registry import model_name
    from pipeline.release.rollback_rehearsal import rehearse

    assert ctx.plan is not None
    frozen = freeze_candidate(ctx)
    data = load(ctx.config, ctx.trust)
    candidate = _load_candidate(ctx, frozen, data)
    fitted = calibration.fit(candidate)  # on validation rows, before the test rows are opened
    score, on_test = _on_test(ctx, candidate, fitted)
    exports = _export(ctx, candidate, fitted)
    measured: dict[str, object] = {
        "candidate": {key: frozen[key] for key in ("weights", "checkpoint", "file", "job", "score")},
        "seed_stability": frozen["stability"],
        "test_score": score,
        "population_covered": measure_population(candidate, on_test["shift"]),
        "generalization_gap": measure_generalization(candidate),
        **{name: on_test[name] for name in ("beats_baseline", "calibration", "slices")},  # type: ignore[literal-required]
        "planned_digests": {split: facts["digest"] for split, facts in ctx.plan.facts["splits"].items()},
        "digests": {split: facts["digest"] for split, facts in data.facts().items()},
        "shared_fraction": shared_fractions(data),
        **_count_openings(ctx, candidate.weights, data.test.digest),
        "lineage": _lineage(ctx, candidate.weights),
        "parity": exports.parity,
        "corruption": corruption.measure(candidate),
        "adversarial": adversarial.measure(candidate),
        "no_regression": _regressions(ctx, candidate),
        "reproducible": _replay(ctx, frozen),
        "rollback": rehearse(ctx.run.path.parent, model_name(ctx.state), ctx.run.name, ctx.folder / "rollback"),
        **_serve(ctx, candidate, exports, score),
    }
    measured |= _write_bundle(ctx, exports, candidate, frozen["checkpoint"], measured)
    subject = measured["subject"]
    ctx.log(f"finalization: {score['metric']} {score['value']:.4g} on the sealed test rows, bundle {str(subject)[:12]}")
    return Evidence(measured, artifacts=_artifacts(ctx, exports))
