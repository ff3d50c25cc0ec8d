"""`optimize`: a search whose winner is accepted only if fresh seeds show it better."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fivegate import optimize
from pipeline.errors import UserError
from pipeline.tuning.space import Tried, doubts, parse_space

SPACE = {"lr": (1e-4, 1.0, "log"), "layers": (1, 4), "unused": [0, 1, 2]}


def bowl(config: dict[str, Any], seed: int) -> float:
    """A training that is best at a rate of 0.01 and with three layers, and does not read `unused`."""
    luck = random.Random(f"{config['lr']} {config['layers']} {seed}").gauss(0, 0.005)
    return 1 - 0.1 * math.log10(config["lr"] / 0.01) ** 2 - 0.05 * abs(config["layers"] - 3) + luck


REFERENCE = {"lr": 0.5, "layers": 1, "unused": 0, "data": "fixed"}


@pytest.mark.slow
def test_optimize_accepts_what_fresh_seeds_show() -> None:
    """The bowl's bottom is found and proven; further keys of the reference stay, and `unused` does nothing."""
    result = optimize(bowl, SPACE, seed=0, metric="val/accuracy", trials=25, reference=REFERENCE)
    assert result.accepted and result.comparison is not None and result.comparison.answer == "better"
    assert 0.001 < result.config["lr"] < 0.1 and result.config["data"] == "fixed"
    assert result.config["unused"] == 0
    assert len(result.trials) == 25 and result.trials[0].values == {"lr": 0.5, "layers": 1, "unused": 0}
    assert "accepted: lr=" in repr(result) and "helped less" in repr(result)
    assert result._repr_html_().count("<tr>") >= 25


@pytest.mark.slow
def test_optimize_of_luck_alone_keeps_the_reference() -> None:
    """Where only luck differs, a search has a winner, and fresh seeds accept no more than the level allows."""

    def luck(config: dict[str, Any], seed: int) -> float:
        return random.Random(f"{config} {seed}").gauss(0, 1)

    results = [optimize(luck, {"a": (0.0, 1.0)}, seed=seed, metric="score", trials=8) for seed in range(40)]
    assert sum(result.candidate is not None for result in results) > 20
    assert sum(result.accepted for result in results) <= 4  # 3 of 128 are expected, of 40 more than 4 in 1 of 500 cases
    kept = next(result for result in results if result.candidate and not result.accepted)
    assert kept.config == kept.reference == {"a": 0.5} and "the reference stays: a=" in repr(kept)


@pytest.mark.slow
def test_optimize_repeats_itself_and_continues(tmp_path: Path) -> None:
    """The same seed gives the same trials, also when the search was interrupted and is continued from its folder."""
    calls = 0

    def interrupted(config: dict[str, Any], seed: int) -> float:
        nonlocal calls
        calls += 1
        if calls == 13:
            raise KeyboardInterrupt
        return bowl(config, seed)

    options: dict[str, Any] = {"seed": 3, "metric": "val/accuracy", "trials": 16, "reference": REFERENCE}
    whole = optimize(bowl, SPACE, **options)
    with pytest.raises(KeyboardInterrupt):
        optimize(interrupted, SPACE, folder=tmp_path / "search", **options)
    before = calls
    continued = optimize(interrupted, SPACE, folder=tmp_path / "search", **options)
    assert [t.values for t in continued.trials] == [t.values for t in whole.trials]
    assert continued.config == whole.config
    assert calls - before < 16 + 3 + 14  # the trials that had ended were not trained again

    with pytest.raises(UserError, match="has a search with another seed, got '4'; expected 3  Do:"):
        optimize(bowl, SPACE, folder=tmp_path / "search", **{**options, "seed": 4})


