"""Labels of live rows: the metric of the release on what the exported model answered, by the task and its metric."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.drift.score import LiveScore, OwnCode, own_code, score_labels
from pipeline.errors import UserError
from pipeline.evaluation.metrics import Metric
from pipeline.evaluation.tokens import token_losses
from pipeline.run_store import files
from pipeline.run_store.run import Run
from tests.conftest import Cli
from tests.user_package import PACKAGE, WORDS, write_package

ROWS, PLACES, TOKENS = 40, 6, 5


class KnownRelease:
    """A reference of which only the released figure is read."""

    def __init__(self, task: str, metric: str, takes: str = "logits", **limits: Any) -> None:
        released = {"metric": metric, "value": None, "low": None, "high": None, "greater_is_better": False, **limits}
        self.about = {"task": task, "takes": takes, "released": released, "seed": 1}


def scored(known: KnownRelease, labels: Any, outputs: np.ndarray, own: OwnCode | None = None) -> LiveScore:
    schema: Any = {"class_names": []}
    answered = np.ones(len(outputs), bool)
    score = score_labels(known, schema, labels, {"output": outputs}, answered, own or OwnCode())  # type: ignore[arg-type]
    assert score is not None
    return score


@pytest.fixture
def text() -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, T, V] of windows and the tokens that came next."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(ROWS, PLACES, TOKENS)).astype(np.float32) * 3
    return logits, rng.integers(0, TOKENS, (ROWS, PLACES))


@pytest.mark.parametrize("takes", ["logits", "log_probabilities", "probabilities"])
def test_score_labels_gives_the_perplexity_of_evaluation(text: tuple[np.ndarray, np.ndarray], takes: str) -> None:
    """The losses are those that evaluation computes with torch, whatever the outputs are."""
    logits, targets = text
    as_taken = {
        "logits": lambda x: x,
        "log_probabilities": lambda x: x.log_softmax(-1),
        "probabilities": lambda x: x.softmax(-1),
    }
    outputs = as_taken[takes](torch.as_tensor(logits))
    expected = token_losses(outputs, torch.as_tensor(targets), takes).mean().exp()

    score = scored(KnownRelease("language_model", "perplexity", takes), targets, outputs.numpy())

    assert score["value"] == pytest.approx(float(expected), rel=1e-5)
    assert score["low"] is not None and score["low"] < score["value"] < score["high"]  # type: ignore[operator]


def test_score_labels_reads_windows_of_json(text: tuple[np.ndarray, np.ndarray]) -> None:
    """Lists of tokens, and the metric accuracy, count as the same array does."""
    logits, targets = text
    score = scored(KnownRelease("language_model", "accuracy"), json.loads(json.dumps(targets.tolist())), logits)

    assert score["value"] == pytest.approx((logits.argmax(-1) == targets).mean())


def test_score_labels_finds_a_perplexity_that_is_worse(text: tuple[np.ndarray, np.ndarray]) -> None:
    """An interval entirely above the released one is worse, since less perplexity is better."""
    logits, targets = text
    known = KnownRelease("language_model", "perplexity", value=1.5, low=1.4, high=1.6)

    assert scored(known, targets, logits)["worse"]
    assert not scored(known, logits.argmax(-1), logits)["worse"]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.zeros(ROWS), "labels: have another shape"),
        (np.full((ROWS, PLACES), TOKENS), f"expected 0 to {TOKENS - 1}"),
        (["a b"] * ROWS, "labels: are no lists of numbers"),
    ],
)
def test_score_labels_refuses_labels_that_are_no_tokens(
    text: tuple[np.ndarray, np.ndarray], labels: Any, says: str
) -> None:
    """One token for each place of a window, each in the vocabulary."""
    with pytest.raises(UserError, match=says):
        scored(KnownRelease("language_model", "perplexity"), labels, text[0])


def cost(targets: np.ndarray, predictions: np.ndarray) -> float:
    """A missed row costs five times a false alarm."""
    return float(np.where(targets > predictions, 5.0, np.where(targets < predictions, 1.0, 0.0)).mean())


def test_score_labels_uses_the_metric_of_the_owner() -> None:
    """Their function gets targets and predicted classes."""
    own = OwnCode(Metric("cost", cost, "classes", greater_is_better=False, where="task.metric", users_own=True))
    targets = np.array([0, 1] * 20)
    outputs = np.tile(np.array([[1.0, 0.0]], np.float32), (40, 1))

    assert scored(KnownRelease("classification", "cost"), targets, outputs, own)["value"] == 2.5


@pytest.mark.parametrize(
    ("task", "own", "why"),
    [
        ("custom", OwnCode(why="predictions come from task.step"), "predictions come from task.step"),
        ("autoencoder", None, "see the feature 'reconstruction error'"),
        ("classification", None, "cost of a classification task needs more than labels"),
    ],
)
def test_score_labels_says_why_there_is_no_score(task: str, own: OwnCode | None, why: str) -> None:
    """Nothing is made up where the bundle cannot compute the metric."""
    score = scored(KnownRelease(task, "cost"), np.zeros(4), np.zeros((4, 2), np.float32), own)

    assert score["value"] is None and why in score["why"] and not score["worse"]


OWN_METRIC = """
def cost(targets, predictions):
    return float((targets != predictions).mean() * 5)
cost.greater_is_better = False
"""


@pytest.mark.process  # it takes seconds
def test_own_code_imports_the_metric_of_its_run(own_folder: Path, cli: Cli) -> None:
    """The run says who trusts the package; the same bundle elsewhere says what it lacks."""
    write_package(own_folder)
    (own_folder / "somebody.py").write_text(PACKAGE + OWN_METRIC)
    words = ["task.metric={_target_: somebody.cost}", "task.target=1", "task.metrics=[]", "tracking=none"]
    assert cli("phase=planning", *WORDS, *words, "run.name=costly")[0] == 0
    run = Run(own_folder / "runs" / "costly")
    state, payload = run.state(), run.inside("bundle", "payload")
    assert state.plan is not None
    files.write_bytes(payload / "plan.yaml", (run.path / state.plan["file"]).read_bytes())
    shutil.copytree(payload.parent, own_folder / "elsewhere")

    own = own_code(payload)
    assert own.metric is not None and own.why == ""
    assert own.metric(np.array([0, 1]), np.array([0, 0])) == 2.5
    assert "somebody.cost is not part of a bundle" in own_code(own_folder / "elsewhere" / "payload").why
