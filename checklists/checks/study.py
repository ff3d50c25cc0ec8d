"""Was the fix chosen by a fair comparison?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from pipeline.repair.causes import load as load_causes
from pipeline.results import Evidence, Outcome, Result, counted


class TrialEvidence(TypedDict):
    """One training of the comparison; everything but `id`, `arm` and `seed_index` is None if it died."""

    id: str
    arm: str
    seed_index: int
    died: str | None
    seed: int | None
    threads: int
    steps: int
    stopped: str


def _nothing_compared(evidence: Evidence) -> Result | None:
    """Return the result of an item about a comparison that did not happen; None if candidates were compared."""
    if evidence["arms"]:
        return None
    return Result(
        "not_applicable", why=evidence.get("choice", "nothing was compared: the diagnosis gave no change to try")
    )


def candidates_from_causes(evidence: Evidence) -> Result:
    """Passing proves that each candidate change is a cure, in causes.yaml, of a cause that the diagnosis named."""
    if nothing := _nothing_compared(evidence):
        return nothing
    named, known = set(evidence["causes"]), load_causes()
    for arm in evidence["arms"]:
        if arm["cause"] not in named or arm["cure"] not in known[arm["cause"]].cures:
            return Result("failed", arm["id"], why=f"{arm['cure']} does not fix a named cause")
    changes = ", ".join(arm["change"] for arm in evidence["arms"])
    return Result("passed", len(evidence["arms"]), unit="changes", why=changes)


def _unfairness(trials: Sequence[TrialEvidence], budget: int) -> tuple[str, str] | None:
    """Return what makes the comparison unfair, with an explanation; None if it is fair."""
    seeds: dict[int, set[int | None]] = {}
    for trial in trials:
        seeds.setdefault(trial["seed_index"], set()).add(trial["seed"])
    differing = sorted(index for index, values in seeds.items() if len(values) != 1 or None in values)
    if differing:
        return "seed", f"the configurations of pair {differing[0]} did not run on one seed"
    if len(set.union(*seeds.values())) < len(seeds):
        return "seed", "two pairs ran on the same seed"
    if len({trial["threads"] for trial in trials}) > 1:
        return "threads", "the configurations ran on different numbers of threads"
    over = [trial["id"] for trial in trials if trial["steps"] > budget]
    if over:
        return "steps", f"more steps than the common budget of {budget}: {', '.join(over)}"
    cut = [trial["id"] for trial in trials if trial["stopped"] == "clock"]
    if cut:
        return "stopped", f"stopped by the clock: {', '.join(cut)}; raise trainer.max_minutes"
    return None


def arms_compared_fairly(evidence: Evidence) -> Result:
    """Passing proves that the arms differ in their change alone, as measured by each worker process.

    Every pair of trainings has one seed, different from those of other pairs; all have the same threads and the same
    budget of steps; none was stopped by the clock. Trainings that died measured nothing.
    """
    if nothing := _nothing_compared(evidence):
        return nothing
    arms = ["control", *(arm["id"] for arm in evidence["arms"])]
    planned = {(arm, index) for arm in arms for index in range(1, evidence["seeds_per_arm"] + 1)}
    missing = planned - {(trial["arm"], trial["seed_index"]) for trial in evidence["trials"]}
    if missing:
        return Result("failed", len(missing), 0, "trials", f"without its pair: {min(missing)[0]}")
    completed = [trial for trial in evidence["trials"] if not trial["died"]]
    unfair = _unfairness(completed, evidence["max_steps"]) if completed else None
    if unfair:
        return Result("failed", unfair[0], why=unfair[1])
    why = f"{evidence['seeds_per_arm']} seeds, at most {evidence['max_steps']} steps each"
    return Result("passed", len(arms), unit="configurations", why=why)


def enough_seeds(evidence: Evidence, *, alpha: float) -> Result:
    """Passing proves that the exact test can reach alpha: its smallest p value, after correction, is below it.

    n pairs have 2**n sign flips, so the smallest two-sided p value is 2 / 2**n, and Holm multiplies the smallest of
    several by the number of candidates.
    """
    if nothing := _nothing_compared(evidence):
        return nothing
    pairs, candidates = evidence["seeds_per_arm"], len(evidence["arms"])
    smallest = candidates * 2 / 2**pairs
    outcome: Outcome = "passed" if smallest < alpha else "failed"
    why = f"{pairs} pairs, {counted(candidates, 'change')}, Holm's correction"
    return Result(outcome, smallest, alpha, "smallest p", why, relation="<")


def every_trial_recorded(evidence: Evidence) -> Result:
    """Passing proves that the ledger has an end for every trial that was planned."""
    planned, recorded, died = evidence["trials_planned"], evidence["trials_recorded"], evidence["trials_died"]
    if planned != recorded:
        why = f"{planned - recorded} planned trials have no recorded end"
        return Result("failed", recorded, planned, "trials", why, relation="==")
    if nothing := _nothing_compared(evidence):
        return nothing
    return Result("passed", recorded, planned, "trials", counted(died, "failed trial"), relation="==")


def chosen_on_validation(evidence: Evidence) -> Result:
    """Passing proves that every score of the study is a validation score and that the test split was not opened."""
    splits = sorted(set(evidence["score_splits"]))
    if splits not in ([], ["val"]) or evidence["test_opened"]:
        return Result("failed", ", ".join(splits), "val", why="another split was used for the choice", relation="is")
    if nothing := _nothing_compared(evidence):
        return nothing
    return Result("passed", evidence["test_opened"], 0, "times scored on test", "validation alone")


def choice_justified(evidence: Evidence, *, alpha: float) -> Result:
    """Passing proves that the winner follows the rule.

    Among the candidates with a corrected p below alpha and a positive effect, the winner is the first in the
    diagnosis's order whose mean reaches the target; if none reaches it, the one with the largest effect; if there is
    no such candidate, nothing is adopted. Not applicable if there was no candidate to choose from.
    """
    winner, target = evidence["winner"], float(evidence["target"])
    sign = 1 if evidence["greater_is_better"] else -1
    better = sorted((a for a in evidence["arms"] if a["p"] < alpha and a["effect"] > 0), key=lambda a: -a["effect"])
    sufficient = sorted((a for a in better if sign * a["mean"] >= sign * target), key=lambda a: a["order"])
    due = (sufficient or better or [None])[0]
    if winner is None and due is None:
        why = "no change is significantly better; nothing was adopted"
        return _nothing_compared(evidence) or Result("passed", why=why)
    if winner is None or winner["p"] >= alpha or winner["effect"] <= 0:
        why = (
            f"{due['change']} won and was not adopted" if winner is None else f"{winner['change']} did not win its test"
        )
        return Result("failed", winner and winner["p"], alpha, "p", why, relation="<")
    if due is None or (winner["id"], winner["p"], winner["effect"]) != (due["id"], due["p"], due["effect"]):
        why = f"{winner['change']} was chosen, the rule says {due['change'] if due else 'none'}"
        return Result("failed", winner["p"], alpha, "p", why, relation="<")
    died = evidence.get("fixed_died")
    after = f"; nothing was adopted, its training with the plan's seed failed: {died}" if died else ""
    reason = f"; {evidence['choice']}" if evidence.get("choice") else ""
    why = f"{winner['change']}: {winner['effect']:+.4g} on average{reason}{after}"
    return Result("passed", winner["p"], alpha, "p", why, relation="<")
