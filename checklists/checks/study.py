"""Was the cure chosen by a fair test?"""

from __future__ import annotations

from typing import Any

from pipeline.repair.causes import load as load_causes
from pipeline.results import Evidence, Outcome, Result


def candidates_from_causes(evidence: Evidence) -> Result:
    """Passing proves that each candidate change is a cure, in causes.yaml, of a cause the diagnosis named."""
    named, known = set(evidence["causes"]), load_causes()
    for arm in evidence["arms"]:
        if arm["cause"] not in named or arm["cure"] not in known[arm["cause"]].cures:
            return Result("failed", arm["id"], why=f"{arm['cure']} is no cure of a named cause")
    return Result(
        "passed", len(evidence["arms"]), unit="candidates", why=", ".join(a["change"] for a in evidence["arms"])
    )


def _unfair(trials: list[dict[str, Any]], budget: int) -> tuple[str, str] | None:
    """What makes a comparison unfair, with the sentence that says so; None when nothing does."""
    seeds = {pair: {t["seed"] for t in trials if t["seed_index"] == pair} for pair in {t["seed_index"] for t in trials}}
    apart = sorted(pair for pair, found in seeds.items() if len(found) != 1 or None in found)
    if apart:
        return "seed", f"the arms of pair {apart[0]} did not run on one seed"
    if len(set.union(*seeds.values())) < len(seeds):
        return "seed", "two pairs ran on the same seed"
    if len({t["threads"] for t in trials}) > 1:
        return "threads", "the arms ran on different numbers of threads"
    over = [t["id"] for t in trials if t["steps"] > budget]
    if over:
        return "steps", f"more steps than the common budget of {budget}: {', '.join(over)}"
    cut = [t["id"] for t in trials if t["stopped"] == "clock"]
    if cut:
        return "stopped", f"cut short by the clock: {', '.join(cut)}; raise trainer.max_minutes"
    return None


def arms_compared_fairly(evidence: Evidence) -> Result:
    """Passing proves, by what each worker measured, that every pair of trainings had one seed of its own, all of them
    the same threads and one budget of steps, and that none was cut short by the clock. The dead measured nothing.
    """
    arms = ["control", *(arm["id"] for arm in evidence["arms"])]
    if len(arms) == 1:
        return Result("not_applicable", 0, unit="candidates", why="there is no candidate to compare")
    wanted = {(arm, pair) for arm in arms for pair in range(1, evidence["seeds_per_arm"] + 1)}
    absent = wanted - {(t["arm"], t["seed_index"]) for t in evidence["trials"]}
    if absent:
        return Result("failed", len(absent), 0, "trials", f"without its pair: {min(absent)[0]}")
    lived = [t for t in evidence["trials"] if not t["died"]]
    unfair = _unfair(lived, evidence["max_steps"]) if lived else None
    if unfair:
        return Result("failed", unfair[0], why=unfair[1])
    why = f"{evidence['seeds_per_arm']} seeds, at most {evidence['max_steps']} steps each"
    return Result("passed", len(arms), unit="arms", why=why)


def enough_seeds(evidence: Evidence, *, alpha: float) -> Result:
    """Passing proves that the exact test can reach alpha: its smallest p, times the candidates, is below it."""
    pairs, candidates = evidence["seeds_per_arm"], max(len(evidence["arms"]), 1)
    floor = candidates * 2 / 2**pairs
    if not evidence["arms"]:
        return Result("not_applicable", pairs, unit="pairs", why="there is no candidate to test")
    outcome: Outcome = "passed" if floor < alpha else "failed"
    return Result(outcome, floor, alpha, "smallest p", f"{pairs} pairs, {candidates} candidate(s), Holm")


def every_trial_recorded(evidence: Evidence) -> Result:
    """Passing proves that the ledger holds an end for every trial that was planned."""
    planned, recorded = evidence["trials_planned"], evidence["trials_recorded"]
    died = evidence["trials_died"]
    if planned != recorded:
        return Result(
            "failed", recorded, planned, "trials", f"{planned - recorded} planned trials have no recorded end"
        )
    return Result("passed", recorded, planned, "trials", f"{died} died")


def chosen_on_validation(evidence: Evidence) -> Result:
    """Passing proves that every score of the study is a validation score and that test stayed shut meanwhile."""
    splits = sorted(set(evidence["score_splits"]))
    if splits not in ([], ["val"]) or evidence["test_opened"]:
        return Result("failed", splits, "val", why="another split took part in the choice")
    return Result("passed", evidence["test_opened"], 0, "test openings", "validation alone")


def choice_justified(evidence: Evidence, *, alpha: float) -> Result:
    """Passing proves that what was chosen is what the rule says: of the candidates with a corrected p below alpha and
    a positive effect, the first in the diagnosis's order whose mean reaches the target; where none reaches it, the one
    with the largest effect; where there is none, nobody.
    """
    winner, target = evidence["winner"], float(evidence["target"])
    sign = 1 if evidence["greater_is_better"] else -1
    better = sorted((a for a in evidence["arms"] if a["p"] < alpha and a["effect"] > 0), key=lambda a: -a["effect"])
    enough = sorted((a for a in better if sign * a["mean"] >= sign * target), key=lambda a: a["order"])
    due = (enough or better or [None])[0]
    if winner is None and due is None:
        return Result("passed", None, alpha, why="no candidate is significantly better; nothing was adopted")
    if winner is None or winner["p"] >= alpha or winner["effect"] <= 0:
        what = f"{due['change']} won and was left" if winner is None else f"{winner['change']} did not win its test"
        return Result("failed", winner and winner["p"], alpha, "p", what)
    if due is None or (winner["id"], winner["p"], winner["effect"]) != (due["id"], due["p"], due["effect"]):
        due_is = due["change"] if due else "none"
        return Result("failed", winner["p"], alpha, "p", f"{winner['change']} was chosen, the rule says {due_is}")
    died = evidence.get("fixed_died")
    after = f"; nothing was adopted, its training on the master seed died: {died}" if died else ""
    return Result("passed", winner["p"], alpha, "p", f"{winner['change']}: {winner['effect']:+.4g} on average{after}")
