"""How much the splits share: the one number behind every claim of an honest evaluation."""

from __future__ import annotations

from pipeline.data.dataset import Data


def shared_fractions(data: Data) -> dict[str, float]:
    """For validation and test, the share of their rows whose features stand in another split too, byte for byte."""
    rows = {"train": data.train.row_digests, "val": data.val.row_digests, "test": data.test.row_digests}
    sets = {split: set(digests) for split, digests in rows.items()}
    shared = {}
    for split in ("val", "test"):
        elsewhere = set().union(*(sets[other] for other in rows if other != split))
        shared[split] = sum(digest in elsewhere for digest in rows[split]) / max(len(rows[split]), 1)
    return shared
