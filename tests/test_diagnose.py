"""Diagnosis: the right cause comes first, nothing is invented, less evidence lowers confidence."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics.candidates import Confidence, Support
from diagnostics.conditions import Condition, Observation
from diagnostics.diagnose import diagnose, needs_mending, view_of
from diagnostics.diagnosis import Diagnosis
from diagnostics.playbook import CandidateCause, example_history
from pipeline.history import History
from pipeline.repair import causes
from pipeline.results import CEILINGS

CONFIG: dict[str, Any] = {
    "task": {"metric": "accuracy", "target": 0.95, "kind": "classification"},
    "optimizer": {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1.0, "weight_decay": 0.01},
    "trainer": {"gradient_clip_val": None, "max_epochs": 20, "precision": 32},
    "scheduler": None,
    "surgery": [],
}
HOT = {
    "train/loss": "2.32 410 95 31 12 6.1 3.3 2.6 2.41 2.35 2.38 2.36 2.37 2.36",
    "update_ratio": "12 3 0.4",
    "dead/body.0": "0.1 1 1",
    "val/accuracy": "0.1 0.1 0.1",
    "train/accuracy": "0.1 0.1 0.1",
    "facts": {"loss_expected": 2.303, "target": 0.95, "trivial": 0.1},
}
HEALTHY = {
    "train/loss": "2.3 1.2 0.6 0.3 0.2 0.15 0.12 0.1 0.1 0.09",
    "val/loss": "1.0 0.4 0.2 0.15 0.14",
    "val/accuracy": "0.7 0.9 0.95 0.96 0.96",
    "train/accuracy": "0.7 0.92 0.97 0.99 0.99",
    "facts": {"loss_expected": 2.303, "target": 0.95, "trivial": 0.1},
}


def confidence_of(cause: str, diagnosis: Diagnosis) -> float:
    """The confidence in a cause, whether it is named or only considered; 0 for one that is neither."""
    named = {entry.issue: entry.confidence.value for entry in diagnosis.root_causes}
    return {entry.issue: entry.confidence for entry in diagnosis.considered}.get(cause, 0.0) or named.get(cause, 0.0)


def test_diagnose_names_learning_rate_first_when_loss_explodes() -> None:
    """A loss that exploded and settled at the loss of guessing is explained by the learning rate."""
    diagnosis = diagnose(example_history(HOT), CONFIG)

    assert "learning_rate_too_high" == diagnosis.root_causes[0].issue
    assert [{"optimizer.lr": 0.1}, {"optimizer.lr": 0.01}, {"optimizer.lr": 0.001}] == [
        fix.remedy.overrides for fix in diagnosis.fixes[:3]
    ]
    assert "Lower the learning rate: optimizer.lr 1 → 0.1" == diagnosis.root_causes[0].fix == diagnosis.quick_wins[0]
    assert (
        "largest value of train/loss divided by its first value is 177 (above 3, since step 2)"
        in diagnosis.root_causes[0].evidence
    )


def test_diagnose_marks_clipping_as_mitigation() -> None:
    """A fix that only treats the symptom has the kind `mitigation`."""
    kinds = {fix.remedy.cure: fix.kind for fix in diagnose(example_history(HOT), CONFIG).fixes}

    assert ("cure", "mitigation") == (kinds["lower_lr"], kinds["clip_gradients"])


def test_diagnose_names_nothing_in_healthy_history() -> None:
    """A healthy history has no symptom, cause or fix, and the diagnosis lists what it did not check."""
    diagnosis = diagnose(example_history(HEALTHY), CONFIG)

    assert ((), (), (), ()) == (diagnosis.symptoms, diagnosis.root_causes, diagnosis.fixes, diagnosis.quick_wins)
    *symptoms, experiments = (gap["what"] for gap in diagnosis.not_checked)
    assert "controlled experiments" == experiments
    # its few columns say nothing of gradients, updates, outputs, times and other runs
    assert {"symptom exploding_gradients", "symptom no_learning", "symptom resume_fault"} < set(symptoms)
    measured = ("nan_loss", "convergence_stall", "overfitting", "underfitting", "generalization_gap", "loss_divergence")
    assert not {f"symptom {name}" for name in measured} & set(symptoms)
    assert "playbooks finds its symptom in this history." in diagnosis.confidence_statement
    assert "# No symptom found" in diagnosis.incident()


def test_diagnose_lists_undecided_symptoms_of_empty_history() -> None:
    """Without measurements no symptom is claimed, and every undecided symptom is listed."""
    diagnosis = diagnose(History())

    assert not diagnosis.symptoms and not diagnosis.root_causes
    assert {"symptom nan_loss", "symptom overfitting"} <= {gap["what"] for gap in diagnosis.not_checked}
    assert "Not decided, because measurements are missing" in diagnosis.confidence_statement
    assert diagnosis.confidence_statement.startswith("No playbook could be evaluated.")
    assert diagnosis.would_decide == ("a training: no measurement of one is on record",)


def test_diagnosis_without_cause_says_what_would_decide() -> None:
    """A history that explains nothing: the page says what would name a cause; with a cause there is no such section."""
    diagnosis = diagnose(example_history({**HEALTHY, "val/accuracy": "nan nan nan nan 0.5"}), CONFIG)
    page = diagnosis.incident()

    assert not diagnosis.root_causes and diagnosis.to_json()["would_decide"] == list(diagnosis.would_decide)
    assert "## What would decide" in page and "4 of 5 values of val/accuracy are NaN or infinite" in page
    assert "a change that no playbook lists" in page
    assert not diagnose(example_history(HOT), CONFIG).would_decide


def test_diagnosis_of_contradicted_causes_proposes_nothing() -> None:
    """A symptom whose causes are all contradicted has no list of causes or changes, but says what would decide."""
    symptom = diagnose(example_history(HOT), CONFIG).symptoms
    page = Diagnosis(symptoms=symptom, would_decide=("another training",), confidence_statement="None.").incident()

    assert "- another training" in page and "What was observed" in page
    assert "Not decided: no cause is named." in page and "What to try" not in page


def test_to_json_matches_schema() -> None:
    """diagnosis.json has the keys of its schema and known causes, and JSON preserves it."""
    body = diagnose(example_history(HOT), CONFIG).to_json()

    assert body == json.loads(json.dumps(body))
    assert {
        "symptoms",
        "root_causes",
        "considered",
        "quick_wins",
        "recommended_fixes",
        "experiments",
        "decision",
        "not_checked",
        "would_decide",
        "confidence_statement",
        "schema",
    } == set(body)
    assert (1, "decided", []) == (body["schema"], body["decision"], body["experiments"])
    assert {"signal", "value", "bound", "since"} == set(body["symptoms"][0]["observations"][0])
    assert {"issue", "status", "confidence", "basis", "evidence", "fix"} == set(body["root_causes"][0])
    assert all(c["issue"] in causes.load() and c["status"] == "candidate" for c in body["root_causes"])
    fix = body["recommended_fixes"][0]
    assert {"priority", "cause", "cure", "kind", "implementation", "expected_impact", "verified"} == set(fix)
    assert {"overrides", "surgery", "code"} == set(fix["implementation"]) and fix["verified"] is None
    assert list(range(1, len(body["recommended_fixes"]) + 1)) == [f["priority"] for f in body["recommended_fixes"]]
    assert sorted((c["confidence"] for c in body["root_causes"]), reverse=True) == [
        c["confidence"] for c in body["root_causes"]
    ]


def test_diagnose_lowers_confidence_with_less_evidence() -> None:
    """Without the monitor's columns the same cause has less confidence, and as a log its basis is `report`."""
    loss_only = {name: value for name, value in HOT.items() if name in ("train/loss", "facts")}
    full, partial = diagnose(example_history(HOT)), diagnose(example_history(loss_only))
    log = example_history(loss_only)
    log.event("imported", 0)
    reported = diagnose(log)

    rates = [confidence_of("learning_rate_too_high", d) for d in (full, partial, reported)]
    assert rates[0] > rates[1] >= rates[2] > 0
    assert "research" == full.root_causes[0].confidence.basis
    assert any("the log has no update_ratio" in gap["why"] for gap in partial.not_checked)


