"""Runs as the machine records them, written entry by entry: what torch-free readers and exporters are tested with."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from pipeline.history import History
from pipeline.results import PHASES, Evidence
from pipeline.run_store import files
from pipeline.run_store import plan as plans
from pipeline.run_store.gate import Item, utc_today
from pipeline.run_store.ledger import Ledger
from pipeline.run_store.run import Run, opened
from pipeline.run_store.state import fold

LATER = (utc_today() + timedelta(days=30)).isoformat()

CONFIG: dict[str, Any] = {
    "seed": 7,
    "plan": {"owner": "Ada", "purpose": "read digits", "limits": {"latency_ms_p99": 5.0}},
    "task": {"kind": "classification", "metric": "accuracy", "target": 0.95},
    "data": {"_target_": "pipeline.data.digits.digits", "val": 0.2, "test": 0.2},
    "model": {"_target_": "pipeline.models.mlp.MLP", "hidden": [32], "dropout": 0.1},
    "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
    "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 3.0},
    "loader": {"batch_size": 64, "shuffle": True},
    "trainer": {"max_epochs": 3, "threads": 1},
    "tracking": {"uri": None},
}


def gate(ledger: Ledger, phase: str, *items: Item, round: int = 1, finished: bool = True) -> None:
    """The phase ran and its items were judged, in the entries that the machine writes."""
    state = fold(ledger.entries)
    where = {"phase": phase, "round": round}
    if finished:
        ledger.append("phase.started", {**where, "basis": state.basis(phase)})
        evidence = ledger.path.parent / phase / "evidence.json"
        files.write_json(evidence, Evidence({}).to_json())
        file = {"path": f"{phase}/evidence.json", "sha256": files.sha256(evidence)}
        ledger.append("phase.finished", {**where, "evidence": file})
        state = fold(ledger.entries)
    for item in items:
        ledger.append("item.evaluated", {**where, **vars(item)})
    basis = -1 if phase == "planning" else state.basis(phase)
    verdict = {**where, "revision": state.plan["revision"] if state.plan else 1, "basis": basis, "subject": None}
    entry = {"kind": "gate.decided", "data": verdict, "seq": len(ledger.entries), "hash": "", "time": ""}
    now = fold([*ledger.entries, entry])
    ledger.append("gate.decided", {**verdict, "state": now.gate(phase)})


def freeze(run: Run, ledger: Ledger, config: dict[str, Any], changed: dict[str, Any] | None = None) -> None:
    """One more revision of the plan."""
    plan = plans.Plan(len(fold(ledger.entries).revisions) + 1, config, {phase: [] for phase in PHASES}, {"threads": 1})
    path = plans.write(run, plan)
    about = {"revision": plan.revision, "digest": plan.digest, "file": run.relative(path), "changed": changed or {}}
    about |= plans.recorded_facts(plan)
    ledger.append("plan.frozen", about)


def passed(name: str, **more: Any) -> Item:
    return Item(**{"id": name, "ask": f"Is {name.replace('_', ' ')} done?", "outcome": "passed", **more})


def baseline_done(root: Path, name: str = "digits-hot", *, branch: str = "sufficient") -> Run:
    """A run whose first two gates are open, with the branch decided; sufficient ones have a candidate."""
    run = Run.at(root, name)
    with opened(run, experiment="digits") as ledger:
        freeze(run, ledger, CONFIG)
        gate(
            ledger,
            "planning",
            passed("seeds_fixed", waivable=False),
            passed("splits_disjoint", value=0.0, bound=0.0, relation="<="),
        )
        gate(ledger, "baseline", passed("one_batch_overfits", value=0.001, bound=0.05, relation="<="))
        good = branch == "sufficient"
        if good:
            ledger.append("candidate.chosen", {"phase": "baseline", "round": 1, "weights": "f" * 64})
        symptoms = [] if good else ["nan_loss"]
        decided = {"phase": "baseline", "round": 1, "branch": branch, "target": good, "trivial": good}
        because = ledger.append("branch.decided", {**decided, "symptoms": symptoms})["seq"]
        if good:
            for phase in ("diagnostics", "optimization"):
                ledger.append("gate.not_needed", {"phase": phase, "because": because})
            ledger.append("candidate.frozen", {"phase": "finalization", "round": 1, "weights": "f" * 64})
    return run


def history(*, breaks_at: int | None = None) -> History:
    """Five epochs of ten steps; the loss falls, or is NaN from one step on."""
    recorded = History()
    recorded.facts.update(steps_per_epoch=10, target=0.95, trivial=0.1, loss_at_init=2.31)
    for step in range(1, 51):
        broken = breaks_at is not None and step >= breaks_at
        recorded.log_step(step, {"train/loss": float("nan") if broken else 2.3 * 0.9**step + 0.02, "lr": 0.1})
        if step % 10 == 0:
            bad = breaks_at is not None and step >= breaks_at
            accuracy = 0.1 if bad else 1 - 0.9 * 0.6 ** (step / 10)
            recorded.log_epoch(
                step // 10, {"val/loss": float("nan") if bad else 2.0 * 0.93**step + 0.1, "val/accuracy": accuracy}
            )
    return recorded


DIAGNOSIS: dict[str, Any] = {
    "schema": 1,
    "symptoms": [{"id": "nan_loss", "severity": "blocking", "observations": []}],
    "root_causes": [
        {"issue": "learning_rate_too_high", "status": "confirmed", "confidence": 0.93, "basis": "observation",
         "evidence": ["loss ×40 in 3 steps before the first NaN", "a tenth of the rate trains"], "fix": "lower it"},
        {"issue": "clipping_missing", "status": "candidate", "confidence": 0.4, "basis": "inference",
         "evidence": ["gradient norm 1e6"], "fix": "clip"},
    ],
    "quick_wins": ["optimizer.lr=0.003"],
    "recommended_fixes": [
        {"priority": 1, "cause": "learning_rate_too_high", "cure": "lower", "kind": "cure",
         "expected_impact": "the loss stays finite",
         "implementation": {"overrides": {"optimizer.lr": 0.003}, "surgery": [], "code": None}, "verified": None},
        {"priority": 2, "cause": "clipping_missing", "cure": "clip", "kind": "mitigation",
         "expected_impact": "no step above norm 1",
         "implementation": {"overrides": {}, "surgery": [], "code": "clip_grad_norm_(model.parameters(), 1.0)"},
         "verified": None},
    ],
    "experiments": [{"hypothesis": "rate too high", "change": "optimizer.lr=0.3", "expected": "finite",
                     "observed": "finite", "verdict": "confirmed", "restored": 0.97, "seeds": 3,
                     "steps": 100}],
    "not_checked": [{"what": "activations", "why": "the monitor was off"}],
    "confidence_statement": "One run of five epochs; confidence is capped by what was observed.",
}  # fmt: skip


def mended(root: Path, name: str = "digits-hot") -> Run:
    """A run that broke, was explained, mended and stopped at the last gate, with a person's waiver on record."""
    run = baseline_done(root, name, branch="insufficient")
    files.write_bytes(run.inside("baseline", "history.npz"), history(breaks_at=7).to_bytes())
    files.write_json(run.inside("diagnostics", 1, "diagnosis.json"), DIAGNOSIS)
    trial = run.inside("optimization", 1, "trials", "fixed", "history.npz")
    files.write_bytes(trial, history().to_bytes())
    with opened(run) as ledger:
        gate(ledger, "diagnostics", passed("causes_ranked", value=2), passed("experiments_run", value=3, bound=1))
        rows = [
            ("control", "no change", "", 0.1, 0.0, 1.0),
            ("c1", "optimizer.lr=0.003", "learning_rate_too_high", 0.97, 0.87, 0.031),
        ]
        keys = ("id", "change", "cause", "mean", "effect", "p")
        arms = [{**dict(zip(keys, row, strict=True)), "values": [row[3]] * 6, "wins": row[5] < 0.05} for row in rows]
        score = {"split": "val", "metric": "accuracy", "value": 0.972, "low": 0.95, "high": 0.985, "n": 360}
        ledger.append("study.decided", {"round": 1, "arms": arms, "winner": "c1", "why": "only c1 reaches the target"})
        ledger.append("job.finished", {"id": "fixed", "round": 1, "score": score, "died": None, "weights": "f" * 64})
        gate(
            ledger,
            "optimization",
            passed("control_arm", value=1),
            passed("corrected_for_many", value=0.031, bound=0.05),
        )
        ledger.append("candidate.chosen", {"phase": "optimization", "round": 1, "weights": "f" * 64, "score": score})
        decided = {"branch": "sufficient", "target": True, "trivial": True, "symptoms": []}
        compared = {"score": score, "target_value": 0.95}
        ledger.append("branch.decided", {"phase": "optimization", "round": 1, **decided, **compared})
        failed = passed("target_on_test", outcome="failed", value=0.944, bound=0.95, why="95 % 0.92 to 0.96, n = 360")
        failed = replace(failed, unit="accuracy", relation=">=")
        absent = passed("latency", outcome="errored", why="not built: latency of the exported form")
        owner = passed("owner_approval", outcome="pending", sign_off="owner", why="waits for the sign-off of the owner")
        gate(ledger, "finalization", passed("onnx_parity", value=1.2e-6, bound=1e-5), failed, absent, owner)
        waiver = {"who": "Ada", "why": "shadow deployment only", "expires": LATER}
        ledger.append("waiver", {"phase": "finalization", "item": "target_on_test", **waiver})
    return run


