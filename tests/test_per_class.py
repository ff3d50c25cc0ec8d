"""Per-class results: precision, recall and F1, and the most confused pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from pipeline.evaluation.per_class import class_report, format_class_report, worst_pairs
from tests.conftest import examples


@settings(max_examples=examples(50))
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_class_report_equals_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    """Precision, recall, F1 and support of every class; NaN where there is nothing to divide by."""
    targets, predictions = np.array(pairs).T
    rows = class_report(targets, predictions, "abcd")["per_class"]
    expected = precision_recall_fscore_support(targets, predictions, labels=range(4), zero_division=np.nan)
    for name, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([row[name] for row in rows], column, equal_nan=True)


def test_class_report_has_exact_intervals_of_recalls() -> None:
    """9 of 10 rows of a class are Clopper and Pearson's 0.555 to 0.997; there is none for a class without rows.

    As one group of five rows and one of the other five, which is right as a whole, they show much less.
    """
    targets, predictions = np.zeros(10, int), np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    first, without = class_report(targets, predictions, ["cat", "dog"])["per_class"]
    assert (0.555, 0.997) == (round(first["recall_low"], 3), round(first["recall_high"], 3))
    assert math.isnan(without["recall_low"]) and math.isnan(without["recall_high"])
    grouped, _ = class_report(targets, predictions, ["cat", "dog"], np.repeat(["a", "b"], 5))["per_class"]
    assert grouped["recall_low"] < 0.2 and 0.9 == grouped["recall"] < grouped["recall_high"]


def test_worst_pairs_are_ordered_by_count_and_share() -> None:
    """By count, then by their share of the true class; correct predictions are left out, five pairs at most."""
    matrix = np.array([[90, 3, 1], [3, 7, 0], [0, 5, 20]])
    pairs = worst_pairs(matrix, "abc")
    assert [(p["true"], p["predicted"], p["count"]) for p in pairs] == [
        ("c", "b", 5), ("b", "a", 3), ("a", "b", 3), ("a", "c", 1),
    ]  # fmt: skip
    assert pairs[1]["share"] == 0.3
    assert len(worst_pairs(np.ones((4, 4), int), "abcd")) == 5


def test_class_report_of_labels_has_a_row_per_label() -> None:
    """Several labels have a row each and no matrix; one column alone is one label."""
    targets = np.array([[1, 0], [1, 1], [0, 0], [1, 0]])
    predictions = np.array([[1, 0], [0, 0], [0, 1], [1, 0]])
    report = class_report(targets, predictions, ["red", "round"])
    red, round_ = report["per_class"]
    assert (red["precision"], red["recall"], red["support"]) == (1.0, pytest.approx(2 / 3), 3)
    assert (round_["precision"], round_["recall"], round_["support"]) == (0.0, 0.0, 1)
    assert class_report(targets[:, :1], predictions[:, :1], ["red"])["per_class"] == [red]
    assert report["matrix"] is None and "label with the lowest recall: round" in format_class_report(report)


def test_format_class_report_names_the_lowest_recall() -> None:
    """The class with the lowest recall and the pairs; classes without rows do not count; a target needs a name."""
    report = class_report(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1]), ["cat", "dog", "fox"])
    assert format_class_report(report).startswith("class with the lowest recall: cat, recall 0.333 (95 % interval")
    assert format_class_report(report).endswith("most confused (true → predicted): cat → dog (2 rows, 67 %)")
    perfect = class_report(np.array([0, 1]), np.array([0, 1]), ["cat", "dog"])
    assert format_class_report(perfect) == "recall is 1 for every class"
    with pytest.raises(ValueError, match="class 2 has no name among 2"):
        class_report(np.array([2]), np.array([0]), ["cat", "dog"])


def test_class_report_counts_predictions_outside_the_classes() -> None:
    """Predictions of a wrong `task.predict` are counted as `no class`."""
    report = class_report(np.array([0, 0, 1]), np.array([0, 302, -1]), ["cat", "dog"])
    assert report["classes"] == ["cat", "dog", "no class"]
    assert report["matrix"].tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]
    assert [row["support"] for row in report["per_class"]] == [2, 1, 0]
    assert "dog → no class (1 row, 100 %)" in format_class_report(report)
