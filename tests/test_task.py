"""The task: its forward pass and loss, custom steps, and its metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.data.splits import Split
from pipeline.errors import UserError
from pipeline.evaluation import evaluate
from pipeline.evaluation.step import check_step
from pipeline.evaluation.task import Task, build_task, expected_loss
from pipeline.evaluation.trivial_baseline import score_trivial_baseline
from pipeline.results import Score

X = torch.linspace(-1, 1, 40).reshape(20, 2)
Y = (X.sum(1) > 0).long()
Step = Callable[..., Any]


class Net(nn.Module):
    """Two logits; counts the rows of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 2)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.out(x)


def cross_entropy(model: nn.Module, batch: Any, **more: Any) -> dict[str, Any]:
    """The plain loss, written as a step."""
    inputs, targets = batch
    outputs = model(inputs)
    return {"loss": nn.functional.cross_entropy(outputs, targets), "outputs": outputs, **more}


def step_without_outputs(model: nn.Module, batch: Any) -> dict[str, Any]:
    """No outputs; a scalar that is a tensor, and one that is a number."""
    inputs, targets = batch
    loss = nn.functional.cross_entropy(model(inputs), targets)
    return {"loss": loss, "first": inputs[0, 0], "rows": len(inputs), "hidden": inputs}


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Task]:
    """`task(step=..., metric=..., ...)`: a task whose `_target_`s are the objects themselves."""
    monkeypatch.setattr("pipeline.config.build.build", lambda node, **_: node["_target_"])

    def make(step: Step | None = None, kind: str = "classification", metric: Any = "accuracy", **more: Any) -> Task:
        section = {"kind": kind, "metric": metric, "step": {"_target_": step} if step else None, **more}
        return build_task({"task": section}, nn.CrossEntropyLoss())

    return make


