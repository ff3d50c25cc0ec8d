"""Quality of the data: what is measured of planted faults, and that honest data show none."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.analysis.labels import contradictions
from pipeline.data.analysis.quality import MAX_SHOWN, column_scale, float_columns, measure_quality, outliers
from pipeline.data.digits import digits
from pipeline.data.load import seal
from pipeline.data.splits import Split, row_digests

Splits = dict[str, Any]


def clouds(n: int = 300, features: int = 4, classes: int = 3, seed: int = 0) -> Splits:
    """Three splits of normal clouds, one per class, as a `data` target returns them."""
    draw = np.random.default_rng(seed)
    y = np.arange(3 * n) % classes
    X = (draw.normal(size=(3 * n, features)) + np.eye(classes, features)[y]).astype("float32")
    return {name: (X[i * n : (i + 1) * n], y[i * n : (i + 1) * n]) for i, name in enumerate(("train", "val", "test"))}


def found(splits: Splits, kind: str = "classification") -> dict[str, Any]:
    return measure_quality(seal(splits, kind), kind)


def worst(facts: dict[str, Any], split: str = "train") -> dict[str, Any]:
    """The column that a few rows weigh on most."""
    return facts["outliers"][split][0]


def test_honest_data_show_nothing() -> None:
    """No hole, constant, outlier, duplicate, contradiction or unused code in clouds of points."""
    facts = found(clouds())
    assert facts["nonfinite"]["train"]["rows"] == facts["nonfinite"]["val"]["rows"] == 0
    assert facts["constant"] == {"count": 0, "features": 4, "columns": [], "targets": [], "targets_std": None}
    assert max(one["distance"] for side in facts["outliers"].values() for one in side) < 10
    assert facts["duplicates"] == {"train": 0, "val": 0, "test": 0}
    assert (
        facts["labels"]["unused"]
        == facts["labels"]["missing_in_train"]["val"]
        == facts["labels"]["missing_in_val"]
        == []
    )
    assert facts["labels"]["imbalance_ratio"] == 1 and facts["contradictions"]["train"]["rows"] == 0
    assert facts["near_duplicates"]["share"] <= 0.02


def test_the_digits_cost_little_and_show_what_they_have() -> None:
    """Constant pixels are named, nothing else is odd, in far less than the third of a second it may take."""
    data = seal(digits(), "classification")
    measure_quality(
        seal(clouds(), "classification"), "classification"
    )  # imports scikit-learn, which is not to be timed
    began = time.perf_counter()
    facts = measure_quality(data, "classification")
    assert time.perf_counter() - began < 1.0  # 0.05 s on a machine that does nothing else
    assert "pixel_0_0" in facts["constant"]["columns"] and facts["near_duplicates"]["share"] == 0
    assert max(one["distance"] for side in facts["outliers"].values() for one in side) < 50
    assert facts == measure_quality(data, "classification")


def test_holes_are_counted_by_kind_row_and_column() -> None:
    """NaN and infinities apart, of features and targets, in the split where they stand."""
    splits = clouds()
    splits["train"][0][[7, 9], 2] = np.nan
    splits["val"][0][5, 0] = -np.inf
    facts = found({**splits, "feature_names": ["a", "b", "c", "d"]})["nonfinite"]
    assert facts["train"] == {
        "missing": 2, "infinite": 0, "rows": 2, "in_targets": False, "first_rows": [7, 9], "columns": ["c"]
    }  # fmt: skip
    assert (facts["val"]["infinite"], facts["val"]["first_rows"], facts["val"]["columns"]) == (1, [5], ["a"])

    values = {name: (X, X[:, 0].copy()) for name, (X, _) in clouds().items()}
    values["train"][1][3] = np.nan
    holes = found(values, "regression")["nonfinite"]["train"]
    assert (holes["in_targets"], holes["columns"], holes["first_rows"]) == (True, ["y"], [3])


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("rows", [[11], [3, 11, 40]])
def test_outliers_weigh_more_than_their_number(column: int, rows: list[int]) -> None:
    """A few wild rows of one column are found, in a column that moves and in one that stands still."""
    splits = clouds()
    splits["train"][0][:, 1] = 0.0
    splits["train"][0][rows, column] = [1.2e6, 2e6, 1.5e6][: len(rows)]
    one = worst(found(splits))
    assert one["column"] == f"X[{column}]" and sorted(one["first_rows"]) == rows
    assert one["distance"] > 1e4 and one["weight"] > 0.99 and one["share"] == len(rows) / 300


def test_a_wild_target_is_an_outlier() -> None:
    """Targets that are values are a column, too."""
    values = {name: (X, X.sum(1)) for name, (X, _) in clouds().items()}
    values["train"][1][17] = -1e5
    one = worst(found(values, "regression"))
    assert (one["column"], one["first_rows"]) == ("y", [17])


def test_validation_is_held_against_train() -> None:
    """A row of validation is far away from train's median, in train's usual distances."""
    splits = clouds()
    splits["val"][0][8, 3] = 1e5
    assert worst(found(splits), "val")["first_rows"] == [8] and worst(found(splits))["distance"] < 10


@pytest.mark.parametrize(
    "tail",
    [
        lambda draw, n: draw.lognormal(size=n),
        lambda draw, n: draw.exponential(size=n),
        lambda draw, n: (draw.random(n) < 0.02).astype(float),
        lambda draw, n: draw.poisson(0.05, n).astype(float),
        lambda draw, n: np.where(draw.random(n) < 0.4, 100, 0) + draw.normal(size=n) * 0.01,
        lambda draw, n: np.where(draw.random(n) < 0.9, 0, draw.lognormal(8, 1, n)),
        lambda draw, n: draw.integers(0, 2, n).astype(float),
    ],
    ids=["lognormal", "exponential", "rare flag", "counts", "two heaps", "mostly zero", "a coin"],
)
def test_honest_tails_are_no_outliers(tail: Any) -> None:
    """Whatever is wide in itself is not taken for a few wild rows, by the bounds of the checklist."""
    for seed in range(5):
        draw = np.random.default_rng(seed)
        splits = clouds(1000)
        for X, _ in (splits["train"], splits["val"]):
            X[:, 0] = tail(draw, len(X))
        wild = [o for side in found(splits)["outliers"].values() for o in side]
        assert not [o for o in wild if o["distance"] > 100 and o["share"] <= 0.05 and o["weight"] > 0.5]


def test_contradictions_name_pairs_of_rows() -> None:
    """Rows with equal features and other labels, however many of a kind; equal labels do not count."""
    X = torch.tensor([[0.0], [1.0], [0.0], [2.0], [1.0], [0.0]])
    same = contradictions(row_digests(X), torch.tensor([1, 2, 1, 0, 2, 1]))
    other = contradictions(row_digests(X), torch.tensor([1, 2, 1, 0, 2, 0]))
    assert same == {"rows": 0, "share": 0.0, "examples": []}
    assert other == {"rows": 3, "share": 0.5, "examples": [[0, 5]]}


@pytest.mark.parametrize(
    ("code", "unused"), [(lambda y: y, []), (lambda y: y + 1, [0]), (lambda y: 2 * y, [1, 3]), (lambda y: y // 2, [2])]
)
def test_codes_that_no_row_bears(code: Any, unused: list[int]) -> None:
    """Shifted, spread and divided ids leave holes among the codes."""
    splits: Splits = {name: (X, code(y)) for name, (X, y) in clouds().items()}
    named = {"class_names": ["a", "b", "c"]} if max(splits["train"][1]) < 3 else {}
    assert found({**splits, **named})["labels"]["unused"] == unused


def test_classes_missing_on_one_side() -> None:
    """A class that only test has is unlearned; one that only train has is unseen."""
    splits = clouds()
    splits["test"][1][:9] = 3
    splits["val"][1][splits["val"][1] == 2] = 1
    labels = found(splits)["labels"]
    assert labels["missing_in_train"] == {"val": [], "test": [3]} and labels["missing_in_val"] == [2]
    assert labels["counts"]["test"]["3"] == 9


def test_the_one_class_of_a_binary_task_is_half_of_it() -> None:
    """A binary task has two codes whatever its rows say."""
    one = {name: (X, np.zeros(len(X), int)) for name, (X, _) in clouds().items()}
    assert found(one, "binary")["labels"]["unused"] == [1]


def test_values_have_no_labels() -> None:
    """Of regression no class is asked; targets that stand still and their scale are told."""
    values = {name: (X, np.full(len(X), 7.0)) for name, (X, _) in clouds().items()}
    facts = found(values, "regression")
    assert facts["labels"] is facts["contradictions"] is None
    assert facts["constant"]["targets"] == ["y"] and facts["constant"]["targets_std"] == 0
    scaled = {name: (X, 1e4 * X[:, :2]) for name, (X, _) in clouds().items()}
    assert found(scaled, "regression")["constant"]["targets_std"] > 1e3


def test_nested_features_are_measured_part_by_part() -> None:
    """Floating parts by their own names; ids have no scale and no outliers."""

    def nested(side: tuple[Any, Any]) -> tuple[Any, Any]:
        X, y = side
        return {"ids": np.arange(len(y)) ** 3, "more": (X, X.reshape(-1, 2, 2).copy())}, y

    splits = {name: nested(side) for name, side in clouds().items()}
    splits["train"][0]["more"][1][4, 1, 0] = 1e7
    splits["train"][0]["more"][0][6, 3] = np.nan
    facts = found(splits)
    assert worst(facts)["column"] == "more.1[1, 0]" and worst(facts)["first_rows"] == [4]
    assert facts["nonfinite"]["train"]["columns"] == ["more.0[3]"]
    assert facts["constant"]["features"] == 8


@pytest.mark.parametrize("features", [2, 8, 64])
def test_near_duplicates_are_told_from_chance(features: int) -> None:
    """Copies of train rows with a trifle of noise show; honest rows, however dense they lie, do not."""
    splits = clouds(1000, features)
    near = found(splits)["near_duplicates"]
    assert near["share"] <= max(0.02, 5 * near["expected"])
    draw = np.random.default_rng(1)
    splits["val"][0][:300] = splits["train"][0][:300] + draw.normal(size=(300, features)) * 1e-4
    near = found(splits)["near_duplicates"]
    assert near["share"] >= 0.3 and near["share"] > max(0.02, 5 * near["expected"])
    assert [0, 0] in near["pairs"]


def test_a_still_pixel_does_not_hide_a_copy() -> None:
    """Sixty digits copied to validation with a trifle of noise are all found, though many pixels hardly move."""
    rows = digits()
    noise = np.random.default_rng(0).normal(size=(60, 64)).astype("float32") * 1e-3
    rows["val"][0][:60] = rows["train"][0][:60] + noise
    assert found(rows)["near_duplicates"]["share"] == 60 / 360


def test_equal_rows_and_too_few_are_not_near() -> None:
    """Equal rows are counted by their digests; a handful of rows or of codes has no distances to speak of."""
    splits = clouds()
    splits["val"] = splits["train"]
    assert found(splits)["near_duplicates"]["share"] <= 0.02
    assert found(clouds(6))["near_duplicates"] is None
    codes = {name: ({"ids": np.arange(len(y))}, y) for name, (_, y) in clouds().items()}
    assert found(codes)["near_duplicates"] is None


def test_what_is_told_stays_short_and_quick() -> None:
    """A wide table in which all is wrong gives ten rows and columns of a kind, and its columns are not looked at one
    by one."""
    splits = clouds(250, 20_000)
    splits["train"][0][:] = np.nan
    splits["val"][0][3] = 1e30
    began = time.perf_counter()
    facts = found(splits)
    assert time.perf_counter() - began < 20
    holes = facts["nonfinite"]["train"]
    assert holes["missing"] == 250 * 20_000 and len(holes["first_rows"]) == len(holes["columns"]) == MAX_SHOWN
    assert all(len(side) <= MAX_SHOWN for side in facts["outliers"].values())


def test_the_test_rows_stay_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything about test is known from its seal."""
    data = seal(clouds(), "classification")
    monkeypatch.setattr("pipeline.data.sealed._contents", {})
    assert measure_quality(data, "classification")["duplicates"]["test"] == 0


