"""Metrics: values equal to scikit-learn's, directions, intervals, and errors for metrics that do not fit the task."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from pipeline.errors import UserError
from pipeline.evaluation.intervals.score import confidence_interval, score_predictions
from pipeline.evaluation.metric_config import metric_from_config
from pipeline.evaluation.metrics import Metric
from pipeline.results import Score, TrainSide

RANDOM = np.random.default_rng(5)
LABELS = RANDOM.integers(0, 3, 200)
GUESSES = np.where(RANDOM.random(200) < 0.7, LABELS, RANDOM.integers(0, 3, 200))
VALUES = RANDOM.normal(size=200)
NEAR = VALUES + RANDOM.normal(size=200) / 3


def of(name: Any, kind: str = "classification") -> Any:
    return metric_from_config({"metric": name, "kind": kind})


def test_metric_equals_scikit_learn() -> None:
    """accuracy, rmse and mae have scikit-learn's values; errors of pictures are averaged over all pixels."""
    assert sk.accuracy_score(LABELS, GUESSES) == of("accuracy")(LABELS, GUESSES)
    assert math.isclose(sk.root_mean_squared_error(VALUES, NEAR), of("rmse", "regression")(VALUES, NEAR))
    assert math.isclose(sk.mean_absolute_error(VALUES, NEAR), of("mae", "regression")(VALUES, NEAR))
    pictures = VALUES.reshape(2, 10, 10), NEAR.reshape(2, 10, 10)
    assert of("rmse", "autoencoder")(*pictures) == of("rmse", "regression")(VALUES, NEAR)


def test_metric_from_scorer_keeps_sign_and_options() -> None:
    """A scorer is its function with its options; `neg_` scores are negative and greater is better."""
    assert sk.f1_score(LABELS, GUESSES, average="macro") == of("f1_macro")(LABELS, GUESSES)
    negative = of("neg_mean_squared_error", "regression")
    assert -sk.mean_squared_error(VALUES, NEAR) == negative(VALUES, NEAR) and negative.greater_is_better


def test_metric_of_ranks_needs_scores() -> None:
    """roc_auc and average_precision need probabilities; one class alone has no roc_auc, and no warning either."""
    auc = of("roc_auc", "binary")
    labels = (VALUES > 0).astype(np.int64)
    assert "scores" == auc.needs and "scores" == of("average_precision", "binary").needs
    for scores in (NEAR, np.round(NEAR), np.zeros(200)):
        assert math.isclose(sk.roc_auc_score(labels, scores), auc(labels, scores))
    assert math.isnan(auc(labels * 0, NEAR))
    with pytest.raises(UserError, match="more than two classes"):
        auc(labels, np.zeros((200, 3)))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("acuracy", "classification", "did you mean 'accuracy'"),
        ("r2", "classification", "does not measure a classification task"),
        ("accuracy", "regression", "does not measure a regression task"),
        ("perplexity", "classification", "does not measure a classification task"),
        ("roc_auc", "language_model", "does not measure a language_model task.*perplexity"),
        ("accuracy", "autoencoder", "does not measure a autoencoder task.*rmse or mae"),
        ("rmse", "multilabel", "does not measure a multilabel task.*f1_macro"),
    ],
)
def test_metric_from_config_refuses_metrics_of_other_tasks(name: str, kind: str, message: str) -> None:
    """An unknown metric, or one for another kind of task, is one message."""
    with pytest.raises(UserError, match=message):
        of(name, kind)


def test_metric_names_itself_if_it_cannot_take_the_predictions() -> None:
    """scikit-learn's error becomes a message about task.metric."""
    with pytest.raises(UserError, match=r"task\.metric: 'f1' does not fit"):
        of("f1")(LABELS, GUESSES)


def test_metric_of_nan_predictions_is_nan() -> None:
    """NaN predictions give NaN, which is never better than a number."""
    rmse = of("rmse", "regression")
    value = rmse(VALUES, np.where(VALUES > 0, np.nan, VALUES))
    assert math.isnan(value) and not rmse.better(value, 3.0) and rmse.better(3.0, value)


def test_metric_better_follows_the_direction() -> None:
    """Lower is better for errors, higher for accuracy; equal is not better."""
    assert of("rmse", "regression").better(1.0, 2.0) and of("accuracy").better(0.9, 0.8)
    assert not of("accuracy").better(0.9, 0.9)


@given(st.integers(1, 500), st.data())
def test_confidence_interval_of_accuracy_contains_it(n: int, data: st.DataObject) -> None:
    """0 <= low <= accuracy <= high <= 1, also where none or all are right."""
    right = data.draw(st.integers(0, n))
    labels = np.zeros(n, np.int64)
    low, high, *_ = confidence_interval(of("accuracy"), labels, (np.arange(n) >= right).astype(np.int64))
    assert 0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1


def test_confidence_interval_of_342_in_360() -> None:
    """Clopper and Pearson's interval as tables give it."""
    low, high, *_ = confidence_interval(of("accuracy"), np.zeros(360), (np.arange(360) >= 342).astype(int))
    assert (0.922, 0.970) == (round(low, 3), round(high, 3))


def test_score_predictions_of_train_rows_is_not_a_score() -> None:
    """Train rows give a TrainSide, other rows a Score with the metric's direction."""
    rmse = of("rmse", "regression")
    assert isinstance(score_predictions(rmse, "train", VALUES, NEAR), TrainSide)
    result = score_predictions(rmse, "val", VALUES, NEAR)
    assert isinstance(result, Score) and not result.greater_is_better and 200 == result.n


