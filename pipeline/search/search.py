"""A search: the reference and the trials are trained on one seed, and the best trial is confirmed on fresh ones.

All scores are on validation rows; test rows, and scores on train rows, are never read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.config.schema import faults_of
from pipeline.errors import Refused, UserError, fault
from pipeline.run_store import files
from pipeline.search.result import Outcome, SearchRecord, SearchTrial
from pipeline.search.settings import CONFIRMATION_SEEDS
from pipeline.search.study import SearchStudy
from pipeline.search.trainings import Trainings, Values, format_values
from pipeline.trials.executor import Trial
from pipeline.tuning.comparison import Comparison, compare_by_seed
from pipeline.tuning.space import Choices, Tried, doubts


def search(trainings: Trainings) -> SearchRecord:
    """Train all trials that the study lacks, confirm the best one, and record the result.

    Raises UserError with every value of the space that the config refuses, and Refused where the reference's training
    has no score: nothing could be shown to be better.
    """
    refuse_impossible_values(trainings)
    settings = trainings.settings
    study = SearchStudy(trainings.folder, settings, trainings.plan.digest, trainings.plan.seed)
    study.start_with(trainings.reference)
    reference = _train_reference(trainings)
    assert reference.score is not None
    metric = str(reference.score["metric"])
    trainings.train_generations(study, reference, f"val/{metric}")
    trials = _trials_of(study)
    candidate, without, dropped = _drop_idle_changes(trainings, trials, reference)
    proof = _confirm(trainings, candidate, metric) if candidate else None
    sign = 1 if settings.greater else -1
    scored = [Tried(trial["values"], sign * trial["score"]) for trial in trials
              if trial["outcome"] == "scored" and trial["score"] is not None]  # fmt: skip
    record: SearchRecord = {
        "schema": 1,
        "study": settings.name,
        "metric": metric,
        "greater_is_better": settings.greater,
        "reference": trainings.reference,
        "reference_score": reference.value,
        "trials": trials,
        "candidate": candidate,
        "without": without,
        "comparison": proof.to_json() if proof else None,
        "accepted": proof is not None and proof.answer == "better",
        "notes": [*doubts(settings.space, scored), *dropped, *(proof.notes if proof else ())],
    }
    files.write_json(trainings.folder / "search.json", record)
    trainings.ledger.append("search.decided", {**record})
    return record


def refuse_impossible_values(trainings: Trainings) -> None:
    """Raise UserError with every limit and choice of the space that the config's schema refuses."""
    faults: dict[str, None] = {}
    for key, parameter in trainings.settings.space.items():
        for value in parameter.values if isinstance(parameter, Choices) else (parameter.low, parameter.high):
            config = trainings.job({**trainings.reference, key: value}).config(trainings.plan.config)
            run = {"name": "search", "root": "runs", "sweep": None}
            unplanned = {"phase": "auto", "run": run, "trust": [], "env": []}  # which a frozen plan leaves out
            faults |= dict.fromkeys(f"params.{message}" for message in faults_of({**config, **unplanned}))
    if faults:
        raise UserError(*faults)


def _train_reference(trainings: Trainings) -> Trial:
    """Train the plan's own config on the seed of the trials. Raises Refused where it ends without a score."""
    trial = trainings.train({"reference": trainings.job(trainings.reference)})["reference"]
    if not math.isfinite(trial.value):
        why = trial.died or "it has no finite score"
        do = f"python -m pipeline phase=baseline {trainings.run.overrides_for('baseline')}"
        raise Refused(fault("reference", "has no score, so that nothing can be shown better", got=why, do=do))
    trainings.log(f"  reference: {trial.value:.4g}, {format_values(trainings.reference)}")
    return trial


def _trials_of(study: SearchStudy) -> list[SearchTrial]:
    trials: list[SearchTrial] = []
    for number, values in study.values():
        end = study.ending(number)
        outcome: Outcome = "failed" if end.score is None else "pruned" if end.pruned else "scored"
        trials.append({"number": number, "values": values, "score": end.score, "outcome": outcome, "why": end.why})
    return trials


def _drop_idle_changes(
    trainings: Trainings, trials: Sequence[SearchTrial], reference: Trial
) -> tuple[dict[str, object] | None, dict[str, float | None], list[str]]:
    """Return the changes of the best trial that contribute something, the score without each, and what was dropped.

    No changes where no trial is better than the reference. One change after the other is taken back, on the seed of
    the trials; a change without which the weights are the same to the bit does nothing at all.
    """
    sign = 1 if trainings.settings.greater else -1
    scored = [t for t in trials if t["outcome"] == "scored" and t["score"] is not None]
    best = max(scored, key=lambda t: sign * (t["score"] or 0.0), default=None)
    if best is None or best["score"] is None or sign * best["score"] <= sign * reference.value:
        return None, {}, []
    start = trainings.reference
    values: dict[str, object] = dict(best["values"])
    kept_score, kept_weights = best["score"], trainings.weights_of(f"t{best['number']}")
    without: dict[str, float | None] = {}
    dropped: list[str] = []
    for key in [key for key in values if values[key] != start[key]]:
        if sum(values[name] != start[name] for name in values) < 2:
            break  # what is left is the whole difference to the reference
        trial = trainings.train({f"without-{key}": trainings.job({**values, key: start[key]})})[f"without-{key}"]
        score = trial.value if math.isfinite(trial.value) else None
        without[key] = score
        if score is None or sign * score < sign * kept_score:
            continue
        weights = trial.result.get("weights")
        why = f"its change contributes nothing ({score:.4g} without it)"
        if weights == kept_weights:
            why = "does nothing: the weights are the same without its change"
        dropped.append(f"{key}: {why}; it was dropped")
        values[key], kept_score, kept_weights = start[key], score, weights
    changes = {key: value for key, value in values.items() if value != start[key]}
    return changes, without, dropped


def _confirm(trainings: Trainings, candidate: Values, metric: str) -> Comparison:
    """Compare reference and candidate on seeds that the search has not seen."""
    seeds = CONFIRMATION_SEEDS[: trainings.settings.seeds]
    trainings.log(f"  confirming {format_values(candidate)} on {len(seeds)} fresh seeds")
    arms: Mapping[str, Values] = {"reference": trainings.reference, "candidate": {**trainings.reference, **candidate}}
    jobs = {f"{arm}-{seed}": trainings.job(values, seed) for seed in seeds for arm, values in arms.items()}
    trained = trainings.train(jobs)
    scores = tuple([trained[f"{arm}-{seed}"].value for seed in seeds] for arm in arms)
    names = ("reference", "candidate")
    return compare_by_seed((scores[0], scores[1]), [*map(str, seeds)], names, metric, trainings.settings.greater)