def message_of(make: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        make()
    assert 1 == len(caught.value.faults)
    return str(caught.value)


# --- forward and step ------------------------------------------------------------------------------------------------


def test_task_forward_is_the_model_and_the_loss(task: Callable[..., Task]) -> None:
    """Without a step, the forward pass returns outputs and their loss."""
    model, plain = Net(), task()
    outputs, loss = plain.forward(model, X, Y)
    assert torch.equal(outputs, model(X)) and torch.equal(loss, plain.loss(outputs, Y))


def test_step_equals_the_task_without_a_step(task: Callable[..., Task]) -> None:
    """The same loss written as a step: same outputs, same loss, same metric, in training and evaluation."""
    model, plain, stepped = Net(), task(), task(cross_entropy)
    for a, b in zip(plain.forward(model, X, Y), stepped.forward(model, X, Y), strict=True):
        assert torch.equal(a, b)
    one, other = (evaluate.score_split(model, Split("val", X, Y), t) for t in (plain, stepped))
    assert one.loss == pytest.approx(other.loss) and one.score == other.score
    assert one.outputs is not None and other.outputs is not None and torch.equal(one.outputs, other.outputs)


def test_step_scalars_are_weighted_by_rows(task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """20 rows as 8, 8 and 4: loss and scalars are means over rows, in eval mode without gradients."""
    monkeypatch.setattr(evaluate, "BATCH_SIZE", 8)
    modes: list[tuple[bool, bool]] = []

    def watching(model: nn.Module, batch: Any) -> dict[str, Any]:
        modes.append((model.training, torch.is_grad_enabled()))
        return step_without_outputs(model, batch)

    model, custom = Net().train(), task(watching, "custom", "-rows", metrics=["first", "loss"])
    result = evaluate.loss_and_metrics(model, X, Y, custom)
    whole = nn.functional.cross_entropy(model(X), Y).item()
    first = (8 * X[0, 0] + 8 * X[8, 0] + 4 * X[16, 0]) / 20
    assert {"rows": 7.2, "first": pytest.approx(float(first)), "loss": pytest.approx(whole)} == result.metrics
    assert list(result.metrics) == ["rows", "first", "loss"] and result.loss == pytest.approx(whole)
    assert [8, 8, 4] == model.sizes[:3] and {(False, False)} == set(modes) and model.training
    assert result.loss == evaluate.mean_loss(model, X, Y, custom)


def test_custom_task_metric_is_a_scalar_of_its_step(task: Callable[..., Task]) -> None:
    """Lower is better for `loss` and for names with `-`; no interval, and no predictions without outputs."""
    made = {name: task(step_without_outputs, "custom", name).metric for name in ("loss", "rows", "-rows")}
    assert [False, True, False] == [m.greater_is_better for m in made.values()]
    judge = evaluate.score_split(Net(), Split("val", X, Y), task(step_without_outputs, "custom", "loss"))
    assert isinstance(judge.score, Score) and judge.score.value == judge.loss and 20 == judge.score.n
    assert math.isnan(judge.score.low) and judge.outputs is None and judge.predictions is None


def test_custom_task_metric_from_outputs(task: Callable[..., Task]) -> None:
    """Classes by argmax for metrics that need them, the outputs themselves for values."""

    def first_column(model: nn.Module, batch: Any) -> dict[str, Any]:
        outputs = batch[0][:, 0]
        return {"loss": outputs.mean(), "outputs": outputs}

    model = Net()
    values = evaluate.loss_and_metrics(model, X, Y, task(cross_entropy, "custom", "accuracy")).metrics
    assert values == evaluate.loss_and_metrics(model, X, Y, task()).metrics
    rmse = evaluate.loss_and_metrics(model, X, X[:, 0], task(first_column, "custom", "rmse")).metrics
    assert {"rmse": 0.0} == rmse


@pytest.mark.parametrize("classes_last", [True, False])
def test_custom_task_predicts_a_class_per_target(task: Callable[..., Task], classes_last: bool) -> None:
    """Tokens have outputs [N, T, C] and pixels [N, C, H, W]: the axis of the classes follows from the targets."""
    targets = torch.arange(24).reshape(2, 3, 4) % 5
    outputs = nn.functional.one_hot(targets, 5).float()
    outputs = outputs if classes_last else outputs.movedim(-1, 1)
    made = task(cross_entropy, "custom", "accuracy")
    assert made.deciding_value(outputs, targets) == 1
    assert made.deciding_value(outputs, (targets + (targets == 0)) % 5) == pytest.approx(19 / 24)
    assert np.array_equal(made.predictions(outputs, targets), targets.numpy())


def test_metric_from_step_without_outputs(task: Callable[..., Task]) -> None:
    """A known metric is read from the step's scalars if there are no outputs to compute it from."""

    def counted(model: nn.Module, batch: Any) -> dict[str, Any]:
        return {**step_without_outputs(model, batch), "accuracy": 0.25}

    assert {"accuracy": 0.25} == evaluate.loss_and_metrics(Net(), X, Y, task(counted)).metrics


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(()), r"task\.step: does not return a dict, got 'Tensor'; expected {\"loss\""),
        ({"outputs": X}, "returns no loss, got 'outputs'"),
        ({}, "returns no loss, got 'an empty dict'"),
        ({"loss": X}, r"returns a loss that is not a scalar tensor, got 'shape \(20, 2\)'"),
        ({"loss": 0.5}, "returns a loss that is not a scalar tensor, got 'float'"),
        ({"loss": torch.zeros(()), "outputs": [1]}, "returns outputs that are not a tensor, got 'list'"),
    ],
)
def test_step_without_a_scalar_loss_is_refused(task: Callable[..., Task], answer: Any, message: str) -> None:
    """In training and in evaluation, with one message."""
    broken = task(lambda model, batch: answer)
    for use in (lambda: broken.forward(Net(), X, Y), lambda: evaluate.loss_and_metrics(Net(), X, Y, broken)):
        with pytest.raises(UserError, match=message):
            use()


def test_step_that_fails_is_named_with_its_line(task: Callable[..., Task]) -> None:
    """An exception of the user's code becomes one message with its file and text."""

    def broken(model: nn.Module, batch: Any) -> dict[str, Any]:
        raise RuntimeError("no such thing")

    message = message_of(lambda: evaluate.loss_and_metrics(Net(), X, Y, task(broken)))
    assert "task.step: fails at " in message and "test_task.py" in message and "no such thing" in message


