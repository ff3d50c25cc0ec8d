"""Targets keep the user's shape, and predictions have the shape of the targets before any metric compares them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.building import probe
from pipeline.config.sections import TrainingConfig
from pipeline.data.dataset import Data
from pipeline.data.load import load, seal
from pipeline.data.sources.npz import npz
from pipeline.engine.setup import TrainingComponents, build_components
from pipeline.errors import UserError
from pipeline.evaluation.baseline_models import score_baseline_models
from pipeline.evaluation.evaluate import score_split
from pipeline.evaluation.predictions import align_predictions, same_values
from pipeline.evaluation.task import Task, build_task
from pipeline.run_store.job import Job
from pipeline.trials.executor import Trial
from pipeline.trials.fix_report import class_results
from tests.trainings import config, permitted, train

__all__ = ["permitted"]

SEEN: list[tuple[int, ...]] = []  # shapes of the targets that the user's functions were given


def own_bce(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of the user's own for outputs and targets of one shape."""
    SEEN.append(tuple(targets.shape[1:]))
    return (torch.nn.functional.softplus(outputs) - targets * outputs).mean()


def own_ce(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of the user's own for class ids in a column."""
    return nn.functional.cross_entropy(outputs, targets.squeeze(1))


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of the user's own that broadcasts [B] against [B, 1]."""
    return ((outputs - targets) ** 2).mean()


def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """A step of the user's own for targets in a column."""
    outputs = model(batch[0])
    SEEN.append(tuple(batch[1].shape[1:]))
    return {"loss": own_bce(outputs, batch[1].float()), "outputs": outputs}


def broadcasting_step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """A step of the user's own that broadcasts [B] against [B, 1]."""
    outputs = model(batch[0])
    return {"loss": ((outputs.squeeze(1) - batch[1]) ** 2).mean(), "outputs": outputs}


def column_f1(targets: np.ndarray, predictions: np.ndarray) -> float:
    """A metric of the user's own that requires columns."""
    assert targets.shape == predictions.shape and targets.shape[1:] == (1,)
    return float((targets == predictions).mean())


column_f1.greater_is_better = True  # type: ignore[attr-defined]


def sigmoid(outputs: Tensor) -> Tensor:
    """A predictor of the user's own that needs the model's [N, 1]."""
    assert outputs.shape[1:] == (1,)
    return outputs.sigmoid()


class Brier:
    """A metric of the user's own of what the user's predictor returns."""

    greater_is_better = False

    def __init__(self, needs: str) -> None:
        self.needs = needs

    def __call__(self, targets: np.ndarray, predictions: np.ndarray) -> float:
        return float(((targets - predictions) ** 2).mean())


def first_class(outputs: Tensor) -> Tensor:
    """A predictor of the user's own that returns a column."""
    return (outputs > 0).long().reshape(-1, 1)


def along_rows(outputs: Tensor) -> Tensor:
    """A predictor of the user's own with the wrong axis."""
    return outputs.argmax(dim=0)


def target(name: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"tests.test_alignment.{name}", **options}


def linear(width: int = 1) -> dict[str, Any]:
    return {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": width}


def rows(kind: str, column: bool, classes: int = 2) -> Data:
    """Two clouds of points whose targets are a column, or not."""
    draw = np.random.default_rng(0)

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = draw.integers(0, classes, n)
        X = draw.normal(size=(n, 4)) + 3 * np.eye(4)[y]
        y = y if kind != "regression" else (X[:, 0] - X[:, 1])
        return X, y[:, None] if column else y

    return seal({"train": part(100), "val": part(60), "test": part(20)}, kind)


def components(data: Data, kind: str, metric: Any = None, **changed: Any) -> TrainingComponents:
    """The parts of a training; model, loss and task from the arguments."""
    metric = metric or {"regression": "rmse"}.get(kind, "accuracy")
    section = {"kind": kind, "metric": metric, "target": 0.5, "predict": "auto", **changed.pop("task", {})}
    body = config(task=section, **{"model": linear(), "loss": target("own_bce", _partial_=True), **changed})
    probe.probe(body, data, ("tests",))
    return build_components(TrainingConfig.from_mapping(body), Job("", "trial"), data, 3, ("tests",))


# --- targets keep the user's shape -----------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{}, {"task": {"step": target("step")}}])
def test_column_targets_reach_own_loss_and_step(changed: dict[str, Any]) -> None:
    """`nn.Linear(d, 1)` with `y[:, None]` runs: the loss or step gets [B, 1], in batches and in evaluation."""
    SEEN.clear()
    parts = components(rows("binary", column=True), "binary", **changed)
    batch = next(parts.batches.accumulation_groups(1))[0]
    assert batch.targets.shape == (16, 1)
    score = score_split(parts.model, parts.val, parts.task).score
    assert set(SEEN) == {(1,)} and score.n == 60


@pytest.mark.parametrize(
    ("kind", "loss", "width"),
    [
        ("binary", {"_target_": "torch.nn.BCEWithLogitsLoss"}, 1),
        ("binary", {"_target_": "torch.nn.CrossEntropyLoss"}, 2),
        ("classification", {"_target_": "torch.nn.CrossEntropyLoss"}, 2),
        ("classification", target("own_ce", _partial_=True), 2),
        ("regression", {"_target_": "torch.nn.MSELoss"}, 1),
        ("regression", target("squared", _partial_=True), 1),
    ],
)
def test_column_targets_run_with_any_loss(kind: str, loss: dict[str, Any], width: int) -> None:
    """Every kind of task with targets in a column has a loss, a score and baselines, as the same targets [N] have."""
    data = rows(kind, column=True)
    parts = components(data, kind, loss=loss, model=linear(width))
    evaluation = score_split(parts.model, parts.val, parts.task)
    assert math.isfinite(evaluation.loss) and math.isfinite(evaluation.score.value)
    assert all("value" in s for s in score_baseline_models(parts.task, data, 0, 5, outputs=evaluation.outputs))
    if loss["_target_"].startswith("torch"):
        flat = components(rows(kind, column=False), kind, loss=loss, model=linear(width))
        assert evaluation.loss == score_split(flat.model, flat.val, flat.task).loss
        assert parts.baseline_score == flat.baseline_score


def test_own_metric_gets_columns() -> None:
    """A metric of the user's own compares columns, for the model as for the trivial baseline and other models."""
    data = rows("binary", column=True)
    parts = components(data, "binary", metric=target("column_f1", _partial_=True))
    assert 0 < score_split(parts.model, parts.val, parts.task).score.value < 1
    assert parts.baseline_score["how"].startswith("always answers ")
    assert [s["value"] > 0.9 for s in score_baseline_models(parts.task, data, 0, 5)] == [True, True]


def test_npz_keeps_columns(tmp_path: Path) -> None:
    """A column of labels in an NPZ file stays one, and the same rows are in each split as without it."""
    X, y = np.arange(80.0).reshape(40, 2), np.arange(40) % 2
    for name, labels in (("column", y[:, None]), ("flat", y)):
        np.savez(tmp_path / f"{name}.npz", X=X, y=labels)
    column, flat = (npz(str(tmp_path / f"{name}.npz")) for name in ("column", "flat"))
    assert column["train"][1].shape == (24, 1) and flat["train"][1].shape == (24,)
    assert (column["val"][0] == flat["val"][0]).all() and (column["val"][1][:, 0] == flat["val"][1]).all()
    assert seal(column, "binary").column_targets and not seal(flat, "binary").column_targets


# --- losses that broadcast -------------------------------------------------------------------------------------------


class Squeezed(nn.Module):
    """A model that returns [B] beside targets of [B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).squeeze(-1)


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("regression", {"loss": target("squared", _partial_=True), "model": target("Squeezed")}),
        ("binary", {"loss": target("squared", _partial_=True), "model": target("Squeezed")}),
        ("regression", {"task": {"step": target("broadcasting_step")}}),
    ],
)
def test_probe_names_line_that_broadcasts(kind: str, changed: dict[str, Any]) -> None:
    """Outputs [B] against targets [B, 1] are refused before training, with the line that compares every pair."""
    with pytest.raises(
        UserError, match=rf"differ in shape at {__file__}:\d+: every output is compared with every target"
    ):
        components(rows(kind, column=True), kind, **changed)


PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squeezed": lambda outputs, y: ((outputs.squeeze(1) - y) ** 2).mean(),
    "every pair on purpose": lambda outputs, y: (outputs - y[None, :]).abs().mean(),
    "pairs of targets": lambda outputs, y: ((y[:, None] == y) * (outputs @ outputs.T)).mean(),
    "selected": lambda outputs, y: (outputs[y > -9] ** 2).mean(),
    "quantiles": lambda outputs, y: (y[:, None] - outputs.expand(-1, 3)).abs().mean(),
}


@pytest.mark.parametrize("loss", PAIRS.values(), ids=PAIRS)
def test_probe_accepts_losses_of_pairs(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A loss that squeezes, or that compares pairs in explicit axes, is the user's choice."""
    data, model = rows("regression", column=False), nn.Linear(4, 1)
    task = build_task(config(task={"kind": "regression", "metric": "rmse"}), loss, model)
    result = probe.probe_rows(model, task, data.train.X[:2], data.train.y[:2], None)
    assert result.outputs is not None and result.outputs.shape == (2, 1)


def test_probe_names_losses_of_torch_that_broadcast() -> None:
    """Inside a loss of the user's own, torch's mean hides the shape; masks [B, H, W] broadcast like rows."""

    def dice(outputs: Tensor, y: Tensor) -> Tensor:
        return 1 - 2 * (outputs * y).sum() / (outputs + y).sum()

    masks, model = torch.rand(2, 5, 5), nn.Conv2d(1, 1, 3, padding=1)
    task = build_task(config(task={"kind": "regression", "metric": "rmse"}), dice, model)
    with pytest.raises(UserError, match=r"got 'outputs \[B, 1, 5, 5\] and targets \[B, 5, 5\]'"):
        probe.probe_rows(model, task, torch.rand(2, 1, 5, 5), masks, None)
    hidden = build_task(config(task={"kind": "regression", "metric": "rmse"}), lambda o, y: nn.functional.l1_loss(o, y))
    with pytest.raises(UserError, match="every output is compared with every target"):
        probe.probe_rows(model, hidden, torch.rand(2, 1, 5, 5), masks, None)


# --- predictions and targets -----------------------------------------------------------------------------------------


def test_align_predictions_of_columns() -> None:
    """[N, 1] beside [N] is the same predictions; another number of rows or values is refused with both shapes."""
    column = np.arange(5)[:, None]
    assert align_predictions(column, (5,)).shape == (5,)
    assert align_predictions(column[:, 0], (5, 1)).shape == (5, 1)
    with pytest.raises(
        UserError, match=r"task\.predict: .*got 'predictions of shape \[5, 2\] for targets of shape \[5\]'"
    ):
        align_predictions(np.zeros((5, 2)), (5,))
    with pytest.raises(UserError, match=r"does not predict one row for each row"):
        align_predictions(np.zeros(2), (5,), users_metric=True)
    assert align_predictions(np.zeros((5, 3)), (5,), users_metric=True).shape == (5, 3)  # quantiles


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_same_values_ignores_axes_of_one(shape: list[int]) -> None:
    """Axes of 1 and flat rows are the same values; axes in another order are not."""
    assert same_values(shape, shape) and same_values(shape, [*shape, 1])
    assert same_values(shape, [shape[0], math.prod(shape[1:])])
    assert not same_values([2, 3, 4], [2, 4, 3])


def tasked(**section: Any) -> Task:
    body = config(task={"kind": "binary", "metric": "accuracy", **section})
    return build_task(body, nn.BCEWithLogitsLoss(), None, ("tests",))


def test_own_predictor_may_return_a_column() -> None:
    """A share of right predictions is the same for [N, 1] and [N]: never N times N comparisons."""
    outputs, y = torch.randn(160, 1, generator=torch.Generator().manual_seed(0)), torch.arange(160) % 2
    column = tasked(predict=target("first_class", _partial_=True))
    assert column.metric_values(outputs, y) == tasked().metric_values(outputs, y)
    assert column.predictions(outputs, y).shape == (160,)


def test_probe_refuses_predictor_along_wrong_axis() -> None:
    """Planning names task.predict and both shapes, before anything is trained."""
    with pytest.raises(UserError, match=r"task\.predict: .*shape \[1\] for targets of shape \[2\]"):
        components(rows("binary", False), "binary", task={"predict": target("along_rows", _partial_=True)},
                   loss={"_target_": "torch.nn.BCEWithLogitsLoss"})  # fmt: skip


# --- reference models never pass through the user's code -------------------------------------------------------------


def test_trivial_baseline_does_not_call_own_predictor() -> None:
    """Our outputs [N, 2] never reach a predictor made for [N, 1]; class ids are ours to decide."""
    data = rows("binary", False)
    auto = components(data, "binary", loss={"_target_": "torch.nn.BCEWithLogitsLoss"})
    own = components(data, "binary", loss={"_target_": "torch.nn.BCEWithLogitsLoss"},
                     task={"predict": target("first_class", _partial_=True)})  # fmt: skip
    assert own.baseline_score == auto.baseline_score
    assert own.baseline_score["how"].startswith("always answers ")


@pytest.mark.parametrize("needs", ["values", "classes"])
def test_reference_models_leave_own_values_alone(needs: str) -> None:
    """A metric of what the user's predictor returns is measured on the user's model alone, and the reason is given."""
    data, predict = rows("binary", True), target("sigmoid", _partial_=True)
    parts = components(data, "binary", metric=target("Brier", needs=needs), task={"predict": predict})
    assert parts.baseline_score["how"] == "the model before its first step"
    assert 0 < parts.baseline_score["value"] < 1
    scores = score_baseline_models(parts.task, data, 0, 5, outputs=torch.zeros(2, 1))
    assert all("task.predict makes of the network's outputs" in s["not_applicable"] for s in scores)


def pinball(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss of the user's own for three quantiles of one target."""
    error = targets[:, None] - outputs
    return torch.maximum(0.5 * error, -0.5 * error).mean()


class Coverage:
    """A metric of the user's own of three quantiles per row: how many targets lie between the outer ones."""

    greater_is_better = True

    def __call__(self, targets: np.ndarray, predictions: np.ndarray) -> float:
        assert predictions.shape[1:] == (3,) or predictions is targets
        return float(np.mean((predictions.min(-1) <= targets) & (targets <= predictions.max(-1))))


def test_quantiles_reach_own_metric() -> None:
    """Three quantiles per target run with a loss and a metric of the user's own, which our models cannot answer."""
    data = rows("regression", False)
    parts = components(data, "regression", metric=target("Coverage"), loss=target("pinball", _partial_=True),
                       model=linear(3))  # fmt: skip
    evaluation = score_split(parts.model, parts.val, parts.task)
    assert evaluation.outputs is not None and evaluation.outputs.shape == (60, 3)
    assert 0 <= evaluation.score.value <= 1 and parts.baseline_score["how"] == "the model before its first step"
    scores = score_baseline_models(parts.task, data, 0, 5, outputs=evaluation.outputs)
    assert all("not_applicable" in score for score in scores)
    with pytest.raises(UserError, match=r"task\.predict: .*shape \[2, 3\] for targets of shape \[2\]"):
        components(data, "regression", metric="mae", loss=target("pinball", _partial_=True), model=linear(3))


def test_trivial_baseline_of_autoencoder_is_its_mean() -> None:
    """The mean of the inputs is not passed through the sigmoid of a loss that takes logits."""
    X = np.full((8, 3), 0.25)
    data = seal({"train": (X, X), "val": (X, X), "test": (X, X)}, "autoencoder")
    parts = components(data, "autoencoder", metric="rmse", loss={"_target_": "torch.nn.BCEWithLogitsLoss"},
                       model={"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 3})  # fmt: skip
    assert parts.baseline_score["value"] == 0.0


@pytest.mark.usefixtures("permitted")
def test_class_results_of_a_trial_keep_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After optimization, too, a metric of the user's own gets the targets as a column."""
    monkeypatch.setattr("pipeline.models.mlp.column_f1", column_f1, raising=False)
    monkeypatch.setattr(column_f1, "__module__", "pipeline.models.mlp")  # needs no trust
    X = np.random.default_rng(0).normal(size=(80, 4))
    np.savez(tmp_path / "rows.npz", X=X, y=(X[:, :1] > 0).astype(int))
    body = config(
        data={"_target_": "pipeline.data.sources.npz.npz", "path": str(tmp_path / "rows.npz")},
        model=linear(),
        loss={"_target_": "torch.nn.BCEWithLogitsLoss"},
        task__kind="binary",
        task__metric={"_target_": "pipeline.models.mlp.column_f1", "_partial_": True},
    )
    (folder := tmp_path / "trial").mkdir()
    fit_result = train(body, load(body), folder=folder)
    trial = Trial("c1-1", Job("", "trial"), folder, {"checkpoint": str(fit_result.checkpoint)})
    assert len(class_results(tmp_path, trial, body, ())["classes"]) == 2
