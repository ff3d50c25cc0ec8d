"""Goals besides quality: what is tried, what it costs, and that a cheaper model keeps its quality."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.__main__ import main
from pipeline.adoption.acceptance import Guard, format_guard, harms
from pipeline.adoption.guards import MEMORY, WORST_CLASS, Quality, _quality_guards
from pipeline.errors import Refused
from pipeline.release.verify import faults
from pipeline.run_store import plan as plans
from pipeline.run_store.ledger import read_ledger
from pipeline.run_store.next_step import next_step
from pipeline.run_store.run import Run
from pipeline.search.goal_changes import goal_changes
from tests.check_helpers import read_evidence
from tests.conftest import SHORT, Cli, go, in_this_process

CONFIG: dict[str, Any] = {
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.01}, "scheduler": {"T_max": 20},
    "trainer": {"max_epochs": 20, "precision": 32, "compile": False}, "loader": {"batch_size": 32},
    "model": {"hidden": [64, 64], "width": None, "depth": None},
}  # fmt: skip


def changes(goal: str, on_cuda: bool = False, **sections: Any) -> list[dict[str, Any]]:
    return [dict(delta.overrides) for _, delta in goal_changes({**CONFIG, **sections}, goal, 1000, on_cuda)]


def test_goal_changes_train_for_less() -> None:
    """Fewer epochs with their schedule, larger batches at the matched rate, both, and on a GPU lower precision."""
    tried = changes("train_speed")

    assert tried[0] == {"trainer.max_epochs": 10, "scheduler.T_max": 10}
    assert {"loader.batch_size": 64, "optimizer.lr": 0.0141} in tried
    assert {"loader.batch_size": 128, "optimizer.lr": 0.02} in tried
    assert {**tried[0], "loader.batch_size": 64, "optimizer.lr": 0.0141} in tried
    assert not any("trainer.precision" in change for change in tried)
    assert {"trainer.precision": "bf16-mixed"} in changes("train_speed", on_cuda=True)
    assert {"trainer.compile": True} in changes("train_speed", on_cuda=True)
    sgd = changes("train_speed", optimizer={"_target_": "torch.optim.SGD", "lr": 0.01})
    assert {"loader.batch_size": 64, "optimizer.lr": 0.02} in sgd


@pytest.mark.parametrize("goal", ["latency", "memory"])
def test_goal_changes_make_a_model_smaller(goal: str) -> None:
    """Narrower and shallower models, and both; a width stays a multiple of the heads."""
    assert changes(goal)[:3] == [{"model.hidden": [32, 32]}, {"model.hidden": [16, 16]}, {"model.hidden": [64]}]
    attention = changes(goal, model={"width": 24, "heads": 4, "depth": 2})
    assert attention == [{"model.width": 12}, {"model.depth": 1}, {"model.width": 12, "model.depth": 1}]
    assert changes(goal, model={"_target_": "my_pkg.Net"}) == []


def guard(before: float, after: float, **bounds: Any) -> Guard:
    return {"what": "it", "before": [before] * 7, "after": [after] * 7, "margin": None, "limit": None, **bounds}  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("given", "harmful"),
    [
        (guard(0.9, 0.85, limit=0.8, margin=0.1, greater_is_better=True), False),
        (guard(0.9, 0.75, limit=0.8, margin=0.3, greater_is_better=True), True),
        (guard(0.9, 0.85, limit=0.8, margin=0.01, greater_is_better=True), True),
        (guard(5.0, 5.2, margin=0.5, greater_is_better=False), False),
        (guard(5.0, 5.8, margin=0.5, greater_is_better=False), True),
    ],
)
def test_guards_know_their_direction(given: Guard, harmful: bool) -> None:
    """A limit is the least value where higher is better; a margin of what is better when lower is above it."""
    assert bool(harms([given])) is harmful
    assert ("worse than allowed" in format_guard(given)) is harmful


def test_quality_guards_have_the_margins_of_the_plan() -> None:
    """Worst class and slices have plan.margins.slice, further metrics their own; what has none is only reported."""
    old = [Quality(0.9, {"old forms": 0.8}, {"f1_macro": 0.9, "rmse": 1.0})] * 7
    new = [Quality(0.85, {"old forms": 0.5}, {"f1_macro": 0.89, "rmse": 1.3})] * 7
    margins = {"slice": 0.1, "metrics": {"rmse": 0.2}}

    guards = _quality_guards(old, new, {"": True, "f1_macro": True, "rmse": False}, margins)

    assert [g["what"] for g in guards] == [WORST_CLASS, "slice old forms", "f1_macro", "rmse"]
    assert harms(guards) == ["slice old forms", "rmse"]
    assert "plan.margins.metrics.f1_macro is not declared" in format_guard(guards[2])
    assert _quality_guards([Quality()] * 7, [Quality()] * 7, {}, margins) == []


# --- rounds with real trainings --------------------------------------------------------------------------------------

DATA = """
import numpy as np

