"""What the Monitor measures of one tensor, beside torch's own functions for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from diagnostics.activations import ActivationStatistics
from diagnostics.measurements import std_over_rows

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3)


@given(st.integers(2, 9), SHAPES, st.floats(-100, 100), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_std_over_rows_is_mean_of_std_of_units(
    rows: int, units: list[int], mean: float, scale: float, seed: int
) -> None:
    values = mean + scale * torch.randn(rows, *units, generator=torch.Generator().manual_seed(seed))
    # float32 knows a value of 100 up to 1e-5
    assert float(std_over_rows(values)) == pytest.approx(float(values.double().std(0).mean()), rel=1e-4, abs=1e-5)


def test_std_over_rows_of_equal_rows_is_zero() -> None:
    assert float(std_over_rows(torch.tensor([[3.0, -1.0]]).expand(4, 2))) == 0


@given(st.integers(2, 9), SHAPES, st.integers(0, 99))
def test_zeros_are_units_that_are_zero_in_every_row_and_place(rows: int, units: list[int], seed: int) -> None:
    values = torch.randn(rows, *units, generator=torch.Generator().manual_seed(seed))
    model = nn.Sequential(nn.ReLU())
    statistics = ActivationStatistics(model)
    statistics.watch()
    outputs = model(values)
    measured = statistics.measure(0, None)
    assert measured is not None
    by_unit = outputs.movedim(1, 0).flatten(1)
    zeros = dict(zip(measured.names, measured.values.tolist(), strict=True))["zeros/0"]
    assert zeros == pytest.approx(float((by_unit == 0).all(1).float().mean()))
