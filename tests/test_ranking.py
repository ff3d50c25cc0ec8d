"""The ranking of a sweep: the runs of one config are one row, with mean and spread over its seeds."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.reporting import ranking


class Job(NamedTuple):
    name: str
    exit_code: int
    overrides: list[str]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[ranking.RankedRun]:
    """Two learning rates with three seeds each, of which one run has no score."""
    scores = {"a-1": 0.5, "a-2": 0.7, "a-3": 0.6, "b-1": 0.9, "b-2": 0.8, "b-3": None}

    def describe(root: Path, job: Job) -> Any:
        value = scores[job.name]
        score = None if value is None else {"metric": "accuracy", "value": value, "greater_is_better": True}
        return {"run": job.name, "overrides": job.overrides, "exit_code": 0, "score": score, "branch": "", "why": []}

    monkeypatch.setattr(ranking, "_describe", describe)
    rates = {"a": "optimizer.lr=0.1", "b": "optimizer.lr=0.01"}
    jobs = [Job(name, 0, ["task=regression", rates[name[0]], f"seed={name[-1]}"]) for name in scores]
    return ranking.rank(Path(), jobs)


def test_rank_gives_mean_and_spread_over_seeds(rows: list[ranking.RankedRun]) -> None:
    """Each run has the mean, the standard deviation and the number of the scores of its config."""
    summaries = {row["run"]: row["over_seeds"] for row in rows}

    assert summaries["a-1"] == summaries["a-2"] == summaries["a-3"]
    assert summaries["a-1"] == pytest.approx({"mean": 0.6, "std": statistics.stdev([0.5, 0.7, 0.6]), "n": 3})
    assert summaries["b-3"] == pytest.approx({"mean": 0.85, "std": statistics.stdev([0.9, 0.8]), "n": 2})


def test_rank_reads_nan_as_the_ledger_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A score of NaN, which the ledger holds as text, counts as no score."""
    score = {"metric": "rmse", "value": "nan", "greater_is_better": False}
    row = {"run": "a", "overrides": ["seed=1"], "exit_code": 0, "score": score, "branch": "", "why": []}
    monkeypatch.setattr(ranking, "_describe", lambda root, job: dict(row))
    [ranked] = ranking.rank(Path(), [Job("a", 0, ["seed=1"])])
    assert ranked["over_seeds"] == {"mean": None, "std": None, "n": 0}


def test_config_rows_rank_by_mean(rows: list[ranking.RankedRun]) -> None:
    """The better mean comes first, without the overrides that all share; a run without a score is not hidden."""
    assert ranking.config_rows(rows) == [
        ("optimizer.lr=0.01", "0.8500", "0.0707", "2 of 3"),
        ("optimizer.lr=0.1", "0.6000", "0.1000", "3"),
    ]


def test_config_rows_of_one_config_repeat_no_override(rows: list[ranking.RankedRun]) -> None:
    """Overrides that all runs share are left out, also where there is only one config."""
    ones = [row for row in rows if row["run"].startswith("a")]
    assert ranking.config_rows(ones) == [("all runs", "0.6000", "0.1000", "3")]


def test_config_rows_need_several_runs_of_a_config(rows: list[ranking.RankedRun]) -> None:
    """Where every config has one run, the ranking of the runs says it all."""
    assert ranking.config_rows([rows[0], rows[2]]) == []
