"""Whom the rows stand for: shifts are found where there are any, and chance raises no alarm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.data.analysis.representative import compare_columns, feature_shift, measure_representativeness
from pipeline.data.load import seal
from tests.check_helpers import judged, questions
from tests.conftest import examples


def bounds() -> dict[str, Any]:
    """The thresholds as the checklist has them."""
    return next(q["with"] for q in questions("planning", {}) if q["id"] == "representative")


def asked(splits: dict[str, Any], kind: str = "classification") -> Any:
    """The gate's item on these splits."""
    values = {"representative": measure_representativeness(seal(splits, kind), kind), "card": {}}
    return judged("representative.representative", values, **bounds())


def table(seed: int, rows: tuple[int, ...] = (90, 30, 30), columns: int = 5) -> dict[str, Any]:
    """Splits of one population: numbers of several kinds, one of them a category, one mostly zero."""
    draw, splits = np.random.default_rng(seed), {}
    for name, n in zip(("train", "val", "test", "production"), rows, strict=False):
        X = draw.normal(size=(n, columns))
        X[:, 0], X[:, 1] = draw.integers(0, 4, n), np.where(draw.random(n) < 0.9, 0, X[:, 1])
        splits[name] = X if name == "production" else (X, draw.integers(0, 3, n))
    return splits


@settings(max_examples=examples(25))
@given(st.integers(0, 10_000), st.integers(20, 60), st.integers(2, 60))
def test_chance_raises_no_alarm(seed: int, few: int, columns: int) -> None:
    """Small validation sets and many columns of one population pass, whatever was drawn."""
    assert asked(table(seed, (100, few, few), columns)).outcome == "passed"


@pytest.mark.parametrize("seed", range(3))
def test_the_field_like_train_passes(seed: int) -> None:
    """Rows of the field from the same population pass, few or many."""
    item = asked(table(seed, (300, 60, 60, 40 + 150 * seed)))
    assert item.outcome == "passed" and f"{40 + 150 * seed} rows of production" in item.why


def test_distances_are_those_of_the_books() -> None:
    """Without what chance shows, the probabilities are those that SciPy gives for the same two samples."""
    draw = np.random.default_rng(0)
    one, other = draw.normal(size=(300, 2)), draw.normal(0.5, 1, size=(90, 2))
    one[:, 1], other[:, 1] = draw.integers(0, 4, 300), draw.integers(0, 3, 90)
    distance, p = compare_columns(one, other)
    line = stats.ks_2samp(one[:, 0], other[:, 0], method="asymp")
    counts = [[(side[:, 1] == v).sum() for v in range(4)] for side in (one, other)]

    assert 0 < line.statistic - distance[0] < 0.2 and p[0] == pytest.approx(line.pvalue, rel=0.5)
    assert p[1] == pytest.approx(stats.chi2_contingency(counts, correction=False)[1], rel=1e-6)


def test_the_shifted_column_is_named_first() -> None:
    """Of many columns the one that moved is told, with holes where they are what changed."""
    splits = table(0, (200, 80, 80), 30)
    splits["val"][0][:, 7] += 3
    splits["val"][0][:50, 8] = np.nan
    item = asked(splits)
    assert (item.outcome, item.cause) == ("failed", "split_shift")
    assert "validation differs from train in X[7]" in item.why and "X[8]" in item.why


def test_targets_that_moved_are_told() -> None:
    """Classes by their shares, also those of the sealed side; values by their distribution."""
    splits = table(0)
    splits["test"] = (splits["test"][0], np.zeros(30, int))
    assert "the targets of test differ" in asked(splits).why
    values = {name: (X, y + np.random.default_rng(len(y)).normal(size=len(y))) for name, (X, y) in table(1).items()}
    assert asked(values, "regression").outcome == "passed"
    values["val"] = (values["val"][0], values["val"][1] + 5)
    assert "the targets of val differ" in asked(values, "regression").why


def test_wide_tables_are_sampled() -> None:
    """A hundred thousand columns cost no more than a sample of them, and that is said."""
    draw = np.random.default_rng(0)
    wide = {name: (draw.normal(size=(n, 60_000)), np.arange(n) % 2) for name, n in (("train", 40), ("val", 20))}
    data = seal({**wide, "test": wide["val"]}, "classification")
    found = feature_shift(data.train.X, data.val.X)
    assert (found["columns"], found["compared"]) == (60_000, 40_000)
