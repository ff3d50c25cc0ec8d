"""Evaluation: outputs, loss and score of a model on a split, and the tasks of small trainings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.building import builder
from pipeline.data.splits import Split
from pipeline.errors import Refused, UserError
from pipeline.evaluation import evaluate
from pipeline.evaluation.task import Task, build_task, expected_loss
from pipeline.results import Score, TrainSide
from tests.trainings import REGRESSION, Changed, blobs, config, permitted, train

__all__ = ["permitted"]

NESTED = {"left": torch.randn(20, 2), "more": (torch.randn(20, 3), torch.arange(20))}
Y = torch.arange(20) % 3
TASK = {"kind": "classification", "metric": "accuracy"}


class Net(nn.Module):
    """Three logits of a nested batch."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 3), nn.Linear(3, 3)

    def forward(self, batch: Any) -> Tensor:
        return self.left(batch["left"]) + self.right(batch["more"][0]) * batch["more"][1][:, None]


def nested_task(loss: nn.Module | None = None) -> Task:
    return build_task({"task": TASK}, loss or nn.CrossEntropyLoss())


def test_score_split_of_nested_rows_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dicts and tuples of tensors are split together; parts give the same loss and score as the whole."""
    model, split = Net(), Split("val", NESTED, Y)
    whole = evaluate.score_split(model, split, nested_task())
    assert whole.outputs is not None and torch.equal(whole.outputs, model(NESTED).detach())
    monkeypatch.setattr(evaluate, "BATCH_SIZE", 7)
    parts = evaluate.score_split(model, split, nested_task())
    assert whole.loss == pytest.approx(parts.loss, rel=1e-6) and whole.score == parts.score


def test_mean_loss_equals_loss_and_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit in one part; the mean weighted by rows in several."""
    model = Net()
    whole = evaluate.loss_and_metrics(model, NESTED, Y, nested_task()).loss
    assert whole == evaluate.mean_loss(model, NESTED, Y, nested_task())
    monkeypatch.setattr(evaluate, "BATCH_SIZE", 7)
    assert whole == pytest.approx(evaluate.mean_loss(model, NESTED, Y, nested_task()), rel=1e-6)


class Merged(nn.Linear):
    """Does more than set a flag when its mode changes, as adapters do that merge their weights for evaluation."""

    merged = False

    def train(self, mode: bool = True) -> Any:
        self.merged = not mode
        return super().train(mode)


def test_eval_mode_restores_the_mode_of_every_module() -> None:
    """Also of one that was in eval mode inside a model in train mode, and after an error."""
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    model[1].eval()
    with pytest.raises(RuntimeError), evaluate.eval_mode(model):
        assert not model.training and not model[0].training and not torch.is_grad_enabled()
        raise RuntimeError
    assert (True, True, False) == (model.training, model[0].training, model[1].training) and torch.is_grad_enabled()


def test_eval_mode_calls_an_overridden_train_method() -> None:
    """`train` is called at the beginning and at the end of the block."""
    model = nn.Sequential(Merged(2, 2), nn.Dropout()).train()
    model[1].eval()
    with evaluate.eval_mode(model):
        assert model[0].merged and not model[0].training
    assert not model[0].merged and model[0].training and not model[1].training


def test_eval_mode_allows_cached_tensors_in_training() -> None:
    """A tensor that is created on first use is not an inference tensor."""

    class Lazy(nn.Linear):
        table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.ones(2)
            return super().forward(x * self.table)

    model = Lazy(2, 3)
    evaluate.loss_and_metrics(model, NESTED["left"], Y, nested_task())
    model(NESTED["left"]).sum().backward()
    assert model.weight.grad is not None


# --- small trainings -------------------------------------------------------------------------------------------------

BINARY: Changed = {
    "task": {"kind": "binary", "metric": "roc_auc", "target": 0.9},
    "loss": {"_target_": "torch.nn.BCEWithLogitsLoss"},
    "model__out_features": 1,
}


