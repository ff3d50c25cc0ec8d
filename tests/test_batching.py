"""Batch sources: batches are a pure function of (seed, epoch), whatever process reads the rows."""

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

from pipeline.batching.dataset_source import DatasetSource
from pipeline.batching.in_memory_source import InMemorySource
from pipeline.batching.order import balanced_order, epoch_order
from pipeline.batching.source import Batch, BatchSource, batch_source
from pipeline.data import tree
from pipeline.data.augmentations import Noise
from pipeline.data.load import seal
from pipeline.data.splits import Split
from pipeline.errors import FivegateError, UserError

CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose


def numbered_split(rows: int, nested: bool = False) -> Split:
    """Row i holds i, and so does its target."""
    X = torch.arange(rows * 3, dtype=torch.float32).view(rows, 3)
    return Split("train", {"a": X, "b": (X[:, :1].long(),)} if nested else X, torch.arange(rows))


class RandomRows(Dataset):  # type: ignore[type-arg]
    """A user's Dataset whose rows change at random, with draws from Python, torch and NumPy."""

    def __init__(self, rows: int = 22) -> None:
        self.rows = torch.rand(rows, 4)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        return self.rows[i] + random.random() + torch.rand(4) + torch.tensor(np.random.normal(size=4)), i % 2


def read_split(dataset: Any) -> Split:
    return seal({"train": dataset, "val": dataset, "test": dataset}, "binary").train


@pytest.fixture
def make_source() -> Iterator[Any]:
    """A function that makes the source of a split, batches of 3 rows in groups of 2; it is closed after the test."""
    sources: list[BatchSource] = []

    def make(split: Split, **changes: Any) -> BatchSource:
        options: dict[str, Any] = {"seed": 5, "batch": 3, "accumulate": 2, "device": CPU, **changes}
        order = options.pop("order", lambda epoch: epoch_order(5, epoch, len(split)))
        sources.append(batch_source(split, order, **options))
        return sources[-1]

    yield make
    for source in sources:
        source.close()


def contents(groups: Any) -> list[Any]:
    """Everything in the batches of these groups, comparable with ==."""

    def plain(part: Any) -> Any:
        return [(leaf.dtype, leaf.tolist()) for leaf in tree.leaves(part)]

    return [[(plain(b.inputs), plain(b.targets), b.rows.tolist()) for b in group] for group in groups]


# --- order -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**63 - 1), st.integers(1, 500), st.integers(0, 300))
def test_epoch_order_is_a_permutation_that_repeats(seed: int, epoch: int, n: int) -> None:
    """Every row occurs once, and the same seed and epoch give the same order."""
    order = epoch_order(seed, epoch, n)
    assert np.array_equal(np.arange(n), np.sort(order)) and np.array_equal(order, epoch_order(seed, epoch, n))


def test_epoch_order_never_changes_between_versions() -> None:
    """This version and every later one must give this order for this seed and epoch."""
    assert [1, 3, 5, 0, 2, 4] == epoch_order(1, 1, 6).tolist()
    assert not np.array_equal(epoch_order(1, 1, 50), epoch_order(1, 2, 50))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.integers(0, 9))
def test_balanced_order_draws_every_class_equally(labels: list[int], seed: int) -> None:
    """Class counts differ by at most one, and so do the repeats of the rows of a class."""
    y = np.array(labels)
    order = balanced_order(seed, 1, y)
    counts = np.unique(y[order], return_counts=True)[1]
    assert len(order) == len(y) and counts.max() - counts.min() <= 1
    assert all(np.ptp(np.bincount(order, minlength=len(y))[y == c]) <= 1 for c in set(labels))


# --- rows in memory --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_in_memory_source_gives_every_row_once_in_order(n: int, batch: int, accumulate: int, nested: bool) -> None:
    """All batches and groups but the last are full, no row is dropped, and every tensor belongs to its row."""
    order = epoch_order(1, 1, n)
    split = numbered_split(n, nested)
    source = batch_source(split, lambda epoch: order, seed=0, batch=batch, accumulate=accumulate, device=CPU)
    groups = list(source.accumulation_groups(1))
    assert order.tolist() == [row for group in groups for b in group for row in b.rows]
    assert math.ceil(n / (batch * accumulate)) == len(groups)
    assert all(len(group) == accumulate for group in groups[:-1])
    for b in (b for group in groups for b in group):
        firsts = [leaf[:, 0] * (3 if leaf.shape[1] == 0 else 1) for leaf in tree.leaves(b.inputs)]
        assert all((b.rows * 3).tolist() == first.tolist() for first in firsts)
        assert b.rows.tolist() == b.targets.tolist() and len(b) == len(b.rows) <= batch


