"""Quality of the data: planted faults are measured, and data without faults show none."""

from __future__ import annotations

import math
import re
import time
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.analysis.labels import contradictions, stray_labels
from pipeline.data.analysis.quality import MAX_SHOWN, column_scale, float_columns, measure_quality, outliers
from pipeline.data.digits import digits
from pipeline.data.load import seal
from pipeline.data.splits import Split, row_digests

Splits = dict[str, Any]


def clouds(n: int = 300, features: int = 4, classes: int = 3, seed: int = 0) -> Splits:
    """Three splits of normal clouds, one per class, as a `data` target returns them."""
    rng = np.random.default_rng(seed)
    y = np.arange(3 * n) % classes
    X = (rng.normal(size=(3 * n, features)) + np.eye(classes, features)[y]).astype("float32")
    return {name: (X[i * n : (i + 1) * n], y[i * n : (i + 1) * n]) for i, name in enumerate(("train", "val", "test"))}


def read_evidence(splits: Splits, kind: str = "classification") -> dict[str, Any]:
    return measure_quality(seal(splits, kind), kind)


def worst(facts: dict[str, Any], split: str = "train") -> dict[str, Any]:
    """The column in which a few rows have the most weight."""
    return facts["outliers"][split][0]


def test_measure_quality_of_normal_clouds_finds_no_fault() -> None:
    """There is no missing value, constant, outlier, duplicate, contradiction or unused code."""
    facts = read_evidence(clouds())
    assert facts["nonfinite"]["train"]["rows"] == facts["nonfinite"]["val"]["rows"] == 0
    assert facts["constant"] == {"count": 0, "features": 4, "columns": [], "targets": [], "targets_std": None}
    assert max(outlier["distance"] for outliers in facts["outliers"].values() for outlier in outliers) < 10
    assert facts["duplicates"] == {"train": 0, "val": 0, "test": 0}
    assert (
        facts["labels"]["unused"]
        == facts["labels"]["missing_in_train"]["val"]
        == facts["labels"]["missing_in_val"]
        == []
    )
    assert facts["labels"]["imbalance_ratio"] == 1 and facts["contradictions"]["train"]["rows"] == 0
    assert facts["near_duplicates"]["share"] <= 0.02


def test_measure_quality_of_digits_is_quick() -> None:
    """Constant pixels are named, nothing else is unusual, and it takes well under a second."""
    data = seal(digits(), "classification")
    measure_quality(
        seal(clouds(), "classification"), "classification"
    )  # imports scikit-learn, which is not to be timed
    start = time.perf_counter()
    facts = measure_quality(data, "classification")
    assert time.perf_counter() - start < 1.0  # 0.05 s on a machine that does nothing else
    assert "pixel_0_0" in facts["constant"]["columns"] and facts["near_duplicates"]["share"] == 0
    assert max(outlier["distance"] for outliers in facts["outliers"].values() for outlier in outliers) < 50
    assert facts == measure_quality(data, "classification")


def test_nonfinite_counts_by_kind_row_and_column() -> None:
    """NaN and infinities of features and targets are counted separately, in the split where they occur."""
    splits = clouds()
    splits["train"][0][[7, 9], 2] = np.nan
    splits["val"][0][5, 0] = -np.inf
    facts = read_evidence({**splits, "feature_names": ["a", "b", "c", "d"]})["nonfinite"]
    assert facts["train"] == {
        "missing": 2, "infinite": 0, "rows": 2, "in_targets": False, "first_rows": [7, 9], "columns": ["c"]
    }  # fmt: skip
    assert (facts["val"]["infinite"], facts["val"]["first_rows"], facts["val"]["columns"]) == (1, [5], ["a"])

    values = {name: (X, X[:, 0].copy()) for name, (X, _) in clouds().items()}
    values["train"][1][3] = np.nan
    nonfinite = read_evidence(values, "regression")["nonfinite"]["train"]
    assert (nonfinite["in_targets"], nonfinite["columns"], nonfinite["first_rows"]) == (True, ["y"], [3])


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("rows", [[11], [3, 11, 40]])
def test_outliers_finds_a_few_extreme_rows(column: int, rows: list[int]) -> None:
    """A few extreme rows of one column are found, in a column that varies and in a constant one."""
    splits = clouds()
    splits["train"][0][:, 1] = 0.0
    splits["train"][0][rows, column] = [1.2e6, 2e6, 1.5e6][: len(rows)]
    outlier = worst(read_evidence(splits))
    assert outlier["column"] == f"X[{column}]" and sorted(outlier["first_rows"]) == rows
    assert outlier["distance"] > 1e4 and outlier["weight"] > 0.99 and outlier["share"] == len(rows) / 300


