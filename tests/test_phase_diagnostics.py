"""The diagnostics phase: it names causes with evidence, and runs after any closed gate."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.release.verify import faults
from pipeline.results import CEILINGS
from pipeline.run_store.run import Run
from tests.check_helpers import assert_schema, judge, read_evidence, with_values
from tests.conftest import SMALL, Cli, go


def test_phase_writes_diagnosis_and_incident(mended: Run) -> None:
    """`diagnosis.json` has its final form, and both files name the learning rate first."""
    diagnosis = json.loads(mended.inside("diagnostics", 1, "diagnosis.json").read_text())
    assert_schema("diagnosis", diagnosis)
    page = mended.inside("diagnostics", 1, "incident.md").read_text()
    first = diagnosis["root_causes"][0]

    assert set(diagnosis) >= {
        "symptoms", "root_causes", "quick_wins", "recommended_fixes", "experiments", "not_checked",
        "confidence_statement", "schema",
    }  # fmt: skip
    assert (diagnosis["schema"], first["issue"], first["status"]) == (1, "learning_rate_too_high", "candidate")
    assert 0 < first["confidence"] <= CEILINGS[first["basis"]] and first["evidence"]
    assert len(diagnosis["recommended_fixes"]) >= 3
    priorities = [fix["priority"] for fix in diagnosis["recommended_fixes"]]
    assert priorities == sorted(priorities)
    assert "learning_rate_too_high" in page
    headings = (
        "What was on record",
        "How to reproduce it",
        "Causes",
        "What to try",
        "Prevention",
        "Rollback",
        "Remaining",
    )
    assert all(f"## {heading}" in page for heading in headings) and "environment: python" in page
    assert faults(mended)[1] == []


def test_gate_opens_on_real_diagnosis(mended: Run) -> None:
    """Every item passes that asks for no experiment, and the diagnosis used the baseline's history."""
    outcomes = {item.id: item.outcome for item in mended.state().gates["diagnostics"].items}
    untested = ("reproduced_on_slice", "hypotheses_documented", "experiments_controlled")
    assert {outcomes.pop(name) for name in untested} == {"not_applicable"}
    assert set(outcomes.values()) == {"passed"} and len(outcomes) == 7
    assert read_evidence(mended, "diagnostics", 1)["history"] == "baseline/history.npz"
    assert set(read_evidence(mended, "diagnostics", 1)["playbooks"]) >= {
        "nan_loss", "convergence_stall", "overfitting", "underfitting",
    }  # fmt: skip


def test_phase_runs_after_closed_planning_gate(own_folder: Any) -> None:
    """Without a baseline there is less evidence, and the diagnosis says so instead of failing."""
    go(own_folder, "phase=planning", *SMALL, "seed=null")

    run, gate, _ = go(own_folder, "phase=diagnostics", "run.name=digits")
    evidence = read_evidence(run, "diagnostics", 1)

    assert gate == "open" and evidence["history"] is None
    assert evidence["diagnosis"]["not_checked"] and evidence["diagnosis"]["confidence_statement"]
    assert not run.inside("baseline").exists()
    outcomes = {item.id: item.outcome for item in run.state().gates["diagnostics"].items}
    assert outcomes == {
        **dict.fromkeys(("playbooks_read", "causes_known", "fixes_proposed"), "not_applicable"),
        **dict.fromkeys(("reproduced_on_slice", "hypotheses_documented", "experiments_controlled"), "not_applicable"),
        **dict.fromkeys(("metrics_per_split", "confidence_ceiling_stated"), "not_applicable"),
        **dict.fromkeys(("limits_said", "documents_written"), "passed"),
    }


def test_phase_says_what_it_judged_without_a_training(own_folder: Any, cli: Cli) -> None:
    """A run that never trained: the gate counts what was answered, the items say why the others could not be."""
    go(own_folder, "phase=planning", *SMALL, "seed=null")
    _, out, _ = cli("phase=diagnostics", "run.name=digits", f"run.root={own_folder}")
    _, table, _ = cli("status", "digits", f"--root={own_folder}", "--gate", "diagnostics")

    assert "diagnostics: not decided, no cause is named: No playbook could be evaluated." in out
    assert "what would decide: a training: no measurement of one is on record" in out
    assert re.search(r"diagnostics +open +2/10 +8 ", out)
    details = " ".join(table.split())  # a narrow terminal breaks the lines of a cell
    assert details.count("no training of this plan is on record") == 3 and "no cause is named" in details


