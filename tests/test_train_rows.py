"""Changes of the train rows: what an experiment may do to what is learned from, and folds that are left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.folds import folds_of
from pipeline.data.load import load
from pipeline.data.splits import Split
from pipeline.data.train_rows import changed
from pipeline.engine.fit import fit
from pipeline.errors import UserError
from pipeline.job import Delta, Job
from pipeline.record.permits import TrainPermit
from tests.trainings import permitted  # noqa: F401


def rows(n: int = 60, classes: int = 3, repeats: int = 1) -> Split:
    """Row i is [i, i], of class i % classes; every row `repeats` times."""
    of = torch.arange(n).repeat(repeats)
    return Split("train", torch.stack([of, of], 1).float(), of % classes)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 6), st.integers(1, 3), st.integers(2, 4))
def test_folds_divide_the_rows(parts: int, repeats: int, classes: int) -> None:
    """Every row is in one fold, none of which is empty; equal rows share theirs, and classes are spread."""
    train = rows(72, classes, repeats)
    fold = folds_of(train, parts)
    assert set(fold) == set(range(parts))
    assert all(len(set(fold[train.X[:, 0].numpy() == row])) == 1 for row in range(72))
    shares = np.array([np.bincount(train.y.numpy()[fold == k], minlength=classes) for k in range(parts)])
    assert np.ptp(shares, axis=0).max() <= 2 * repeats


def test_more_folds_than_rows_are_refused() -> None:
    """A fold without rows would judge nothing."""
    with pytest.raises(UserError, match="folds: cannot be made, got 7; expected 2 to 3, the different rows"):
        folds_of(rows(3, 3, repeats=4), 7)


def test_what_changes_and_what_stays() -> None:
    """Zeroed inputs keep their targets, shuffled targets keep how many there are of each, a fold is gone."""
    train = rows()
    zeroed, shuffled = changed(train, {"inputs": "zeroed"}, 1), changed(train, {"targets": "shuffled"}, 1)
    assert not zeroed.X.any() and torch.equal(zeroed.y, train.y)
    assert torch.equal(shuffled.X, train.X) and not torch.equal(shuffled.y, train.y)
    assert torch.equal(shuffled.y.bincount(), train.y.bincount())
    assert torch.equal(changed(train, {"targets": "shuffled"}, 1).y, shuffled.y)
    left = changed(train, {"without_fold": [1, 4]}, 1)
    assert set(left.X[:, 0].tolist()) == set(np.flatnonzero(folds_of(train, 4) != 1).tolist())


def test_an_unknown_change_is_refused() -> None:
    """A job that asks for it is not trained without."""
    with pytest.raises(UserError, match="train_rows: is no change of rows"):
        changed(rows(), {"drop": 1}, 0)


def test_a_training_sees_the_changed_rows(digits_permit: TrainPermit) -> None:
    """Nothing is learned from zeroed inputs: validation ends at the score of the commonest class or below."""
    plan = digits_permit.plan
    data = load(plan.config)
    job = Job(plan.digest, "proof.zeroed_inputs", Delta(train_rows={"inputs": "zeroed"}), max_steps=20)
    done = fit(digits_permit, job, data=data)
    assert done.score is not None and done.score.value < 0.2
    assert not torch.equal(data.train.X, torch.zeros_like(data.train.X))
