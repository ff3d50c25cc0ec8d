"""Feed: what a model sees of its rows is a pure function of (seed, epoch), whoever reads them and wherever they lie."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from pipeline.batching.augment import augmented, build_augmentations
from pipeline.batching.dataset_source import DatasetSource
from pipeline.batching.in_memory_source import InMemorySource
from pipeline.batching.order import balanced_order, epoch_order
from pipeline.batching.source import Batch, BatchSource, batch_source
from pipeline.data import tree
from pipeline.data.augmentations import Flip, Noise, Shift
from pipeline.data.draws import Draws
from pipeline.data.load import seal
from pipeline.data.splits import Split
from pipeline.errors import FivegateError, UserError

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose


def numbers(rows: int, nested: bool = False) -> Split:
    """Row i holds i, and so does its target."""
    X = torch.arange(rows * 3, dtype=torch.float32).view(rows, 3)
    return Split("train", {"a": X, "b": (X[:, :1].long(),)} if nested else X, torch.arange(rows))


class Shaky(Dataset):  # type: ignore[type-arg]
    """A user's Dataset whose rows are changed by chance, with every generator there is."""

    def __init__(self, rows: int = 22) -> None:
        self.rows = torch.rand(rows, 4)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.rows[i] + random.random() + torch.rand(4) + torch.tensor(np.random.normal(size=4)), i % 2


def read_split(dataset: Any) -> Split:
    return seal({"train": dataset, "val": dataset, "test": dataset}, "binary").train


