"""Simple models as the bar: scored by the deciding metric on validation, fitted on train alone, within a time."""

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
from pipeline.evaluation import metrics, ngrams, reference_models
from pipeline.evaluation.reference_models import simple_scores
from pipeline.evaluation.task import Task, build_task
from tests.check_helpers import judged
from tests.trainings import REGRESSION, blobs, config

BINARY = {
    "task": {"kind": "binary", "metric": "roc_auc", "target": 0.9},
    "loss": {"_target_": "torch.nn.BCELoss"},
}


def task_of(**changed: Any) -> Task:
    body = config(**changed)
    return build_task(body, build_loss(body))


def by_name(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in found}


def timeless(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in one.items() if k != "seconds"} for one in found]


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({}, "classification"),
        ({"task__metric": "roc_auc_ovr"}, "classification"),
        (BINARY, "binary"),
        (REGRESSION, "regression"),
    ],
)  # fmt: skip
def test_what_is_linear_is_found(changed: dict[str, Any], kind: str) -> None:
    """On clouds that a line divides, and on a linear target, the linear model is nearly perfect and trees are good."""
    task, data = task_of(**changed), blobs(300, kind)
    found = by_name(simple_scores(task, data, 3, 2.0))
    linear, trees = found["ridge" if kind == "regression" else "logistic_regression"], found["boosted_trees"]
    for one in (linear, trees):
        assert one["metric"] == task.metric.name and one["n"] == 40 and "on 300 train rows" in one["how"]
        assert math.isnan(one["low"]) or one["low"] <= one["value"] <= one["high"]
    bar = (0.1, 1.0) if kind == "regression" else (0.85, 0.8)
    sign = 1 if task.metric.greater_is_better else -1
    assert sign * (linear["value"] - bar[0]) >= 0 and sign * (trees["value"] - bar[1]) >= 0


@pytest.mark.parametrize(("changed", "kind"), [({}, "classification"), (REGRESSION, "regression")])
def test_what_one_makes_of_the_networks_outputs_is_not_asked(changed: dict[str, Any], kind: str) -> None:
    """A `task.predict` of one's own fits the outputs of one's own model: a simple one says classes and values itself,
    and a metric that does not take them is a reason and no error."""
    task, data = task_of(**changed), blobs(60, kind)
    own = replace(task, predict=lambda outputs: outputs.squeeze(1).exp())
    assert timeless(simple_scores(own, data, 3, 2.0)) == timeless(simple_scores(task, data, 3, 2.0))
    choosy = replace(task, metrics=(replace(task.metric, function=lambda targets, predictions: float("?")),))
    assert all("does not fit" in one["not_applicable"] for one in simple_scores(choosy, data, 3, 2.0))


def test_equal_arguments_give_equal_scores() -> None:
    """Nothing but the rows, the seed and the allowance decides."""
    data = blobs(300)
    first, again = (timeless(simple_scores(task_of(), data, 3, 2.0)) for _ in range(2))
    assert first == again


def test_the_validation_rows_teach_nothing() -> None:
    """What is fitted on shuffled train targets is at chance, whatever the validation targets are."""
    data = blobs(300)
    order = torch.from_numpy(np.random.default_rng(0).permutation(300))
    lost = replace(data, train=Split("train", data.train.X, data.train.y[order]))
    assert all(one["value"] < 0.6 for one in simple_scores(task_of(), lost, 3, 2.0))


def test_too_many_rows_are_thinned_out() -> None:
    """The allowance decides by rows and columns alone how many train rows are fitted on, and it is said."""
    data = blobs(4000)
    few, trees = simple_scores(task_of(), data, 3, 0.004)
    assert few["how"].endswith("of 4000 train rows, as many as the time allows") and few["value"] > 0.8
    assert trees["not_applicable"].startswith("the time allows 0 of 4000 train rows")


