"""Intervals: exact where possible, never a point for a perfect score, wider for groups, with undefined resamples."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import binomtest

from benchmarks import interval_samples
from benchmarks import intervals as bench
from checklists.checks.release import target_on_test
from pipeline.evaluation.intervals.bounded import exact_interval
from pipeline.evaluation.intervals.classes import class_interval, decisions, matthews_interval
from pipeline.evaluation.intervals.losses import effective_degrees, mean_interval, ratio_interval
from pipeline.evaluation.intervals.score import confidence_interval, score_predictions
from pipeline.evaluation.metrics import Metric, named_metric
from pipeline.results import Evidence, Score, format_interval

LABELS = np.arange(20) % 2
VALUES = np.random.default_rng(0).normal(size=20)


def metric_of(name: str, kind: str = "classification") -> Metric:
    metric = named_metric(name, kind)
    assert metric is not None
    return metric


@given(st.integers(0, 40), st.integers(0, 40))
def test_exact_interval_equals_scipy(successes: int, failures: int) -> None:
    """The limits are Clopper and Pearson's; everything is possible without trials."""
    low, high, *_ = exact_interval(successes, successes + failures)
    if successes + failures == 0:
        assert (low, high) == (0, 1)
        return
    expected = binomtest(successes, successes + failures).proportion_ci(method="exact")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "targets", "predictions"),
    [
        (metric_of("accuracy"), LABELS, LABELS),
        (metric_of("balanced_accuracy"), LABELS, LABELS),
        (metric_of("f1"), LABELS, LABELS),
        (metric_of("f1_macro"), LABELS, LABELS),
        (metric_of("f1_micro", "multilabel"), LABELS[:, None] * [1, 1, 0], LABELS[:, None] * [1, 1, 0]),
        (metric_of("matthews_corrcoef"), LABELS, LABELS),
        (metric_of("roc_auc"), LABELS, LABELS + VALUES / 100),
        (metric_of("average_precision"), LABELS, LABELS + VALUES / 100),
        (metric_of("r2", "regression"), VALUES, VALUES),
        (metric_of("explained_variance", "regression"), VALUES, VALUES),
        (interval_samples.WITHIN, VALUES, VALUES),
        (interval_samples.NEAREST, LABELS, 99.0 * LABELS + VALUES),
    ],
    ids=lambda value: value.name if isinstance(value, Metric) else "",
)
def test_confidence_interval_of_a_perfect_score_is_not_a_point(metric: Metric, targets: Any, predictions: Any) -> None:
    """20 rows without an error do not exclude one error in ten rows that were not seen."""
    low, high, *_ = confidence_interval(metric, targets, predictions)
    assert metric(targets, predictions) == pytest.approx(1) == high
    assert 0.3 < low < 0.9


@pytest.mark.parametrize("name", ["rmse", "mae", "neg_mean_squared_error"])
def test_confidence_interval_of_errors_of_zero_reaches_to_a_constant_prediction(name: str) -> None:
    """One row in six may have the error of a constant prediction, as far as 20 rows show."""
    metric = metric_of(name, "regression")
    low, high, *_ = confidence_interval(metric, VALUES, VALUES)
    constant = abs(metric(VALUES, np.full(20, VALUES.mean())))
    assert 0 == min(abs(low), abs(high)) < max(abs(low), abs(high)) < constant


@pytest.mark.parametrize(
    "name",
    [
        "balanced_accuracy, 10 classes",
        "f1_macro, 5 classes",
        "f1, 2 classes",
        "roc_auc, normal scores, 50 %",
        "roc_auc, rows at the wrong end, 20 %",
        "r2, Laplace",
        "neg_log_loss, rows sure to 99.9 %",
        "accuracy, groups of 5",
    ],
)
def test_coverage_is_at_least_93_percent(name: str) -> None:
    """At 36 rows and a true value of 0.97 the interval contains the true value; more cells are in the benchmark."""
    case = next(case for case in bench.cases() if case.name.startswith(name))
    share, _ = bench.coverage(case, 36, 0.97, 300)
    assert share >= 0.93


