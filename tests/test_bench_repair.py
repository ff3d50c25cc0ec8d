"""`make bench-repair` counts accepted repairs, whether they hold on further seeds, and random search beside them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FAULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "faults"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmark's module, which is a script in a folder of its own."""
    sys.path.insert(0, str(FAULTS))
    try:
        import bench_repair

        yield bench_repair
    finally:
        sys.path.remove(str(FAULTS))


def case_of(bench: Any, name: str, healthy: bool, least: float | None = 0.9, most: float | None = None) -> Any:
    from cases import Case  # type: ignore[import-not-found, unused-ignore]

    faults = () if healthy else (("learning_rate_too_high",),)
    mended = () if healthy else (("optimizer.lr=0.01",),)
    return Case(name, "family", "experiment", faults, (), mended, "val", "accuracy", least, most, "")


def result_of(
    accepted: str,
    repaired: list[float | None],
    random: list[float | None],
    search: float = 2.0,
    further: float | None = None,
) -> Any:
    costs = {"diagnosis": 1.0, "search": search, "verification": 14.0}
    return {"case": "", "accepted": accepted, "alarm_silent": bool(accepted), "repaired": repaired,
            "unrepaired": [0.5] * 6, "random": random, "further": further, "costs": costs,
            "seconds": 120.0}  # fmt: skip


def test_summary_counts_what_holds_and_what_random_search_mends(bench: Any) -> None:
    """A repair holds with most further seeds; a healthy run's acceptance is worse where its seeds score lower."""
    selected = [
        case_of(bench, name, healthy) for name, healthy in (("a", False), ("b", False), ("c", False), ("d", True))
    ]
    well, badly = [0.95] * 6, [0.4] * 6
    results = [
        result_of("optimizer.lr=0.01", [0.95, 0.95, 0.95, 0.95, None, 0.2], badly, further=0.3),
        result_of("optimizer.lr=0.1", badly, well, search=6.0, further=-0.03),
        result_of("", [], badly, search=4.0),
        result_of("model.hidden=2", badly, []),
    ]
    counts = bench.summary(selected, results)
    assert (counts["cases"], counts["accepted"], counts["hold"], counts["lower"]) == (3, 2, 1, 1)
    assert (counts["random_holds"], counts["random_lost"], counts["mended_where_random_lost"]) == (1, 2, 1)
    assert (counts["median_search"], counts["median_verification"], counts["slowest_minutes"]) == (4.0, 14.0, 2.0)
    assert (counts["healthy"], counts["healthy_accepted"], counts["healthy_worse"], counts["errors"]) == (1, 1, 1, {})
    assert (counts["metric_known"], counts["metric_lower"]) == (2, 1)
    assert bench.summary(selected[:1], [{"error": "no answer"}])["errors"] == {"no answer": 1}
    assert len(bench.lines(counts)) == 7


def test_gain_counts_a_training_without_a_score_as_the_worst(bench: Any) -> None:
    """The gain is positive where the repair is better, whatever the metric's direction."""
    higher, lower = case_of(bench, "a", False), case_of(bench, "a", False, None, 1.0)
    assert bench.gain(higher, [0.9, 0.9], [0.5, 0.5]) == pytest.approx(0.4)
    assert bench.gain(lower, [0.2, 0.2], [0.6, 0.6]) == pytest.approx(0.4)
    assert bench.gain(higher, [0.9, None], [0.5, 0.5]) == pytest.approx(0.2)


def test_metric_gain_compares_seeds_that_both_arms_have(bench: Any) -> None:
    """A training without the metric leaves its seed out; nothing is known without a common seed."""
    assert bench.metric_gain([0.9, None, 0.8], [0.5, 0.5, 0.6]) == pytest.approx(0.3)
    assert bench.metric_gain([None], [0.5]) is None


def test_mendable_cases_are_experiments_with_a_mended_form(bench: Any) -> None:
    """Only experiments that a config mends, or that are healthy, are cases; a fault needs a mended form."""
    from cases import cases  # type: ignore[import-not-found, unused-ignore]

    chosen = [case for case in cases() if case.part == "tuning" and bench.mendable(case)]
    assert chosen and all(case.way == "experiment" and (case.healthy or case.mended) for case in chosen)
