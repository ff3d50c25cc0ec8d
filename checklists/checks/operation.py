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
