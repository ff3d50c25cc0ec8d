"""Sanity checks: each finds the fault that it looks for, and says where it does not apply."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from diagnostics.monitor import Monitor
from pipeline.data.dataset import Data
from pipeline.data.load import seal
from pipeline.data.train_rows import apply_row_changes
from pipeline.history import History
from pipeline.run_store.gate import Item
from pipeline.run_store.job import run_seed
from pipeline.run_store.run import Run
from pipeline.sanity_checks import ablations, forward_checks
from pipeline.sanity_checks.context import CheckContext, NotRun
from pipeline.sanity_checks.loss_sign import loss_sign
from pipeline.sanity_checks.lr_range_test import combine, format_range_test, lr_range_test, suggest
from pipeline.sanity_checks.reproducibility import first_difference
from pipeline.sanity_checks.run_checks import SanityCheck, run_check, run_checks
from tests.check_helpers import judge, read_evidence, with_values
from tests.conftest import Cli, go
from tests.trainings import blobs, config, permitted, train

__all__ = ["permitted"]

ITEMS = (
    "one_batch_tried", "inputs_matter", "chance_on_shuffled_labels", "gradients_reach", "rows_independent",
    "evaluation_repeats", "parameters_against_rows", "loss_not_negative", "learning_rate_tried", "training_repeats",
)  # fmt: skip


class FaultyNet(nn.Module):
    """A net for the clouds of points, with one planted fault."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault, self.net = fault, nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        if fault == "unused":
            self.spare = nn.Linear(8, 3)
        if fault == "zeroed":
            self.gate = nn.Parameter(torch.ones(3))
        if fault == "listed":
            self.layers = [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)]  # the last one is not used

    def forward(self, x: Tensor) -> Tensor:
        if self.fault == "batch statistics":
            x = nn.functional.batch_norm(x, None, None, training=True)
        if self.fault == "listed":
            x = self.layers[1](self.layers[0](x))
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
def context(monkeypatch: pytest.MonkeyPatch) -> Callable[..., CheckContext]:
    """`context("dropout")`: a context without a permit, whose model has that fault."""

    def make(fault: str = "", data: Data | None = None, **more: Any) -> CheckContext:
        monkeypatch.setattr("pipeline.engine.setup.build_model", lambda *_: FaultyNet(fault))
        body = {**config(), **more}
        return CheckContext(
            body, (), data or blobs(), {"overfit_steps": 20, "sanity_check_steps": 20, "reproducibility_steps": 5}
        )

    return make


def item_of(context: CheckContext, sanity_check: SanityCheck, check: str, **bounds: Any) -> Item:
    """The gate's item for one sanity check."""
    results = {sanity_check.__name__: run_check(sanity_check, context)}
    return judge(f"sanity.{check}", {"sanity_checks": results}, **bounds)


FAR = {"max_difference": 0.01}
FAULTS: list[tuple[str, Callable[..., Any], str, dict[str, Any], str, str]] = [
    ("", forward_checks.gradient_flow, "gradients_reach", {"named": 8}, "passed", "each of 4 trainable parameters"),
    (
        "unused",
        forward_checks.gradient_flow,
        "gradients_reach",
        {"named": 8},
        "passed",
        "spare.weight (not in the loss)",
    ),
    (
        "listed",
        forward_checks.gradient_flow,
        "gradients_reach",
        {"named": 8},
        "failed",
        "2 of 6 trainable parameters are in a Python list or dict, and no optimizer gets them: layers[0].weight",
    ),
    ("zeroed", forward_checks.gradient_flow, "gradients_reach", {"named": 8}, "passed", "gate (zero)"),
    ("", forward_checks.batch_independence, "rows_independent", FAR, "passed", "the first and the last of 8 rows"),
    (
        "batch statistics",
        forward_checks.batch_independence,
        "rows_independent",
        FAR,
        "failed",
        "depends on the other rows of its batch",
    ),
    (
        "batch mean",
        forward_checks.batch_independence,
        "rows_independent",
        FAR,
        "failed",
        "depends on the other rows of its batch",
    ),
    (
        "runs along the batch",
        forward_checks.batch_independence,
        "rows_independent",
        FAR,
        "failed",
        "depends on the other rows of its batch",
    ),
    ("squeezed", forward_checks.batch_independence, "rows_independent", FAR, "passed", "warning: "),
    ("clock", forward_checks.batch_independence, "rows_independent", FAR, "not_applicable", "not deterministic"),
    ("", forward_checks.eval_determinism, "evaluation_repeats", {"max_rows": 0}, "passed", "40 rows twice"),
    (
        "dropout",
        forward_checks.eval_determinism,
        "evaluation_repeats",
        {"max_rows": 0},
        "failed",
        "outputs of the same rows",
    ),
    (
        "clock",
        forward_checks.eval_determinism,
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
        "67 trainable parameters",
    ),
    ("", ablations.zeroed_inputs, "inputs_matter", {"min_gain": 0.02}, "not_applicable", "there is no permit"),
]


