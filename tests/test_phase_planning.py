"""Planning: what it freezes, what its gate asks, and that nothing trains before it is open."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pipeline.errors import Refused
from pipeline.record import permits
from pipeline.record import plan as plans
from pipeline.record.run import Run
from tests.conftest import SMALL, go
from tests.judged import changed, judged, measured


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """Every optimizer step of this process, counted at torch itself."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    taken: list[object] = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, args, kwargs: taken.append(optimizer))
    yield taken
    handle.remove()


def test_what_planning_freezes(planned: Run) -> None:
    """The plan holds the resolved config, five checklists with numbers in them, and the facts that were measured."""
    plan = plans.load(planned)

    assert plan.revision == 1 and plan.seed == 1
    assert sorted(plan.checklists) == ["baseline", "diagnostics", "finalization", "optimization", "planning"]
    target = next(i for i in plan.checklists["finalization"] if i["id"] == "target_on_test")
    assert target["with"] == {"target": 0.95, "margin": 0.02}
    assert plan.facts["budget"] == {"steps_per_epoch": 17, "max_steps": 51}
    assert {s: k["rows"] for s, k in plan.facts["splits"].items()} == {"train": 1077, "val": 360, "test": 360}
    assert plan.facts["threads"] == 1
    assert plan.facts["determinism"] == {"policy": True, "operations": []}
    assert "run" not in plan.config and "trust" not in plan.config and "phase" not in plan.config


def test_the_gate_is_open_on_honest_facts(planned: Run) -> None:
    """Fifteen items, all passed, the seed first."""
    items = planned.state().gates["planning"].items

    assert [i.id for i in items] == [
        "seeds_fixed", "metric_and_target", "problem_card", "splits_disjoint", "near_duplicates", "test_sealed",
        "data_digests", "enough_rows", "data_finite", "values_plausible", "label_codes", "labels_consistent",
        "imbalance_treated", "environment_recorded", "deterministic_kernels",
    ]  # fmt: skip
    assert {i.outcome for i in items} == {"passed"}
    assert "attested by Example Owner" in items[1].why


def test_planning_again_changes_nothing(planned: Run) -> None:
    """The same words plan the same: the revision stays, the gate is judged anew."""
    before = planned.state()

    run, gate, _ = go(planned.path.parent, "phase=planning", *SMALL)

    assert gate == "open" and run.state().plan == before.plan
    assert run.state().seq > before.seq


def test_without_a_seed_nothing_trains(own_folder: Any, steps: list[object]) -> None:
    """With seed=null the gate is closed, no permit exists, and not one optimizer step is made."""
    run, gate, advice = go(own_folder, "phase=baseline", *SMALL, "seed=null")
    outcomes = {i.id: i.outcome for i in run.state().gates["planning"].items}

    assert (gate, advice.exit_code, steps) == ("closed", 3, [])
    said = {k: outcomes.pop(k) for k in ("seeds_fixed", "metric_and_target", "problem_card")}
    assert said == {"seeds_fixed": "failed", "metric_and_target": "passed", "problem_card": "passed"}
    assert set(outcomes.values()) == {"errored"}
    with pytest.raises(Refused, match="gate planning: is not open"):
        permits.train(run)


def test_a_seed_later_opens_the_gate(own_folder: Any) -> None:
    """What was typed is remembered: only the seed has to be added."""
    go(own_folder, "phase=planning", *SMALL, "seed=null")

    run, gate, _ = go(own_folder, "phase=planning", "run.name=digits", "seed=5")
    plan = plans.load(run)

    assert gate == "open" and plan.revision == 2
    assert plan.seed == 5 and plan.config["trainer"]["max_epochs"] == 3
    assert run.state().revisions[1]["changed"]["seed"] == [None, 5]


def test_planning_makes_no_step(own_folder: Any, steps: list[object]) -> None:
    """Planning probes the model and the loss, and trains nothing."""
    torch.manual_seed(0)

    go(own_folder, "phase=planning", *SMALL)

    assert steps == []