def test_basis_is_that_of_entries_with_support() -> None:
    """The literature behind another playbook's entry, of which no measurement holds, adds nothing to the cause."""
    holds, fails = (Condition("first", ("a",), above=bound) for bound in (1.0, 9.0))
    observations = {condition: Observation(condition, 5.0) for condition in (holds, fails)}
    inferred = CandidateCause("x", (holds,), (), None, "", "inference")
    researched = CandidateCause("x", (fails,), (), None, "", "research")

    assert Support((inferred, researched), observations).basis == "inference"
    both = replace(researched, supported_by=(fails, holds))
    assert Support((inferred, both), observations).basis == "research"
    assert Support((researched,), observations).basis == "inference"


def test_support_is_contradicted_by_what_it_must_not_be() -> None:
    """A condition of `unless` that holds rules the cause out in its playbook; one that was not measured does not."""
    holds, other = Condition("first", ("a",), above=1.0), Condition("first", ("b",), above=1.0)
    entry = CandidateCause("x", (holds,), (), None, "", "inference", (other,))
    observed = {holds: Observation(holds, 5.0)}

    for value, contradicted in ((2.0, True), (0.5, False), (math.nan, False)):
        support = Support((entry,), observed, exclusions={other: Observation(other, value)})
        assert (support.contradicting is not None) == contradicted


