"""Augmentation and its random numbers: both depend on seed, epoch and row alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from pipeline.batching.augment import apply_augmentations, build_augmentations
from pipeline.batching.source import batch_source
from pipeline.data import tree
from pipeline.data.augmentations import Flip, Noise, Shift
from pipeline.data.draws import Draws
from pipeline.data.load import seal
from pipeline.data.splits import Split
from pipeline.errors import UserError

CPU = torch.device("cpu")


def draws(rows: Any, seed: int = 1, epoch: int = 1) -> Draws:
    return Draws(seed, epoch, np.asarray(rows), CPU)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(1, 40), st.integers(0, 2**63 - 1))
def test_draws_of_a_row_do_not_depend_on_other_rows(rows: list[int], count: int, seed: int) -> None:
    """A row gets the same numbers alone and together with other rows."""
    together = draws(rows, seed)
    several = together.uniform(count), together.normal(count, 2), together.uniform()
    for i, row in enumerate(rows):
        alone = draws([row], seed)
        for part, own in zip(several, (alone.uniform(count), alone.normal(count, 2), alone.uniform()), strict=True):
            assert torch.equal(part[i], own[0])


def test_draws_do_not_depend_on_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many numbers are hashed at once affects speed alone."""
    whole = draws(range(50)).normal(3, 7)
    monkeypatch.setitem(__import__("pipeline.data.draws", fromlist=["BLOCK"]).BLOCK, "cpu", 10)
    assert torch.equal(whole, draws(range(50)).normal(3, 7))


def test_draws_never_change_between_versions() -> None:
    """This version and every later one must give these numbers for these rows on every device."""
    numbers = draws([0, 1, 10**12], seed=7, epoch=3)
    assert UNIFORM == (numbers.uniform(2) * 2**24).long().tolist()
    assert NORMAL == [round(x, 6) for x in numbers.normal().tolist()]


UNIFORM = [[5021449, 12407357], [6497892, 671225], [10963493, 12995608]]  # also computed in plain Python
NORMAL = [-1.32004, 0.703454, 0.593916]


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_draws_are_random(kind: str) -> None:
    """Moments are right, and adjacent rows, draws, epochs and seeds are uncorrelated."""
    n = 40_000
    base, epoch, seed = (getattr(draws(range(n), *which), kind)(5) for which in ((1, 1), (1, 2), (2, 1)))
    mean, deviation = (0.5, 12**-0.5) if kind == "uniform" else (0.0, 1.0)
    assert abs(float(base.mean()) - mean) < 0.01 and abs(float(base.std()) - deviation) < 0.01
    pairs = [(base[1:], base[:-1]), (base[:, 1:], base[:, :-1]), (base, epoch), (base, seed)]
    for a, b in pairs:
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.015
    if kind == "uniform":
        counts = torch.histc(base, 50, 0, 1)
        assert 0 <= float(base.min()) and float(base.max()) < 1 and float(((counts - 4000) ** 2 / 4000).sum()) < 110
    else:
        expected = {0.0: 0.5, 1.0: 0.158655, 2.0: 0.022750, 3.0: 0.001350}
        assert all(abs(float((base > z).float().mean()) - share) < 0.004 for z, share in expected.items())
        assert abs(float((base**4).mean()) - 3) < 0.1


def images(n: int = 6) -> torch.Tensor:
    return torch.arange(1, n * 2 * 3 * 4 + 1, dtype=torch.float32).view(n, 2, 3, 4)


def augment(how: Any, X: Any, seed: int = 1) -> Any:
    return apply_augmentations(X, [how], seed, 1, np.arange(tree.count_rows(X)), CPU)


def test_flip_mirrors_some_images() -> None:
    """Each image is mirrored as a whole or not at all; probabilities 0 and 1 are exact."""
    X = images(40)
    flipped = augment(Flip(0.5), X)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, X, strict=True)]
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, flipped, X, strict=True)) and 8 < sum(mirrored) < 32
    assert torch.equal(X, augment(Flip(0.0), X)) and torch.equal(X.flip(-1), augment(Flip(1.0), X))


