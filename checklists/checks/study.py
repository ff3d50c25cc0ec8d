"""Was the fix chosen by a fair comparison?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from pipeline.adoption.acceptance import guards_of, harms
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
    """Passing proves that every candidate has a cause with evidence, or needs none.

    A candidate was confirmed by an experiment for causes that the experiments confirmed, or it cures, by causes.yaml, a
    cause that the diagnosis names, or it combines such changes. General changes, which have no cause, are
    candidates only in a round that had none of these.
    """
    candidates = evidence.get("searched") or evidence["arms"]
    if not candidates:
        return _nothing_compared(evidence) or Result("failed", why="no candidate is on record")
    named, confirmed, known = set(evidence["causes"]), set(evidence.get("confirmed_causes", [])), load_causes()
    for arm in candidates:
        origin, causes = arm.get("origin", "cause"), set(arm.get("causes") or filter(None, [arm["cause"]]))
        cures = origin != "cause" or (arm["cause"] in known and arm["cure"] in known[arm["cause"]].cures)
        believed = {"experiment": causes <= confirmed, "general": causes <= {""}}.get(
            origin, causes <= named | confirmed
        )
        if not (cures and believed):
            return Result("failed", arm["id"], why=f"{arm['cure'] or arm['change']} does not fix a named cause")
    general = [arm for arm in candidates if arm.get("origin") == "general"]
    if general and len(general) < len(candidates):
        return Result("failed", general[0]["id"], why="a change without a cause came before remedies of named causes")
    changes = ", ".join(arm["change"] for arm in candidates)
    return Result("passed", len(candidates), unit="changes", why=changes)


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
    first = evidence.get("first_seed", 1)
    planned = {(arm, index) for arm in arms for index in range(first, first + evidence["seeds_per_arm"])}
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
    several by the number of candidates. A training that takes longer than half an hour has one seed, which says nothing
    of others.
    """
    if nothing := _nothing_compared(evidence):
        return nothing
    pairs, candidates = evidence["seeds_per_arm"], len(evidence["arms"])
    if pairs == 1 and evidence.get("one_seed"):
        return Result("passed", 1, unit="seeds", why="one seed, compared by validation rows: a training takes too long")
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

    Among the candidates with a corrected p below alpha, an effect that reaches the declared one, and nothing guarded
    that they harm, the winner is the smallest change whose mean reaches the target, unless another beats it on every
    seed; if none reaches it, the one with the largest effect; if there is no such candidate, nothing is adopted. Not
    applicable if there was no candidate to choose from.
    """
    winner = evidence["winner"]
    due = _due_winner(evidence, alpha)
    if winner is None and due is None:
        why = "no change is better by the declared effect; nothing was adopted"
        return _nothing_compared(evidence) or Result("passed", why=why)
    if winner is None:
        assert due is not None  # else nothing was adopted, as it should be
        return Result("failed", None, alpha, "p", f"{due['change']} won and was not adopted", relation="<")
    if winner["p"] >= alpha or winner["effect"] <= 0:
        why = f"{winner['change']} did not win its test"
        return Result("failed", winner["p"], alpha, "p", why, relation="<")
    if due is None or (winner["id"], winner["p"], winner["effect"]) != (due["id"], due["p"], due["effect"]):
        why = f"{winner['change']} was chosen, the rule says {due['change'] if due else 'none'}"
        return Result("failed", winner["p"], alpha, "p", why, relation="<")
    died, symptoms = evidence.get("fixed_died"), evidence.get("symptoms_left")
    after = f"; nothing was adopted, its training with the plan's seed failed: {died}" if died else ""
    after += f"; nothing was adopted, the symptom is still there: {', '.join(symptoms)}" if symptoms else ""
    reason = f"; {evidence['choice']}" if evidence.get("choice") else ""
    why = f"{winner['change']}: {winner['effect']:+.4g} on average{reason}{after}"
    return Result("passed", winner["p"], alpha, "p", why, relation="<")


def _due_winner(evidence: Evidence, alpha: float) -> Mapping[str, Any] | None:
    """Return the candidate that the rule chooses; None if it chooses none."""
    sign, declared = (1 if evidence["greater_is_better"] else -1), evidence.get("declared_effect", 0.0)
    better = [a for a in evidence["arms"] if a["p"] < alpha and a["effect"] > 0 and a["effect"] >= declared]
    better = sorted((a for a in better if not harms(guards_of(a))), key=lambda a: -a["effect"])
    target = float(evidence["target"])
    sufficient = sorted((a for a in better if sign * a["mean"] >= sign * target), key=lambda a: a["order"])
    if not sufficient:
        return better[0] if better else None
    smallest = sufficient[0]
    pairs = {a["id"]: zip(a["values"], smallest["values"], strict=True) for a in sufficient}
    above = [
        a for a in better if a["id"] in pairs and all(sign * float(x) > sign * float(y) for x, y in pairs[a["id"]])
    ]
    return above[0] if above else smallest


def _nothing_adopted(evidence: Evidence) -> Result | None:
    """Return the result of an item about an adopted change where there is none; None if there is one."""
    if evidence.get("candidate"):
        return None
    unchanged = Result("not_applicable", why="nothing was adopted, the reference stays as it is")
    return _nothing_compared(evidence) or unchanged


def regression_checks_run(evidence: Evidence) -> Result:
    """Passing proves that the adopted change was held to what earlier incidents left behind, and to the sanity checks.

    Every prevention item has a trial, and every sanity check an outcome. A trial that does not pass is named: the
    branch decides about a symptom that is there again.
    """
    if nothing := _nothing_adopted(evidence):
        return nothing
    trials, sanity = evidence["regression"]["trials"], evidence["regression"]["sanity"]
    missing = {item["id"] for item in evidence["prevention"]} - {trial["id"] for trial in trials}
    errored = [name for name, outcome in sanity.items() if outcome == "errored"]
    if missing or errored or not sanity:
        why = f"not run: {', '.join([*sorted(missing), *errored]) or 'the sanity checks'}"
        return Result("failed", len(missing) + len(errored), 0, "checks", why, relation="==")
    failed = [trial["ask"] for trial in trials if not trial["passed"]]
    failed += [name for name, outcome in sanity.items() if outcome == "failed"]
    why = f"not kept: {'; '.join(failed)}" if failed else f"{counted(len(trials), 'regression trial')} passed"
    return Result("passed", len(trials) + len(sanity), unit="checks", why=why)


def rollback_documented(evidence: Evidence) -> Result:
    """Passing proves that the page of the round is saved, and that a command returns to the model of before."""
    if nothing := _nothing_adopted(evidence):
        return nothing
    page = "recommendations.md" if evidence.get("goal") else "incident.md"  # a goal has no incident
    if page not in evidence.artifacts or not evidence.get("rollback"):
        return Result("failed", why="no page says how the change is undone")
    return Result("passed", why=evidence["rollback"])