def test_check_step_finds_metrics_that_cannot_be_computed(task: Callable[..., Task]) -> None:
    """A missing scalar is named with its key and what the step returned; outputs need a batch dimension."""
    custom = task(step_without_outputs, "custom", "loss", metrics=["wer"])
    assert custom.step is not None
    message = message_of(lambda: check_step(step_without_outputs, custom.metrics, Net(), X, Y))
    assert "task.metrics[0]: task.step returns no 'wer', got 'first, loss, rows'" in message
    assert "or the outputs to compute it from" in message_of(
        lambda: check_step(step_without_outputs, task().metrics, Net(), X, Y)
    )

    def rowless(model: nn.Module, batch: Any) -> dict[str, Any]:
        return {"loss": model(batch[0]).mean(), "outputs": batch[0].mean()}

    assert "task.step: outputs have no batch dimension" in message_of(lambda: check_step(rowless, (), Net(), X, Y))
    outputs, loss = check_step(cross_entropy, task().metrics, Net(), X, Y)
    assert outputs is not None and loss.requires_grad


def test_build_task_refuses_a_custom_task_without_a_step(task: Callable[..., Task]) -> None:
    """No step, or one that is not callable, is one message about task.step."""
    assert "task.step: a custom task needs a step" in message_of(lambda: task(None, "custom", "loss"))
    assert "task.step: is not callable, got 'int'" in message_of(lambda: task(3, "custom", "loss"))  # type: ignore[arg-type]


def test_step_gets_targets_unchanged(task: Callable[..., Task]) -> None:
    """Also nested targets; the expected loss of a step is not known."""
    stepped, nested = task(cross_entropy), {"a": Y, "b": (X,)}
    assert stepped.loss_targets(nested, None) is nested and expected_loss(stepped, Y, 2) is None


def test_trivial_baseline_of_a_custom_task_is_the_untrained_model(task: Callable[..., Task]) -> None:
    """No constant output is known for a custom task; without a model the value is NaN."""
    custom, splits = task(step_without_outputs, "custom", "loss"), (Split("train", X, Y), Split("val", X, Y))
    model = Net()
    baseline = score_trivial_baseline(custom, *splits, None, model)
    assert baseline["value"] == evaluate.mean_loss(model, X, Y, custom) and "before its first step" in baseline["how"]
    assert math.isnan(score_trivial_baseline(custom, *splits, None)["value"])
    assert score_trivial_baseline(task(cross_entropy), *splits, 2)["how"].startswith("always answers ")


# --- several metrics -------------------------------------------------------------------------------------------------


def test_task_metrics_begin_with_the_deciding_one(task: Callable[..., Task]) -> None:
    """Each once, in order, from one pass through the model."""
    model, several = Net(), task(metrics=["f1_macro", "accuracy", "roc_auc", "f1_macro"])
    assert ["accuracy", "f1_macro", "roc_auc"] == [m.name for m in several.metrics]
    assert several.metric is several.metrics[0]
    result = evaluate.loss_and_metrics(model, X, Y, several)
    assert [20] == model.sizes and ["accuracy", "f1_macro", "roc_auc"] == list(result.metrics)
    for name, value in result.metrics.items():
        assert value == evaluate.loss_and_metrics(model, X, Y, task(metric=name)).metrics[name]


def test_metric_values_of_nonfinite_outputs_are_nan(task: Callable[..., Task]) -> None:
    """One NaN among the outputs makes every metric NaN; finite outputs whose sum overflows do not."""
    several, outputs = task(metrics=["f1_macro", "roc_auc"]), torch.full((20, 2), 3e38)
    assert not any(math.isnan(v) for v in several.metric_values(outputs, Y).values())
    outputs[3, 1] = math.nan
    assert all(math.isnan(v) for v in several.metric_values(outputs, Y).values())