def test_missing_values_infinities_and_codes_are_taken() -> None:
    """Rows with holes give scores, and a column of codes says to the linear model what its numbers do not."""
    draw = np.random.default_rng(0)

    def part(n: int) -> tuple[np.ndarray, np.ndarray]:
        code = draw.integers(0, 6, n)
        X = np.stack([code, draw.normal(size=n), np.full(n, np.nan)], 1)
        X[::7, 1], X[::11, 1] = np.nan, np.inf
        return X, code % 2

    data = seal({"train": part(400), "val": part(100), "test": part(40)}, "classification")
    numbers, codes = (by_name(simple_scores(task_of(), data, 3, 2.0, columns)) for columns in ((), (0,)))
    assert codes["logistic_regression"]["value"] == 1.0 > numbers["logistic_regression"]["value"]
    assert codes["boosted_trees"]["value"] > 0.95


def test_labels_beside_each_other_are_learned_one_by_one() -> None:
    """A multilabel task gets an output per label, as its loss takes it; a label that never changes is no fault."""
    task = replace(
        task_of(task__metric="accuracy", loss={"_target_": "torch.nn.BCEWithLogitsLoss"}),
        kind="multilabel",
        predict=lambda outputs: (outputs > 0).long(),
        metrics=(metrics.Metric("f1_macro", lambda y, p: float(np.mean(y == p)), "classes"),),
    )
    X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    y = torch.stack([X[:, 0] > 0, X[:, 1] > 0, torch.ones(200, dtype=torch.bool)], 1).long()
    data = replace(blobs(), train=Split("train", X[:150], y[:150]), val=Split("val", X[150:], y[150:]))
    assert all(one["value"] > 0.9 for one in simple_scores(task, data, 3, 2.0))


def test_what_scikit_learn_cannot_read_has_a_reason() -> None:
    """Nested inputs, Datasets, other kinds and a single class are named, and nothing is raised."""
    data = blobs()
    nested = replace(data, train=Split("train", {"a": data.train.X}, data.train.y))
    items = replace(data, train=replace(data.train, items=object()))
    for one, why in ((nested, "nested"), (items, "reads its rows anew")):
        assert all(why in found["not_applicable"] for found in simple_scores(task_of(), one, 3, 2.0))
    for kind, why in (("autoencoder", "the targets are the inputs"), ("custom", "only its own step knows")):
        found = simple_scores(replace(task_of(), kind=kind), data, 3, 2.0)
        assert [one["name"] for one in found] == ["linear_model", "boosted_trees"]
        assert all(why in one["not_applicable"] for one in found)
    lone = replace(data, train=Split("train", data.train.X, torch.zeros(100, dtype=torch.int64)))
    assert "class" in simple_scores(task_of(), lone, 3, 2.0)[0]["not_applicable"]