def test_optimize_stops_bad_trials_early() -> None:
    """A trial that yields epochs below the median of the others ends before its last epoch."""
    epochs: list[int] = []

    def train(config: dict[str, Any], seed: int) -> Iterator[float]:
        epochs.append(0)
        for epoch in range(1, 11):
            epochs[-1] = epoch
            yield -((config["x"] - 0.3) ** 2) * 10 / epoch

    result = optimize(train, {"x": (0.0, 1.0)}, seed=0, metric="score", trials=20)
    assert any(trial.outcome == "pruned" for trial in result.trials)
    assert min(epochs[:20]) < 10 == max(epochs)


def test_optimize_stops_no_training_that_has_ended() -> None:
    """A training that returns its score, or the list of its epochs, is scored, however bad it is."""
    score = optimize(lambda config, seed: -abs(config["x"] - 0.3), {"x": (0.0, 1.0)}, seed=0, metric="s", trials=12)
    epochs = optimize(lambda config, seed: [0.0, -config["x"]], {"x": (0.0, 1.0)}, seed=0, metric="s", trials=12)

    assert {trial.outcome for trial in (*score.trials, *epochs.trials)} == {"scored"}


def test_optimize_records_failed_trainings() -> None:
    """A config with which the training raises or diverges is a failed trial with its reason, and no winner."""

    def train(config: dict[str, Any], seed: int) -> float:
        if config["x"] > 0.7:
            raise ValueError("diverged")
        return math.nan if config["x"] > 0.6 else config["x"] + seed % 7 / 1000

    result = optimize(train, {"x": (0.0, 1.0)}, seed=0, metric="score", trials=12)
    failed = [trial for trial in result.trials if trial.outcome == "failed"]
    assert {trial.why for trial in failed} == {"ValueError: diverged", "no finite score"}
    assert result.config["x"] <= 0.6
    with pytest.raises(ZeroDivisionError):
        optimize(lambda config, seed: 1 / 0, {"x": (0.0, 1.0)}, seed=0, metric="score")


def test_doubts_of_a_space() -> None:
    """The best at an edge, and too few points, are said; the whole of a small space is not too few."""
    space = parse_space({"lr": (1e-4, 1.0, "log"), "width": (16, 64)})
    tried = [Tried({"lr": 0.9, "width": 40}, 0.9), Tried({"lr": 0.01, "width": 20}, 0.5)]
    assert doubts(space, tried) == [
        "lr: the best value is at the upper edge, 1; a wider range may be better",
        "2 points are few for 2 parameters; about 20 cover such a space",
    ]
    assert doubts(parse_space({"x": ["a", "b"]}), [Tried({"x": "a"}, 1.0), Tried({"x": "b"}, 0.0)]) == []


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ({}, "space: is no mapping of names to values, got 'no parameter'"),
        ({"x": (1, 0)}, r"space\['x'\]: ends before it begins, got '\(1, 0\)'"),
        ({"x": (0.0, 1.0, "log")}, "has no logarithm at its lower limit"),
        ({"x": (1, 2, "lgo")}, "has an unknown scale, got 'lgo'; expected one of log; did you mean 'log'?"),
        ({"x": [1, 1]}, "has nothing to choose from"),
        (
            {"x": 3, "y": ("a", 1)},
            r"(?s)'x'\]: is no range and no list.*'y'\]: has a limit that is no number",
        ),
    ],
)
def test_optimize_refuses_a_space(space: Any, says: str) -> None:
    """All faults of a space are one error, with the parameter."""
    with pytest.raises(UserError, match=says):
        optimize(bowl, space, seed=0, metric="score")


def test_optimize_names_missing_arguments() -> None:
    """All missing or impossible arguments are named at once, before anything is trained."""
    with pytest.raises(UserError, match=r"(?s)space: is no mapping.*needs seed=.*needs metric="):
        optimize(print)
    with pytest.raises(UserError, match=r"(?s)trials: leave nothing.*seeds: are too few"):
        optimize(bowl, SPACE, seed=0, metric="score", trials=1, seeds=3)
    with pytest.raises(UserError, match=r"reference\['lr'\]: is outside of the space, got '7'; expected 0.0001 to 1"):
        optimize(bowl, SPACE, seed=0, metric="score", reference={"lr": 7})
