"""Derive the comparison of a round of optimization again, from the results that its trainings wrote."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean
from typing import Any

from pipeline.adoption.acceptance import MIN_EFFECT, declared_effect, guards_of, harms
from pipeline.adoption.one_seed import FILE as ROW_LOSSES
from pipeline.adoption.one_seed import row_p_values
from pipeline.adoption.search import QUICK, SCREENING
from pipeline.results import Evidence
from pipeline.run_store.job import Delta, Job
from pipeline.run_store.ledger import Entry, read_recorded_json
from pipeline.run_store.plan import Plan
from pipeline.run_store.run import Run
from pipeline.trials.costs import FILE as COST
from pipeline.trials.costs import as_scores
from pipeline.trials.executor import Trial
from pipeline.trials.study import Arm, compare_arms, select_arm

Derived = Iterator[tuple[str, Any, Any]]  # what a value is, as the evidence has it, and as other records give it


def compared_again(run: Run, entries: list[Entry], finished: Entry, evidence: Evidence, plan: Plan) -> Derived:
    """The search and the comparison of the arms, computed again from the results that each training wrote."""
    arms = [evidence["control"], *evidence["arms"]] if evidence.get("arms") else []
    if not arms and not evidence.get("searched"):
        return
    names = [f"{arm['id']}-{index}" for arm in arms for index in range(1, evidence["seeds_per_arm"] + 1)]
    started = max(e["seq"] for e in entries if e["kind"] == "phase.started" and e["seq"] < finished["seq"])
    jobs = [e["data"] for e in entries[started : finished["seq"]] if e["kind"] == "job.finished"]
    yield "trials_recorded", evidence["trials_recorded"], len(jobs)
    yield "trials_died", evidence["trials_died"], sum(bool(job["died"]) for job in jobs)
    ended = {job["id"]: job for job in jobs}
    # A training has a result exactly where the ledger says that it did not die: without one its arm would look worse.
    artifacts, everyone = finished["data"].get("artifacts", {}), dict.fromkeys([*names, *ended])
    recorded = [name for name in everyone if f"{name}/result.json" in artifacts]
    survivors = [name for name in everyone if name in ended and not ended[name]["died"]]
    yield "the list of results", recorded, survivors
    results = {name: read_recorded_json(run.path, artifacts.get(f"{name}/result.json")) for name in recorded}
    if recorded != survivors or not all(results.values()):  # a file that is lost is a fault of its own
        return
    scores = [results[name].get("score") for name in recorded]
    yield "the list of scores", scores, [ended[name]["score"] for name in recorded]
    yield from _searched(evidence, results)
    if arms:
        trials = {name: Trial(name, Job("", "trial"), run.path, results.get(name) or {}) for name in names}
        if evidence.get("goal"):
            costs = {name: read_recorded_json(run.path, artifacts.get(f"{name}/{COST}")) for name in names}
            trials = as_scores(trials, {name: float(cost["value"]) for name, cost in costs.items() if cost})
            yield "the target of the goal", evidence["target"], _target_of_goal(evidence, trials, plan)
        yield from _choice(run, finished, evidence, plan, trials)


def _searched(evidence: Evidence, results: Mapping[str, Any]) -> Derived:
    """The scores by which the search chose among the candidates."""
    for tally in evidence.get("searched", []):
        names = [f"{SCREENING}-{tally['id']}-{place}" for place in range(1, len(tally["values"]) + 1)]
        own = list(tally["values"])
        if tally["quick"] is not None:
            own, names = [*own, tally["quick"]], [*names, f"{QUICK}-{tally['id']}-1"]
        score = [(results.get(name) or {}).get("score") for name in names]
        yield f"the search of {tally['id']}", own, [float(s["value"]) if s else float("nan") for s in score]


def _choice(run: Run, finished: Entry, evidence: Evidence, plan: Plan, trials: Mapping[str, Trial]) -> Derived:
    """The figures of the arms, what they harm, and the winner, from the results of the trainings."""
    everyone, pairs = [evidence["control"], *evidence["arms"]], evidence["seeds_per_arm"]
    greater = bool(evidence["greater_is_better"])
    due, p_values = _declared_effect(evidence, trials, plan), None
    if evidence.get("one_seed"):
        folder = run.inside("optimization", finished["data"]["round"], "trials")
        files = [folder / f"{arm['id']}-1" / ROW_LOSSES for arm in everyone]
        p_values = row_p_values(files[0], files[1:], str(plan.config["task"]["metric"]))
    yield "the declared effect", evidence.get("declared_effect", 0.0), due
    same = [Arm(arm["id"], Delta(), order=arm["order"]) for arm in everyone]
    rows = compare_arms(same, trials, pairs, greater, due, p_values)
    yield "the comparison", _figures(everyone), _figures(rows)
    for row, arm in zip(rows, everyone, strict=True):
        row["harms"] = harms(guards_of(arm))
        yield f"what {arm['id']} harms", arm.get("harms", []), row["harms"]
    winner = select_arm(rows[1:], float(evidence["target"]), greater)
    yield "the winner", evidence["winner"] and evidence["winner"]["id"], winner and winner["id"]


def _declared_effect(evidence: Evidence, trials: Mapping[str, Trial], plan: Plan) -> float:
    """The gain that a change must have, from the plan and the scores of the control; 0 in earlier versions."""
    if "declared_effect" not in evidence.values:
        return 0.0
    share = float(plan.config["phases"]["optimization"].get("min_effect", MIN_EFFECT))
    control = [trials[f"control-{index}"].value for index in range(1, evidence["seeds_per_arm"] + 1)]
    return declared_effect(control, share, float(evidence["target"]), bool(evidence["greater_is_better"]))


def _target_of_goal(evidence: Evidence, trials: Mapping[str, Trial], plan: Plan) -> float:
    """The cost that a change must fall below: that of the control, less the declared effect."""
    control = [trials[f"control-{index}"].value for index in range(1, evidence["seeds_per_arm"] + 1)]
    whole = all(map(math.isfinite, control))
    return fmean(control) - _declared_effect(evidence, trials, plan) if whole else math.inf


def _figures(arms: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    return [[arm[key] for key in ("id", "values", "mean", "effect", "p", "wins")] for arm in arms]