MEASURES: dict[str, Any] = {
    "score": {"split": "val", "metric": "accuracy", "value": 0.95, "low": 0.9, "high": 0.98, "n": 360,
              "greater_is_better": True},
    "trivial_baseline": {"metric": "accuracy", "value": 0.1, "n": 360, "how": "majority class (3)"},
    "baseline_models": [
        {"name": "logistic_regression", "metric": "accuracy", "value": 0.93, "low": 0.89, "high": 0.96, "n": 360,
         "seconds": 0.21, "how": "L2 penalty 1, standardized, on 1077 train rows"},
        {"name": "boosted_trees", "not_applicable": "the time allows 3 of 1077 train rows"},
    ],
    "cross_validation": {"parts": 5, "metric": "accuracy", "greater_is_better": True, "mean": 0.944, "std": 0.012,
                         "values": [0.93, 0.94, 0.95, 0.94, 0.96], "folds": [], "seconds": 1.5},
    "per_class": [
        {"class": "cat", "precision": 0.91, "recall": 0.875, "recall_low": 0.8, "recall_high": 0.93, "f1": 0.89,
         "support": 80},
        {"class": "unseen", "precision": "nan", "recall": "nan", "recall_low": "nan", "recall_high": "nan",
         "f1": "nan", "support": 0},
    ],
    "worst_pairs": [{"true": "cat", "predicted": "dog", "count": 7, "share": 0.0875}],
    "sanity_checks": {"zeroed_inputs": {"value": 0.103, "chance": 0.1, "worst": {"layer_one": [1, 2.5]}},
               "reproducibility": "identical weights"},
    "warnings": [{"step": 12, "category": "UserWarning", "message": "a scheduler came first", "where": "loop.py:7",
                  "count": 3}],
}  # fmt: skip


def with_measures(run: Run, values: dict[str, Any] = MEASURES) -> Run:
    """Record this evidence as that of the run's baseline."""
    path = run.inside("baseline", "evidence.json")
    files.write_json(path, {"values": values})
    with opened(run) as ledger:
        left = {"path": "baseline/evidence.json", "sha256": files.sha256(path)}
        ledger.append("phase.finished", {"phase": "baseline", "round": 1, "evidence": left})
    return run
