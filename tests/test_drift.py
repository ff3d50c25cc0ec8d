"""Drift: what is compared, when it is drift, and what the rehearsal of a monitor proves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.drift import rehearsal
from pipeline.drift.compare import CLASSIFIER, Live, compare, power
from pipeline.drift.features import Feature, Observations, input_observations, output_observations
from pipeline.drift.reference import JSON_FILE, NPZ_FILE, Reference, load, to_files
from pipeline.drift.shifts import prior_rows
from pipeline.drift.statistics import (
    compare_categories,
    compare_numbers,
    rank_test,
    separate,
    stability_index,
    wasserstein,
)
from pipeline.errors import UserError
from pipeline.results import plain
from pipeline.trials.stats import holm
from tests import drift_payloads
from tests.check_helpers import judge

BOUNDS = {"max_false_alarms": 0.05, "min_detected": 0.95, "min_window": 100}
RNG = np.random.default_rng


def numbers(values: np.ndarray) -> Observations:
    """Observations of columns a, b, c ..."""
    return Observations(tuple(Feature(chr(97 + at), "number", "input") for at in range(values.shape[1])), values)


def reference_of(values: np.ndarray) -> Reference:
    about: Any = {"alpha": 0.01, "min_effect": 0.1, "min_auc": 0.6, "bounds": {}, "seed": 1}
    return Reference(about, numbers(values.astype(np.float32)), None)


def compared(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Any:
    return compare(reference_of(first), Live(numbers(second.astype(np.float32)), None), RNG(seed))


# --- distances and tests ---------------------------------------------------------------------------------------------


def test_compare_numbers_is_the_kolmogorov_smirnov_test() -> None:
    """Effect and p-value are those of SciPy, for continuous and for repeated values."""
    rng = RNG(0)
    first = np.stack([rng.normal(size=400), rng.integers(0, 4, 400)], 1)
    second = np.stack([rng.normal(0.2, 1, 300), rng.integers(0, 5, 300)], 1)
    effects, p_values = compare_numbers(first, second)

    for column in (0, 1):
        oracle = stats.ks_2samp(first[:, column], second[:, column], method="asymp")
        assert effects[column] == pytest.approx(oracle.statistic)
        assert oracle.pvalue <= p_values[column] <= oracle.pvalue * 1.3


def test_compare_numbers_counts_missing_values_as_one_value() -> None:
    """A fifth of the values is missing: a fifth of the rows has another value."""
    first, second = RNG(0).normal(size=(500, 1)), RNG(1).normal(size=(500, 1))
    second[:100] = np.nan
    effect, p_value = compare_numbers(first, second)

    assert effect[0] == pytest.approx(0.2, abs=0.05) and p_value[0] < 1e-6


def test_compare_categories_is_the_chi_square_test() -> None:
    """Frequent categories give SciPy's p-value, and half the summed difference of the shares as effect."""
    first, second = np.repeat([0, 1, 2], [50, 30, 20]), np.repeat([0, 1, 2], [30, 40, 50])
    effect, p_value = compare_categories(first, second)

    assert effect == pytest.approx((abs(0.5 - 0.25) + abs(0.3 - 1 / 3) + abs(0.2 - 5 / 12)) / 2)
    assert p_value == pytest.approx(stats.chi2_contingency([[50, 30, 20], [30, 40, 50]], correction=False).pvalue)


def test_compare_categories_notices_a_new_category() -> None:
    """A category that the reference never had is too rare for chi-square, and significant nevertheless."""
    first, second = np.repeat([0, 1], [1200, 800]), np.repeat([0, 1, 2], [48, 32, 20])
    effect, p_value = compare_categories(first, second)

    assert effect == pytest.approx(0.2) and p_value < 1e-10


def test_rank_test_is_mann_and_whitneys() -> None:
    """Area and p-value are SciPy's, with repeated scores too."""
    larger, smaller = RNG(0).integers(1, 9, 40).astype(float), RNG(1).integers(0, 8, 60).astype(float)
    area, p_value = rank_test(larger, smaller)
    oracle = stats.mannwhitneyu(larger, smaller, alternative="greater", method="asymptotic")

    assert area == pytest.approx(oracle.statistic / 2400) and p_value == pytest.approx(oracle.pvalue)


