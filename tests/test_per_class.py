"""Per class: precision, recall and F1 with their counts, and the pairs that are confused most."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from pipeline.evaluation.per_class import confusion, told, wilson, worst_pairs


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_the_figures_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    """Precision, recall, F1 and support of every class, NaN where there is nothing to divide by."""
    targets, predictions = np.array(pairs).T
    found = confusion(targets, predictions, "abcd")["per_class"]
    expected = precision_recall_fscore_support(targets, predictions, labels=range(4), zero_division=np.nan)
    for name, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([row[name] for row in found], column, equal_nan=True)


@given(st.integers(0, 40), st.integers(1, 40))
def test_the_interval_is_wilsons(successes: int, more: int) -> None:
    """It is the one that scipy gives, and NaN where nothing was tried."""
    trials = successes + more
    low, high = wilson(np.array([successes, 0]), np.array([trials, 0]))
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert math.isnan(low[1]) and math.isnan(high[1])


def test_the_worst_pairs_come_first() -> None:
    """By count, then by their share of the true class; none of them is a hit, and no more than five are named."""
    matrix = np.array([[90, 3, 1], [3, 7, 0], [0, 5, 20]])
    found = worst_pairs(matrix, "abc")
    assert [(p["true"], p["predicted"], p["count"]) for p in found] == [
        ("c", "b", 5), ("b", "a", 3), ("a", "b", 3), ("a", "c", 1),
    ]  # fmt: skip
    assert found[1]["share"] == 0.3
    assert len(worst_pairs(np.ones((4, 4), int), "abcd")) == 5


def test_labels_are_counted_one_by_one() -> None:
    """Of labels that go beside each other every one has a row, and there is no matrix."""
    targets = np.array([[1, 0], [1, 1], [0, 0], [1, 0]])
    predictions = np.array([[1, 0], [0, 0], [0, 1], [1, 0]])
    found = confusion(targets, predictions, ["red", "round"])
    red, round_ = found["per_class"]
    assert (red["precision"], red["recall"], red["support"]) == (1.0, pytest.approx(2 / 3), 3)
    assert (round_["precision"], round_["recall"], round_["support"]) == (0.0, 0.0, 1)
    assert found["matrix"] is None and "least found label: round" in told(found)


def test_one_line_says_what_is_found_least() -> None:
    """The class of the lowest recall, the pairs, and nothing of a class without rows; a target must have a name."""
    found = confusion(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1]), ["cat", "dog", "fox"])
    assert told(found).startswith("least found class: cat, recall 0.333 (95 % interval")
    assert told(found).endswith("most confused, true → predicted: cat → dog 2× (67%)")
    assert "no class is taken for another" in told(confusion(np.array([0]), np.array([0]), ["cat"]))
    with pytest.raises(ValueError, match="class 2 has no name among 2"):
        confusion(np.array([2]), np.array([0]), ["cat", "dog"])


def test_predictions_that_are_no_class_are_counted_as_that() -> None:
    """A wrong `task.predict` gives them: the table stands, and says what they are."""
    found = confusion(np.array([0, 0, 1]), np.array([0, 302, -1]), ["cat", "dog"])
    assert found["classes"] == ["cat", "dog", "no class"]
    assert found["matrix"].tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]
    assert [row["support"] for row in found["per_class"]] == [2, 1, 0]
    assert "dog → no class 1× (100%)" in told(found)
