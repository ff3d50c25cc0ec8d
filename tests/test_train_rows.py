"""Changes of the train rows: those that an experiment may make, and folds that are left out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.dataset import Data
from pipeline.data.folds import assign_folds
from pipeline.data.load import load
from pipeline.data.splits import RowMetadata, Split
from pipeline.data.train_rows import apply_row_changes
from pipeline.engine.fit import fit
from pipeline.engine.progress import Fit
from pipeline.errors import UserError
from pipeline.evaluation.evaluate import score_split
from pipeline.results import TrainSide
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.permits import TrainPermit
from pipeline.trials.cross_validation import cross_validate
from tests.check_helpers import judge
from tests.conftest import examples
from tests.trainings import permitted  # noqa: F401


def rows(n: int = 60, classes: int = 3, repeats: int = 1) -> Split:
    """Row i is [i, i], of class i % classes; every row `repeats` times."""
    of = torch.arange(n).repeat(repeats)
    return Split("train", torch.stack([of, of], 1).float(), of % classes)


@settings(max_examples=examples(25))
@given(st.integers(2, 6), st.integers(1, 3), st.integers(2, 4))
def test_folds_of_divides_the_rows(parts: int, repeats: int, classes: int) -> None:
    """Every row is in one fold, no fold is empty, equal rows share a fold, and classes are spread evenly."""
    train = rows(72, classes, repeats)
    fold = assign_folds(train, parts)
    assert set(fold) == set(range(parts))
    assert all(len(set(fold[train.X[:, 0].numpy() == row])) == 1 for row in range(72))
    shares = np.array([np.bincount(train.y.numpy()[fold == k], minlength=classes) for k in range(parts)])
    assert np.ptp(shares, axis=0).max() <= 2 * repeats


def test_folds_of_refuses_more_folds_than_rows() -> None:
    """A fold needs at least one row."""
    with pytest.raises(UserError, match="folds: cannot be made, got 7; expected 2 to 3, the different rows"):
        assign_folds(rows(3, 3, repeats=4), 7)


def test_changed_keeps_everything_else() -> None:
    """Zeroed inputs keep their targets, shuffled targets keep their counts, and a left-out fold is missing."""
    train = rows()
    zeroed, shuffled = (
        apply_row_changes(train, {"inputs": "zeroed"}, 1),
        apply_row_changes(train, {"targets": "shuffled"}, 1),
    )
    assert not zeroed.X.any() and torch.equal(zeroed.y, train.y)
    assert torch.equal(shuffled.X, train.X) and not torch.equal(shuffled.y, train.y)
    assert torch.equal(shuffled.y.bincount(), train.y.bincount())
    assert torch.equal(apply_row_changes(train, {"targets": "shuffled"}, 1).y, shuffled.y)
    left = apply_row_changes(train, {"without_fold": [1, 4]}, 1)
    assert set(left.X[:, 0].tolist()) == set(np.flatnonzero(assign_folds(train, 4) != 1).tolist())


def test_changed_refuses_an_unknown_change() -> None:
    """A job with an unknown change is not trained without it."""
    with pytest.raises(UserError, match="train_rows: is not a change of rows"):
        apply_row_changes(rows(), {"drop": 1}, 0)


def test_fit_trains_on_the_changed_rows(digits_permit: TrainPermit) -> None:
    """Nothing is learned from zeroed inputs: the score is at most that of the majority class."""
    plan = digits_permit.plan
    data = load(plan.config)
    job = Job(plan.digest, "proof.zeroed_inputs", Delta(train_rows={"inputs": "zeroed"}), max_steps=20)
    result = fit(digits_permit, job, data=data)
    assert result.score is not None and result.score.value < 0.2
    assert not torch.equal(data.train.X, torch.zeros_like(data.train.X))


# --- folds -----------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(25))
@given(st.integers(2, 5), st.integers(6, 20), st.integers(0, 9))
def test_folds_of_keeps_groups_together(parts: int, groups: int, seed: int) -> None:
    """Rows of a group share their fold, equal rows too, and so do groups that have an equal row."""
    draw = np.random.default_rng(seed)
    train = rows(60, 3)
    train = Split("train", torch.cat([train.X, train.X[:1]]), torch.cat([train.y, train.y[:1]]))
    group = np.append(draw.permutation(np.arange(60) % groups), 0)
    group[0] = 1  # the first and the last row are equal: groups 0 and 1 are one
    fold = assign_folds(replace(train, row_metadata=RowMetadata(group.astype(str))), parts)
    assert all(len(set(fold[group == g])) == 1 for g in range(groups))
    assert set(fold[group == 0]) == set(fold[group == 1])
    assert set(fold) == set(range(parts))


def test_folds_of_refuses_more_folds_than_groups() -> None:
    """There are at most as many folds as groups."""
    with pytest.raises(UserError, match="expected 2 to 4, the different groups"):
        assign_folds(replace(rows(), row_metadata=RowMetadata((np.arange(60) % 4).astype(str))), 5)


@pytest.fixture
def baseline(digits_permit: TrainPermit) -> tuple[TrainPermit, Data, Fit]:
    """The planned training of the shrunk digits."""
    data = load(digits_permit.plan.config)
    return digits_permit, data, fit(digits_permit, Job(digits_permit.plan.digest, "baseline"), data=data)


def test_cross_validate_evaluates_every_row_once(baseline: tuple[TrainPermit, Data, Fit]) -> None:
    """Each fold is evaluated by a training without it; mean and deviation are those of the folds."""
    permit, data, planned = baseline
    watched: list[str] = []
    result = cross_validate(permit, data, 3, planned, watch=lambda what: watched.append(what) or [])
    assert sum(fold["rows"] for fold in result["folds"]) == len(data.train)
    assert result["values"] == [fold["value"] for fold in result["folds"]] and len(set(result["values"])) > 1
    assert result["mean"] == pytest.approx(np.mean(result["values"])) and result["std"] == pytest.approx(
        np.std(result["values"], ddof=1)
    )
    assert result["metric"] == "accuracy" and 0.5 < result["mean"] < 1
    assert watched == ["fold 1 of 3", "fold 2 of 3", "fold 3 of 3"]
    fit_result = fit(permit, Job(permit.plan.digest, "fold 2", Delta(train_rows={"without_fold": [1, 3]})), data=data)
    fold = data.train.take(torch.from_numpy(np.flatnonzero(assign_folds(data.train, 3) == 1)))
    score = score_split(fit_result.model, fold, fit_result.task).score
    assert isinstance(score, TrainSide) and score.value == result["values"][1]


def test_cross_validate_goes_on_after_a_fold_without_score(
    baseline: tuple[TrainPermit, Data, Fit], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the metric is undefined on one fold, that fold has no value but a reason; the others have their scores."""
    permit, data, planned = baseline
    message = "task.metric: 'roc_auc_ovr' does not fit the predictions"
    scored: list[Split] = []

    def refuse_first_fold(model: Any, split: Split, *arguments: Any) -> Any:
        scored.append(split)
        if len(scored) == 1:
            raise UserError(message)
        return score_split(model, split, *arguments)

    monkeypatch.setattr("pipeline.trials.cross_validation.score_split", refuse_first_fold)
    monkeypatch.setattr("pipeline.trials.cross_validation.fit", lambda *_, **__: planned)
    result = cross_validate(permit, data, 2, planned)
    first, second = result["folds"]
    assert math.isnan(first["value"]) and first["why"] == message
    assert 0.5 < second["value"] <= 1 and "why" not in second
    assert [len(split) for split in scored] == [first["rows"], second["rows"]]
    assert math.isnan(result["mean"]) and math.isnan(result["values"][0]) and result["values"][1] == second["value"]


