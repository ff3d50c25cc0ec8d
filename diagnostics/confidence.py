"""How sure a statement may be: a number that its basis bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.results import CEILINGS

PRIOR = 0.25  # a cause that nothing supports or contradicts: one of about four that a playbook lists


@dataclass(frozen=True)
class Confidence:
    """A number in [0, ceiling of the basis]. Raises ValueError beyond it: no wording makes a report an observation."""

    value: float
    basis: str

    def __post_init__(self) -> None:
        if self.basis not in CEILINGS:
            raise ValueError(f"basis must be one of {', '.join(CEILINGS)}, got {self.basis!r}")
        if not (math.isfinite(self.value) and 0 <= self.value <= CEILINGS[self.basis]):
            raise ValueError(f"confidence on {self.basis} lies in 0..{CEILINGS[self.basis]}, got {self.value}")


def weigh(held: int, measured: int, basis: str) -> Confidence:
    """Confidence from how many of the measured supports hold: one imagined support at the prior, then a mean.

    Nothing measured leaves the prior; each support that holds raises it, each that does not lowers it.
    """
    assert 0 <= held <= measured
    return Confidence(round(CEILINGS[basis] * (held + PRIOR) / (measured + 1), 3), basis)
