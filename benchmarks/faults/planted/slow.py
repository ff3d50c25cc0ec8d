"""Slow data: every read of a train row waits, as if it were loaded from a slow disk."""

from __future__ import annotations

import time
from typing import Any

from torch.utils.data import Dataset

from planted.rows import rows


class _SlowDataset(Dataset[Any]):
    def __init__(self, X: Any, y: Any, seconds: float) -> None:
        self.X, self.y, self.seconds = X, y, seconds

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        time.sleep(self.seconds)
        return self.X[row], self.y[row]


def read(seconds: float = 0.0, **options: Any) -> dict[str, Any]:
    """Return the data of `planted.rows.rows`; reading a train row takes `seconds`. With 0 the splits are arrays."""
    data = rows(**options)
    return {**data, "train": _SlowDataset(*data["train"], seconds)} if seconds else data