def test_warnings_are_said_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear model that did not converge says so in `how`."""
    monkeypatch.setattr(reference_models, "ITERATIONS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = simple_scores(task_of(), blobs(), 3, 2.0)
    assert "failed to converge" in found[0]["how"]


# --- text ------------------------------------------------------------------------------------------------------------


def chain(rows: int, context: int, vocabulary: int = 5) -> Data:
    """Windows of one text in which a token is almost surely followed by the next but one."""
    draw, stream = np.random.default_rng(0), [0, 1]
    while len(stream) <= 3 * rows * context:
        stream.append((stream[-2] + 1) % vocabulary if draw.random() < 0.9 else int(draw.integers(vocabulary)))
    text = torch.tensor(stream)
    X, y = (text[i : i + 3 * rows * context].reshape(3 * rows, context) for i in (0, 1))
    sides = {name: Split(name, X[k * rows : (k + 1) * rows].float(), y[k * rows : (k + 1) * rows]) for k, name in
             enumerate(("train", "val"))}  # fmt: skip
    return replace(blobs(), **sides, class_names=tuple("abcdefgh"[:vocabulary]))


def test_n_grams_know_the_chain() -> None:
    """Their perplexity is near that of the text itself, by hand `exp(entropy)`, and its interval holds it."""
    data = chain(400, 8)
    perplexity = metrics.Metric("perplexity", lambda y, p: math.nan, "scores", greater_is_better=False)
    task = replace(task_of(), kind="language_model", metrics=(perplexity,))
    (found,) = simple_scores(task, data, 3, 2.0)
    entropy = -(0.92 * math.log(0.92) + 4 * 0.02 * math.log(0.02))
    assert found["low"] < found["value"] < found["high"]
    assert math.exp(entropy) < found["value"] < 1.35 * math.exp(entropy)
    assert found["how"] == "trigrams, interpolated, on 400 train rows"
    (right,) = simple_scores(replace(task, metrics=(metrics.OWN["accuracy"],)), data, 3, 2.0)
    assert 0.8 < right["value"] < 0.95


def test_n_grams_name_the_class_behind_a_window() -> None:
    """Windows whose targets go on are text, judged by the metric of the task; a table of whole numbers is none."""
    data = chain(400, 8)
    last = {name: Split(name, side.X, side.y[:, -1]) for name, side in (("train", data.train), ("val", data.val))}
    (found,) = simple_scores(task_of(), replace(data, **last), 3, 2.0)
    assert found["name"] == "n-grams" and found["value"] > 0.85
    order = torch.from_numpy(np.random.default_rng(0).permutation(400))
    table = replace(data, **{**last, "train": last["train"].take(order)})
    assert [one["name"] for one in simple_scores(task_of(), table, 3, 2.0)] == ["logistic_regression", "boosted_trees"]


def test_probabilities_of_n_grams_add_up() -> None:
    """After any context, seen or not, they are positive and sum to one."""
    rows = np.random.default_rng(0).integers(0, 7, (20, 6))
    grams = ngrams.counted(rows, 9)
    context = np.array([[a, b] for a in range(10) for b in range(9)])
    found = grams.every(context)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert (found > 0).all()
    following = np.arange(90) % 9
    assert (grams.likely(context, following) == found[np.arange(90), following]).all()


# --- the check -------------------------------------------------------------------------------------------------------

SCORE = {"metric": "accuracy", "value": 0.95, "low": 0.9, "high": 0.98, "greater_is_better": True}
ERROR = {"metric": "rmse", "value": 1.0, "low": 0.8, "high": 1.2, "greater_is_better": False}


@pytest.mark.parametrize(
    ("score", "value", "outcome", "why"),
    [
        (SCORE, 0.96, "passed", "warning: ridge is better than the trained model, 0.95"),
        (SCORE, 0.91, "passed", "ridge is as good as the trained model, 0.95, within its 95 % interval"),
        (SCORE, 0.85, "passed", "the trained model is better, 0.95"),
        (ERROR, 0.9, "passed", "warning: ridge is better"),
        (ERROR, 1.1, "passed", "ridge is as good as"),
        (ERROR, 1.3, "passed", "the trained model is better"),
        (None, 0.9, "passed", "has no score to compare"),
        (SCORE, None, "failed", "neither a score nor a reason: ridge"),
        (SCORE, math.nan, "not_applicable", "ridge: its score is not a number"),
    ],
)
def test_what_the_check_says(score: Any, value: float | None, outcome: str, why: str) -> None:
    """Only a model without a score and without a reason fails; a simple one that is as good is named."""
    one = {"name": "ridge", **({} if value is None else {"value": value, "metric": "rmse"})}
    found = judged("measures.baseline_models_scored", {"baseline_models": [one], "score": score})
    assert (found.outcome, why in found.why) == (outcome, True), found.why


def test_reasons_are_not_applicable() -> None:
    """Where no model could be fitted the item says why; without a list it is errored, never passed."""
    reason = {"name": "ridge", "not_applicable": "the inputs are nested"}
    found = judged("measures.baseline_models_scored", {"baseline_models": [reason], "score": SCORE})
    assert (found.outcome, found.why) == ("not_applicable", "ridge: the inputs are nested")
    assert judged("measures.baseline_models_scored", {"score": SCORE}).outcome == "errored"