def test_separate_finds_a_correlation_that_no_column_shows() -> None:
    """Both columns stay normal; only their correlation changes its sign."""
    first = RNG(0).multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], 500)
    second = RNG(1).multivariate_normal([0, 0], [[1, -0.7], [-0.7, 1]], 500)
    comparison = compared(first, second)

    assert comparison["drifted"] and [r["feature"] for r in comparison["features"] if r["drifted"]] == [CLASSIFIER]


def test_separate_says_nothing_of_equal_populations() -> None:
    """The p-value is below one percent in about one percent of the draws, at most."""
    p_values = [
        separate(RNG(i).normal(size=(80, 3)), RNG(1000 + i).normal(size=(60, 3)), np.zeros(3, bool), RNG(i)).p_value
        for i in range(200)
    ]

    assert sum(p < 0.05 for p in p_values) <= 20


def test_distances_are_zero_for_equal_samples_and_grow_with_the_shift() -> None:
    """One standard deviation of shift is a Wasserstein distance of one."""
    values = RNG(0).normal(size=4000)

    assert wasserstein(values, values) == 0 and stability_index(values, values, False) == 0
    assert wasserstein(values, values + values.std()) == pytest.approx(1)
    assert stability_index(values, values + 1, False) > stability_index(values, values + 0.2, False) > 0


# --- when it is drift ------------------------------------------------------------------------------------------------


def test_compare_is_silent_about_a_million_rows_with_a_tiny_shift() -> None:
    """A shift of a sixth of a standard deviation is significant without a doubt, and too small to be drift."""
    comparison = compared(RNG(0).normal(size=(1000, 2)), RNG(1).normal(0.17, 1, (1_000_000, 2)))
    first = comparison["features"][0]

    assert first["adjusted"] < 0.01 and first["effect"] < 0.1 and not comparison["drifted"]


def test_compare_is_silent_about_a_large_difference_of_few_rows() -> None:
    """Ten rows differ by more than the bound, which chance explains."""
    comparison = compared(RNG(0).normal(size=(1000, 4)), RNG(1).normal(size=(10, 4)))

    assert max(row["effect"] for row in comparison["features"][:4]) > 0.1 and not comparison["drifted"]


def test_compare_corrects_for_the_number_of_features() -> None:
    """The p-values are Holm's over all features, refused rows and the classifier."""
    rows = compared(RNG(0).normal(size=(300, 5)), RNG(1).normal(0.3, 1, (300, 5)))["features"]

    assert len(rows) == 7 and [r["adjusted"] for r in rows] == holm([r["p_value"] for r in rows])


def test_power_grows_with_the_rows() -> None:
    """A shift of one standard deviation is hardly noticed in four rows, and always in eighty."""
    reference = reference_of(RNG(0).normal(size=(500, 4)))
    few, many = (power(reference, rows, RNG(0)) for rows in (4, 80))

    assert few is not None and many is not None and few["detected"] < 25 and many["detected"] >= 48


# --- features --------------------------------------------------------------------------------------------------------


def schema_of(kind: str, shape: list[int], dtype: str = "float32") -> Any:
    column = {"name": "it", "kind": kind, "tensor": "input", "dtype": dtype, "shape": shape}
    return {"inputs": [column], "tensors": [{"name": "input", "dtype": dtype, "whole": True}]}


def test_images_are_summarized_by_their_parts() -> None:
    """A bright corner shows in its part alone."""
    images = np.zeros((2, 1, 8, 8), np.float32)
    images[1, 0, :2, :2] = 1
    observed = input_observations(schema_of("image", [1, 8, 8]), {"input": images}, {})
    changed = {f.name for at, f in enumerate(observed.features) if observed.values[0, at] != observed.values[1, at]}

    assert len(observed.features) == 18 and changed == {"it mean", "it deviation", "it part 0,0"}


def test_tokens_are_summarized_by_length_and_frequencies() -> None:
    """Trailing zeros are padding; the frequencies are shares of a row."""
    ids = np.array([[3, 3, 5, 0], [5, 5, 5, 5]])
    observed = input_observations(schema_of("tokens", [4], "int64"), {"input": ids}, {"it": [3, 5]})
    values = dict(zip([feature.name for feature in observed.features], observed.values.T.tolist(), strict=True))

    assert values == {
        "it length": [3, 4],
        "it different": [0.75, 0.25],
        "it token 3": [0.5, 0],
        "it token 5": [0.25, 1],
    }


