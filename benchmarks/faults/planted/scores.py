"""Ways to read and judge outputs that measure something else than the task."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import Tensor


def along_the_rows(outputs: Tensor) -> Tensor:
    """Argmax over the rows of the split instead of over the classes, repeated to as many answers as there are rows."""
    best = outputs.argmax(dim=0)
    return best.repeat(-(-len(outputs) // len(best)))[: len(outputs)]


def rounded_matches(targets: NDArray[Any], predictions: NDArray[Any]) -> float:
    """The share of values met to the last digit: accuracy, asked of a regression."""
    return float((targets == predictions).mean())
