"""The exact sign-flip test: its p-values, its ties, and its bound."""

from __future__ import annotations

import itertools
import time
import tracemalloc
import warnings
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test

from pipeline.trials.stats import holm, sign_flip_p_value
from tests.conftest import Cli


def counted_p_value(whole: list[int]) -> Fraction:
    """The two-sided p-value of whole numbers, counted without rounding."""
    flips = [
        sum(s * w for s, w in zip(signs, whole, strict=True)) for signs in itertools.product((1, -1), repeat=len(whole))
    ]
    observed = sum(whole)
    tail = min(sum(f <= observed for f in flips), sum(f >= observed for f in flips))
    return min(Fraction(1), Fraction(2 * tail, len(flips)))


@given(st.lists(st.tuples(st.integers(0, 350), st.integers(-5, 5)), min_size=2, max_size=8))
def test_sign_flip_p_value_counts_ties_of_shares(rows: list[tuple[int, int]]) -> None:
    """Differences of accuracies on 360 rows have ties, which rounding must not break."""
    differences = [(right + more) / 360 - right / 360 for right, more in rows]

    assert sign_flip_p_value(differences) == counted_p_value([more for _, more in rows])


@pytest.mark.parametrize("seed", range(5))
def test_sign_flip_p_value_is_scipys_without_ties(seed: int) -> None:
    """For seven pairs without ties the value is SciPy's to the bit."""
    differences = np.random.default_rng(seed).normal(0.5, 1, size=7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scipys = permutation_test(
            (differences,),
            lambda x, axis: x.mean(axis=axis),
            permutation_type="samples",
            n_resamples=2**7,
            vectorized=True,
        )

    assert sign_flip_p_value(list(differences)) == scipys.pvalue


def test_sign_flip_p_value_of_the_most_pairs_is_quick_and_small() -> None:
    """Twenty pairs, the most that the schema allows, take a few seconds and little memory."""
    differences, began = list(np.linspace(0.1, 1, 20)), time.monotonic()
    tracemalloc.start()
    try:
        assert sign_flip_p_value(differences) == 2 / 2**20
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 5


def test_seeds_per_arm_is_bounded_before_any_trial(cli: Cli) -> None:
    """More pairs than there are seeds for confirmations are refused with the config."""
    code, out, err = cli("phase=auto", "experiment=digits", "phases.optimization.seeds_per_arm=24")

    assert code == 2 and "seeds_per_arm" in err and "10" in err and "Traceback" not in out + err


def test_holm_corrects_for_every_candidate() -> None:
    """The smallest p-value counts three times, the next twice; none falls below one before it, and none exceeds 1."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.02]) == [0.02] and holm([]) == []
    assert holm([0.9, 0.6]) == [1.0, 1.0]


def test_holm_of_sign_flips_adopts_changes_without_effect_at_most_at_alpha() -> None:
    """Three changes that do nothing, confirmed beside one control on seven fresh seeds, as a healthy run has them."""
    rng, alpha, families = np.random.default_rng(0), 0.05, 1000
    adopted = 0
    for _ in range(families):
        control = rng.normal(size=7)
        gains = [rng.normal(size=7) - control for _ in range(3)]
        significant = holm([sign_flip_p_value(list(gain)) for gain in gains])
        adopted += any(p <= alpha and gain.mean() > 0 for p, gain in zip(significant, gains, strict=True))

    assert 0 < adopted <= alpha * families
