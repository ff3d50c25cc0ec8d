"""Planning: what it freezes, what its gate asks, and that nothing trains before it is open."""

from __future__ import annotations

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
    """Seven items, all passed, the seed first."""
    items = planned.state().gates["planning"].items

    assert [i.id for i in items] == [
        "seeds_fixed", "metric_and_target", "splits_disjoint", "test_sealed", "data_digests", "environment_recorded",
        "deterministic_kernels",
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
    assert outcomes["seeds_fixed"] == "failed" and outcomes["metric_and_target"] == "passed"
    assert {v for k, v in outcomes.items() if k not in ("seeds_fixed", "metric_and_target")} == {"errored"}
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