def test_outliers_finds_an_extreme_target() -> None:
    """Targets that are values are measured like a column."""
    values = {name: (X, X.sum(1)) for name, (X, _) in clouds().items()}
    values["train"][1][17] = -1e5
    outlier = worst(read_evidence(values, "regression"))
    assert (outlier["column"], outlier["first_rows"]) == ("y", [17])


def test_outliers_compares_validation_with_train() -> None:
    """The distance of a validation row is that from the median of train, in usual distances of train."""
    splits = clouds()
    splits["val"][0][8, 3] = 1e5
    assert worst(read_evidence(splits), "val")["first_rows"] == [8] and worst(read_evidence(splits))["distance"] < 10


@pytest.mark.parametrize(
    "tail",
    [
        lambda rng, n: rng.lognormal(size=n),
        lambda rng, n: rng.exponential(size=n),
        lambda rng, n: (rng.random(n) < 0.02).astype(float),
        lambda rng, n: rng.poisson(0.05, n).astype(float),
        lambda rng, n: np.where(rng.random(n) < 0.4, 100, 0) + rng.normal(size=n) * 0.01,
        lambda rng, n: np.where(rng.random(n) < 0.9, 0, rng.lognormal(8, 1, n)),
        lambda rng, n: rng.integers(0, 2, n).astype(float),
    ],
    ids=["lognormal", "exponential", "rare flag", "counts", "two clusters", "mostly zero", "coin flips"],
)
def test_outliers_passes_long_tails(tail: Any) -> None:
    """A wide distribution is not mistaken for a few extreme rows, by the bounds of the checklist."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        splits = clouds(1000)
        for X, _ in (splits["train"], splits["val"]):
            X[:, 0] = tail(rng, len(X))
        extreme = [o for outliers in read_evidence(splits)["outliers"].values() for o in outliers]
        assert not [o for o in extreme if o["distance"] > 100 and o["share"] <= 0.05 and o["weight"] > 0.5]


def test_contradictions_names_pairs_of_rows() -> None:
    """Rows with equal features and different labels are counted, however many are equal; equal labels do not count."""
    X = torch.tensor([[0.0], [1.0], [0.0], [2.0], [1.0], [0.0]])
    same = contradictions(row_digests(X), torch.tensor([1, 2, 1, 0, 2, 1]))
    other = contradictions(row_digests(X), torch.tensor([1, 2, 1, 0, 2, 0]))
    assert same == {"rows": 0, "share": 0.0, "examples": []}
    assert other == {"rows": 3, "share": 0.5, "examples": [[0, 5]]}


@pytest.mark.parametrize(
    ("code", "unused"), [(lambda y: y, []), (lambda y: y + 1, [0]), (lambda y: 2 * y, [1, 3]), (lambda y: y // 2, [2])]
)
def test_label_statistics_finds_unused_codes(code: Any, unused: list[int]) -> None:
    """Shifted, multiplied and divided ids leave gaps between the codes."""
    splits: Splits = {name: (X, code(y)) for name, (X, y) in clouds().items()}
    named = {"class_names": ["a", "b", "c"]} if max(splits["train"][1]) < 3 else {}
    assert read_evidence({**splits, **named})["labels"]["unused"] == unused


def test_label_statistics_finds_classes_missing_in_a_split() -> None:
    """A class that only test has is missing in train; one that only train has is missing in validation."""
    splits = clouds()
    splits["test"][1][:9] = 3
    splits["val"][1][splits["val"][1] == 2] = 1
    labels = read_evidence(splits)["labels"]
    assert labels["missing_in_train"] == {"val": [], "test": [3]} and labels["missing_in_val"] == [2]
    assert labels["counts"]["test"]["3"] == 9


def test_label_statistics_of_a_binary_task_has_two_codes() -> None:
    """A binary task has two codes, whichever occur."""
    single = {name: (X, np.zeros(len(X), int)) for name, (X, _) in clouds().items()}
    assert read_evidence(single, "binary")["labels"]["unused"] == [1]


def test_measure_quality_of_regression_has_no_labels() -> None:
    """Regression has no label statistics; constant targets and their scale are measured."""
    values = {name: (X, np.full(len(X), 7.0)) for name, (X, _) in clouds().items()}
    facts = read_evidence(values, "regression")
    assert facts["labels"] is facts["contradictions"] is None
    assert facts["constant"]["targets"] == ["y"] and facts["constant"]["targets_std"] == 0
    scaled = {name: (X, 1e4 * X[:, :2]) for name, (X, _) in clouds().items()}
    assert read_evidence(scaled, "regression")["constant"]["targets_std"] > 1e3


def test_measure_quality_of_nested_features() -> None:
    """Floating-point parts are measured under their own names; integer ids have no scale and no outliers."""

    def nested(split: tuple[Any, Any]) -> tuple[Any, Any]:
        X, y = split
        return {"ids": np.arange(len(y)) ** 3, "more": (X, X.reshape(-1, 2, 2).copy())}, y

    splits = {name: nested(split) for name, split in clouds().items()}
    splits["train"][0]["more"][1][4, 1, 0] = 1e7
    splits["train"][0]["more"][0][6, 3] = np.nan
    facts = read_evidence(splits)
    assert worst(facts)["column"] == "more.1[1, 0]" and worst(facts)["first_rows"] == [4]
    assert facts["nonfinite"]["train"]["columns"] == ["more.0[3]"]
    assert facts["constant"]["features"] == 8


@pytest.mark.parametrize("features", [2, 8, 64])
def test_near_duplicates_distinguishes_copies_from_chance(features: int) -> None:
    """Copies of train rows with a little noise are found; rows that are close by chance are not."""
    splits = clouds(1000, features)
    near = read_evidence(splits)["near_duplicates"]
    assert near["share"] <= max(0.02, 5 * near["expected"])
    rng = np.random.default_rng(1)
    splits["val"][0][:300] = splits["train"][0][:300] + rng.normal(size=(300, features)) * 1e-4
    near = read_evidence(splits)["near_duplicates"]
    assert near["share"] >= 0.3 and near["share"] > max(0.02, 5 * near["expected"])
    assert [0, 0] in near["pairs"]


def test_near_duplicates_finds_copies_despite_constant_pixels() -> None:
    """Sixty digits copied to validation with a little noise are all found, though many pixels rarely vary."""
    rows = digits()
    noise = np.random.default_rng(0).normal(size=(60, 64)).astype("float32") * 1e-3
    rows["val"][0][:60] = rows["train"][0][:60] + noise
    assert read_evidence(rows)["near_duplicates"]["share"] == 60 / 360


def test_near_duplicates_ignores_equal_rows() -> None:
    """Equal rows are not near duplicates; too few rows, or integer codes, have no distances to measure."""
    splits = clouds()
    splits["val"] = splits["train"]
    assert read_evidence(splits)["near_duplicates"]["share"] <= 0.02
    assert read_evidence(clouds(6))["near_duplicates"] is None
    codes = {name: ({"ids": np.arange(len(y))}, y) for name, (_, y) in clouds().items()}
    assert read_evidence(codes)["near_duplicates"] is None


def test_measure_quality_of_a_wide_table_is_short_and_quick() -> None:
    """At most ten rows and columns of a faulty wide table are named, and its columns are not examined one by one."""
    splits = clouds(250, 20_000)
    splits["train"][0][:] = np.nan
    splits["val"][0][3] = 1e30
    start = time.perf_counter()
    facts = read_evidence(splits)
    assert time.perf_counter() - start < 20
    nonfinite = facts["nonfinite"]["train"]
    assert (
        nonfinite["missing"] == 250 * 20_000 and len(nonfinite["first_rows"]) == len(nonfinite["columns"]) == MAX_SHOWN
    )
    assert all(len(outliers) <= MAX_SHOWN for outliers in facts["outliers"].values())


def test_measure_quality_does_not_read_test_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything about test comes from its public digests and counts."""
    data = seal(clouds(), "classification")
    monkeypatch.setattr("pipeline.data.sealed._contents", {})
    assert measure_quality(data, "classification")["duplicates"]["test"] == 0


