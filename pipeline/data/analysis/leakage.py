"""Leakage between the splits: shared rows, shared groups, and rows that are newer than the split they are tested on."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from pipeline.data.dataset import Data
from pipeline.data.splits import id_digests

MAX_SHOWN = 10  # rows and groups named at most


class SharedGroups(TypedDict):
    """`count` of all `groups` are in two splits; `shared` names some, `by_pair` counts them by pair of splits."""

    groups: int
    count: int
    shared: list[str]
    by_pair: dict[str, int]


class TimeOverlap(TypedDict):
    """By split: how many rows are too new, the first of them, and the last and first time of the split."""

    rows: dict[str, int]
    first_rows: dict[str, list[int]]
    latest: dict[str, float]
    earliest: dict[str, float]


def shared_fractions(data: Data) -> dict[str, float]:
    """For validation and test, the share of rows whose features are byte for byte also in another split."""
    digests = {"train": data.train.row_digests, "val": data.val.row_digests, "test": data.test.row_digests}
    distinct = {split: set(rows) for split, rows in digests.items()}
    fractions = {}
    for split in ("val", "test"):
        elsewhere = set().union(*(distinct[other] for other in digests if other != split))
        fractions[split] = sum(digest in elsewhere for digest in digests[split]) / max(len(digests[split]), 1)
    return fractions


def shared_groups(data: Data) -> SharedGroups | None:
    """The groups that are in two splits, by the names their owner gave them; None if no groups were given.

    The groups of test are known by their digests only.
    """
    train, val = data.train.row_metadata.groups, data.val.row_metadata.groups
    if train is None or val is None or not data.test.groups:
        return None
    names = {digest: name for ids in (train, val) for digest, name in zip(id_digests(ids), ids.tolist(), strict=True)}
    groups = {"train": set(id_digests(train)), "val": set(id_digests(val)), "test": set(data.test.groups)}
    pairs = (("train", "val"), ("train", "test"), ("val", "test"))
    in_both = {f"{a} and {b}": groups[a] & groups[b] for a, b in pairs}
    # A shared group is always in train or validation, whose names are known.
    shared = sorted(names[digest] for digest in set().union(*in_both.values()))
    return {
        "groups": len(set().union(*groups.values())),
        "count": len(shared),
        "shared": shared[:MAX_SHOWN],
        "by_pair": {pair: len(digests) for pair, digests in in_both.items()},
    }


def time_overlap(data: Data) -> TimeOverlap | None:
    """The rows of train and validation that are not older than a split they are evaluated on; None without times.

    Train must end before validation and test begin, and validation before test begins. Of test only the first and last
    time are known.
    """
    train, val, test = data.train.row_metadata.times, data.val.row_metadata.times, data.test.times
    if train is None or val is None or not test:
        return None
    newer = {"train": np.flatnonzero(train >= min(float(val.min()), test[0])), "val": np.flatnonzero(val >= test[0])}
    return {
        "rows": {split: len(rows) for split, rows in newer.items()},
        "first_rows": {split: rows[:MAX_SHOWN].tolist() for split, rows in newer.items()},
        "latest": {"train": float(train.max()), "val": float(val.max()), "test": test[1]},
        "earliest": {"train": float(train.min()), "val": float(val.min()), "test": test[0]},
    }