@pytest.mark.parametrize("skip", [0, 1, 4, 7, 8, 9])
@pytest.mark.parametrize("bytes_", [1, 200, 1 << 28])
def test_in_memory_source_skips_without_changing_the_rest(
    make_source: Any, monkeypatch: Any, skip: int, bytes_: int
) -> None:
    """Chunk size does not matter, and the views keep their memory alignment."""
    monkeypatch.setattr("pipeline.batching.in_memory_source.CHUNK_BYTES", bytes_)
    source = make_source(numbered_split(50), augment=[Noise(0.5)])
    whole, tail = list(source.accumulation_groups(3)), list(source.accumulation_groups(3, skip))
    assert 9 == len(whole) and contents(whole[skip:]) == contents(tail)
    offsets = [[b.inputs.storage_offset() for group in part for b in group] for part in (whole[skip:], tail)]
    assert offsets[0] == offsets[1]


def test_in_memory_source_does_not_depend_on_chunk_size(make_source: Any, monkeypatch: Any) -> None:
    """Data too large to be gathered at once give the same batches."""
    whole = contents(make_source(numbered_split(50, nested=True)).accumulation_groups(2))
    monkeypatch.setattr("pipeline.batching.in_memory_source.CHUNK_BYTES", 200)
    assert whole == contents(make_source(numbered_split(50, nested=True)).accumulation_groups(2))


def test_in_memory_source_takes_orders_that_repeat_rows(make_source: Any) -> None:
    """An order may repeat rows, as in balanced sampling; `targets` is called once with all targets."""
    calls = []

    def targets(y: torch.Tensor) -> torch.Tensor:
        calls.append(len(y))
        return y.float()[:, None]

    source = make_source(numbered_split(4), order=lambda epoch: np.tile(np.arange(4), 3), targets=targets)
    batches = [b for _ in range(2) for group in source.accumulation_groups(1) for b in group]
    assert [4] == calls and [0, 1, 2] == batches[0].rows.tolist() and [3, 0, 1] == batches[1].rows.tolist()
    assert (torch.float32, (3, 1)) == (batches[0].targets.dtype, tuple(batches[0].targets.shape))


def test_batch_is_cheap_to_make() -> None:
    """Making a batch takes microseconds, since a training step may take only 0.2 ms."""
    rows = np.arange(3)
    start = time.perf_counter()
    for _ in range(20_000):
        Batch(rows, rows, rows)
    assert (time.perf_counter() - start) / 20_000 < 5e-6  # wide, for a busy machine


# --- rows read from a Dataset -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_rows() -> tuple[Split, list[Any]]:
    """A split of random rows, and three epochs of it read in this process."""
    split = read_split(RandomRows())
    source = batch_source(
        split, lambda e: epoch_order(5, e, 22), seed=5, batch=3, accumulate=2, device=CPU, augment=[Noise(1)]
    )
    return split, [contents(source.accumulation_groups(epoch)) for epoch in (1, 2, 3)]


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_dataset_source_does_not_depend_on_workers(
    make_source: Any, random_rows: tuple[Split, list[Any]], workers: int
) -> None:
    """Random rows are equal for any number of workers, from any position, and after an epoch that was left early."""
    split, expected = random_rows
    source = make_source(split, workers=workers, augment=[Noise(1)])
    source.start()
    torch.rand(3), random.random(), np.random.rand()
    assert expected[0] == contents(source.accumulation_groups(1)) and expected[1] == contents(
        source.accumulation_groups(2)
    )
    assert expected[2][1:] == contents(source.accumulation_groups(3, skip=1))
    unfinished = source.accumulation_groups(1)
    next(unfinished)
    assert expected[1][2:] == contents(source.accumulation_groups(2, skip=2)) and [] == contents(
        source.accumulation_groups(2, skip=4)
    )


def test_dataset_source_draws_anew_for_every_epoch_and_seed(random_rows: tuple[Split, list[Any]]) -> None:
    """A random transformation of a row differs between epochs and between seeds."""
    split, _ = random_rows

    def row(seed: int, epoch: int) -> list[float]:
        source = batch_source(split, lambda e: np.arange(3), seed=seed, batch=3, accumulate=1, device=CPU)
        return next(source.accumulation_groups(epoch))[0].inputs.flatten().tolist()

    assert row(1, 1) == row(1, 1) and row(1, 1) != row(1, 2) and row(1, 1) != row(2, 1)


def test_dataset_source_restores_global_generators(make_source: Any, random_rows: tuple[Split, list[Any]]) -> None:
    """Reading rows in this process does not change what it draws next."""
    states = []
    for _ in range(2):
        states.append((random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()))  # type: ignore[index, union-attr]
        next(make_source(random_rows[0]).accumulation_groups(1))
    assert states[0] == states[1]


def alive(processes: list[Any]) -> list[int]:
    return [p.pid for p in processes if p.is_alive() or Path(f"/proc/{p.pid}").exists()]