def absolute(targets: np.ndarray, predictions: np.ndarray) -> float:
    return float(np.abs(targets - predictions).mean())


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["acuracy"], r"task\.metrics\[0\]: unknown metric, got 'acuracy'; .*did you mean 'accuracy'"),
        (["f1_macro", "r2"], r"task\.metrics\[1\]: does not measure a classification task"),
        ([{"_target_": 3}], r"task\.metrics\[0\]: is not callable"),
        ([{"_target_": absolute, "name": 1}, {"_target_": absolute}], r"task\.metrics\[1\]: another metric has this"),
    ],
)
def test_task_metrics_that_are_refused_name_their_key(
    task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch, metrics: list[Any], message: str
) -> None:
    """Unknown, for another kind of task, not callable, or with a name that is taken."""
    monkeypatch.setattr(absolute, "greater_is_better", False, raising=False)
    monkeypatch.setattr(absolute, "name", "absolute", raising=False)
    with pytest.raises(UserError, match=message):
        task(metrics=metrics)


def test_task_metric_that_fails_names_its_key(task: Callable[..., Task]) -> None:
    """f1 takes two classes, not three."""
    with pytest.raises(UserError, match=r"task\.metrics\[0\]: 'f1' does not fit"):
        task(metrics=["f1"]).metric_values(torch.eye(3), torch.arange(3))


def test_user_metric_without_a_direction_is_refused(task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to write; either direction is taken as written."""
    message = message_of(lambda: task(metric={"_target_": absolute}))
    assert message.startswith("task.metric: ") and "does not say whether a higher value is better" in message
    assert ".greater_is_better = False" in message
    for better in (True, False):
        monkeypatch.setattr(absolute, "greater_is_better", better, raising=False)
        assert task(metric={"_target_": absolute}).metric.greater_is_better is better


@pytest.mark.parametrize("value", [None, [0.1, 0.2], np.ones(3)])
def test_user_metric_that_returns_no_number_is_refused(
    task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    """A list of values per class or a forgotten return is one message."""

    def several(targets: np.ndarray, predictions: np.ndarray) -> Any:
        return value

    several.greater_is_better = True  # type: ignore[attr-defined]
    measured = task(metric={"_target_": several}).metric
    with pytest.raises(UserError, match=rf"^task\.metric: '.*' does not return a number, got '{type(value).__name__}'"):
        measured(Y.numpy(), Y.numpy())


def test_user_metric_with_a_wrong_name_or_needs_is_refused(
    task: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The history has a series `loss` already; `needs` must be a known kind of predictions."""
    monkeypatch.setattr(absolute, "name", "loss", raising=False)
    assert "has the loss's name" in message_of(lambda: task(metric={"_target_": absolute}))
    monkeypatch.setattr(absolute, "needs", "class", raising=False)
    assert "did you mean 'classes'" in message_of(lambda: task(metric={"_target_": absolute}))


# --- several labels, tokens, and rows that are their own targets -----------------------------------------------------

LABELS = torch.stack([X[:, 0] > 0, X[:, 1] > 0.9, X.sum(1) > -1], dim=1).float()
TOKENS = torch.arange(40).reshape(8, 5) % 4


def of_kind(kind: str, metric: str, loss: nn.Module, **more: Any) -> Task:
    return build_task({"task": {"kind": kind, "metric": metric, **more}}, loss)


def test_multilabel_task_predicts_each_label() -> None:
    """Threshold 0 for logits and 0.5 for probabilities; the expected loss is ln 2."""
    logits = torch.tensor([[-1.0, 2.0, 0.1], [0.3, -0.2, -4.0]])
    plain = of_kind("multilabel", "f1_macro", nn.BCEWithLogitsLoss())
    assert [[0, 1, 1], [1, 0, 0]] == plain.predict(logits).tolist()
    shares = of_kind("multilabel", "f1_macro", nn.BCELoss())
    assert torch.equal(shares.predict(logits.sigmoid()), plain.predict(logits))
    torch.testing.assert_close(shares.probabilities(logits.sigmoid()), plain.probabilities(logits))
    assert math.log(2) == expected_loss(plain, LABELS, None)
    assert [0.75, 0.25] == plain.loss_weights([LABELS[:6], LABELS[6:8]])
    assert "needs one class per row" in message_of(
        lambda: of_kind("multilabel", "f1_macro", nn.BCEWithLogitsLoss(), class_weights="balanced")
    )


def test_trivial_baseline_of_labels_is_the_best_answer() -> None:
    """The answer that fits the most rows is predicted; the roc_auc of a constant is chance."""
    splits = (Split("train", X, LABELS), Split("val", X, LABELS))
    for loss in (nn.BCEWithLogitsLoss(), nn.BCELoss()):
        baseline = score_trivial_baseline(of_kind("multilabel", "accuracy", loss), *splits, None)
        best = max(float((LABELS == torch.tensor(row)).all(1).float().mean()) for row in product((0, 1), repeat=3))
        assert baseline["value"] == pytest.approx(best)
        assert 0.5 == score_trivial_baseline(of_kind("multilabel", "roc_auc", loss), *splits, None)["value"]


def test_language_model_loss_is_the_mean_over_tokens() -> None:
    """Outputs [N, T, V]: torch's loss, weights by tokens, an expected loss of ln V, a prediction per token."""
    model = of_kind("language_model", "perplexity", nn.CrossEntropyLoss(), metrics=["accuracy"])
    outputs = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(0))
    loss = nn.functional.cross_entropy(outputs.transpose(1, 2), TOKENS)
    torch.testing.assert_close(model.loss(outputs, model.loss_targets(TOKENS, outputs)), loss)
    assert [0.25, 0.75] == model.loss_weights([TOKENS[:2], TOKENS[2:]])
    assert math.log(4) == expected_loss(model, TOKENS, 4)
    values = model.metric_values(outputs, TOKENS)
    assert values["perplexity"] == pytest.approx(math.exp(loss.item()), rel=1e-5)
    assert values["accuracy"] == float((outputs.argmax(-1) == TOKENS).float().mean())


