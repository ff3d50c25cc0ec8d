"""Splits: the rows of one side, all that a run knows of its data, and how rows are divided between the sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pipeline.data.tree import Tree, each, named, rows_of
from pipeline.errors import UserError, fault
from pipeline.runtime.seeds import derive

Pair = tuple[NDArray[Any], NDArray[Any]]


def row_digests(X: Any) -> tuple[str, ...]:
    """One digest per row (128 bits of BLAKE2, hex), equal for equal features, all parts of them; -0.0 counts as 0.0."""
    parts = [_flat(part) for part in named(X).values()]
    rows = zip(*parts, strict=True)
    return tuple(hashlib.blake2b(b"".join(r.tobytes() for r in row), digest_size=16).hexdigest() for row in rows)


def id_digests(ids: NDArray[Any]) -> tuple[str, ...]:
    """One digest per id (128 bits of BLAKE2, hex), equal for equal text."""
    of = {name: hashlib.blake2b(name.encode(), digest_size=16).hexdigest() for name in np.unique(ids).tolist()}
    return tuple(of[name] for name in ids.tolist())


def _flat(part: Any) -> NDArray[Any]:
    """[N, numbers per row], in which equal rows have equal bytes."""
    rows = np.asarray(part)
    rows = np.ascontiguousarray(rows + 0.0 if rows.dtype.kind == "f" else rows)
    return rows.reshape(len(rows), -1)


def content_digest(*trees: Tree) -> str:
    """SHA-256 (hex) over dtype, shape and bytes of tensors, and over the names of those in nested ones."""
    sha = hashlib.sha256()
    for name, tensor in (leaf for tree in trees for leaf in named(tree).items()):
        array = tensor.detach().cpu().contiguous().numpy()
        sha.update(f"{name}{array.dtype.str}{array.shape}".encode())
        sha.update(array.tobytes() if array.nbytes < 1 << 20 else array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


def class_counts(y: Tensor) -> dict[str, int]:
    """Rows per class id; empty for targets that are values."""
    if y.is_floating_point():
        return {}
    classes, counts = torch.unique(y, return_counts=True)
    return {str(c): n for c, n in zip(classes.tolist(), counts.tolist(), strict=True)}


def schema(X: Tree, y: Tensor) -> dict[str, Any]:
    """Shape of one row and dtype, of features and targets; those of nested features are `X.<name>`."""
    return {
        name: {"shape": list(t.shape[1:]), "dtype": str(t.dtype).removeprefix("torch.")}
        for name, t in {**named(X, "X"), "y": y}.items()
    }


@dataclass(frozen=True, eq=False)
class Marks:
    """What is said of rows beyond features and targets: groups as text [N], times [N], slices as truth values [N]."""

    groups: NDArray[Any] | None = None
    times: NDArray[np.float64] | None = None
    slices: Mapping[str, Tensor] = field(default_factory=dict)

    def take(self, rows: Tensor) -> Marks:
        """Those of some of the rows, in the order asked for."""
        at = rows.cpu().numpy()
        groups, times = (None if kept is None else kept[at] for kept in (self.groups, self.times))
        return Marks(groups, times, {name: inside[rows] for name, inside in self.slices.items()})


NO_MARKS = Marks()


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one side: X float32 [N, ...]; y int64 [N] for classes, float32 [N, ...] for values.

    X may be nested: a dict or tuple of tensors, float32, int64 or bool. `items` is the user's map-style Dataset where
    the rows come from one: training reads it anew in every epoch, everything else looks at X and y. `marks` are the
    groups, times and slices of the rows, where their owner gave any.
    """

    name: str
    X: Tree
    y: Tensor
    items: Any = field(default=None, repr=False)
    marks: Marks = field(default=NO_MARKS, repr=False)

    def __len__(self) -> int:
        return rows_of(self.X)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(t.shape[1:])}".strip() for name, t in named(self.X).items())
        return f"Split({self.name!r}, {len(self)} rows of shape {shapes})"

    def __iter__(self) -> Iterator[Tree]:
        """`X, y = split`."""
        return iter((self.X, self.y))

    def take(self, rows: Tensor) -> Split:
        """Some of the rows, in the order asked for, as they were read once: without `items`."""
        marks = NO_MARKS if self.marks is NO_MARKS else self.marks.take(rows)
        return Split(self.name, each(lambda tensor: tensor[rows], self.X), self.y[rows], marks=marks)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over features and targets; nobody changes a split's tensors."""
        return content_digest(self.X, self.y)

    @cached_property
    def row_digests(self) -> tuple[str, ...]:
        """One digest per row of features, as `row_digests` gives them."""
        return row_digests(self.X)