def test_looks_at_the_test_rows_are_counted_across_plans(finished: Run) -> None:
    """A plan made after the test rows were read says how often they were, and may go on while that is seldom."""
    run, gate, _ = go(finished.path.parent, "phase=planning", "run.name=digits", "task.target=0.4")
    item = next(i for i in run.state().gates["planning"].items if i.id == "test_sealed")

    assert (gate, item.outcome, item.value) == ("open", "passed", 1)
    assert run.state().stale("finalization") and run.state().gate("finalization") is None


CARD = {"must": ["purpose", "owner"], "should": ["population", "risks"]}
WRONG: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("seeds.seeds_fixed", {"seed": None}, {}, "failed", "add seed=1"),
    ("seeds.seeds_fixed", {"seed": ...}, {}, "errored", "evidence 'seed' was not measured"),
    ("problem.metric_and_target", {"target": None}, {}, "failed", "task.target=NUMBER"),
    ("problem.metric_and_target", {"greater_is_better": False}, {}, "passed", "accuracy at most"),
    ("data.splits_disjoint", {"shared_fraction__val": 0.25}, {"max_shared_fraction": 0.0}, "failed", "rows of val"),
    ("data.splits_disjoint", {"shared_fraction": ...}, {"max_shared_fraction": 0.0}, "errored", "was not measured"),
    ("data.splits_disjoint", {"shared_fraction__val": 0.25}, {"max_shared_fraction": 0.3}, "passed", "one side"),
    ("data.test_sealed", {"test_sealed": False}, {"max_openings": 3}, "failed", "without a key"),
    ("data.test_sealed", {"test_opened": 4}, {"max_openings": 3}, "failed", "another run.name"),
    ("problem.problem_card", {"card__purpose": False}, CARD, "failed", "add at least plan.purpose=..."),
    ("problem.problem_card", {"card__owner": False, "card__risks": False}, CARD, "failed", "not said: owner, risks"),
    ("problem.problem_card", {"card__risks": False}, CARD, "passed", "by the last gate: risks"),
    ("data.data_digests", {"rows__val": 1}, {"min_rows": 2}, "failed", "too few rows in val"),
    ("data.data_digests", {"rows__test": 1}, {"min_rows": 2}, "failed", "too few rows in test"),
    ("data.data_digests", {"digests__train": ""}, {"min_rows": 2}, "failed", "no digest for train"),
    ("environment.environment_recorded", {"environment__torch": ...}, {"needs": ["torch"]}, "failed", "not recorded"),
    ("environment.environment_recorded", {"environment": None}, {"needs": ["torch"]}, "errored", "AttributeError"),
]


@pytest.mark.parametrize(("check", "wrong", "bounds", "outcome", "why"), WRONG)
def test_what_each_check_answers(
    planned: Run, check: str, wrong: dict[str, Any], bounds: dict[str, Any], outcome: str, why: str
) -> None:
    """On the real evidence with one value changed, the check that asks for it says so."""
    item = judged(check, changed(measured(planned, "planning"), **wrong), **bounds)

    assert item.outcome == outcome
    assert why in item.why


def test_leaks_are_named_by_their_cause(planned: Run) -> None:
    """Shared rows and a missing validation split carry the id of their cause."""
    values = measured(planned, "planning")
    leaking = judged("data.splits_disjoint", changed(values, shared_fraction__test=0.1), max_shared_fraction=0.0)
    lacking = judged("data.data_digests", changed(values, rows__val=0), min_rows=2)

    assert (leaking.cause, leaking.value) == ("data_leakage", 0.1)
    assert lacking.cause == "validation_missing"


# --- faults of the data, planted -------------------------------------------------------------------------------------