@pytest.fixture
def feed() -> Iterator[Any]:
    """Makes feeds of a split, seven rows in batches of two windows of three, and ends them after the test."""
    made: list[BatchSource] = []

    def make(split: Split, **changed: Any) -> BatchSource:
        options: dict[str, Any] = {"seed": 5, "batch": 3, "accumulate": 2, "device": CPU, **changed}
        order = options.pop("order", lambda epoch: epoch_order(5, epoch, len(split)))
        made.append(batch_source(split, order, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def said(windows: Any) -> list[Any]:
    """Everything in windows, comparable with ==."""

    def plain(part: Any) -> Any:
        return [(leaf.dtype, leaf.tolist()) for leaf in tree.leaves(part)]

    return [[(plain(b.inputs), plain(b.targets), b.rows.tolist()) for b in window] for window in windows]


# --- order -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**63 - 1), st.integers(1, 500), st.integers(0, 300))
def test_an_epochs_order_is_a_pure_permutation(seed: int, epoch: int, n: int) -> None:
    """Every row once, and the same order for the same seed and epoch."""
    order = epoch_order(seed, epoch, n)
    assert np.array_equal(np.arange(n), np.sort(order)) and np.array_equal(order, epoch_order(seed, epoch, n))


def test_order_is_frozen_for_ever() -> None:
    """The order of a known seed and epoch, as this version and every later one must give it."""
    assert [1, 3, 5, 0, 2, 4] == epoch_order(1, 1, 6).tolist()
    assert not np.array_equal(epoch_order(1, 1, 50), epoch_order(1, 2, 50))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.integers(0, 9))
def test_a_balanced_order_draws_every_class_equally(labels: list[int], seed: int) -> None:
    """Class counts differ by one at most, and rows of a class by one as well."""
    y = np.array(labels)
    order = balanced_order(seed, 1, y)
    counts = np.unique(y[order], return_counts=True)[1]
    assert len(order) == len(y) and counts.max() - counts.min() <= 1
    assert all(np.ptp(np.bincount(order, minlength=len(y))[y == c]) <= 1 for c in set(labels))


# --- rows in memory --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_windows_hold_every_row_once_in_order(n: int, batch: int, accumulate: int, nested: bool) -> None:
    """Batches and windows are full but for the last, nothing is dropped, and every part is of its row."""
    order = epoch_order(1, 1, n)
    made = batch_source(numbers(n, nested), lambda epoch: order, seed=0, batch=batch, accumulate=accumulate, device=CPU)
    windows = list(made.windows(1))
    assert order.tolist() == [row for window in windows for b in window for row in b.rows]
    assert math.ceil(n / (batch * accumulate)) == len(windows)
    assert all(len(window) == accumulate for window in windows[:-1])
    for b in (b for window in windows for b in window):
        firsts = [leaf[:, 0] * (3 if leaf.shape[1] == 0 else 1) for leaf in tree.leaves(b.inputs)]
        assert all((b.rows * 3).tolist() == first.tolist() for first in firsts)
        assert b.rows.tolist() == b.targets.tolist() and len(b) == len(b.rows) <= batch


@pytest.mark.parametrize("skip", [0, 1, 4, 7, 8, 9])
@pytest.mark.parametrize("bytes_", [1, 200, 1 << 28])
def test_a_resumed_epoch_is_the_tail_of_the_whole(feed: Any, monkeypatch: Any, skip: int, bytes_: int) -> None:
    """Also where the epoch is gathered in chunks, and then the views lie as they did in memory."""
    monkeypatch.setattr("pipeline.batching.in_memory_source.CHUNK_BYTES", bytes_)
    made = feed(numbers(50), augment=[Noise(0.5)])
    whole, tail = list(made.windows(3)), list(made.windows(3, skip))
    assert 9 == len(whole) and said(whole[skip:]) == said(tail)
    offsets = [[b.inputs.storage_offset() for window in part for b in window] for part in (whole[skip:], tail)]
    assert offsets[0] == offsets[1]


def test_the_size_of_a_chunk_changes_no_number(feed: Any, monkeypatch: Any) -> None:
    """Data too large to be gathered at once give the same batches."""
    whole = said(feed(numbers(50, nested=True)).windows(2))
    monkeypatch.setattr("pipeline.batching.in_memory_source.CHUNK_BYTES", 200)
    assert whole == said(feed(numbers(50, nested=True)).windows(2))


def test_an_order_may_repeat_rows_and_targets_are_changed_once(feed: Any) -> None:
    """Balanced sampling and the proof of one batch repeat rows; `targets` sees all of them at once."""
    calls = []

    def targets(y: torch.Tensor) -> torch.Tensor:
        calls.append(len(y))
        return y.float()[:, None]

    made = feed(numbers(4), order=lambda epoch: np.tile(np.arange(4), 3), targets=targets)
    batches = [b for _ in range(2) for window in made.windows(1) for b in window]
    assert [4] == calls and [0, 1, 2] == batches[0].rows.tolist() and [3, 0, 1] == batches[1].rows.tolist()
    assert (torch.float32, (3, 1)) == (batches[0].targets.dtype, tuple(batches[0].targets.shape))


def test_a_batch_is_cheap() -> None:
    """A step of 0.2 ms pays a microsecond at most for the object that it is handed."""
    rows = np.arange(3)
    start = time.perf_counter()
    for _ in range(20_000):
        Batch(rows, rows, rows)
    assert (time.perf_counter() - start) / 20_000 < 5e-6  # wide, for a busy machine


# --- rows read anew --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed() -> tuple[Split, list[Any]]:
    """A split of shaky rows, and three epochs of it read in this process."""
    split = read_split(Shaky())
    made = batch_source(
        split, lambda e: epoch_order(5, e, 22), seed=5, batch=3, accumulate=2, device=CPU, augment=[Noise(1)]
    )
    return split, [said(made.windows(epoch)) for epoch in (1, 2, 3)]


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_who_reads_changes_nothing(feed: Any, undisturbed: tuple[Split, list[Any]], workers: int) -> None:
    """Random rows are equal for any number of workers, from any position on, and after epochs that were left early."""
    split, expected = undisturbed
    made = feed(split, workers=workers, augment=[Noise(1)])
    made.start()
    torch.rand(3), random.random(), np.random.rand()
    assert expected[0] == said(made.windows(1)) and expected[1] == said(made.windows(2))
    assert expected[2][1:] == said(made.windows(3, skip=1))
    left = made.windows(1)
    next(left)
    assert expected[1][2:] == said(made.windows(2, skip=2)) and [] == said(made.windows(2, skip=4))


def test_rows_differ_between_epochs_and_seeds(undisturbed: tuple[Split, list[Any]]) -> None:
    """A random transformation is another one in every epoch, and for every seed."""
    split, _ = undisturbed

    def row(seed: int, epoch: int) -> list[float]:
        made = batch_source(split, lambda e: np.arange(3), seed=seed, batch=3, accumulate=1, device=CPU)
        return next(made.windows(epoch))[0].inputs.flatten().tolist()

    assert row(1, 1) == row(1, 1) and row(1, 1) != row(1, 2) and row(1, 1) != row(2, 1)


def test_reading_draws_from_nobodys_generator(feed: Any, undisturbed: tuple[Split, list[Any]]) -> None:
    """What the process would draw next is the same before and after rows were read in it."""
    states = []
    for _ in range(2):
        states.append((random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()))  # type: ignore[index, union-attr]
        next(feed(undisturbed[0]).windows(1))
    assert states[0] == states[1]


def alive(processes: list[Any]) -> list[int]:
    return [p.pid for p in processes if p.is_alive() or Path(f"/proc/{p.pid}").exists()]


def test_workers_live_from_start_to_close(feed: Any, undisturbed: tuple[Split, list[Any]]) -> None:
    """They are forked once, take no signal that is meant for the training, and none is left."""
    made = feed(undisturbed[0], workers=2)
    former = signal.getsignal(signal.SIGCHLD)
    made.start()
    workers = list(made._processes)
    assert 2 == len(alive(workers)) and former is signal.getsignal(signal.SIGCHLD)
    first = said(made.windows(1))
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker.pid, number)
    made.start()
    assert workers == made._processes and first == said(made.windows(1)) and 2 == len(alive(workers))
    made.close(), made.close()
    assert [] == alive(workers)


