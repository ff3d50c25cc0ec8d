"""Splits: the rows of train, validation or test, their digests, and how rows are divided among the three."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pipeline.data.source_data import SPLITS, Array, MapDataset, SplitIndices, SplitPairs, take_splits
from pipeline.data.tree import Tree, count_rows, map_leaves, named_leaves
from pipeline.errors import UserError, fault
from pipeline.runtime.seeds import derive


class LeafSchema(TypedDict):
    """Shape of one row and dtype of a tensor."""

    shape: list[int]
    dtype: str


def row_digests(X: Tree) -> tuple[str, ...]:
    """One digest per row (128 bits of BLAKE2, hex), equal for rows with equal features; -0.0 equals 0.0."""
    parts = [_row_bytes(leaf) for leaf in named_leaves(X).values()]
    rows = zip(*parts, strict=True)
    return tuple(hashlib.blake2b(b"".join(r.tobytes() for r in row), digest_size=16).hexdigest() for row in rows)


def id_digests(ids: Array) -> tuple[str, ...]:
    """One digest per id (128 bits of BLAKE2, hex), equal for equal text."""
    digests = {name: hashlib.blake2b(name.encode(), digest_size=16).hexdigest() for name in np.unique(ids).tolist()}
    return tuple(digests[name] for name in ids.tolist())


def _row_bytes(leaf: ArrayLike) -> Array:
    """The leaf as [N, numbers per row], in which equal rows have equal bytes."""
    rows = np.asarray(leaf)
    rows = np.ascontiguousarray(rows + 0.0 if rows.dtype.kind == "f" else rows)  # -0.0 + 0.0 is 0.0
    return rows.reshape(len(rows), -1)


def content_digest(*trees: Tree) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and bytes of the tensors of trees; a single tensor has no name."""
    sha = hashlib.sha256()
    for name, tensor in (leaf for tree in trees for leaf in named_leaves(tree).items()):
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


def schema(X: Tree, y: Tensor) -> dict[str, LeafSchema]:
    """Shape of one row and dtype of features and targets; those of nested features are named `X.<name>`."""
    return {
        name: {"shape": list(t.shape[1:]), "dtype": str(t.dtype).removeprefix("torch.")}
        for name, t in {**named_leaves(X, "X"), "y": y}.items()
    }


@dataclass(frozen=True, eq=False)
class RowMetadata:
    """What the owner says about rows: groups as text [N], times [N], slices as boolean tensors [N] by their names."""

    groups: Array | None = None
    times: NDArray[np.float64] | None = None
    slices: Mapping[str, Tensor] = field(default_factory=dict)

    def take(self, rows: Tensor) -> RowMetadata:
        """The metadata of these rows, in this order."""
        index = rows.cpu().numpy()
        groups, times = (None if values is None else values[index] for values in (self.groups, self.times))
        return RowMetadata(groups, times, {name: inside[rows] for name, inside in self.slices.items()})


NO_METADATA = RowMetadata()


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one split: X float32 [N, ...]; y int64 [N] for classes, float32 [N, ...] for values.

    X is int64 where integers are kept. X may be nested: a dict or tuple of tensors, float32, int64 or bool. `dataset`
    is the user's map-style Dataset if the rows come from one: training reads it again in every epoch, everything else
    uses X and y. `augmented`: it gives other inputs each time it is read. `row_metadata` holds the groups, times and
    slices that the owner declared.
    """

    name: str
    X: Tree
    y: Tensor
    dataset: MapDataset | None = field(default=None, repr=False)
    augmented: bool = field(default=False, repr=False, kw_only=True)
    row_metadata: RowMetadata = field(default=NO_METADATA, repr=False)

    def __len__(self) -> int:
        return count_rows(self.X)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(t.shape[1:])}".strip() for name, t in named_leaves(self.X).items())
        return f"Split({self.name!r}, {len(self)} rows of shape {shapes})"

    def __iter__(self) -> Iterator[Tree]:
        """`X, y = split`."""
        return iter((self.X, self.y))

    def take(self, rows: Tensor) -> Split:
        """These rows in this order, as they were read into memory: without `dataset`."""
        metadata = NO_METADATA if self.row_metadata is NO_METADATA else self.row_metadata.take(rows)
        X = map_leaves(lambda tensor: tensor[rows], self.X)
        return Split(self.name, X, self.y[rows], row_metadata=metadata)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over features and targets. The tensors of a split are never changed, so it is computed once."""
        return content_digest(self.X, self.y)

    @cached_property
    def row_digests(self) -> tuple[str, ...]:
        """One digest per row of features, from `row_digests`."""
        return row_digests(self.X)