PACKAGE = """
import numpy as np
from pipeline.data.digits import digits

def rows(fault="", **_):
    data = digits()
    (X, y), (V, v) = data["train"], data["val"]
    if fault == "leak":
        V[:9] = X[:9]
    if fault == "near leak":
        V[:60] = np.clip(X[:60] + np.random.default_rng(0).normal(size=(60, 64)) * 1e-3, 0, 1)
    if fault == "contradiction":
        X[:30], y[:30] = X[30:60], (y[30:60] + 1) % 10
    if fault in ("imbalance", "rare"):
        keep = (y != 3) | (np.cumsum(y == 3) <= (8 if fault == "imbalance" else 3))
        X, y = X[keep], y[keep]
    if fault == "unlearned":
        X, y = X[y != 3], y[y != 3]
    if fault == "outlier":
        X[5, 20] = 1e6
    if fault == "outlier in a still pixel":
        X[5, 0] = 1e6
    if fault == "outlier in validation":
        V[5, 20] = -1e6
    if fault == "hole":
        X[77, 20] = np.nan
    if fault == "infinite":
        V[7, 20] = np.inf
    if fault == "nothing varies":
        X[:] = np.arange(64)
    if fault == "small":
        V, v = V[:15], v[:15]
    given = {**data, "train": (X, y), "val": (V, v)}
    if fault in ("shifted", "spread"):
        del given["class_names"]
        for side in ("train", "val", "test"):
            A, a = given[side]
            given[side] = (A, a + 1 if fault == "shifted" else 2 * a)
    if fault == "divided":
        for side in ("train", "val", "test"):
            given[side] = (given[side][0], given[side][1] // 2)
    if fault == "two codes":
        del given["class_names"]
        given["val"] = (V, v + 1)
    return given
"""

PLANTED = {
    "leak": ("splits_disjoint", "data_leakage"),
    "near leak": ("near_duplicates", "data_leakage"),
    "contradiction": ("labels_consistent", "label_noise"),
    "imbalance": ("imbalance_treated", "class_imbalance"),
    "rare": ("enough_rows", "too_little_data"),
    "unlearned": ("enough_rows", "split_shift"),
    "small": ("enough_rows", "validation_missing"),
    "outlier": ("values_plausible", "outliers"),
    "outlier in a still pixel": ("values_plausible", "outliers"),
    "outlier in validation": ("values_plausible", "outliers"),
    "nothing varies": ("values_plausible", "inputs_uninformative"),
    "hole": ("data_finite", "nonfinite_inputs"),
    "infinite": ("data_finite", "nonfinite_inputs"),
    "shifted": ("label_codes", "labels_misencoded"),
    "spread": ("label_codes", "labels_misencoded"),
    "divided": ("label_codes", "labels_misencoded"),
    "two codes": ("label_codes", "labels_misencoded"),
}
WORDS = ("phase=planning", "experiment=digits", "tracking=none", "trust=[planted]", "data._target_=planted.rows")
WIDER = {"shifted": 11, "spread": 19, "two codes": 11}


