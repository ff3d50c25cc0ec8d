"""The trainings of a release: the candidate's job on several seeds, and the median of them, which is released.

One training may be good or bad by luck. The spread over seeds shows by how much; the median has neither luck.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TypedDict

import numpy as np

from pipeline.history import History
from pipeline.run_store.job import Job
from pipeline.run_store.ledger import Entry
from pipeline.run_store.records import CandidateRecord
from pipeline.trials.executor import Trial
from pipeline.trials.stats import replace_failed

FIRST_SEED = 30  # seed indices 30 to 36 are for finalization alone
CONFIRMATION_SEED = 20  # seed indices 20 to 29 are for the confirmation of candidates
SEEDS = 7
LONG_MINUTES = 30.0  # of one training; above, the candidate itself is released


class SeedResult(TypedDict):
    """The training on one seed: its index, score on validation (None without one), weights, and why it died."""

    id: str
    seed_index: int
    value: float | None
    weights: str | None
    died: str | None


class SeedStability(TypedDict):
    """All trainings of the released job, the chosen one, and the mean and deviation of their scores.

    `folds` are the scores of the baseline's cross-validation, and `why` is the reason for a single training.
    """

    metric: str
    greater_is_better: bool
    trainings: list[SeedResult]
    chosen: str
    value: float | None
    mean: float
    std: float
    folds: list[float]
    why: str


def study_of(entries: Sequence[Entry], candidate: CandidateRecord) -> tuple[str, int, int] | None:
    """Return the arm that optimization adopted as this candidate, its number of seeds, and the index of the first.

    None for a baseline.
    """
    if candidate["phase"] != "optimization":
        return None
    studies = [e["data"] for e in entries if e["kind"] == "study.decided" and e["seq"] < candidate["seq"]]
    study = next(s for s in reversed(studies) if s["round"] == candidate["round"])
    arm = next(arm for arm in study["arms"] if arm["id"] == study["winner"])
    return str(arm["id"]), len(arm["values"]), int(study.get("first_seed", 1))  # earlier versions began at 1


def final_jobs(
    candidate: CandidateRecord, study: tuple[str, int, int] | None, run: Path, own: Path, count: int
) -> list[tuple[Path, str, Job]]:
    """Return folder, id and job of `count` trainings of the candidate's job.

    Those that confirmed the change in optimization come first: they are the same job, trained on other seeds.
    """
    job = Job.from_json(candidate["job"])
    arm, seeds, first = study if study else ("", 0, 0)
    trials = run / "optimization" / str(candidate["round"]) / "trials"
    confirmed = [
        (trials, f"{arm}-{index}", Job(job.plan_digest, "trial", job.delta, first + index - 1, job.max_steps))
        for index in range(1, min(seeds, count) + 1)
    ]
    indices = range(FIRST_SEED, FIRST_SEED + count - len(confirmed))
    return confirmed + [
        (own, f"seed-{index}", Job(job.plan_digest, "finalization", job.delta, index, job.max_steps))
        for index in indices
    ]


def median_trial(trials: Sequence[Trial], greater: bool) -> Trial:
    """Return the trial with the median score, the one with the lower seed index on ties; a dead one is the worst."""
    values = [trial.value for trial in trials]
    scores = replace_failed(values, values, greater) if any(map(math.isfinite, values)) else [0.0] * len(values)
    # Of dead trainings and the worst score, which count alike, the one that has a score comes first.
    ranked = sorted(zip(scores, values, trials, strict=True), key=lambda row: row[0] if greater else -row[0])
    middle = ranked[(len(ranked) - 1) // 2][0]
    ties = [(math.isnan(value), trial.job.seed_index, trial) for score, value, trial in ranked if score == middle]
    return min(ties, key=lambda tie: tie[:2])[2]


def stability(
    trials: Sequence[Trial],
    chosen: Trial,
    metric: str,
    greater: bool,
    cross_validation: Mapping[str, object],
    why: str = "",
) -> SeedStability:
    """Return the table of the trainings with their spread, and the scores of the folds beside it."""
    values = [trial.value for trial in trials if math.isfinite(trial.value)]
    folds = cross_validation.get("values", [])
    return {
        "metric": metric,
        "greater_is_better": greater,
        "trainings": [
            {
                "id": trial.id,
                "seed_index": trial.job.seed_index,
                "value": trial.value if math.isfinite(trial.value) else None,
                "weights": trial.result.get("weights"),
                "died": trial.died,
            }
            for trial in trials
        ],
        "chosen": chosen.id,
        "value": chosen.value if math.isfinite(chosen.value) else None,
        "mean": fmean(values) if values else math.nan,
        "std": stdev(values) if len(values) > 1 else math.nan,
        "folds": [float(value) for value in folds] if isinstance(folds, list) else [],
        "why": why,
    }


def format_stability(table: SeedStability) -> str:
    """Return the table in one line: the scores by seed, and the chosen training."""
    metric, trainings = table["metric"], table["trainings"]
    if len(trainings) == 1:
        return f"one training, {metric} {_format(trainings[0])} on validation ({table['why']})"
    scores = ", ".join(_format(training) for training in trainings)
    return f"{metric} of {len(trainings)} trainings on validation: {scores}; the median, {table['chosen']}, is frozen"


def _format(training: SeedResult) -> str:
    return "died" if training["died"] else "no score" if training["value"] is None else f"{training['value']:.4g}"


def training_minutes(history: History) -> float:
    """Return how long a training took, from the seconds per step of its history; 0 without any."""
    steps, seconds = history.series("time/step")
    finite = seconds[np.isfinite(seconds)]
    return float(finite.mean() * steps.max() / 60) if len(finite) else 0.0
