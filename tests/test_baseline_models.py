"""Baseline models: fitted on train rows within a time, scored on validation by the deciding metric."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.building.builder import build_loss
from pipeline.data.dataset import Data
from pipeline.data.load import seal
from pipeline.data.splits import Split
from pipeline.evaluation import baseline_models, bigram, metrics, tabular_models
from pipeline.evaluation.baseline_models import BaselineScore, score_baseline_models
from pipeline.evaluation.task import Task, build_task
from tests.check_helpers import judge
from tests.trainings import REGRESSION, blobs, config

BINARY = {
    "task": {"kind": "binary", "metric": "roc_auc", "target": 0.9},
    "loss": {"_target_": "torch.nn.BCELoss"},
}


def task_of(**changed: Any) -> Task:
    body = config(**changed)
    return build_task(body, build_loss(body))


def by_name(scores: list[BaselineScore]) -> dict[str, BaselineScore]:
    return {score["name"]: score for score in scores}


def without_seconds(scores: list[BaselineScore]) -> list[dict[str, Any]]:
    return [{k: v for k, v in score.items() if k != "seconds"} for score in scores]


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({}, "classification"),
        ({"task__metric": "roc_auc_ovr"}, "classification"),
        (BINARY, "binary"),
        (REGRESSION, "regression"),
    ],
)  # fmt: skip
def test_baseline_models_fit_linear_problems(changed: dict[str, Any], kind: str) -> None:
    """On separable clouds and on a linear target, the linear model is nearly perfect and trees are good."""
    task, data = task_of(**changed), blobs(300, kind)
    scores = by_name(score_baseline_models(task, data, 3, 2.0))
    linear, trees = scores["ridge" if kind == "regression" else "logistic_regression"], scores["boosted_trees"]
    for score in (linear, trees):
        assert score["metric"] == task.metric.name and score["n"] == 40 and "on 300 train rows" in score["how"]
        assert math.isnan(score["low"]) or score["low"] <= score["value"] <= score["high"]
    bounds = (0.1, 1.0) if kind == "regression" else (0.85, 0.8)
    sign = 1 if task.metric.greater_is_better else -1
    assert sign * (linear["value"] - bounds[0]) >= 0 and sign * (trees["value"] - bounds[1]) >= 0


@pytest.mark.parametrize(("changed", "kind"), [({}, "classification"), (REGRESSION, "regression")])
def test_baseline_models_do_not_use_task_predict(changed: dict[str, Any], kind: str) -> None:
    """A user's `task.predict` is made for the network; baseline models give classes and values themselves, and a
    metric that cannot take them is a reason, not an error."""
    task, data = task_of(**changed), blobs(60, kind)
    own = replace(task, predict=lambda outputs: outputs.squeeze(1).exp())
    assert without_seconds(score_baseline_models(own, data, 3, 2.0)) == without_seconds(
        score_baseline_models(task, data, 3, 2.0)
    )
    choosy = replace(task, metrics=(replace(task.metric, function=lambda targets, predictions: float("?")),))
    assert all("does not fit" in score["not_applicable"] for score in score_baseline_models(choosy, data, 3, 2.0))


def test_baseline_models_are_deterministic() -> None:
    """Equal rows, seed and time give equal scores."""
    data = blobs(300)
    first, again = (without_seconds(score_baseline_models(task_of(), data, 3, 2.0)) for _ in range(2))
    assert first == again


def test_baseline_models_do_not_learn_from_validation() -> None:
    """A model fitted on shuffled train targets is at chance on validation."""
    data = blobs(300)
    order = torch.from_numpy(np.random.default_rng(0).permutation(300))
    lost = replace(data, train=Split("train", data.train.X, data.train.y[order]))
    assert all(score["value"] < 0.6 for score in score_baseline_models(task_of(), lost, 3, 2.0))


def test_baseline_models_sample_train_rows_that_exceed_the_time() -> None:
    """The number of train rows follows from time, rows and columns alone, and `how` says it."""
    data = blobs(4000)
    linear, trees = score_baseline_models(task_of(), data, 3, 0.004)
    assert linear["how"].endswith("of 4000 train rows, as many as the time allows") and linear["value"] > 0.8
    assert trees["not_applicable"].startswith("the time allows 0 of 4000 train rows")


def test_baseline_models_take_missing_values_infinities_and_categories() -> None:
    """Rows with missing values give scores, and one-hot encoded categories help the linear model."""
    draw = np.random.default_rng(0)

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        code = draw.integers(0, 6, n)
        X = np.stack([code, draw.normal(size=n), np.full(n, np.nan)], 1)
        X[::7, 1], X[::11, 1] = np.nan, np.inf
        return X, code % 2

    data = seal({"train": part(400), "val": part(100), "test": part(40)}, "classification")
    numbers, codes = (by_name(score_baseline_models(task_of(), data, 3, 2.0, columns)) for columns in ((), (0,)))
    assert codes["logistic_regression"]["value"] == 1.0 > numbers["logistic_regression"]["value"]
    assert codes["boosted_trees"]["value"] > 0.95


def test_baseline_models_fit_one_model_per_label() -> None:
    """A multilabel task gets one output per label; a constant label is not an error."""
    task = replace(
        task_of(task__metric="accuracy", loss={"_target_": "torch.nn.BCEWithLogitsLoss"}),
        kind="multilabel",
        predict=lambda outputs: (outputs > 0).long(),
        metrics=(metrics.Metric("f1_macro", lambda y, p: float(np.mean(y == p)), "classes"),),
    )
    X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    y = torch.stack([X[:, 0] > 0, X[:, 1] > 0, torch.ones(200, dtype=torch.bool)], 1).long()
    data = replace(blobs(), train=Split("train", X[:150], y[:150]), val=Split("val", X[150:], y[150:]))
    assert all(score["value"] > 0.9 for score in score_baseline_models(task, data, 3, 2.0))


def test_baseline_models_give_a_reason_for_what_they_cannot_fit() -> None:
    """Nested inputs, Datasets, other task kinds and a single class have a reason, and nothing is raised."""
    data = blobs()
    nested = replace(data, train=Split("train", {"a": data.train.X}, data.train.y))
    items = replace(data, train=replace(data.train, dataset=object()))
    for rows, why in ((nested, "nested"), (items, "reads its rows again")):
        assert all(why in score["not_applicable"] for score in score_baseline_models(task_of(), rows, 3, 2.0))
    for kind, why in (
        ("autoencoder", "the targets are the inputs"),
        ("custom", "only the step of a custom task knows"),
    ):
        scores = score_baseline_models(replace(task_of(), kind=kind), data, 3, 2.0)
        assert [score["name"] for score in scores] == ["linear_model", "boosted_trees"]
        assert all(why in score["not_applicable"] for score in scores)
    lone = replace(data, train=Split("train", data.train.X, torch.zeros(100, dtype=torch.int64)))
    assert "class" in score_baseline_models(task_of(), lone, 3, 2.0)[0]["not_applicable"]


def test_baseline_models_report_their_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear model that did not converge says so in `how`, without a Python warning."""
    monkeypatch.setattr(tabular_models, "ITERATIONS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = score_baseline_models(task_of(), blobs(), 3, 2.0)
    assert "failed to converge" in scores[0]["how"]


# --- text ------------------------------------------------------------------------------------------------------------


def chain(rows: int, context: int, vocabulary: int = 5) -> Data:
    """Windows of one text in which a token is almost always followed by the next one."""
    draw, stream = np.random.default_rng(0), [0]
    while len(stream) <= 3 * rows * context:
        stream.append((stream[-1] + 1) % vocabulary if draw.random() < 0.9 else int(draw.integers(vocabulary)))
    text = torch.tensor(stream)
    X, y = (text[i : i + 3 * rows * context].reshape(3 * rows, context) for i in (0, 1))
    splits = {name: Split(name, X[k * rows : (k + 1) * rows].float(), y[k * rows : (k + 1) * rows]) for k, name in
              enumerate(("train", "val"))}  # fmt: skip
    return replace(blobs(), **splits, class_names=tuple("abcdefgh"[:vocabulary]))


def test_bigram_reaches_the_entropy_of_a_markov_chain() -> None:
    """Its perplexity is near exp(entropy) of the chain, and its interval holds it; accuracy counts tokens."""
    data = chain(400, 8)
    perplexity = metrics.Metric("perplexity", lambda y, p: math.nan, "scores", greater_is_better=False)
    task = replace(task_of(), kind="language_model", metrics=(perplexity,))
    (score,) = score_baseline_models(task, data, 3, 2.0)
    entropy = -(0.92 * math.log(0.92) + 4 * 0.02 * math.log(0.02))
    assert score["name"] == "bigram" and score["low"] < score["value"] < score["high"]
    assert 0.95 * math.exp(entropy) < score["value"] < 1.1 * math.exp(entropy)
    assert score["how"] == "bigrams, interpolated, on 400 train rows"
    (accuracy,) = score_baseline_models(replace(task, metrics=(metrics.BUILT_IN["accuracy"],)), data, 3, 2.0)
    assert 0.88 < accuracy["value"] < 0.95


def test_bigram_predicts_the_class_after_a_window() -> None:
    """Windows of a text with the next token as class get a bigram model; a shuffled table of integers does not."""
    data = chain(400, 8)
    last = {name: Split(name, split.X, split.y[:, -1]) for name, split in (("train", data.train), ("val", data.val))}
    (score,) = score_baseline_models(task_of(), replace(data, **last), 3, 2.0)
    assert score["name"] == "bigram" and score["value"] > 0.85
    order = torch.from_numpy(np.random.default_rng(0).permutation(400))
    table = replace(data, **{**last, "train": last["train"].take(order)})
    names = [score["name"] for score in score_baseline_models(task_of(), table, 3, 2.0)]
    assert names == ["logistic_regression", "boosted_trees"]


def test_bigram_refuses_a_vocabulary_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of all pairs of tokens that would not fit into memory is a reason, not an error."""
    monkeypatch.setattr(baseline_models, "MAX_CELLS", 24)
    task = replace(task_of(), kind="language_model", metrics=(metrics.PERPLEXITY,))
    (score,) = score_baseline_models(task, chain(60, 8), 3, 2.0)
    assert score["not_applicable"] == "a table of 5 x 5 tokens is too large"


def test_bigram_probabilities_sum_to_one() -> None:
    """After any token, in train or not, probabilities are positive and sum to one."""
    rows = np.random.default_rng(0).integers(0, 7, (20, 6))
    probabilities = bigram.bigram_probabilities(rows, 9)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)
    assert (probabilities > 0).all()
    assert probabilities[8] == pytest.approx((np.bincount(rows[:, 1:].ravel(), minlength=9) + 1) / (100 + 9))


# --- the check -------------------------------------------------------------------------------------------------------

SCORE = {"metric": "accuracy", "value": 0.95, "low": 0.9, "high": 0.98, "greater_is_better": True}
ERROR = {"metric": "rmse", "value": 1.0, "low": 0.8, "high": 1.2, "greater_is_better": False}


@pytest.mark.parametrize(
    ("score", "value", "outcome", "why"),
    [
        (SCORE, 0.99, "passed", "warning: ridge is better than the trained model, 0.95"),
        (SCORE, 0.96, "passed", "warning: ridge scores better than the trained model, 0.95, but within its 95 %"),
        (SCORE, 0.91, "passed", "ridge is as good as the trained model, 0.95, within its 95 % interval"),
        (SCORE, 0.85, "passed", "the trained model is better, 0.95"),
        (ERROR, 0.7, "passed", "warning: ridge is better"),
        (ERROR, 0.9, "passed", "warning: ridge scores better than the trained model, 1, but within its 95 %"),
        (ERROR, 1.1, "passed", "ridge is as good as"),
        (ERROR, 1.3, "passed", "the trained model is better"),
        (None, 0.9, "passed", "has no score to compare"),
        ({**SCORE, "value": math.nan}, 0.9, "passed", "the score of the trained model is not a number"),
        (SCORE, None, "failed", "neither a score nor a reason: ridge"),
        (SCORE, math.nan, "not_applicable", "ridge: its score is not a number"),
    ],
)
def test_baseline_models_scored_compares_with_the_trained_model(
    score: Any, value: float | None, outcome: str, why: str
) -> None:
    """Only a model without a score and without a reason fails; a baseline model that is as good is named."""
    model = {"name": "ridge", **({} if value is None else {"value": value, "metric": "rmse"})}
    item = judge("measures.baseline_models_scored", {"baseline_models": [model], "score": score})
    assert (item.outcome, why in item.why) == (outcome, True), item.why


def test_baseline_models_scored_is_not_applicable_without_a_model() -> None:
    """If no model could be fitted the item says why; without a list it is errored, not passed."""
    reason = {"name": "ridge", "not_applicable": "the inputs are nested"}
    item = judge("measures.baseline_models_scored", {"baseline_models": [reason], "score": SCORE})
    assert (item.outcome, item.why) == ("not_applicable", "ridge: the inputs are nested")
    assert judge("measures.baseline_models_scored", {"score": SCORE}).outcome == "errored"