def test_float_columns_of_vectors_and_images() -> None:
    """A vector [N] and images [N, C, H, W] become columns, too."""
    flat = Split("train", torch.arange(40.0), torch.arange(40) % 2)
    (part,) = float_columns(flat)
    assert part.column(0) == "X" and not math.isnan(float(column_scale(part).center[0]))
    picture = Split("train", torch.zeros(40, 1, 3, 3), torch.arange(40) % 2)
    picture.X[5, 0, 2, 1] = 4.0
    parts = float_columns(picture)
    (outlier,) = outliers(parts, [column_scale(p) for p in parts])
    assert outlier["column"] == "X[0, 2, 1]" and outlier["distance"] < 1  # no other row shows what distance is usual


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [1, 2, 12])
def test_measure_quality_of_nearly_empty_data_gives_no_warning(rows: int) -> None:
    """No columns, one row, or missing values only: figures without a warning."""
    missing: Splits = {name: (np.full((rows, 3), np.nan), np.full(rows, np.nan)) for name in ("train", "val", "test")}
    empty: Splits = {name: (np.zeros((rows, 0)), np.arange(rows) % 2) for name in ("train", "val", "test")}
    infinite: Splits = {name: (np.full((rows, 3), np.inf), np.full(rows, -np.inf)) for name in ("train", "val", "test")}
    assert read_evidence(missing, "regression")["nonfinite"]["val"]["missing"] == 4 * rows
    assert read_evidence(infinite, "regression")["nonfinite"]["val"]["infinite"] == 4 * rows
    assert read_evidence(empty)["constant"]["features"] == 0 and read_evidence(empty)["near_duplicates"] is None