def test_dataset_source_workers_live_from_start_to_close(
    make_source: Any, random_rows: tuple[Split, list[Any]]
) -> None:
    """Workers are forked once, ignore the signals of the training process, and are gone after close."""
    source = make_source(random_rows[0], workers=2)
    former = signal.getsignal(signal.SIGCHLD)
    source.start()
    workers = list(source._workers)
    assert 2 == len(alive(workers)) and former is signal.getsignal(signal.SIGCHLD)
    first = contents(source.accumulation_groups(1))
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(worker.pid, number)
    source.start()
    assert workers == source._workers and first == contents(source.accumulation_groups(1)) and 2 == len(alive(workers))
    source.close(), source.close()
    assert [] == alive(workers)


class HangsInWorkers(RandomRows):
    def __getitem__(self, i: int) -> Any:
        return super().__getitem__(i) if os.getpid() == MAIN else time.sleep(600)


MAIN = os.getpid()


@pytest.mark.slow
def test_dataset_source_close_ends_a_worker_that_hangs(make_source: Any) -> None:
    """A row that never returns does not keep the process from ending."""
    source = make_source(read_split(HangsInWorkers()), workers=1)
    source.start()
    workers = list(source._workers)
    source.close()
    assert [] == alive(workers)


class BrokenRow(RandomRows):
    """Row 17 cannot be read, or is `replacement`, once training has begun."""

    training = False
    replacement: Any = None

    def __getitem__(self, i: int) -> Any:
        if i == 17 and self.training:
            if self.replacement is None:
                raise ValueError("bad row")
            return self.replacement
        return super().__getitem__(i)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        (None, rf"^data\.train\[17\]: cannot be read at {__file__}:\d+ \(ValueError: bad row\)$"),
        ((torch.zeros(9), 1), r"^data\.train\[17\]: items differ in shape, got '\(9,\) and \(\)'; expected \(4,\) and"),
        (torch.zeros(4), r"^data\.train\[17\]: is not a pair, got 'one Tensor"),
        ((torch.zeros(4), 0.5), r"^data\.train\[17\]: the target is not a class id, got 0\.5"),
        ((np.array(["a"] * 4), 1), r"^data\.train\[17\]: has values that are not numbers, got 'dtype <U1'"),
    ],
)
def test_dataset_source_names_a_bad_row(make_source: Any, replacement: Any, message: str, workers: int) -> None:
    """The message is the same with and without workers, and the batches before that row are given."""
    dataset = BrokenRow()
    split = read_split(dataset)
    dataset.training, dataset.replacement = True, replacement
    source = make_source(split, order=lambda epoch: np.arange(22), workers=workers)
    groups = source.accumulation_groups(1)
    assert [0, 1, 2] == next(groups)[0].rows.tolist()
    with pytest.raises(UserError, match=message):
        list(groups)


@pytest.mark.parametrize("number", [signal.SIGKILL])
def test_dataset_source_reports_a_killed_worker(make_source: Any, random_rows: Any, number: int) -> None:
    """The error is raised when rows are read, and names the signal."""
    source = make_source(random_rows[0], workers=2, order=lambda epoch: np.tile(np.arange(22), 9))
    groups = source.accumulation_groups(1)
    next(groups)
    for worker in source._workers:
        os.kill(worker.pid, number)
    time.sleep(0.2)  # no handler raises here
    with pytest.raises(
        FivegateError, match=r"^loader\.num_workers: a process that reads the data died, got 'signal 9'"
    ):
        list(groups)
    source.close()
    assert [] == alive(source._workers)


SCRIPT = """
import os, signal, sys, numpy as np, torch
sys.path.append({folder!r})
from test_batching import RandomRows, read_split
from pipeline.batching.source import batch_source
order = lambda epoch: np.arange(22)
cpu = torch.device("cpu")
source = batch_source(read_split(RandomRows()), order, seed=0, batch=4, accumulate=1, device=cpu, workers=2)
source.start(), next(source.accumulation_groups(1))
print(*[worker.pid for worker in source._workers], flush=True)
{how}
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("how", "code"),
    [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", -9)],
)
def test_dataset_source_workers_end_with_the_training_process(how: str, code: int) -> None:
    """Workers end however it ends, without `close`; the pipe that they inherited closes with the last one."""
    script = SCRIPT.format(folder=str(Path(__file__).parent), how=how)
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, text=True)
    assert code == process.returncode and 2 == len(process.stdout.split()), process.stderr


class NestedRows(Dataset):  # type: ignore[type-arg]
    """Nested rows whose parts come in random order."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, i: int) -> Any:
        parts = [("ids", [i, i]), ("more", (float(i), np.array([i > 2])))]
        random.shuffle(parts)
        return dict(parts), i % 2


@pytest.mark.parametrize("workers", [0, 2])
def test_both_sources_give_nested_rows_alike(make_source: Any, workers: int) -> None:
    """Both sources give the structure and types of the split."""
    split = read_split(NestedRows())
    order = {"order": lambda epoch: np.arange(7)}
    stacked, read = (make_source(s, **order, workers=workers) for s in (Split("train", split.X, split.y), split))
    assert isinstance(stacked, InMemorySource) and isinstance(read, DatasetSource)
    assert contents(stacked.accumulation_groups(1)) == contents(read.accumulation_groups(1))
