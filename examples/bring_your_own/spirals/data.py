"""Your own data: a function that returns the three splits as pairs of arrays."""

from __future__ import annotations

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]


def load(rows: int, noise: float, seed: int = 0) -> dict[str, Pair]:
    """Return three interleaved spirals: X float32 [N, 2], y int64 [N], split 60 / 20 / 20."""
    draw = np.random.default_rng(seed)
    y = np.arange(rows) % 3
    radius = draw.uniform(0.1, 1.0, rows)
    angle = 4 * radius + y * 2 * np.pi / 3 + draw.normal(0, noise, rows)
    X = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)
    order = draw.permutation(rows)
    cuts = [int(0.6 * rows), int(0.8 * rows)]
    return {
        name: (X[part], y[part]) for name, part in zip(("train", "val", "test"), np.split(order, cuts), strict=True)
    }
