"""Checks of what a release needs in operation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.results import Acceptable, Evidence, Result, counted

NAMED = 5  # faults that a sentence lists
LEVEL = 0.05  # of the exact tests
UNLIKE = (
    "the validation rows differ from the train rows, which are alike among themselves: if the order of the rows means "
    "nothing, split them at random"
)


def documents(evidence: Evidence) -> Result:
    """Pass when the owner's declarations are complete, every section has content, and every number is on record.

    Proved is where the numbers come from, and that the records give the same texts again. That the owner's sentences
    are true is a statement of the owner, so that the result is attested.
    """
    documents = evidence["documents"]
    faults = [
        *(f"{key} is not declared" if " " not in key else key for key in documents["missing"]),
        *(f"placeholder in {found}" for found in documents["placeholders"]),
        *documents["sections"],
        *(f"a number is not on record: {found}" for found in documents["unproven"]),
        *(f"{name} is not what the records give" for name in documents["different"]),
    ]
    if faults:
        rest = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        return Result("failed", len(faults), 0, "faults", "; ".join(faults[:NAMED]) + rest)
    why = f"{documents['figures']} numbers of card and data sheet are on record; the sentences are the owner's"
    return Result("passed", 0, 0, "faults", why, basis="attested")


def rollback_rehearsed(evidence: Evidence, *, max_seconds: float) -> Result:
    """Passing proves that the model in use can be restored: the rehearsal ended with it, and its payload is intact.

    Without a model in use, the rehearsal has to end with none: the rollback of a first release is to switch it off.
    The value is the duration of the rehearsal.
    """
    rehearsal = evidence["rollback"]
    seconds = float(rehearsal["seconds"])
    if rehearsal["problem"]:
        return Result("failed", None, max_seconds, "seconds", f"could not be rehearsed: {rehearsal['problem']}")
    if rehearsal["intact"] is False:
        why = f"the payload of the model in use, {rehearsal['champion'][:12]}, is missing or was changed"
        return Result("failed", None, max_seconds, "seconds", why)
    if rehearsal["restored"] != rehearsal["champion"]:
        restored, champion = (rehearsal[name][:12] or "no model" for name in ("restored", "champion"))
        why = f"the rollback led to {restored}, not to {champion}"
        return Result("failed", None, max_seconds, "seconds", why)
    why = f"{rehearsal['champion'][:12]} was restored, its payload is intact"
    if not rehearsal["champion"]:
        why = "no model is in use yet: the rollback of a first release is to switch it off"
    return Result("passed" if seconds <= max_seconds else "failed", seconds, max_seconds, "seconds", why)


def drift_rehearsed(evidence: Evidence, *, max_false_alarms: float, min_detected: float, min_window: int) -> Result:
    """Passing proves that the drift monitor was tried: it is silent on rows like its reference, and notices shifts.

    Both shares are compared with their bounds by the exact binomial test at 5 %, since they are of a limited number of
    windows. A shift that windows of fewer than `min_window` rows do not show says too little. The value is the smallest
    share of windows in which a shift was noticed, or the share of false alarms if there are too many.
    """
    rehearsal = evidence["drift_monitor"]
    if rehearsal["why"]:  # with a reference, there were too few rows for a window
        acceptable: Acceptable = "small_sample" if rehearsal["reference_rows"] else ""
        return Result("inconclusive", why=rehearsal["why"], acceptable=acceptable)
    window, draws, alarms = rehearsal["window"], rehearsal["draws"], rehearsal["false_alarms"]
    size = f"windows of {window} rows against {rehearsal['reference_rows']}, {rehearsal['features']} features"
    if _at_least(alarms, draws, max_false_alarms) < LEVEL:
        named = f"; most often {', '.join(rehearsal['falsely_named'])}" if rehearsal["falsely_named"] else ""
        why = f"{alarms} of {draws} windows without a shift raise an alarm ({size}){named}"
        why += _about_stretches(rehearsal["stretches"]) or f"; {UNLIKE}"
        return Result("failed", alarms / draws, max_false_alarms, "of the windows", why)
    if not rehearsal["shifts"]:
        return Result("inconclusive", why=f"no feature varies, so that no shift could be tried ({size})")
    shares = {shift["shift"]: shift["detected"] / shift["draws"] for shift in rehearsal["shifts"]}
    missed = [
        shift
        for shift in rehearsal["shifts"]
        if _at_least(shift["draws"] - shift["detected"], shift["draws"], 1 - min_detected) < LEVEL
    ]
    lowest = min(shares.values())
    noticed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    why = f"noticed: {noticed}; {alarms} of {draws} windows without a shift raise an alarm ({size})"
    why += _about_stretches(rehearsal["stretches"])
    if missed and window < min_window:
        why += f"; fewer than {min_window} rows show too little"
        return Result(
            "inconclusive", lowest, min_detected, "of the windows", why, relation=">=", acceptable="small_sample"
        )
    if missed:
        why = f"not noticed often enough: {'; '.join(shift['what'] for shift in missed)}; {why}"
    return Result("failed" if missed else "passed", lowest, min_detected, "of the windows", why, relation=">=")


def _about_stretches(stretches: Mapping[str, Any] | None) -> str:
    """Return what the monitor makes of rows that are not alike; empty where it has the common bounds."""
    if stretches is None or not stretches["bounds"]:
        return ""
    apart = f"{stretches['drifted']} of {stretches['compared']} stretches of the train rows differ from the others"
    bounds = f"the bounds of {counted(len(stretches['bounds']), 'feature')} are what they differ by"
    return f"; {apart}, as in a text or over time, so that {bounds}"


def _at_least(count: int, draws: int, share: float) -> float:
    """Return how probable so many or more of the draws are, if each has this probability."""
    return sum(math.comb(draws, k) * share**k * (1 - share) ** (draws - k) for k in range(count, draws + 1))
