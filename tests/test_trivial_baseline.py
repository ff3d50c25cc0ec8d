"""The trivial baseline: the constant that is best for the metric on the train targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn

from pipeline.data.splits import Split
from pipeline.evaluation.metrics import Metric
from pipeline.evaluation.task import Task, build_task
from pipeline.evaluation.trivial_baseline import best_constant, score_trivial_baseline

DRAW = np.random.default_rng(3)
BALANCED = torch.arange(60) % 2
RARE = (torch.arange(100) < 12).long()
PRICES = torch.from_numpy(np.exp(DRAW.normal(3, 1, 301))).float()  # skewed: mean, median and log mean lie apart


def task(kind: str, metric: str, loss: nn.Module) -> Task:
    return build_task({"task": {"kind": kind, "metric": metric, "predict": "auto"}}, loss)


def split(y: Tensor, name: str = "train") -> Split:
    return Split(name, torch.zeros(len(y), 1), y)


def score(of: Task, y: Tensor, classes: int | None = None) -> tuple[float, str]:
    baseline = score_trivial_baseline(of, split(y), split(y, "val"), classes)
    return baseline["value"], baseline["how"]


CLASS_METRICS: dict[str, Callable[..., Any]] = {
    "accuracy": sklearn_metrics.accuracy_score,
    "balanced_accuracy": sklearn_metrics.balanced_accuracy_score,
    "f1": sklearn_metrics.f1_score,
    "f1_macro": lambda t, p: sklearn_metrics.f1_score(t, p, average="macro", zero_division=0),
    "f1_weighted": lambda t, p: sklearn_metrics.f1_score(t, p, average="weighted", zero_division=0),
    "recall": sklearn_metrics.recall_score,
    "precision": lambda t, p: sklearn_metrics.precision_score(t, p, zero_division=0),
    "jaccard": sklearn_metrics.jaccard_score,
    "matthews_corrcoef": sklearn_metrics.matthews_corrcoef,
}


@pytest.mark.parametrize("metric", CLASS_METRICS)
@pytest.mark.parametrize("y", [BALANCED, RARE], ids=["balanced", "rare"])
def test_trivial_baseline_of_classes_is_the_best_class(metric: str, y: Tensor) -> None:
    """For a metric of labels the bar is the class that scores highest when it is always answered."""
    value, how = score(task("binary", metric, nn.BCEWithLogitsLoss()), y, 2)

    best = max(CLASS_METRICS[metric](y.numpy(), np.full(len(y), answer)) for answer in (0, 1))
    assert value == pytest.approx(best) and how in ("always answers 0", "always answers 1")


@pytest.mark.parametrize("metric", ["recall", "f1"])
def test_trivial_baseline_answers_the_class_that_the_metric_counts(metric: str) -> None:
    """Always answering 1 on balanced data is not better than the bar by recall or F1: it is the bar."""
    value, how = score(task("binary", metric, nn.BCEWithLogitsLoss()), BALANCED, 2)

    assert how == "always answers 1" and value == pytest.approx({"recall": 1.0, "f1": 2 / 3}[metric])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("roc_auc", 0.5),
        ("average_precision", 0.12),
        ("neg_log_loss", 0.12 * np.log(0.12) + 0.88 * np.log(0.88)),
        ("neg_brier_score", -0.12 * 0.88),
    ],
)
def test_trivial_baseline_of_scores_is_the_frequency(metric: str, expected: float) -> None:
    """For a metric of probabilities the bar is the frequency of the classes."""
    assert score(task("binary", metric, nn.BCEWithLogitsLoss()), RARE, 2)[0] == pytest.approx(expected, rel=1e-6)


VALUE_METRICS: dict[str, tuple[str, Callable[[NDArray[np.float64]], float]]] = {
    "mae": ("the median ", np.median),
    "rmse": ("the mean ", np.mean),
    "r2": ("the mean ", np.mean),
    "neg_mean_squared_log_error": ("the mean of the logarithms ", lambda y: np.expm1(np.log1p(y).mean())),
    "max_error": ("the middle between", lambda y: (y.min() + y.max()) / 2),
}


@pytest.mark.parametrize("metric", VALUE_METRICS)
def test_trivial_baseline_of_values_is_the_metrics_own_constant(metric: str) -> None:
    """The median for absolute errors, the mean for squared ones, and the log mean for errors of logarithms."""
    name = "neg_max_error" if metric == "max_error" else metric
    constant = best_constant(task("regression", name, nn.MSELoss()), split(PRICES), None)

    words, best = VALUE_METRICS[metric]
    assert constant.how.startswith(words)
    assert float(constant.row) == pytest.approx(best(PRICES.double().numpy()))


@pytest.mark.parametrize("metric", ["neg_mean_absolute_percentage_error", "neg_median_absolute_error", "mae", "rmse"])
def test_trivial_baseline_of_values_is_not_beaten_by_another_constant(metric: str) -> None:
    """No constant on a fine grid is clearly better for the metric than the bar."""
    of = task("regression", metric, nn.MSELoss())
    value, y = score(of, PRICES)[0], PRICES.numpy()

    for constant in np.linspace(float(PRICES.min()), float(PRICES.quantile(0.99)), 400):
        other = of.metric(y, np.full(len(y), constant))
        assert not (of.metric.better(other, value) and abs(other - value) > 0.005 * abs(value)), constant


@pytest.mark.parametrize("quantile", [0.1, 0.9, 0.97])
def test_trivial_baseline_of_an_own_metric_is_searched(quantile: float) -> None:
    """The bar of a pinball loss of the user's own is near its quantile."""

    def pinball(targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        return float(sklearn_metrics.mean_pinball_loss(targets, predictions, alpha=quantile))

    of = task("regression", "mae", nn.MSELoss())
    of = replace(of, metrics=(Metric("pinball", pinball, "values", greater_is_better=False, users_own=True),))
    value = score(of, PRICES)[0]

    best = pinball(PRICES.numpy(), np.full(len(PRICES), np.quantile(PRICES.numpy(), quantile)))
    assert value <= best * 1.005


def test_trivial_baseline_is_chosen_on_train_and_scored_on_validation() -> None:
    """Validation rows have no say in the constant: its score there may be worse than that of another one."""
    of = task("binary", "accuracy", nn.BCEWithLogitsLoss())
    baseline = score_trivial_baseline(of, split(RARE), split(1 - RARE, "val"), 2)

    assert baseline["how"] == "always answers 0" and baseline["value"] == pytest.approx(0.12)


@pytest.mark.parametrize("metric", ["f1_samples", "f1_macro", "f1_micro", "accuracy", "jaccard_samples"])
def test_trivial_baseline_of_labels_is_not_beaten_by_another_answer(metric: str) -> None:
    """No answer out of all combinations of labels is better for the metric than the bar."""
    labels = torch.from_numpy((DRAW.random((80, 4)) < [0.7, 0.4, 0.1, 0.5]).astype("float32"))
    of = task("multilabel", metric, nn.BCEWithLogitsLoss())
    value = score(of, labels)[0]

    answers = [np.tile(row, (80, 1)) for row in product((0, 1), repeat=4)]
    assert value == pytest.approx(max(of.metric(labels.numpy(), answer) for answer in answers))


def test_trivial_baseline_leaves_the_generators_alone() -> None:
    """A metric of the user's own that draws does not change what the training draws."""

    def noisy(targets: NDArray[Any], predictions: NDArray[Any]) -> float:
        return float(np.random.random())

    of = task("regression", "mae", nn.MSELoss())
    of = replace(of, metrics=(Metric("noisy", noisy, "values", users_own=True),))
    np.random.seed(1)
    best_constant(of, split(PRICES), None)
    assert np.random.random() == np.random.RandomState(1).random_sample()
