"""A metric of NaN or infinity is no score: it reaches no target, beats nothing, and is named."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from checklists.checks.release import target_on_test
from checklists.checks.training import trivial_baseline_scored
from pipeline.engine.loop import Training
from pipeline.evaluation.metrics import BUILT_IN
from pipeline.reporting.ranking import RankedRun, _over_seeds, _sort_key
from pipeline.results import Evidence, Score, compare_with_score, compared
from pipeline.run_store.job import Job
from tests.trainings import PERMIT, blobs, components_of, config, permitted, run

__all__ = ["permitted"]

NONFINITE = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])


@NONFINITE
@pytest.mark.parametrize("greater", [True, False])
def test_score_that_is_not_finite_reaches_and_beats_nothing(value: float, greater: bool) -> None:
    """Neither direction of the metric makes an infinity good, as a score or as the bar."""
    score = Score("val", "m", value, math.nan, math.nan, 9, greater)
    finite = replace(score, value=0.5)

    assert not score.reaches(0.5) and not score.beats(0.1) and not finite.beats(value)
    assert compare_with_score(value, vars(finite)) is None
    assert "cannot be compared" in compared(value, 0.5, greater)


@NONFINITE
@pytest.mark.parametrize("name", ["accuracy", "mae"])
def test_metric_that_is_not_finite_is_never_better(value: float, name: str) -> None:
    """The epoch with a finite metric is the best, whatever came before or after."""
    metric = BUILT_IN[name]

    assert not metric.better(value, 0.5) and metric.better(0.5, value) and not metric.better(value, value)


@pytest.mark.usefixtures("permitted")
@NONFINITE
@pytest.mark.parametrize("greater", [True, False])
def test_training_with_a_metric_that_is_not_finite_has_no_score(value: float, greater: bool) -> None:
    """The training ends, and reports no score."""
    job = Job("", "trial")
    components = components_of(config(trainer__max_epochs=2), blobs(), job)
    metric = replace(components.task.metric, function=lambda *_: value, greater_is_better=greater, users_own=True)
    components = replace(components, task=replace(components.task, metrics=(metric,)))

    assert run(Training(PERMIT[0], components, job)).score is None


@NONFINITE
def test_target_on_test_fails_without_a_finite_score(value: float) -> None:
    """The test score of an infinity reaches no target."""
    for greater in (True, False):
        score = vars(Score("test", "m", value, math.nan, math.nan, 9, greater))
        assert target_on_test(Evidence({"test_score": score}), target=0.5, margin=0.1).outcome == "failed"


@NONFINITE
def test_trivial_baseline_that_is_not_finite_is_named(value: float) -> None:
    """The gate's line warns that no score can be better."""
    trivial = {"metric": "own", "n": 9, "value": value, "how": "always answers 1"}
    why = trivial_baseline_scored(Evidence({"trivial_baseline": trivial})).why

    assert why.startswith(f"warning: own is {value} for it (always answers 1")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_ranking_puts_a_score_that_is_not_finite_last(value: str) -> None:
    """An infinity in a record is ranked like a run without a score, and is not in the mean."""
    score = {"value": value, "greater_is_better": True, "low": "nan", "high": "nan", "n": 9, "metric": "m"}
    row: RankedRun = {
        "run": "a", "overrides": [], "exit_code": 0, "score": score, "branch": "", "why": [],
        "over_seeds": {"mean": None, "std": None, "n": 0},
    }  # fmt: skip

    assert _sort_key(row)[0] == 1 and _over_seeds([row])["n"] == 0