def test_support_counts_bounds_of_one_kind_once() -> None:
    """Two playbooks that ask the same question with other bounds say it once, with the strictest bound that holds."""
    weak, strict, beyond = (Condition("first", ("a",), above=bound) for bound in (1.0, 2.0, 9.0))
    support = Support((), {condition: Observation(condition, 5.0) for condition in (weak, strict, beyond)})

    assert [observation.condition for observation in support.holding] == [strict] and support.measured_count == 1


def test_diagnose_rules_out_contradicted_causes() -> None:
    """A measurement that contradicts a cause rules it out, and the statement says so."""
    diagnosis = diagnose(example_history(HOT), CONFIG)

    assert "learning_rate_too_low" not in [c.issue for c in diagnosis.root_causes]
    assert "learning_rate_too_low" in diagnosis.confidence_statement.partition("Contradicted")[2]


@pytest.mark.parametrize(("scores", "named"), [((0.5,) * 10, False), ((0.5, 0.5, 0.52, 0.55, 0.6, 0.66), True)])
def test_diagnose_wants_more_epochs_only_of_a_score_that_rises(scores: tuple[float, ...], named: bool) -> None:
    """A loss that falls alone is no reason to train longer: a rare class may never be predicted."""
    losses = {"train/loss": "0.69 0.5 0.4 0.33 0.28 0.25 0.23 0.21 0.2 0.19", "val/loss": "0.5 0.4 0.35 0.3 0.28 0.26"}
    facts = {"target": 0.9, "trivial": 0.5}
    curves = {**losses, "val/balanced_accuracy": " ".join(map(str, scores)), "update_ratio": "0.02 0.02 0.01"}

    diagnosis = diagnose(example_history({"facts": facts, **curves}))

    assert "unfinished_training" in [s.id for s in diagnosis.symptoms]
    assert ("too_few_epochs" in [c.issue for c in diagnosis.root_causes]) == named


def test_diagnose_finds_suppressed_nonfinite_update() -> None:
    """A suppressed update is a symptom although every recorded value is finite."""
    history = example_history(HEALTHY)
    history.event("nonfinite", 9, what="gradient")

    assert ["nan_loss"] == [s.id for s in diagnose(history).symptoms]


