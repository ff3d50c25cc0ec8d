"""What float32 cannot hold is refused, with the column, what collapses, and what mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.load import seal
from pipeline.data.reading.rounding import NEGLIGIBLE, float32_faults
from pipeline.data.sources.delimited import csv_table
from pipeline.errors import UserError

STEPS = np.arange(120.0)


def splits(X: Any, y: Any) -> dict[str, Any]:
    return {"train": (X[:60], y[:60]), "val": (X[60:90], y[60:90]), "test": (X[90:], y[90:])}


def test_targets_that_float32_merges_are_refused() -> None:
    """Targets 1e9 plus 0 to 119 become three values: the message says so, and its constant mends it."""
    mixed = np.random.default_rng(0).permutation(STEPS)
    with pytest.raises(UserError, match=r"data\.train\.y: .* 60 distinct values become 3, the largest rounding is 3"):
        seal(splits(mixed[:, None], 1e9 + mixed), "regression")

    mended = seal(splits(mixed[:, None], 1e9 + mixed - 1_000_000_054), "regression")
    assert np.array_equal(mended.val.y.numpy().astype(float) + 1_000_000_054.0, 1e9 + mixed[60:90])


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (STEPS + 1e9, "column 1 cannot be held by float32"),
        ((STEPS + 2**24).astype(np.int64), "preprocess.integers=keep"),
        (STEPS * 1e38, r"data\.train\.X: row 4, column 1: is beyond the range of float32"),
    ],
    ids=["offset", "ids", "range"],
)
def test_features_that_float32_cannot_hold_are_refused(X: Any, message: str) -> None:
    """Large offsets, ids beyond 2**24 and values beyond the range are named with their column."""
    with pytest.raises(UserError, match=message):
        seal(splits(np.stack([STEPS.astype(X.dtype), X], axis=1), STEPS), "regression")


@pytest.mark.parametrize(
    "column",
    [
        np.random.default_rng(0).normal(size=120),
        300.1 + STEPS / 10,  # temperatures
        1.7e9 + STEPS * 86_400,  # days, as seconds
        np.full(120, 0.1) + np.random.default_rng(0).normal(size=120) * 1e-17,  # constant but for rounding
        np.where(STEPS == 3, np.nan, STEPS),
        np.where(STEPS == 3, np.inf, STEPS),
    ],
    ids=["normal", "kelvin", "days", "constant", "missing", "infinite"],
)
def test_features_that_float32_holds_are_accepted(column: Any) -> None:
    """Rounding that is small against the spread of a column is no fault."""
    assert float32_faults({"data.train.X": column[:, None]}) == []


def test_narrow_validation_split_is_measured_by_the_train_rows() -> None:
    """Two close validation rows are no fault where the train rows differ by much more."""
    train, val = STEPS[:, None] * 1000, np.array([[20000.1], [20000.1001]])
    assert float32_faults({"data.train.X": train, "data.val.X": val}) == []


@given(st.floats(-1e12, 1e12), st.floats(1e-3, 1e6))
def test_accepted_columns_keep_their_differences(offset: float, spread: float) -> None:
    """Whatever is accepted is rounded by less than a thousandth of its standard deviation."""
    column = offset + spread * np.linspace(-1, 1, 50)
    if not float32_faults({"data.train.y": column}) and column.std() > 1e-9 * abs(offset):
        assert np.abs(column - column.astype(np.float32)).max() <= NEGLIGIBLE * column.std() * 1.001


def test_class_ids_that_are_large_numbers_are_refused() -> None:
    """Three labels up to 2e9 are not two billion classes."""
    labels = (STEPS % 3).astype(np.int64) * 10**9
    with pytest.raises(UserError, match="too high for a class id: there are 3 distinct ones, got 2000000000"):
        seal(splits(STEPS[:, None], labels), "classification")


def test_csv_columns_that_float32_merges_are_refused(tmp_path: Path) -> None:
    """A table is refused by the name of its column, before its numbers are rounded."""
    rows = "\n".join(f"{int(i)},{int(i) % 2}.5,{1_000_000_000 + int(i)}" for i in STEPS)
    (tmp_path / "t.csv").write_text(f"a,b,stamp\n{rows}\n")
    with pytest.raises(UserError, match="column 'stamp' cannot be held by float32: 120 distinct values become"):
        csv_table(str(tmp_path / "t.csv"), "b", label_kind="values")
