"""Proofs: what is tried by hand before a long training finds what it looks for, and says where it cannot look."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data.dataset import Data
from pipeline.data.load import seal
from pipeline.data.train_rows import changed as rows_changed
from pipeline.history import History
from pipeline.run_store.job import run_seed
from pipeline.run_store.run import Run
from pipeline.sanity_checks import ablations, forward_checks, run_checks
from pipeline.sanity_checks.context import CheckContext
from pipeline.sanity_checks.lr_range_test import suggested, told
from pipeline.sanity_checks.reproducibility import first_difference
from tests.check_helpers import changed, judged, measured
from tests.conftest import Cli, go
from tests.trainings import blobs, config, permitted, train

__all__ = ["permitted"]

ITEMS = (
    "one_batch_tried", "inputs_matter", "chance_on_shuffled_labels", "gradients_reach", "rows_independent",
    "evaluation_repeats", "parameters_against_rows", "learning_rate_tried", "training_repeats",
)  # fmt: skip


class Whole(nn.Module):
    """A net for the clouds of points, with one fault that was asked for."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault, self.net = fault, nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        if fault == "unused":
            self.spare = nn.Linear(8, 3)
        if fault == "zeroed":
            self.gate = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "batch statistics":
            x = nn.functional.batch_norm(x, None, None, training=True)
        out: Tensor = self.net(x)
        match self.fault:
            case "batch mean":
                return out - out.mean(0)
            case "runs along the batch":
                return out.cumsum(0)
            case "dropout":
                return nn.functional.dropout(out, 0.5)
            case "clock":
                return out + time.perf_counter_ns() % 1000 * 1e-3
            case "squeezed":
                return out.squeeze()
            case "zeroed":
                return out + 0 * self.gate
        return out


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CheckContext]:
    """`bench("dropout")`: a bench without a permit, whose model has that fault."""

    def make(fault: str = "", data: Data | None = None, **more: Any) -> CheckContext:
        monkeypatch.setattr("pipeline.engine.setup.build_model", lambda *_: Whole(fault))
        body = {**config(), **more}
        return CheckContext(
            body, (), data or blobs(), {"overfit_steps": 20, "sanity_check_steps": 20, "reproducibility_steps": 5}
        )

    return make


def answer(bench: CheckContext, proof: Callable[[CheckContext], Any], check: str, **bounds: Any) -> Any:
    """What the gate says of one proof."""
    return judged(f"sanity.{check}", {"sanity_checks": {proof.__name__: run_checks._tried(proof, bench)}}, **bounds)


FAR = {"max_difference": 0.01}
FAULTS: list[tuple[str, Callable[..., Any], str, dict[str, Any], str, str]] = [
    ("", forward_checks.gradients, "gradients_reach", {"named": 8}, "passed", "each of 4 parameters"),
    ("unused", forward_checks.gradients, "gradients_reach", {"named": 8}, "passed", "spare.weight (not in the loss)"),
    ("zeroed", forward_checks.gradients, "gradients_reach", {"named": 8}, "passed", "gate (zero)"),
    ("", forward_checks.rows_apart, "rows_independent", FAR, "passed", "the first and the last of 8 rows"),
    ("batch statistics", forward_checks.rows_apart, "rows_independent", FAR, "failed", "depends on its neighbours"),
    ("batch mean", forward_checks.rows_apart, "rows_independent", FAR, "failed", "depends on its neighbours"),
    ("runs along the batch", forward_checks.rows_apart, "rows_independent", FAR, "failed", "depends on its neighbours"),
    ("squeezed", forward_checks.rows_apart, "rows_independent", FAR, "passed", "warning: "),
    ("clock", forward_checks.rows_apart, "rows_independent", FAR, "not_applicable", "vary by themselves"),
    ("", forward_checks.evaluation_repeats, "evaluation_repeats", {"max_rows": 0}, "passed", "40 rows twice"),
    (
        "dropout",
        forward_checks.evaluation_repeats,
        "evaluation_repeats",
        {"max_rows": 0},
        "failed",
        "outputs of the same rows",
    ),
    (
        "clock",
        forward_checks.evaluation_repeats,
        "evaluation_repeats",
        {"max_rows": 0},
        "failed",
        "outputs of the same rows",
    ),
    (
        "",
        forward_checks.parameters_per_row,
        "parameters_against_rows",
        {"many": 0.5},
        "passed",
        "67 parameters that train",
    ),
    ("", ablations.zeroed_inputs, "inputs_matter", {"min_gain": 0.02}, "not_applicable", "there is no permit"),
]