@pytest.mark.parametrize(
    ("task", "outputs", "names"),
    [
        ("classification", np.eye(3, dtype=np.float32), ["predicted class", "confidence"]),
        ("binary", np.array([1.0, -1.0], np.float32), ["predicted class", "confidence"]),
        ("multilabel", np.zeros((2, 1), np.float32), ["predicted labels", "probability of label"]),
        ("regression", np.zeros((2, 1), np.float32), ["prediction"]),
        ("autoencoder", np.zeros((2, 4), np.float32), ["reconstruction error"]),
        ("language_model", np.zeros((2, 5, 7), np.float32), ["confidence"]),
        ("custom", np.zeros((2, 40), np.float32), ["output mean", "output deviation"]),
    ],
)  # fmt: skip
def test_outputs_of_every_kind_of_task_are_monitored(task: str, outputs: np.ndarray, names: list[str]) -> None:
    """Classes have a prediction and a confidence, values a prediction, reconstructions an error."""
    observed = output_observations({"output": outputs}, task, "logits", {"input": np.ones((len(outputs), 4))})

    assert observed is not None and [feature.name for feature in observed.features] == names
    assert np.isfinite(observed.values).all()


def test_prior_rows_always_loses_half_of_the_rows() -> None:
    """The classes that are gone have half of the rows or more: that only a rare one is gone is no shift to notice."""
    targets = np.repeat(np.arange(3), [519, 467, 14])
    for seed in range(20):
        rows = prior_rows(targets, True, 500, np.random.default_rng(seed))
        assert len(rows) == 500 and np.isin(targets, targets[rows]).mean() <= 0.5
    binary = prior_rows(np.repeat([0, 1], [90, 10]), True, 50, np.random.default_rng(1))
    assert set(binary) <= set(range(90, 100))  # of two classes, the rarer one


# --- the reference and its rehearsal ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("payload")
    return folder, plain(drift_payloads.write_payload(folder))


def item(evidence: Any) -> Any:
    return judge("operation.drift_rehearsed", {"drift_monitor": evidence}, **BOUNDS)


@pytest.mark.process
def test_drift_rehearsed_passes_a_monitor_that_notices_shifts(rehearsed: tuple[Path, Any]) -> None:
    """Windows of 200 rows: every shift is noticed, and hardly a window without one."""
    _, evidence = rehearsed
    judged = item(evidence)

    assert judged.outcome == "passed" and judged.value >= 0.95, judged.why
    assert {shift["shift"] for shift in evidence["shifts"]} == {"mean", "missing", "unit", "categories", "prior"}
    assert evidence["window"] == 200 and evidence["false_alarms"] <= evidence["draws"] * 0.05


@pytest.mark.process
def test_drift_rehearsed_fails_a_monitor_that_always_alarms(rehearsed: tuple[Path, Any], tmp_path: Path) -> None:
    """Validation rows are from another time than train rows: every ordinary window raises an alarm."""
    rows = drift_payloads.live_rows(1600)
    rows[800:, 1] += 2
    judged = item(plain(rehearsed_in(rehearsed[0], tmp_path, classes_of(drift_payloads.data_of(rows)))))

    assert judged.outcome == "failed" and judged.value > 0.9
    assert "most often weight" in judged.why
    assert judged.why.endswith("if the order of the rows means nothing, split them at random")


