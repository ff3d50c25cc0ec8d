"""Representativeness: shifts between splits and of production data are found, and chance raises no false alarm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.data.analysis.representative import compare_columns, feature_shift, measure_representativeness
from pipeline.data.load import seal
from tests.check_helpers import judge, questions
from tests.conftest import examples


def bounds() -> dict[str, Any]:
    """The thresholds of the checklist."""
    return next(q["with"] for q in questions("planning", {}) if q["id"] == "distributions_match")


def check_item(splits: dict[str, Any], kind: str = "classification") -> Any:
    """The outcome of the gate's item for these splits."""
    values = {"representative": measure_representativeness(seal(splits, kind), kind), "card": {}}
    return judge("representative.distributions_match", values, **bounds())


def table(seed: int, rows: tuple[int, ...] = (90, 30, 30), columns: int = 5) -> dict[str, Any]:
    """Splits of one population: numeric columns, one of them with four values, one mostly zero."""
    rng, splits = np.random.default_rng(seed), {}
    for name, n in zip(("train", "val", "test", "production"), rows, strict=False):
        X = rng.normal(size=(n, columns))
        X[:, 0], X[:, 1] = rng.integers(0, 4, n), np.where(rng.random(n) < 0.9, 0, X[:, 1])
        splits[name] = X if name == "production" else (X, rng.integers(0, 3, n))
    return splits


def test_representative_passes_samples_of_one_population() -> None:
    """Small validation sets and many columns of one population pass.

    The seeds are fixed: by the item's p-values, chance alone fails about one of a thousand tables.
    """
    for seed in range(examples(25)):
        rng = np.random.default_rng([seed, 1])
        val_rows, columns = int(rng.integers(20, 61)), int(rng.integers(2, 61))
        assert check_item(table(seed, (100, val_rows, val_rows), columns)).outcome == "passed", seed


@pytest.mark.parametrize("seed", range(3))
def test_representative_passes_production_data_like_train(seed: int) -> None:
    """Production data from the same population pass, val_rows or many rows."""
    item = check_item(table(seed, (300, 60, 60, 40 + 150 * seed)))
    assert item.outcome == "passed" and f"{40 + 150 * seed} rows of production" in item.why


class Noisy:
    """A Dataset that adds noise to its rows each time they are read, if `std` is above 0."""

    def __init__(self, X: Any, y: Any, std: float) -> None:
        self.X, self.y, self.std = X, y, std

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        return self.X[i] + np.random.normal(0, self.std, self.X[i].shape), self.y[i]


def test_representative_does_not_compare_augmented_rows_with_validation() -> None:
    """Rows of zeros with noise in training differ from validation on purpose; the same noise without it is a shift."""
    draw = np.random.default_rng(0)
    rows = {name: (np.zeros((n, 3)), draw.integers(0, 2, n)) for name, n in (("train", 90), ("val", 60), ("test", 60))}
    augmented = check_item({**rows, "train": Noisy(*rows["train"], std=0.1)})
    fixed = (draw.normal(0, 0.1, (90, 3)), rows["train"][1])
    shifted = check_item({**rows, "train": Noisy(*fixed, std=0.0)})

    recorded = measure_representativeness(seal({**rows, "train": Noisy(*rows["train"], std=0.1)}, "binary"), "binary")
    assert recorded["augmented"] and recorded["features"] is None  # no figure of a comparison that was not made
    assert augmented.outcome == "passed" and "changes its rows each time they are read" in augmented.why
    assert shifted.outcome == "failed" and "validation differs from train in X[" in shifted.why


def test_representative_compares_production_with_validation_if_train_is_augmented() -> None:
    """Production rows like those of validation pass beside augmented train rows; others are found."""
    draw = np.random.default_rng(0)
    rows = {name: (draw.normal(size=(n, 3)), draw.integers(0, 2, n)) for name, n in (("val", 200), ("test", 60))}
    train = Noisy(draw.normal(size=(200, 3)), draw.integers(0, 2, 200), std=5.0)
    like, unlike = draw.normal(size=(200, 3)), draw.normal(3, 1, size=(200, 3))

    assert check_item({**rows, "train": train, "production": like}).outcome == "passed"
    item = check_item({**rows, "train": train, "production": unlike})
    assert item.outcome == "failed" and "production differs from validation in" in item.why


def test_compare_columns_agrees_with_scipy() -> None:
    """Distances without what chance shows are smaller; p-values are close to those of SciPy for the same samples."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(300, 2)), rng.normal(0.5, 1, size=(90, 2))
    first[:, 1], second[:, 1] = rng.integers(0, 4, 300), rng.integers(0, 3, 90)
    distance, p_value = compare_columns(first, second)
    expected = stats.ks_2samp(first[:, 0], second[:, 0], method="asymp")
    counts = [[(sample[:, 1] == v).sum() for v in range(4)] for sample in (first, second)]

    assert 0 < expected.statistic - distance[0] < 0.2 and p_value[0] == pytest.approx(expected.pvalue, rel=0.5)
    assert p_value[1] == pytest.approx(stats.chi2_contingency(counts, correction=False)[1], rel=1e-6)


def test_representative_names_the_shifted_column_first() -> None:
    """Of many columns the one that moved is named first; a column in which missing values appear is named too."""
    splits = table(0, (200, 80, 80), 30)
    splits["val"][0][:, 7] += 3
    splits["val"][0][:50, 8] = np.nan
    item = check_item(splits)
    assert (item.outcome, item.cause) == ("failed", "split_shift")
    assert "validation differs from train in X[7]" in item.why and "X[8]" in item.why


def test_representative_names_shifted_targets() -> None:
    """Classes are compared by their shares, also those of the sealed test set; values by their distribution."""
    splits = table(0)
    splits["test"] = (splits["test"][0], np.zeros(30, int))
    assert "the targets of test differ" in check_item(splits).why
    values = {name: (X, y + np.random.default_rng(len(y)).normal(size=len(y))) for name, (X, y) in table(1).items()}
    assert check_item(values, "regression").outcome == "passed"
    values["val"] = (values["val"][0], values["val"][1] + 5)
    assert "the targets of val differ" in check_item(values, "regression").why


def test_feature_shift_samples_wide_tables() -> None:
    """Of a table with 60,000 columns a sample is compared, and its size is recorded."""
    rng = np.random.default_rng(0)
    wide = {name: (rng.normal(size=(n, 60_000)), np.arange(n) % 2) for name, n in (("train", 40), ("val", 20))}
    data = seal({**wide, "test": wide["val"]}, "classification")
    shift = feature_shift(data.train.X, data.val.X)
    assert (shift["columns"], shift["compared"]) == (60_000, 40_000)
