"""Confidence in a statement: a number whose upper limit depends on the kind of evidence behind it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.results import CEILINGS

PRIOR = 0.25  # a cause without any evidence: a playbook lists about four causes, so each starts at one in four


@dataclass(frozen=True)
class Confidence:
    """A confidence value between 0 and the ceiling of its basis.

    Raises ValueError for an unknown basis and for a value above the ceiling, so that logs alone (`report`) can never
    be presented with the confidence of a controlled experiment (`observation`).
    """

    value: float
    basis: str

    def __post_init__(self) -> None:
        if self.basis not in CEILINGS:
            raise ValueError(f"basis must be one of {', '.join(CEILINGS)}, got {self.basis!r}")
        if not (math.isfinite(self.value) and 0 <= self.value <= CEILINGS[self.basis]):
            raise ValueError(f"confidence on {self.basis} lies in 0..{CEILINGS[self.basis]}, got {self.value}")


def support_share(supporting: int, measured: int) -> float:
    """Return the share of measured supports that hold, smoothed with one imaginary support worth `PRIOR`.

    Each support that holds raises it, and each that does not hold lowers it.
    """
    assert 0 <= supporting <= measured
    return (supporting + PRIOR) / (measured + 1)