class Slow(Shaky):
    def __getitem__(self, i: int) -> Any:
        return super().__getitem__(i) if os.getpid() == MAIN else time.sleep(600)


MAIN = os.getpid()


@pytest.mark.slow
def test_a_worker_that_hangs_is_ended(feed: Any) -> None:
    """A row that takes for ever does not keep the process from ending."""
    made = feed(read_split(Slow()), workers=1)
    made.start()
    workers = list(made._processes)
    made.close()
    assert [] == alive(workers)


class Broken(Shaky):
    """Row 17 cannot be read once training begins; other rows may turn out odd."""

    training = False
    odd: Any = None

    def __getitem__(self, i: int) -> Any:
        if i == 17 and self.training:
            if self.odd is None:
                raise ValueError("bad row")
            return self.odd
        return super().__getitem__(i)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (None, rf"^data\.train\[17\]: cannot be read \(ValueError: bad row\) at {__file__}:\d+$"),
        ((torch.zeros(9), 1), r"^data\.train\[17\]: items differ in shape, got '\(9,\) and \(\)'; expected \(4,\) and"),
        (torch.zeros(4), r"^data\.train\[17\]: is no pair, got 'one Tensor"),
        ((torch.zeros(4), 0.5), r"^data\.train\[17\]: the target is no class id, got 0\.5"),
        ((np.array(["a"] * 4), 1), r"^data\.train\[17\]: holds no numbers, got 'dtype <U1'"),
    ],
)
def test_a_bad_row_is_one_message(feed: Any, odd: Any, message: str, workers: int) -> None:
    """Whether this process reads it or a worker; the rows before it are trained on."""
    dataset = Broken()
    split = read_split(dataset)
    dataset.training, dataset.odd = True, odd
    made = feed(split, order=lambda epoch: np.arange(22), workers=workers)
    windows = made.windows(1)
    assert [0, 1, 2] == next(windows)[0].rows.tolist()
    with pytest.raises(UserError, match=message):
        list(windows)


@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_a_worker_that_is_killed_is_one_message(feed: Any, undisturbed: Any, number: int) -> None:
    """It interrupts nothing but the reading of rows, and says what ended it."""
    made = feed(undisturbed[0], workers=2, order=lambda epoch: np.tile(np.arange(22), 9))
    windows = made.windows(1)
    next(windows)
    for worker in made._processes:
        os.kill(worker.pid, number)
    time.sleep(0.2)  # no handler raises here
    with pytest.raises(
        FivegateError, match=r"^loader\.num_workers: a process that reads the data died, got 'signal 9'"
    ):
        list(windows)
    made.close()
    assert [] == alive(made._processes)


