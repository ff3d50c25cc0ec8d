"""Statistics of a study: an exact paired test of two arms, and Holm's correction for several candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence

SIGN_BATCH = 1 << 15  # choices of signs that are counted at a time
TIE = 1e-9


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """Two-sided p-value of the exact sign-flip test of the mean difference; 1.0 if all differences are 0.

    Under the null hypothesis every difference may have the other sign, so that n pairs give 2 / 2**n at least. All 2**n
    choices of signs are counted, in batches of constant size: SciPy's `permutation_test` holds all of them in memory.
    Means that differ by less than `TIE` of the mean size of the differences are equal: scores of a few rows have many
    ties, which rounding would break.
    """
    import numpy as np  # `verify` reads records without it

    values = np.asarray(differences, dtype=float)
    if not len(values) or not values.any():
        return 1.0
    observed, count = float(values.mean()), 2 ** len(values)
    rounding = TIE * float(np.abs(values).mean())
    at_most = at_least = 0
    for start in range(0, count, SIGN_BATCH):
        choices = np.arange(start, min(start + SIGN_BATCH, count))
        flipped = (choices[:, None] >> np.arange(len(values))) & 1
        means = np.where(flipped, -values, values).mean(axis=1)
        at_most += int(np.count_nonzero(means <= observed + rounding))
        at_least += int(np.count_nonzero(means >= observed - rounding))
    return min(1.0, 2 * min(at_most, at_least) / count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: return p-values that can be compared with alpha; at most 1."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    # `floor` keeps the corrected p-values in the order of the raw ones.
    corrected, floor = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = floor
    return corrected


def replace_failed(values: Sequence[float], all_values: Sequence[float], greater_is_better: bool) -> list[float]:
    """Replace every NaN or infinity (a training that died or diverged) by the worst finite value of the study.

    This is the mildest penalty that still counts a failed training; leaving it out would favour arms that fail.
    """
    finite = [v for v in all_values if math.isfinite(v)]
    worst = (min if greater_is_better else max)(finite) if finite else 0.0
    return [v if math.isfinite(v) else worst for v in values]
