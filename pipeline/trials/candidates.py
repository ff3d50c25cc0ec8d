"""The candidates of a study: the cures of a diagnosis that can be tried, or why there is none."""

from __future__ import annotations

from collections.abc import Set

from pipeline.repair.diagnosis_record import DiagnosisRecord
from pipeline.results import digest
from pipeline.run_store.job import Delta
from pipeline.trials.study import Arm, with_change


def untried(diagnosis: DiagnosisRecord, start: Delta, tried: Set[str]) -> list[Arm]:
    """Return an arm for every untried cure of a named cause, in the diagnosis's order.

    Cures that need a change of code cannot be tried. `tried` are digests of changes.
    """
    arms: list[Arm] = []
    named = {cause["issue"] for cause in diagnosis["root_causes"]}
    digests = tried | {digest(start)}
    for fix in diagnosis["recommended_fixes"]:
        change = fix["implementation"]
        delta = with_change(start, change)
        usable = fix["kind"] == "cure" and fix["cause"] in named and (change["overrides"] or change["surgery"])
        if usable and digest(delta) not in digests:
            digests = digests | {digest(delta)}
            arms.append(Arm(f"c{len(arms) + 1}", delta, fix["cause"], fix["cure"], len(arms) + 1))
    return arms


def explain_no_candidate(diagnosis: DiagnosisRecord, start: Delta) -> str:
    """Return why no candidate can be compared with the control, with the cures that a person can make by hand."""
    named = [cause["issue"] for cause in diagnosis["root_causes"]]
    cures = [fix for fix in diagnosis["recommended_fixes"] if fix["kind"] == "cure" and fix["cause"] in named]
    if not named:
        return "the diagnosis names no cause, so there is no cure to try"
    causes = ", ".join(named)
    if untried(diagnosis, start, set()):
        return f"every cure of the named causes ({causes}) was tried in an earlier round"
    by_hand = "; ".join(dict.fromkeys(str(fix["implementation"].get("code") or fix["cure"]) for fix in cures))
    if by_hand:
        return f"the cures of the named causes ({causes}) need a change of the code by hand: {by_hand}"
    return f"the named causes ({causes}) have no cure that a trial can test"