def test_binary_task_with_one_or_two_outputs() -> None:
    """Logits, probabilities and two columns give the same kind of score."""
    data = blobs(kind="binary")
    two = {**BINARY, "loss": {"_target_": "torch.nn.CrossEntropyLoss"}, "model__out_features": 2}
    accuracy = {**BINARY, "task": {"kind": "binary", "metric": "accuracy", "target": 0.9}}
    for body in (BINARY, two, accuracy):
        fit_result = train(config(**body, trainer__max_epochs=15), data)
        assert fit_result.score is not None and fit_result.score.value > 0.8
        assert set(evaluate.score_split(fit_result.model, data.val, fit_result.task).predictions.tolist()) <= {0, 1}
    assert math.log(2) == pytest.approx(train(config(**BINARY), data).history.facts["loss_expected"])


def test_regression_task_compares_values_row_by_row() -> None:
    """Targets [N] and outputs [N, 1] do not broadcast; lower is better; the expected loss is the variance."""
    data = blobs(300, "regression")
    fit_result = train(config(**REGRESSION, trainer__max_epochs=20), data)
    assert fit_result.score is not None and not fit_result.score.greater_is_better and fit_result.score.value < 0.5
    assert fit_result.score.value == pytest.approx(min(fit_result.history.series("val/rmse")[1]), rel=1e-5)
    assert float(data.train.y.var(correction=0)) == pytest.approx(fit_result.history.facts["loss_expected"])


def test_binary_threshold_depends_on_what_the_loss_takes() -> None:
    """0 for logits, 0.5 for probabilities, by name, by attribute, or by the model's last module."""

    def own(outputs: Tensor, y: Tensor) -> Tensor:
        return outputs.mean()

    body, point_two = config(**BINARY), torch.tensor([[0.2]])
    assert 1 == int(build_task(body, nn.BCEWithLogitsLoss()).predict(point_two))
    assert 0 == int(build_task(body, nn.BCELoss()).predict(point_two))
    assert 0 == int(build_task(body, own, nn.Sequential(nn.Linear(1, 1), nn.Sigmoid())).predict(point_two))
    assert 1 == int(build_task(body, own, nn.Linear(1, 1)).predict(point_two))
    own.takes = "probabilities"  # type: ignore[attr-defined]
    assert 0 == int(build_task(body, own).predict(point_two))


def absolute_error(targets: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.abs(targets - predictions).mean())


def test_build_task_with_user_metric_and_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `_target_` names the metric or the predictor; the metric's attributes give its direction."""
    made = {"my.metric": absolute_error, "my.predict": torch.round, "my.number": 3}
    monkeypatch.setattr("pipeline.config.build.build", lambda node, **_: made[node["_target_"]])
    task = {**REGRESSION["task"], "metric": {"_target_": "my.metric"}, "predict": {"_target_": "my.predict"}}
    body = {**config(**REGRESSION), "task": task}
    monkeypatch.setattr(absolute_error, "greater_is_better", False, raising=False)
    own = build_task(body, nn.MSELoss())
    assert ("metric", False, "values") == (own.metric.name, own.metric.greater_is_better, own.metric.needs)
    assert 0.5 == own.deciding_value(torch.tensor([[1.2]]), torch.tensor([0.5]))
    with pytest.raises(UserError, match=r"task\.metric: is not callable"):
        build_task({**body, "task": {**task, "metric": {"_target_": "my.number"}}}, nn.MSELoss())


def test_task_probabilities_of_logits_and_log_probabilities() -> None:
    """Metrics of scores get the same probabilities from both."""
    logits = torch.randn(5, 3)
    for loss, outputs in ((nn.CrossEntropyLoss(), logits), (nn.NLLLoss(), logits.log_softmax(1))):
        torch.testing.assert_close(build_task(config(), loss).probabilities(outputs), logits.softmax(1))


