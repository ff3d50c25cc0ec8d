"""Items of a map-style Dataset, each read under its own seed: it does not depend on when or where it is read."""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from pipeline.data.source_data import Array, MapDataset
from pipeline.data.tree import Tree, named_leaves
from pipeline.error_attribution import is_users_fault, place_of_frame, user_code_error
from pipeline.errors import UserError, fault
from pipeline.runtime.seeds import derive
from pipeline.runtime.threads import running_on

PAIR = "a pair (X, y) of numeric arrays, or a map-style Dataset of such pairs"
ROWS_READ_AGAIN = 8
SLOW_ROW_S = 30.0  # after which a message names the row that is being read

_current: tuple[str, int, float] | None = None  # the row that this process reads, and since when
_told: tuple[str, int, float] | None = None  # the last one that a message named


@contextmanager
def isolated_reading() -> Iterator[None]:
    """Inside the block torch uses one thread, as in a worker process; afterwards all generators are restored."""
    python, numpy, state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with running_on(1):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(state)


def read_item(dataset: MapDataset, index: int, where: str, *, seed: int, epoch: int) -> tuple[Tree, Array]:
    """Item `index` as (inputs, target), both arrays; inputs may be nested.

    The generators of Python, NumPy and torch start from (seed, "item", epoch, index). Call it inside
    `isolated_reading()`. Raises UserError naming the row if it cannot be read or is not a pair.
    """
    global _current
    draw = derive(seed, "item", epoch, index)
    # The user's transforms may use any of the three generators.
    random.seed(draw)
    np.random.seed(draw % 2**32)
    torch.default_generator.manual_seed(draw)
    _current = where, index, time.monotonic()
    try:
        item = dataset[index]
        pair = isinstance(item, tuple | list) and len(item) == 2
        arrays = (_arrays(item[0]), _array(item[1])) if pair else None
    except BaseException as error:  # the user's code may fail in any way
        if not is_users_fault(error):
            raise
        raise user_code_error(f"{where}[{index}]", error, "cannot be read") from error
    finally:
        _current = None
    if arrays is None:
        raise UserError(fault(f"{where}[{index}]", "is not a pair", got=describe(item), expected=PAIR))
    return arrays


def tell_slow_row() -> None:
    """Write one line to stderr if the row that this process is reading takes long, with the user's line it is at."""
    global _told
    row = _current
    if row is None or row is _told or time.monotonic() - row[2] < SLOW_ROW_S:
        return
    _told = row
    where, index, _ = row
    place = place_of_frame(sys._current_frames().get(threading.main_thread().ident or 0))
    at = f", at {place}" if place else ""
    what = f"this row has been read for {SLOW_ROW_S:g} s and is not there yet{at}"
    sys.stderr.write(fault(f"{where}[{index}]", what, do="wait, or press Ctrl-C twice") + "\n")
    sys.stderr.flush()


@contextmanager
def slow_rows_told() -> Iterator[None]:
    """Name a row that takes long while the block reads rows in this process.

    The thread ends with the block: processes that are forked later should find none.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(min(1.0, SLOW_ROW_S)):
            tell_slow_row()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def is_augmented(dataset: MapDataset, where: str, seed: int) -> bool:
    """Whether one of a few rows has other inputs in another epoch. Raises UserError if one cannot be read again."""
    indices = np.unique(np.linspace(0, len(dataset) - 1, num=min(ROWS_READ_AGAIN, len(dataset)), dtype=int)).tolist()
    with isolated_reading():
        for i in indices:
            first, second = (named_leaves(read_item(dataset, i, where, seed=seed, epoch=e)[0]) for e in (0, 1))
            if any(not np.array_equal(first[name], second[name], equal_nan=True) for name in first):
                return True
    return False


def describe(value: object) -> str:
    """The type and shape or length of a value, for a message."""
    if isinstance(value, Tensor | np.ndarray):
        return f"one {type(value).__name__} of shape {tuple(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__


def check_same_shapes(row: Sequence[Tree], shapes: Sequence[Mapping[str, tuple[int, ...]]], where: str) -> None:
    """Raises UserError if inputs and target of a row do not have the shapes of the first row."""
    row_shapes = leaf_shapes(row)
    if list(row_shapes) != list(shapes):
        got, expected = _format_shapes(row_shapes), _format_shapes(shapes)
        expected = f"{expected} as in the first item"
        raise UserError(fault(where, "items differ in shape", got=got, expected=expected))


def leaf_shapes(row: Sequence[Tree], skip: int = 0) -> list[dict[str, tuple[int, ...]]]:
    """The shapes of inputs and target by name, without their first `skip` axes."""
    return [{name: tuple(leaf.shape[skip:]) for name, leaf in named_leaves(part).items()} for part in row]


def _format_shapes(shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> str:
    parts = [", ".join(f"{name} {shape}" if name else str(shape) for name, shape in part.items()) for part in shapes]
    return " and ".join(parts)


def stack_rows(rows: Sequence[Tree]) -> Tree:
    """Rows with one structure and shape as one tree of arrays [N, ...]."""
    first = rows[0]
    if isinstance(first, dict):
        return {name: stack_rows([row[name] for row in rows]) for name in first}
    if isinstance(first, tuple):
        return tuple(stack_rows([row[i] for row in rows]) for i in range(len(first)))
    return np.stack(rows)


def _arrays(value: object) -> Tree:
    if isinstance(value, Mapping):
        return {str(name): _arrays(part) for name, part in value.items()}
    return tuple(map(_arrays, value)) if isinstance(value, tuple) else _array(value)


def _array(value: object) -> Array:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
    return np.asarray(value)