def test_confidence_interval_of_nan_is_nan() -> None:
    """A NaN score has NaN bounds."""
    result = score_predictions(of("rmse", "regression"), "val", VALUES, VALUES * np.nan)
    assert isinstance(result, Score) and all(map(math.isnan, (result.value, result.low, result.high)))


# --- several labels, tokens ------------------------------------------------------------------------------------------

SEVERAL = (RANDOM.random((200, 4)) < 0.3).astype(np.float32)
SHARES = np.clip(SEVERAL * 0.4 + RANDOM.random((200, 4)) * 0.6, 0, 1)
CHOSEN = (SHARES > 0.5).astype(np.int64)


def test_metric_of_several_labels_equals_scikit_learn() -> None:
    """f1 per label or over all, roc_auc averaged over labels; accuracy is the share of rows with every label right."""
    assert sk.f1_score(SEVERAL, CHOSEN, average="macro") == of("f1_macro", "multilabel")(SEVERAL, CHOSEN)
    assert sk.f1_score(SEVERAL, CHOSEN, average="micro") == of("f1_micro", "multilabel")(SEVERAL, CHOSEN)
    assert sk.roc_auc_score(SEVERAL, SHARES) == of("roc_auc", "multilabel")(SEVERAL, SHARES)
    exact = of("accuracy", "multilabel")
    assert math.isclose(sk.accuracy_score(SEVERAL, CHOSEN), exact(SEVERAL, CHOSEN))
    low, high, *_ = confidence_interval(exact, SEVERAL, CHOSEN)
    assert 0 < low < exact(SEVERAL, CHOSEN) < high < 1


def test_perplexity_is_exp_of_the_mean_loss() -> None:
    """Lower is better; its interval resamples whole windows."""
    perplexity, tokens = of("perplexity", "language_model"), np.zeros((40, 8), np.int64)
    assert "token_losses" == perplexity.needs and not perplexity.greater_is_better
    assert math.isclose(7.0, perplexity(tokens, np.full((40, 8), math.log(7.0))))
    alike = np.repeat(RANDOM.random((40, 1)), 8, axis=1)
    apart = RANDOM.permutation(alike.reshape(-1)).reshape(40, 8)
    (low, high), (near, far) = (confidence_interval(perplexity, tokens, losses)[:2] for losses in (alike, apart))
    assert low < perplexity(tokens, alike) < high and high - low > 1.5 * (far - near)


def test_metric_of_tokens_counts_tokens() -> None:
    """Three of four tokens are right; scikit-learn's metrics get all tokens as one row."""
    tokens, predictions = np.array([[0, 1], [2, 3]]), np.array([[0, 1], [2, 0]])
    assert 0.75 == of("accuracy", "language_model")(tokens, predictions)
    balanced = of("balanced_accuracy", "language_model")
    assert sk.balanced_accuracy_score(tokens.ravel(), predictions.ravel()) == balanced(tokens, predictions)


def nearest_label(labels: np.ndarray, embeddings: np.ndarray) -> float:
    """The share of rows whose nearest other row has the same label."""
    distance = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return float((labels[distance.argmin(1)] == labels).mean())


def test_confidence_interval_of_a_metric_that_compares_rows() -> None:
    """Repeated rows would be each other's nearest and lift the score; the interval contains the value instead.

    Its width is about that of a proportion of as many rows.
    """
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, 150)
    embeddings = draw.normal(size=(150, 2)) + 2.5 * np.eye(2)[labels]
    metric = Metric("nearest_label", nearest_label, "values")
    value = metric(labels, embeddings)
    low, high, *_ = confidence_interval(metric, labels, embeddings)
    drawn = [draw.integers(0, 150, 150) for _ in range(50)]
    repeated = np.quantile([metric(labels[rows], embeddings[rows]) for rows in drawn], 0.025)

    assert repeated > value  # what a bootstrap would have said
    assert low < value < high
    assert 0.5 < (high - low) / (2 * 1.96 * np.sqrt(value * (1 - value) / 150)) < 2


def test_confidence_interval_of_a_sum_is_that_of_its_mean() -> None:
    """A metric that adds up over rows is not taken for one that compares rows with each other."""
    draw = np.random.default_rng(0)
    y, predictions = draw.normal(size=(2, 200))
    total, mean = (
        Metric(name, function, "values", greater_is_better=False)
        for name, function in (
            ("total", lambda y, p: float(np.abs(y - p).sum())),
            ("mean", lambda y, p: float(np.abs(y - p).mean())),
        )
    )
    bounds = np.array(confidence_interval(mean, y, predictions)[:2]) * len(y)
    assert confidence_interval(total, y, predictions)[:2] == pytest.approx(tuple(bounds), rel=0.03)


@pytest.mark.parametrize("name", ["f1", "precision", "recall", "jaccard"])
def test_metric_of_one_class_names_its_average(name: str) -> None:
    """scikit-learn's metrics of one class, on three classes, are answered with the average over classes."""
    three = np.array([0, 1, 2, 1])
    metric = metric_from_config({"kind": "classification", "metric": name})
    with pytest.raises(UserError, match=f"Do: .*task.metric={name}_macro"):
        metric(three, three)
    assert metric_from_config({"kind": "classification", "metric": f"{name}_macro"})(three, three) == 1
