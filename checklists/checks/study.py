"""Was the cure chosen by a fair test?"""

from __future__ import annotations

from pipeline.causes import load as load_causes
from pipeline.records import Evidence, Outcome, Result


def candidates_from_causes(evidence: Evidence) -> Result:
    """Passing proves that each candidate change is a cure, in causes.yaml, of a cause the diagnosis named."""
    named, known = set(evidence["causes"]), load_causes()
    for arm in evidence["arms"]:
        if arm["cause"] not in named or arm["cure"] not in known[arm["cause"]].cures:
            return Result("failed", arm["id"], why=f"{arm['cure']} is no cure of a named cause")
    return Result(
        "passed", len(evidence["arms"]), unit="candidates", why=", ".join(a["change"] for a in evidence["arms"])
    )


def arms_compared_fairly(evidence: Evidence) -> Result:
    """Passing proves that control and candidates share seeds, step budget and thread count, pair by pair."""
    arms = [evidence["control"], *evidence["arms"]]
    for key in ("seed_indices", "max_steps", "threads"):
        values = [arm[key] for arm in arms]
        if any(v != values[0] for v in values):
            return Result("failed", key, why=f"the arms differ in {key}")
    return Result("passed", len(arms), unit="arms", why=f"same {len(arms[0]['seed_indices'])} seeds, steps and threads")


def enough_pairs(evidence: Evidence, *, alpha: float) -> Result:
    """Passing proves that the exact test can reach alpha: its smallest p, times the candidates, is below it."""
    pairs, candidates = evidence["pairs"], max(len(evidence["arms"]), 1)
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
    """Passing proves that the winner's corrected p is below alpha and that no smaller change won; or that none won."""
    winner = evidence["winner"]
    if winner is None:
        return Result("passed", None, alpha, why="no candidate is significantly better; nothing was adopted")
    smaller = [a for a in evidence["arms"] if a["order"] < winner["order"] and a["wins"]]
    if winner["p"] >= alpha or winner["effect"] <= 0 or smaller:
        return Result("failed", winner["p"], alpha, "p", f"{winner['change']} is not the smallest significant change")
    return Result("passed", winner["p"], alpha, "p", f"{winner['change']}: {winner['effect']:+.4g} on average")
