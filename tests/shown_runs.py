"""Runs with everything that the page can show, written entry by entry as the phases record it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.history import History
from pipeline.run_store import files
from pipeline.run_store.run import Run, opened
from tests.ledger_fixtures import LATER, MEASURES, history, mended, with_measures

MODULES = ("body.0", "body.4", "head")
EXPERIMENTS: list[dict[str, Any]] = [
    {"change": "learning rate 3 → 0.3", "causes": ["learning_rate_too_high"], "control": 0.1, "observed": 0.12,
     "verdict": "refuted", "seeds": 1, "steps": 50, "why": "0.02 of the shortfall restored", "expected": "half of it"},
    {"change": "learning rate 3 → 0.003", "causes": ["learning_rate_too_high"], "control": 0.1, "observed": 0.96,
     "verdict": "confirmed", "seeds": 3, "steps": 50, "why": "1.01 of the shortfall restored",
     "expected": "half of it"},
    {"change": "an arm without a score", "control": None, "observed": "nan", "verdict": "inconclusive"},
]  # fmt: skip
SLICE = {"metric": "recall", "rows": 36, "low": 0.85, "high": 0.999}
QUALITY: dict[str, Any] = {
    "slices": {
        "metric": "accuracy", "greater_is_better": True, "value": 0.944, "recall": 0.944, "rows": 72,
        "scores": [{**SLICE, "name": "cat", "of": "class", "value": 0.97},
                   {**SLICE, "name": "<b>dog</b>", "of": "class", "value": 0.92},
                   {**SLICE, "name": "empty", "of": "declared", "value": "nan", "low": "nan", "high": "nan"}],
        "worst_pairs": [], "why": "",
    },
    "calibration": {
        "rows": 72, "error": 0.031, "error_before": 0.052, "p_value": 0.4, "brier_score": 0.08, "temperature": 1.4,
        "coverage": None, "coverage_low": None, "coverage_high": None, "nominal_coverage": None, "half_width": None,
        "kind": "classification", "bins": 15, "why": "", "reason": "",
    },
    "corruption": {
        "metric": "accuracy", "greater_is_better": True, "clean": 0.97, "trivial": 0.5, "why": None,
        "scores": [{"corruption": kind, "severity": severity, "value": 0.97 - fall * severity}
                   for kind, fall in (("noise", 0.01), ("missing", 0.04)) for severity in (1, 3, 5)],
    },
    "adversarial": {
        "metric": "accuracy", "unit": "standard deviations of each column", "clean": 0.97, "trivial": 0.5,
        "curve": [{"radius": 0.1, "noise": 0.96, "fgsm": 0.8, "pgd": 0.75}],
    },
    "within_limits": {
        "formats": {name: {"one": {p: {"value": factor * ms} for p, ms in (("p50", 0.1), ("p95", 0.3), ("p99", 0.9))}}
                    for name, factor in (("onnxruntime", 0.2), ("torch", 1.0))},
    },
}  # fmt: skip


def with_modules(recorded: History, modules: tuple[str, ...] = MODULES, steps: int = 50, every: int = 5) -> History:
    """Add gradient norms and update ratios by module, of which one becomes infinite."""
    for step in range(1, steps + 1, every):
        for at, module in enumerate(modules):
            norm = float("inf") if (step, at) == (1 + every, 0) else 2.0 / (1 + step) * 10**-at
            recorded.log_step(step, {f"grad_norm/{module}": norm, f"update_ratio/{module}": 1e-3 * (at + 1)})
    return recorded


def _finished(
    run: Run, phase: str, folder: str, values: dict[str, Any], artifacts: dict[str, Path] | None = None
) -> None:
    path = run.inside(folder, "evidence.json")
    files.write_json(path, {"values": values})
    left = {
        name: {"path": run.relative(file), "sha256": files.sha256(file)} for name, file in (artifacts or {}).items()
    }
    evidence = {"path": run.relative(path), "sha256": files.sha256(path)}
    with opened(run) as ledger:
        ledger.append("phase.finished", {"phase": phase, "round": 1, "evidence": evidence, "artifacts": left})


def complete(root: Path, name: str = "digits-hot") -> Run:
    """A run that went through all phases, with every measurement that the page has a section for."""
    run = mended(root, name)
    recorded = with_modules(history(breaks_at=7))
    files.write_bytes(run.inside("baseline", "history.npz"), recorded.to_bytes())
    symptom = {"signal": "train/loss", "value": 4.0, "bound": "above 3", "since": {"step": 7, "epoch": None}}
    diagnosis = json.loads(run.inside("diagnostics", "1", "diagnosis.json").read_text())
    diagnosis["symptoms"][0]["observations"] = [symptom]
    files.write_json(run.inside("diagnostics", "1", "diagnosis.json"), diagnosis)
    matrix = run.inside("baseline", "confusion_matrix.json")
    files.write_json(matrix, {"classes": ["cat", "<b>dog</b>"], "matrix": [[30, 6], [2, 34]]})
    with_measures(run, MEASURES)
    _finished(run, "baseline", "baseline", MEASURES, {"confusion_matrix.json": matrix})
    _finished(run, "diagnostics", "diagnostics/1", {"experiments": EXPERIMENTS})
    _finished(run, "finalization", "finalization", QUALITY)
    predictions = run.inside("finalization", "predictions.npz")
    targets = np.repeat(np.arange(2), 36)
    buffer = io.BytesIO()
    np.savez(buffer, targets=targets, predictions=np.where(np.arange(72) % 12 == 0, 0, targets))
    files.write_bytes(predictions, buffer.getvalue())
    score = {"split": "test", "metric": "accuracy", "value": 0.944, "low": 0.92, "high": 0.96, "n": 72}
    left = {"predictions": {"path": run.relative(predictions), "sha256": files.sha256(predictions)}}
    with opened(run) as ledger:
        ledger.append("test.opened", {"candidate": "f" * 64, "plan": "p", "digest": "d"})
        ledger.append("test.scored", {"candidate": "f" * 64, "score": score, "files": left})
        waiver = {"who": "Ada", "why": "measured again before the release", "expires": LATER}
        ledger.append("waiver", {"phase": "finalization", "item": "latency", **waiver})
    return run
