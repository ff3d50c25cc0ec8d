"""Each of the 24 checks of the last gate closes it for its own reason: real evidence with one wrong value."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from checklists.resolve import CHECKS, resolve_check
from pipeline.results import Artifact, Evidence
from pipeline.run_store import checklist
from pipeline.run_store import plan as plans
from pipeline.run_store.run import Run
from tests.check_helpers import questions, read_evidence, with_values

OTHER = "1" * 64
RECALL = {"name": "3", "of": "class", "rows": 360, "value": 0.2, "low": 0.1, "high": 0.3, "metric": "recall"}
REPLAY = {"steps": 20, "planned_steps": 20, "difference": None, "why": "", "died": ""}
WORSE = {"bound": -0.3, "difference": -0.2, "how": "", "method": "score limit", "name": "ridge", "value": 0.99}
REGRESSION = {"task": "", "against": "the model in use", "comparison": WORSE, "negative_flips": 9, "why": ""}
NAMELESS = {"declared": "", "licence": None, "name": "numpy", "needs": [], "scope": "serving", "version": "2.0"}
SLOW = {"value": 90.0, "low": 80.0, "high": 100.0}
BROKEN = {"corruption": "noise", "severity": 3, "strength": 0.1, "unit": "", "nonfinite_rows": 5, "retained": 1.0}
ATTACKED = [{"fgsm": 0.1, "noise": 0.9, "pgd": 0.01, "radius": 0.1}]
ALARMS = {"draws": 200, "false_alarms": 150, "falsely_named": ["pixel_2_3"], "stretches": None}
MISSED = {"shift": "mean", "what": "darker pictures", "draws": 40, "detected": 3, "features": []}

# Check, the values that are wrong, and what the reason says.
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "split_integrity": ({"digests__val": OTHER}, "not the planned rows: val"),
    "population_covered": ({"population_covered__classes__3__train": 0}, "no rows of 3 in train"),
    "test_opened_once": ({"openings_for_candidate": 2}, "more than once"),
    "lineage": ({"lineage__data": {}}, "unknown: data"),
    "reproducible": (
        {"reproducible": {**REPLAY, "weights": OTHER, "repeated_weights": "2" * 64}},
        "has the weights 222",
    ),
    "target_on_test": ({"test_score__value": 0.1}, "accuracy 0.1 < "),
    "generalization_gap": ({"generalization_gap__gap": 0.3, "generalization_gap__gap_low": 0.2}, "train rows"),
    "beats_baseline": ({"beats_baseline__models": [WORSE]}, "ridge beats the model"),
    "seed_stability": ({"seed_stability__trainings": [{"id": "seed-30", "value": None}]}, "without a score"),
    "calibration": (
        {"calibration__error": 0.3, "calibration__p_value": 0.0},
        "labels drawn from its own probabilities give as much in 0.0% of cases",
    ),
    "slices": ({"slices__scores": [RECALL]}, "class 3: recall 0.2"),
    "corruption": ({"corruption__scores": [BROKEN]}, "outputs are not finite under"),
    "adversarial": ({"adversarial__curve": ATTACKED, "adversarial__huge": 0.0}, "PGD 0.01"),
    "no_regression": ({"no_regression__compared": [REGRESSION]}, "against the model in use"),
    "onnx_parity": ({"parity__onnx__worst__largest__size": 0.1}, "outputs differ"),
    "torchscript_parity": ({"parity__torchscript": {"error": "a branch on values"}}, "a branch on values"),
    "sandbox_serve": ({"sandbox_serve__proof__import torch": "worked"}, "import torch worked"),
    "within_limits": ({"within_limits__formats__onnxruntime__one__p99": SLOW}, "p99 90 ms"),
    "bundle_layout": ({"bundle_faults": ["x.pkl: cannot be in a payload"]}, "x.pkl"),
    "supply_chain": ({"supply_chain__components": [NAMELESS]}, "numpy"),
    "drift_monitor": ({"drift_monitor__shifts": [MISSED]}, "darker pictures"),
    "rollback": ({"rollback__problem": "the registry cannot be written"}, "the registry cannot be written"),
    "documents": ({"documents__missing": ["out_of_scope"]}, "out_of_scope"),
}


def judged(run: Run, **wrong: Any) -> dict[str, Any]:
    """The checks of the last gate by their id, as the plan of the run bounds them, with a floor under attack."""
    config = plans.load(run, run.state()).config
    config = {**config, "plan": {**config["plan"], "robustness": {**config["plan"]["robustness"], "adversarial": 0.5}}}
    values = with_values(read_evidence(run, "finalization"), **wrong)
    values["drift_monitor"] |= {"window": 180, "reference_rows": 1000}  # its window is that of few rows in a shrunk run
    evidence = Evidence(values, artifacts={"any": Artifact("somewhere", OTHER)})
    return {item.id: item for item in checklist.judge(questions("finalization", config), evidence, resolve_check)}


def test_every_check_of_the_last_gate_has_a_fault() -> None:
    """The list of faults leaves out the approval alone, which is pending until a person gives it."""
    ids = [item["id"] for item in yaml.safe_load((CHECKS.parent / "finalization.yaml").read_text())["items"]]
    assert set(ids) - set(FAULTS) == {"owner_approval"} and len(ids) == 24


@pytest.mark.parametrize("name", FAULTS)
def test_check_closes_the_gate_for_its_own_reason(finished: Run, name: str) -> None:
    """With one wrong value this check fails and says why, and no other check changes its outcome."""
    wrong, why = FAULTS[name]
    before, after = judged(finished), judged(finished, **wrong)

    assert before[name].outcome != "failed", before[name].why
    assert after[name].outcome == "failed" and why in after[name].why, after[name].why
    assert [other for other in before if after[other].outcome != before[other].outcome] == [name]