@pytest.mark.process
def test_drift_rehearsed_passes_a_monitor_of_rows_that_change_over_time(
    rehearsed: tuple[Path, Any], tmp_path: Path
) -> None:
    """Each hundred rows have a weight of their own: the bound of the weight is what stretches of the data differ by."""
    rows = drift_payloads.live_rows(3200)
    rows[:, 1] += np.repeat(RNG(3).normal(size=32), 100)
    data = drift_payloads.data_of(rows)
    evidence = plain(rehearsed_in(rehearsed[0], tmp_path, classes_of(data)))
    stretches, judged = evidence["stretches"], item(evidence)

    assert stretches["before"] > 100 and stretches["named"][0] == "weight"
    assert {"weight", CLASSIFIER} <= set(stretches["bounds"]) and stretches["bounds"]["weight"] > 0.2
    assert load(tmp_path).about["bounds"] == stretches["bounds"]
    assert evidence["false_alarms"] < 10 and judged.outcome == "passed", judged.why
    assert f"so that the bounds of {len(stretches['bounds'])} features are what they differ by" in judged.why

    # In another order the validation rows are like the train rows; their times say that weeks differ nevertheless.
    order = RNG(0).permutation(3200)
    times = np.arange(3200.0)[order]
    by_split = dict(zip(("train", "val", "test"), np.split(times, (1600, 2400)), strict=True))
    assert (
        plain(rehearsed_in(rehearsed[0], tmp_path, classes_of(drift_payloads.data_of(rows[order]))))["stretches"]
        is None
    )
    timed = plain(rehearsed_in(rehearsed[0], tmp_path, classes_of(drift_payloads.data_of(rows[order], times=by_split))))
    assert timed["stretches"]["before"] < 10 and "weight" in timed["stretches"]["bounds"]


def classes_of(data: Any) -> Any:
    return drift_payloads.subject_of(drift_payloads.Threshold(), data, **drift_payloads.CLASSES)


@pytest.mark.process
def test_drift_rehearsed_fails_a_monitor_that_does_not_notice_other_targets(
    rehearsed: tuple[Path, Any], tmp_path: Path
) -> None:
    """The labels have nothing to do with the inputs, so that other labels change nothing that can be observed."""
    labels = RNG(5).integers(0, 2, 1600)
    subject = drift_payloads.subject(labels=labels)
    judged = item(plain(rehearsed_in(rehearsed[0], tmp_path, subject)))

    assert judged.outcome == "failed" and "not noticed often enough: only the rarer class arrives" in judged.why


@pytest.mark.process
def test_drift_rehearsed_is_inconclusive_for_few_rows(rehearsed: tuple[Path, Any], tmp_path: Path) -> None:
    """Windows of five rows notice little, which is said with the shares, and can be accepted."""
    judged = item(plain(rehearsed_in(rehearsed[0], tmp_path, drift_payloads.subject(40))))

    assert (judged.outcome, judged.acceptable) == (
        "inconclusive",
        "small_sample",
    ) and "fewer than 100 rows" in judged.why


def rehearsed_in(payload: Path, folder: Path, subject: Any) -> Any:
    """The rehearsal of the same model with other data."""
    for name in ("model.onnx", "schema.json"):
        (folder / name).write_bytes((payload / name).read_bytes())
    return rehearsal.measure(subject, folder)[1]


def test_drift_rehearsed_is_inconclusive_where_nothing_was_exported(tmp_path: Path) -> None:
    """Without an ONNX file there are no answers to monitor, and no reference is written."""
    paths, evidence = rehearsal.measure(drift_payloads.subject(40), tmp_path)

    assert paths == {} and item(plain(evidence)).outcome == "inconclusive"


@pytest.mark.process
def test_reference_is_what_was_written(rehearsed: tuple[Path, Any], tmp_path: Path) -> None:
    """A reference that is read and written again has the same bytes, and no pickle is in it."""
    folder, _ = rehearsed
    reference = load(folder)

    assert to_files(reference) == {name: (folder / name).read_bytes() for name in (JSON_FILE, NPZ_FILE)}
    assert len(reference.inputs) == 1000 and reference.about["released"] is not None
    with np.load(folder / NPZ_FILE, allow_pickle=False) as arrays:
        assert set(arrays.files) == {"inputs", "outputs"}


@pytest.mark.process
def test_reference_that_is_damaged_is_refused(rehearsed: tuple[Path, Any], tmp_path: Path) -> None:
    """Fewer values than features ask for, and a file that is something else, give one message."""
    for name in (JSON_FILE, NPZ_FILE):
        (tmp_path / name).write_bytes((rehearsed[0] / name).read_bytes())
    np.savez(tmp_path / NPZ_FILE, inputs=np.zeros(7, np.float32), outputs=np.zeros(0, np.float32))
    with pytest.raises(UserError, match="7 values of inputs for 4 features"):
        load(tmp_path)
    (tmp_path / JSON_FILE).write_text("{}")
    with pytest.raises(UserError, match="is not a reference"):
        load(tmp_path)