@pytest.mark.parametrize(("fault", "sanity_check", "check", "bounds", "outcome", "why"), FAULTS)
def test_sanity_check_finds_the_planted_fault(
    context: Callable[..., CheckContext], fault: str, sanity_check: Any, check: str, bounds: Any, outcome: str, why: str
) -> None:
    """A fault of the model only warns; a fault that invalidates its scores fails the item."""
    item = item_of(context(fault), sanity_check, check, **bounds)
    assert (item.outcome, why in item.why) == (outcome, True), item
    causes = {
        "gradients_reach": "parameters_not_trained",
        "rows_independent": "normalization_misused",
        "evaluation_repeats": "eval_mode_missing",
    }
    assert item.cause == (
        causes[check] if outcome == "failed" else "parameters_not_trained" if fault in ("unused", "zeroed") else None
    )


def test_run_checks_records_an_exception_and_goes_on(context: Callable[..., CheckContext]) -> None:
    """A check that raises is missing evidence, which closes the gate; the other checks still run."""
    broken = context()
    broken.setup.task.forward  # builds the setup
    broken.setup.model.forward = lambda x: x / 0 if isinstance(x, int) else None  # type: ignore[method-assign]
    results = run_checks(broken)
    assert results["gradient_flow"]["outcome"] == results["eval_determinism"]["outcome"] == "errored"
    assert results["parameters_per_row"]["outcome"] == "measured"
    trained = ("overfit_one_batch", "lr_range_test", "reproducibility")
    assert {results[name]["outcome"] for name in trained} == {"not_run"}
    item = judge("sanity.evaluation_repeats", {"sanity_checks": results}, max_rows=0)
    assert item.outcome == "errored" and "the sanity check failed" in item.why


def test_unregistered_parameters_are_trainable_and_known_to_nobody_else() -> None:
    """Layers in a list or dict are found, however deep their module is; frozen and registered layers are not."""
    inner: Any = nn.Module()
    model: Any = nn.Sequential(nn.Linear(2, 2))
    inner.blocks = {"a": nn.Linear(2, 1), "teacher": nn.Linear(2, 1).requires_grad_(False)}
    model.add_module("inner", inner)
    model.shortcuts = [model[0], nn.Parameter(torch.ones(1)), 7]
    names = list(forward_checks.unregistered_parameters(model))
    assert sorted(names) == ["inner.blocks['a'].bias", "inner.blocks['a'].weight", "shortcuts[1]"]


def test_gradient_flow_uses_several_batches(context: Callable[..., CheckContext]) -> None:
    """A parameter without a gradient on one batch, but with one on the next, is not a fault."""
    late = context()
    scales = iter([torch.zeros(3), torch.ones(3), torch.ones(3)])
    late.setup.model.register_parameter("late", nn.Parameter(torch.ones(3)))
    late.setup.model.register_forward_hook(lambda m, _, out: out + next(scales) * m.late)
    result = forward_checks.gradient_flow(late)
    assert (result["silent"], result["batches"]) == ({}, 2)


