"""What finalization measures: the frozen candidate with everything that its measurements need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from pipeline.data.dataset import Data
    from pipeline.evaluation.task import Task


@dataclass(frozen=True, eq=False)
class Subject:
    """The model to release, in eval mode, with its task, data and config.

    `weights` is the digest of its weights. Every random draw of a measurement derives from `seed` and the name of the
    measurement: `derive(seed, "corruption")`.
    """

    model: nn.Module
    task: Task
    data: Data
    config: Mapping[str, Any]
    weights: str
    seed: int
    trust: tuple[str, ...] = ()