CLASS_PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=4, max_size=60)


@given(CLASS_PAIRS, st.sampled_from(["balanced", "macro", "weighted", "micro"]), st.booleans())
def test_class_interval_contains_the_metric(pairs: list[tuple[int, int]], average: Any, grouped: bool) -> None:
    """The interval is around scikit-learn's value, for every average, of rows and of groups."""
    targets, predictions = np.array(pairs).T
    groups = np.arange(len(targets)) // 2 if grouped else None
    for share in ("recall",) if average == "balanced" else ("recall", "precision", "f1", "jaccard"):
        name = "balanced_accuracy" if average == "balanced" else f"{share}_{average}"
        value = metric_of(name)(targets, predictions)
        low, high, *_ = class_interval(decisions(targets, predictions, groups, labels=False), share, average)
        assert -1e-9 <= low <= value + 1e-9 and value - 1e-9 <= high <= 1 + 1e-9


@given(
    CLASS_PAIRS,
    st.sampled_from(["balanced_accuracy", "f1_macro", "precision_weighted", "jaccard_macro", "recall_macro"]),
)
def test_bench_computes_the_metrics_of_scikit_learn(pairs: list[tuple[int, int]], name: str) -> None:
    """The quick functions of the benchmark have scikit-learn's values."""
    targets, predictions = np.array(pairs).T
    metric = metric_of(name)
    assert interval_samples.quick(metric, 4)(targets, predictions) == pytest.approx(metric(targets, predictions))


@given(CLASS_PAIRS)
def test_matthews_interval_contains_the_coefficient(pairs: list[tuple[int, int]]) -> None:
    """The interval is around scikit-learn's value, between -1 and 1."""
    targets, predictions = np.array(pairs).T
    value = metric_of("matthews_corrcoef")(targets, predictions)
    low, high, *_ = matthews_interval(decisions(targets, predictions, None, labels=False), value)
    assert -1 - 1e-9 <= low <= value + 1e-6 and value - 1e-6 <= high <= 1 + 1e-9


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "f1_macro", "roc_auc", "r2", "rmse", "user's share"])
def test_confidence_interval_takes_groups_for_rows(name: str) -> None:
    """Forty rows that are ten rows four times say as much as ten rows, not as forty."""
    draw = np.random.default_rng(1)
    kind = "regression" if name in ("r2", "rmse") else "classification"
    metric = interval_samples.WITHIN if name == "user's share" else metric_of(name, kind)
    targets = np.arange(10) % 2 if kind == "classification" and name != "user's share" else draw.normal(size=10)
    predictions = (
        targets + draw.normal(size=10) if metric.needs != "classes" else np.where(np.arange(10) < 7, targets, 0)
    )
    four, groups = np.repeat(np.arange(10), 4), np.repeat(list("abcdefghij"), 4)
    alone = confidence_interval(metric, targets, predictions)
    rows = confidence_interval(metric, targets[four], predictions[four])
    grouped = confidence_interval(metric, targets[four], predictions[four], groups=groups)
    width = grouped.high - grouped.low
    assert width > 1.3 * (rows.high - rows.low)
    assert width > 0.7 * (alone.high - alone.low)