def table():
    draw = np.random.default_rng(0)
    y = draw.integers(0, 3, 600)
    X = (draw.normal(size=(600, 8)) + 4 * np.eye(8)[y]).astype("float32")
    parts = {"train": slice(0, 400), "val": slice(400, 500), "test": slice(500, 600)}
    old = {name: X[rows, 7] > 0 for name, rows in parts.items()}
    return {**{name: (X[rows], y[rows]) for name, rows in parts.items()}, "slices": {"old forms": old}}
"""
EXPERIMENT = """# @package _global_
defaults: [digits, override /data: null, override /model: mlp]
data: {_target_: rows_of_mine.table}
model: {hidden: [64, 64]}
task: {target: 0.8, metrics: [balanced_accuracy]}
trainer: {max_epochs: 8}
optimizer: {lr: 0.003}
plan: {margins: {slice: 0.2, metrics: {balanced_accuracy: 0.1}, cost: 0.5, quality: 0.05}}
tracking: {kind: none}
"""


def planned_for(goal: str, root: Path, *words: str) -> Run:
    """A run of somebody's own rows whose baseline reaches its target, planned with this goal."""
    (root / "conf" / "experiment").mkdir(parents=True)
    (root / "rows_of_mine.py").write_text(DATA)
    (root / "conf" / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    settings = (f"phases.optimization.goal={goal}", "phases.optimization.seeds_per_arm=6", *words)
    trust = "trust=[rows_of_mine]"
    short = ("phases.baseline.overfit_steps=20", *SHORT)
    run, gate, step = go(
        root, "phase=baseline", "experiment=mine", trust, *short, *settings, config_dirs=[root / "conf"]
    )
    assert gate == "open" and step.phase == "optimization" and step.why.endswith(f"before finalization: {goal}")
    return run


def optimize(run: Run, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    monkeypatch.setattr("pipeline.trials.executor.Workers.run", in_this_process)
    _, gate, _ = go(run.path.parent, "phase=optimization", f"run.name={run.name}")
    return gate, dict(read_evidence(run, "optimization", 1)) if gate != "pending" else {}


@pytest.mark.slow
def test_memory_is_saved_with_quality_kept(own_folder: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """After a person accepted its plan, a smaller model is adopted; slices, metrics and costs were guarded, and the
    comparison can be derived again."""
    run = planned_for("memory", own_folder, "phases.optimization.review=true")
    assert optimize(run, monkeypatch)[0] == "pending"
    waiting = next_step(run.state(), run.path)
    assert waiting.exit_code == 4 and waiting.phase is None and "study_plan.md" in waiting.why
    assert main(["approve", str(run.path), "--who", "Nobody"]) == 2
    assert main(["approve", str(run.path), "--who", "Example Reviewer"]) == 0
    with pytest.raises(Refused, match="nothing waits for approval"):
        from pipeline.commands.approve import sign
        from pipeline.run_store.run import opened

        with opened(run) as ledger:
            sign(run, ledger, lambda items, evidence: [], "Example Reviewer", "")

    gate, values = optimize(run, monkeypatch)
    state, winner = run.state(), values["winner"]
    kinds = [entry["kind"] for entry in read_ledger(run.ledger_path)]

    assert gate == "open" and {item.outcome for item in state.gates["optimization"].items} == {"passed"}
    assert kinds.count("review.requested") == kinds.count("review.approved") == 1
    assert winner is not None and "model.hidden" in winner["change"] and values["goal"] == "memory"
    guarded = {g["what"] for g in winner["guards"]}
    assert {"accuracy", "slice old forms", "balanced_accuracy", WORST_CLASS, MEMORY} <= guarded
    assert state.candidate and state.candidate["phase"] == "optimization" and state.sufficient()
    assert next_step(state, run.path).phase == "finalization"
    assert faults(run)[1] == []
    page = run.inside("optimization", 1, "recommendations.md").read_text()
    assert "MB, p = " in page and not run.inside("optimization", 1, "incident.md").exists()
    assert plans.load(run).config["phases"]["optimization"]["goal"] == "memory"


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["train_speed", "latency"])
def test_goal_keeps_the_reference_or_what_is_cheaper(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, goal: str
) -> None:
    """Half the epochs take less time; either way the run is as sufficient as before, and goes on to finalization."""
    run = planned_for(goal, own_folder)
    gate, values = optimize(run, monkeypatch)
    costs: Sequence[float] = [row["mean"] for row in [values["control"], *values["arms"]] if row]

    assert gate == "open" and next_step(run.state(), run.path).phase == "finalization"
    assert faults(run)[1] == [] and all(map(math.isfinite, costs))
    if goal == "train_speed":
        assert values["winner"] is not None and values["winner"]["mean"] < 0.9 * costs[0]
    cost = run.inside("optimization", 1, "trials", "control-1", "cost.json")
    assert cost.exists() == bool(values["arms"])