def test_forward_checks_leave_the_model_unchanged(context: Callable[..., CheckContext]) -> None:
    """No check changes a weight, a running statistic or a gradient."""
    unchanged = context()
    model = unchanged.setup.model
    model.add_module("norm", nn.BatchNorm1d(3))
    model.register_forward_hook(lambda m, _, out: m.norm(out))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checks = (forward_checks.gradient_flow, forward_checks.batch_independence, forward_checks.eval_determinism)
    for check in checks:
        assert run_check(check, unchanged)["outcome"] == "measured"
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def ramp(steps: int = 100) -> np.ndarray:
    return np.logspace(-7, 1, steps)


def test_lr_range_test_suggests_the_steepest_fall() -> None:
    """For a loss that falls fastest at 0.01 and explodes at 1; noise changes the suggestion little."""
    rates = ramp()
    loss = 2.3 / (1 + rates / 0.01) + np.where(rates > 0.5, 50 * (rates - 0.5), 0)
    loss += 0.02 * np.random.default_rng(0).normal(size=len(loss))
    suggestion = suggest(rates, loss)
    assert suggestion["suggested"] is not None and 0.004 < suggestion["suggested"] < 0.02
    assert suggestion["diverges"] is not None and 0.3 < suggestion["diverges"] < 1.5
    line = format_range_test({"planned": 1.0, **suggestion})
    assert "suggests 0.0" in line and "exceeds its initial value above a rate of" in line


@pytest.mark.parametrize(
    "losses",
    [np.full(100, 2.3) + 0.1 * np.random.default_rng(1).normal(size=100), np.linspace(2, 9, 100), np.full(100, np.nan)],
    ids=["flat", "rising", "nan"],
)
def test_lr_range_test_suggests_none_if_the_loss_does_not_fall(losses: np.ndarray) -> None:
    """A flat, a rising and a NaN loss have no suggestion."""
    suggestion = suggest(ramp(), losses)
    assert suggestion["suggested"] is None
    line = format_range_test({"planned": 0.1, **suggestion})
    assert "suggests none, since at no rate does the loss fall by more than it varies" in line


def unbounded(rates: np.ndarray) -> np.ndarray:
    """The loss of a critic that is `-outputs.mean()`: each step lowers it by the rate, without an end."""
    return 0.03 - np.cumsum(rates) * 1e4


@pytest.mark.parametrize("then", [1.0, np.nan, 1e9], ids=["to the end", "then NaN", "then up"])
def test_lr_range_test_suggests_none_for_a_loss_without_a_bound(then: float) -> None:
    """The larger the rate, the lower the loss: such a curve says nothing about a good rate, whatever its end."""
    rates = ramp()
    losses = unbounded(rates) + 0.01 * np.random.default_rng(0).normal(size=100)
    losses[95:] = losses[95:] if then == 1.0 else then
    suggestion = suggest(rates, losses)
    assert suggestion["suggested"] is None
    assert "the loss has no lower bound" in suggestion["why_none"] and "falls to -" in suggestion["why_none"]
    assert "suggests none, since the loss has no lower bound" in format_range_test({"planned": 0.1, **suggestion})


@pytest.mark.parametrize("shift", [0.0, 2.0, 9.0], ids=["positive", "crosses zero", "negative"])
def test_lr_range_test_accepts_a_negative_loss_with_a_bound(shift: float) -> None:
    """A likelihood or a similarity may be negative; a constant added to the loss does not change the suggestion."""
    rates = ramp()
    loss = 2.3 / (1 + rates / 0.01) + np.where(rates > 0.5, 50 * (rates - 0.5), 0)
    loss += 0.02 * np.random.default_rng(0).normal(size=len(loss))
    assert suggest(rates, loss - shift)["suggested"] == suggest(rates, loss)["suggested"]


