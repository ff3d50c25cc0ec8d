"""The candidates of a study: the cures of a diagnosis that can be tried, or why there is none, and what else can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from pipeline.repair.config_edits import format_override_value
from pipeline.repair.cures import CURES
from pipeline.repair.diagnosis_record import DiagnosisRecord
from pipeline.results import digest
from pipeline.run_store.job import Delta
from pipeline.run_store.records import AlternativeRecord
from pipeline.trials.study import Arm, with_change

CURES_TO_OFFER = {"train longer": "more_epochs", "train a larger model": "enlarge_model"}
EDITED_CODE = "change the model or the data in your own code, which needs your trust again"
OTHER_DATA = "add rows, or correct those that `data` reads, then plan again"


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


def alternatives(
    config: Mapping[str, object], packages: Sequence[str], tried: Sequence[Mapping[str, object]] = ()
) -> list[AlternativeRecord]:
    """Return what can be tried with this config: more epochs, a larger model, other code, other data.

    `packages` are those that the user trusts, `tried` the overrides of trials that did not help. Each alternative is a
    phase with overrides that the run accepts.
    """
    records: list[AlternativeRecord] = []
    for why, cure in CURES_TO_OFFER.items():
        changes = [change for edit in CURES[cure].edits for change in edit(config)]
        left = [change for change in changes if not any(change.items() <= trial.items() for trial in tried)]
        if left:  # the first is the smallest
            overrides = [f"{key}={format_override_value(value)}" for key, value in left[0].items()]
            records.append({"why": why, "phase": "baseline", "overrides": overrides})
    if packages:
        trust = f"trust={format_override_value(list(packages))}"
        records.append({"why": EDITED_CODE, "phase": "baseline", "overrides": [trust]})
    return [*records, {"why": OTHER_DATA, "phase": "planning", "overrides": []}]
