"""Types of what a `data` target returns: features and targets of three splits, and what its owner says about them."""

from __future__ import annotations

from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pair = tuple[Array, Array]

SPLITS = ("train", "val", "test")


class MapDataset(Protocol):
    """A map-style Dataset, as `torch.utils.data` defines it: items by their number, each a pair (X, y)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class SplitIndices(TypedDict):
    """Row numbers (ascending) of each split."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


class SplitPairs(TypedDict):
    """Features and targets of each split."""

    train: Pair
    val: Pair
    test: Pair


class RowValues(TypedDict):
    """One value per row of each split, such as its group or its time."""

    train: Array
    val: Array
    test: Array


class SourceData(SplitPairs, total=False):
    """The splits with what `pipeline.data.load` reads besides: names, origin, categorical columns, groups and times.

    `categories` maps a feature name or column to the number of its codes, or to the list of its categories.
    `vocabulary` is the number of token ids of a text.
    """

    class_names: list[str] | None
    feature_names: list[str] | None
    source: str | None
    licence: str | None
    categories: dict[str, list[str]] | dict[int, int]
    vocabulary: int
    groups: RowValues
    times: RowValues


def take_splits(X: Array, y: Array, indices: SplitIndices) -> SplitPairs:
    """Features and targets of the rows of each split."""
    train, val, test = indices["train"], indices["val"], indices["test"]
    return {"train": (X[train], y[train]), "val": (X[val], y[val]), "test": (X[test], y[test])}