def test_diagnose_without_config_proposes_code() -> None:
    """Without a config every fix is a line of code."""
    diagnosis = diagnose(example_history(HOT))

    assert len(diagnosis.fixes) >= 3 and all(fix.remedy.code for fix in diagnosis.fixes)


@given(st.sampled_from(list(CEILINGS)), st.floats(0, 1))
def test_confidence_refuses_value_above_ceiling(basis: str, value: float) -> None:
    """A confidence is never above the ceiling of its basis."""
    if value > CEILINGS[basis]:
        with pytest.raises(ValueError, match=f"confidence on {basis} lies in"):
            Confidence(value, basis)
    else:
        assert value == Confidence(value, basis).value


@given(st.integers(0, 6), st.integers(0, 6))
def test_share_follows_support(supporting: int, against: int) -> None:
    """One more support that holds raises the share, and one more that does not lowers it."""

    def share(holding: int, failing: int) -> float:
        values = [5.0] * holding + [0.0] * failing
        conditions = [Condition("first", (f"column {i}",), above=1.0) for i in range(len(values))]
        observations = {c: Observation(c, value) for c, value in zip(conditions, values, strict=True)}
        return Support((CandidateCause("x", tuple(conditions), (), None, "", "research"),), observations).share

    assert share(supporting, against + 1) < share(supporting, against) < share(supporting + 1, against)


def test_confidence_refuses_unknown_basis_and_nan() -> None:
    """A confidence has a known basis and is a number."""
    with pytest.raises(ValueError, match="basis must be one of"):
        Confidence(0.1, "gossip")
    with pytest.raises(ValueError, match="got nan"):
        Confidence(math.nan, "report")


def test_diagnosis_is_saved_and_shown(tmp_path: Path) -> None:
    """A diagnosis is saved as JSON and Markdown, and shown as an HTML table with escaped text."""
    diagnosis = diagnose(example_history(HOT), CONFIG)
    diagnosis.save(tmp_path / "out")
    diagnosis.save(tmp_path / "alone.json")

    page = (tmp_path / "out" / "incident.md").read_text()
    assert diagnosis.to_json() == json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert diagnosis.to_json() == json.loads((tmp_path / "alone.json").read_text())
    assert re.search(r"1\. \*\*learning_rate_too_high\*\* \(0\.\d+, research\): steps overshoot\.", page)
    assert (
        "1. Lower the learning rate: optimizer.lr 1 → 0.1, `optimizer.lr=0.1` (fix for `learning_rate_too_high`)"
        in page
    )
    assert "<td>learning_rate_too_high</td>" in diagnosis._repr_html_()
    assert "<b>" not in Diagnosis(confidence_statement="<b>bold</b>")._repr_html_()
    assert "Diagnosis(convergence_stall, dead_units, underfitting: learning_rate_too_high 0." in repr(diagnosis)


@pytest.mark.parametrize(("scores", "needed"), [([0.5, 0.93, 0.8], True), ([0.5, 0.8, 0.93], False)])
def test_needs_mending_judges_a_loop_by_its_last_score(scores: list[float], needed: bool) -> None:
    """A loop that has lost its best score again has to be mended, since its best weights are gone."""
    history = History()
    for epoch, score in enumerate(scores, 1):
        history.log_epoch(epoch, {"val/accuracy": score})
    view = view_of(history, {"task": {"metric": "accuracy", "target": 0.9}})

    assert needs_mending(view, []) is needed


@pytest.mark.parametrize(("metric", "worst"), [("accuracy", 0.95), ("loss", 0.1)])
def test_needs_mending_where_every_score_reaches_the_target(metric: str, worst: float) -> None:
    """Even the worst score of a good run is no score of an untrained model."""
    history = History()
    history.log_epoch(1, {f"val/{metric}": worst})
    view = view_of(history, {"task": {"metric": metric, "target": 0.9 if metric == "accuracy" else 0.2}})

    assert not needs_mending(view, [])