def test_near_duplicates_of_counts_with_one_continuous_value() -> None:
    """Rows of equal counts are close by chance; copies among them still show, and so does one copy among few rows."""
    rng = np.random.default_rng(0)
    y = np.arange(600) % 2
    X = np.c_[rng.poisson(2, (1800, 3)), rng.normal(size=1800)].astype("float32").reshape(3, 600, 4)
    rows = {split: (X[i], y) for i, split in enumerate(("train", "val", "test"))}
    near = read_evidence(rows)["near_duplicates"]
    assert near["share"] > 0.02 and near["p_value"] > 0.01
    X[1, :200] = X[0, :200] + 1e-4
    assert (near := read_evidence(rows)["near_duplicates"])["p_value"] < 1e-6 and near["share"] > 1.5 * near["expected"]

    lone = clouds(100, 8)
    lone["val"][0][0] = lone["train"][0][0] + 1e-4
    assert read_evidence(lone)["near_duplicates"]["p_value"] < 1e-3


# --- labels above empty codes ----------------------------------------------------------------------------------------


def labelled(**stray: dict[int, int]) -> Any:
    """Sealed splits of 20 rows with labels 0 to 4, and these labels at these rows."""
    splits = {}
    for name in ("train", "val", "test"):
        y = np.arange(20) % 5
        for row, label in stray.get(name, {}).items():
            y[row] = label
        splits[name] = (np.zeros((20, 2)), y)
    return splits


@pytest.mark.parametrize(
    ("stray", "message"),
    [
        ({"train": {13: 7}}, r"data\.train\.y: .*no row has \(5, 6\): label 7 in row 13 of data\.train;"),
        ({"val": {3: 6, 9: 6}}, r"data\.val\.y: .*no row has \(5\): label 6 in rows 3, 9 of data\.val;"),
        ({"test": {0: 6}}, r"data\.test\.y: .*no row has \(5\): label 6 in 1 row of data\.test;"),
        ({"train": {0: 6}, "test": {0: 9}}, r"data\.train\.y: .*\(5, 7, 8\): label 6 in row 0 .*; label 9 in 1 row of"),
    ],
)
def test_stray_labels_names_rows_and_empty_codes(stray: dict[str, dict[int, int]], message: str) -> None:
    """The rows of train and validation are named, of test only their number."""
    labels = stray_labels(seal(labelled(**stray), "classification"))
    assert labels is not None and re.match(message, labels)


def test_stray_labels_are_not_those_of_named_or_gapless_classes() -> None:
    """A class that is named is meant, also before it has a row."""
    assert stray_labels(seal(labelled(train={0: 5}), "classification")) is None
    named = {**labelled(train={0: 7}), "class_names": list("abcdefgh")}
    assert stray_labels(seal(named, "classification")) is None
