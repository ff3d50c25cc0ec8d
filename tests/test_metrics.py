"""Metrics: the same numbers as scikit-learn's, a direction, an interval, and a plain no to what does not measure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from pipeline.errors import UserError
from pipeline.evaluation.metrics import interval, metric, score
from pipeline.results import Score, TrainSide

RANDOM = np.random.default_rng(5)
LABELS = RANDOM.integers(0, 3, 200)
GUESSES = np.where(RANDOM.random(200) < 0.7, LABELS, RANDOM.integers(0, 3, 200))
VALUES = RANDOM.normal(size=200)
NEAR = VALUES + RANDOM.normal(size=200) / 3


def of(name: Any, kind: str = "classification") -> Any:
    return metric({"metric": name, "kind": kind})


def test_own_metrics_equal_scikit_learns() -> None:
    """accuracy, rmse and mae are computed here and agree with the reference."""
    assert sk.accuracy_score(LABELS, GUESSES) == of("accuracy")(LABELS, GUESSES)
    assert math.isclose(sk.root_mean_squared_error(VALUES, NEAR), of("rmse", "regression")(VALUES, NEAR))
    assert math.isclose(sk.mean_absolute_error(VALUES, NEAR), of("mae", "regression")(VALUES, NEAR))


def test_scorers_by_name_keep_their_sign_and_options() -> None:
    """A scorer is its function with its options; `neg_` scores are negative and greater is better."""
    assert sk.f1_score(LABELS, GUESSES, average="macro") == of("f1_macro")(LABELS, GUESSES)
    negative = of("neg_mean_squared_error", "regression")
    assert -sk.mean_squared_error(VALUES, NEAR) == negative(VALUES, NEAR) and negative.greater_is_better


def test_scores_are_asked_for_where_ranks_are_measured() -> None:
    """A scorer that needs probabilities says so."""
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
def test_metrics_that_do_not_measure_the_task_are_refused(name: str, kind: str, message: str) -> None:
    """An unknown metric, or one of another kind of task, is one message."""
    with pytest.raises(UserError, match=message):
        of(name, kind)


def test_a_metric_that_cannot_take_the_predictions_names_itself() -> None:
    """scikit-learn's refusal becomes a message about task.metric."""
    with pytest.raises(UserError, match=r"task\.metric: 'f1' does not fit"):
        of("f1")(LABELS, GUESSES)


def test_nan_predictions_have_no_value() -> None:
    """NaN in, NaN out, and never better than a number."""
    rmse = of("rmse", "regression")
    value = rmse(VALUES, np.where(VALUES > 0, np.nan, VALUES))
    assert math.isnan(value) and not rmse.better(value, 3.0) and rmse.better(3.0, value)


def test_better_follows_the_direction() -> None:
    """Less is better for errors, more for shares; equal is not better."""
    assert of("rmse", "regression").better(1.0, 2.0) and of("accuracy").better(0.9, 0.8)
    assert not of("accuracy").better(0.9, 0.9)


@given(st.integers(1, 500), st.data())
def test_wilson_holds_the_share_and_stays_in_bounds(n: int, data: st.DataObject) -> None:
    """0 <= low <= accuracy <= high <= 1, also for none or all right."""
    right = data.draw(st.integers(0, n))
    labels = np.zeros(n, np.int64)
    low, high = interval(of("accuracy"), labels, (np.arange(n) >= right).astype(np.int64))
    assert 0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1


def test_wilson_of_342_in_360() -> None:
    """The interval of the example's target, as tables give it."""
    low, high = interval(of("accuracy"), np.zeros(360), (np.arange(360) >= 342).astype(int))
    assert (0.922, 0.968) == (round(low, 3), round(high, 3))


def test_the_bootstrap_is_seeded_and_holds_the_value() -> None:
    """Equal seeds give equal intervals around the value."""
    rmse = of("rmse", "regression")
    low, high = interval(rmse, VALUES, NEAR, seed=3)
    assert (low, high) == interval(rmse, VALUES, NEAR, seed=3) != interval(rmse, VALUES, NEAR, seed=4)
    assert low < rmse(VALUES, NEAR) < high


def test_scores_of_train_rows_have_a_type_of_their_own() -> None:
    """Train rows give a TrainSide, the others a Score with the metric's direction."""
    rmse = of("rmse", "regression")
    assert isinstance(score(rmse, "train", VALUES, NEAR), TrainSide)
    judged = score(rmse, "val", VALUES, NEAR)
    assert isinstance(judged, Score) and not judged.greater_is_better and 200 == judged.n


def test_a_score_that_is_nan_has_no_interval() -> None:
    """No number, no bounds."""
    judged = score(of("rmse", "regression"), "val", VALUES, VALUES * np.nan)
    assert isinstance(judged, Score) and all(map(math.isnan, (judged.value, judged.low, judged.high)))


# --- several labels, tokens ------------------------------------------------------------------------------------------

SEVERAL = (RANDOM.random((200, 4)) < 0.3).astype(np.float32)
SHARES = np.clip(SEVERAL * 0.4 + RANDOM.random((200, 4)) * 0.6, 0, 1)
CHOSEN = (SHARES > 0.5).astype(np.int64)


def test_metrics_of_several_labels_equal_scikit_learns() -> None:
    """f1 by label or over all, ranks averaged over labels; accuracy are the rows whose every label is right."""
    assert sk.f1_score(SEVERAL, CHOSEN, average="macro") == of("f1_macro", "multilabel")(SEVERAL, CHOSEN)
    assert sk.f1_score(SEVERAL, CHOSEN, average="micro") == of("f1_micro", "multilabel")(SEVERAL, CHOSEN)
    assert sk.roc_auc_score(SEVERAL, SHARES) == of("roc_auc", "multilabel")(SEVERAL, SHARES)
    exact = of("accuracy", "multilabel")
    assert math.isclose(sk.accuracy_score(SEVERAL, CHOSEN), exact(SEVERAL, CHOSEN))
    low, high = interval(exact, SEVERAL, CHOSEN)
    assert 0 < low < exact(SEVERAL, CHOSEN) < high < 1


def test_perplexity_is_the_number_of_tokens_between_which_one_hesitates() -> None:
    """exp of the mean loss; less is better; its interval draws whole windows."""
    perplexity, tokens = of("perplexity", "language_model"), np.zeros((40, 8), np.int64)
    assert "token_losses" == perplexity.needs and not perplexity.greater_is_better
    assert math.isclose(7.0, perplexity(tokens, np.full((40, 8), math.log(7.0))))
    alike = np.repeat(RANDOM.random((40, 1)), 8, axis=1)
    apart = RANDOM.permutation(alike.reshape(-1)).reshape(40, 8)
    (low, high), (near, far) = (interval(perplexity, tokens, losses) for losses in (alike, apart))
    assert low < perplexity(tokens, alike) < high and high - low > 1.5 * (far - near)


def test_accuracy_of_tokens_counts_tokens_and_others_are_flattened() -> None:
    """Three of four tokens right; scikit-learn's metrics of classes see one long row."""
    tokens, said = np.array([[0, 1], [2, 3]]), np.array([[0, 1], [2, 0]])
    assert 0.75 == of("accuracy", "language_model")(tokens, said)
    balanced = of("balanced_accuracy", "language_model")
    assert sk.balanced_accuracy_score(tokens.ravel(), said.ravel()) == balanced(tokens, said)