def _strata(y: NDArray[Any]) -> NDArray[np.int64]:
    """A stratum per group: its class; -1 for values and for classes of fewer than three groups."""
    if y.dtype.kind not in "biu" or y.ndim != 1:
        return np.full(len(y), -1, np.int64)
    _, stratum, counts = np.unique(y, return_inverse=True, return_counts=True)
    return np.where(counts[stratum] < 3, -1, stratum).astype(np.int64)


def require_shares(val: float, test: float) -> None:
    """Raises UserError for shares that leave a side without rows."""
    if not (val > 0 and test > 0 and val + test < 1):
        raise UserError(
            fault("data", "shares of val and test", got=f"{val} and {test}", expected="both above 0, together below 1")
        )


def joined(rows: NDArray[Any], groups: NDArray[Any]) -> NDArray[np.intp]:
    """A number per row, equal for rows that a chain of equal features and equal groups connects."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, alike = np.unique(rows, return_inverse=True)
    _, group = np.unique(groups, return_inverse=True)
    size = len(rows) + int(alike.max()) + 1
    links = (np.ones(len(rows), np.int8), (alike, group + int(alike.max()) + 1))
    _, component = connected_components(coo_array(links, shape=(size, size)), directed=False)
    return np.asarray(component[alike])


def split_indices(
    X: ArrayLike,
    y: ArrayLike,
    *,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    groups: NDArray[Any] | None = None,
) -> dict[str, NDArray[np.int64]]:
    """Row numbers (ascending) of train, val and test: a pure function of rows, fractions, seed and groups.

    Integer targets are stratified; rows with equal features stay on one side, floats equal as float32, which is what is
    trained on, and so do those of one of the `groups` (a value per row), so that shares are met to within a group.
    Raises UserError for shares that leave a side without rows.
    """
    require_shares(val, test)
    targets, features = np.asarray(y), np.asarray(X)
    with np.errstate(over="ignore"):
        features = features.astype(np.float32) if features.dtype.kind in "iuf" else features
    units = np.array(row_digests(features), dtype=str)
    _, first, group, sizes = np.unique(
        units if groups is None else joined(units, groups), return_index=True, return_inverse=True, return_counts=True
    )
    strata = _strata(targets[first])
    draws = np.random.Philox(np.random.SeedSequence(derive(seed, "split"))).random_raw(len(targets))
    side = np.zeros(len(first), np.int8)  # per group: 0 train, 1 val, 2 test
    seen, given = 0, np.zeros(3)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        members = members[np.argsort(draws[first[members]], kind="stable")]
        seen += int(sizes[members].sum())
        free = list(members[:-1])  # one group of every stratum is left to train
        for number, share in ((2, test), (1, val)):
            left, full = [], False
            for chosen in reversed(free):
                full = full or given[number] + sizes[chosen] / 2 > np.ceil(seen * share)
                if full:
                    left.append(chosen)
                    full = groups is None  # groups differ much in size: a smaller one may fit
                    continue
                side[chosen] = number
                given[number] += sizes[chosen]
            free = left[::-1]
    if groups is not None:
        _fill_empty(side, sizes)
    sides = {name: np.flatnonzero(side[group] == k) for k, name in enumerate(("train", "val", "test"))}
    if empty := [name for name, rows in sides.items() if not len(rows)]:
        raise UserError(
            fault("data", f"too few different rows to split; {', '.join(empty)} would be empty", got=len(first))
        )
    return sides


def _fill_empty(side: NDArray[np.int8], sizes: NDArray[np.intp]) -> None:
    """The smallest group of train to a side that all groups were too large for, as long as train keeps one."""
    for number in (2, 1):
        trained = np.flatnonzero(side == 0)
        if len(trained) > 1 and not (side == number).any():
            side[trained[np.argmin(sizes[trained])]] = number


def split_rows(X: ArrayLike, y: ArrayLike, *, val: float = 0.2, test: float = 0.2, seed: int = 0) -> dict[str, Pair]:
    """`{"train": (X, y), "val": ..., "test": ...}` by `split_indices`: what a `data` target returns."""
    features, targets = np.asarray(X), np.asarray(y)
    sides = split_indices(features, targets, val=val, test=test, seed=seed)
    return {name: (features[rows], targets[rows]) for name, rows in sides.items()}
