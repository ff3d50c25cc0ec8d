"""What a comparison of so few rows can find: the share of windows in which a shift of known size is noticed."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from pipeline.drift.compare import Live, compare
from pipeline.drift.features import Observations
from pipeline.drift.reference import Reference

FEW_ROWS = 100  # of live or reference rows: below, the power is told
DRAWS = 50


class Power(TypedDict):
    """In how many of `draws` windows of `rows` reference rows the shift was noticed."""

    shift: str
    rows: int
    draws: int
    detected: int


def power(reference: Reference, rows: int, rng: np.random.Generator) -> Power | None:
    """Return the power for one standard deviation more in a quarter of the numbers; None where there are none.

    Windows are drawn with replacement from the reference, and compared with it by the tests of the inputs.
    """
    values = reference.inputs.values
    deviations = np.nanstd(values.astype(np.float64), axis=0) if len(values) else np.zeros(0)
    numbers = [at for at, feature in enumerate(reference.inputs.features) if feature.kind == "number"]
    varying = [at for at in numbers if deviations[at] > 0]
    if not varying:
        return None
    detected = 0
    for _ in range(DRAWS):
        window = values[rng.integers(len(values), size=rows)].copy()
        shifted = rng.choice(varying, -(-len(varying) // 4), replace=False)
        window[:, shifted] += deviations[shifted].astype(np.float32)
        live = Live(Observations(reference.inputs.features, window), None)
        detected += compare(reference, live, rng, distances=False)["drifted"]
    shift = "one standard deviation more in a quarter of the numbers"
    return {"shift": shift, "rows": rows, "draws": DRAWS, "detected": detected}