@pytest.mark.parametrize(("fault", "proof", "check", "bounds", "outcome", "why"), FAULTS)
def test_a_planted_fault_is_named(
    bench: Callable[..., CheckContext], fault: str, proof: Any, check: str, bounds: Any, outcome: str, why: str
) -> None:
    """What is wrong with a model closes nothing and is said; what makes its figures dishonest fails its item."""
    item = answer(bench(fault), proof, check, **bounds)
    assert (item.outcome, why in item.why) == (outcome, True), item
    causes = {"rows_independent": "normalization_misused", "evaluation_repeats": "eval_mode_missing"}
    assert item.cause == (
        causes[check] if outcome == "failed" else "parameters_not_trained" if fault in ("unused", "zeroed") else None
    )


def test_a_proof_that_raises_is_missing_evidence(bench: Callable[..., CheckContext]) -> None:
    """The gate does not open over a question that nobody could answer; the other proofs go on."""
    broken = bench()
    broken.setup.task.forward  # it can be set up
    broken.setup.model.forward = lambda x: x / 0 if isinstance(x, int) else None  # type: ignore[method-assign]
    found = run_checks.prove(broken)
    assert found["gradients"]["outcome"] == found["evaluation_repeats"]["outcome"] == "errored"
    assert found["parameters_per_row"]["outcome"] == "measured"
    assert {found[p]["outcome"] for p in ("one_batch", "learning_rate", "same_seed")} == {"not_run"}
    item = judged("sanity.evaluation_repeats", {"sanity_checks": found}, max_rows=0)
    assert item.outcome == "errored" and "the proof failed" in item.why


def test_gradients_are_looked_for_on_several_batches(bench: Callable[..., CheckContext]) -> None:
    """A unit that is silent on one batch and speaks on another is no fault."""
    at = bench()
    answers = iter([torch.zeros(3), torch.ones(3), torch.ones(3)])
    at.setup.model.register_parameter("late", nn.Parameter(torch.ones(3)))
    at.setup.model.register_forward_hook(lambda m, _, out: out + next(answers) * m.late)
    found = forward_checks.gradients(at)
    assert (found["silent"], found["batches"]) == ({}, 2)


def test_looking_leaves_the_model_as_it_is(bench: Callable[..., CheckContext]) -> None:
    """No pass changes a weight, a running statistic or a gradient, nor what the next proof sees."""
    at = bench()
    at.setup.model.add_module("norm", nn.BatchNorm1d(3))
    at.setup.model.register_forward_hook(lambda m, _, out: m.norm(out))
    before = {name: tensor.clone() for name, tensor in at.setup.model.state_dict().items()}
    for proof in (forward_checks.gradients, forward_checks.rows_apart, forward_checks.evaluation_repeats):
        assert run_checks._tried(proof, at)["outcome"] == "measured"
    assert all(torch.equal(tensor, before[name]) for name, tensor in at.setup.model.state_dict().items())
    assert all(p.grad is None for p in at.setup.model.parameters())


def ramp(steps: int = 100) -> np.ndarray:
    return np.logspace(-7, 1, steps)


def test_the_steepest_fall_is_suggested() -> None:
    """On a loss that falls fastest at 0.01 and explodes at 1, that is what is said; noise moves it little."""
    rates = ramp()
    loss = 2.3 / (1 + rates / 0.01) + np.where(rates > 0.5, 50 * (rates - 0.5), 0)
    loss += 0.02 * np.random.default_rng(0).normal(size=len(loss))
    found = suggested(rates, loss)
    assert found["suggested"] is not None and 0.004 < found["suggested"] < 0.02
    assert found["diverges"] is not None and 0.3 < found["diverges"] < 1.5
    assert "suggests 0.0" in told({"planned": 1.0, **found}) and "worse than at its start from" in told(
        {"planned": 1.0, **found}
    )