ENDS = """
import os, signal, sys, numpy as np, torch
sys.path.append({folder!r})
from test_feed import Shaky, read_split
from pipeline.batching.source import feed_of
order = lambda epoch: np.arange(22)
feed = feed_of(read_split(Shaky()), order, seed=0, batch=4, accumulate=1, device=torch.device("cpu"), workers=2)
feed.start(), next(feed.windows(1))
print(*[worker.pid for worker in feed._processes], flush=True)
{how}
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("how", "code"),
    [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -9)],
)
def test_no_worker_outlives_the_process_that_trains(how: str, code: int) -> None:
    """However it ends, and without `close`: the pipe that workers inherited is at its end when the last one is gone."""
    script = ENDS.format(folder=str(Path(__file__).parent), how=how)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, text=True)
    assert code == done.returncode and 2 == len(done.stdout.split()), done.stderr


class Named(Dataset):  # type: ignore[type-arg]
    """Nested rows whose parts come in any order."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> Any:
        parts = [("ids", [i, i]), ("more", (float(i), np.array([i > 2])))]
        random.shuffle(parts)
        return dict(parts), i % 2


@pytest.mark.parametrize("workers", [0, 2])
def test_nested_rows_are_read_as_they_were_stacked(feed: Any, workers: int) -> None:
    """The same structure and types as the split has, on both ways."""
    split = read_split(Named())
    order = {"order": lambda epoch: np.arange(7)}
    stacked, read = (feed(s, **order, workers=workers) for s in (Split("train", split.X, split.y), split))
    assert isinstance(stacked, InMemorySource) and isinstance(read, DatasetSource)
    assert said(stacked.windows(1)) == said(read.windows(1))


# --- augmentation ----------------------------------------------------------------------------------------------------


def draws(rows: Any, seed: int = 1, epoch: int = 1) -> Draws:
    return Draws(seed, epoch, np.asarray(rows), CPU)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(1, 40), st.integers(0, 2**63 - 1))
def test_a_rows_numbers_do_not_depend_on_its_neighbours(rows: list[int], count: int, seed: int) -> None:
    """Alone or in any company, in any block: the numbers of a row are its own."""
    together = draws(rows, seed)
    several = together.uniform(count), together.normal(count, 2), together.uniform()
    for i, row in enumerate(rows):
        alone = draws([row], seed)
        for part, own in zip(several, (alone.uniform(count), alone.normal(count, 2), alone.uniform()), strict=True):
            assert torch.equal(part[i], own[0])


