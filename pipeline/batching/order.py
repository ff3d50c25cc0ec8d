"""Data order: which row is at which position of which epoch, a pure function of seed and epoch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def _random_words(seed: int, epoch: int, n: int) -> NDArray[np.uint64]:
    """`n` raw 64-bit draws; unlike NumPy's distributions, raw Philox output never changes between versions."""
    return np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(n)


def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return a permutation of 0..n-1 for this epoch."""
    return np.argsort(_random_words(seed, epoch, n), kind="stable").astype(np.int64, copy=False)


def balanced_order(seed: int, epoch: int, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `len(labels)` row numbers in which class counts differ by at most 1, and so do the repeats of a row."""
    n = len(labels)
    if n == 0:
        return np.zeros(0, np.int64)
    shuffled = epoch_order(seed, epoch, n)
    classes = np.unique(labels)
    shares = np.full(len(classes), n // len(classes))
    shares[: n % len(classes)] += 1
    rows = [np.resize(shuffled[labels[shuffled] == c], share) for c, share in zip(classes, shares, strict=True)]
    by_class = np.concatenate(rows)
    return by_class[np.argsort(_random_words(seed + 1, epoch, n), kind="stable")]
