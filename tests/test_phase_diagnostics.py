"""Diagnostics: from a history to causes with evidence, behind any closed gate, without training."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.release.verify import faults
from pipeline.run_store.run import Run
from tests.check_helpers import changed, judged, measured
from tests.conftest import SMALL, go


def test_what_a_diagnosis_leaves(mended: Run) -> None:
    """`diagnosis.json` in its final form and a page for people; the learning rate is named first."""
    found = json.loads(mended.inside("diagnostics", 1, "diagnosis.json").read_text())
    page = mended.inside("diagnostics", 1, "incident.md").read_text()
    first = found["root_causes"][0]

    assert set(found) >= {
        "symptoms", "root_causes", "quick_wins", "recommended_fixes", "experiments", "not_checked",
        "confidence_statement", "schema",
    }  # fmt: skip
    assert (found["schema"], first["issue"], first["status"]) == (1, "learning_rate_too_high", "candidate")
    assert 0 < first["confidence"] <= 0.7 and first["evidence"]
    assert len(found["recommended_fixes"]) >= 3
    priorities = [fix["priority"] for fix in found["recommended_fixes"]]
    assert priorities == sorted(priorities)
    assert "learning_rate_too_high" in page
    assert faults(mended)[1] == []


def test_the_gate_is_open_on_a_real_diagnosis(mended: Run) -> None:
    """All five items passed, and the diagnosis read the baseline's history."""
    assert {i.outcome for i in mended.state().gates["diagnostics"].items} == {"passed"}
    assert measured(mended, "diagnostics", 1)["history"] == "baseline/history.npz"
    assert set(measured(mended, "diagnostics", 1)["playbooks"]) >= {
        "nan_loss", "convergence_stall", "overfitting", "underfitting",
    }  # fmt: skip


def test_diagnostics_may_run_behind_a_closed_gate(own_folder: Any) -> None:
    """Behind a closed planning gate there is less evidence, and the diagnosis says so instead of stopping."""
    go(own_folder, "phase=planning", *SMALL, "seed=null")

    run, gate, _ = go(own_folder, "phase=diagnostics", "run.name=digits")
    found = measured(run, "diagnostics", 1)

    assert gate == "open" and found["history"] is None
    assert found["diagnosis"]["not_checked"] and found["diagnosis"]["confidence_statement"]
    assert not run.inside("baseline").exists()


def test_a_sufficient_run_may_be_diagnosed(finished: Run) -> None:
    """Asking for diagnostics of a sufficient run is allowed and opens its own gate."""
    run, gate, _ = go(finished.path.parent, "phase=diagnostics", "run.name=digits")

    assert gate == "open"
    assert run.state().gate("diagnostics") == "open" and run.state().passed("optimization")


def test_nothing_planned_is_nothing_to_diagnose(own_folder: Any) -> None:
    """Without a run there is nothing to explain: the command that begins one is named, and none is made."""
    with pytest.raises(UserError, match=r"there is no such run, got 'digits'.*Do: .*phase=baseline"):
        go(own_folder, "phase=diagnostics", *SMALL)


WRONG: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("diagnosis.playbooks_read", {"judged": ["nan_loss"]}, {"min_playbooks": 1}, "failed", "left out: con"),
    ("diagnosis.playbooks_read", {"playbooks": []}, {"min_playbooks": 40}, "failed", "nan_loss"),
    ("diagnosis.playbooks_read", {"playbooks": ["brand_new"]}, {"min_playbooks": 4}, "failed", "left out: brand_new"),
    ("diagnosis.playbooks_read", {"judged": ...}, {"min_playbooks": 4}, "errored", "judged"),
    ("diagnosis.playbooks_read", {"playbooks": ...}, {"min_playbooks": 4}, "errored", "was not measured"),
    ("diagnosis.causes_known", {"diagnosis__root_causes": []}, {}, "passed", "no cause named"),
    ("diagnosis.fixes_proposed", {"diagnosis__root_causes": []}, {"min_fixes": 3}, "not_applicable", "no cause"),
    ("diagnosis.fixes_proposed", {"diagnosis__recommended_fixes": []}, {"min_fixes": 3}, "failed", ""),
    ("diagnosis.limits_said", {"diagnosis__confidence_statement": ""}, {}, "failed", "no confidence statement"),
    ("diagnosis.limits_said", {"diagnosis": {}}, {}, "errored", "confidence_statement"),
    ("diagnosis.documents_written", {}, {"names": ["diagnosis", "incident"]}, "failed", "not written: incident"),
]


@pytest.mark.parametrize(("check", "wrong", "bounds", "outcome", "why"), WRONG)
def test_what_each_check_answers(
    mended: Run, check: str, wrong: dict[str, Any], bounds: dict[str, Any], outcome: str, why: str
) -> None:
    """On the real evidence with one value changed, the check that asks for it says so."""
    item = judged(check, changed(measured(mended, "diagnostics", 1), **wrong), "diagnosis", **bounds)

    assert item.outcome == outcome
    assert why in item.why


@pytest.mark.parametrize(
    ("issue", "confidence", "basis", "outcome"),
    [
        ("gremlins", 0.5, "report", "failed"),
        ("learning_rate_too_high", 0.71, "report", "failed"),
        ("learning_rate_too_high", 0.71, "research", "passed"),
        ("learning_rate_too_high", 0.96, "definition", "failed"),
        ("learning_rate_too_high", 0.5, "rumour", "errored"),
    ],
)
def test_a_cause_is_a_known_word_with_a_confidence_its_basis_allows(
    mended: Run, issue: str, confidence: float, basis: str, outcome: str
) -> None:
    """Words outside causes.yaml and confidence above the basis's ceiling fail the gate."""
    cause = {"issue": issue, "confidence": confidence, "basis": basis}
    values = changed(measured(mended, "diagnostics", 1), diagnosis__root_causes=[cause])

    assert judged("diagnosis.causes_known", values).outcome == outcome
