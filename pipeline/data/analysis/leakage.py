"""How much the splits know of each other: shared rows, shared groups, and times out of order."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.data.dataset import Data
from pipeline.data.splits import id_digests

SHOWN = 10  # rows and groups named at most


def shared_fractions(data: Data) -> dict[str, float]:
    """For validation and test, the share of their rows whose features stand in another split too, byte for byte."""
    rows = {"train": data.train.row_digests, "val": data.val.row_digests, "test": data.test.row_digests}
    sets = {split: set(digests) for split, digests in rows.items()}
    shared = {}
    for split in ("val", "test"):
        elsewhere = set().union(*(sets[other] for other in rows if other != split))
        shared[split] = sum(digest in elsewhere for digest in rows[split]) / max(len(rows[split]), 1)
    return shared


def shared_groups(data: Data) -> dict[str, Any] | None:
    """The groups that stand on two sides: `{groups, count, shared, sides}`; None where no groups were given.

    Of the test side the digests of its groups are compared, no more. A group is named as its owner named it.
    """
    train, val = data.train.marks.groups, data.val.marks.groups
    if train is None or val is None or not data.test.groups:
        return None
    names = {digest: name for ids in (train, val) for digest, name in zip(id_digests(ids), ids.tolist(), strict=True)}
    sides = {"train": set(id_digests(train)), "val": set(id_digests(val)), "test": set(data.test.groups)}
    both = {f"{a} and {b}": sides[a] & sides[b] for a, b in (("train", "val"), ("train", "test"), ("val", "test"))}
    shared = sorted(names[digest] for digest in set().union(*both.values()))
    return {
        "groups": len(set().union(*sides.values())),
        "count": len(shared),
        "shared": shared[:SHOWN],
        "sides": {pair: len(found) for pair, found in both.items()},
    }


def out_of_order(data: Data) -> dict[str, Any] | None:
    """The rows of train and validation that are not older than the side they are judged by; None without times.

    `{rows, first_rows, latest, earliest}`: train must end before validation begins, and both before test does. Of the
    test side only its first and last time are known.
    """
    train, val, test = data.train.marks.times, data.val.marks.times, data.test.times
    if train is None or val is None or not test:
        return None
    late = {"train": np.flatnonzero(train >= min(float(val.min()), test[0])), "val": np.flatnonzero(val >= test[0])}
    return {
        "rows": {split: len(rows) for split, rows in late.items()},
        "first_rows": {split: rows[:SHOWN].tolist() for split, rows in late.items()},
        "latest": {"train": float(train.max()), "val": float(val.max()), "test": test[1]},
        "earliest": {"train": float(train.min()), "val": float(val.min()), "test": test[0]},
    }
