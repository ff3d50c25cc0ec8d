"""`compare`: better, not shown or worse, by pairs of trainings on the same seeds."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fivegate import compare
from pipeline.errors import UserError
from pipeline.history import History
from pipeline.trials.stats import sign_flip_p_value
from pipeline.tuning.own_training import greater_is_better
from pipeline.tuning.paired_test import paired_test


def noisy(config: dict[str, float], seed: int) -> float:
    """A training whose score is the config's quality and the luck of its seed."""
    luck = random.Random(f"{config['quality']} {seed}").gauss(0, config.get("noise", 0.01))
    return config["quality"] + luck


def test_compare_says_better_and_worse() -> None:
    """An effect of many noise floors is shown by seven pairs, in its direction, and the interval excludes zero."""
    answer = compare(noisy, {"quality": 0.8}, {"quality": 0.9})
    assert answer.answer == "better" and answer.p == 2 / 2**7
    assert 0 < answer.low < answer.effect < answer.high and answer.noise_floor is not None
    assert answer.effect == pytest.approx(0.1, abs=0.02)

    assert compare(noisy, {"quality": 0.9}, {"quality": 0.8}).answer == "worse"
    assert compare(noisy, {"quality": 0.9}, {"quality": 0.8}, metric="val/loss").answer == "better"
    assert compare(noisy, {"quality": 0.9}, {"quality": 0.8}, metric="val/loss", mode="max").answer == "worse"


def test_compare_does_not_show_what_the_seed_explains() -> None:
    """An effect below the noise is not shown, and the answer says how many seeds would show it."""
    answer = compare(noisy, {"quality": 0.9, "noise": 1.0}, {"quality": 0.91, "noise": 1.0})
    assert answer.answer == "not shown" and answer.low < 0 < answer.high
    assert any("seeds to show" in note for note in answer.notes)


def test_compare_is_right_in_19_of_20_cases_without_an_effect() -> None:
    """Of 400 comparisons of configs that are equally good, at most 5 % and chance name one."""
    rng = np.random.default_rng(0)
    wrong = sum(paired_test(rng.normal(0, 1, 7)).p < 0.05 for _ in range(400))
    assert wrong <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)


@given(st.lists(st.integers(-50, 50).filter(bool), min_size=6, max_size=9))
def test_paired_test_has_an_interval_that_agrees(whole: list[int]) -> None:
    """The interval excludes zero exactly where the sign-flip test rejects it."""
    differences = [float(value) for value in whole]
    test = paired_test(differences)
    assume(0.0 not in (test.low, test.high))  # on the limit itself, ties count for both sides
    assert (test.low > 0 or test.high < 0) == (sign_flip_p_value(differences) < 0.05)
    assert test.low <= test.effect <= test.high


def test_paired_test_of_many_pairs_is_students() -> None:
    """From 21 pairs on, p-value and interval are those of SciPy's paired t-test."""
    from scipy.stats import ttest_1samp

    values = np.random.default_rng(1).normal(0.2, 1, 40)
    scipys = ttest_1samp(values, 0.0)
    test = paired_test(values)
    assert test.p == pytest.approx(scipys.pvalue)
    assert (test.low, test.high) == pytest.approx(tuple(scipys.confidence_interval(0.95)))


def test_compare_of_few_seeds_says_so() -> None:
    """Five pairs cannot show anything at 5 %, and have no interval."""
    answer = compare(noisy, {"quality": 0.1}, {"quality": 0.9}, seeds=5)
    assert answer.answer == "not shown" and math.isinf(answer.low)
    assert "5 pairs cannot show a difference at 5 %; 6 are the fewest that can" in repr(answer)


def test_compare_notices_a_seed_without_effect() -> None:
    """Seven equal pairs of a training that ignores its seed are one pair, however large the effect."""
    answer = compare(lambda config: config["quality"], {"quality": 0.1}, {"quality": 0.9})
    assert answer.answer == "not shown"
    assert "does not use its seed" in repr(answer)


def test_compare_counts_a_diverged_training_as_the_worst() -> None:
    """A NaN is not left out: an arm that fails on most seeds is worse."""

    def fails(config: dict[str, float], seed: int) -> float:
        return math.nan if config["quality"] < 0.5 and seed else noisy(config, seed)

    answer = compare(fails, {"quality": 0.9}, {"quality": 0.4})
    assert answer.answer == "worse"
    assert "6 of b's trainings ended without a score" in repr(answer)
    with pytest.raises(UserError, match="14 trainings without a finite score"):
        compare(lambda config: math.nan, {}, {})