@pytest.mark.parametrize(
    "losses",
    [np.full(100, 2.3) + 0.1 * np.random.default_rng(1).normal(size=100), np.linspace(2, 9, 100), np.full(100, np.nan)],
    ids=["flat", "rising", "nan"],
)
def test_where_the_loss_falls_at_no_rate_none_is_suggested(losses: np.ndarray) -> None:
    """A figure is not made up."""
    found = suggested(ramp(), losses)
    assert found["suggested"] is None
    assert "suggests none, since at none the loss falls by more than it varies" in told({"planned": 0.1, **found})


def test_a_ramp_that_ends_in_nan_keeps_what_it_showed() -> None:
    """Rates up to the break are judged, and the break is where it diverges."""
    rates = ramp()
    loss = np.where(rates > 1, np.nan, 2.3 / (1 + rates / 0.01))
    found = suggested(rates, loss)
    assert found["suggested"] and 0.004 < found["suggested"] < 0.02
    assert found["diverges"] == pytest.approx(1, rel=0.3)


def test_the_first_step_that_differs_is_found() -> None:
    """Two histories are the same, times apart, or differ first at one step in one thing."""

    def history(at: int | None) -> History:
        made = History()
        for step in range(1, 10):
            loss = float("nan") if step == 9 else 1.0 + (at is not None and step >= at)
            made.log_step(step, {"train/loss": loss, "time/x": time.time()})
        return made

    assert first_difference(history(None), history(None)) == (None, "")
    assert first_difference(history(None), history(4)) == (4, "train/loss")
    shorter = history(None)
    shorter.cut(6)
    assert first_difference(history(None), shorter) == (7, "train/loss")


PLANTED = """
import time
import numpy as np
import torch
from torch import nn

def rows():
    draw = np.random.default_rng(0)
    y = draw.integers(0, 3, 400)
    X = (draw.normal(size=(400, 4)) + 2 * np.eye(4)[y]).astype("float32")
    return {"train": (X[:240], y[:240]), "val": (X[240:320], y[240:320]), "test": (X[320:], y[320:])}

class Net(nn.Module):
    def __init__(self, hurried=False):
        super().__init__()
        self.net, self.hurried = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), hurried
    def forward(self, x):
        if self.hurried and self.training:
            x = x + 1e-3 * (time.perf_counter_ns() % 1000)
        return self.net(x)

def tells(model, batch):
    outputs = model(batch[0]) + 9 * nn.functional.one_hot(batch[1], 3)
    return {"loss": nn.functional.cross_entropy(outputs, batch[1]), "outputs": outputs}
"""
EXPERIMENT = """# @package _global_
# python -m pipeline phase=baseline --config-dir conf experiment=planted trust=[planted]
defaults: [override /data: null, override /model: null]
seed: 1
data: {_target_: planted.rows}
model: {_target_: planted.Net}
task: {target: 0.5}
trainer: {max_epochs: 12}
phases: {baseline: {overfit_steps: 20, sanity_check_steps: 40, reproducibility_steps: 0, folds: 0}}
plan: {purpose: to be caught, population: any, assumptions: [none], risks: [none], limits: {size_mb: 1}, owner: nobody}
tracking: {kind: none}
"""
WORDS = ("--config-dir", "conf", "experiment=planted", "trust=[planted]")