def test_blocks_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many numbers are hashed at once is a matter of speed."""
    whole = draws(range(50)).normal(3, 7)
    monkeypatch.setitem(__import__("pipeline.data.draws", fromlist=["BLOCK"]).BLOCK, "cpu", 10)
    assert torch.equal(whole, draws(range(50)).normal(3, 7))


def test_draws_are_frozen_for_ever() -> None:
    """The numbers of known rows, as this version and every later one must give them on every device."""
    made = draws([0, 1, 10**12], seed=7, epoch=3)
    assert UNIFORM == (made.uniform(2) * 2**24).long().tolist()
    assert NORMAL == [round(x, 6) for x in made.normal().tolist()]


UNIFORM = [[5021449, 12407357], [6497892, 671225], [10963493, 12995608]]  # also computed in plain Python
NORMAL = [-1.32004, 0.703454, 0.593916]


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_draws_are_random(kind: str) -> None:
    """Moments are right, and neighbours in rows, draws, epochs and seeds share nothing."""
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


def change(how: Any, X: Any, seed: int = 1) -> Any:
    return augmented(X, [how], seed, 1, np.arange(tree.rows_of(X)), CPU)


def test_flip_mirrors_some_images() -> None:
    """Each image is mirrored whole or not at all; never and always are meant."""
    X = images(40)
    flipped = change(Flip(0.5), X)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, X, strict=True)]
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, flipped, X, strict=True)) and 8 < sum(mirrored) < 32
    assert torch.equal(X, change(Flip(0.0), X)) and torch.equal(X.flip(-1), change(Flip(1.0), X))


@pytest.mark.parametrize("shape", [(30, 2, 5, 6), (30, 5, 6)])
def test_shift_moves_images_and_lets_zeros_in(shape: tuple[int, ...]) -> None:
    """Each result is the image moved by one pair of steps, all of which occur, NaN and all."""
    X = torch.rand(shape) + 1
    X[0, ..., 0, 0] = torch.nan
    padded = torch.nn.functional.pad(X, (1, 1, 1, 1))
    moves = [(dy, dx) for dy in range(3) for dx in range(3)]
    seen = set()
    for before, after in zip(padded, change(Shift(1), X), strict=True):
        fits = [
            m
            for m in moves
            if torch.equal(before[..., m[0] : m[0] + 5, m[1] : m[1] + 6].nan_to_num(9), after.nan_to_num(9))
        ]
        assert fits
        seen.add(fits[0])
    assert len(seen) > 5 and torch.equal(X.nan_to_num(), change(Shift(0), X).nan_to_num())


def test_noise_has_its_deviation() -> None:
    """The noise of a row is its own, in memory and read."""
    X = torch.zeros(2000, 8)
    noisy = change(Noise(0.3), X)
    assert abs(float(noisy.std()) - 0.3) < 0.01 and not torch.equal(noisy, change(Noise(0.3), X, seed=2))


def test_augmentation_is_the_same_in_memory_and_read(feed: Any) -> None:
    """Whole chunks at once or batch by batch: the same bits."""

    class Plain(Shaky):
        def __getitem__(self, i: int) -> Any:
            return self.rows[i], i % 2

    split = read_split(Plain())
    both = (feed(s, augment=[Noise(0.1)]) for s in (split, Split("train", split.X, split.y)))
    assert 1 == len({str(said(made.windows(4))) for made in both})


def built(*nodes: Any, trust: Any = ()) -> Any:
    return build_augmentations({"loader": {"augment": list(nodes)}}, trust)


def test_augmentations_are_built_from_the_config() -> None:
    """In their order; without any there is nothing to do."""
    made = built(
        {"_target_": "pipeline.data.augmentations.Shift", "pixels": 2}, {"_target_": "pipeline.data.augmentations.Flip"}
    )
    assert (Shift(2), Flip(0.5)) == made and () == built() == build_augmentations({"loader": {}})


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "pipeline.data.augmentations.Shift"}, r"loader\.augment\[0\]: .*Shift needs pixels"),
        ({"_target_": "pipeline.data.augmentations.Flop"}, r"did you mean 'Flip'"),
        ({"_target_": "pipeline.data.augmentations.Flip", "probability": 2}, "is out of range, got 2"),
        ({"_target_": "os.system", "command": "x"}, r"loader\.augment\[0\]\._target_: is not allowed"),
        ({"_target_": "pipeline.data.digits.digits"}, r"loader\.augment\[0\]: is no augmentation"),
    ],
)
def test_what_cannot_be_built_is_refused(node: dict[str, Any], message: str) -> None:
    """A fault names its place in the list."""
    with pytest.raises(UserError, match=message):
        built(node)


def half(inputs: Any, draws: Draws) -> Any:
    return inputs[::2]


def breaks(inputs: Any, draws: Draws) -> Any:
    raise KeyError("image")


@pytest.mark.parametrize(
    ("how", "X", "message"),
    [
        (Flip(), torch.zeros(3, 4), r"Flip does not fit, got 'one Tensor of shape \(3, 4\)'; expected images"),
        (Noise(1), {"a": torch.zeros(3)}, "Noise does not fit, got 'dict'"),
        (half, torch.zeros(4, 1), r"loader\.augment\[0\]: changes the number of rows, got '2 rows of 4'"),
        (breaks, torch.zeros(4, 1), rf"loader\.augment\[0\]: fails at {__file__}:\d+ \(KeyError"),
    ],
)
def test_augmentations_that_do_not_fit_are_named(how: Any, X: Any, message: str) -> None:
    """One message, with the user's line where it is the user's code."""
    with pytest.raises(UserError, match=message):
        change(how, X)
