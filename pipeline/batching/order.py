"""Data order: which row is at which position of which epoch, a pure function of the seed and nothing else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def _draws(seed: int, epoch: int, n: int) -> NDArray[np.uint64]:
    """`n` raw 64-bit draws; unlike NumPy's distributions, raw Philox never changes between versions."""
    return np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(n)


def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """A permutation of 0..n-1 for this epoch."""
    return np.argsort(_draws(seed, epoch, n), kind="stable").astype(np.int64, copy=False)


def balanced_order(seed: int, epoch: int, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """As many row numbers as labels, every class in equal shares (±1), its rows repeated as evenly as can be."""
    n = len(labels)
    if n == 0:
        return np.zeros(0, np.int64)
    shuffled = epoch_order(seed, epoch, n)
    classes = np.unique(labels)
    shares = np.full(len(classes), n // len(classes))
    shares[: n % len(classes)] += 1
    rows = [np.resize(shuffled[labels[shuffled] == c], share) for c, share in zip(classes, shares, strict=True)]
    mixed = np.concatenate(rows)
    return mixed[np.argsort(_draws(seed + 1, epoch, n), kind="stable")]