@pytest.fixture
def planted(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """The planted package stands in the folder; `planted()` are the items of the baseline's gate."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # a package of this name stands in each test's folder
    sys.modules.pop("planted", None)
    (own_folder / "conf" / "experiment").mkdir(parents=True)
    (own_folder / "planted.py").write_text(PLANTED)
    (own_folder / "conf" / "experiment" / "planted.yaml").write_text(EXPERIMENT)
    return lambda: {i.id: i for i in Run(own_folder / "runs" / "planted").state().gates["baseline"].items}


@pytest.fixture
def planned_blobs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`planned_blobs(seed)`: what the proof finds on two clusters that nothing confuses, from that seed on.

    `noise` hides them, `metric` decides, and `share` of the rows are of class 1.
    """
    model = {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 1}

    def find(seed: int, noise: float = 0.1, metric: str = "roc_auc", share: float = 0.5) -> dict[str, Any]:
        section = {"kind": "binary", "metric": metric, "target": 0.9}
        draw = np.random.default_rng(0)
        y = (draw.random(300) < share).astype(int)
        X = noise * draw.normal(size=(300, 4)) + np.eye(4)[y]
        sides = {"train": (X[:100], y[:100]), "val": (X[100:200], y[100:200]), "test": (X[200:], y[200:])}
        data = seal(sides, "binary")
        loss = {"_target_": "torch.nn.BCEWithLogitsLoss"}
        body = {**config(), "task": section, "model": model, "loss": loss, "seed": seed}
        at = CheckContext(body, (), data, {"sanity_check_steps": 20})

        def train_it(purpose: str, steps: int, delta: Any, seed_index: int = 0) -> Any:
            rows = replace(data, train=rows_changed(data.train, delta.train_rows, run_seed(seed, seed_index)))
            return train(body, rows, purpose=purpose, seed_index=seed_index, max_steps=steps)

        monkeypatch.setattr(at, "train", train_it)
        return ablations.shuffled_labels(at)

    return find


def test_a_step_that_tells_the_answers_is_caught(planted: Callable[[], dict[str, Any]], cli: Cli) -> None:
    """Trained on shuffled labels it is right on validation all the same, and its gate is closed."""
    assert cli("phase=baseline", *WORDS, "task.step={_target_: planted.tells}")[0] == 3
    item = planted()["chance_on_shuffled_labels"]
    assert (item.outcome, item.cause) == ("failed", "data_leakage")
    assert "knows the answers" in item.why
    assert {i.id for i in planted().values() if i.outcome not in ("passed", "not_applicable")} == {item.id}


def test_luck_on_clusters_is_no_leak(planned_blobs: Callable[..., dict[str, Any]]) -> None:
    """Two far clusters are named right by every other model that learned nonsense; the next shuffle tells."""
    found = [planned_blobs(seed) for seed in range(4)]
    assert {f["shuffles"] for f in found} != {1}  # luck was met
    assert max(f["half_widths_above"] for f in found) <= 1


def test_naming_at_random_is_no_leak(
    planned_blobs: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A majority class has an F1 of 0, and whoever knows nothing but names both classes has more."""
    monkeypatch.setattr("pipeline.evaluation.metrics.RESAMPLES", 50)
    found = planned_blobs(2, noise=30.0, metric="f1", share=0.4)
    assert found["half_widths_above"] <= 1, found
    assert found["chance"] > 0.2


@pytest.mark.process
def test_a_training_that_looks_at_the_clock_does_not_repeat(planted: Callable[[], dict[str, Any]], cli: Cli) -> None:
    """Two fresh processes of one seed part at a step that is named; a plan that promises nothing passes."""
    words = (
        *WORDS,
        "+model.hurried=true",
        "phases.baseline.reproducibility_steps=10",
        "phases.baseline.sanity_check_steps=0",
    )
    code, _, err = cli("phase=baseline", *words)
    assert code == 3, err
    item = planted()["training_repeats"]
    assert (item.outcome, item.cause) == ("failed", "nondeterminism"), item.why
    assert "first at step 1 in " in item.why
    assert (
        planted()["inputs_matter"].outcome == "not_applicable" and "asks for no steps" in planted()["inputs_matter"].why
    )
    allowed = {
        "sanity_checks": {
            "same_seed": {
                "outcome": "measured",
                "same": False,
                "first_difference": 3,
                "of": "train/loss",
                "steps": 9,
                "deterministic": "warn",
            }
        }
    }
    assert judged("sanity.training_repeats", allowed).outcome == "passed"


@pytest.mark.process
def test_all_proofs_on_a_healthy_plan(own_folder: Path) -> None:
    """Each is measured, none is left out, nothing of them stays on disk, and the diagnosis can read them."""
    words = ("experiment=digits", "tracking=none", "trainer.max_epochs=6", "phases.baseline.folds=0")
    run, gate, _ = go(own_folder, "phase=baseline", *words, "phases.baseline.reproducibility_steps=20")
    items = {i.id: i for i in run.state().gates["baseline"].items}
    found = measured(run, "baseline")["sanity_checks"]
    assert gate == "open" and {items[i].outcome for i in ITEMS} == {"passed"}
    assert {p["outcome"] for p in found.values()} == {"measured"}
    assert [i for i in ITEMS if "warning" in items[i].why] == []
    assert found["same_seed"]["same"] and found["zeroed_inputs"]["gain"] > 0.5
    assert not (run.path / "baseline" / "sanity_checks").exists()
    facts = History.load(run.inside("baseline", "history.npz")).facts
    assert {"inputs_gain", "share_untrained", "parameters_per_row", "lr_over_suggested"} <= set(facts)


def test_a_proof_without_time_left_says_so(trained: Run, own_folder: Path) -> None:
    """A tenth of the budget is theirs: what would not fit is recorded as not run, and closes nothing."""
    words = ("experiment=digits", "tracking=none", "trainer.max_minutes=0.002", "trainer.max_epochs=1")
    run, _, _ = go(own_folder / "short", "phase=baseline", *words)
    found = measured(run, "baseline")["sanity_checks"]
    assert found["shuffled_labels"]["outcome"] == found["same_seed"]["outcome"] == "not_run"
    assert "time: " in found["shuffled_labels"]["why"]
    items = {i.id: i.outcome for i in run.state().gates["baseline"].items}
    assert items["chance_on_shuffled_labels"] == "not_applicable" and items["rows_independent"] == "passed"


WRONG: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("inputs_matter", {"zeroed_inputs__gain": 0.0}, {"min_gain": 0.02}, "passed", "warning: after"),
    ("inputs_matter", {"zeroed_inputs__stopped": "nonfinite"}, {"min_gain": 0.02}, "passed", "non-finite"),
    ("chance_on_shuffled_labels", {"shuffled_labels__half_widths_above": 2.1, "shuffled_labels__shuffles": 9},
     {"clear": 1.0, "shuffles": 10}, "passed", "the lowest of 9 shuffles"),
    ("chance_on_shuffled_labels", {"shuffled_labels__half_widths_above": 2.1, "shuffled_labels__shuffles": 10},
     {"clear": 1.0, "shuffles": 10}, "failed",
     "was taught nonsense"),
    ("chance_on_shuffled_labels", {"shuffled_labels": ...}, {"clear": 1.0, "shuffles": 10}, "errored",
     "shuffled_labels"),
    ("rows_independent", {"rows_apart__alone": 0.5}, {"max_difference": 0.01}, "failed", "when it is alone"),
    ("parameters_against_rows", {"parameters_per_row__per_row": 101.0}, {"many": 100}, "passed", "by heart"),
    ("learning_rate_tried", {"learning_rate": {"outcome": "measured", "planned": 1.0, "suggested": None}}, {"far": 30},
     "passed", "falls at no rate"),
    ("learning_rate_tried", {"learning_rate": {"outcome": "measured", "planned": 1.0, "suggested": 0.01}}, {"far": 30},
     "passed", "warning: the range test suggests 0.01"),
    ("training_repeats", {"same_seed": {"outcome": "errored", "why": "exit 1"}}, {}, "errored",
     "the proof failed: exit 1"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "wrong", "bounds", "outcome", "why"), WRONG)
def test_what_each_check_answers(
    trained: Run, check: str, wrong: dict[str, Any], bounds: dict[str, Any], outcome: str, why: str
) -> None:
    """On the real evidence with one value changed, the check that asks for it says so."""
    new = {f"sanity_checks__{key}": value for key, value in wrong.items()}
    item = judged(f"sanity.{check}", changed(measured(trained, "baseline"), **new), **bounds)
    assert (item.outcome, why in item.why) == (outcome, True), item
