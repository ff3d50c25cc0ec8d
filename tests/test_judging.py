"""Tasks and evaluation under the small trainings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.building import builder
from pipeline.errors import Refused, UserError
from pipeline.evaluation import evaluate
from pipeline.evaluation.task import build_task, expected_loss
from pipeline.results import Score, TrainSide
from tests.trainings import REGRESSION, Changed, blobs, config, permitted, train

CPU = torch.device("cpu")
__all__ = ["permitted"]


# --- tasks and evaluation --------------------------------------------------------------------------------------------

BINARY: Changed = {
    "task": {"kind": "binary", "metric": "roc_auc", "target": 0.9},
    "loss": {"_target_": "torch.nn.BCEWithLogitsLoss"},
    "model__out_features": 1,
}


def test_a_binary_task_trains_on_one_or_two_outputs() -> None:
    """Logits, probabilities and two columns reach the same kind of score."""
    data = blobs(kind="binary")
    two = {**BINARY, "loss": {"_target_": "torch.nn.CrossEntropyLoss"}, "model__out_features": 2}
    accuracy = {**BINARY, "task": {"kind": "binary", "metric": "accuracy", "target": 0.9}}
    for body in (BINARY, two, accuracy):
        done = train(config(**body, trainer__max_epochs=15), data)
        assert done.score is not None and done.score.value > 0.8
        assert set(evaluate.score_split(done.model, data.val, done.task).predictions.tolist()) <= {0, 1}
    assert math.log(2) == pytest.approx(train(config(**BINARY), data).history.facts["loss_expected"])


def test_a_regression_trains_on_values_of_its_own_shape() -> None:
    """Targets [N] meet outputs [N, 1] row by row; less is better; the expected loss is the variance."""
    data = blobs(300, "regression")
    done = train(config(**REGRESSION, trainer__max_epochs=20), data)
    assert done.score is not None and not done.score.greater_is_better and done.score.value < 0.5
    assert done.score.value == pytest.approx(min(done.history.series("val/rmse")[1]), rel=1e-5)
    assert float(data.train.y.var(correction=0)) == pytest.approx(done.history.facts["loss_expected"])


def test_thresholds_follow_what_the_loss_reads() -> None:
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


def test_metrics_and_predictors_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `_target_` gives the metric or the predictor; the metric's attributes say its direction."""
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


def test_probabilities_sum_to_one_whatever_the_loss_reads() -> None:
    """Metrics of scores get probabilities from logits, log-probabilities and probabilities alike."""
    logits = torch.randn(5, 3)
    for loss, outputs in ((nn.CrossEntropyLoss(), logits), (nn.NLLLoss(), logits.log_softmax(1))):
        torch.testing.assert_close(build_task(config(), loss).probabilities(outputs), logits.softmax(1))


def test_expected_losses_are_theory_or_none() -> None:
    """Cross entropy, squared and absolute error have one; a loss of one's own has none."""
    y = torch.tensor([0.0, 2.0])
    tasks = {loss: build_task(config(**REGRESSION), loss) for loss in (nn.MSELoss(), nn.L1Loss(), nn.HuberLoss())}
    assert [1.0, 1.0, None] == [expected_loss(task, y, None) for task in tasks.values()]


def test_evaluation_types_say_what_may_be_done_with_them() -> None:
    """Validation rows give a Score, train rows a TrainSide; the model's mode is its own again."""
    data = blobs()
    model = builder.build_model(config(model__dropout=0.5), (), 3, blobs())
    model.train()
    model.body[0].eval()  # type: ignore[index, operator, union-attr]
    task = builder.build_training_task(config(), model)
    judged = evaluate.score_split(model, data.val, task)
    assert isinstance(judged.score, Score) and (40, 3) == tuple(judged.outputs.shape)
    assert isinstance(evaluate.score_split(model, data.train, task).score, TrainSide)
    assert model.training and not model.body[0].training  # type: ignore[index, union-attr]
    assert judged.score.value == pytest.approx(np.mean(judged.predictions == judged.targets))


def test_evaluation_in_parts_is_evaluation_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and metric do not depend on how many rows go through at a time."""
    data, model = blobs(), builder.build_model(config(), (), 3, blobs())
    whole = evaluate.score_split(model, data.val, builder.build_training_task(config(), model))
    monkeypatch.setattr(evaluate, "BATCH_SIZE", 7)
    parts = evaluate.score_split(model, data.val, builder.build_training_task(config(), model))
    assert whole.loss == pytest.approx(parts.loss, rel=1e-6) and whole.score == parts.score


def test_the_test_split_needs_a_key() -> None:
    """Without one nothing is evaluated."""
    data, model = blobs(), builder.build_model(config(), (), 3, blobs())
    with pytest.raises(Refused, match="TestKey"):
        evaluate.score_test(model, data.test, "please", builder.build_training_task(config(), model))  # type: ignore[arg-type]
