"""Items of a map-style Dataset: each read under a seed of its own, and so the same whoever reads it, and when."""

from __future__ import annotations

import random
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.tree import Tree, named
from pipeline.errors import UserError, fault
from pipeline.runtime.seeds import derive
from pipeline.runtime.threads import running_on

PAIR = "a pair (X, y) of numeric arrays, or a map-style Dataset of such pairs"
_LIBRARIES = tuple(dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("stdlib", "purelib", "platlib")))


@contextmanager
def reading() -> Iterator[None]:
    """Inside the block torch computes on one thread, as in a worker process; what is drawn there leaves no trace."""
    python, numpy, state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with running_on(1):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(state)


def read_item(dataset: Any, index: int, where: str, *, seed: int, epoch: int) -> tuple[Tree, NDArray[Any]]:
    """Item `index` as (inputs, target), arrays both, inputs maybe nested.

    The generators of Python, NumPy and torch start from (seed, "item", epoch, index); call it inside `reading()`.
    Raises UserError naming the row when it cannot be read or is no pair.
    """
    draw = derive(seed, "item", epoch, index)
    random.seed(draw)
    np.random.seed(draw % 2**32)
    torch.default_generator.manual_seed(draw)
    try:
        item = dataset[index]
        pair = isinstance(item, tuple | list) and len(item) == 2
        read = (_arrays(item[0]), _array(item[1])) if pair else None
    except Exception as error:  # the user's code may fail in any way
        said = " ".join(str(error).split())
        reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
        raise UserError(fault(f"{where}[{index}]", f"cannot be read ({reason}){_place(error)}")) from error
    if read is None:
        raise UserError(fault(f"{where}[{index}]", "is no pair", got=describe(item), expected=PAIR))
    return read


def describe(value: Any) -> str:
    """What was given, for a message."""
    if isinstance(value, Tensor | np.ndarray):
        return f"one {type(value).__name__} of shape {tuple(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, tuple | list) else type(value).__name__


def require_alike(row: Sequence[Tree], shapes: Sequence[Mapping[str, tuple[int, ...]]], where: str) -> None:
    """Raises UserError where inputs and target of a row are not shaped like those of the first."""
    found = shapes_of(row)
    if list(found) != list(shapes):
        got, expected = (_shape_words(either) for either in (found, shapes))
        expected = f"{expected} as in the first item"
        raise UserError(fault(where, "items differ in shape", got=got, expected=expected))


def shapes_of(row: Sequence[Tree], skip: int = 0) -> list[dict[str, tuple[int, ...]]]:
    """The shapes of inputs and target by name, without their first `skip` axes."""
    return [{name: tuple(leaf.shape[skip:]) for name, leaf in named(part).items()} for part in row]


def _shape_words(shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> str:
    words = [", ".join(f"{name} {shape}" if name else str(shape) for name, shape in part.items()) for part in shapes]
    return " and ".join(words)


def stack(rows: Sequence[Tree]) -> Tree:
    """Rows of one structure and shape, side by side: arrays [N, ...]."""
    first = rows[0]
    if isinstance(first, dict):
        return {name: stack([row[name] for row in rows]) for name in first}
    if isinstance(first, tuple):
        return tuple(stack([row[i] for row in rows]) for i in range(len(first)))
    return np.stack(rows)


def _arrays(value: Any) -> Tree:
    if isinstance(value, Mapping):
        return {str(name): _arrays(part) for name, part in value.items()}
    return tuple(map(_arrays, value)) if isinstance(value, tuple) else _array(value)


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
    return np.asarray(value)


def _place(error: BaseException) -> str:
    """Where it failed: the deepest line that is neither ours nor an installed library's, else the deepest."""
    frames = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__)]
    frames = [frame for frame in frames if frame[0] != __file__ and not frame[0].startswith("<")]
    own = [frame for frame in frames if not frame[0].startswith(_LIBRARIES)]
    return f" at {(own or frames)[-1][0]}:{(own or frames)[-1][1]}" if frames else ""