@pytest.fixture
def plan(own_folder: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`plan("leak")` plans the digits with that fault: the gate and its items that did not pass, by id."""
    (own_folder / "planted.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(own_folder)
    monkeypatch.delitem(sys.modules, "planted", raising=False)

    def planned(fault: str, *words: str) -> tuple[str, dict[str, Any]]:
        wider = [f"model.out_features={WIDER[fault]}"] if fault in WIDER else []
        run, gate, _ = go(own_folder, *WORDS, f"+data.fault={fault}", *wider, *words)
        items = run.state().gates["planning"].items
        return gate, {i.id: i for i in items if i.outcome not in ("passed", "not_applicable")}

    return planned


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_closes_the_gate_with_its_cause(plan: Any, steps: list[object], fault: str) -> None:
    """Whatever is wrong with the data is named by its cause, by an item a person may waive unless it is a leak."""
    item, cause = PLANTED[fault]
    gate, failed = plan(fault)

    assert gate == "closed" and steps == []
    assert failed[item].outcome == "failed" and failed[item].cause == cause
    assert failed[item].waivable == (item != "splits_disjoint") and failed[item].why


def test_one_fault_closes_one_item(plan: Any) -> None:
    """A hole, a contradiction, an outlier and an imbalance are each told once."""
    for fault in ("hole", "contradiction", "outlier", "imbalance", "near leak"):
        assert list(plan(fault, f"run.name={fault.replace(' ', '_')}")[1]) == [PLANTED[fault][0]]


@pytest.mark.parametrize(
    "word", ["loader.sampler=balanced", "task.class_weights=balanced", "task.metric=balanced_accuracy"]
)
def test_a_named_treatment_opens_the_gate(plan: Any, word: str) -> None:
    """An imbalance that the plan does something about is no reason to stop."""
    assert plan("imbalance", word) == ("open", {})


def test_a_waiver_lets_a_fault_pass_by_name(plan: Any, own_folder: Any, say: Any) -> None:
    """The owner may train on holed rows; the outcome stays on record."""
    assert plan("hole", "run.root=runs")[0] == "closed"
    words = ("--root", own_folder, "--who", "Ada", "--why", "the holes are wanted", "--expires", "9999-12-31")
    assert say("waive", "digits", "data_finite", *words)[0] == 0
    run = Run.find("digits", own_folder)
    assert run.state().gate("planning") == "open"
    assert permits.train(run)


HOLED = """
from torch import nn

class Patient(nn.Module):
    def __init__(self, **_):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.nan_to_num(0.0, posinf=float("inf"), neginf=float("-inf")))
"""


def test_a_model_that_answers_holes_opens_the_gate(plan: Any, own_folder: Any) -> None:
    """Missing features are the model's affair where it shows that it answers them; infinite ones are nobody's."""
    (own_folder / "planted.py").write_text(PACKAGE + HOLED)
    assert plan("hole", "model._target_=planted.Patient") == ("open", {})
    gate, failed = plan("infinite", "model._target_=planted.Patient")
    assert gate == "closed" and failed["data_finite"].cause == "nonfinite_inputs"


def test_holes_that_are_imputed_open_the_gate(plan: Any) -> None:
    """Preprocessing is part of the model, which thereby answers rows with holes; infinite ones it does not."""
    assert plan("hole", "preprocess.impute=median") == ("open", {})
    assert plan("infinite", "preprocess.impute=median", "run.name=infinite")[0] == "closed"


def test_what_closes_nothing_is_said(planned: Run) -> None:
    """Constant pixels stand in the reason of a passed item."""
    item = next(i for i in planned.state().gates["planning"].items if i.id == "values_plausible")
    assert item.outcome == "passed" and "5 constant features (pixel_0_0" in item.why


ASIDES: list[tuple[str, dict[str, Any], str]] = [
    ("quality.values_plausible", {"quality__duplicates__train": 3}, "rows that stand twice: 3 in train"),
    ("quality.values_plausible", {"quality__constant__targets_std": 900.0}, "targets_not_scaled"),
    ("labels.enough_rows", {"quality__labels__counts__val__3": 8}, "coarse for 3 in val (8)"),
]


@pytest.mark.parametrize(("check", "wrong", "why"), ASIDES)
def test_asides_stand_in_the_reason(planned: Run, check: str, wrong: dict[str, Any], why: str) -> None:
    """Duplicates, the scale of targets and classes of few rows close nothing, and are told."""
    bounds = next(i["with"] for i in plans.load(planned).checklists["planning"] if i["check"] == check)
    item = judged(check, changed(measured(planned, "planning"), **wrong), **bounds)
    assert item.outcome == "passed" and why in item.why


def test_values_are_not_asked_for_classes(planned: Run) -> None:
    """Items on labels do not apply to targets that are no classes."""
    values = changed(measured(planned, "planning"), quality__labels=None, quality__contradictions=None)
    for question in plans.load(planned).checklists["planning"]:
        if question["check"] in ("labels.label_codes", "labels.labels_consistent", "labels.imbalance_treated"):
            item = judged(question["check"], values, **question["with"])
            assert (item.outcome, item.why) == ("not_applicable", "the targets are no classes")
