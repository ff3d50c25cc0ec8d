"""Rows that take their time: every read of a train row waits, as if it were decoded from a far disk."""

from __future__ import annotations

import time
from typing import Any

from torch.utils.data import Dataset

from planted.rows import rows


class _Waiting(Dataset[Any]):
    def __init__(self, X: Any, y: Any, seconds: float) -> None:
        self.X, self.y, self.seconds = X, y, seconds

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        time.sleep(self.seconds)
        return self.X[row], self.y[row]


def read(seconds: float = 0.0, **options: Any) -> dict[str, Any]:
    """As `planted.rows.rows`, each train row after so many seconds; 0 gives the arrays themselves."""
    given = rows(**options)
    return {**given, "train": _Waiting(*given["train"], seconds)} if seconds else given
