"""What is measured on test rows: paired comparisons, calibration, and the gap between train and validation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from checklists.checks.quality import beats_baseline, calibrated, generalization_gap
from pipeline.data.splits import Split
from pipeline.evaluation.evaluate import Evaluation, score_split
from pipeline.evaluation.task import build_task
from pipeline.readiness.calibration import Calibration
from pipeline.readiness.comparison import compare, paired_proportions_bound
from pipeline.readiness.generalization import measure_generalization
from pipeline.readiness.reliability import (
    brier_score,
    expected_calibration_error,
    measure_reliability,
    resampled_p_value,
)
from pipeline.readiness.subject import Subject
from pipeline.results import Evidence, Result

CONFIG = {"task": {"kind": "classification", "metric": "accuracy", "target": 0.5, "predict": "auto",
                   "class_weights": "none"}}  # fmt: skip
CALIBRATED = {"max_error": 0.05, "min_p_value": 0.05, "coverage": [0.87, 0.93], "min_rows": 100}


class Nearest(nn.Module):
    """The class of the nearest known row: a model that knows its train rows by heart."""

    def __init__(self, X: Tensor, y: Tensor, classes: int) -> None:
        super().__init__()
        self.X, self.answers = nn.Parameter(X), nn.functional.one_hot(y, classes).float() * 8

    def forward(self, x: Tensor) -> Tensor:
        return self.answers[torch.cdist(x, self.X).argmin(dim=1)]


class Scaled(nn.Module):
    """A model that answers its inputs times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def drawn(n: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Logits, and labels that are drawn from exactly their probabilities."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (n, classes))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (shares.cumsum(1) > rng.random((n, 1))).argmax(1)
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(labels)


def gap_of(train: Split, val: Split, model: nn.Module) -> Result:
    task = build_task(CONFIG, nn.CrossEntropyLoss(), model)
    data: Any = SimpleNamespace(train=train, val=val)
    measured = measure_generalization(Subject(model.eval(), task, data, CONFIG, "w", 1))
    evidence = {"generalization_gap": measured, "test_score": {"value": 0.5}}
    return generalization_gap(Evidence(evidence), max_gap=0.05, max_unbounded_gap=None)


def test_generalization_gap_fails_for_a_model_that_learned_by_heart() -> None:
    """Random labels, known by heart: all train rows are right, and validation is chance."""
    generator = torch.Generator().manual_seed(0)
    X, y = torch.randn(600, 5, generator=generator), torch.randint(0, 4, (600,), generator=generator)
    result = gap_of(Split("train", X[:300], y[:300]), Split("val", X[300:], y[300:]), Nearest(X[:300], y[:300], 4))
    assert (result.outcome, result.cause) == ("failed", "overfitting") and result.value > 0.5


def test_generalization_gap_passes_for_a_model_that_did_not() -> None:
    """Train and validation rows of one population, and a model that saw neither."""
    X, y = drawn(2000)
    result = gap_of(Split("train", X[:1000], y[:1000]), Split("val", X[1000:], y[1000:]), Scaled(1.0))
    assert result.outcome == "passed"


def reliability(factor: float, n: int = 3000) -> Result:
    """The check on a model whose logits are a factor too large."""
    X, y = drawn(n)
    model, rows = Scaled(factor), Split("test", X, y)
    task = build_task(CONFIG, nn.CrossEntropyLoss(), model)
    evaluation: Evaluation = score_split(model, rows, task, 1)
    measured = measure_reliability(task, rows, evaluation, Calibration(temperature=1.0, rows=n), 1)
    return calibrated(Evidence({"calibration": measured}), **CALIBRATED)


def test_calibrated_fails_for_logits_that_are_too_large() -> None:
    """A model that is certain where it is not: the same classes, other probabilities."""
    assert reliability(1.0).outcome == "passed"
    assert reliability(20.0).outcome == "failed"


def test_calibrated_needs_rows() -> None:
    """Few rows show little, whatever they show."""
    few = reliability(1.0, n=40)
    assert (few.outcome, few.acceptable) == ("inconclusive", "small_sample")


def test_expected_calibration_error_of_known_bins() -> None:
    """Thirty rows in fifteen bins of two: the mean distance of each bin's share of hits from its probability."""
    shares = np.linspace(0.02, 0.98, 30)
    hits = np.arange(30) % 3 == 0
    pairs = [abs(hits[i : i + 2].mean() - shares[i : i + 2].mean()) for i in range(0, 30, 2)]
    assert expected_calibration_error(shares, hits) == pytest.approx(np.mean(pairs))
    assert expected_calibration_error(hits.astype(float), hits) == 0


def test_resampled_p_value_is_uniform_for_a_calibrated_model() -> None:
    """Of 200 calibrated models about one in twenty has a p-value below 5 %; an uncalibrated one always has."""
    rng = np.random.default_rng(1)
    shares = rng.uniform(0.3, 0.9, 200)
    p_values = [resampled_p_value(shares, rng.random(200) < shares, seed) for seed in range(200)]
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.10
    assert resampled_p_value(shares, rng.random(200) < shares**3, 1) < 0.01


def test_brier_score_agrees_with_scikit_learn() -> None:
    """For two classes it is scikit-learn's; for several the sum over classes."""
    from sklearn.metrics import brier_score_loss

    rng = np.random.default_rng(2)
    shares, y = rng.random(50), rng.integers(0, 2, 50)
    assert brier_score(shares, y) == pytest.approx(brier_score_loss(y, shares))
    both = np.stack([1 - shares, shares], axis=1)
    assert brier_score(both, y) == pytest.approx(2 * brier_score_loss(y, shares))


@given(st.integers(0, 30), st.integers(0, 30), st.integers(40, 400))
def test_paired_proportions_bound_lies_below_the_difference(gains: int, losses: int, n: int) -> None:
    """The limit is below what was observed, and falls with every further loss."""
    bound = paired_proportions_bound(gains, losses, n)
    assert -1 <= bound < (gains - losses) / n or gains - losses == -n
    assert paired_proportions_bound(gains, losses + 1, n) < bound


@pytest.mark.parametrize(("gain", "loss"), [(0.03, 0.03), (0.05, 0.01), (0.01, 0.05), (0.002, 0.002)])
@pytest.mark.parametrize("n", [60, 360])
def test_paired_proportions_bound_covers(gain: float, loss: float, n: int) -> None:
    """In at least 93 % of samples the bound is below the true difference."""
    counts = np.random.default_rng(3).multinomial(n, [gain, loss, 1 - gain - loss], size=2000)
    pairs, times = np.unique(counts[:, :2], axis=0, return_counts=True)
    below = [paired_proportions_bound(int(g), int(b), n) <= gain - loss for g, b in pairs]
    assert np.average(below, weights=times) >= 0.93


def compared(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> Result:
    """The check on a model and a simple model, by their predictions on the same rows."""
    metric = build_task(CONFIG, nn.CrossEntropyLoss(), Scaled(1.0)).metric
    measured = {
        "metric": "accuracy",
        "greater_is_better": True,
        "value": metric(y, ours),
        "trivial": compare("trivial", "always answers 0", metric, y, ours, np.zeros_like(y), 1),
        "untrained": None,
        "models": [compare("logistic_regression", "", metric, y, ours, theirs, 1)],
        "not_fitted": {},
    }
    return beats_baseline(Evidence({"beats_baseline": measured}), margin=0.01)


def test_beats_baseline_fails_where_a_simple_model_is_better() -> None:
    """The simple model is right on more rows of the same sample; then on fewer, and the model passes."""
    y = np.arange(1000) % 4
    good, bad = np.where(np.arange(1000) % 50, y, 3 - y), np.where(np.arange(1000) % 5, y, 3 - y)
    assert compared(bad, good, y).outcome == "failed"
    assert "logistic_regression beats the model" in compared(bad, good, y).why
    assert compared(good, bad, y).outcome == "passed"


def test_beats_baseline_fails_where_a_constant_is_as_good() -> None:
    """A model that always answers the most frequent class is no better than doing so without a model."""
    y = (np.arange(1000) % 4 == 0).astype(int)
    constant = np.zeros_like(y)
    assert compared(constant, constant, y).outcome == "failed"


def test_beats_baseline_is_inconclusive_for_few_rows() -> None:
    """Twenty rows do not exclude that the simple model is better by more than the margin."""
    y = np.arange(20) % 4
    result = compared(y, y, y)
    assert (result.outcome, result.acceptable) == ("inconclusive", "small_sample")