def test_expected_loss_is_none_for_unknown_losses() -> None:
    """Squared and absolute error have an expected loss; a Huber loss has none."""
    y = torch.tensor([0.0, 2.0])
    tasks = {loss: build_task(config(**REGRESSION), loss) for loss in (nn.MSELoss(), nn.L1Loss(), nn.HuberLoss())}
    assert [1.0, 1.0, None] == [expected_loss(task, y, None) for task in tasks.values()]


def test_score_split_of_train_rows_is_not_a_score() -> None:
    """Validation rows give a Score, train rows a TrainSide; the modes of the model are restored."""
    data = blobs()
    model = builder.build_model(config(model__dropout=0.5), (), 3, blobs())
    model.train()
    model.body[0].eval()  # type: ignore[index, operator, union-attr]
    task = builder.build_training_task(config(), model)
    evaluation = evaluate.score_split(model, data.val, task)
    assert isinstance(evaluation.score, Score) and (40, 3) == tuple(evaluation.outputs.shape)
    assert isinstance(evaluate.score_split(model, data.train, task).score, TrainSide)
    assert model.training and not model.body[0].training  # type: ignore[index, union-attr]
    assert evaluation.score.value == pytest.approx(np.mean(evaluation.predictions == evaluation.targets))


def test_score_split_does_not_depend_on_the_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and metric do not depend on how many rows go through at a time."""
    data, model = blobs(), builder.build_model(config(), (), 3, blobs())
    whole = evaluate.score_split(model, data.val, builder.build_training_task(config(), model))
    monkeypatch.setattr(evaluate, "BATCH_SIZE", 7)
    parts = evaluate.score_split(model, data.val, builder.build_training_task(config(), model))
    assert whole.loss == pytest.approx(parts.loss, rel=1e-6) and whole.score == parts.score


class Force(nn.Module):
    """An energy E = k·x², whose output is the force: its negative gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_(True)
        return -torch.autograd.grad((self.k * x**2).sum(), x, create_graph=True)[0]


def test_score_split_of_a_model_that_differentiates() -> None:
    """A forward pass with autograd.grad inside is evaluated, and its outputs keep no graph."""
    x = torch.randn(9, 2)
    task = build_task({"task": {"kind": "regression", "metric": "rmse"}}, nn.MSELoss())
    result = evaluate.score_split(Force(), Split("val", x, -6 * x), task)
    assert result.loss == pytest.approx(0) and result.outputs is not None and not result.outputs.requires_grad
    assert evaluate.mean_loss(Force(), x, -6 * x, task) == pytest.approx(0)
    assert result.score.value == pytest.approx(0)


def residual(model: nn.Module, batch: tuple[Any, Any]) -> dict[str, Tensor]:
    """The residual of u' = 1 at the inputs, as a physics-informed loss computes it."""
    x = batch[0].clone().requires_grad_(True)
    u = model(x)
    slope = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
    return {"loss": ((slope - 1) ** 2).mean(), "outputs": u}


def test_score_split_of_a_step_that_differentiates() -> None:
    """A step with autograd.grad inside is evaluated; another RuntimeError of a step is still reported."""
    section = {"kind": "regression", "metric": "rmse", "step": {"_target_": "tests.test_evaluate.residual"}}
    task = build_task({"task": section}, nn.MSELoss(), trust=("tests",))
    model, x = nn.Linear(1, 1), torch.randn(9, 1)
    slope = model.weight.item()
    result = evaluate.score_split(model, Split("val", x, x), task)
    assert result.loss == pytest.approx((slope - 1) ** 2) and not result.outputs.requires_grad
    with pytest.raises(UserError, match=r"model: fails at .*test_evaluate.py:\d+ \(RuntimeError: mat1"):
        evaluate.score_split(model, Split("val", torch.randn(9, 2), x), task)


def test_score_test_needs_a_key() -> None:
    """Without a TestKey nothing is evaluated."""
    data, model = blobs(), builder.build_model(config(), (), 3, blobs())
    with pytest.raises(Refused, match="TestKey"):
        evaluate.score_test(model, data.test, "please", builder.build_training_task(config(), model))  # type: ignore[arg-type]