def test_rows_of_one_number_and_of_images() -> None:
    """One column [N] and pictures [N, C, H, W] are columns, too."""
    flat = Split("train", torch.arange(40.0), torch.arange(40) % 2)
    (part,) = float_columns(flat)
    assert part.column(0) == "X" and not math.isnan(float(column_scale(part).center[0]))
    picture = Split("train", torch.zeros(40, 1, 3, 3), torch.arange(40) % 2)
    picture.X[5, 0, 2, 1] = 4.0
    parts = float_columns(picture)
    (one,) = outliers(parts, [column_scale(p) for p in parts])
    assert one["column"] == "X[0, 2, 1]" and one["distance"] < 1  # nothing says that 4 is much


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [1, 2, 12])
def test_next_to_nothing_is_measured_without_a_word(rows: int) -> None:
    """No columns, one row, holes everywhere: figures without a warning."""
    holes: Splits = {name: (np.full((rows, 3), np.nan), np.full(rows, np.nan)) for name in ("train", "val", "test")}
    empty: Splits = {name: (np.zeros((rows, 0)), np.arange(rows) % 2) for name in ("train", "val", "test")}
    wild: Splits = {name: (np.full((rows, 3), np.inf), np.full(rows, -np.inf)) for name in ("train", "val", "test")}
    assert found(holes, "regression")["nonfinite"]["val"]["missing"] == 4 * rows
    assert found(wild, "regression")["nonfinite"]["val"]["infinite"] == 4 * rows
    assert found(empty)["constant"]["features"] == 0 and found(empty)["near_duplicates"] is None


def test_chance_puts_rows_of_equal_counts_near() -> None:
    """Counts beside one value lie near each other by chance, a copy among them still shows, and so does one of few."""
    draw = np.random.default_rng(0)
    y = np.arange(600) % 2
    X = np.c_[draw.poisson(2, (1800, 3)), draw.normal(size=1800)].astype("float32").reshape(3, 600, 4)
    rows = {side: (X[i], y) for i, side in enumerate(("train", "val", "test"))}
    near = found(rows)["near_duplicates"]
    assert near["share"] > 0.02 and near["p_value"] > 0.01
    X[1, :200] = X[0, :200] + 1e-4
    assert (near := found(rows)["near_duplicates"])["p_value"] < 1e-6 and near["share"] > 1.5 * near["expected"]

    lone = clouds(100, 8)
    lone["val"][0][0] = lone["train"][0][0] + 1e-4
    assert found(lone)["near_duplicates"]["p_value"] < 1e-3