@pytest.mark.parametrize("shape", [(30, 2, 5, 6), (30, 5, 6)])
def test_shift_moves_images_and_fills_with_zeros(shape: tuple[int, ...]) -> None:
    """Each result is the image moved by one pair of steps, NaN included, and many pairs occur."""
    X = torch.rand(shape) + 1
    X[0, ..., 0, 0] = torch.nan
    padded = torch.nn.functional.pad(X, (1, 1, 1, 1))
    moves = [(dy, dx) for dy in range(3) for dx in range(3)]
    moves_found = set()
    for before, after in zip(padded, augment(Shift(1), X), strict=True):
        fits = [
            m
            for m in moves
            if torch.equal(before[..., m[0] : m[0] + 5, m[1] : m[1] + 6].nan_to_num(9), after.nan_to_num(9))
        ]
        assert fits
        moves_found.add(fits[0])
    assert len(moves_found) > 5 and torch.equal(X.nan_to_num(), augment(Shift(0), X).nan_to_num())


def test_noise_has_its_standard_deviation() -> None:
    """Noise has the requested deviation and depends on the seed."""
    X = torch.zeros(2000, 8)
    noisy = augment(Noise(0.3), X)
    assert abs(float(noisy.std()) - 0.3) < 0.01 and not torch.equal(noisy, augment(Noise(0.3), X, seed=2))


class FixedRows(Dataset):  # type: ignore[type-arg]
    """A Dataset whose rows do not change."""

    def __init__(self) -> None:
        self.rows = torch.rand(22, 4)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.rows[i], i % 2


def test_augmentations_are_the_same_in_both_sources() -> None:
    """Augmenting whole chunks in memory or batch by batch gives the same bits."""
    dataset = FixedRows()
    split = seal({"train": dataset, "val": dataset, "test": dataset}, "binary").train
    order, options = (lambda epoch: np.arange(22)), {"seed": 5, "batch": 3, "accumulate": 2, "device": CPU}
    inputs = []
    for rows in (split, Split("train", split.X, split.y)):
        source = batch_source(rows, order, augment=[Noise(0.1)], **options)
        inputs.append(torch.cat([batch.inputs for group in source.accumulation_groups(4) for batch in group]))
        source.close()
    assert split.dataset is not None and not torch.equal(inputs[0], split.X) and torch.equal(*inputs)


def build(*nodes: Any, trust: Any = ()) -> Any:
    return build_augmentations({"loader": {"augment": list(nodes)}}, trust)


def test_build_augmentations_keeps_the_order_of_the_config() -> None:
    """Augmentations are built in order; without any the result is empty."""
    augmentations = build(
        {"_target_": "pipeline.data.augmentations.Shift", "pixels": 2}, {"_target_": "pipeline.data.augmentations.Flip"}
    )
    assert (Shift(2), Flip(0.5)) == augmentations and () == build() == build_augmentations({"loader": {}})


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "pipeline.data.augmentations.Shift"}, r"loader\.augment\[0\]: .*Shift needs pixels"),
        ({"_target_": "pipeline.data.augmentations.Flop"}, r"did you mean 'Flip'"),
        ({"_target_": "pipeline.data.augmentations.Flip", "probability": 2}, "is out of range, got 2"),
        ({"_target_": "os.system", "command": "x"}, r"loader\.augment\[0\]\._target_: is not allowed"),
        ({"_target_": "pipeline.data.digits.digits"}, r"loader\.augment\[0\]: is not an augmentation"),
    ],
)
def test_build_augmentations_refuses_what_cannot_be_build(node: dict[str, Any], message: str) -> None:
    """The message names the position in the list."""
    with pytest.raises(UserError, match=message):
        build(node)


def drop_rows(inputs: Any, draws: Draws) -> Any:
    return inputs[::2]


def fail(inputs: Any, draws: Draws) -> Any:
    raise KeyError("image")


@pytest.mark.parametrize(
    ("how", "X", "message"),
    [
        (Flip(), torch.zeros(3, 4), r"Flip does not fit, got 'one Tensor of shape \(3, 4\)'; expected images"),
        (Noise(1), {"a": torch.zeros(3)}, "Noise does not fit, got 'dict'"),
        (drop_rows, torch.zeros(4, 1), r"loader\.augment\[0\]: changes the number of rows, got '2 rows of 4'"),
        (fail, torch.zeros(4, 1), rf"loader\.augment\[0\]: fails at {__file__}:\d+ \(KeyError"),
    ],
)
def test_apply_augmentations_names_the_one_that_fails(how: Any, X: Any, message: str) -> None:
    """The message names the augmentation, and the file and line of the user's code."""
    with pytest.raises(UserError, match=message):
        augment(how, X)