def test_phase_accepts_sufficient_run(finished: Run) -> None:
    """Diagnostics of a sufficient run is allowed and opens its own gate."""
    run, gate, _ = go(finished.path.parent, "phase=diagnostics", "run.name=digits")

    assert gate == "open"
    assert run.state().gate("diagnostics") == "open" and run.state().passed("optimization")


def test_phase_refuses_missing_run(own_folder: Any) -> None:
    """Without a run the message names the command that starts one, and no run is created."""
    with pytest.raises(UserError, match=r"no such run, got 'digits'.*Do: .*phase=baseline"):
        go(own_folder, "phase=diagnostics", *SMALL)


WRONG: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    (
        "diagnosis.playbooks_read",
        {"evaluated_playbooks": ["nan_loss"]},
        {"min_playbooks": 1},
        "failed",
        "convergence_stall",
    ),
    ("diagnosis.playbooks_read", {"playbooks": []}, {"min_playbooks": 40}, "failed", "nan_loss"),
    (
        "diagnosis.playbooks_read",
        {"playbooks": ["brand_new"]},
        {"min_playbooks": 4},
        "failed",
        "not evaluated: brand_new",
    ),
    ("diagnosis.playbooks_read", {"evaluated_playbooks": ...}, {"min_playbooks": 4}, "errored", "evaluated_playbooks"),
    ("diagnosis.playbooks_read", {"playbooks": ...}, {"min_playbooks": 4}, "errored", "was not measured"),
    ("diagnosis.causes_known", {"diagnosis__root_causes": []}, {}, "passed", "no cause named"),
    (
        "diagnosis.causes_known",
        {"diagnosis__root_causes": [], "diagnosis__would_decide": ["a training", "more"]},
        {},
        "passed",
        "no cause named; what would decide: a training",
    ),
    ("diagnosis.causes_known", {"diagnosis__root_causes": [], "history": None}, {}, "not_applicable", "no training"),
    ("diagnosis.playbooks_read", {"history": None}, {"min_playbooks": 4}, "not_applicable", "no training"),
    ("diagnosis.fixes_proposed", {"diagnosis__root_causes": []}, {"min_fixes": 3}, "not_applicable", "no cause"),
    ("diagnosis.fixes_proposed", {"diagnosis__recommended_fixes": []}, {"min_fixes": 3}, "failed", ""),
    ("diagnosis.limits_said", {"diagnosis__confidence_statement": ""}, {}, "failed", "no confidence statement"),
    ("diagnosis.limits_said", {"diagnosis": {}}, {}, "errored", "confidence_statement"),
    ("diagnosis.documents_written", {}, {"names": ["diagnosis", "incident"]}, "failed", "not written: incident"),
]


@pytest.mark.parametrize(("check", "wrong", "bounds", "outcome", "why"), WRONG)
def test_check_outcome(
    mended: Run, check: str, wrong: dict[str, Any], bounds: dict[str, Any], outcome: str, why: str
) -> None:
    """Each check has the expected outcome on real evidence with one value changed."""
    item = judge(check, with_values(read_evidence(mended, "diagnostics", 1), **wrong), "diagnosis", **bounds)

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
def test_causes_known_checks_id_and_confidence(
    mended: Run, issue: str, confidence: float, basis: str, outcome: str
) -> None:
    """A cause that is not in causes.yaml fails the gate, and so does a confidence above the ceiling of its basis."""
    cause = {"issue": issue, "confidence": confidence, "basis": basis}
    values = with_values(read_evidence(mended, "diagnostics", 1), diagnosis__root_causes=[cause])

    assert judge("diagnosis.causes_known", values).outcome == outcome
