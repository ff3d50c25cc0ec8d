"""Checks of what a release needs in operation."""

from __future__ import annotations

from pipeline.results import Evidence, Result

NAMED = 5  # faults that a sentence lists


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
    found = evidence["rollback"]
    seconds = float(found["seconds"])
    if found["problem"]:
        return Result("failed", None, max_seconds, "seconds", f"could not be rehearsed: {found['problem']}")
    if found["intact"] is False:
        why = f"the payload of the model in use, {found['champion'][:12]}, is missing or was changed"
        return Result("failed", None, max_seconds, "seconds", why)
    if found["restored"] != found["champion"]:
        why = f"the rollback led to {found['restored'][:12] or 'no model'}, not to {found['champion'][:12] or 'none'}"
        return Result("failed", None, max_seconds, "seconds", why)
    why = f"{found['champion'][:12]} was restored, its payload is intact"
    if not found["champion"]:
        why = "no model is in use yet: the rollback of a first release is to switch it off"
    return Result("passed" if seconds <= max_seconds else "failed", seconds, max_seconds, "seconds", why)