def test_cross_validate_gives_the_reason_if_it_does_not_run(baseline: tuple[TrainPermit, Data, Fit]) -> None:
    """Not requested, no time, more folds than rows, ordered rows, no score: the reason is given, and nothing trains."""
    permit, data, planned = baseline
    four_rows = replace(data, train=data.train.take(torch.arange(4)))
    timed = replace(data.train, row_metadata=RowMetadata(times=np.arange(float(len(data.train)))))
    for reason, call in {
        "not requested": lambda: cross_validate(permit, data, 0, planned),
        "5 trainings take about": lambda: cross_validate(permit, data, 5, planned, seconds_left=0.0),
        "expected 2 to 4, the different rows": lambda: cross_validate(permit, four_rows, 5, planned),
        "ordered in time": lambda: cross_validate(permit, replace(data, train=timed), 5, planned),
        "the planned training has no score": lambda: cross_validate(permit, data, 5, replace(planned, score=None)),
    }.items():
        assert reason in call()["not_applicable"]


FOLDS = {"parts": 5, "metric": "accuracy", "mean": 0.95, "std": 0.01, "values": [0.95] * 5}
VAL = {"value": 0.96, "greater_is_better": True}


@pytest.mark.parametrize(
    ("folds", "score", "outcome", "why"),
    [
        (FOLDS, VAL, "passed", "0.95 ± 0.01 over 5 folds"),
        ({**FOLDS, "std": 0.04}, VAL, "passed", "the folds differ much"),
        (FOLDS, {**VAL, "value": 0.98}, "passed", "validation, 0.98, is better than 2 standard deviations explain"),
        (FOLDS, {**VAL, "value": 0.9}, "passed", "validation, 0.9, is worse"),
        ({**FOLDS, "mean": 50.0, "std": 1.0}, {"value": 60.0, "greater_is_better": False}, "passed", "is worse"),
        ({**FOLDS, "mean": float("nan")}, VAL, "passed", "has no score"),
        ({**FOLDS, "mean": float("nan"), "folds": [{}, {"why": "lost"}]}, VAL, "passed", "has no score: lost"),
        (FOLDS, None, "passed", "over 5 folds"),
        ({"not_applicable": "no time"}, VAL, "not_applicable", "no time"),
    ],
)
def test_cross_validated_check_describes_the_folds(folds: dict[str, Any], score: Any, outcome: str, why: str) -> None:
    """A large spread or distance is a warning and closes no gate; without folds the reason is that of the item."""
    bounds = {"suspicious_spread": 0.03, "suspicious_distance": 2.0}
    result = judge("measures.cross_validated", {"cross_validation": folds, "score": score}, **bounds)
    assert result.outcome == outcome and why in result.why
    assert ("warning" in result.why) == (why not in ("0.95 ± 0.01 over 5 folds", "over 5 folds", "no time"))
