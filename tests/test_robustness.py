"""Robustness: what corrupted and adversarial inputs do to the score, and when the gate refuses it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.readiness import adversarial, corruption, perturbations
from pipeline.results import plain
from tests.check_helpers import judge
from tests.readiness_subjects import subject_of, table, uniform_rows
from tests.trainings import REGRESSION

BOUNDS = {"severity": 3, "min_mean": 0.8, "min_worst": 0.6, "min_rows": 100}


class SignOfFirst(nn.Module):
    """Class 1 where the first column is positive: exact, and as sure as the column is large."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([-inputs[:, 0], inputs[:, 0]], 1) * self.scale


class Parity(SignOfFirst):
    """Class 1 where an even number of columns is negative: exact, and wrong as soon as one sign is."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.sign().prod(1, keepdim=True))


class Logarithm(SignOfFirst):
    """As good, but undefined for values below -1, which no clean row has."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward((inputs + 1).log())


ROWS = uniform_rows()


def corruption_item(model: nn.Module, labels: Any, rows: Any = ROWS, **changed: Any) -> Any:
    measured = plain(corruption.measure(subject_of(model, table(rows, labels), **changed)))
    return judge("robustness.corruption", {"corruption": measured}, **BOUNDS)


def test_corruption_passes_a_model_that_needs_one_column_roughly() -> None:
    """Noise and missing values turn few signs of one column."""
    item = corruption_item(SignOfFirst(), (ROWS[:, 0] > 0).astype(int))

    assert item.outcome == "passed" and item.value > 0.85


def test_corruption_fails_a_model_that_needs_every_column_exactly() -> None:
    """The same rows, but every sign matters: plausible corruptions leave less than the bounds."""
    item = corruption_item(Parity(), (ROWS.prod(1) > 0).astype(int))

    assert item.outcome == "failed" and item.value < 0.8 and "missing (0.1 of the cells)" in item.why


def test_corruption_fails_outputs_that_are_not_finite() -> None:
    """A logarithm of corrupted values has rows without an output."""
    rows = ROWS.copy()
    rows[:, 0] = np.where(rows[:, 0] < 0, -0.99, 0.5)
    item = corruption_item(Logarithm(), (rows[:, 0] > 0).astype(int), rows)

    assert item.outcome == "failed" and "not finite under noise" in item.why


def test_corruption_is_inconclusive_for_few_rows_and_without_a_gain() -> None:
    """Twenty rows say too little, whatever was retained; and where nothing was gained nothing can be retained."""
    labels = (ROWS[:, 0] > 0).astype(int)
    few = corruption_item(SignOfFirst(), labels[:80], ROWS[:80])
    no_gain = corruption_item(SignOfFirst(), 1 - labels)

    assert (few.outcome, few.acceptable) == ("inconclusive", "small_sample")
    assert (no_gain.outcome, no_gain.acceptable) == (
        "inconclusive",
        "",
    ) and "does not exceed the trivial baseline" in no_gain.why


def test_corruption_is_not_applicable_where_no_input_varies() -> None:
    """Masks alone are neither values nor codes nor tokens."""
    evidence = {"corruption": {"why": "no part of the inputs has values, codes or tokens that vary"}}

    assert judge("robustness.corruption", evidence, **BOUNDS).outcome == "not_applicable"


def images(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("X", "preprocess", "names"),
    [
        (uniform_rows(80), {}, {"noise", "missing"}),
        (images((80, 5, 3)), {}, {"noise", "missing"}),
        (images((80, 1, 8, 8)), {}, set(perturbations.CORRUPTIONS["image"])),
        (images((80, 9, 7)), {"images": "unit"}, set(perturbations.CORRUPTIONS["image"])),
        (np.random.default_rng(0).integers(0, 9, (80, 12)), {"integers": "keep"}, {"replace", "drop", "swap"}),
    ],
)
def test_corrupted_rows_keep_their_form_and_change_more_with_severity(
    X: np.ndarray, preprocess: dict[str, str], names: set[str]
) -> None:
    """Shape, dtype and value range stay; equal seeds give equal rows; severity 5 is further away than severity 1."""
    data = seal_with(X, preprocess)
    part = perturbations.input_parts(data, {"preprocess": preprocess})
    clean = data.val.X

    assert set(perturbations.corruptions_of(part["X"])) == names
    for name in names:
        mild, again, strong = (perturbations.corrupted(clean, part, name, s, 1) for s in (1, 1, 5))
        assert mild.shape == clean.shape and mild.dtype == clean.dtype and torch.equal(mild, again)
        distances = [(rows.double() - clean.double()).abs().mean() for rows in (mild, strong)]
        assert 0 < distances[1] and distances[0] <= distances[1], name


def seal_with(X: np.ndarray, preprocess: dict[str, str]) -> Any:
    from pipeline.data.load import seal

    y = np.arange(len(X)) % 2
    rows = {"train": (X[:40], y[:40]), "val": (X[40:60], y[40:60]), "test": (X[60:], y[60:])}
    return seal(rows, "classification", keep_integers=preprocess.get("integers") == "keep")


