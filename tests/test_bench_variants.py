"""Variants of the fault benchmark: the label of a change is that which the training has earned."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.history import History

FAULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "faults"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmark's module, which is a script in a folder of its own."""
    sys.path.insert(0, str(FAULTS))
    try:
        import variants

        yield variants
    finally:
        sys.path.remove(str(FAULTS))


@pytest.fixture(scope="module")
def known(bench: Any) -> dict[str, Any]:
    """All variants by their id."""
    return {case.id: case for case in bench.variants()}


def facts_of(value: float) -> Any:
    from facts import Facts  # type: ignore[import-not-found, unused-ignore]

    return Facts(History(), value=value)


def test_variants_change_tuning_parents_only(known: dict[str, Any]) -> None:
    """About two thousand variants come from the tuning part; 300 or more are healthy; each id can name a run."""
    assert {case.part for case in known.values()} == {"tuning"}
    assert len(known) > 1900
    assert sum(case.healthy for case in known.values()) >= 300
    assert max(map(len, known)) <= 63


@pytest.mark.parametrize(("value", "healthy"), [(0.99, True), (0.2, False)])
def test_verified_mutant_has_the_label_that_it_earned(
    bench: Any, known: dict[str, Any], value: float, healthy: bool
) -> None:
    """A mutation that leaves its parent well is a harmless flaw of a healthy run."""
    case = bench.verified(known["clouds_mlp_with_rate_times_1000"], facts_of(value))

    assert (healthy, ("learning_rate_too_high",)) == (case.healthy, case.harmless if healthy else case.causes)


def test_verified_drops_harmless_change_that_breaks(bench: Any, known: dict[str, Any]) -> None:
    """What was meant to be harmless and is not has no label."""
    assert bench.verified(known["clouds_mlp_with_rate_halved"], facts_of(0.1)) is None