def test_lr_range_test_suggests_none_for_a_loss_that_cannot_be_negative() -> None:
    """Even a small negative value of such a loss means that its curve is not to be trusted."""
    rates = ramp()
    suggestion = suggest(rates, 2.3 / (1 + rates / 0.01) - 0.1, "BCEWithLogitsLoss")
    assert suggestion["why_none"] == "BCEWithLogitsLoss cannot be negative, and falls to -0.0977"
    assert suggest(rates, 2.3 / (1 + rates / 0.01), "BCEWithLogitsLoss")["suggested"] is not None


def of_seeds(*rates: float | None) -> Any:
    """What the range tests of some seeds say together."""
    seeds = [{"suggested": r, "start": 2.0, "lowest": 1.0, "diverges": None, "why_none": "" if r else "it is flat"}
             for r in rates]  # fmt: skip
    return combine(seeds)  # type: ignore[arg-type]


def test_lr_range_test_combines_seeds_by_their_median() -> None:
    """Of three seeds the middle rate is suggested, with the lowest and the highest; most seeds must suggest one."""
    three, two, one = of_seeds(0.03, 0.01, 0.02), of_seeds(0.03, None, 0.01), of_seeds(0.01, None, None)
    assert (three["suggested"], three["low"], three["high"]) == (0.02, 0.01, 0.03)
    assert (two["suggested"], two["low"], two["high"], two["suggestions"]) == (0.01, 0.01, 0.03, [0.03, None, 0.01])
    assert one["suggested"] is None and one["why_none"] == "it is flat" and "low" not in one
    lines = [format_range_test({"planned": 0.1, **result}) for result in (three, two, one, of_seeds(0.02))]
    assert "suggests 0.02 (0.01 to 0.03 over 3 seeds): the loss falls from 2 to 1" in lines[0]
    assert "suggests 0.01 (0.01 to 0.03 over 2 of 3 seeds)" in lines[1]
    assert "suggests none, since it is flat" in lines[2] and "suggests 0.02 (one seed)" in lines[3]


@given(st.lists(st.one_of(st.none(), st.floats(1e-6, 1)), min_size=1, max_size=3))
def test_lr_range_test_suggestion_lies_in_its_range(rates: list[float | None]) -> None:
    """A suggestion is one of the seeds' rates, between the lowest and the highest of them."""
    result = of_seeds(*rates)
    suggested = [rate for rate in rates if rate]
    assert (result["suggested"] is None) == (2 * len(suggested) <= len(rates))
    assert result["suggestions"] == rates
    if result["suggested"]:
        assert (
            result["suggested"] in suggested
            and min(suggested) == result["low"] <= result["suggested"] <= result["high"]
        )