@pytest.mark.parametrize(
    ("loss", "form"), [(nn.CrossEntropyLoss(), torch.Tensor.clone), (nn.NLLLoss(), torch.log_softmax)]
)
def test_token_losses_of_logits_and_log_probabilities_agree(
    monkeypatch: pytest.MonkeyPatch, loss: nn.Module, form: Any
) -> None:
    """Logits or log-probabilities, all rows at once or one at a time."""
    outputs = torch.randn(8, 5, 4, generator=torch.Generator().manual_seed(0))
    given = form(outputs) if form is torch.Tensor.clone else form(outputs, -1)
    model = of_kind("language_model", "perplexity", loss)
    whole = model.deciding_value(given, TOKENS)
    monkeypatch.setattr("pipeline.evaluation.tokens.MAX_LOGITS", 1)
    assert whole == pytest.approx(model.deciding_value(given, TOKENS), rel=1e-6)
    assert whole == pytest.approx(math.exp(nn.functional.cross_entropy(outputs.transpose(1, 2), TOKENS)), rel=1e-5)


def test_trivial_baseline_of_a_language_model_is_token_frequency() -> None:
    """With add-one smoothing over all ids, so that a token that train lacks has a probability."""
    train = torch.tensor([[0, 0], [0, 1]])
    splits = (Split("train", train, train), Split("val", train[:1], torch.tensor([[0, 2]])))
    baseline = score_trivial_baseline(of_kind("language_model", "perplexity", nn.CrossEntropyLoss()), *splits, 3)
    assert baseline["value"] == pytest.approx(math.exp(-(math.log(4 / 7) + math.log(1 / 7)) / 2), rel=1e-5)


def test_autoencoder_metrics_compare_values() -> None:
    """Outputs, or their sigmoid if the loss takes logits; the trivial baseline is the mean row, in any shape."""
    pictures = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    plain, logits = (of_kind("autoencoder", "rmse", loss) for loss in (nn.MSELoss(), nn.BCEWithLogitsLoss()))
    assert 0.0 == plain.deciding_value(pictures.flatten(1), pictures)
    assert logits.deciding_value(pictures.logit(), pictures) == pytest.approx(0.0, abs=1e-5)
    assert plain.loss(pictures.flatten(1), plain.loss_targets(pictures, pictures.flatten(1))) == 0
    side = Split("val", pictures, pictures)
    baseline = score_trivial_baseline(plain, Split("train", pictures, pictures), side, None)
    assert baseline["value"] == pytest.approx(float((pictures - pictures.mean(0)).square().mean().sqrt()), rel=1e-5)
    variance = expected_loss(plain, pictures, None)
    assert variance is not None and baseline["value"] == pytest.approx(math.sqrt(variance), rel=1e-5)
