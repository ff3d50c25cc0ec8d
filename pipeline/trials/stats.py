"""The two tests behind a choice: an exact paired test of two arms, and Holm's correction over several candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p of the exact sign-flip test: how often chance alone would give so large a mean difference.

    Every difference may flip its sign under the null, so n pairs reach 2 / 2**n at best. 1.0 without a difference.
    """
    import warnings

    from scipy.stats import permutation_test

    values = np.asarray(differences, dtype=float)
    if not len(values) or not values.any():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns when the observed sample is among the permutations; it always is
        found = permutation_test(
            (values,),
            lambda x, axis: np.mean(x, axis=axis),
            permutation_type="samples",
            n_resamples=2 ** len(values),
            vectorized=True,
        )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values to be compared with alpha as if there were one test. At most 1."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, floor = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = floor
    return corrected


def worst_filled(values: Sequence[float], known: Sequence[float], greater_is_better: bool) -> list[float]:
    """The values with every NaN (a training that died or diverged) replaced by the worst finite one known.

    Ranking a failed training level with the worst success is the mildest punishment that still counts it.
    """
    finite = [v for v in known if math.isfinite(v)]
    worst = (min if greater_is_better else max)(finite) if finite else 0.0
    return [v if math.isfinite(v) else worst for v in values]
