"""Statistics of a study: an exact paired test of two arms, and Holm's correction for several candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """Two-sided p-value of the exact sign-flip test of the mean difference; 1.0 if all differences are 0.

    Under the null hypothesis every difference may have the other sign, so that n pairs give 2 / 2**n at least.
    """
    import warnings

    from scipy.stats import permutation_test

    values = np.asarray(differences, dtype=float)
    if not len(values) or not values.any():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns if the observed sample is among the permutations: it always is
        result = permutation_test(
            (values,),
            lambda x, axis: np.mean(x, axis=axis),
            permutation_type="samples",
            n_resamples=2 ** len(values),  # all of them: the test is exact
            vectorized=True,
        )
    return float(result.pvalue)


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