@dataclass
class Settings:
    quality: float
    seed: int = 0


def epochs(config: dict[str, float], seed: int) -> Iterator[dict[str, float]]:
    for epoch in range(1, 4):
        yield {"val/accuracy": noisy(config, seed) * epoch / 3, "lr": 0.1}


def recorded(config: dict[str, float], seed: int) -> History:
    history = History()
    for number, epoch in enumerate(epochs(config, seed)):
        history.log_epoch(number, epoch)
    return history


def columns(config: dict[str, float], seed: int) -> dict[str, list[float]]:
    return {"val/accuracy": [epoch["val/accuracy"] for epoch in epochs(config, seed)], "lr": [0.1] * 3}


@pytest.mark.parametrize("train", [epochs, recorded, columns, lambda config, seed: [*epochs(config, seed)]])
def test_compare_reads_the_last_value_of_a_history(train: object) -> None:
    """Generators, histories, lists of epochs and columns are the same training."""
    plain = compare(noisy, {"quality": 0.5}, {"quality": 0.6})
    answer = compare(train, {"quality": 0.5}, {"quality": 0.6}, metric="val/accuracy")  # type: ignore[arg-type]
    assert answer.answer == "better" and answer.effect == pytest.approx(plain.effect, rel=1e-5)


def test_compare_passes_the_seed_in_the_config() -> None:
    """A mapping gets the key `seed`, a dataclass its field; the user's own object is not changed."""
    seen: list[int] = []

    def train(config: dict[str, float]) -> float:
        seen.append(int(config["seed"]))
        config["quality"] += 1
        return noisy(config, int(config["seed"]))

    a = {"quality": 0.5}
    assert compare(train, a, {"quality": 0.9}, seeds=[3, 5, 8, 13, 21, 34]).answer == "better"
    assert seen == [3, 3, 5, 5, 8, 8, 13, 13, 21, 21, 34, 34] and a == {"quality": 0.5}

    answer = compare(lambda s: noisy({"quality": s.quality}, s.seed), Settings(0.5), Settings(0.9))
    assert answer.answer == "better"


@pytest.mark.parametrize(
    ("train", "options", "says"),
    [
        (lambda config: "0.9", {}, "train: does not return a score, got 'a str'"),
        (lambda config: None, {}, "train: does not return a score, got 'nothing'"),
        (lambda config: {"acc": 1.0, "loss": 2.0}, {}, "metric: is needed.*expected one of acc, loss"),
        (lambda config: {"acc": 1.0, "loss": 2.0}, {"metric": "los"}, "did you mean 'loss'"),
        (noisy, {"mode": "maximum"}, "mode: is no direction.*expected one of max, min"),
        (noisy, {"seeds": 0}, "seeds: gives no pairs"),
        (noisy, {"seeds": [1, 1]}, "seeds: repeats a seed"),
    ],
)
def test_compare_refuses_in_one_message(train: object, options: dict[str, object], says: str) -> None:
    """What cannot be compared is named with what was expected."""
    with pytest.raises(UserError, match=says):
        compare(train, {"quality": 1}, {"quality": 2}, **options)  # type: ignore[arg-type]


def test_compare_needs_a_way_to_pass_the_seed() -> None:
    """A config that is no mapping, of a function without `seed`, cannot get one."""
    with pytest.raises(UserError, match="train: takes no seed, got 'a config of type float'"):
        compare(lambda config: config, 0.1, 0.2)


@pytest.mark.parametrize(
    ("metric", "greater"),
    [(None, True), ("val/accuracy", True), ("val_loss", False), ("rmse", False), ("neg_log_loss", True), ("f1", True)],
)
def test_greater_is_better_by_name(metric: str | None, greater: bool) -> None:
    """Names of errors are lower-is-better, as in scikit-learn."""
    assert greater_is_better(metric) is greater


def test_comparison_shows_itself_in_notebooks() -> None:
    """The HTML has the answer, every pair and a picture, and shows names as text."""
    answer = compare(noisy, {"quality": 0.8}, {"quality": 0.9}, names=("<b>old</b>", "new"), metric="val/acc")
    shown = answer._repr_html_()
    assert "<svg" in shown and shown.count("<tr>") == 8 and "better" in shown
    assert "<b>old</b>" not in shown and "&lt;b&gt;old" in shown
    assert "better than" in repr(answer) and "noise floor" in repr(answer)