def test_score_counts_groups_and_undefined_resamples() -> None:
    """Average precision is undefined in resamples without a positive row; both numbers are printed."""
    targets, scores = np.array([1] + [0] * 7), np.linspace(1, 0, 8)
    score = score_predictions(metric_of("average_precision"), "val", targets, scores, groups=np.arange(8) // 2)
    assert isinstance(score, Score) and 4 == score.groups and 0 < score.undefined < score.resamples
    text = f"n = 8 in only 4 groups, {score.undefined} of {score.resamples} resamples undefined"
    assert format_interval(asdict(score)).endswith(text)
    assert format_interval({"low": "nan", "high": "nan", "n": 3}) == "no 95 % interval, n = 3"
    assert "5 of 1,000 resamples" in format_interval({"low": 0, "high": 1, "n": 3, "undefined": 5, "resamples": 1000})


def test_confidence_interval_counts_undefined_resamples_of_a_users_metric() -> None:
    """A metric that is NaN without rows of a class counts the resamples that it is NaN in."""

    def hit_rate(targets: Any, predictions: Any) -> float:
        return float(predictions[targets == 1].mean()) if (targets == 1).any() else math.nan

    metric = Metric("hit_rate", hit_rate, "classes", users_own=True)
    interval = confidence_interval(metric, np.array([1, 1, 0, 0, 0, 0]), np.array([1, 0, 0, 0, 0, 0]))
    assert 0 < interval.undefined < interval.resamples == 1000
    assert interval.low < 0.5 < interval.high


def test_confidence_interval_of_a_users_accuracy_is_not_that_of_a_proportion() -> None:
    """A metric of the user's own may have the name of another one; its own values are resampled."""

    def accuracy(targets: Any, predictions: Any) -> float:
        return 100 * float((targets == predictions).mean())

    wrong = np.where(np.arange(20) < 4, 1 - LABELS, LABELS)
    interval = confidence_interval(Metric("accuracy", accuracy, "classes", users_own=True), LABELS, wrong)
    assert interval.resamples and 40 < interval.low < 80 < interval.high <= 100


def test_confidence_interval_of_one_row_or_group_exists_for_proportions_only() -> None:
    """Nothing is known of how rows differ; for a proportion, one row excludes next to nothing."""
    one = VALUES[:1]
    for metric in (metric_of("rmse", "regression"), metric_of("r2", "regression"), interval_samples.WITHIN):
        assert all(map(math.isnan, confidence_interval(metric, one, one + 2)[:2]))
    group = np.zeros(20, int)
    assert all(
        map(math.isnan, confidence_interval(metric_of("rmse", "regression"), VALUES, VALUES + 1, groups=group)[:2])
    )
    assert (0.025, 1.0) == pytest.approx(confidence_interval(metric_of("accuracy"), LABELS[:1], LABELS[:1])[:2])


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30))
def test_mean_interval_contains_the_mean_and_has_its_unit(losses: list[float]) -> None:
    """The limits are positive and grow with the losses; a ratio to equal references is certain."""
    values = np.array(losses)
    low, high, *_ = mean_interval(values, None, 1.0)
    assert 0 < low <= values.mean() * (1 + 1e-9) and values.mean() <= high * (1 + 1e-9)
    assert (7 * low, 7 * high) == pytest.approx(mean_interval(7 * values, None, 1.0)[:2])
    assert (1, 1) == pytest.approx(ratio_interval(values, values, None)[:2])


def test_effective_degrees_follow_the_kurtosis() -> None:
    """As many as the number less one for a kurtosis of 3 or less, fewer for long tails, never fewer than two."""
    rng = np.random.default_rng(0)
    uniform, long = rng.uniform(size=50), rng.exponential(size=50) ** 2
    kurtosis = stats.kurtosis(long, fisher=False, bias=False)

    assert effective_degrees(uniform) == 49
    assert effective_degrees(long) == pytest.approx(max(2, 100 / (kurtosis - 47 / 49)))
    assert effective_degrees(np.eye(50)[0]) == 2 and effective_degrees(np.ones(3)) == 2


def test_target_on_test_without_interval_is_inconclusive() -> None:
    """A score that reaches the target and has no interval proves nothing, also as NaN is stored in JSON."""
    score = {"metric": "reward", "value": 0.9, "low": "nan", "high": "nan", "n": 9, "greater_is_better": True}
    result = target_on_test(Evidence({"test_score": score}), target=0.8, margin=0.1)
    assert "inconclusive" == result.outcome and "no 95 % interval" in result.why