def _strata(y: Array) -> NDArray[np.int64]:
    """The stratum of each group: its class; -1 for values, and for classes with fewer than three groups."""
    if y.dtype.kind not in "biu" or y.ndim != 1:
        return np.full(len(y), -1, np.int64)
    _, stratum, counts = np.unique(y, return_inverse=True, return_counts=True)
    # A class needs three groups to be in all three splits; rarer ones share a stratum, where chance divides them.
    return np.where(counts[stratum] < 3, -1, stratum).astype(np.int64)


def check_split_shares(val: float, test: float) -> None:
    """Raises UserError for shares of the rows that leave a split without rows."""
    if not (val > 0 and test > 0 and val + test < 1):
        raise UserError(
            fault("data", "shares of val and test", got=f"{val} and {test}", expected="both above 0, together below 1")
        )


def connected_groups(rows: Array, groups: Array) -> NDArray[np.intp]:
    """A group number per row, equal for rows that are connected by a chain of equal features and equal groups."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # A bipartite graph of distinct rows and distinct groups, with one edge per row.
    _, row_node = np.unique(rows, return_inverse=True)
    _, group = np.unique(groups, return_inverse=True)
    size = len(rows) + int(row_node.max()) + 1
    edges = (np.ones(len(rows), np.int8), (row_node, group + int(row_node.max()) + 1))
    _, component = connected_components(coo_array(edges, shape=(size, size)), directed=False)
    return np.asarray(component[row_node])


def split_indices(
    X: ArrayLike,
    y: ArrayLike,
    *,
    val: float = 0.2,
    test: float = 0.2,
    seed: int = 0,
    groups: Array | None = None,
) -> SplitIndices:
    """Row numbers of train, val and test: a pure function of rows, shares, seed and groups.

    Integer targets are stratified. Rows with equal features are in one split; floats are compared as float32, since
    training uses float32. So are rows of one of the `groups` (one value per row); the shares are then met only to
    within a group. Raises UserError for shares that leave a split without rows.
    """
    check_split_shares(val, test)
    targets, features = np.asarray(y), np.asarray(X)
    with np.errstate(over="ignore"):
        features = features.astype(np.float32) if features.dtype.kind in "iuf" else features
    # The unit that is assigned to a split is a set of equal rows, or a set of rows connected by groups.
    units = np.array(row_digests(features), dtype=str)
    units = units if groups is None else connected_groups(units, groups)
    _, first, group, sizes = np.unique(units, return_index=True, return_inverse=True, return_counts=True)
    strata = _strata(targets[first])
    # Raw words of Philox: their values are specified, while NumPy may change the methods of its generators.
    draws = np.random.Philox(np.random.SeedSequence(derive(seed, "split"))).random_raw(len(targets))
    split_of_group = np.zeros(len(first), np.int8)  # 0 train, 1 val, 2 test
    # The quota of a split is the share of all rows in the strata so far, not of each stratum alone: rounding errors of
    # small strata do not add up.
    rows_so_far, assigned = 0, np.zeros(3)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        members = members[np.argsort(draws[first[members]], kind="stable")]
        rows_so_far += int(sizes[members].sum())
        free = list(members[:-1])  # one group of every stratum stays in train
        for number, share in ((2, test), (1, val)):
            remaining, full = [], False
            for candidate in reversed(free):
                full = full or assigned[number] + sizes[candidate] / 2 > np.ceil(rows_so_far * share)
                if full:
                    remaining.append(candidate)
                    full = groups is None  # groups differ in size: a smaller one may still fit
                    continue
                split_of_group[candidate] = number
                assigned[number] += sizes[candidate]
            free = remaining[::-1]
    if groups is not None:
        _fill_empty_splits(split_of_group, sizes)
    train_rows, val_rows, test_rows = (np.flatnonzero(split_of_group[group] == k) for k in range(3))
    indices: SplitIndices = {"train": train_rows, "val": val_rows, "test": test_rows}
    if empty := [name for name, rows in zip(SPLITS, (train_rows, val_rows, test_rows), strict=True) if not len(rows)]:
        raise UserError(
            fault("data", f"too few different rows to split; {', '.join(empty)} would be empty", got=len(first))
        )
    return indices


def _fill_empty_splits(split_of_group: NDArray[np.int8], sizes: NDArray[np.intp]) -> None:
    """Moves the smallest train group, in place, to a split that all groups were too large for, if train has another."""
    for number in (2, 1):
        in_train = np.flatnonzero(split_of_group == 0)
        if len(in_train) > 1 and not (split_of_group == number).any():
            split_of_group[in_train[np.argmin(sizes[in_train])]] = number


def split_rows(X: ArrayLike, y: ArrayLike, *, val: float = 0.2, test: float = 0.2, seed: int = 0) -> SplitPairs:
    """`{"train": (X, y), "val": ..., "test": ...}`, divided by `split_indices`: what a `data` target returns."""
    features, targets = np.asarray(X), np.asarray(y)
    return take_splits(features, targets, split_indices(features, targets, val=val, test=test, seed=seed))
