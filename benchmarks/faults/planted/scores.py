"""Predictions and metrics that do not measure the task."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import Tensor


def along_the_rows(outputs: Tensor) -> Tensor:
    """Return the argmax over rows instead of classes, repeated to one prediction per row."""
    best = outputs.argmax(dim=0)
    return best.repeat(-(-len(outputs) // len(best)))[: len(outputs)]


def rounded_matches(targets: NDArray[Any], predictions: NDArray[Any]) -> float:
    """Return the share of exactly equal values: accuracy as the metric of a regression."""
    return float((targets == predictions).mean())


rounded_matches.greater_is_better = True  # type: ignore[attr-defined]