def test_corrupted_codes_stay_codes() -> None:
    """A category column gets codes of train rows and no noise; the other columns get no codes."""
    rows = np.concatenate([ROWS, np.random.default_rng(0).integers(1, 5, (len(ROWS), 1))], 1).astype(np.float32)
    data = table(rows, (ROWS[:, 0] > 0).astype(int), categories={6: 5})
    parts = perturbations.input_parts(data, {})
    swapped = perturbations.corrupted(data.val.X, parts, "category_swap", 5, 1)
    noisy = perturbations.corrupted(data.val.X, parts, "noise", 5, 1)

    assert set(swapped[:, 6].unique().tolist()) <= {1, 2, 3, 4} and not torch.equal(swapped[:, 6], data.val.X[:, 6])
    assert torch.equal(swapped[:, :6], data.val.X[:, :6]) and torch.equal(noisy[:, 6], data.val.X[:, 6])


def test_missing_values_are_nan_only_where_the_model_imputes_them() -> None:
    """Elsewhere the mean of the column stands in for them."""
    data = table(ROWS, (ROWS[:, 0] > 0).astype(int))
    imputing, plain_model = (
        perturbations.input_parts(data, {"preprocess": {"impute": how}}) for how in ("mean", "none")
    )
    with_nan, with_mean = (perturbations.corrupted(data.val.X, p, "missing", 5, 1) for p in (imputing, plain_model))

    assert with_nan.isnan().any() and not with_mean.isnan().any()
    assert torch.equal(with_nan.isnan(), with_mean != data.val.X)


# --- adversarial -----------------------------------------------------------------------------------------------------

SANITY = {"tolerance": 0.01, "chance_tolerance": 0.05}


class ManySmallSigns(SignOfFirst):
    """The sum of all columns decides: sixty small changes in the worst direction add up, random ones do not."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.sum(1, keepdim=True))


class Rounded(ManySmallSigns):
    """The same function without a gradient, as quantization has none."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward((inputs * 1e4).round() / 1e4)


WIDE = uniform_rows(400, 60, seed=1)
WIDE_LABELS = (WIDE.sum(1) > 0).astype(int)


def adversarial_item(model: nn.Module, floor: float | None, rows: Any = WIDE, labels: Any = WIDE_LABELS) -> Any:
    measured = plain(adversarial.measure(subject_of(model, table(rows, labels))))
    return judge("robustness.adversarial", {"adversarial": measured}, floor=floor, **SANITY)


def test_adversarial_fails_a_model_below_its_floor_and_passes_one_above() -> None:
    """Sixty columns together turn many answers; one column alone turns few at the same radius."""
    fragile = adversarial_item(ManySmallSigns(), 0.9)
    robust = adversarial_item(SignOfFirst(), 0.9, ROWS, (ROWS[:, 0] > 0).astype(int))

    assert (fragile.outcome, robust.outcome) == ("failed", "passed") and fragile.value < 0.7 < 0.9 <= robust.value


def test_adversarial_without_a_floor_asks_for_the_curve_alone() -> None:
    """The fragile model passes, and its curve is in the sentence."""
    item = adversarial_item(ManySmallSigns(), None)

    assert item.outcome == "passed" and "PGD" in item.why and "no floor is declared" in item.why


def test_adversarial_is_inconclusive_where_gradients_are_masked() -> None:
    """A rounded input has no gradient: the attacks do nothing, which proves nothing."""
    item = adversarial_item(Rounded(), None)

    assert item.outcome == "inconclusive" and "gradient masking" in item.why and "100 rows have no gradient" in item.why


def test_adversarial_raises_the_error_of_a_regression() -> None:
    """PGD raises the error at least as much as FGSM, and FGSM more than noise."""
    rows = uniform_rows(400, 20, seed=2)
    labels = rows.sum(1) + np.random.default_rng(0).normal(0, 0.1, 400)

    class Sum(SignOfFirst):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.sum(1) * self.scale

    subject = subject_of(Sum(), table(rows, labels.astype(np.float32), "regression"), **REGRESSION)
    measured = adversarial.measure(subject)
    point = measured["curve"][0]

    assert measured["clean"] < point["noise"] < point["fgsm"] <= point["pgd"] + 1e-6
    assert judge("robustness.adversarial", {"adversarial": plain(measured)}, floor=0.3, **SANITY).outcome == "failed"


def test_adversarial_is_not_applicable_to_tokens() -> None:
    """There is no small change of a token."""
    X = np.random.default_rng(0).integers(0, 9, (80, 12))
    subject = subject_of(
        nn.Sequential(nn.Embedding(9, 2), nn.Flatten(), nn.Linear(24, 2)), seal_with(X, {"integers": "keep"})
    )
    item = judge("robustness.adversarial", {"adversarial": plain(adversarial.measure(subject))}, floor=None, **SANITY)

    assert item.outcome == "not_applicable" and "tokens" in item.why