def test_lr_range_test_trains_three_seeds_as_long_as_time_allows(
    context: Callable[..., CheckContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The master seed comes first; without time for the others its suggestion stands alone."""
    timed = context()
    indices: list[int] = []

    def train(purpose: str, steps: int, delta: Any, seed_index: int = 0) -> Any:
        if len(indices) == limit:
            raise NotRun("time")
        indices.append(seed_index)
        history, rates = History(), ramp(steps)
        for step, rate in enumerate(rates, 1):
            history.log_step(step, {"lr": rate, "train/loss": 2.3 / (1 + rate / 0.01 / 10**seed_index)})
        return SimpleNamespace(history=history, task=timed.setup.task)

    monkeypatch.setattr(timed, "require_permit", lambda: None)
    monkeypatch.setattr(timed, "train", train)
    results = {}
    for limit in (9, 1, 0):  # trainings for which there is time
        indices.clear()
        results[limit] = run_check(lr_range_test, timed)
        assert indices == [0, 1, 2][:limit]
    assert [len(results[limit]["suggestions"]) for limit in (9, 1)] == [3, 1]
    assert results[9]["low"] < results[9]["suggested"] < results[9]["high"] and results[9]["steps"] == 20
    assert (results[0]["outcome"], results[0]["why"]) == ("not_run", "not run: time")


@pytest.mark.parametrize(
    ("loss", "value", "outcome", "why", "cause"),
    [
        (nn.BCEWithLogitsLoss(), -3.0, "passed", "WithLogitsLoss cannot be negative, and is -3", "labels_misencoded"),
        (nn.functional.nll_loss, -0.2, "passed", "not log-probabilities", "loss_mismatch"),
        (nn.MSELoss(), -0.2, "passed", "(negative first at step 2)", "loss_reduction_or_sign"),
        (nn.MSELoss(), 0.0, "passed", "MSELoss is never negative", None),
        (nn.CrossEntropyLoss(), -1e-8, "passed", "CrossEntropyLoss is never negative", None),
        (nn.GaussianNLLLoss(), -3.0, "not_applicable", "may be negative", None),
        (lambda outputs, targets: -outputs.mean(), -3.0, "not_applicable", "may be negative", None),
        (nn.MSELoss(), np.nan, "passed", "MSELoss is never negative", None),
    ],
)  # fmt: skip
def test_loss_sign_names_a_negative_loss_that_cannot_be(
    context: Callable[..., CheckContext], loss: Any, value: float, outcome: str, why: str, cause: str | None
) -> None:
    """Known losses are judged by their name; a loss of the user's own may be negative."""
    looked_at = context()
    history = History()
    for step, each in enumerate((0.5, value, 0.1), 1):
        history.log_step(step, {"train/loss": each})
    task = replace(looked_at.setup.task, loss=loss)
    looked_at.control = SimpleNamespace(history=history, task=task)  # type: ignore[assignment]
    item = item_of(looked_at, loss_sign, "loss_not_negative")
    assert (item.outcome, why in item.why, item.cause) == (outcome, True, cause), item
    step = replace(task, step=lambda model, batch: {"loss": 0})
    looked_at.control = SimpleNamespace(history=history, task=step)  # type: ignore[assignment]
    assert item_of(looked_at, loss_sign, "loss_not_negative").outcome == "not_applicable"


@pytest.mark.parametrize(("loss", "expected"), [("CrossEntropyLoss", np.log(3)), ("MultiMarginLoss", None)])
def test_loss_expected_is_not_made_up_for_other_losses(loss: str, expected: float | None) -> None:
    """ln C is expected of cross entropy; the monitor does not add it where the engine knows no value for the loss."""
    facts = train(config(loss={"_target_": f"torch.nn.{loss}"}), blobs(), Monitor()).history.facts
    assert facts.get("loss_expected") == (pytest.approx(expected) if expected else None)


def test_lr_range_test_uses_the_rates_before_nan() -> None:
    """Rates up to the first NaN give the suggestion, and the NaN is where the loss diverges."""
    rates = ramp()
    loss = np.where(rates > 1, np.nan, 2.3 / (1 + rates / 0.01))
    suggestion = suggest(rates, loss)
    assert suggestion["suggested"] and 0.004 < suggestion["suggested"] < 0.02
    assert suggestion["diverges"] == pytest.approx(1, rel=0.3)


def test_first_difference_names_step_and_series() -> None:
    """Two histories are the same except for times, or differ first at one step in one series."""

    def history(at: int | None) -> History:
        history = History()
        for step in range(1, 10):
            loss = float("nan") if step == 9 else 1.0 + (at is not None and step >= at)
            history.log_step(step, {"train/loss": loss, "time/x": time.time()})
        return history

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

def distils(model, batch):
    outputs, teacher = model(batch[0]), batch[0][:, :3].argmax(1)
    return {"loss": nn.functional.cross_entropy(outputs, teacher), "outputs": outputs}
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
plan: {purpose: to be caught, population: any, assumptions: [none], risks: [none], limits: {size_mb: 1}, owner: none}
tracking: {kind: none}
"""
WORDS = ("--config-dir", "conf", "experiment=planted", "trust=[planted]")


@pytest.fixture
def planted(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Write the planted package into the folder; `planted()` returns the items of the baseline's gate."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # each test's folder has a package of this name
    sys.modules.pop("planted", None)
    (own_folder / "conf" / "experiment").mkdir(parents=True)
    (own_folder / "planted.py").write_text(PLANTED)
    (own_folder / "conf" / "experiment" / "planted.yaml").write_text(EXPERIMENT)
    return lambda: {i.id: i for i in Run(own_folder / "runs" / "planted").state().gates["baseline"].items}


@pytest.fixture
def planned_blobs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ablations.ShuffledLabelsResult]:
    """`planned_blobs(seed)`: the shuffled-labels check on two clusters that are far apart, with that seed.

    `noise` hides the clusters, `metric` decides, and `share` of the rows are of class 1.
    """
    model = {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 1}

    def check(seed: int, noise: float = 0.1, metric: str = "roc_auc", share: float = 0.5) -> Any:
        section = {"kind": "binary", "metric": metric, "target": 0.9}
        draw = np.random.default_rng(0)
        y = (draw.random(300) < share).astype(int)
        X = noise * draw.normal(size=(300, 4)) + np.eye(4)[y]
        splits = {"train": (X[:100], y[:100]), "val": (X[100:200], y[100:200]), "test": (X[200:], y[200:])}
        data = seal(splits, "binary")
        loss = {"_target_": "torch.nn.BCEWithLogitsLoss"}
        body = {**config(), "task": section, "model": model, "loss": loss, "seed": seed}
        context = CheckContext(body, (), data, {"sanity_check_steps": 20})

        def train_rows(purpose: str, steps: int, delta: Any, seed_index: int = 0) -> Any:
            rows = replace(data, train=apply_row_changes(data.train, delta.train_rows, run_seed(seed, seed_index)))
            return train(body, rows, purpose=purpose, seed_index=seed_index, max_steps=steps)

        monkeypatch.setattr(context, "train", train_rows)
        return ablations.shuffled_labels(context)

    return check


def test_shuffled_labels_finds_a_step_that_uses_targets(planted: Callable[[], dict[str, Any]], cli: Cli) -> None:
    """A step that adds the targets to its outputs scores above chance on shuffled labels, and closes the gate."""
    assert cli("phase=baseline", *WORDS, "task.step={_target_: planted.tells}")[0] == 3
    item = planted()["chance_on_shuffled_labels"]
    assert (item.outcome, item.cause) == ("failed", "data_leakage")
    assert "knows the right ones" in item.why
    assert {i.id for i in planted().values() if i.outcome not in ("passed", "not_applicable")} == {item.id}


def test_shuffled_labels_does_not_judge_a_step_with_a_teacher(planted: Callable[[], dict[str, Any]], cli: Cli) -> None:
    """A student learns the right classes from its teacher whatever the targets are: that is no leak, and it says so."""
    assert cli("phase=baseline", *WORDS, "task.step={_target_: planted.distils}", "optimizer.lr=0.05")[0] == 0
    item = planted()["chance_on_shuffled_labels"]
    assert item.outcome == "not_applicable"
    assert "task.step teaches more than the targets of a batch" in item.why


def test_shuffled_labels_does_not_take_luck_for_a_leak(
    planned_blobs: Callable[..., ablations.ShuffledLabelsResult],
) -> None:
    """Every second model trained on shuffled labels is right on two far clusters; further shuffles show that."""
    results = [planned_blobs(seed) for seed in range(4)]
    assert {result["shuffles"] for result in results} != {1}  # some models were lucky
    assert max(result["half_widths_above"] for result in results) <= 1


def test_shuffled_labels_does_not_take_random_predictions_for_a_leak(
    planned_blobs: Callable[..., ablations.ShuffledLabelsResult],
) -> None:
    """The majority class has an F1 of 0; random predictions of both classes have more, which is chance as well."""
    result = planned_blobs(2, noise=30.0, metric="f1", share=0.4)
    assert result["half_widths_above"] <= 1, result
    assert result["chance"] > 0.2


@pytest.mark.process
def test_reproducibility_finds_a_model_that_depends_on_the_clock(
    planted: Callable[[], dict[str, Any]], cli: Cli
) -> None:
    """Two processes with one seed differ at a named step; a plan that does not require determinism passes."""
    arguments = (
        *WORDS,
        "+model.hurried=true",
        "phases.baseline.reproducibility_steps=10",
        "phases.baseline.sanity_check_steps=0",
    )
    code, _, err = cli("phase=baseline", *arguments)
    assert code == 3, err
    item = planted()["training_repeats"]
    assert (item.outcome, item.cause) == ("failed", "nondeterminism"), item.why
    assert "first at step 1 in " in item.why
    matter = planted()["inputs_matter"]
    assert matter.outcome == "not_applicable" and "phases.baseline.sanity_check_steps is 0" in matter.why
    allowed = {
        "sanity_checks": {
            "reproducibility": {
                "outcome": "measured",
                "same": False,
                "first_difference": 3,
                "of": "train/loss",
                "steps": 9,
                "deterministic": "warn",
            }
        }
    }
    assert judge("sanity.training_repeats", allowed).outcome == "passed"


@pytest.mark.process
def test_sanity_checks_pass_on_a_healthy_plan(own_folder: Path) -> None:
    """Each is measured, none is left out, no files of them are left, and their facts are in the history."""
    arguments = ("experiment=digits", "tracking=none", "trainer.max_epochs=6", "phases.baseline.folds=0")
    run, gate, _ = go(own_folder, "phase=baseline", *arguments, "phases.baseline.reproducibility_steps=20")
    items = {i.id: i for i in run.state().gates["baseline"].items}
    results = read_evidence(run, "baseline")["sanity_checks"]
    assert gate == "open" and {items[i].outcome for i in ITEMS} == {"passed"}
    assert {result["outcome"] for result in results.values()} == {"measured"}
    assert [i for i in ITEMS if "warning" in items[i].why] == []
    assert results["reproducibility"]["same"] and results["zeroed_inputs"]["gain"] > 0.5
    assert not (run.path / "baseline" / "sanity_checks").exists()
    facts = History.load(run.inside("baseline", "history.npz")).facts
    assert {"inputs_gain", "share_untrained", "parameters_per_row", "lr_over_suggested"} <= set(facts)


def test_sanity_checks_without_time_are_not_run(trained: Run, own_folder: Path) -> None:
    """They have a tenth of the training's time: a check that would exceed it is not run, and closes no gate."""
    arguments = ("experiment=digits", "tracking=none", "trainer.max_minutes=0.002", "trainer.max_epochs=1")
    run, _, _ = go(own_folder / "short", "phase=baseline", *arguments)
    results = read_evidence(run, "baseline")["sanity_checks"]
    assert results["shuffled_labels"]["outcome"] == results["reproducibility"]["outcome"] == "not_run"
    assert "time: " in results["shuffled_labels"]["why"]
    items = {i.id: i.outcome for i in run.state().gates["baseline"].items}
    assert items["chance_on_shuffled_labels"] == "not_applicable" and items["rows_independent"] == "passed"


OVERFIT = {"min_steps": 20, "suspicious_ratio": 0.99}
NEGATIVE = {"zeroed_inputs__gain": float("nan"), "zeroed_inputs__zeroed": -0.5}
WRONG: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("one_batch_tried", {"overfit_one_batch__first": -0.11, "overfit_one_batch__last": -9.0,
     "overfit_one_batch__loss_ratio": 82.0}, OVERFIT, "passed", "loss fell from -0.11 to -9"),
    ("one_batch_tried", {"overfit_one_batch__first": 0.11, "overfit_one_batch__last": -9.0,
     "overfit_one_batch__loss_ratio": -82.0}, OVERFIT, "passed", "loss fell from 0.11 to -9"),
    ("one_batch_tried", {"overfit_one_batch__first": -9.0, "overfit_one_batch__last": -0.11,
     "overfit_one_batch__loss_ratio": 0.012}, OVERFIT, "passed", "warning: the loss of one batch does not fall"),
    ("one_batch_tried", {"overfit_one_batch__first": 0.0, "overfit_one_batch__last": 0.0,
     "overfit_one_batch__loss_ratio": float("nan")}, OVERFIT, "passed", "does not fall, it goes from 0 to 0"),
    ("inputs_matter", {"zeroed_inputs__gain": 0.0}, {"min_gain": 0.02}, "passed", "warning: after"),
    ("inputs_matter", {**NEGATIVE, "zeroed_inputs__real": -9.0}, {"min_gain": 0.02}, "passed",
     "the loss is -9, on zeroed inputs -0.5; a share of a negative loss means nothing"),
    ("inputs_matter", {**NEGATIVE, "zeroed_inputs__real": -0.1}, {"min_gain": 0.02}, "passed", "warning: after"),
    ("inputs_matter", {"zeroed_inputs__stopped": "nonfinite"}, {"min_gain": 0.02}, "passed", "non-finite"),
    ("chance_on_shuffled_labels", {"shuffled_labels__half_widths_above": 2.1, "shuffled_labels__shuffles": 9},
     {"clear": 1.0, "shuffles": 10}, "passed", "the lowest of 9 shuffles"),
    ("chance_on_shuffled_labels", {"shuffled_labels__half_widths_above": 2.1, "shuffled_labels__shuffles": 10},
     {"clear": 1.0, "shuffles": 10}, "failed",
     "trained on shuffled labels knows"),
    ("chance_on_shuffled_labels", {"shuffled_labels": ...}, {"clear": 1.0, "shuffles": 10}, "errored",
     "shuffled_labels"),
    ("rows_independent", {"batch_independence__alone": 0.5}, {"max_difference": 0.01}, "failed", "when it is alone"),
    ("parameters_against_rows", {"parameters_per_row__per_row": 101.0}, {"many": 100}, "passed", "memorize"),
    ("learning_rate_tried", {"lr_range_test": {"outcome": "measured", "planned": 1.0, "suggested": None}}, {"far": 30},
     "passed", "at no learning rate does the loss fall"),
    ("learning_rate_tried", {"lr_range_test": {"outcome": "measured", "planned": 1.0, "suggested": 0.01}}, {"far": 30},
     "passed", "warning: the range test suggests 0.01"),
    ("learning_rate_tried", {"lr_range_test__suggested": None, "lr_range_test__why_none": "it has no lower bound"},
     {"far": 30}, "passed", "warning: no learning rate is suggested, since it has no lower bound"),
    ("learning_rate_tried", {"lr_range_test": {"outcome": "measured", "planned": 0.02, "suggested": 0.01, "low": 0.01,
     "high": 0.03, "suggestions": [0.03, 0.01, 0.01]}}, {"far": 30}, "passed", "0.01 (0.01 to 0.03 over 3 seeds)"),
    ("training_repeats", {"reproducibility": {"outcome": "errored", "why": "exit 1"}}, {}, "errored",
     "the sanity check failed: exit 1"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "wrong", "bounds", "outcome", "why"), WRONG)
def test_sanity_items_on_changed_evidence(
    trained: Run, check: str, wrong: dict[str, Any], bounds: dict[str, Any], outcome: str, why: str
) -> None:
    """On real evidence with one value changed, the item of that value has the expected outcome."""
    new = {f"sanity_checks__{key}": value for key, value in wrong.items()}
    item = judge(f"sanity.{check}", with_values(read_evidence(trained, "baseline"), **new), **bounds)
    assert (item.outcome, why in item.why) == (outcome, True), item
